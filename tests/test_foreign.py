"""Files from elsewhere: each harm ends in one line of the caller's, and known files meet no other process."""

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from dotlib.data import foreign, inspector, ledger, schema, store
from dotlib.data.store import StoreError

ROOT = Path(__file__).resolve().parents[1]


def segfault(source, path):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(source, path):
    time.sleep(60)


def spin(source, path):
    while True:
        pass


def swell(source, path):
    return len(np.ones(2 * foreign.MEMORY, np.uint8))


def talk(source, path):
    return "x" * (inspector.LONGEST + 1)


def leave(source, path):
    os._exit(3)


def fail(source, path):
    raise KeyError("unforeseen")


def scribble(source, path):
    try:
        Path(path).with_suffix(".new").write_text("harm")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def echo(source, path, **options):
    return [Path(path).name, Path(source).read_bytes().decode(), options]


def modules(source, path):
    return sorted({"torch", "pydantic", "pandas", "matplotlib", "h5py"} & set(sys.modules))


def ask(path, examine, **options):
    with open(path, "rb") as file:
        return foreign.examined(file.fileno(), path, examine, **options)


@pytest.fixture
def asked(monkeypatch):
    """The paths that the other process was asked for, in order."""
    found, plain = [], foreign._INSPECTOR.ask
    monkeypatch.setattr(foreign._INSPECTOR, "ask", lambda request, file: (found.append(request["path"]),
                                                                         plain(request, file))[1])  # fmt: skip
    return found


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been there for a while."""
    monkeypatch.setattr(ledger, "SETTLED", 0)


@pytest.fixture
def user(recorded, tmp_path, request):
    """A user's file: the small one, changed, in another way for each test."""
    path = Path(shutil.copy(recorded, tmp_path / "own.h5"))
    with h5py.File(path, "r+") as file:
        file["phase"][3, 1] += 1
        del file["digests"]  # which would tell
        file.attrs["device"] = request.node.name
    return path


def opens(path):
    with store.File(path) as file:
        return len(file)


def line(path):
    """The one line in which a file is refused."""
    with pytest.raises(StoreError) as error:
        opens(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 400
    return str(error.value)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (segfault, r"crashed the HDF5 library \(SIGSEGV\)"),
        (hang, "took more than 1 s"),
        (spin, "took more than 1 s"),
        (swell, "took more than 2 GB"),
        (talk, "took more than 2 GB"),
        (leave, "failed"),
        (fail, "failed"),
    ],
)
def test_harm_to_the_other_process_is_one_line(tmp_path, monkeypatch, harm, words):
    """And the next file is examined as if nothing had been."""
    (path := tmp_path / "x").write_text("content")
    monkeypatch.setattr(foreign, "SECONDS", 1.0 if harm in (hang, spin) else 60.0)
    start = time.monotonic()
    with pytest.raises(foreign.ForeignError, match=f"^{path}: reading it {words}; damaged, or made to do harm$"):
        ask(path, harm)
    assert time.monotonic() - start < 30
    assert ask(path, echo, a=[1, "b"]) == ["x", "content", {"a": [1, "b"]}]


def test_other_process_may_write_no_file(tmp_path):
    (path := tmp_path / "x").touch()
    with pytest.raises(foreign.ForeignError, match="File too large"):
        ask(path, scribble)
    assert not path.with_suffix(".new").exists() or not path.with_suffix(".new").read_text()


def test_other_process_takes_little_to_start(tmp_path):
    """Alone it has none of the heavy packages: here by the module that reads datasets."""
    script = (
        "import sys; from dotlib.data import schema, snirf; print({'torch', 'pydantic', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    (path := tmp_path / "x").touch()
    assert "torch" not in ask(path, modules)


def test_answers_go_to_those_who_asked(tmp_path):
    paths = [tmp_path / str(i) for i in range(40)]
    for path in paths:
        path.write_text(path.name * 1000)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda path: ask(path, echo), paths))
    assert found == [[path.name, path.name * 1000, {}] for path in paths]


def test_interrupted_question_leaves_no_answer_behind(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).write_text(name)

    def interrupted(line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(foreign, "received", interrupted)
        ask(tmp_path / "a", echo)
    assert ask(tmp_path / "b", echo)[:2] == ["b", "b"]


def test_other_process_that_was_killed_is_started_again(tmp_path):
    (path := tmp_path / "x").write_text("x")
    ask(path, echo)
    before = foreign._INSPECTOR.process.pid
    os.kill(before, signal.SIGKILL)
    assert ask(path, echo)[0] == "x" and foreign._INSPECTOR.process.pid != before


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_other_process_ends_with_its_parent(user, end):
    script = (
        "import os, sys; from dotlib.data import foreign, store; store.File(sys.argv[1]); "
        f"print(foreign._INSPECTOR.process.pid, flush=True); {end}"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, user], env=environment, capture_output=True, text=True)
    pid, end = int(done.stdout), time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_own_file_and_its_copy_meet_no_other_process(recorded, tmp_path, asked, settled, monkeypatch):
    copy = shutil.copy(recorded, tmp_path / "copy.h5")
    assert opens(recorded) == opens(copy) == 36
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: pytest.fail("hashed"))
    assert opens(recorded) == opens(copy) == 36  # by their places
    os.rename(copy, moved := tmp_path / "moved.h5")
    monkeypatch.undo()
    assert opens(moved) == 36 and asked == []


