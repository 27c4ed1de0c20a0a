"""Checkpoints: what comes back is what was saved, or one clear refusal; nothing in a file is executed."""

import errno
import hashlib
import io
import os
import pickle
import re
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import same
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from dotlib import archive, checkpoint
from dotlib.checkpoint import CheckpointError

SMALL = {"weight": torch.linspace(-1, 1, 6).view(2, 3), "epochs": [{"epoch": 0, "loss": 0.1}], "betas": (0.9, 0.95)}


def outcome(path, state=SMALL):
    """`refused`, or whether the state that is read is the `same` or `changed`."""
    try:
        return "same" if same(checkpoint.load(path, "c0"), state) else "changed"
    except CheckpointError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return "refused"


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint and its bytes."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, SMALL, "c0")
    return path, path.read_bytes()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_tensor_comes_back_bit_for_bit(tmp_path, dtype):
    x = torch.tensor([[0.0, -0.0, 1 / 3, 1e-40], [3.0, -7.5, 1e4, 2.0]]).to(dtype)
    if dtype.is_floating_point:
        x[1] = torch.tensor([float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).tiny])
    state = {"plain": x, "turned": x.mT, "number": x[0, 2], "none": x[:0], "row": x[:, 1]}
    checkpoint.save(tmp_path / "x.pt", state, "c0")
    assert outcome(tmp_path / "x.pt", state) == "same"


def test_tree_comes_back_as_it_was(tmp_path):
    leaf = [1, 2.5, float("nan"), float("inf"), -0.0, "text", None, True, 10**20, ()]
    state = {"list": leaf, "tuple": (leaf, (1,)), "dict": {"a": {"b": {}}, 3: [[]]}, "ordered": OrderedDict(b=1, a=2)}
    checkpoint.save(tmp_path / "x.pt", state, "c0")
    assert outcome(tmp_path / "x.pt", state) == "same"


def walk(seed=0):
    """A small network with its optimiser, schedules, and a function that takes a step of both."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3)).to(memory_format=torch.channels_last_3d)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    cycle, plateau = OneCycleLR(opt, 1e-2, total_steps=20), ReduceLROnPlateau(opt, patience=1)

    def step(i):
        x = torch.randn(2, 2, 5, 5, 5, generator=torch.Generator().manual_seed(i))
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
        cycle.step()
        plateau.step(1.0)

    return (model, opt, cycle, plateau), step


def test_interrupted_optimisation_continues_with_the_same_bits(tmp_path):
    parts, step = walk()
    for i in range(3):
        step(i)
    state = {str(i): part.state_dict() for i, part in enumerate(parts)}
    checkpoint.save(tmp_path / "x.pt", state, "c0")
    assert outcome(tmp_path / "x.pt", state) == "same"
    others, other_step = walk(seed=1)
    loaded = checkpoint.load(tmp_path / "x.pt", "c0")
    for i, part in enumerate(others):
        part.load_state_dict(loaded[str(i)])
    for i in range(3, 6):
        step(i)
        other_step(i)
    assert all(same(a.state_dict(), b.state_dict()) for a, b in zip(parts, others, strict=True))


class Touch:
    """Pickled, it makes whoever unpickles it create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def torch_bytes(thing):
    torch.save(thing, buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("form", ["inside", "torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path, form, signed):
    path, mark = tmp_path / "last.pt", tmp_path / "executed"
    content = {
        "inside": lambda: torch_bytes({"schema": checkpoint.SCHEMA, "config": "c0", "state": {"evil": Touch(mark)}}),
        "torch": lambda: torch_bytes(Touch(mark)),
        "pickle": lambda: pickle.dumps(Touch(mark)),
    }[form]()
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode() if signed else content)
    assert outcome(path) == "refused"
    assert not mark.exists()
    pickle.loads(content) if form == "pickle" else torch.load(io.BytesIO(content), weights_only=False)
    assert mark.exists()  # else the test would say nothing


def test_truncated_checkpoint_is_refused(saved):
    path, raw = saved
    for length in (*range(0, len(raw), 97), len(raw) - 65, len(raw) - 64, len(raw) - 1):
        path.write_bytes(raw[:length])
        assert outcome(path) == "refused", length


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"PK\x03\x04 no archive",
        b"\x80\x02J\0",  # a number of four bytes that has one
        b"\0",
        b"checkpoint",
        b"PK\x03\x04",
        bytes(range(256)),
        b"\x80\x02}q\0.",
    ],
)
def test_other_files_are_refused(tmp_path, junk, signed):
    (tmp_path / "x.pt").write_bytes(junk + hashlib.sha256(junk).hexdigest().encode() * signed)
    assert outcome(tmp_path / "x.pt") == "refused"


