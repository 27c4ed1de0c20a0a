"""Lifts of a dataset's readings against the physics called by hand, and files of them that can be made again."""

import dataclasses
import itertools
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from tiny import Inline

from dotlib.config import CHANNELS, LIFTED, TOKEN, Data, Lift, Measurements, Noise
from dotlib.data import dataset, lifts, placement, samples, sampling, simulate, split, store
from dotlib.data.lifts import Coverage, Lifts
from dotlib.data.recording import SimulationError
from dotlib.data.store import StoreError
from dotlib.data.surface import Surface
from dotlib.physics import closed_form, gauss_newton, homogeneous, jacobian, lift
from dotlib.physics.homogeneous import Scene
from dotlib.physics.rytov import Readings

DATA = Data(phantoms=8, grid=32, seed=3, measurements=Measurements(sources=10, detectors=16, pairs=100))
LIFT = Lift(count=60, draws=2)
TRAIN, TEST = 0, 5  # a phantom of either part
WORTH = 0.4  # whitened sensitivity of a covered voxel


@pytest.fixture(scope="module")
def inline(one_thread):
    """Workers are this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "ProcessPoolExecutor", Inline)
        patch.setattr(simulate, "_pace", lambda shard: 0.0)  # nothing is made twice for the time it takes
        yield


@pytest.fixture(scope="module")
def found(inline, tmp_path_factory):
    """The dataset."""
    return dataset.load(DATA, tmp_path_factory.mktemp("lifts"))


@pytest.fixture(scope="module")
def columns(found):
    with store.File(found.path) as file:
        return {name: file.raw(name) for name in file.names}


@pytest.fixture(scope="module")
def prepared(found):
    """The files of lifts and coverage."""
    return lifts.prepare(DATA, LIFT, found.path.parent)


@pytest.fixture(scope="module")
def lifted(prepared):
    with store.File(prepared[0]) as file:
        return file.raw("lift")


@pytest.fixture
def spoilt(found, tmp_path):
    """`spoilt(change)`: the path of a copy of the file of readings, changed."""

    def make(change):
        path = shutil.copy(found.path, tmp_path / "spoilt.h5")
        with h5py.File(path, "r+") as file:
            change(file)
            del file["digests"]  # which would tell
        return path

    return make


def work(found, path=None, labels=None, **fields):
    """Lifts of the dataset, of its own split and file unless others are named, by LIFT with other fields."""
    chosen = Lift(**LIFT.model_dump() | fields)
    return Lifts(DATA, chosen, path or found.path, found.labels if labels is None else labels)


def drawn(held, columns, index, draw):
    return held._draw(columns, index, index, draw, "cpu")


def by_hand(columns, index, count=60):
    """A phantom and a random subset of its readings as recorded, all from the columns: scene and homogeneous fit."""
    c = {name: values[index] for name, values in columns.items()}
    probe = [c[name][None] for name in ("sources", "detectors", "pairs", "sigma")]
    rows = sampling.subsets("random", *probe, np.zeros((1, 100), bool), count, (0, 0), [index])[0].astype(int)
    values = [c[name][rows] for name in ("log_amplitude", "phase", "sigma")]
    optodes, values = (
        [torch.as_tensor(v.astype(np.float64)) for v in held] for held in ((c["sources"], c["detectors"]), values)
    )
    pairs = torch.as_tensor(c["pairs"][rows].astype(np.int64))
    place = Scene.of(Surface(c["ellipsoids"][0]), Readings(*optodes, pairs, *values, 140e6, 1.33), 32, 64.0)
    return place, homogeneous.fit([place])[0]


def channels_by_hand(kind, place, fit, steps=1):
    prior = lift.Prior()
    problem = lift.linearise(place, fit)
    if kind == "closed-form":
        problem = closed_form.linearise(place.surface, place.readings, 64.0)
    x = lift.solve(problem, prior)
    if kind == "gauss-newton":
        x[0] = gauss_newton.reconstruct(place, fit, prior=prior, most=steps).x
    if kind == "back-projection":
        x = torch.stack([lift.back_projection(problem), torch.zeros_like(x[0])])
    out = lift.channels(problem, x)
    if kind == "none":
        out[: CHANNELS.index("tissue")] = 0
    return out.numpy()


def assert_near(found, exact, share):
    """Each channel within `share` of its own largest value."""
    for name, a, b in zip(CHANNELS, found.astype("f8"), exact.astype("f8"), strict=True):
        assert np.abs(a - b).max() <= share * np.abs(b).max(), name


@pytest.mark.parametrize("index", [TRAIN, TEST])
def test_draw_0_is_lifted_from_the_recorded_readings(columns, lifted, index):
    exact = channels_by_hand("linear", *by_hand(columns, index))
    assert_near(lifted[index, 0], exact, 2e-3)
    assert all(channel.any() for channel in exact)


KINDS = [("gauss-newton", 1), ("gauss-newton", 2), ("closed-form", 1), ("back-projection", 1), ("none", 1)]


@pytest.mark.parametrize(("kind", "steps"), KINDS)
def test_kind_is_that_of_the_physics(found, columns, lifted, kind, steps):
    other = work(found, kind=kind, steps=steps).make(TEST, 1, "cpu")["lift"][0, 0]
    assert_near(other, channels_by_hand(kind, *by_hand(columns, TEST), steps), 5e-3)
    changed = [not np.array_equal(a, b) for a, b in zip(other, lifted[TEST, 0], strict=True)]
    expected = {
        "gauss-newton": [0, 1], "closed-form": [0, 1, 2, 3, 4, 6, 7], "back-projection": [0, 1, 2, 3],
        "none": [0, 1, 2, 3, 4],
    }  # fmt: skip
    assert np.isfinite(other).all() and set(expected[kind]) <= set(np.flatnonzero(changed))


def test_control_has_nothing_of_the_readings_but_the_fit(found, lifted):
    """Tissue, and two constants inside it."""
    none = work(found, kind="none").make(TEST, 1, "cpu")["lift"][0, 0]
    np.testing.assert_array_equal(none[5:], lifted[TEST, 0, 5:])
    tissue = none[5] > 0
    assert not none[:5].any() and not none[:, ~tissue].any()
    assert [len(np.unique(channel[tissue])) for channel in none[5:]] == [1, 1, 1]


def tokens_by_hand(readings, phi, slopes, at, values):
    """By numpy: what is left of ln(phi_measured / phi0), over noise and model error, less its weighted mean."""
    sd, (s, d) = np.hypot(readings.sigma.numpy(), 0.03), readings.pairs.numpy().T
    ratio = np.exp(readings.log_amplitude.numpy() - 1j * readings.phase.numpy()) / phi.numpy()
    ratio *= np.conj((ratio / abs(ratio)).sum())
    left = np.concatenate([np.log(abs(ratio)), np.angle(ratio)]) - slopes.numpy() @ np.log((values / at).numpy())
    data = [part - np.average(part, weights=w**-2) for part, w in zip(np.split(left, 2), sd.T, strict=True)]
    places = [readings.sources.numpy()[s], readings.detectors.numpy()[d]]
    rows = [*(np.array(data) / sd.T), *np.log(sd.T), *places[0].T, *places[1].T]
    rows += [np.sqrt(((places[0] - places[1]) ** 2).sum(1)), *np.tile(values.numpy()[:, None], len(s))]
    return np.stack(rows)


@pytest.mark.parametrize("index", [TRAIN, TEST])
def test_tokens_are_whitened_rytov_data_and_where_they_were_read(found, columns, index):
    held = work(found, kind="tokens")
    made = held.make(index, 1, "cpu")["tokens"][0]
    assert made.shape == (2, len(TOKEN), 60, 1, 1) and made.dtype == np.float32
    place, fit = by_hand(columns, index)
    exact = tokens_by_hand(place.readings, fit.phi, fit.slopes, fit.at, fit.values)
    for name, a, b in zip(TOKEN, made[0, :, :, 0, 0], exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max(), err_msg=name)
    assert np.square(exact[:2]).mean() > 0.1 and made[1].any() == (index == TRAIN)


def test_tokens_of_a_later_draw_are_of_its_own_readings(found, columns):
    """Its optodes bit for bit; its medium within a hundredth of its own whole fit, its data as by that medium."""
    held = work(found, kind="tokens")
    made, one = held.make(TRAIN, 1, "cpu")["tokens"][0, 1, :, :, 0, 0], drawn(held, columns, TRAIN, 1)
    np.testing.assert_array_equal(made[4:7].T, one.sources[one.pairs[:, 0]].float())
    np.testing.assert_array_equal(made[7:10].T, one.detectors[one.pairs[:, 1]].float())
    fit = homogeneous.fit([dataclasses.replace(by_hand(columns, TRAIN)[0], readings=one)])[0]
    exact = tokens_by_hand(one, fit.phi, fit.slopes, fit.at, fit.values)
    np.testing.assert_allclose(made[-2:], exact[-2:], rtol=0.01)
    assert np.corrcoef(made[:2].ravel(), exact[:2].ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("gain", "factor", "alike"), [("global", 1.7, True), ("optode", 1.7, True), ("known", 0.1, False)]
)
def test_factor_on_all_readings_changes_no_token(found, spoilt, gain, factor, alike):
    """Where the gain is unknown: an amplitude of 5.5 times, a turn by half as many radians as its logarithm."""

    def amplify(file):
        file["log_amplitude"][3] += factor
        file["phase"][3] += factor / 2

    plain, other = (
        work(found, path, kind="tokens", gain=gain, draws=1).make(3, 1, "cpu")["tokens"]
        for path in (found.path, spoilt(amplify))
    )
    assert np.allclose(plain, other, rtol=1e-3, atol=1e-3) == alike


def test_lost_pairs_are_no_tokens(found, spoilt):
    """Zeros behind those that are there: no fitted medium either."""

    def lose(file):
        for name in store.LOST:
            values = file[name][2]
            values[10:70] = np.nan
            file[name][2] = values

    made = work(found, spoilt(lose), kind="tokens").make(2, 1, "cpu")["tokens"][0, 0, :, :, 0, 0]
    assert (made[-2:, :40] > 0).all() and not made[:, 40:].any() and np.isfinite(made).all()


def test_further_draws_are_of_training_phantoms_alone(found, lifted):
    assert lifted.shape == (8, 2, len(CHANNELS), LIFTED, LIFTED, LIFTED) and lifted.dtype == np.float16
    there = lifted.any((2, 3, 4, 5))
    np.testing.assert_array_equal(there, np.stack([found.labels >= 0, found.labels == 0], 1))
    assert 0 < there[:, 1].sum() < 8
    train = lifted[found.labels == 0].astype("f4")
    apart = np.linalg.norm((train[:, 0] - train[:, 1])[:, 0].reshape(len(train), -1), axis=1)
    assert (apart > 0.1 * np.linalg.norm(train[:, 0, 0].reshape(len(train), -1), axis=1)).all()


def test_excluded_phantom_is_zeros(found, lifted):
    """And leaves its neighbours what they are."""
    labels = found.labels.copy()
    labels[1] = -1
    made = work(found, labels=labels).make(0, 3, "cpu")
    assert not made["lift"][1].any() and not made["checks"].any()
    np.testing.assert_array_equal(made["lift"][[0, 2]], lifted[[0, 2]])


def test_bytes_do_not_depend_on_the_block(found, lifted):
    for first, count in ((1, 2), (3, 1)):
        assert work(found).make(first, count, "cpu")["lift"].tobytes() == lifted[first : first + count].tobytes()


def test_deleted_file_is_made_again_with_the_same_bytes(found, tmp_path):
    labels = np.full(8, -1, np.int8)
    labels[3] = 0
    path, held = tmp_path / "lift.h5", work(found, labels=labels)
    simulate.fill(held, path)
    before = path.read_bytes()
    path.unlink()
    simulate.fill(held, path)
    assert path.read_bytes() == before
    with store.File(path) as file:
        assert file.raw("lift").any((1, 2, 3, 4, 5)).nonzero()[0].tolist() == [3]


def test_files_are_found_again(found, prepared, monkeypatch):
    """Whatever share is trained with; a file of another configuration under this name is refused."""
    for kind in (Lifts, Coverage):
        monkeypatch.setattr(kind, "make", lambda *arguments: pytest.fail("made again"))
    folder = found.path.parent
    assert lifts.prepare(DATA, LIFT, folder) == prepared
    assert lifts.prepare(DATA.model_copy(update={"train": 3}), LIFT, folder) == prepared
    with pytest.raises(StoreError, match=r"holds .*, not .*") as error:
        simulate.fill(work(found, count=61), prepared[0])
    assert "\n" not in str(error.value)


def test_names_of_the_files_follow_what_they_hold(found, prepared, tmp_path, monkeypatch):
    """Another lift has another file, and the same coverage."""
    asked = []
    monkeypatch.setattr(simulate, "fill", lambda held, path: asked.append(path))
    lifts.prepare(DATA, Lift(count=61, draws=2), found.path.parent)
    assert asked[0] != prepared[0] and asked[1] == prepared[1]
    assert [path.name.split(".")[1].split("-")[0] for path in prepared] == ["lift", "covered"]
    assert all(path.name.startswith(found.path.stem) for path in asked)


class Numbers:
    """Estimates that are their phantom's number."""

    verb = "count"

    def __init__(self, name="numbers"):
        self.name, self.asked = name, []

    def __len__(self):
        return 35

    def identity(self, every=False):
        return self.name + " in full" * every

    def make(self, first, count, device):
        self.asked.append((first, count))
        number = np.arange(first, first + count, dtype="f4").reshape(-1, 1, 1, 1, 1)
        return {"estimate": np.broadcast_to(number, (count, 2, 3, 3, 3)), "checks": np.zeros(count, "i4")}


