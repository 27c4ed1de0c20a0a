"""Reconstruction through a code: pairs as tokens, and decoders that start from an autoencoder's."""

import itertools
import shutil

import histories
import numpy as np
import pytest
import torch
from tiny import RECORDED, Inline, Stop, assert_same_run, assert_same_weights, bits, tiny, weights
from torch import nn

from dotlib import checkpoint, config, inference, optim, perceptual, reconstruct, study, trainer
from dotlib.config import TOKEN, ConfigError, Features, Loss, Model, Pretrained
from dotlib.data import dataset, lifts, samples, simulate, store
from dotlib.models import autoencoder
from dotlib.models.blocks import Block, Residual
from dotlib.models.reconstructor import FromTokens, build
from dotlib.models.vit import Transformer

DATA = RECORDED.model_copy(update={"grid": 16, "fractions": (4, 1, 1)})
COUNT, LOST = 20, 5  # tokens, and those of them that are not there
TOKENS = {"model__name": "tokens", "lift": config.Lift(kind="tokens", count=16, draws=2)}
CODE = {"model__name": "stage1", "lift": config.Lift(count=16, draws=2)}
BEGUN = {"model__pretrained": Pretrained(epochs=2, batch=8)}
ARMS = {"tokens": TOKENS, "code": CODE | BEGUN, "tokens, pretrained": TOKENS | BEGUN}
MEAN, SD = torch.tensor([0.006, 1.1]), torch.tensor([0.003, 0.4])
pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(grid=32, width=4, seed=0):
    """With every parameter away from where it starts, ready to predict."""
    seen = random(len(TOKEN), seed=7), 0.5 + random(len(TOKEN), seed=8).abs()
    model = build(Model(name="tokens", width=width, code=16), grid, seed, (MEAN, SD), seen)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.1 * random(*p.shape, seed=i)
    return model.eval()


def pairs(seed=0):
    """Made-up tokens of two phantoms, the last of them zeros, as of pairs that are not there."""
    x = random(2, len(TOKEN), COUNT, 1, 1, seed=seed)
    x[:, -2:] = torch.tensor([[0.0051, 0.83], [0.0094, 1.27]])[:, :, None, None, None]
    x[:, :, COUNT - LOST :] = 0
    return x


@torch.no_grad()
def test_order_of_the_pairs_means_nothing():
    model, x = network(), pairs()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(order, torch.arange(COUNT))
    torch.testing.assert_close(model(x[:, :, order]), model(x), rtol=1e-4, atol=1e-7)
    swapped = x.clone()
    swapped[:, 0, [0, 1]] = x[:, 0, [1, 0]]  # one reading for another's, which is no order of the pairs
    assert (model(swapped) / model(x) - 1).abs().max() > 1e-3


@torch.no_grad()
def test_pairs_that_are_not_there_change_nothing():
    """Whatever stands in their place, and whether they have a place at all."""
    model, x = network(), pairs()
    filled, there = x.clone(), slice(COUNT - LOST)
    filled[:, :-1, COUNT - LOST :] = 10 * random(2, len(TOKEN) - 1, LOST, 1, 1, seed=3)
    for other in (filled, x[:, :, there]):
        torch.testing.assert_close(model(other), model(x), rtol=1e-4, atol=1e-7)
    filled[:, -1, COUNT - LOST :] = 1.0
    assert (model(filled) / model(x) - 1).abs().max() > 1e-2


@torch.no_grad()
def test_every_feature_of_every_pair_is_looked_at():
    model, x = network(), pairs()
    before = model(x)
    for feature, pair in itertools.product(range(len(TOKEN)), (0, COUNT - LOST - 1)):
        changed = x.clone()
        changed[0, feature, pair] += 0.5
        found = model(changed) / before - 1
        assert found[0].abs().max() > 1e-4, TOKEN[feature]
        assert found[1].abs().max() < 1e-5


@pytest.mark.parametrize("grid", [16, 32, 64])
def test_gradient_reaches_every_parameter(grid):
    model = network(grid).train()
    for block in model.modules():
        if isinstance(block, Residual):
            nn.init.constant_(block.second[1].weight, 0.5)
    model(pairs()).div(MEAN.view(2, 1, 1, 1)).square().sum().backward()
    missed = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missed


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("grid", [16, 32, 64])
def test_transformer_is_smaller_than_the_encoder_that_it_stands_for(grid, width):
    """By at most a half; of its equation's size: 13 inputs, six blocks, the gathering token, the code."""
    with torch.device("meta"):
        found = FromTokens(grid, len(TOKEN), Model(name="tokens", width=width))
        plain = autoencoder.Stage1(grid, Model(name="stage1", width=width))
    own, theirs = (
        sum(p.numel() for name, p in model.named_parameters() if not name.startswith(perceptual.DECODER))
        for model in (found, plain)
    )
    c = 12 * width
    assert own == 14 * c + 6 * (12 * c * c + 13 * c) + 3 * c + 256 * (c + 1)
    assert 0.5 * theirs < own < theirs


