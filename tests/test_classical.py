"""Classical reconstructions of a dataset against the physics called by hand, and their refinement by torch and hand."""

import dataclasses
import shutil

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Inline

from dotlib.config import LIFTED, Data, Lift, Measurements
from dotlib.data import classical, dataset, lifts, phantoms, sampling, simulate, store
from dotlib.data.classical import Classical
from dotlib.data.recording import SimulationError
from dotlib.data.surface import Surface
from dotlib.physics import gauss_newton, homogeneous, lift
from dotlib.physics.homogeneous import Scene
from dotlib.physics.lift import Prior
from dotlib.physics.rytov import Readings

DATA = Data(
    phantoms=6, grid=32, seed=3, fractions=(1, 1, 1), measurements=Measurements(sources=8, detectors=12, pairs=64)
)
LIFT = Lift(count=40, draws=2, pattern="stratified", seed=2)


@pytest.fixture(scope="module")
def found(one_thread, tmp_path_factory):
    """The dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "ProcessPoolExecutor", Inline)
        patch.setattr(simulate, "_pace", lambda shard: 0.0)  # nothing is made twice for the time it takes
        yield dataset.load(DATA, tmp_path_factory.mktemp("classical"))


@pytest.fixture(scope="module")
def by_hand(found):
    """The first test phantom: the scene of the readings that LIFT chooses, from the columns, and its fit."""
    index = int(np.flatnonzero(found.labels == 2)[0])
    with store.File(found.path) as file:
        c = {name: file.raw(name)[index] for name in ("ellipsoids", *store.MEASURED)}
    probe = [c[name][None] for name in ("sources", "detectors", "pairs", "sigma")]
    rows = sampling.subsets("stratified", *probe, np.zeros((1, 64), bool), 40, (2, 0), [index])[0].astype(int)
    held = [c["sources"], c["detectors"], c["pairs"][rows], *(c[name][rows] for name in store.MEASURED[3:])]
    held = [torch.as_tensor(v.astype("i8" if v.dtype.kind == "i" else "f8")) for v in held]
    place = Scene.of(Surface(c["ellipsoids"][0]), Readings(*held, 140e6, 1.33), 32, 64.0)
    return place, homogeneous.fit([place])[0]


def volume(found, method, regularisation, **options):
    """Of the first test phantom."""
    (one,) = classical.volumes(DATA, LIFT, method, regularisation, "test", 1, folder=found.path.parent, **options)
    return one


def near(a, b, share=1e-4):
    return (a - b).abs().max() < share * b.abs().max()


def test_homogeneous_volume_is_the_fit(found, by_hand):
    one = volume(found, "homogeneous", 1.0)
    assert one.shape == (2, LIFTED, LIFTED, LIFTED) and one.dtype == torch.float32
    torch.testing.assert_close(one, by_hand[1].values.float().view(2, 1, 1, 1).expand_as(one), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("regularisation", "length"), [(1.0, 5.0), (4.0, 5.0), (1.0, 9.0)])
def test_tikhonov_is_one_linear_step(found, by_hand, regularisation, length):
    """1 + x times the fit's values, with the regularisation and the length of prior that were asked for."""
    place, fit = by_hand
    problem = lift.linearise(place, fit)
    x = lift.solve(problem, Prior(length=length), (regularisation,))[0]
    exact = fit.values.float().view(2, 1, 1, 1) * (1 + x).clamp_min(0)
    one = volume(found, "tikhonov", regularisation, length=length)
    assert near(one, exact)
    others = [lift.solve(problem, Prior(length=a), (b,))[0] for a, b in ((5.0, 1.0), (5.0, 4.0), (9.0, 1.0))]
    assert sum(near(one / fit.values.float().view(2, 1, 1, 1) - 1, other, 0.01) for other in others) == 1


@pytest.mark.parametrize(("method", "regularisation"), [("gaussian", 2.0), ("tv", 1.0)])
def test_gauss_newton_runs_until_it_converges(found, by_hand, method, regularisation):
    exact = gauss_newton.reconstruct(*by_hand, regularisation, method, Prior(length=6.0), LIFTED, 12)
    assert exact.converged and len(exact.objective) > 2
    assert near(
        volume(found, method, regularisation, length=6.0), exact.values.float().view(2, 1, 1, 1) * exact.x.exp()
    )


@pytest.mark.parametrize("method", ["homogeneous", "tikhonov", "gaussian"])
def test_one_recording_is_reconstructed_as_in_a_file(found, by_hand, method):
    """Whoever has the scene and its fit needs no file."""
    one = classical.reconstruct(*by_hand, method, 2.0, 6.0)
    assert one.shape == (2, LIFTED, LIFTED, LIFTED)
    assert near(one, volume(found, method, 2.0, length=6.0))


def test_phantoms_of_the_part_alone_are_made(found, monkeypatch):
    """In their order, the first `most` of it; the others are zeros in the file."""
    fitted, plain = [], lifts.fitted
    monkeypatch.setattr(lifts, "fitted", lambda scenes, first: (fitted.extend(scenes), plain(scenes, first))[1])
    chosen = np.flatnonzero(found.labels == 1)
    one, two = (
        classical.volumes(DATA, LIFT, "homogeneous", 3.0, "validation", n, folder=found.path.parent) for n in (1, None)
    )
    assert len(chosen) == 2 and set(fitted[:2]) == {chosen[0]} and set(fitted) == set(chosen)
    assert (len(one), len(two)) == (1, 2) and torch.equal(one[0], two[0]) and not torch.equal(two[0], two[1])
    mask = np.isin(np.arange(6), chosen)
    work = Classical(DATA, LIFT, found.path, found.labels, mask, "homogeneous", 3.0)
    made = work.make(0, 6, "cpu")["estimate"]
    np.testing.assert_array_equal(made[mask], two)
    assert not made[~mask].any()
    np.testing.assert_array_equal(work.make(int(chosen[1]), 1, "cpu")["estimate"][0], two[1])


