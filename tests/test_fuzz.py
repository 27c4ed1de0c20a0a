"""A seeded hundred of the damaged files that `benchmarks/fuzz.py` makes, and that it sees what it is to find."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
INPUTS = 105  # fifteen for each reader


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("fuzz")


def test_damaged_files_are_refused_in_one_line_or_read(fuzz):
    found = fuzz.watched(0, INPUTS, seed=20)
    assert [row["n"] for row in found] == list(range(INPUTS))
    assert [row for row in found if row["kind"] not in ("error", "valid") or row["peak"] > fuzz.GROWTH] == []
    for reader in fuzz.READERS:
        refused = sum(row["kind"] == "error" for row in found if row["reader"] == reader)
        assert refused >= 4, reader  # else nothing was spoilt


def test_files_before_they_are_spoilt_are_read_by_every_reader(fuzz, tmp_path, monkeypatch):
    spoilt = sys.modules["spoilt"]
    monkeypatch.setattr(spoilt, "_bytes", lambda rng, content, other=b"": ("nothing", content))
    monkeypatch.setattr(spoilt, "_field", lambda rng, text: text)
    monkeypatch.setattr(spoilt, "_rewritten", lambda rng, file: "nothing")
    bases, valid = spoilt.bases(tmp_path), set()
    for number in range(6 * len(fuzz.READERS)):
        row = fuzz.one(number, 0, tmp_path, bases)
        if row["kind"] == "valid":
            valid.add(row["reader"])
        else:  # with a digest that is wrong, or compressed
            assert row["reader"].startswith("checkpoint") and ("damaged" in row["line"] or "is compr" in row["line"]), (
                row
            )
    assert valid == set(fuzz.READERS)


def test_inputs_depend_on_their_seed_alone(fuzz, tmp_path):
    spoilt = sys.modules["spoilt"]
    bases = spoilt.bases(tmp_path)
    for kind in ("checkpoint", "snirf"):
        a, b, c = (spoilt.make(kind, (1, n), bases, tmp_path)[1].read_bytes() for n in (7, 7, 8))
        assert a == b != c


PLANTED = """
import os, sys, time
sys.path.insert(0, {folder!r})
import fuzz

def raises(path): raise KeyError("unforeseen")
def lines(path): raise fuzz.store.StoreError(f"{{path}}: two\\nlines")
def dies(path): os.kill(os.getpid(), 11)
def waits(path): time.sleep(60)
def grows(path): sys.planted = b"1" * 2**31

fuzz.READERS = {{
    name: ("dataset", read, fuzz.store.StoreError)
    for name, read in dict(raises=raises, lines=lines, dies=dies, waits=waits, grows=grows).items()
}}
fuzz.block(*map(int, sys.argv[2:4]), int(sys.argv[5]))
"""


@pytest.mark.slow
def test_every_kind_of_finding_is_seen(fuzz, tmp_path, monkeypatch, capsys):
    """Readers that are planted: they raise another error, two lines, die, hang, take 2 GB."""
    (tmp_path / "planted.py").write_text(PLANTED.format(folder=str(BENCHMARKS)))
    monkeypatch.setattr(fuzz, "HANG", 20.0)
    found = fuzz.watched(0, 5, 0, str(tmp_path / "planted.py"))
    assert [row["kind"] for row in found] == ["other", "other", "crash", "hang", "valid"]
    assert found[-1]["peak"] > fuzz.GROWTH > found[0]["peak"] and "unforeseen" in found[0]["line"]
    for row in found:
        monkeypatch.setattr(fuzz, "watched", lambda *a, row=row: [row | {"reader": "snirf.read"}])
        monkeypatch.setattr(sys, "argv", ["fuzz.py", "--inputs", "1"])
        assert fuzz.main() == 1
    monkeypatch.setattr(fuzz, "watched", lambda *a: [found[-1] | {"peak": 1.0, "reader": "snirf.read"}])
    assert fuzz.main() == 0 and "snirf.read" in capsys.readouterr().out