def test_decoder_is_the_autoencoders_and_seeds_draw_all_of_it():
    """By name and bit for bit; of another seed, no weight that is drawn."""
    plain = autoencoder.build(Model(name="stage1", width=4, code=16), 32, 3, MEAN, SD).network.state_dict()
    ones = torch.ones(len(TOKEN))
    one, again, other = (
        build(Model(name="tokens", width=4, code=16), 32, seed, (MEAN, SD), (ones, ones)).network.state_dict()
        for seed in (3, 3, 4)
    )
    decoder = [name for name in plain if name.startswith(perceptual.DECODER)]
    assert decoder == [name for name in one if name.startswith(perceptual.DECODER)] and len(decoder) > 10
    assert all(bits(one[name]) == bits(plain[name]) for name in decoder)
    assert_same_weights(one, again)
    drawn = {name for name in one if one[name].is_floating_point() and one[name].unique().numel() > 1}
    kept = {name for name in one if bits(one[name]) == bits(other[name])}
    assert not drawn & kept and {"stem.weight", "gather.weight", "encoder.5.qkv.weight"} <= drawn


def test_recomputed_activations_give_the_same_gradients():
    found = []
    for recompute in (False, True):
        model, count = network().train(), 0

        def counted(*arguments):
            nonlocal count
            count += 1

        for block in model.modules():
            if isinstance(block, Block):
                block.recompute = recompute
            if isinstance(block, Transformer):
                block.norm1.register_forward_hook(counted)
        model(pairs()).div(MEAN.view(2, 1, 1, 1)).square().sum().backward()
        assert count == (12 if recompute else 6)
        found.append({name: bits(p.grad) for name, p in model.named_parameters()})
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def home(recorded, tmp_path_factory):
    """A project to work in, which has the small file, its lifts and its tokens."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "data"):
        (folder / name).mkdir()
    (folder / "pyproject.toml").touch()
    shutil.copy(recorded, dataset.location(DATA, folder / "data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "ProcessPoolExecutor", Inline)
        patch.setattr(simulate, "_pace", lambda shard: 1.0)
        for arm in (TOKENS, CODE):
            lifts.prepare(DATA, arm["lift"], folder / "data")
        patch.chdir(folder)
        patch.setattr(simulate, "made", lambda *arguments: pytest.fail("simulated"))
        yield folder


def lifted(arm="tokens", **changes):
    return tiny(**{"task": "reconstruct", "data": DATA, "epochs": 3} | ARMS[arm] | changes)


def taught(c, seed=5):
    """In place of the autoencoder of a run: one that is not trained, of the data's standard; None where none is asked.

    Its running statistics are no others' either.
    """
    if not (plain := perceptual.teacher_config(c)):
        return None
    standard = dataset.standard(dataset.load(c.data).volumes("train", dtype=torch.float16))
    teacher = inference.network(plain, *standard)
    with torch.no_grad():
        for i, value in enumerate(teacher.network.state_dict().values()):
            if value.is_floating_point():
                value += 0.1 * random(*value.shape, seed=100 * seed + i).abs()
    return teacher


@pytest.fixture(scope="module")
def undisturbed(home, one_thread, tmp_path_factory):
    """`undisturbed(arm)`: configuration, folder, history; trained when first asked for."""
    found = {}

    def run(arm):
        if arm not in found:
            c, folder = lifted(arm), tmp_path_factory.mktemp("run")
            found[arm] = c, folder, trainer.fit(c, folder, teacher=taught(c))
        return found[arm]

    return run


@pytest.mark.parametrize("arm", ARMS)
def test_stopped_run_ends_with_the_same_bits(arm, tmp_path, undisturbed, monkeypatch):
    """A decoder that was given is not given again."""
    c, plain, count = undisturbed(arm)[0], optim.step, itertools.count()

    def step_or_stop(*arguments):
        if next(count) == 4:
            raise Stop
        plain(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(optim, "step", step_or_stop)
        trainer.fit(c, tmp_path, save_every=0, teacher=taught(c))
    assert len(checkpoint.load(tmp_path / "last.pt", c.digest())["epochs"]) == 1
    assert_same_run((c, tmp_path, trainer.fit(c, tmp_path, teacher=taught(c))), undisturbed(arm))


def stored(part):
    """The file's tokens of one part (P, 2, 13, 16, 1, 1)."""
    data = dataset.load(DATA)
    with store.File(lifts.prepare(DATA, TOKENS["lift"], data.path.parent)[0]) as file:
        return torch.from_numpy(file.raw("tokens")[data.labels == ("train", "validation", "test").index(part)])