def test_volumes_are_read_where_they_are(found, monkeypatch):
    """Whatever share was trained with, and however many draws; another regularisation is another file."""
    before = volume(found, "homogeneous", 1.0)
    monkeypatch.setattr(Classical, "make", lambda *arguments: pytest.fail("made again"))
    arguments = ("homogeneous", 1.0, "test", 1, lifts.PRIOR.length, found.path.parent)
    assert torch.equal(volume(found, "homogeneous", 1.0), before)
    other = DATA.model_copy(update={"train": 1}), Lift(**LIFT.model_dump() | {"draws": 7, "kind": "none"})
    assert torch.equal(classical.volumes(*other, *arguments)[0], before)
    with pytest.raises(pytest.fail.Exception, match="made again"):
        volume(found, "homogeneous", 1.5)


def test_identity_changes_with_what_is_reconstructed(found):
    mask = found.labels == 2
    work = Classical(DATA, LIFT, found.path, found.labels, mask, "tikhonov", 1.0)
    other = [
        {"data": DATA.model_copy(update={"seed": 4})}, {"chosen": found.labels == 1}, {"method": "gaussian"},
        {"regularisation": 1.5}, {"length": 5.5}, {"labels": np.roll(found.labels, 1)},
        *({"lift": Lift(**LIFT.model_dump() | change)} for change in ({"count": 41}, {"pattern": "snr"}, {"seed": 3})),
    ]  # fmt: skip
    for every in (False, True):
        names = {dataclasses.replace(work, **fields).identity(every) for fields in other}
        assert len(names | {work.identity(every)}) == 1 + len(other)


def test_phantom_that_cannot_be_fitted_is_named(found, tmp_path):
    """Amplitudes that grow with the way: no tissue."""
    path = shutil.copy(found.path, tmp_path / "spoilt.h5")
    with h5py.File(path, "r+") as file:
        file["log_amplitude"][4] *= -1
        del file["digests"]  # which would tell
    work = Classical(DATA, LIFT, path, found.labels, np.arange(6) == 4, "homogeneous", 1.0)
    with pytest.raises(SimulationError, match=r"^lift: .*phantom 4\b") as error:
        work.make(3, 3, "cpu")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def fraction():
    """Of two tissues on 32^3 voxels."""
    tables = phantoms.without_inclusions(phantoms.sample("default", 2, 4))
    tables[:, 0, [phantoms.MUA, phantoms.MUSP]] = 1
    return phantoms.rasterise(tables, 32)[:, :1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_refined_constant_is_that_constant_times_the_fraction(fraction, dtype):
    values = torch.tensor([0.006, 0.9]).view(1, 2, 1, 1, 1)
    found = classical.refined(values.expand(2, 2, 16, 16, 16), fraction.to(dtype))
    torch.testing.assert_close(found, values * fraction.to(dtype), rtol=1e-5, atol=1e-8)


def test_refined_volume_is_trilinear_inside_and_no_air_leaks_in(fraction):
    """Voxel by voxel from the weights of its neighbours that hold tissue, whatever the others hold."""
    coarse = torch.rand(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    found = classical.refined(coarse, fraction)
    plain = F.interpolate(coarse, size=(32,) * 3, mode="trilinear", align_corners=False)
    inside = F.avg_pool3d(fraction, 2) > 0
    deep = F.interpolate(1 - F.max_pool3d(1 - inside.float(), 3, 1, 1), scale_factor=2) > 0
    assert 0.4 < deep.sum() / (fraction > 0).sum() < 0.95
    chosen = (deep & (fraction == 1)).expand_as(found)
    torch.testing.assert_close(found[chosen], plain[chosen], rtol=1e-5, atol=0)
    wild = torch.where(inside, coarse, 1e3)
    torch.testing.assert_close(classical.refined(wild, fraction), found, rtol=1e-5, atol=1e-6)
    assert not torch.equal(wild, coarse) and not found[(fraction == 0).expand_as(found)].any()
    ratio = (found / fraction)[(fraction > 0).expand_as(found)]
    assert ratio.min() >= 1 - 1e-5 and ratio.max() <= 2 + 1e-5  # a mean of the tissue's own values


def test_refined_voxel_at_the_wall_by_hand():
    """Two coarse voxels of tissue in a row, one of air: nine sixteenths and so on are shared by those of tissue."""
    coarse = torch.zeros(1, 1, 2, 2, 2)
    coarse[0, 0, 0, 0, 0], coarse[0, 0, 0, 0, 1], coarse[0, 0, 1] = 2.0, 4.0, 100.0
    fraction = torch.zeros(1, 1, 4, 4, 4)
    fraction[0, 0, :2, :2] = 1
    fraction[0, 0, 1, 1, 1] = 0.5
    found = classical.refined(coarse, fraction)[0, 0]
    torch.testing.assert_close(found[0, 0], torch.tensor([2.0, 2.5, 3.5, 4.0]))
    torch.testing.assert_close(found[1, 1], torch.tensor([2.0, 1.25, 3.5, 4.0]))
    assert not found[2:].any() and not found[:, 2:].any()