def test_any_work_fills_a_file_in_its_order(inline, tmp_path, capsys):
    path, numbers = tmp_path / "numbers.h5", Numbers()
    simulate.fill(numbers, path)
    asked = [*numbers.asked]
    simulate.fill(numbers, path)
    assert numbers.asked == asked and asked == [(0, 16), (16, 16), (32, 3)]
    assert "35 of 35 phantoms to count" in capsys.readouterr().err
    with store.File(path) as file:
        assert (file.attribute("configuration"), file.attribute("fields")) == ("numbers", "numbers in full")
        assert file.names == ["estimate", "checks"] and len(file.digests()) == 3
        np.testing.assert_array_equal(file.read("estimate")[:, 1, 2, 0, 1], np.arange(35))
    with pytest.raises(StoreError, match="holds 'numbers', not 'others'"):
        simulate.fill(Numbers("others"), path)


def test_later_draw_has_pairs_and_noise_of_its_own(found, columns):
    """Draw 0 reads what was recorded."""
    held, seen = work(found, draws=4), []
    for index in (0, 1):
        one = [drawn(held, columns, index, draw) for draw in range(4)]
        again = [drawn(held, columns, index, draw) for draw in range(4)]
        assert all(torch.equal(a.log_amplitude, b.log_amplitude) for a, b in zip(one, again, strict=True))
        seen += [dict(zip(map(tuple, r.pairs.tolist()), r.log_amplitude.tolist(), strict=True)) for r in one]
        recorded = dict(zip(map(tuple, columns["pairs"][index].tolist()), columns["log_amplitude"][index], strict=True))
        assert all(recorded[pair] == value for pair, value in seen[-4].items())
    assert len({tuple(one) for one in seen}) == 8
    for some in (seen[:4], seen[4:]):
        for i, a in enumerate(some):
            for b in some[i + 1 :]:
                common = a.keys() & b.keys()
                assert len(common) > 20 and not any(a[pair] == b[pair] for pair in common)


