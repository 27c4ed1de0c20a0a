"""What a perceptual term looks through: frozen, no part of the run, the same for every seed."""

import histories
import pytest
import torch
from tiny import Inline, assert_same_weights, tiny, weights

from dotlib import checkpoint, config, inference, perceptual, study, trainer
from dotlib.config import Attention, ConfigError, Features, Loss
from dotlib.data import dataset

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINED = Loss(perceptual=0.5, features=Features(epochs=2, batch=8))
RANDOM = Loss(perceptual=0.5, features=Features(source="random"))


def standard_of(c):
    return inference.network(c, *dataset.standard(dataset.load(c.data).volumes("train"))).standard


def looked(c, teacher=None, on="cpu", dtype=torch.float32):
    return perceptual.features(c, standard_of(c), teacher, on, dtype)


def test_teacher_is_the_same_run_whatever_arm_and_seed_it_serves():
    plain = perceptual.teacher_config(tiny(loss=TRAINED))
    for changes in (
        {"seed": 7},
        {"augment": config.Augmentation()},
        {"model__dropout": 0.1},
        {"model__name": "legacy"},
        {"optim__lr": 1e-5},
        {"training__ema": 0.9},
        {"test": config.Data(phantoms=24, grid=16, seed=8)},
    ):
        assert perceptual.teacher_config(tiny(loss=TRAINED, **changes)) == plain
    assert (plain.seed, plain.loss, plain.model.name, plain.training.epochs) == (2000, Loss(), "stage1", 2)
    assert plain.data == tiny().data  # trained on the run's own training split
    assert perceptual.teacher_config(tiny(loss=TRAINED, data__seed=3)) != plain
    assert perceptual.teacher_config(tiny()) is perceptual.teacher_config(tiny(loss=RANDOM)) is None


def test_features_are_the_frozen_networks_stages():
    c = tiny(loss=RANDOM)
    volumes = dataset.load(c.data).volumes("validation")
    network = inference.network(config.replace(c, {"loss": Loss(), "seed": 2000}), *buffers(c)).eval()
    expected = list(network.features(volumes).values())
    found = looked(c)(volumes)
    assert len(found) == len(expected) == 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_random_features_are_a_plain_networks_whatever_the_arm_has():
    """The control's network does not follow the architecture that is judged."""
    volumes = dataset.load(tiny().data).volumes("validation")
    more = {
        "model__name": "hybrid",
        "model__depth": 2,
        "model__dropout": 0.1,
        "model__attention": Attention(kind="sigmoid", stages=(1,)),
    }
    plain, other = (looked(tiny(loss=RANDOM, **changes))(volumes) for changes in ({}, more))
    assert len(plain) == len(other) and all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def buffers(c):
    return dataset.standard(dataset.load(c.data).volumes("train"))


def test_no_gradient_reaches_the_features_but_one_passes_through_them():
    c = tiny(loss=TRAINED)
    teacher = inference.network(perceptual.teacher_config(c), *buffers(c))
    x = dataset.load(c.data).volumes("validation").requires_grad_()
    sum(f.sum() for f in looked(c, teacher)(x)).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters()) and not teacher.training


def test_features_do_not_drift_while_a_run_trains(tmp_path):
    """Neither weights nor running statistics."""
    c = tiny(loss=TRAINED)
    teacher = inference.network(perceptual.teacher_config(c), *buffers(c))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer.fit(c, tmp_path, teacher=teacher)
    assert_same_weights(teacher.state_dict(), before)
    assert not any("teacher" in name for name in checkpoint.load(tmp_path / "last.pt", c.digest())["model"])


def test_trained_features_need_their_network(tmp_path):
    with pytest.raises(ConfigError, match="'trained': their network must be given; a study trains it"):
        trainer.fit(tiny(loss=TRAINED), tmp_path)


