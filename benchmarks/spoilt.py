"""Files that are damaged or made to do harm, each by a seed: datasets, SNIRF files, checkpoints, records of results."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from dotlib import checkpoint, records
from dotlib.config import root
from dotlib.data import probe, snirf, store

CONFIG = "0" * 16
SIZES = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 10**12, 2**63 - 1, 2**63, 2**64 - 1)
RECORD = "4.3-ends"  # a committed one
Random = np.random.Generator


def readings(phantoms: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of measurements that pass their checks."""
    rng = np.random.default_rng(seed)
    sources, detectors = (rng.uniform(-12, 12, (phantoms, n, 3)).astype("f4") for n in (4, 6))
    sources[..., 2], detectors[..., 2] = 10, -10
    pairs = np.broadcast_to(np.stack(np.indices((4, 6)), -1).reshape(-1, 2).astype("i2"), (phantoms, 24, 2)).copy()
    apart = np.stack([probe.separations(*one) for one in zip(sources, detectors, pairs, strict=True)])
    log_amplitude, phase = -3 - 0.2 * apart, 0.05 * apart
    sigma = np.full((*apart.shape, 2), 0.01, "f4")
    columns = {"sources": sources, "detectors": detectors, "pairs": pairs, "sigma": sigma}
    columns |= {"log_amplitude": log_amplitude.astype("f4"), "phase": phase.astype("f4")}
    return columns | {"checks": np.zeros(phantoms, "i4")}


def bases(folder: Path) -> dict[str, list[bytes]]:
    """Sound files of each kind, small: of this package's own format, of older and newer HDF5, plain and packed."""
    found: dict[str, list[bytes]] = {"dataset": [], "snirf": [], "checkpoint": [], "record": []}
    columns = readings()
    store.write(folder / "own.h5", columns, {"configuration": "{}", "first": 0})
    found["dataset"].append((folder / "own.h5").read_bytes())
    for libver in ("earliest", "latest"):
        for how in ({}, {"compression": "gzip", "chunks": True, "shuffle": True}):
            with h5py.File(folder / "own.h5", "w", libver=libver) as file:
                file.attrs["schema"], file.attrs["fields"] = store.SCHEMA, '{"measurements": {"frequency": 1e8}}'
                for name, values in columns.items():
                    file.create_dataset(name, data=values, **how).attrs["unit"] = store.COLUMNS[name].unit
            found["dataset"].append((folder / "own.h5").read_bytes())
    one = {name: columns[name][0].astype("f8") for name in store.MEASURED} | {"pairs": columns["pairs"][0].astype(int)}
    for seed in (0, 1):
        sigma = one["sigma"] if seed else np.full_like(one["sigma"], np.nan)
        snirf.write(folder / "own.snirf", snirf.Recording(**one | {"sigma": sigma}, frequency=1e8, wavelength=800.0))
        found["snirf"].append((folder / "own.snirf").read_bytes())
    state = {"judged": torch.nn.BatchNorm1d(3).state_dict(), "epochs": [{"loss": 0.5, "epoch": i} for i in range(9)]}
    state |= {"random": torch.arange(40, dtype=torch.uint8), "tree": (1, 2.5, None, "a", [True, 10**20])}
    checkpoint.save(folder / "own.pt", state, CONFIG, '{"seed": 0}')
    found["checkpoint"].append((folder / "own.pt").read_bytes())
    found["record"].append(json.dumps({
        path.name: path.read_text(encoding="utf-8") for path in (root() / "results" / RECORD).iterdir()
    }).encode())  # fmt: skip
    return found