def test_noise_is_of_one_phantom_one_draw_and_one_seed(found, columns):
    """What is left of ln A over its sd, by pair, is uncorrelated between any two of them."""
    left = []
    for index, draw, seed in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3)):
        one = drawn(work(found, draws=3, seed=seed, count=100), columns, index, draw)
        assert len(one.pairs) == 100
        clean = abs(columns["phi_clean"][index].astype("c16"))
        left.append((one.log_amplitude.numpy() - np.log(clean)) / one.sigma[:, 0].numpy())
    assert np.abs(np.corrcoef(left) - np.eye(4)).max() < 0.4


@pytest.mark.parametrize("model", [None, Noise(relative=0.002, floor=1e-3, jitter=1.0)])
def test_noise_of_later_draws_has_the_sd_that_it_claims(found, columns, model):
    """What is left of ln A and the phase over their sd has an rms of 1; the sd is that of the law, by numpy."""
    held, left = work(found, draws=41, noise=model), []
    law, clean = model or Noise(), columns["phi_clean"][TRAIN].astype("c16")
    reference = np.quantile(abs(clean), 0.995)
    relative = law.relative * np.sqrt(reference / abs(clean) + law.floor * (reference / abs(clean)) ** 2)
    sd = np.stack([relative, np.hypot(relative, np.deg2rad(law.jitter))], 1)
    place = {tuple(pair): i for i, pair in enumerate(columns["pairs"][TRAIN].tolist())}
    for draw in range(1, 41):
        one = drawn(held, columns, TRAIN, draw)
        rows = [place[tuple(pair)] for pair in one.pairs.tolist()]
        np.testing.assert_allclose(one.sigma, sd[rows], rtol=1e-6)
        turn = np.angle(np.exp(-1j * one.phase.numpy()) / clean[rows])
        left.append(np.stack([one.log_amplitude.numpy() - np.log(abs(clean[rows])), -turn], 1) / one.sigma.numpy())
    left = np.concatenate(left)
    np.testing.assert_allclose(np.sqrt((left**2).mean(0)), 1, atol=0.05)
    assert np.abs(left.mean(0)).max() < 0.08 and abs(np.corrcoef(left.T)[0, 1]) < 0.08