def test_study_trains_the_features_once_for_all_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    fitted, fit = [], trainer.fit

    def fit_and_note(c, *arguments, **options):
        fitted.append((c.seed, options.get("teacher")))
        return fit(c, *arguments, **options)

    monkeypatch.setattr(trainer, "fit", fit_and_note)
    wanted = {
        ("a", seed): study.Run(config=tiny(loss=TRAINED, seed=seed, epochs=1), data="x+y", store=tmp_path)
        for seed in range(2)
    }
    study.compute(wanted)
    assert [seed for seed, _ in fitted] == [2000, 0, 1] and fitted[0][1] is None
    teacher = wanted["a", 0].teacher()
    assert teacher.data == "x" and teacher.done()
    for _, given in fitted[1:]:
        assert_same_weights(given.state_dict(), weights(teacher.config, teacher.folder()))


def test_arms_of_other_phantoms_have_features_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    a, b = (tiny(loss=TRAINED, epochs=1, data__seed=n) for n in (0, 1))
    wanted = {(str(n), 0): study.Run(config=c, data=f"d{n}", store=tmp_path) for n, c in enumerate((a, b))}
    study.compute(wanted)
    teachers = [run.teacher() for run in wanted.values()]
    assert teachers[0].folder() != teachers[1].folder()
    assert all(run.done() for run in teachers)


def test_teacher_that_fails_stops_only_those_that_need_it(tmp_path, monkeypatch):
    def fit(config, *arguments, **options):
        if config.seed == TRAINED.features.seed:
            raise RuntimeError("no memory")
        return histories.fit(config, *arguments, **options)

    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(trainer, "fit", fit)
    configs = (tiny(loss=loss, epochs=1) for loss in (Loss(), TRAINED))
    plain, taught = (study.Run(config=c, data="0", store=tmp_path) for c in configs)
    with pytest.raises(study.StudyError, match=r"^autoencoder of b, seed 0: no memory$"):
        study.compute({("a", 0): plain, ("b", 0): taught})
    assert plain.done() and not taught.done()


def test_users_program_is_looked_through(tmp_path):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv3d(2, 3, 2, 2)

        def forward(self, x):
            y = self.conv(x)
            return y, y.mean((2, 3, 4))

    own, x = Twice(), torch.rand(4, 2, 16, 16, 16)
    see = looked(exported(own.eval(), x, tmp_path))
    for few in (x, x[:3]):
        found = see(few)
        assert len(found) == 2 and all(torch.allclose(a, b) for a, b in zip(found, own(few), strict=True))


def exported(own, x, folder, dynamic=True):
    """A configuration whose loss looks through this network."""
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(own, (x,), dynamic_shapes=shapes), folder / "own.pt2")
    return tiny(loss=Loss(perceptual=0.5, features=Features(source=str(folder / "own.pt2"))))


@pytest.mark.parametrize(
    ("layer", "training", "dynamic", "why"),
    [
        (torch.nn.BatchNorm3d(2), True, True, "exported in training mode"),
        (torch.nn.Dropout(0.5), True, True, "exported in training mode"),
        (torch.nn.BatchNorm3d(2), False, True, ""),
        (torch.nn.Dropout(0.5), False, True, ""),
        (torch.nn.Conv3d(2, 3, 2), False, False, "exported for batches of 4; one whose batch axis is dynamic"),
    ],
)
def test_program_that_would_not_stay_as_it_is_is_refused(tmp_path, layer, training, dynamic, why):
    x = torch.rand(4, 2, 8, 8, 8)
    c = exported(torch.nn.Sequential(layer).train(training), x, tmp_path, dynamic)
    if why:
        with pytest.raises(ConfigError, match=f"own.pt2: {why}"):
            looked(c)
    else:
        see = looked(c)
        assert torch.equal(see(x)[0], see(x)[0])


@pytest.mark.parametrize("made", [False, True])
def test_path_without_a_program_is_one_line(tmp_path, made):
    path = tmp_path / "own.pt2"
    if made:
        path.write_bytes(b"no program")
    with pytest.raises(ConfigError) as error:
        looked(tiny(loss=Loss(perceptual=0.5, features=Features(source=str(path)))))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_run_of_another_program_is_another_run(tmp_path):
    path, seen = tmp_path / "own.pt2", set()
    c = tiny(loss=Loss(perceptual=0.5, features=Features(source=str(path))))
    for content in (b"a", b"b"):
        path.write_bytes(content)
        seen.add(study.data_of(c, dataset.key))
    assert len(seen) == 2