def make(kind: str, seed: tuple[int, int], sound: dict[str, list[bytes]], folder: Path) -> tuple[str, Path]:
    """One file of a kind, by its seed: how it was spoilt, and where it is."""
    rng = np.random.default_rng(seed)
    base = sound[kind][rng.integers(len(sound[kind]))]
    if kind == "record":
        return _record(rng, json.loads(base), folder / RECORD)
    if kind == "checkpoint":
        return _checkpoint(rng, base, folder / "spoilt.pt")
    path = folder / ("spoilt.snirf" if kind == "snirf" else "spoilt.h5")
    path.unlink(missing_ok=True)
    if rng.random() < 0.4:
        path.write_bytes(base)
        with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, KeyError), h5py.File(path, "r+") as file:
            return _rewritten(rng, file), path
    other = sound[kind][rng.integers(len(sound[kind]))]
    how, content = _bytes(rng, base, other)
    path.write_bytes(content)
    return how, path


def _bytes(rng: Random, content: bytes, other: bytes = b"") -> tuple[str, bytes]:
    """The same bytes but some, in one of the ways of BYTES, once or more often; mostly near headers."""
    name = list(BYTES)[rng.integers(len(BYTES))]
    for _ in range(rng.integers(1, 4)):
        content = BYTES[name](rng, bytearray(content), other or content)
    return name, bytes(content)


def _place(rng: Random, content: bytearray) -> int:
    """Mostly where a file describes itself: anywhere that is neither zero nor like a float."""
    places = rng.integers(len(content), size=8) if content else np.zeros(1, int)
    return int(next((p for p in places if content and 0 < content[p] < 40), places[0]))


def _flip(rng, content, other):
    for _ in range(rng.integers(1, 9)):
        content[_place(rng, content)] ^= 1 << int(rng.integers(8))
    return content


def _run(rng, content, other):
    start, count = _place(rng, content), int(rng.integers(1, 64))
    fill = [b"\0", b"\xff", rng.bytes(1)][rng.integers(3)]
    content[start : start + count] = fill * len(content[start : start + count])
    return content


def _number(rng, content, other):
    """A count, size, offset or dimension: eight bytes, or four, by one of SIZES."""
    start, width = _place(rng, content) & ~3, int(rng.choice([2, 4, 8]))
    value = SIZES[rng.integers(len(SIZES))] % 2 ** (8 * width)
    content[start : start + width] = value.to_bytes(width, "little")
    return content


def _cut(rng, content, other):
    return content[: rng.integers(len(content) + 1)]


