"""Training on lifts: it learns from light, is continued bit for bit, and is judged against the homogeneous fit."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from tiny import RECORDED, Inline, Stop, assert_same_run, tiny

from dotlib import checkpoint, config, evaluation, inference, metrics, optim, reconstruct, trainer
from dotlib.data import dataset, lifts, phantoms, samples, simulate, store

DATA = RECORDED.model_copy(update={"grid": 16, "fractions": (4, 1, 1)})
LIFT = config.Lift(count=16, draws=2)
EIGHT = DATA.model_copy(update={"train": 8})
pytestmark = pytest.mark.usefixtures("one_thread", "home")


def lifted(**changes):
    """A tiny reconstruction: a UNet on lifts of 16 pairs, two draws of each training phantom."""
    what = {"task": "reconstruct", "data": DATA, "model__name": "unet", "lift": LIFT}
    return tiny(**what | {"epochs": 3} | changes)


@pytest.fixture(scope="module")
def home(recorded, tmp_path_factory):
    """A project to work in, which has the small file and its lifts."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "data"):
        (folder / name).mkdir()
    (folder / "pyproject.toml").touch()
    shutil.copy(recorded, dataset.location(DATA, folder / "data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "ProcessPoolExecutor", Inline)
        patch.setattr(simulate, "_pace", lambda shard: 1.0)
        lifts.prepare(DATA, LIFT, folder / "data")
        patch.chdir(folder)
        patch.setattr(simulate, "made", lambda *arguments: pytest.fail("simulated"))
        yield folder


@pytest.fixture(scope="module")
def undisturbed(home, one_thread, tmp_path_factory):
    """Configuration, folder, history."""
    c, folder = (
        lifted(augment=config.Augmentation(rotation=0, elastic=0, noise=0, symmetry=True)),
        tmp_path_factory.mktemp("run"),
    )
    return c, folder, trainer.fit(c, folder)


def test_stopped_run_ends_with_the_same_bits(tmp_path, undisturbed, monkeypatch):
    """In the middle of its second epoch: draws of pairs, noise and motions are those of the step."""
    c, plain, count = undisturbed[0], optim.step, itertools.count()

    def step_or_stop(*arguments):
        if next(count) == 4:
            raise Stop
        plain(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(optim, "step", step_or_stop)
        trainer.fit(c, tmp_path, save_every=0)
    assert len(checkpoint.load(tmp_path / "last.pt", c.digest())["epochs"]) == 1
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path)), undisturbed)


def test_checkpoint_says_what_it_is_of(undisturbed):
    c, folder, _ = undisturbed
    for name in ("last", "best"):
        about, state = checkpoint.alone(folder / f"{name}.pt")
        assert config.Config.model_validate_json(about) == c and "judged" in state


def test_history_has_a_row_for_every_column_and_phantom(undisturbed):
    """Six test phantoms, two channels, two checkpoints."""
    table, names = undisturbed[2].metrics, ["nrmse_covered", "nrmse_uncovered"]
    names += [f"skill_{of}{part}" for of in ("homogeneous", "fitted") for part in ("", "_covered")]
    counts = table[table.metric.isin(names)].groupby("metric").size()
    assert counts.to_dict() == dict.fromkeys(names, 6 * 2 * 2)


def masks(part="test"):
    """Tissue and what the probes see of it, (P, 16, 16, 16), by the files and tables themselves."""
    data = dataset.load(DATA)
    (path,) = data.path.parent.glob("*.covered-*.h5")
    with store.File(path) as file:
        seen = file.raw("covered")[data.labels == 2]
    return phantoms.labels(data.part(part), 16).numpy() > 0, seen


def test_judgement_is_that_of_the_frozen_draw(undisturbed):
    """Columns recomputed in numpy from the stored draw 0, the checkpoint and the masks."""
    c, folder, history = undisturbed
    data, table = dataset.load(DATA), history.metrics
    (path,) = data.path.parent.glob("*.lift-*.h5")
    with store.File(path) as file:
        draw = torch.from_numpy(file.raw("lift")[data.labels == 2][:, 0])
    truth, fraction = data.volumes("test").numpy().astype("f8"), samples.fractions(data, "test")
    x = samples.joined(draw, fraction)
    with torch.no_grad():
        found = inference.trained(c, folder)(inference.prepared(x)).numpy().astype("f8")
    level = draw[:, 6:].float().amax((2, 3, 4)).numpy().astype("f8")[..., None, None, None]
    share, (tissue, covered) = fraction.numpy().astype("f8"), masks()
    assert 0 < (covered & tissue).sum() < tissue.sum()
    best = np.empty_like(truth)
    for p, channel in np.ndindex(6, 2):
        column = share[p].reshape(-1, 1)
        best[p, channel] = (column @ np.linalg.lstsq(column, truth[p, channel].ravel(), rcond=None)[0]).reshape(
            [16] * 3
        )
    squares = {"own": found - truth, "fitted": level * share - truth, "homogeneous": best - truth, "truth": truth}

    def of(name, where):
        return np.array([[(squares[name][p, k][where[p]] ** 2).mean() for k in range(2)] for p in range(6)])

    expected = {}
    for name, where in (("nrmse", tissue), ("nrmse_covered", tissue & covered), ("nrmse_uncovered", tissue & ~covered)):
        expected[name] = np.sqrt(of("own", where) / of("truth", where))
    for name, part in itertools.product(("fitted", "homogeneous"), ("", "_covered")):
        where = tissue & covered if part else tissue
        expected[f"skill_{name}{part}"] = 1 - of("own", where) / of(name, where)
    last = table[table.checkpoint == "last"].set_index(["metric", "phantom", "channel"]).value
    for name, values in expected.items():
        got = last[name].unstack()[["mua", "musp"]].to_numpy()
        np.testing.assert_allclose(got, values, rtol=2e-3, atol=2e-4, err_msg=name)
    assert (expected["skill_homogeneous"] <= expected["skill_fitted"] + 1e-6).all()


