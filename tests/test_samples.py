"""What a run shows its network: draws, motions and fractions by numpy, and physics that has the grid's symmetries."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation
from tiny import Inline, tiny

from dotlib import arms, config
from dotlib.config import CHANNELS, LIFTED, Augmentation, Data, Lift, Measurements, Noise
from dotlib.data import augment, dataset, lifts, noise, phantoms, probe, recording, samples, simulate, split, store
from dotlib.data.dataset import Dataset
from dotlib.data.phantoms import CENTRE, CUBE, MUA, MUSP, QUATERNION
from dotlib.data.samples import Samples
from dotlib.data.surface import Surface
from dotlib.models import blocks
from dotlib.physics import diffusion, homogeneous
from dotlib.physics.homogeneous import Scene
from dotlib.physics.rytov import Readings

PLAIN, MOVED = (arms.arm(name, "smoke") for name in ("reconstruct", "reconstruct-symmetry"))
MOTIONS = range(8)
P, R, C, COARSE, FINE = 5, 3, 4, 4, 8  # of made-up samples


def anything(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).half()


def finer(volumes, times=2):
    """Each voxel as a block of voxels, by numpy."""
    return torch.from_numpy(np.kron(volumes.numpy(), np.ones((times,) * 3, volumes.numpy().dtype)))


def made_up(c, **options):
    """Channel 0 of each lift is the coarse truth, channel 1 the draw's number; fractions are the truth's own mua."""
    coarse = anything(P, 2, COARSE, COARSE, COARSE)
    lifted = anything(P, R, C, COARSE, COARSE, COARSE, seed=1)
    lifted[:, :, 0] = coarse[:, None, 0]
    lifted[:, :, 1] = torch.arange(R).view(1, R, 1, 1, 1)
    truth = finer(coarse)
    return Samples(c, truth, lifted, truth[:, :1].clone(), **options)


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def motion_of(after, before):
    """The motions that take one volume to the other."""
    return [m for m in MOTIONS if torch.equal(samples.moved(before, m), after)]


@pytest.mark.parametrize("r", [1, 2, 4])
def test_joined_fractions_are_those_of_the_finer_voxels(r):
    """Undone by the network's own block; and one entry by its index."""
    lifted, fraction = anything(2, 3, COARSE, COARSE, COARSE), anything(2, 1, *[r * COARSE] * 3, seed=1)
    found = samples.joined(lifted, fraction)
    assert found.shape == (2, 3 + r**3, COARSE, COARSE, COARSE)
    assert torch.equal(found[:, :3], lifted) and torch.equal(blocks.depth_to_space(found[:, 3:], r), fraction)
    a, b, c = 0, r - 1, r // 2
    assert found[1, 3 + (a * r + b) * r + c, 3, 0, 2] == fraction[1, 0, 3 * r + a, b, 2 * r + c]


def test_motions_are_the_dihedral_group_of_the_square():
    """As orthogonal matrices of x and y, read off the coordinates; 0 is the identity, 4 the mirror in x."""
    place = torch.arange(6.0) - 2.5
    x, y, z = torch.meshgrid(place, place, place, indexing="ij")
    found = []
    for m in MOTIONS:
        assert torch.equal(samples.moved(z, m), z)
        rows = torch.stack([samples.moved(v, m).flatten() for v in (x, y)])
        matrix = rows @ torch.stack([x.flatten(), y.flatten()]).T / x.square().sum()
        assert torch.equal(matrix.round() @ torch.stack([x.flatten(), y.flatten()]), rows)
        found.append(tuple(map(tuple, matrix.round().int().tolist())))
    quarter, mirror = np.array([[0, 1], [-1, 0]]), np.diag([-1, 1])
    expected = {
        tuple(map(tuple, np.linalg.matrix_power(quarter, k) @ np.linalg.matrix_power(mirror, s)))
        for k in range(4)
        for s in range(2)
    }
    assert set(found) == expected and len(expected) == 8
    assert found[0] == ((1, 0), (0, 1)) and found[4] == ((-1, 0), (0, 1))