@pytest.mark.parametrize("pattern", ["snr", "linear", "stratified"])
@pytest.mark.parametrize("count", [24, 60])
def test_pattern_count_gain_and_seed_are_those_of_the_lift(found, columns, pattern, count):
    c, held = columns, work(found, pattern=pattern, count=count, gain="optode", seed=7)
    probe = [c[name][[3]] for name in ("sources", "detectors", "pairs", "sigma")]
    for draw in (0, 1):
        one = drawn(held, c, 3, draw)
        probe[3] = noise_of(c["phi_clean"][[3]]) if draw else c["sigma"][[3]]
        rows = sampling.subsets(pattern, *probe, np.isnan(c["phase"][[3]]), count, (7, draw), [3])[0]
        assert one.pairs.tolist() == c["pairs"][3][rows].tolist() and len(rows) == count
        assert (one.gain, one.frequency, one.n) == ("optode", 140e6, 1.33)


def noise_of(clean):
    """sd of ln A alone, which is all that patterns look at, twice."""
    bright = abs(clean) / np.quantile(abs(clean), 0.995, axis=1, keepdims=True)
    return np.repeat((0.005 * np.sqrt(bright + 1e-4) / bright)[..., None], 2, -1)


def test_lost_pairs_are_left_out(found, columns):
    """Fewer than are asked for, where fewer are there."""
    lost = {name: columns[name].copy() for name in store.LOST}
    for values in lost.values():
        values[2, 10:70] = np.nan
    one = drawn(work(found), columns | lost, 2, 0)
    kept = columns["pairs"][2][np.r_[:10, 70:100]]
    assert one.pairs.tolist() == kept.tolist() and one.phase.isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "closed-form"])