def test_changed_file_is_examined_once(user, asked, settled):
    assert opens(user) == opens(user) == opens(shutil.copy(user, user.with_name("copy.h5"))) == 36
    assert asked == [str(user)]


def test_file_replaced_or_written_in_its_place_is_examined(recorded, user, tmp_path, asked, settled):
    """Also where its size and the time of its last change are the old ones."""
    path = Path(shutil.copy(recorded, tmp_path / "data.h5"))
    assert opens(path) == 36 and not asked
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[content.index(b"default")] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert line(path).endswith("damaged") and asked == [str(path)]
    os.replace(user, path)
    assert opens(path) == 36 and len(asked) == 2


def test_file_just_written_is_not_known_by_its_place(user, monkeypatch):
    """A second change within a tick of the clock would not show; here the tick is long."""
    monkeypatch.setattr(ledger, "SETTLED", 10**12)
    assert opens(user) == 36
    with open(user, "rb") as file:
        assert not ledger.knows(ledger.place(file.fileno()))


@pytest.mark.parametrize("harm", ["a file in its way", "no home"])
def test_without_a_ledger_every_file_is_examined(recorded, user, tmp_path, asked, monkeypatch, harm):
    (tmp_path / "state").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state") if harm != "no home" else "")

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    for path in (recorded, recorded, user):
        assert opens(path) == 36
    assert asked == [str(recorded), str(recorded), str(user)]
    store.write(tmp_path / "new.h5", {"checks": np.zeros(3, "i4"), "ellipsoids": np.ones((3, 6, 13), "f4")}, {})
    assert opens(tmp_path / "new.h5") == 3


def test_ledger_is_the_users_alone_and_forgets_what_is_old(user, state, settled, monkeypatch):
    opens(user)
    folder = ledger.folder()
    assert folder.is_relative_to(state) and folder.stat().st_mode & 0o77 == 0
    with open(user, "rb") as file:
        place = ledger.place(file.fileno())
    assert ledger.knows(place)
    monkeypatch.setattr(ledger, "RULES", -1)
    assert not ledger.knows(place)
    monkeypatch.undo()
    entry = folder / ledger._entry(place)
    os.utime(entry, (0, 0))
    assert not ledger.knows(place)
    ledger.remember(next(str(i) for i in range(10**5) if ledger._entry(str(i)).startswith("00")))
    assert not entry.exists()


def spoil(user, name, make):
    """The user's file with another dataset under a name; `make(file, name, values)` writes it."""
    with h5py.File(user, "r+") as file:
        values, unit = file[name][:], file[name].attrs["unit"]
        del file[name]
        make(file, name, values)
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            file[name].attrs["unit"] = unit
    return user


def external_link(file, name, values):
    file[name] = h5py.ExternalLink("pipe", f"/{name}")


def soft_link(file, name, values):
    file["twin"] = values
    file[name] = h5py.SoftLink("/twin")


def external_storage(file, name, values):
    file.create_dataset(name, values.shape, values.dtype, external=[("pipe", 0, values.nbytes)])


def virtual(file, name, values):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource("pipe", name, values.shape)
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (external_link, "phase is a link"),
        (soft_link, "phase is a link"),
        (external_storage, "phase lies in other files"),
        (virtual, "phase lies in other files"),
    ],
)
def test_file_that_names_others_is_refused_and_they_are_not_opened(user, make, words, monkeypatch):
    """The other file is a pipe: opening it would wait for whoever writes to it."""
    os.mkfifo(user.with_name("pipe"))
    monkeypatch.chdir(user.parent)
    monkeypatch.setattr(foreign, "SECONDS", 5.0)
    start = time.monotonic()
    assert f"{words}; accepted: datasets of the file itself" in line(spoil(user, "phase", make))
    assert time.monotonic() - start < 4


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def header(path, name, shape, **how):
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = store.SCHEMA
        file.create_dataset(name, shape, store.COLUMNS[name].dtype, **how)
        file[name].attrs["unit"] = store.COLUMNS[name].unit
    return path


