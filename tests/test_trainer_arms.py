"""What sections 4.4 and 4.5 ask of a run: several terms, augmentation, dropout, other phantoms to train and judge."""

import numpy as np
import pytest
import torch
from tiny import EVERYTHING, assert_same_weights, tiny, weights

from dotlib import config, evaluation, inference, losses, trainer
from dotlib.data import augment, dataset, lifts, noise, phantoms, probe, samples, sampling, split
from dotlib.data.store import StoreError

pytestmark = pytest.mark.usefixtures("one_thread")
TERMS = ("rmse", "ssim", "perceptual", "gradient")


def test_terms_are_logged_one_by_one_and_add_up(reference):
    c, _, history = reference["everything"]
    weighted = sum(getattr(c.loss, name) * history.steps[name] for name in TERMS)
    np.testing.assert_allclose(weighted, history.steps["loss"], rtol=1e-6)
    for part in ("train", "validation"):
        columns = history.epochs[[f"{part}_{name}" for name in TERMS]]
        assert (columns > 0).all(axis=None)
        sums = columns.to_numpy() @ [getattr(c.loss, name) for name in TERMS]
        np.testing.assert_allclose(sums, history.epochs[f"{part}_loss"], rtol=1e-6)
    means = history.steps["ssim"].groupby(np.arange(len(history.steps)) // 2).mean()
    np.testing.assert_allclose(means, history.epochs["train_ssim"], rtol=1e-6)


def test_validation_terms_are_those_of_clean_volumes_under_the_weights(reference):
    """No augmentation, no dropout: the criterion of what the judged network makes of the validation set."""
    c, folder, history = reference["everything"]
    volumes = dataset.load(c.data).volumes("validation", dtype=torch.float16)
    model = inference.trained(c, folder)
    predicted = inference.predict(model, volumes)
    expected = losses.LOSSES["ssim"](predicted, volumes.float(), c.loss.channels)
    assert history.epochs["validation_ssim"].iloc[-1] == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_one_term_has_no_columns_of_its_own(reference):
    history = reference["plateau, fp32"][2]
    assert not {"rmse", "train_rmse", "validation_rmse"} & {*history.steps, *history.epochs}


def given_to_network(monkeypatch, c, folder):
    """What the network is shown in training, step by step, each step's micro-batches joined."""
    seen, plain = [], inference.autoencoder.Autoencoder.forward

    def look(self, x):
        if self.training:
            seen.append(x.detach().clone())
        return plain(self, x)

    monkeypatch.setattr(inference.autoencoder.Autoencoder, "forward", look)
    trainer.fit(c, folder)
    n = c.training.batch // (c.training.micro or c.training.batch)
    trial, steps = seen[:1], seen[1:]
    assert len(trial) == 1 and len(steps) % n == 0
    return [torch.cat(steps[i : i + n]) for i in range(0, len(steps), n)]


def test_augmentation_shows_what_is_sampled_of_seed_and_step(tmp_path, monkeypatch):
    c = tiny(epochs=2, augment=config.Augmentation(), seed=4)
    data = dataset.load(c.data)
    train, bodies = data.volumes("train", dtype=torch.float16), data.bodies("train")
    shown = given_to_network(monkeypatch, c, tmp_path)
    chosen = [few for epoch in range(2) for few in trainer.order(len(train), 4, epoch).split(8)]
    for step, (x, few) in enumerate(zip(shown, chosen, strict=True)):
        expected, _ = augment.apply(augment.sample(c.augment, 8, (4, step)), train[few].float(), bodies[few])
        assert torch.equal(x, expected) and not torch.equal(x, train[few].float())


def test_augmentation_does_not_depend_on_the_micro_batch(tmp_path, monkeypatch):
    whole, parts = (tiny(epochs=2, augment=config.Augmentation(), training__micro=n) for n in (None, 4))
    a = given_to_network(monkeypatch, whole, tmp_path / "whole")
    b = given_to_network(monkeypatch, parts, tmp_path / "parts")
    assert all(map(torch.equal, a, b))


def test_without_deformation_and_noise_nothing_changes(tmp_path):
    still = config.Augmentation(rotation=0, elastic=0, noise=0)
    c, plain = tiny(epochs=2, augment=still), tiny(epochs=2)
    trainer.fit(c, tmp_path / "still"), trainer.fit(plain, tmp_path / "plain")
    assert_same_weights(weights(c, tmp_path / "still"), weights(plain, tmp_path / "plain"))


def test_dropout_is_drawn_anew_each_step_and_by_the_seed(tmp_path, monkeypatch):
    masks, plain = [], torch.nn.Dropout3d.forward

    def look(self, x):
        y = plain(self, x)
        if self.training and x.shape[1] == 16:
            masks.append(y.flatten(2).abs().sum(2) == 0)
        return y

    monkeypatch.setattr(torch.nn.Dropout3d, "forward", look)
    trainer.fit(tiny(epochs=2, model__dropout=0.5), tmp_path / "a")
    first, masks = masks, []
    trainer.fit(tiny(epochs=2, model__dropout=0.5), tmp_path / "b")
    first, masks = first[1:], masks[1:]  # a trial pass comes before
    assert len(first) == len(masks) == 4 and all(map(torch.equal, first, masks))
    assert not torch.equal(first[-1], first[-2])


def test_run_is_judged_on_the_test_set_that_it_names(tmp_path):
    other = config.Data(family="small", phantoms=24, fractions=(4, 1, 1), grid=16, seed=5)
    c = tiny(epochs=1, test=other)
    history, data = trainer.fit(c, tmp_path), dataset.load(other)
    expected = evaluation.judge(inference.trained(c, tmp_path), data)
    last = history.metrics[history.metrics["checkpoint"] == "last"].drop(columns="checkpoint")
    assert last.reset_index(drop=True).equals(expected)
    assert history.info["test"] == data.part_digest("test") != dataset.load(c.data).part_digest("test")
    assert history.info["data"] == dataset.load(c.data).digest
    assert_same_weights(weights(c, tmp_path), weights(plain := tiny(epochs=1), fitted(plain, tmp_path / "plain")))


def fitted(c, folder):
    trainer.fit(c, folder)
    return folder


def test_first_training_phantoms_are_trained_with_and_nothing_else_changes():
    data = config.Data(phantoms=60, fractions=(4, 1, 1), grid=16)
    whole, few = dataset.load(data), dataset.load(data.model_copy(update={"train": 9}))
    assert np.array_equal(few.part("train"), whole.part("train")[:9], equal_nan=True)
    for part in ("validation", "test"):
        assert np.array_equal(few.part(part), whole.part(part), equal_nan=True)
        assert few.part_digest(part) == whole.part_digest(part)
    assert few.digest != whole.digest and dataset.key(data) != dataset.key(data.model_copy(update={"train": 9}))
    with pytest.raises(StoreError, match=r"data\.train 41: at most the 40 of the training part"):
        dataset.load(data.model_copy(update={"train": 41}))


def test_file_serves_every_number_of_training_phantoms(tmp_path):
    data = config.Data(phantoms=6, grid=32, measurements=config.Measurements())
    assert dataset.location(data, tmp_path) == dataset.location(data.model_copy(update={"train": 2}), tmp_path)


def test_more_phantoms_leave_the_first_ones_in_their_parts():
    """So a test set of a small draw is no training phantom of a larger one."""
    small, large = (dataset.load(config.Data(phantoms=n, fractions=(4, 1, 1), grid=16)) for n in (24, 240))
    assert np.array_equal(large.labels[:24], small.labels)
    held, trained = ({row.tobytes() for row in d.part(p)} for d, p in ((small, "test"), (large, "train")))
    assert held and not held & trained


def test_streams_of_random_numbers_are_apart():
    parts = (phantoms, split, probe, noise, augment, sampling, lifts, samples, trainer)
    assert len({*(part.STREAM for part in parts), trainer.DROPOUT}) == len(parts) + 1


def test_every_part_of_a_run_with_everything_is_trained(reference):
    """No weight stays where its initialisation put it."""
    c, folder, _ = reference["everything"]
    assert c.model == EVERYTHING["model"]
    start = inference.network(c).state_dict()
    moved = [name for name, value in weights(c, folder).items() if not torch.equal(value, start[name])]
    assert all(name in moved for name in start if name.endswith("weight"))