def test_phantom_that_cannot_be_fitted_is_named(found, spoilt, kind):
    """Amplitudes that grow with the way: no tissue."""

    def grow(file):
        file["log_amplitude"][3] *= -1

    for first, count in ((3, 1), (2, 2)):
        with pytest.raises(SimulationError, match=r"^lift: .*phantom 3\b") as error:
            work(found, spoilt(grow), kind=kind).make(first, count, "cpu")
        assert "\n" not in str(error.value) and "object" not in str(error.value)


def mask(columns, index, data=DATA):
    return lifts.covered({name: values[index] for name, values in columns.items()}, data, index)


@pytest.fixture(scope="module")
def masks(prepared):
    with store.File(prepared[1]) as file:
        return file.raw("covered")


def test_coverage_is_that_of_test_phantoms(found, columns, masks):
    assert masks.shape == (8, LIFTED, LIFTED, LIFTED)
    assert masks.any((1, 2, 3)).tolist() == (found.labels == split.NAMES.index("test")).tolist()
    np.testing.assert_array_equal(masks[TEST], mask(columns, TEST))


def test_coverage_is_a_function_of_the_probe_alone(columns, masks):
    """Neither readings, their noise, tissue values nor inclusions change it; a smaller probe does."""
    rng, other = np.random.default_rng(0), {name: values.copy() for name, values in columns.items()}
    for name in ("log_amplitude", "phase", "sigma"):
        other[name] *= rng.uniform(0.5, 2, other[name].shape).astype("f4")
    other["phase"][TEST, ::2] = np.nan
    other["phi_clean"] *= 3j
    other["ellipsoids"][:, 0, 11:] *= 1.5
    other["ellipsoids"][:, 1:] = np.nan
    np.testing.assert_array_equal(mask(other, TEST), masks[TEST])
    noisy = DATA.measurements.model_copy(update={"noise": Noise(relative=0.1)})
    np.testing.assert_array_equal(mask(columns, TEST, DATA.model_copy(update={"measurements": noisy})), masks[TEST])
    other["pairs"] = np.repeat(other["pairs"][:, :5], 20, 1)
    assert mask(other, TEST).sum() < masks[TEST].sum()