@pytest.fixture(scope="module")
def learned(home, one_thread, tmp_path_factory):
    """A network that knows its eight training phantoms: configuration, folder, history."""
    c = lifted(data=EIGHT, epochs=40, model__width=4, optim__lr=1e-2, training__batch=4)
    folder = tmp_path_factory.mktemp("learned")
    return c, folder, trainer.fit(c, folder)


def test_training_loss_falls(learned):
    loss = learned[2].epochs.train_loss
    assert loss.iloc[-5:].mean() < 0.75 * loss.iloc[0] and loss.iloc[-5:].mean() < 0.85 * loss.iloc[:5].mean()


def nrmse(learned, change):
    """Mean over the training phantoms of each channel's nrmse (2,) for changed inputs; that of the best constants."""
    c, folder, _ = learned
    data = dataset.load(c.data)
    part, tissue = samples.of(c, data, "train"), data.tissue("train")
    truth, x = part.truth.float(), part.frozen().clone()
    change(x)
    best = evaluation.homogeneous(truth, part.fraction.float())
    found = inference.predict(inference.trained(c, folder), x)
    return [metrics.nrmse(volumes, truth, tissue).mean(0).numpy() for volumes in (found, best)]


@pytest.mark.parametrize("held", [5, 8], ids=["what was solved for", "all of the lift"])
def test_lifts_of_other_phantoms_are_worth_nothing(learned, held):
    """Better than the best homogeneous volumes with a phantom's own lift, worse with another's in the same tissue."""
    own, best = nrmse(learned, lambda x: None)
    other, _ = nrmse(learned, lambda x: x[:, :held].copy_(x[:, :held].roll(1, 0)))
    assert (own < 0.95 * best).all() and (other > 1.15 * best).all(), (own, other, best)


def test_draws_replay():
    """A step's draws are those of (seed, step): the same twice, others in another step or seed, each phantom's own."""
    c, data = lifted(), dataset.load(DATA)
    train, chosen = samples.of(c, data, "train"), torch.tensor([3, 0, 7, 11])
    one, again = (train.drawn(chosen, 5) for _ in range(2))
    assert all(map(torch.equal, one, again))
    steps = [train.drawn(chosen, step)[0] for step in range(20)]
    used = set()
    for x in steps:
        for row, phantom in zip(x, chosen.tolist(), strict=True):
            (draw,) = [r for r in range(2) if torch.equal(row[:8], train.lifts[phantom, r])]
            used.add((phantom, draw))
    assert len(used) == 8 and not torch.equal(train.lifts[:, 0], train.lifts[:, 1])
    other = samples.of(lifted(seed=1), data, "train")
    assert any(not torch.equal(x, other.drawn(chosen, step)[0]) for step, x in enumerate(steps))


def test_command_answers_as_the_judgement_did(undisturbed):
    """From the file of readings, the pairs, lift and volumes of each test phantom's frozen draw."""
    c, folder, _ = undisturbed
    data = dataset.load(DATA)
    expected = inference.predict(inference.trained(c, folder), samples.of(c, data, "test").frozen())
    known, models = reconstruct.networks([folder / "last.pt"])
    for p, index in list(enumerate(np.flatnonzero(data.labels == 2)))[:2]:
        recording = reconstruct.from_dataset(data.path, int(index), known)
        found = reconstruct.reconstruct(recording, known, models)
        np.testing.assert_allclose(found.mean, expected[p], rtol=2e-2, atol=2e-5)
        assert found.pairs == 16


def test_homogeneous_is_the_least_squares_constant():
    """By numpy's lstsq of each phantom and channel; what was homogeneous comes back."""
    rng = np.random.default_rng(0)
    truth, fraction = rng.uniform(0, 2, (3, 2, 4, 5, 6)), rng.uniform(0, 1, (3, 1, 4, 5, 6))
    found = evaluation.homogeneous(torch.from_numpy(truth), torch.from_numpy(fraction))
    for p, channel in np.ndindex(3, 2):
        column = fraction[p].reshape(-1, 1)
        (value,), *_ = np.linalg.lstsq(column, truth[p, channel].ravel(), rcond=None)
        np.testing.assert_allclose(found[p, channel], value * fraction[p, 0], rtol=1e-12)
    torch.testing.assert_close(evaluation.homogeneous(found, torch.from_numpy(fraction)), found)
