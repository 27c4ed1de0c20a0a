"""The simulation of a dataset file: the same bytes however it came about, and every fault as one line."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny import RECORDED, Inline

from dotlib.config import Data, Noise
from dotlib.data import noise, phantoms, probe, recording, simulate, store
from dotlib.data.recording import SimulationError
from dotlib.physics import diffusion, green

ROOT = Path(__file__).resolve().parents[1]
FREQUENCY, N = 140e6, 1.33


@pytest.fixture
def inline(monkeypatch, one_thread):
    """Workers are this process."""
    monkeypatch.setattr(simulate, "ProcessPoolExecutor", Inline)


@pytest.fixture
def stored(monkeypatch, recorded, inline):
    """The blocks of the small file are looked up, not simulated: with what is looked up, in order."""
    asked = []

    def look_up(config, first, count, device):
        asked.append((first, count))
        with store.File(recorded) as file:
            names = [name for name in file.names if name != "split"]
            return {name: file.raw(name, first, first + count) for name in names}

    monkeypatch.setattr(recording, "simulate", look_up)
    return asked


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(process):
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


def test_bytes_do_not_depend_on_the_number_of_workers(recorded, tmp_path):
    simulate.simulate(RECORDED, tmp_path / "one.h5", workers=1)
    assert (tmp_path / "one.h5").read_bytes() == recorded.read_bytes()


def test_phantom_is_the_same_in_any_block(recorded, one_thread):
    alone = recording.simulate(RECORDED, 17, 1)
    with store.File(recorded) as file:
        for name, values in alone.items():
            np.testing.assert_array_equal(file.raw(name, 17, 18), values, err_msg=name)


def test_killed_simulation_continues_and_ends_with_the_same_bytes(recorded, tmp_path, mortal, monkeypatch):
    """Its driver is killed, then a worker of the second attempt; the third makes the missing shards only."""
    path, parts = tmp_path / "small.h5", tmp_path / "small.h5.parts"
    driver = mortal(target=simulate.simulate, args=(RECORDED, path, 1))
    driver.start()
    try:
        wait_for(lambda: list(parts.glob("*.h5")) if parts.exists() else not driver.is_alive())
        workers = workers_of(psutil.Process(driver.pid))
        os.kill(driver.pid, signal.SIGKILL)
        driver.join(30)
        wait_for(lambda: not any(map(alive, workers)))
    finally:
        driver.kill()
    assert workers and not path.exists()
    kept = {shard: shard.stat().st_mtime_ns for shard in parts.glob("*.h5")}
    assert 0 < len(kept) < 3
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(simulate.simulate, RECORDED, path, 1)
        wait_for(lambda: workers_of(psutil.Process()))[0].kill()
        with pytest.raises(SimulationError, match=r"a worker died .*continues"):
            work.result()
    merge, seen = simulate._merge, {}
    monkeypatch.setattr(
        simulate, "_merge", lambda *a: (seen.update({p: p.stat().st_mtime_ns for p in parts.glob("*.h5")}), merge(*a))
    )
    simulate.simulate(RECORDED, path, 1)
    assert len(seen) == 3 and {shard: seen[shard] for shard in kept} == kept
    assert path.read_bytes() == recorded.read_bytes() and not parts.exists()


def test_full_disk_is_one_line_and_keeps_the_finished_shards(recorded, stored, tmp_path, monkeypatch):
    path, write = tmp_path / "small.h5", store.write

    def full(shard, *arguments):
        if shard.name == "0000016.h5":
            shard.with_suffix(".tmp").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(shard, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        with pytest.raises(SimulationError, match=r"small.h5: No space left on device; finished shards are kept"):
            simulate.simulate(RECORDED, path)
    assert not path.exists()
    with store.File(tmp_path / "small.h5.parts" / "0000000.h5") as shard:
        assert len(shard) == 16 and shard.digests()
    stored.clear()
    simulate.simulate(RECORDED, path)
    assert stored[2:] == [(16, 16)]  # after the two phantoms that are timed; Inline had gone on to the third shard
    assert path.read_bytes() == recorded.read_bytes()


@pytest.mark.parametrize(("limit", "finished"), [(10_000, 0), (40_000, 3)])
def test_write_that_fails_is_one_line(recorded, stored, tmp_path, limit, finished):
    """The system refuses to let a file grow: first the shards, then the merged one."""
    path, parts = tmp_path / "small.h5", tmp_path / "small.h5.parts"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            SimulationError, match=rf"small.h5: {os.strerror(errno.EFBIG)}; .* the same command continues"
        ):
            simulate.simulate(RECORDED, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.exists() and len(list(parts.glob("0*.h5"))) == finished
    simulate.simulate(RECORDED, path)
    assert path.read_bytes() == recorded.read_bytes() and not parts.exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_folder_that_cannot_be_written_is_one_line(stored, tmp_path, monkeypatch, code):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SimulationError) as error:
        simulate.simulate(RECORDED, tmp_path / "small.h5")
    assert os.strerror(code) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty"])
def test_damaged_shard_is_made_again(recorded, stored, tmp_path, harm):
    shard = simulate._shards(RECORDED, tmp_path)[1]
    shard.make()
    assert shard.finished()
    content = bytearray(shard.path.read_bytes())
    content[-100] ^= 1
    shard.path.write_bytes({"truncated": content[:-50], "flipped": content, "empty": b""}[harm])
    assert not shard.finished()


def test_shard_of_another_configuration_is_refused(stored, tmp_path):
    first = simulate._shards(RECORDED, tmp_path)[0]
    first.make()
    other = simulate._shards(RECORDED.model_copy(update={"seed": 4}), tmp_path)[0]
    with pytest.raises(SimulationError, match=r"0000000\.h5: a shard of another configuration"):
        other.finished()


def test_two_that_ask_at_once_simulate_once(recorded, stored, tmp_path, capsys):
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: simulate.simulate(RECORDED, tmp_path / "small.h5"), range(2)))
    assert sorted(stored[2:]) == [(0, 16), (16, 16), (32, 4)]
    assert (tmp_path / "small.h5").read_bytes() == recorded.read_bytes()
    assert "waiting for another process" in capsys.readouterr().err


def test_estimate_is_printed_before_the_progress(stored, tmp_path, capsys):
    simulate.simulate(RECORDED, tmp_path / "small.h5", workers=2)
    estimate, *progress = capsys.readouterr().err.splitlines()
    assert "36 of 36 phantoms to simulate, about 00:00 on 2 core(s)" in estimate
    assert "36/36" in progress[-1] and "phantom/s" in progress[-1]


def test_gpu_is_used_by_this_process(recorded, stored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(simulate, "ProcessPoolExecutor", lambda *arguments: pytest.fail("workers were started"))
    simulate.simulate(RECORDED, tmp_path / "small.h5", workers=2)
    assert stored == [(0, 1), (0, 16), (0, 16), (16, 16), (32, 4)]  # the first two are timed
    assert (tmp_path / "small.h5").read_bytes() == recorded.read_bytes()
    assert "on 1 GPU" in capsys.readouterr().err


def test_file_is_for_a_configuration_with_measurements(tmp_path):
    with pytest.raises(ValueError, match=r"data\.measurements is None"):
        simulate.simulate(Data(phantoms=4, grid=16), tmp_path / "x.h5")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (diffusion.ConvergenceError(3, 0.1, 1e-6), "phantom 19: residual 0.1"),
        (ValueError("object 2: the tissue touches the wall"), "phantom 18: the tissue touches the wall"),
    ],
)
def test_failure_names_the_phantom_and_the_other_shards_are_made(inline, tmp_path, monkeypatch, error, line):
    simulated = recording.simulate

    def fail(*arguments):
        raise error

    def blocks(config, first, count, device):
        with monkeypatch.context() as patch:
            if first == 16:
                patch.setattr(diffusion, "readings", fail)
            else:
                count = min(count, 1)
            return simulated(config, first, count, device)

    monkeypatch.setattr(recording, "simulate", blocks)
    with pytest.raises(SimulationError, match=line):
        simulate.simulate(RECORDED, tmp_path / "small.h5")
    assert sorted(p.name for p in (tmp_path / "small.h5.parts").iterdir()) == ["0000000.h5", "0000032.h5"]


def test_file_says_where_it_comes_from(recorded):
    with store.File(recorded) as file:
        held = json.loads(file.attribute("configuration"))
        assert held["phantoms"] == 36 and held["measurements"]["grid"] == 32 and held["physics"] == store.PHYSICS
        assert (file.attribute("seed_phantoms"), file.attribute("seed_noise")) == ("3", "0")
        assert file.attribute("commit") == simulate.commit()
        np.testing.assert_array_equal(file.raw("family"), np.full(36, b"default"))
        assert len(file.digests()) == 3 and not file.excluded.any()


def test_commit_is_that_of_git():
    git = ["git", "log", "-1", "--format=%H", "--", "dotlib"]
    found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert found.startswith(simulate.commit()) or (found, simulate.commit()) == ("", "unknown")


def test_import_of_the_dataset_leaves_the_solver_alone():
    script = "import sys, dotlib.study; print('numba' in sys.modules or 'dotlib.physics.diffusion' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_recording_is_the_noise_law_on_the_clean_readings(recorded):
    """Phase and amplitude lie within their standard deviations of phi_clean, and are drawn by (seed, index)."""
    with store.File(recorded) as file:
        c = {name: file.raw(name) for name in file.names}
    clear = c["sigma"][..., 1] < 0.1
    amplitude = (c["log_amplitude"] - np.log(np.abs(c["phi_clean"]))) / c["sigma"][..., 0]
    turn = np.angle(np.exp(1j * c["phase"]) * c["phi_clean"]) / c["sigma"][..., 1]
    for z in (amplitude[clear], turn[clear]):
        assert abs(z.mean()) < 5 / np.sqrt(z.size) and z.std() == pytest.approx(1, abs=0.15) and np.abs(z).max() < 6
    i = 20
    rng = np.random.default_rng([noise.STREAM, 0, i])
    clean = c["phi_clean"][i].astype(complex)
    log_amplitude, _, _ = noise.measure(clean, np.zeros(24), c["pairs"][i], Noise(), rng)
    np.testing.assert_allclose(c["log_amplitude"][i], log_amplitude, atol=1e-5)


def test_phantom_is_in_the_frame_of_its_probe(recorded):
    with store.File(recorded) as file:
        tables, sources = file.raw("ellipsoids"), file.raw("sources")
    sampled = phantoms.sample("default", 36, 3)
    for column in (phantoms.AXES, phantoms.EXPONENT, phantoms.MUA, phantoms.MUSP):
        np.testing.assert_array_equal(tables[..., column], sampled[..., column])
    assert np.abs(tables[..., phantoms.QUATERNION] - sampled[..., phantoms.QUATERNION])[:, 0].max(1).min() > 1e-3
    assert (np.linalg.norm(sources[..., :2], axis=-1) <= 30).all() and sources[..., 2].min() > 0


@pytest.mark.parametrize("frequency", [0.0, 140e6, 1e9])
@pytest.mark.parametrize(("mua", "musp"), [(0.003, 0.78), (0.007, 1.18), (0.02, 2.5)])
def test_phase_of_a_half_space_is_that_along_a_path_from_the_source(frequency, mua, musp):
    separation = np.arange(0, 150, 0.1)
    phi = green.semi_infinite(separation, mua, musp, frequency, N)
    path = np.unwrap(-np.angle(phi))
    assert path[-1] > (4 * np.pi if frequency == 1e9 else 0) or frequency == 0
    found = recording.unwrapped(phi, mua, musp, separation, frequency, N)
    np.testing.assert_allclose(found, path, atol=1e-9)
    turned = recording.unwrapped(phi * np.exp(2.5j), mua, musp, separation, frequency, N)
    np.testing.assert_allclose(turned, path - 2.5, atol=1e-9)


def test_phase_of_a_phantom_is_that_along_a_path_over_its_surface(one_thread):
    """At 600 MHz, where it passes half a turn: detectors in a row, 1 mm apart, from 10 to 40 mm."""
    rows = phantoms.sample("default", 1, 7)[0]
    surface = recording.Surface(rows[0])
    angle = np.linspace(0, np.pi / 2, 400)
    points = surface.along(np.stack([np.sin(angle), 0 * angle, np.cos(angle)], 1))
    distance = np.linalg.norm(points - points[0], axis=1)
    row = points[np.searchsorted(distance, np.arange(10, 34))]
    pairs = np.stack([np.zeros(len(row), int), np.arange(len(row))], 1)
    media = [recording._medium(rows, 32, "cpu")]
    phi = diffusion.readings(media, points[None, :1], row[None], pairs[None], 600e6, N)[0]
    separation = probe.separations(points[:1], row, pairs)
    phase = recording.unwrapped(phi, *recording.mean_properties(rows, 32), separation, 600e6, N)
    np.testing.assert_allclose(phase, np.unwrap(-np.angle(phi)) + 2 * np.pi * np.round(
        (phase[0] + np.angle(phi[0])) / (2 * np.pi)), atol=1e-9)  # fmt: skip
    assert 0 < phase[0] < np.pi < phase[-1] and (np.diff(phase) > 0).all()


def test_mean_properties_are_those_of_the_tissue():
    rows = phantoms.sample("single", 1, 0)[0]
    volume = phantoms.rasterise(rows[None], 64)[0].double().numpy()
    tissue = (
        phantoms.rasterise(phantoms.without_inclusions(rows[None]), 64)[0, 0].double().numpy() / rows[0, phantoms.MUA]
    )
    expected = volume.reshape(2, -1).sum(1) / tissue.sum()
    np.testing.assert_allclose(recording.mean_properties(rows, 64), expected, rtol=2e-3)