def test_shallow_voxels_are_covered_first(found, columns, masks):
    """The share falls with the distance from the nearest optode, in the tissue, and is none beyond 35 mm."""
    places = (np.indices((LIFTED,) * 3).reshape(3, -1).T + 0.5) * 64 / LIFTED - 32
    for index in np.flatnonzero(found.labels == split.NAMES.index("test")):
        inside = Surface(columns["ellipsoids"][index, 0])(torch.as_tensor(places))[0].numpy()
        optodes = np.concatenate([columns["sources"][index], columns["detectors"][index]])
        near = np.linalg.norm(places[:, None] - optodes, axis=-1).min(1)
        seen = masks[index].ravel()
        bounds = (0, 8, 12, 16, 20, 35, 99)
        shares = [seen[(inside < -2) & (near >= a) & (near < b)].mean() for a, b in itertools.pairwise(bounds)]
        assert shares[0] > 0.9 and shares[-1] == 0 and shares == sorted(shares, reverse=True)
        assert not seen[inside > 4].any()


@pytest.mark.parametrize("most", [256, 30])
def test_coverage_is_that_of_the_dense_jacobian(columns, masks, monkeypatch, most):
    """In double precision: the norm of the whitened rows by ln mua of at most `most` pairs, gains known."""
    monkeypatch.setattr(lifts, "SEEN_FROM", most)
    c = {name: values[TEST] for name, values in columns.items()}
    sources, detectors = (torch.as_tensor(c[name].astype("f8")) for name in ("sources", "detectors"))
    pairs, flat = torch.as_tensor(c["pairs"].astype("i8")), torch.ones(100, dtype=torch.float64)
    place = Scene.of(
        Surface(c["ellipsoids"][0]),
        Readings(sources, detectors, pairs, flat, flat, flat.repeat(2, 1).T, 140e6),
        32,
        64.0,
    )
    system = place.system(torch.tensor([0.0060, 1.02], dtype=torch.float64))
    phi, J = jacobian.jacobian(system, jacobian.fields(system, sources, detectors, True), pairs, LIFTED)
    relative = noise_of(phi.numpy()[None])[0, :, 0]
    sd = np.hypot(np.stack([relative, np.hypot(relative, np.deg2rad(0.41))], 1), 0.03)
    probe = [c[name][None] for name in ("sources", "detectors", "pairs", "sigma")]
    rows = sampling.subsets("random", *probe, np.zeros((1, 100), bool), most, (0,), [TEST])[0]
    rows = rows[rows >= 0]
    by_log = 0.0060 * (J[:, 0] / phi.view(-1, 1, 1, 1)).numpy()[rows]
    weights = 1 / sd[rows].T[:, :, None, None, None]
    sensitivity = np.sqrt(((np.stack([by_log.real, by_log.imag]) * weights) ** 2).sum((0, 1)))
    clear = abs(sensitivity - WORTH) > 1e-4
    np.testing.assert_array_equal(mask(columns, TEST)[clear], sensitivity[clear] > WORTH)
    assert (~clear).sum() < 3 and (most != 256 or (sensitivity > WORTH)[clear].sum() > 100)