def test_samples_are_the_stored_tokens(home):
    """Of every draw in training, draw 0 in judgement; without fractions, for tokens have no voxels."""
    c, data = lifted(), dataset.load(DATA)
    train, test = (samples.of(c, data, part) for part in ("train", "test"))
    assert torch.equal(train.lifts, stored("train")) and train.lifts.dtype == torch.float32
    assert torch.equal(test.frozen(), stored("test")[:, 0]) and test.lifts.shape[1] == 1
    chosen, draws = torch.tensor([3, 0, 7]), set()
    for step in range(12):
        seen, truth = train.drawn(chosen, step)
        assert torch.equal(truth, train.truth[chosen]) and seen.shape == (3, len(TOKEN), 16, 1, 1)
        for row, phantom in zip(seen, chosen, strict=True):
            draws |= {r for r in range(2) if torch.equal(row, train.lifts[phantom, r])}
    assert draws == {0, 1}
    mean, sd = samples.standard(train)
    flat = train.lifts.double().transpose(2, 3).reshape(-1, len(TOKEN)).numpy()
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sd, np.maximum(flat.std(0), 1e-3), rtol=1e-3)


def test_judgement_is_that_of_the_frozen_tokens(undisturbed):
    """Errors recomputed in numpy from the stored draw 0; skill against the medium that its tokens name."""
    c, folder, history = undisturbed("tokens")
    data, x = dataset.load(DATA), stored("test")[:, 0]
    truth, fraction = data.volumes("test").numpy().astype("f8"), samples.fractions(data, "test").numpy().astype("f8")
    with torch.no_grad():
        found = inference.trained(c, folder)(x).numpy().astype("f8")
    fitted = x[:, -2:, 0].numpy().astype("f8")[..., None] * fraction
    inside = data.tissue("test").numpy().reshape(len(x), 1, -1)
    own, reference = (((v - truth) ** 2).reshape(len(x), 2, -1) * inside for v in (found, fitted))
    expected = 1 - own.sum(-1) / reference.sum(-1)
    table = history.metrics[(history.metrics.checkpoint == "last") & (history.metrics.metric == "skill_fitted")]
    got = table.set_index(["phantom", "channel"]).value.unstack()[["mua", "musp"]].to_numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4)


def test_command_answers_as_the_judgement_did(undisturbed):
    """From the file of readings; and with every pair, of which there are more than in training."""
    c, folder, _ = undisturbed("tokens")
    data = dataset.load(DATA)
    expected = inference.predict(inference.trained(c, folder), samples.of(c, data, "test").frozen())
    known, models = reconstruct.networks([folder / "last.pt"])
    for p, index in list(enumerate(np.flatnonzero(data.labels == 2)))[:2]:
        found = reconstruct.reconstruct(reconstruct.from_dataset(data.path, int(index), known), known, models)
        np.testing.assert_allclose(found.mean, expected[p], rtol=1e-3, atol=1e-6)
        every = reconstruct.from_dataset(data.path, int(index), known, every=True)
        more = reconstruct.reconstruct(every, known, models)
        assert (found.pairs, more.pairs) == (16, 24) and not np.allclose(more.mean, found.mean, rtol=1e-5)


def test_network_learns_what_eight_phantoms_tokens_say(home, tmp_path):
    """With another phantom's tokens it does worse."""
    c = lifted(data=DATA.model_copy(update={"train": 8}), epochs=60, model__width=4, optim__lr=3e-3, training__batch=4)
    loss = trainer.fit(c, tmp_path).epochs.train_loss
    part, model = samples.of(c, dataset.load(c.data), "train"), inference.trained(c, tmp_path)
    truth, x = part.truth.float(), part.frozen()
    own, other = (
        ((inference.predict(model, seen) - truth) / truth.amax((0, 2, 3, 4), keepdim=True)).square().mean().sqrt()
        for seen in (x, x.roll(1, 0))
    )
    assert loss.iloc[-5:].mean() < 0.7 * loss.iloc[0] and own < 0.85 * other, (own, other)


