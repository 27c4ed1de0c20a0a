"""One recording into volumes by the command: files that are written, the frame they are in, and what is refused."""

import json
import re
import subprocess
import sys

import ball
import h5py
import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_snirf import by_hand, probe, single
from tiny import RECORDED, tiny
from torch import nn

from dotlib import __main__ as command
from dotlib import checkpoint, config, inference, reconstruct, trained
from dotlib.data import phantoms, snirf, store

DATA = RECORDED.model_copy(update={"grid": 16})
SPHERE = ((3.0, -5.0, 14.0), 5.0, 2.5, 1.0)  # centre, radius, mm; factors of mua and musp
STILL = Rotation.identity()
TURNED = Rotation.from_rotvec([0.9, -0.7, 1.1]), np.array([100.0, -30.0, 12.0])
CYCLED = Rotation.from_matrix(np.eye(3)[[2, 0, 1]]), np.array([5.0, 6.0, 7.0])  # x to y to z to x
pytestmark = pytest.mark.usefixtures("one_thread")


def configured(**changes):
    what = {"task": "reconstruct", "data": DATA, "model__name": "unet", "lift": config.Lift(count=16)}
    return tiny(**what | changes)


def saved(path, seed=0, about=True, **changes):
    """A network whose last convolution is awake, as a run leaves it."""
    c = configured(seed=seed, **changes)
    model = inference.network(c)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.network.head.weight.copy_(0.1 * torch.randn(model.network.head.weight.shape, generator=generator))
    checkpoint.save(path, {"judged": model.state_dict()}, c.digest(), c.model_dump_json() if about else "")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of three seeds, and of others that do not serve, by name."""
    folder = tmp_path_factory.mktemp("models")
    found = {f"seed{seed}": saved(folder / f"seed{seed}.pt", seed) for seed in range(3)}
    found["wider"] = saved(folder / "wider.pt", model__width=4)
    found["closed"] = saved(folder / "closed.pt", lift=config.Lift(kind="closed-form", count=16))
    found["many"] = saved(folder / "many.pt", lift=config.Lift(count=90))
    found["silent"] = saved(folder / "silent.pt", about=False)
    c = tiny()
    found["autoencoder"] = folder / "autoencoder.pt"
    state = {"judged": inference.network(c).state_dict()}
    checkpoint.save(found["autoencoder"], state, c.digest(), c.model_dump_json())
    return found


def recording(turn=STILL, shift=(0, 0, 0), gain=1.0, offset=0.0, **changes):
    """What 16 optodes read of a ball with a sphere in it, moved in space, by an instrument of some gain."""
    sources, detectors, pairs, phi = (v.numpy() for v in ball.light(32, (SPHERE,)))
    fields = {
        "sources": turn.apply(sources) + shift, "detectors": turn.apply(detectors) + shift, "pairs": pairs,
        "log_amplitude": np.log(gain * np.abs(phi)), "phase": offset - np.angle(phi),
        "sigma": np.full((len(pairs), 2), 0.005), "frequency": ball.FREQUENCY, "wavelength": 850.0,
    }  # fmt: skip
    return snirf.Recording(**fields | changes)


@pytest.fixture
def file(tmp_path):
    """`file(**changes)` writes a SNIRF file of that recording."""

    def write(*moved, **changes):
        snirf.write(tmp_path / "ball.snirf", recording(*moved, **changes))
        return tmp_path / "ball.snirf"

    return write


def written(capsys, *arguments):
    """The command's summary and, by suffix, the files that it says it wrote."""
    assert command.main(["reconstruct", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    line, files = out.splitlines()
    assert err == "" and files.startswith("written: ")
    paths = files.removeprefix("written: ").split(", ")
    return line, {re.search(r"\.(mua\.nii\.gz|musp\.nii\.gz|h5|png)$", path)[1]: path for path in paths}


def volumes(paths):
    """Datasets and attributes of the HDF5 file."""
    with h5py.File(paths["h5"]) as found:
        return {name: found[name][()] for name in found} | dict(found.attrs)


def refused(capsys, *arguments):
    """The one line in which the command refuses; nothing is written."""
    assert command.main(["reconstruct", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dotlib: ") and err.count("\n") == 1
    return err


def test_dataset_file_gives_volumes_in_its_frame(tmp_path, capsys, recorded, models):
    """HDF5, NIfTI and a figure of the same values; voxel centres of a cube of 64 mm round the origin."""
    line, paths = written(capsys, recorded, "--model", models["seed0"], "--phantom", 3, "--out", tmp_path / "third")
    assert set(paths) == {"h5", "mua.nii.gz", "musp.nii.gz", "png"} and sorted(tmp_path.iterdir()) == sorted(
        tmp_path / f"third.{suffix}" for suffix in paths
    )
    held = volumes(paths)
    assert {"mua", "musp", "affine", "unit", "source", "fitted", "misfit"} == set(held)
    assert (held["unit"], held["source"]) == (b"mm^-1", recorded.name.encode())
    for name in ("mua", "musp"):
        image = nibabel.load(paths[f"{name}.nii.gz"])
        assert np.array_equal(image.get_fdata(dtype=np.float32), held[name])
        assert image.header.get_xyzt_units()[0] == "mm"
        for index in ((0, 0, 0), (15, 0, 7)):
            centre = [64 * (i + 0.5) / 16 - 32 for i in index]
            np.testing.assert_allclose(image.affine @ [*index, 1], [*centre, 1], rtol=1e-6)
    with store.File(recorded) as source:
        tissue = phantoms.labels(source.raw("ellipsoids", 3, 4), 16)[0].numpy() > 0
    assert (held["mua"][tissue] > 0).all() and held["mua"].min() == 0 == held["musp"].min()
    with open(paths["png"], "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    assert line.startswith(f"{recorded}: 16 of 24 pairs (random, as in training); ")
    top = np.array(np.unravel_index(held["mua"].argmax(), held["mua"].shape)) * 4 - 30
    assert f"largest mua {held['mua'].max():.4f} at ({top[0]}, {top[1]}, {top[2]}) mm" in line
    assert f"largest musp {held['musp'].max():.2f}" in line
    assert f"fitted mua {held['fitted'][0]:.4f}, musp {held['fitted'][1]:.2f} mm^-1" in line


def test_command_loads_no_library_that_it_does_not_need(tmp_path, recorded, models):
    """One recording is answered at once: each of these takes a part of a second."""
    script = "import sys; from dotlib.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    arguments = ["reconstruct", recorded, "--model", models["seed0"], "--out", tmp_path / "one"]
    line = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(line, cwd=config.root(), capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"torch", "matplotlib.figure", "nibabel", "dotlib.physics.lift"} <= loaded
    assert not loaded & {"pandas", "sympy", "scipy.stats", "skimage", "submitit", "wandb", "IPython"}


def test_fit_of_a_recording_is_its_background(capsys, file, models):
    """Of the ball without a sphere, by the model that made its readings."""
    phi = ball.light(32)[3].numpy()
    flat = {"log_amplitude": np.log(np.abs(phi)), "phase": -np.angle(phi)}
    _, paths = written(capsys, file(**flat), "--model", models["seed0"], "--every")
    held = volumes(paths)
    np.testing.assert_allclose(held["fitted"], ball.VALUES, rtol=0.02)
    assert held["misfit"] < 1


def test_several_networks_give_mean_and_sd(tmp_path, capsys, recorded, models):
    names = ["seed0", "seed1", "seed2"]
    single = [
        volumes(written(capsys, recorded, "--model", models[name], "--out", tmp_path / name)[1]) for name in names
    ]
    _, paths = written(capsys, recorded, "--model", *(models[name] for name in names), "--out", tmp_path / "all")
    found = volumes(paths)
    for name in ("mua", "musp"):
        each = np.stack([one[name] for one in single])
        np.testing.assert_allclose(found[name], each.mean(0), rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(found[f"{name}_sd"], each.std(0, ddof=1), rtol=1e-4, atol=1e-8)
        assert found[f"{name}_sd"].max() > 0 and f"{name}_sd" not in single[0]


def test_pairs_are_as_in_training_or_every_one(tmp_path, capsys, recorded, models):
    out = "--out", tmp_path / "x"
    lines = [
        written(capsys, recorded, "--model", models[name], *more, *out)[0]
        for name, *more in (["seed0"], ["seed0", "--every"], ["many"])
    ]
    assert ": 16 of 24 pairs (random, as in training);" in lines[0]
    assert ": 24 pairs;" in lines[1]
    assert ": 24 pairs, fewer than the 90 that the network was trained with;" in lines[2]


def test_every_pair_is_used(recorded, file, models):
    """Those of the file, in its order, but the lost; without being asked, as many as in training."""
    c, _ = reconstruct.networks([models["seed0"]])
    with store.File(recorded) as held:
        pairs = held.raw("pairs", 0, 1)[0]
    assert np.array_equal(reconstruct.from_dataset(recorded, 0, c, every=True).readings.pairs, pairs)
    some = reconstruct.from_dataset(recorded, 0, c).readings.pairs
    assert len(some) == 16 == len({*map(tuple, some.tolist())} & {*map(tuple, pairs.tolist())})
    path, number = file(), len(recording().pairs)
    assert len(reconstruct.from_snirf(path, c, every=True).readings.pairs) == number > 16
    assert len(reconstruct.from_snirf(path, c).readings.pairs) == 16


def test_model_is_that_of_the_volumes_whatever_the_readings_were_simulated_on(recorded, monkeypatch):
    """Those of a configuration whose readings are of 64^3 voxels."""
    asked = []

    def scene(surface, readings, grid, cube):
        asked.append(grid)
        raise ValueError("no more is asked")

    monkeypatch.setattr(reconstruct.homogeneous.Scene, "of", scene)
    c = configured(data=DATA.model_copy(update={"measurements": DATA.measurements.model_copy(update={"grid": 64})}))
    one = reconstruct.from_dataset(recorded, 0, c)
    with pytest.raises(reconstruct.InputError, match="no more is asked"):
        reconstruct.reconstruct(one, c, [])
    assert asked == [32]


def test_closed_form_lift_serves(capsys, file, models, recorded, tmp_path):
    for source, out in ((file(), "a"), (recorded, "b")):
        found = volumes(written(capsys, source, "--model", models["closed"], "--out", tmp_path / out)[1])
        assert found["mua"].max() > 0 and np.isfinite(found["mua"]).all()
    plain = volumes(written(capsys, source, "--model", models["seed0"], "--out", tmp_path / "c")[1])
    assert not np.allclose(plain["mua"], found["mua"], rtol=1e-2)


def test_moved_recording_gives_the_moved_volume(capsys, file, models):
    """Axes exchanged and shifted: the same values to rounding, and each voxel's place moves with the probe."""
    turn, shift = CYCLED
    options = "--model", models["seed0"], "--every"
    here, there = (volumes(written(capsys, file(*moved), *options)[1]) for moved in ((), CYCLED))
    for name in ("mua", "musp"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-4, atol=1e-8)
    for index in ((0, 0, 0), (3, 9, 14), (15, 0, 2)):
        place = (here["affine"] @ [*index, 1])[:3]
        np.testing.assert_allclose((there["affine"] @ [*index, 1])[:3], turn.apply(place) + shift, atol=1e-4)


class Follow(nn.Module):
    """In the place of a network: the lift's own estimate."""

    def forward(self, x):
        return x[:, 6:8].amax((2, 3, 4), keepdim=True) * x[:, :2].exp() * x[:, 8:]


@pytest.mark.parametrize("moved", [(), CYCLED, TURNED], ids=["as it is", "axes exchanged", "turned"])
def test_largest_absorption_lies_where_the_sphere_is(file, moved):
    """In the file's millimetres, within two voxels, by the affine and by the summary."""
    turn, shift = moved or (STILL, np.zeros(3))
    c, path = configured(lift=config.Lift(count=60)), file(*moved)
    source = reconstruct.from_snirf(path, c)
    found = reconstruct.reconstruct(source, c, [Follow()])
    top = np.unravel_index(found.mean[0].argmax(), found.mean[0].shape)
    place, true = (source.affine(16) @ [*top, 1])[:3], turn.apply(SPHERE[0]) + shift
    assert np.linalg.norm(place - true) < 8
    where = re.search(r"at \((.*)\) mm", reconstruct.summary(found, source, path))[1]
    np.testing.assert_allclose([float(v) for v in where.split(", ")], place, atol=0.51)


def test_gain_and_phase_offset_of_the_instrument_change_nothing(capsys, file, models):
    found = [
        volumes(written(capsys, file(gain=gain, offset=offset), "--model", models["seed0"])[1])
        for gain, offset in ((1.0, 0.0), (37.0, 0.9))
    ]
    for name in ("mua", "musp", "fitted"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-4, atol=1e-8)


def test_summary_says_what_was_done(capsys, file, models):
    """Wavelength, modulation, the sphere, and what is taken for granted."""
    nothing = np.full((len(recording().pairs), 2), np.nan)
    line, _ = written(capsys, file(sigma=nothing), "--model", models["seed0"])
    for part in (
        f"16 of {len(nothing)} pairs",
        "850 nm, 140 MHz",
        "noise taken as nominal",
        "sphere of 26.0 mm fitted",
    ):
        assert part in line
    amplitude = recording().log_amplitude.copy()
    amplitude[3] = -60.0
    line, _ = written(capsys, file(log_amplitude=amplitude), "--model", models["seed0"])
    assert "left out: 1 dark" in line and f"16 of {len(nothing) - 1} pairs" in line and "nominal" not in line
    line, _ = written(capsys, file(), "--model", models["seed0"], "--radius", "25.5")
    assert "sphere of 25.5 mm given" in line


def test_recording_of_a_dataset_has_its_modulation(tmp_path, recorded, models):
    """Frequency and refractive index are those of the file's configuration, not those of the network's."""
    c, _ = reconstruct.networks([models["seed0"]])
    other = RECORDED.model_copy(update={"measurements": config.Measurements(frequency=2e8, n=1.4)})
    path = tmp_path / "other.h5"
    path.write_bytes(recorded.read_bytes())
    with h5py.File(path, "r+") as held:
        held.attrs["fields"] = np.bytes_(store.identity(other, every=True))
    found = [reconstruct.from_dataset(where, 0, c).readings for where in (recorded, path)]
    assert [(one.frequency, one.n) for one in found] == [(140e6, 1.33), (2e8, 1.4)]


def test_both_formats_give_the_same_volumes(tmp_path, capsys, file, models):
    """A dataset file without surfaces is taken for a sphere, as a SNIRF file is."""
    one = recording()
    columns = {name: getattr(one, name)[None].astype(store.COLUMNS[name].dtype) for name in store.MEASURED}
    store.write(tmp_path / "ball.h5", columns | {"checks": np.zeros(1, "i4")}, {})
    line, paths = written(capsys, tmp_path / "ball.h5", "--model", models["seed0"], "--out", tmp_path / "own")
    assert "sphere of 26.0 mm fitted" in line
    found, expected = (volumes(p) for p in (paths, written(capsys, file(), "--model", models["seed0"])[1]))
    for name in ("mua", "musp", "affine"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["none"], ("none.pt", "no such checkpoint")),
        (["autoencoder"], ("autoencoder.pt", "task 'autoencode'", "'reconstruct' is accepted")),
        (["silent"], ("silent.pt", "earlier code", "trained anew")),
        (["seed0", "wider"], ("wider.pt: another configuration than", "seed0.pt", "seeds of one")),
        (["seed0", "closed"], ("closed.pt: another configuration than",)),
    ],
)
def test_networks_that_do_not_serve_are_one_line(tmp_path, capsys, recorded, models, names, parts):
    paths = [models.get(name, tmp_path / "none.pt") for name in names]
    line = refused(capsys, recorded, "--model", *paths, "--out", tmp_path / "x")
    assert all(part in line for part in parts) and not [*tmp_path.iterdir()], line


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--grid 32", ("--grid 32", "answers on 16^3")),
        ("--phantom 36", ("phantom 36", "0 to 35 are accepted")),
        ("--phantom -1", ("phantom -1", "0 to 35 are accepted")),
        *(
            (f"--{name} {value}", (f"--{name}", "SNIRF file (.snirf)"))
            for name, value in (
                ("wavelength", 850), ("frequency", 1.4e8), ("saturation", 1), ("unit", "cm"),
            )
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_a_dataset_are_one_line(tmp_path, capsys, recorded, models, options, parts):
    line = refused(capsys, recorded, "--model", models["seed0"], "--out", tmp_path / "x", *options.split())
    assert all(part in line for part in parts) and not [*tmp_path.iterdir()], line


@pytest.mark.parametrize("suffix", ["h5", "snirf"])
def test_files_that_are_none_are_one_line(tmp_path, capsys, models, suffix):
    path = tmp_path / f"none.{suffix}"
    assert f"{path}: no such file" in refused(capsys, path, "--model", models["seed0"])
    path.write_text("readings\n", encoding="utf-8")
    assert f"{path}: truncated, damaged, or no HDF5 file" in refused(capsys, path, "--model", models["seed0"])


def test_dataset_without_readings_is_one_line(tmp_path, capsys, models):
    path = tmp_path / "tables.h5"
    store.write(path, {"ellipsoids": phantoms.sample("default", 2, 0), "checks": np.zeros(2, "i4")}, {})
    assert "dataset 'sources' is missing" in refused(capsys, path, "--model", models["seed0"])


def test_lost_recordings_are_one_line(tmp_path, capsys, recorded, models, file):
    """Every pair dark in a SNIRF file, every pair lost in a dataset file."""
    dark = np.full(len(recording().pairs), -np.inf)
    assert "no usable pair at 850 nm" in refused(capsys, file(log_amplitude=dark), "--model", models["seed0"])
    with store.File(recorded) as source:
        columns = {name: source.raw(name, 0, 2) for name in (*source.names,)}
    columns["log_amplitude"][1] = columns["phase"][1] = np.nan
    store.write(tmp_path / "lost.h5", columns, {})
    line = refused(capsys, tmp_path / "lost.h5", "--model", models["seed0"], "--phantom", 1)
    assert "phantom 1: every pair is lost" in line


def test_optodes_on_no_sphere_are_one_line(capsys, file, models):
    off = recording().sources.copy()
    off[2] *= 0.3
    line = refused(capsys, file(sources=off), "--model", models["seed0"])
    assert "source 2 lies" in line and "5 mm at most is accepted" in line


@pytest.mark.parametrize("name", ["seed0", "closed"])
def test_readings_of_no_tissue_are_one_line(capsys, file, models, name):
    """An amplitude that grows with the distance."""
    rising = {"log_amplitude": -recording().log_amplitude, "phase": 3 * recording().phase}
    line = refused(capsys, file(**rising), "--model", models[name])
    assert "ball.snirf" in line or "the readings" in line


def test_choices_of_a_snirf_file_are_asked_for_and_taken(tmp_path, capsys, models):
    """Several wavelengths and frequencies; other units; no frequency data."""
    path, wanted, use = tmp_path / "several.snirf", recording(), ("--model", models["seed0"])
    snirf.write(path, single(wanted))
    expected = volumes(written(capsys, path, *use, "--every")[1])
    by_hand(path, wanted, length="cm", degrees=True)
    with h5py.File(path, "r+") as held:
        del held["nirs/metaDataTags/LengthUnit"]
    assert "LengthUnit is missing; accepted: mm, cm, m" in refused(capsys, path, *use)
    assert "LengthUnit is 'inch'" in refused(capsys, path, *use, "--unit", "inch")
    use = (*use, "--unit", "cm", "--every")
    assert "which wavelength? accepted: 760, 850 nm" in refused(capsys, path, *use)
    assert "no wavelength 800" in refused(capsys, path, *use, "--wavelength", 800)
    assert "which modulation frequency?" in refused(capsys, path, *use, "--wavelength", 850)
    use = (*use, "--wavelength", 850, "--frequency", 140e6)
    line, paths = written(capsys, path, *use)
    np.testing.assert_allclose(volumes(paths)["mua"], expected["mua"], rtol=1e-3, atol=1e-7)
    assert f": {len(wanted.pairs)} pairs;" in line and "left out" not in line
    limit = np.exp(wanted.log_amplitude).max() * 0.999
    assert "left out: 1 saturated" in written(capsys, path, *use, "--saturation", limit)[0]
    snirf.write(path, probe())
    with h5py.File(path, "r+") as held:
        for k in range(40):
            held[f"nirs/data1/measurementList{k + 1}/dataType"][()] = 1
    assert "no frequency-domain data: data types 1 (continuous wave)" in refused(capsys, path, *use)


@pytest.mark.parametrize(
    ("about", "judged", "words"),
    [
        ({}, {}, "its weights are not those of its configuration"),
        ({}, None, "its weights are not those of its configuration"),
        ({"width": 10**5}, "own", "its weights are not those of its configuration"),
        ({"width": 10**12}, "own", "no such network"),
        ("[" * 10**5, "own", "is no JSON"),
        ("[]", "own", "is no JSON object"),
    ],
)
def test_checkpoint_of_another_network_than_it_says_is_one_line(tmp_path, capsys, recorded, about, judged, words):
    """And takes no memory for it: a width of 10^5 asks for terabytes."""
    c, own = configured(), inference.network(configured()).state_dict()
    if isinstance(about, dict):
        fields = json.loads(c.model_dump_json())
        about = json.dumps(fields | {"model": fields["model"] | about})
    path = tmp_path / "x.pt"
    checkpoint.save(path, {"judged": own if judged == "own" else judged}, c.digest(), about)
    assert command.main(["reconstruct", str(recorded), "--model", str(path)]) == command.EXIT_BAD_INPUT
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(path) in err and words in err


@pytest.mark.parametrize(
    "held", ["[1", "7", '{"measurements": [1]}', '{"measurements": {"frequency": "x"}}', "[" * 10**5]
)
def test_configuration_of_a_dataset_that_is_none_is_one_line(tmp_path, recorded, models, held):
    c, _ = reconstruct.networks([models["seed0"]])
    path = tmp_path / "other.h5"
    path.write_bytes(recorded.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["fields"] = np.bytes_(held)
    if held == '{"measurements": [1]}':  # says nothing of the light
        assert reconstruct.from_dataset(path, 0, c).readings.frequency == config.Measurements().frequency
        return
    with pytest.raises(ValueError, match=r"its configuration") as error:
        reconstruct.from_dataset(path, 0, c)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


class Stored:
    """A run of a study that is finished, or not."""

    def __init__(self, path, done):
        self.path, self.done = path, lambda: done
        self.folder = lambda: path.parent


@pytest.mark.parametrize(
    ("finished", "chosen"),
    [
        ({("quick", "reconstruct-short")}, ("quick", "reconstruct-short")),
        ({("quick", "reconstruct-short"), ("quick", "reconstruct-longer")}, ("quick", "reconstruct-longer")),
        ({("quick", "reconstruct-longer"), ("full", "reconstruct-short")}, ("full", "reconstruct-short")),
    ],
)
def test_trained_networks_are_those_of_the_largest_profile_and_longest_training(
    tmp_path, monkeypatch, finished, chosen
):
    def members(study, profile, seeds, folder):
        arms = trained.study.known.STUDIES[study].arms
        return {
            (arm, seed): Stored(folder / profile / arm / str(seed) / "last.pt", (profile, arm) in finished and seed < 2)
            for arm in arms
            for seed in range(3)
        }

    monkeypatch.setattr(trained.study, "members", members)
    found = trained.checkpoints(tmp_path)
    assert found == [tmp_path.joinpath(*chosen, str(seed), "last.pt") for seed in range(2)]
    finished.clear()
    with pytest.raises(config.ConfigError, match=r": no network that reconstructs is finished; `dotlib study 4.6"):
        trained.checkpoints(tmp_path)


def test_command_takes_the_trained_networks_where_none_is_named(tmp_path, capsys, recorded, models, monkeypatch):
    monkeypatch.setattr(trained, "checkpoints", lambda store: [models["seed0"], models["seed1"]])
    _, by_default = written(capsys, recorded, "--out", tmp_path / "a")
    _, named = written(capsys, recorded, "--model", models["seed0"], models["seed1"], "--out", tmp_path / "b")
    assert np.array_equal(volumes(by_default)["mua_sd"], volumes(named)["mua_sd"])


def test_dataset_written_as_snirf_holds_its_readings(tmp_path, capsys, recorded):
    to = tmp_path / "third.snirf"
    assert command.main(["snirf", str(recorded), "--phantom", "3", "--wavelength", "690", "--out", str(to)]) == 0
    assert capsys.readouterr().out == f"{to}: 24 pairs at 140 MHz and 690 nm\n"
    found = snirf.read(to)
    with store.File(recorded) as file:
        row = {name: file.raw(name, 3, 4)[0] for name in store.MEASURED}
    order = np.lexsort(row["pairs"].T[::-1])
    assert (found.frequency, found.wavelength) == (140e6, 690) and not found.flipped
    np.testing.assert_array_equal(found.pairs, row["pairs"][order])
    for name in ("log_amplitude", "phase", "sigma"):
        np.testing.assert_allclose(getattr(found, name), row[name][order], rtol=1e-5, atol=1e-6)
    for name in ("sources", "detectors"):
        np.testing.assert_allclose(getattr(found, name), row[name], rtol=1e-6)


def test_snirf_without_readings_is_refused_in_a_line(tmp_path, capsys, recorded):
    assert command.main(["snirf", str(recorded), "--phantom", "99", "--out", str(tmp_path / "a.snirf")]) == 2
    assert capsys.readouterr().err == f"dotlib: {recorded}: phantom 99; 0 to 35 are accepted\n"
    assert not (tmp_path / "a.snirf").exists()