def _double(rng, content, other):
    start, count, to = (int(rng.integers(1 + len(content) // n)) for n in (1, 8, 1))
    return content[:to] + content[start : start + count] + content[to if rng.random() < 0.5 else to + count :]


def _splice(rng, content, other):
    start = int(rng.integers(1 + min(len(content), len(other))))
    return content[:start] + other[start:]


BYTES: dict[str, Callable] = {
    "flip": _flip, "run": _run, "number": _number, "cut": _cut, "double": _double, "splice": _splice,
}  # fmt: skip


def _rewritten(rng: Random, file: h5py.File) -> str:
    """One dataset or attribute written anew, by HDF5 itself: another shape, type, unit, storage, or place."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    name = names[rng.integers(len(names))]
    values, attributes = file[name][()], dict(file[name].attrs)
    del file[name]
    how, made = list(REWRITTEN.items())[rng.integers(len(REWRITTEN))]
    made(rng, file, name, np.asarray(values))
    if isinstance(file.get(name, getlink=True), h5py.HardLink):
        file[name].attrs.update(attributes)
        if how == "attribute":
            odd = [np.zeros(2**13), "µm", b"\xff\xfe", h5py.Empty("f4"), np.zeros(3, "f4,i2"), np.array([["a"]], "S3")]
            where = [file, file[name]][rng.integers(2)]
            where.attrs[["unit", "schema", "fields"][rng.integers(3)]] = odd[rng.integers(len(odd))]
    return how


def _grown(rng, file, name, values):
    shape = [int(rng.choice([n, n + 1, 10**6, 10**12, 2**40])) for n in values.shape or (1,)]
    file.create_dataset(name, shape, values.dtype, chunks=True)


def _shaped(rng, file, name, values):
    file[name] = [values.ravel(), values[None], values[:1] if values.ndim else values, values[..., None]][
        rng.integers(4)
    ]


def _typed(rng, file, name, values):
    kinds = ["i8", ">f4", "f8", "S3", "c16", "?", "u1"]
    kind = kinds[rng.integers(len(kinds))]
    file[name] = values.astype(kind) if values.dtype.kind in "iufcb" else np.zeros(3, kind)


def _texts(rng, file, name, values):
    odd = ["", "µ" * 70_000, "1.1\0x", "\x1b[2J\n", "mm" * 9]
    file.create_dataset(name, data=[odd[rng.integers(5)]] * int(rng.integers(1, 9)), dtype=h5py.string_dtype())


def _wild(rng, file, name, values):
    values = np.array(values, copy=True)
    if values.dtype.kind in "iufc" and values.size:
        odd = [np.nan, np.inf, -1, 0, 1e38] if values.dtype.kind in "fc" else [-1, 0, 2**14, 101, 102]
        values.flat[rng.integers(values.size, size=3)] = odd[rng.integers(5)]
    file[name] = values


def _linked(rng, file, name, values):
    links = [
        h5py.SoftLink("/"),
        h5py.SoftLink(f"/{name}"),
        h5py.ExternalLink("spoilt.h5", "/"),
        h5py.ExternalLink("x", "/"),
    ]
    file[name] = links[rng.integers(4)]


def _packed(rng, file, name, values):
    how = [{"compression": "lzf"}, {"scaleoffset": 2}, {"compression": "gzip"}, {"fletcher32": True}][rng.integers(4)]
    file.create_dataset(name, data=values.ravel(), chunks=True, **how)


REWRITTEN: dict[str, Callable] = {
    "grown": _grown, "shaped": _shaped, "typed": _typed, "texts": _texts, "wild": _wild, "linked": _linked,
    "packed": _packed, "attribute": lambda rng, file, name, values: file.create_dataset(name, data=values),
    "gone": lambda rng, file, name, values: None, "group": lambda rng, file, name, values: file.create_group(name),
}  # fmt: skip


def _checkpoint(rng: Random, base: bytes, path: Path) -> tuple[str, Path]:
    """Spoilt as bytes, with its digest wrong or right; or in one record of its archive, most often the pickle."""
    content = base[: -checkpoint.DIGEST]
    if rng.random() < 0.6:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        name = (
            next(n for n in held if n.endswith("data.pkl"))
            if rng.random() < 0.8
            else list(held)[rng.integers(len(held))]
        )
        how, held[name] = _bytes(rng, held[name])
        packing = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(made := io.BytesIO(), "w", packing) as archive:
            for name, record in held.items():
                archive.writestr(name, record)
        how, content = f"record {how}", made.getvalue()
    else:
        how, content = _bytes(rng, content)
    signed = rng.random() < 0.9
    path.write_bytes(content + (hashlib.sha256(content).hexdigest().encode() if signed else base[-checkpoint.DIGEST :]))
    return how, path


def _record(rng: Random, held: dict[str, str], folder: Path) -> tuple[str, Path]:
    """One of its files spoilt, as bytes or in a field; beside a digest that is right, most often."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = list(held)[rng.integers(len(held))]
    raw = {other: text.encode() for other, text in held.items()}
    how, raw[name] = _bytes(rng, raw[name]) if rng.random() < 0.5 else ("field", _field(rng, held[name]).encode())
    if name != "about.json" and rng.random() < 0.9:
        about = json.loads(held["about.json"])
        about["tables"][name.removesuffix(".csv")] = records._digest(raw[name].decode(errors="replace"))
        raw["about.json"] = json.dumps(about).encode()
    for other, content in raw.items():
        (folder / other).write_bytes(content)
    return how, folder


def _field(rng: Random, text: str) -> str:
    odd = ["", "nan", '"', "-1e999", "9" * 400, "\x1b[2J", "[" * 3000, "µ,", "null", "true"]
    parts = text.split("," if rng.random() < 0.8 else "\n")
    parts[rng.integers(len(parts))] = odd[rng.integers(len(odd))]
    return ",".join(parts)