def test_missing_checkpoint_and_folder_are_refused(tmp_path):
    assert outcome(tmp_path / "none.pt") == outcome(tmp_path) == "refused"


def test_flipped_bit_is_refused(saved):
    """Anywhere: headers, opcodes, numbers, padding, digest."""
    path, raw = saved
    rng = np.random.default_rng(0)
    for i in (*rng.integers(len(raw), size=200), *range(len(raw) - 64, len(raw))):
        damaged = bytearray(raw)
        damaged[i] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert outcome(path) == "refused", i


def test_inserted_and_appended_bytes_are_refused(saved):
    path, raw = saved
    for damaged in (raw + b"\0", b"\0" + raw, raw + raw, raw[:50] + b"\0" + raw[50:]):
        path.write_bytes(damaged)
        assert outcome(path) == "refused"


def test_other_configuration_is_refused(saved):
    with pytest.raises(CheckpointError, match="belongs to configuration c0, not to c1"):
        checkpoint.load(saved[0], "c1")


def test_other_schema_is_refused(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA", checkpoint.SCHEMA + 1)
    assert outcome(saved[0]) == "refused"


def alone(path):
    """The one line in which a file is refused that nobody knows the configuration of."""
    with pytest.raises(CheckpointError) as error:
        checkpoint.alone(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_checkpoint_that_says_its_configuration_is_read_alone(tmp_path):
    """Bit for bit, with the text as it was given; for those who know the digest it is as any other."""
    path, about = tmp_path / "x.pt", '{"seed": 3, "name": "µ, \\n"}'
    checkpoint.save(path, SMALL, "c0", about)
    found, state = checkpoint.alone(path)
    assert found == about and same(state, SMALL) and outcome(path) == "same"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert "damaged" in alone(path)
    assert "no such checkpoint" in alone(tmp_path / "none.pt")


def test_checkpoint_of_earlier_code_is_read_by_its_digest_only(saved):
    """Saved without a configuration, or by code that had no place for one."""
    path, _ = saved
    assert "holds no configuration, being of earlier code" in alone(path) and outcome(path) == "same"
    content = torch_bytes({"schema": checkpoint.SCHEMA, "config": "c0", "state": SMALL})
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    assert "holds no configuration, being of earlier code" in alone(path) and outcome(path) == "same"


@pytest.mark.parametrize("point", ["replace", "fsync"])
@pytest.mark.parametrize("writer", ["save", "write"])
def test_interrupted_write_leaves_the_old_file(saved, monkeypatch, point, writer):
    path, raw = saved
    write = {"save": lambda: checkpoint.save(path, {"a": 1}, "c0"), "write": lambda: checkpoint.write(path, b"new")}[
        writer
    ]

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, point, fail)
        with pytest.raises(OSError, match=f"no space left: '{path}'"):
            write()
        assert path.read_bytes() == raw and outcome(path) == "same"
    write()
    assert path.read_bytes() != raw
    assert os.listdir(path.parent) == [path.name]  # nothing half-written stays


@pytest.mark.parametrize("writer", ["save", "write"])
def test_write_is_on_the_disk_before_it_replaces(tmp_path, monkeypatch, writer):
    done, path = [], tmp_path / "x"
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.fstat(file).st_size), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(b)), replace(a, b)))
    checkpoint.save(path, SMALL, "c0") if writer == "save" else checkpoint.write(path, b"12345")
    assert done == [path.stat().st_size, path]


def record(state):
    return {"schema": checkpoint.SCHEMA, "config": "c0", "about": "", "state": state}


def repacked(path, change=None, compression=zipfile.ZIP_STORED, **records):
    """A checkpoint with its pickle changed, or records replaced, and a digest that is right."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes()[: -checkpoint.DIGEST])) as archive:
        found = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()} | records
    found["data.pkl"] = change(found["data.pkl"]) if change else found["data.pkl"]
    with zipfile.ZipFile(held := io.BytesIO(), "w", compression) as archive:
        for name, content in found.items():
            archive.writestr(f"archive/{name}", content)
    signed(path, held.getvalue())


def signed(path, content):
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def refusal(path):
    """The line of a file that is refused, at no more memory than 64 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"refused \(.*\); remove it to start anew$") as error:
        checkpoint.load(path, "c0")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # kB; on macOS bytes, a sharper bound
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))
    return str(error.value)


