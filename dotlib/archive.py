"""What `torch.save` writes, read as data: an archive of plain records, with no unpickler and nothing that is called.

A tree of dicts, lists, tuples, numbers, strings and tensors comes back; whatever else a pickle may ask for is refused.
Source: pickle protocol 2 (Python's `pickletools`); zip archives whose records are stored as they are.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import torch

STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip
ORDERED, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
NAMES = {ORDERED, TENSOR, *STORAGES}  # all that a pickle may name
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEYS = (str, int, float, type(None))
LONGEST = 2**26  # bytes of a pickle


class ArchiveError(ValueError):
    """An archive that is damaged, or holds more than plain data, as one line without a name."""


class Name(str):
    """What a pickle calls by its name; never the thing itself."""


def read(content: bytes, device="cpu") -> Any:
    """The tree of an archive's bytes, its tensors on `device`, which take no more memory than the archive.

    The rest of the tree takes some 70 bytes for each of its pickle, which has at most LONGEST. Raises ArchiveError.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _Tree(archive, len(content), device).read()
    except (torch.OutOfMemoryError, torch.AcceleratorError, ArchiveError):  # the device's failure, not the archive's
        raise
    except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, OSError) as error:
        raise ArchiveError(f"no archive: {str(error) or 'cut off'}") from None
    except (ValueError, LookupError, TypeError, OverflowError, RuntimeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArchiveError(f"no tree of plain data: {line:.80}") from None


class _Tree:
    """The machine of the pickle's few operations that plain data need."""

    def __init__(self, archive: zipfile.ZipFile, size: int, device):
        self.archive, self.device = archive, device
        self.records = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        for name, entry in self.records.items():
            size -= entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or size < 0:
                raise ArchiveError(
                    f"record {name[:80]!r} is compressed, or lies in others; accepted: records as they are"
                )
        self.stack: list[Any] = []
        self.marks: list[int] = []  # places on the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[tuple[str, str], torch.Tensor] = {}

    def record(self, name: str) -> bytes:
        return self.archive.read(self.records[name])

    def read(self) -> Any:
        if self.records["data.pkl"].file_size > LONGEST:
            raise ArchiveError(f"a pickle of {self.records['data.pkl'].file_size} bytes; accepted: {LONGEST} at most")
        if "byteorder" in self.records and self.record("byteorder") != b"little":
            raise ArchiveError("written by a machine of another byte order")
        stack = self.stack
        for operation, value, _ in pickletools.genops(self.record("data.pkl")):
            match operation.name:
                case "BINPUT" | "LONG_BINPUT":
                    self.memo[value] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self.memo[value])
                case "MARK":
                    self.marks.append(len(stack))
                case "GLOBAL" if value in NAMES:
                    stack.append(Name(value))
                case "TUPLE":
                    stack.append(tuple(self._marked()))
                case "APPEND" | "APPENDS":
                    more = self._marked() if operation.name == "APPENDS" else [stack.pop()]
                    self._top(list).extend(more)
                case "SETITEM" | "SETITEMS":
                    pairs = self._marked() if operation.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                    if not all(isinstance(key, KEYS) for key in pairs[::2]):
                        raise ArchiveError("has keys that are no names or numbers")
                    self._top(dict).update(zip(pairs[::2], pairs[1::2], strict=True))
                case "BINPERSID":
                    stack.append(self._storage(*stack.pop()))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(self._made(stack.pop(), arguments))
                case "BUILD":
                    self._versions(stack.pop())
                case "PROTO" | "STOP":
                    continue
                case name if name in VALUES:
                    stack.append(value)
                case name if name in EMPTY:
                    stack.append(EMPTY[name]())
                case name if name in CONSTANTS:
                    stack.append(CONSTANTS[name])
                case name if name in TUPLES:
                    stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
                case name:
                    raise ArchiveError(f"holds more than plain data: {name} {str(value)[:80]!r}")
        (found,) = stack
        return found

    def _marked(self) -> list[Any]:
        """What is above the last mark, which goes with it."""
        last = self.marks.pop()
        found = self.stack[last:]
        del self.stack[last:]
        return found

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ArchiveError(f"fills what is no {kind.__name__}")
        return self.stack[-1]

    def _versions(self, state: Any) -> None:
        """The one attribute that is set, of a network's dict: which version each of its modules has."""
        versions = state.get("_metadata") if isinstance(state, dict) and len(state) == 1 else None
        plain = isinstance(versions, dict) and all(
            isinstance(one, dict) and all(type(number) is int for number in one.values()) for one in versions.values()
        )
        if not plain:
            raise ArchiveError("sets attributes")
        self._top(OrderedDict)._metadata = versions

    def _storage(self, word: str, name: Name, key: str, place: str, count: int) -> torch.Tensor:
        """The numbers of a record, once for all tensors that share it; `place` is where they were."""
        if (key, name) not in self.storages:
            held, dtype = self.records[f"data/{key}"].file_size, STORAGES[name]
            if word != "storage" or count * dtype.itemsize != held:
                raise ArchiveError(f"record data/{key:.80} has {held} bytes, not {count} numbers of {dtype}")
            record = bytearray(self.record(f"data/{key}"))  # which, unlike bytes, torch may write to
            numbers = torch.frombuffer(record, dtype=dtype) if record else torch.empty(0, dtype=dtype)
            self.storages[key, name] = numbers.to(self.device)
        return self.storages[key, name]

    def _made(self, name: Any, arguments: tuple) -> Any:
        if type(name) is not Name or name not in (ORDERED, TENSOR):
            raise ArchiveError(f"calls {str(name)[:80]!r}")
        if name == ORDERED:
            if arguments != ():
                raise ArchiveError("fills a dict by a call")
            return OrderedDict()
        numbers, offset, size, stride, *more = arguments
        if not isinstance(numbers, torch.Tensor) or any(more) or math.prod(size) > numbers.numel():
            raise ArchiveError("holds a tensor that is no plain one, or larger than its record")
        return torch.as_strided(numbers, size, stride, offset)