OTHER = {
    "kind": "none", "steps": 2, "pattern": "snr", "count": 61, "draws": 3, "gain": "known", "noise": Noise(seed=1),
    "seed": 1, "surface": "sphere",
}  # fmt: skip


def test_identity_changes_with_every_field_of_a_lift(found):
    assert set(OTHER) == set(Lift.model_fields)
    for every in (False, True):
        names = {work(found, **{field: value}).identity(every) for field, value in OTHER.items()}
        assert len(names | {work(found).identity(every)}) == 1 + len(OTHER)


def test_identity_changes_with_readings_split_and_code(found, monkeypatch):
    labels = np.roll(found.labels, 1)
    seed = DATA.model_copy(update={"seed": 4})
    for make in (work, lambda found, **k: Coverage(DATA, found.path, k.get("labels", found.labels))):
        held = make(found)
        other = {make(found, labels=labels).identity(), dataclasses.replace(held, data=seed).identity()}
        with monkeypatch.context() as patch:
            patch.setattr(lifts, "VERSION", 0)
            other.add(held.identity())
        assert len(other | {held.identity()}) == 4
        assert json.loads(held.identity())["readings"] == store.identity(DATA)
    before, plain = lifts.key(), work(found).identity()
    monkeypatch.setattr(lifts, "PRIOR", lift.Prior(6.0))
    assert lifts.key() != before and work(found).identity() != plain


def test_part_alone_is_lifted_in_a_file_of_its_own(found, prepared, lifted):
    """The same lifts as with all others; coverage is that of the test phantoms in any case."""
    one, covered = lifts.prepare(DATA, LIFT, found.path.parent, "test")
    assert one != prepared[0] and covered == prepared[1]
    chosen = found.labels == split.NAMES.index("test")
    with store.File(one) as file:
        made = file.raw("lift")
    np.testing.assert_array_equal(made[chosen], lifted[chosen])
    assert 0 < chosen.sum() < 8 and not made[~chosen].any()


@pytest.mark.parametrize("part", [None, "train", "validation", "test"])
def test_phantoms_of_a_part_keep_their_number_of_draws(found, monkeypatch, part):
    """Others are in no part; `fill` is given the work."""
    held = []
    monkeypatch.setattr(simulate, "fill", lambda work, path: held.append(work))
    lifts.prepare(DATA, LIFT, found.path.parent, part)
    labels = found.labels.tolist()
    expected = labels if part is None else [i if i == split.NAMES.index(part) else -1 for i in labels]
    assert held[0].labels.tolist() == expected and held[0].labels.dtype == found.labels.dtype
    assert held[1].labels.tolist() == labels