def test_archive_is_read_as_torch_reads_it(tmp_path):
    """Its own reader of plain data as oracle: networks, optimisers, schedules, generators, every type of number."""
    parts, step = walk()
    step(0)
    kinds = [*archive.STORAGES.values()]
    state = {str(i): part.state_dict() for i, part in enumerate(parts)}
    state |= {"random": torch.get_rng_state(), "kinds": [torch.arange(3).to(kind) for kind in kinds]}
    state |= {"views": [(x := torch.arange(24.0).view(2, 3, 4)), x[:, 1], x.mT, x[1, 2, 3], x[:0]], "tree": SMALL}
    content = torch_bytes(record(state))
    found, wanted = archive.read(content), torch.load(io.BytesIO(content), weights_only=True)
    assert same(found, wanted) and found["state"]["0"]._metadata == wanted["state"]["0"]._metadata
    a, b = found["state"]["views"][:2]
    a[0, 1, 0] = -1
    assert b[0, 0] == -1  # they share a record still


def swapped(old, new):
    def change(content):
        found, count = re.subn(old, lambda _: new, content, flags=re.DOTALL)
        assert count == 1
        return found

    return change


SIX = b"(?<=cpuq.)K\x06"  # the tensor of SMALL: six numbers, of shape (2, 3)
SHAPE = b"K\x02K\x03\x86"
HUGE = b"\x8a\x06\x00\x10\xa5\xd4\xe8\x00"  # 10**12 and some
HARMS = {
    "more numbers than the record has": (swapped(SIX, HUGE), "has 24 bytes, not 10"),
    "fewer": (swapped(SIX, b"K\x05"), "has 24 bytes, not 5"),
    "a huge shape": (swapped(SHAPE, b"K\x02" + HUGE + b"\x86"), "larger than its record"),
    "a shape of products": (swapped(SHAPE, HUGE + HUGE + b"\x86"), "larger than its record"),
    "an offset beyond": (swapped(b"QK\x00", b"QK\x05"), "storage offset 5"),
    "another record": (swapped(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"), "data/9"),
    "bytes of any number": (lambda c: b"\x80\x02cbuiltins\nbytearray\n" + HUGE + b"\x85R.", "bytearray"),
    "an allowed call with other arguments": (lambda c: b"\x80\x02ccollections\nOrderedDict\n](\x85R.", "by a call"),
    "an attribute": (lambda c: b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.", "sets attributes"),
    "a table of 2**32 places": (lambda c: b"\x80\x02}r\xff\xff\xff\xff.", "no checkpoint"),
    "a text that is cut off": (lambda c: b"\x80\x02X\xff\xff\xff\x7fabc.", "no tree"),
    "tuples in tuples as a key": (lambda c: b"\x80\x02})" + b"\x85" * 10**5 + b"K\x01s.", "keys"),
    "lists in lists": (lambda c: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "no checkpoint"),
    "nothing": (lambda c: b"", "no tree"),
    "too little on the stack": (lambda c: b"\x80\x02tR.", "no tree"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_crafted_pickle_is_refused_in_little_memory(saved, harm):
    path, _ = saved
    change, words = HARMS[harm]
    repacked(path, change)
    if words == "no checkpoint":
        with pytest.raises(CheckpointError, match="no checkpoint of dotlib"):
            checkpoint.load(path, "c0")
    else:
        assert words in refusal(path)


def test_record_that_inflates_is_refused(saved):
    path, _ = saved
    repacked(path, compression=zipfile.ZIP_DEFLATED, **{"data/0": bytes(2**28)})
    assert path.stat().st_size < 2**20 and "is compressed" in refusal(path)


def test_pickle_without_end_is_refused(saved, monkeypatch):
    path, _ = saved
    monkeypatch.setattr(archive, "LONGEST", 1000)
    repacked(path, lambda content: b"\x80\x02" + b"}" * 1000)
    assert "accepted: 1000 at most" in refusal(path)


def test_sizes_in_the_directory_are_not_trusted(saved):
    """Each of its numbers, set to the largest: compressed and plain size, offset, lengths of names."""
    path, raw = saved
    content = raw[: -checkpoint.DIGEST]
    start, refused = content.index(b"PK\x01\x02"), 0
    for place in range(start, len(content) - 4, 2):
        signed(path, content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
        refused += outcome(path) == "refused"
    assert refused > 100