def test_study_trains_and_judges_tokens(home, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    run = study.Run(config=lifted(epochs=1), data="x+y", store=tmp_path)
    study.compute({("tokens", 0): run})
    assert run.done() and run.teacher() is None
    table = run.result().metrics
    assert {"nrmse", "skill_fitted_covered"} <= set(table.metric) and table[table.metric == "nrmse"].value.gt(0).all()


@pytest.mark.parametrize("arm", ["code", "tokens, pretrained"])
def test_decoder_is_the_autoencoders_to_begin_with(arm, home, tmp_path, monkeypatch):
    """Bit for bit, its statistics too, and nothing of the rest; every weight of it is trained afterwards."""
    c, plain, begun = lifted(arm), optim.optimiser, {}

    def noted(model, *arguments):
        begun.update({name: value.clone() for name, value in model.network.state_dict().items()})
        return plain(model, *arguments)

    monkeypatch.setattr(optim, "optimiser", noted)
    teacher = taught(c).network.state_dict()
    trainer.fit(c, tmp_path, teacher=taught(c))
    mine = inference.network(c).network.state_dict()
    decoder = {name for name in begun if name.startswith(("from_code.", "decoder.", "head."))}
    assert decoder == {name for name in teacher if name.startswith(("from_code.", "decoder.", "head."))}
    for name, value in begun.items():
        assert bits(value) == bits((teacher if name in decoder else mine)[name]), name
    values = [name for name, value in begun.items() if value.is_floating_point()]
    shared = [name for name in values if name in teacher and name not in decoder]
    assert not [name for name in shared if bits(begun[name]) == bits(teacher[name])]
    ended = weights(c, tmp_path)
    assert not [name for name in decoder if name in values and bits(ended[f"network.{name}"]) == bits(begun[name])]


def test_autoencoder_is_the_same_run_whatever_arm_and_seed_it_serves(home):
    """And that which a perceptual term would look through, on the same volumes."""
    found = perceptual.teacher_config(lifted("code"))
    for other in (
        lifted("tokens, pretrained"),
        lifted("code", seed=7),
        lifted("code", model__attention=config.Attention(kind="se", side="decoder", stages=(1,))),
        lifted("code", augment=config.Augmentation(rotation=0, elastic=0, noise=0, symmetry=True)),
        tiny(data=DATA, loss=Loss(perceptual=0.5, features=Features(epochs=2, batch=8))),
    ):
        assert perceptual.teacher_config(other) == found
    assert (found.task, found.lift, found.data, found.seed) == ("autoencode", None, DATA, 2000)
    assert (found.model, found.training.epochs) == (Model(name="stage1", width=2, code=8), 2)
    assert found.optim == config.ONECYCLE and perceptual.teacher_config(lifted("tokens")) is None


def test_what_an_arm_adds_to_the_decoder_starts_as_it_would(home):
    c = lifted("code", model__depth=2, model__dropout=0.1)
    model = inference.network(c)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    perceptual.start(c, model, taught(c))
    added = [name for name in before if name.startswith("added.decoder")]
    assert added and all(bits(model.network.state_dict()[name]) == bits(before[name]) for name in added)


def test_pretrained_decoder_needs_its_network(home, tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.pretrained: its network must be given; a study trains it$"):
        trainer.fit(lifted("code"), tmp_path)


def test_study_trains_the_autoencoder_once_for_all_seeds_and_arms(home, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    fitted, fit = [], trainer.fit

    def fit_and_note(c, *arguments, **options):
        fitted.append((c.task, c.seed, options.get("teacher")))
        return fit(c, *arguments, **options)

    monkeypatch.setattr(trainer, "fit", fit_and_note)
    wanted = {
        (arm, seed): study.Run(config=lifted(arm, seed=seed, epochs=1), data="x+y", store=tmp_path)
        for arm, seed in (("code", 0), ("code", 1), ("tokens, pretrained", 0))
    }
    study.compute(wanted)
    assert [entry[:2] for entry in fitted] == [("autoencode", 2000), *(("reconstruct", n) for n in (0, 1, 0))]
    teacher = wanted["code", 0].teacher()
    assert teacher.data == "x" and teacher.done()
    for *_, given in fitted[1:]:
        assert_same_weights(given.state_dict(), weights(teacher.config, teacher.folder()))


def test_autoencoder_that_fails_stops_only_those_that_need_it(home, tmp_path, monkeypatch):
    def fit(c, *arguments, **options):
        if c.task == "autoencode":
            raise RuntimeError("no memory")
        return histories.fit(c, *arguments, **options)

    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(trainer, "fit", fit)
    plain, begun = (study.Run(config=lifted(arm, epochs=1), data="0", store=tmp_path) for arm in ("tokens", "code"))
    with pytest.raises(study.StudyError, match=r"^autoencoder of b, seed 0: no memory$"):
        study.compute({("a", 0): plain, ("b", 0): begun})
    assert plain.done() and not begun.done()


@pytest.mark.parametrize("source", ["trained", "random"])
def test_reconstruction_too_may_be_judged_through_features(source, home):
    """Of an autoencoder of volumes, whatever the run's network sees."""
    numbers = {"epochs": 2, "batch": 8} if source == "trained" else {}
    c = lifted(loss=Loss(perceptual=0.5, features=Features(source=source, **numbers)))
    model = inference.network(c, MEAN, SD)
    look = perceptual.features(c, model.standard, taught(c), "cpu", torch.float32)
    volumes = dataset.load(DATA).volumes("validation")
    assert [len(found) for found in look(volumes)] == [len(volumes)] * 2