def test_motions_are_closed_under_composition():
    volume = anything(2, 3, 6, 6, 6)
    assert len({samples.moved(volume, m).numpy().tobytes() for m in MOTIONS}) == 8
    table = [[motion_of(samples.moved(samples.moved(volume, a), b), volume) for b in MOTIONS] for a in MOTIONS]
    assert all(len(found) == 1 for row in table for found in row)
    assert all(sorted(found[0] for found in row) == [*MOTIONS] for row in table)


@pytest.mark.parametrize("c", [PLAIN, MOVED], ids=["plain", "symmetry"])
def test_draws_are_a_function_of_seed_and_step(c):
    held, chosen = made_up(c), torch.tensor([4, 0, 3, 3, 1])
    first = held.drawn(chosen, 7)
    assert same(first, held.drawn(chosen, 7))
    other = made_up(config.replace(c, {"seed": c.seed + 1}))
    assert not torch.equal(first[0], held.drawn(chosen, 8)[0]) and not torch.equal(first[0], other.drawn(chosen, 7)[0])


def test_what_is_seen_and_the_truth_move_together():
    """By one motion a sample: what the coarse truth in the lift, the fractions and the truth itself say."""
    held, seen_motions = made_up(MOVED), []
    for step in range(40):
        chosen = torch.tensor([step % P, (step + 2) % P])
        seen, truth = held.drawn(chosen, step)
        assert torch.equal(finer(seen[:, 0]), truth[:, 0])
        assert torch.equal(blocks.depth_to_space(seen[:, C:], 2), truth[:, :1])
        for i, after, shown in zip(chosen, truth, seen, strict=True):
            (motion,) = motion_of(after, held.truth[i])
            draw = int(shown[1, 0, 0, 0])
            assert torch.equal(shown[:C], samples.moved(held.lifts[i, draw], motion))
            seen_motions.append(motion)
    assert set(seen_motions) == set(MOTIONS)


@pytest.mark.parametrize("c", [PLAIN, config.replace(MOVED, {"augment.symmetry": False})])
def test_nothing_is_moved_without_symmetry(c):
    held = made_up(c)
    for step in range(9):
        chosen = torch.tensor([step % P, 1])
        seen, truth = held.drawn(chosen, step)
        draws = seen[:, 1, 0, 0, 0].long()
        assert torch.equal(truth, held.truth[chosen])
        assert torch.equal(seen, samples.joined(held.lifts[chosen, draws], held.fraction[chosen]))


def test_draws_and_motions_are_uniform_and_independent():
    """Chi-squared over 300 steps of five samples."""
    held, chosen, found = made_up(MOVED), torch.arange(P), []
    before = {i: {samples.moved(held.truth[i], m).numpy().tobytes(): m for m in MOTIONS} for i in range(P)}
    for step in range(300):
        seen, truth = held.drawn(chosen, step)
        found += [(i, int(seen[i, 1, 0, 0, 0]), before[i][truth[i].numpy().tobytes()]) for i in range(P)]
    counts = np.zeros((P, R, 8))
    np.add.at(counts, tuple(np.array(found).T), 1)
    assert stats.chisquare(counts.sum((0, 2))).pvalue > 0.01 and stats.chisquare(counts.sum((0, 1))).pvalue > 0.01
    assert stats.chi2_contingency(counts.sum(0)).pvalue > 0.01
    (_, *first), (_, *second) = (np.array(found)[i::P].T for i in (0, 1))  # neighbours in a batch
    for one, other in zip(first, second, strict=True):
        assert stats.chi2_contingency(stats.contingency.crosstab(one, other).count).pvalue > 0.01
    assert stats.chi2_contingency(counts.sum(2)).pvalue > 0.01 and stats.chi2_contingency(counts.sum(1)).pvalue > 0.01


@pytest.mark.parametrize("c", [PLAIN, MOVED], ids=["plain", "symmetry"])
def test_frozen_is_draw_0_as_it_lies(c):
    held = made_up(c)
    every = held.frozen()
    assert torch.equal(every[:, :C], held.lifts[:, 0])
    assert torch.equal(blocks.depth_to_space(every[:, C:], 2), held.fraction)
    assert torch.equal(held.frozen(slice(1, 3)), every[1:3]) and torch.equal(
        held.frozen(torch.tensor([4, 0])), every[[4, 0]]
    )
    assert torch.equal(Samples(c, held.truth).frozen(slice(2)), held.truth[:2])