@pytest.mark.parametrize("how", [{"chunks": True}, {}, {"chunks": True, "compression": "gzip"}])
@pytest.mark.parametrize(("name", "shape"), [("ellipsoids", (10**12, 6, 13)), ("estimate", (1, 2, *[10**4] * 3))])
def test_huge_header_is_refused_before_anything_is_allocated(tmp_path, name, shape, how):
    path, before = header(tmp_path / "x.h5", name, shape, **how), peak()
    assert path.stat().st_size < 10_000
    assert lacks(np.prod(shape, dtype=object) * 4) in line(path) and peak() - before < 2**26


def lacks(size):
    return f"needs {size} bytes, of which the file holds 0"


def test_column_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    """The bounds themselves, lowered: a file of 16 GB is more than a test may write."""
    path = header(tmp_path / "x.h5", "ellipsoids", (100, 6, 13), data=np.ones((100, 6, 13), "f4"))
    schema.examine(str(path), str(path))
    for name, words in (("COLUMN", "of memory; accepted: 31199 at most"), ("SPAN", "bytes at a time")):
        with monkeypatch.context() as patch, pytest.raises(StoreError, match=f"ellipsoids needs .*{words}"):
            patch.setattr(schema, name, 31_199 if name == "COLUMN" else 311)
            schema.examine(str(path), str(path))


def test_gzip_of_nothing_is_refused_and_of_readings_read(user, tmp_path):
    bomb = tmp_path / "bomb.h5"
    with h5py.File(bomb, "w") as file:
        file.attrs["schema"] = store.SCHEMA
        data = file.create_dataset("estimate", (2**10, 2, 32, 32, 32), "f4", chunks=(2**7, 2, 32, 32, 32),
                                   compression="gzip", compression_opts=9)  # fmt: skip
        for i in range(8):
            data.id.write_direct_chunk((2**7 * i, 0, 0, 0, 0), zlib.compress(bytes(2**25), 9))
        data.attrs["unit"] = "mm^-1"
    assert bomb.stat().st_size < 10**6 and "needs 268435456 bytes" in line(bomb) and "of gzip 1 in 200" in line(bomb)
    with store.File(user) as file:
        before = file.raw("phase")

    def zipped(file, name, values):
        file.create_dataset(name, data=values, chunks=(16, 24), compression="gzip", shuffle=True, fletcher32=True)

    with store.File(spoil(user, "phase", zipped)) as file:
        np.testing.assert_array_equal(file.raw("phase"), before)


def test_chunk_that_unpacks_to_more_than_its_size_is_refused(user):
    def overfull(file, name, values):
        data = file.create_dataset(name, values.shape, values.dtype, chunks=values.shape, compression="gzip")
        data.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**29), 9))

    before = peak()
    line(spoil(user, "phase", overfull))
    assert peak() - before < 2**26


@pytest.mark.parametrize("how", [{"compression": "lzf"}, {"scaleoffset": 3}])
def test_other_filters_are_refused(user, how):
    def made(file, name, values):
        file.create_dataset(name, data=values, chunks=(16, 24), **how)

    assert "accepted: gzip, shuffle, fletcher32" in line(spoil(user, "phase", made))


@pytest.mark.parametrize("value", [np.zeros(2**18), h5py.Empty("f4"), np.zeros(2, "f4,i2")])
@pytest.mark.parametrize("name", ["configuration", "schema"])
def test_attribute_that_is_no_small_text_or_number_is_refused(user, name, value):
    with h5py.File(user, "r+", libver="latest") as file:
        file.attrs[name] = value
    assert re.search(f"attribute {name} has (type|[0-9]+ bytes)", line(user))


@pytest.mark.parametrize("kept", [True, False])
def test_file_that_is_replaced_after_its_examination_is_not_opened_in_its_place(user, recorded, monkeypatch, kept):
    """What is opened is what was examined, whatever its name names by then; HDF5 refuses what has no name any more."""
    plain, other = schema.opened, Path(shutil.copy(recorded, user.with_name("other.h5")))

    def late(path, source):
        if kept:
            os.rename(path, user.with_name("kept.h5"))
        os.replace(other, path)
        return plain(path, source)

    with store.File(recorded) as file:
        before = file.raw("phase")
    monkeypatch.setattr(schema, "opened", late)
    if kept:
        with store.File(user) as file:
            assert np.argwhere(file.raw("phase") != before).tolist() == [[3, 1]]
    else:
        line(user)
    assert user.read_bytes() == recorded.read_bytes()


@pytest.mark.parametrize("how", ["written", "replaced", "written, with its old time"])
def test_file_that_is_changed_during_its_examination_is_refused(user, recorded, monkeypatch, how):
    plain, other = foreign.examined, Path(shutil.copy(recorded, user.with_name("other.h5")))

    def late(file, path, examine):
        plain(file, path, examine)
        before = path.stat()
        if how == "replaced":
            os.replace(other, path)
        else:
            with open(path, "r+b") as out:
                out.write(b"more")
        if "time" in how:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    monkeypatch.setattr(foreign, "examined", late)
    assert line(user).endswith("changed while it was read")