@pytest.mark.parametrize("chosen", [[0], [15, 16], [3, 31, 32, 34], []])
def test_column_is_that_of_the_chosen_phantoms(inline, tmp_path, chosen):
    """Across the blocks of a file, in its order."""
    path = tmp_path / "numbers.h5"
    simulate.fill(Numbers(), path)
    values = lifts.column(path, "estimate", np.isin(np.arange(35), chosen))
    assert values.shape == (len(chosen), 2, 3, 3, 3) and values[:, 1, 0, 2, 1].tolist() == chosen


FINER = DATA.model_copy(update={"measurements": DATA.measurements.model_copy(update={"grid": 48})})


def test_readings_of_a_finer_grid_are_compared_with_the_model_of_the_volumes(found, lifted):
    """The same readings, taken for those of 48^3 voxels, are lifted alike."""
    held = Lifts(FINER, LIFT, found.path, found.labels)
    np.testing.assert_array_equal(held.make(TEST, 1, "cpu")["lift"], lifted[TEST : TEST + 1])
    assert held.scenes(TEST, 1, [0], "cpu")[0].cells.grid == 32
    other = Lifts(FINER.model_copy(update={"grid": 64}), LIFT, found.path, found.labels)
    assert other.scenes(TEST, 1, [0], "cpu")[0].cells.grid == 64


def test_coverage_of_a_finer_grid_is_that_of_the_model(columns, masks):
    np.testing.assert_array_equal(mask(columns, TEST, FINER), masks[TEST])


def test_lifts_of_one_file_by_two_models_have_two_names(found):
    """Volumes of 32^3 and of 64^3 whose readings are of 64^3: the files of readings are one, those of lifts are not."""
    m = DATA.measurements.model_copy(update={"grid": 64})
    coarse, fine = (DATA.model_copy(update={"grid": grid, "measurements": m}) for grid in (32, 64))
    assert store.identity(coarse) == store.identity(fine)
    for make in (
        lambda data: Lifts(data, LIFT, found.path, found.labels),
        lambda d: Coverage(d, found.path, found.labels),
    ):
        for every in (False, True):
            assert make(coarse).identity(every) != make(fine).identity(every)
        assert "model" not in json.loads(make(fine).identity())  # a model of the readings' own grid renames no file
        assert "model" not in json.loads(make(DATA).identity())


def test_unknown_surface_is_the_sphere_of_the_optodes(found, columns, tmp_path):
    """The same lift as of a file whose tissue is that sphere and whose optodes lie on it; so are the fractions."""
    optodes = np.concatenate([columns["sources"][TEST], columns["detectors"][TEST]]).astype("f8")
    fitted = placement.sphere(optodes)
    centre, radius = fitted[:3], fitted[3]
    path = shutil.copy(found.path, tmp_path / "sphere.h5")
    with h5py.File(path, "r+") as file:
        row = file["ellipsoids"][TEST]
        row[0, 0:3], row[0, 3:6], row[0, 6:10], row[0, 10] = centre, radius, (0, 0, 0, 1), 2
        file["ellipsoids"][TEST] = row
        for name in ("sources", "detectors"):
            away = file[name][TEST].astype("f8") - centre
            file[name][TEST] = centre + radius * away / np.linalg.norm(away, axis=1, keepdims=True)
        del file["digests"]
    held = work(found, surface="sphere"), work(found, path)
    one, other = (of.make(TEST, 1, "cpu")["lift"] for of in held)
    known = work(found).make(TEST, 1, "cpu")["lift"]
    assert np.abs(one - other).max() < 2e-2 < 0.1 < np.abs(known - other).max()  # halves of 16 bits
    place = samples.fractions(found, "test", "sphere").float()
    i = int((np.flatnonzero(found.labels == split.NAMES.index("test")) == TEST).argmax())
    assert place[i].sum().item() * 8 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)  # voxels of 2 mm
    assert not torch.equal(place, samples.fractions(found, "test").float())