@pytest.mark.parametrize("family", ["default", "superellipsoid"])
def test_fractions_are_those_of_the_tissue(family):
    """Tumours in it leave no trace; sums are its volume, within what fp16 holds."""
    tables = phantoms.sample(family, 6, 1)
    data = Dataset(tables, np.zeros(6, np.int8), 32)
    found = samples.fractions(data, "train")
    ones = tables.copy()
    ones[:, :, [MUA, MUSP]] = np.where(np.isfinite(tables[:, :, [MUA, MUSP]]), 1, np.nan)
    assert (found.shape, found.dtype) == ((6, 1, 32, 32, 32), torch.float16)
    np.testing.assert_allclose(found.float(), phantoms.rasterise(ones, 32)[:, :1], atol=5e-4)
    assert found.min() == 0 and found.max() == 1
    if family == "default":
        volume = 4 / 3 * np.pi * tables[:, 0, 3:6].prod(1)
        np.testing.assert_allclose(found.float().sum((1, 2, 3, 4)) * (CUBE / 32) ** 3, volume, rtol=1e-3)


def test_standard_is_mean_and_sd_of_every_draw():
    """Over more phantoms than are taken at a time; a channel that does not vary has a least sd."""
    lifted, fraction = anything(70, 2, 3, 2, 2, 2), anything(70, 1, 4, 4, 4, seed=1)
    lifted[:, :, 2] = 1.5
    mean, sd = samples.standard(Samples(PLAIN, fraction, lifted, fraction))
    seen = np.concatenate([samples.joined(lifted[:, draw], fraction).numpy().astype("f8") for draw in range(2)])
    np.testing.assert_allclose(mean, seen.mean((0, 2, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(sd, np.maximum(seen.std((0, 2, 3, 4)), 1e-3), rtol=1e-5)
    assert sd[2] == np.float32(1e-3) and samples.standard(Samples(PLAIN, fraction)) is None


@pytest.mark.parametrize("bodies", [False, True])
def test_volumes_are_augmented_bit_for_bit_by_seed_and_step(bodies):
    c = tiny(augment=Augmentation(noise=0.02), seed=5)
    tables, chosen = phantoms.sample("default", 4, 1), torch.tensor([2, 0, 3])
    data = Dataset(tables, np.zeros(4, np.int8), c.data.grid)
    held = samples.of(c, data, "train")
    assert torch.equal(held.truth, data.volumes("train", dtype=torch.float16)) and held.lifts is None
    own = held.bodies[chosen]
    if not bodies:
        held, own = Samples(c, held.truth), None
    exact = augment.apply(augment.sample(c.augment, 3, (5, 9)), held.truth[chosen].float(), own)
    found = held.drawn(chosen, 9)
    assert same(found, exact) and not torch.equal(exact[0], exact[1])
    assert not torch.equal(exact[1], held.truth[chosen].float())


def test_volumes_answer_themselves_without_augmentation():
    c = tiny()
    held = samples.of(c, Dataset(phantoms.sample("default", 4, 1), np.zeros(4, np.int8), c.data.grid), "train")
    seen, truth = held.drawn(torch.tensor([3, 1]), 0)
    assert torch.equal(seen, held.truth[[3, 1]]) and torch.equal(truth, seen) and held.bodies is None


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A dataset over three blocks, with made-up files of lifts and coverage; and what was asked of `lifts.prepare`."""
    labels = (np.arange(40) % 5 % 3).astype(np.int8)
    labels[[1, 20]] = -1
    data = Dataset(phantoms.sample("default", 40, 1), labels, 32, tmp_path / "readings.h5")
    lifted = anything(40, 2, 3, LIFTED, LIFTED, LIFTED).numpy()
    lifted[labels != 0, 1] = 0
    covered, asked = np.random.default_rng(0).random((40, *[LIFTED] * 3)) < 0.3, []
    for name, values in {"lift": lifted, "covered": covered}.items():
        with store.writing(tmp_path / f"{name}.h5") as file:
            columns = {name: values, "checks": np.zeros(40, "i4")}
            store.create(file, columns, 40, {})
            file[name][:] = values
    monkeypatch.setattr(
        lifts, "prepare", lambda *a: (asked.append(a), (tmp_path / "lift.h5", tmp_path / "covered.h5"))[1]
    )
    return data, lifted, covered, asked


@pytest.mark.parametrize("part", split.NAMES)
def test_samples_are_the_stored_draws_of_their_part(stored, part):
    """All of a training phantom's, and draw 0 of others."""
    data, lifted, _, asked = stored
    held, chosen = samples.of(PLAIN, data, part), data.labels == split.NAMES.index(part)
    np.testing.assert_array_equal(held.lifts, lifted[chosen, : 2 if part == "train" else 1])
    assert torch.equal(held.truth, data.volumes(part, dtype=torch.float16))
    assert torch.equal(held.fraction, samples.fractions(data, part)) and len(held) == chosen.sum() > 5
    assert asked == [(PLAIN.data, PLAIN.lift, data.path.parent, None)]


@pytest.mark.parametrize(("part", "own"), [("train", True), ("validation", True), ("test", False)])
def test_test_part_is_that_of_the_judging_phantoms(stored, part, own):
    data, *_, asked = stored
    other = config.replace(PLAIN, {"test": PLAIN.data.model_copy(update={"seed": 9})})
    samples.of(other, data, part)
    assert [arguments[0] for arguments in asked] == [other.data if own else other.test] and other.data != other.test
    assert [arguments[3] for arguments in asked] == [None if own else "test"]  # no other part of them is lifted


def test_coverage_of_judging_phantoms_lies_beside_the_lifts_of_the_test_part(stored):
    data, *_, asked = stored
    other = config.replace(PLAIN, {"test": PLAIN.data.model_copy(update={"seed": 9})})
    samples.covered(other, data)
    samples.covered(PLAIN, data)
    assert [(a[0], a[3]) for a in asked] == [(other.test, "test"), (PLAIN.data, None)]


@pytest.mark.parametrize("grid", [16, 32, 64])
def test_coverage_is_repeated_in_the_finer_voxels(stored, grid):
    data, _, covered, _ = stored
    found = samples.covered(PLAIN, Dataset(data.ellipsoids, data.labels, grid, data.path))
    coarse = covered[data.labels == 2]
    np.testing.assert_array_equal(found, np.kron(coarse, np.ones((1, *[grid // LIFTED] * 3), bool)))
    assert found.dtype == torch.bool and found.shape[1:] == (grid,) * 3


def test_files_of_runs_are_seen_to_once(monkeypatch):
    """Readings of what trains and of what judges; lifts where a run has any."""
    readings, lifted = [], []
    monkeypatch.setattr(dataset, "prepare", readings.append)
    monkeypatch.setattr(lifts, "prepare", lambda *a, part: lifted.append((*a, part)))
    other = config.replace(PLAIN, {"test": PLAIN.data.model_copy(update={"seed": 9})})
    plain = tiny()
    samples.prepare([PLAIN, MOVED, other, plain])
    assert set(readings) == {PLAIN.data, other.test, plain.data} and len(readings) == 3
    assert set(lifted) == {(PLAIN.data, PLAIN.lift, None), (other.test, PLAIN.lift, "test")} and len(lifted) == 2


def test_small_dataset_is_lifted_and_shown(one_thread, tmp_path, monkeypatch):
    """Made where it is missing, from readings to what a network sees."""
    monkeypatch.setattr(simulate, "ProcessPoolExecutor", Inline)
    m = Measurements(sources=4, detectors=12, pairs=24)
    small = Data(phantoms=4, grid=32, seed=3, fractions=(2, 1, 1), measurements=m)
    c = config.replace(MOVED, {"data": small, "lift": Lift(count=20, draws=2), "training.batch": 2})
    data = dataset.load(small, tmp_path)
    held = samples.of(c, data, "train")
    with store.File(lifts.prepare(small, c.lift, tmp_path)[0]) as file:
        np.testing.assert_array_equal(held.lifts, file.raw("lift")[data.labels == 0])
    seen, truth = held.drawn(torch.tensor([1, 0]), 3)
    assert seen.shape == (2, len(CHANNELS) + 8, LIFTED, LIFTED, LIFTED) and truth.shape == (2, 2, 32, 32, 32)
    assert torch.equal(blocks.depth_to_space(seen[:, len(CHANNELS) :], 2)[:, 0] > 0, truth[:, 0] > 0)
    assert samples.covered(c, data).sum((1, 2, 3)).min() > 8


def test_control_is_shown_what_its_own_lift_leaves_from_the_file_of_linear_ones(one_thread, tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "ProcessPoolExecutor", Inline)
    m = Measurements(sources=4, detectors=12, pairs=24)
    small = Data(phantoms=4, grid=32, seed=3, fractions=(2, 1, 1), measurements=m)
    c = config.replace(PLAIN, {"data": small, "lift": Lift(kind="none", count=20, draws=2)} | {"training.batch": 2})
    data = dataset.load(small, tmp_path)
    samples.of(config.replace(c, {"lift.kind": "linear"}), data, "train")
    files = set(tmp_path.iterdir())
    shown = samples.of(c, data, "train").lifts.numpy()
    own = lifts.Lifts(small, c.lift, data.path, data.labels).make(0, 4, "cpu")["lift"][data.labels == 0]
    np.testing.assert_array_equal(shown, own)
    assert set(tmp_path.iterdir()) == files and shown[:, :, 5:].any() and not shown[:, :, :5].any()


def mirrored(table):
    """The mirror image in x of a table: a body with a centre of symmetry has a proper rotation again."""
    out = table.astype("f8")
    out[:, CENTRE] *= (-1, 1, 1)
    used = np.isfinite(out[:, MUA])
    turns = Rotation.from_quat(out[used][:, QUATERNION]).as_matrix()
    out[used, QUATERNION] = Rotation.from_matrix(-(np.diag([-1.0, 1, 1]) @ turns)).as_quat()
    return out


def lifted_phantom(table, places):
    """The lift of a phantom's noise-free readings, simulated for this table and these optodes."""
    pairs = places.pairs.astype("i8")
    optodes = [torch.as_tensor(v.astype("f8")) for v in (places.sources, places.detectors)]
    medium = recording.medium(table, 32)
    phi = diffusion.readings([medium], *(v[None].numpy() for v in optodes), pairs[None], 140e6, precise=True)[0]
    values = [torch.as_tensor(v) for v in (np.log(abs(phi)), -np.angle(phi), noise.sd(abs(phi), Noise()))]
    place = Scene.of(Surface(table[0]), Readings(*optodes, torch.as_tensor(pairs), *values, 140e6), 32, CUBE)
    return lifts.channels(Lift(), place, homogeneous.fit([place])[0])


@pytest.fixture(scope="module")
def unmoved():
    """A phantom with tumours in its probe's frame, the probe, and its lift."""
    small = probe.Patch(sources=10, detectors=16, pairs=100, per_source=10)
    table, places = probe.draw(phantoms.sample("many", 1, 5)[0], 5, 0, small)
    return table.astype("f8"), places, lifted_phantom(table.astype("f8"), places)


@pytest.mark.parametrize("motion", MOTIONS)
def test_lift_of_a_moved_phantom_is_the_moved_lift(unmoved, motion):
    """Phantom and optodes are turned and mirrored in millimetres; what is stored of tissue and volumes moves alike."""
    table, places, lifted = unmoved
    turn = Rotation.from_euler("z", 90 * (motion % 4), degrees=True)
    matrix = turn.as_matrix() @ np.diag([-1 if motion >= 4 else 1, 1, 1])
    other = phantoms.rotate((mirrored(table) if motion >= 4 else table)[None], turn)[0]
    sources, detectors = places.sources.astype("f8") @ matrix.T, places.detectors.astype("f8") @ matrix.T
    found = lifted_phantom(other, probe.Probe(sources, detectors, places.pairs))
    exact = samples.moved(lifted, motion)
    for name, a, b in zip(CHANNELS, found, exact, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max(), name
    volumes = (phantoms.rasterise(t[None], 16)[0] for t in (other, table))
    torch.testing.assert_close(next(volumes), samples.moved(next(volumes), motion), rtol=1e-4, atol=1e-6)


def test_moved_lift_is_another_lift(unmoved):
    """Without which the law above would say nothing."""
    lifted = unmoved[2]
    for a, b in itertools.combinations(MOTIONS, 2):
        apart = samples.moved(lifted, a)[0] - samples.moved(lifted, b)[0]
        assert apart.abs().max() > 0.2 * lifted[0].abs().max()
