"""Maps against tumours: areas and precisions by their definitions, maps in their places, networks left as they were."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import ndimage
from scipy import stats as scipy_stats
from torch import nn

from dotlib import localisation
from dotlib.config import Attention, Model
from dotlib.data import dataset, phantoms
from dotlib.localisation import GRADIENT, INPUT, MAP, MUA, NORM, RANDOM, auc_and_ap
from dotlib.models import attention
from dotlib.models.autoencoder import Autoencoder, build
from dotlib.models.blocks import Standard, initialise

STAGES = ["encoder2", "encoder1"]
TABLES = phantoms.sample("default", 3, 0)
VOLUMES, LABELS = phantoms.rasterise(TABLES, 16), phantoms.labels(TABLES, 16).numpy()


def network(kind="sigmoid", seed=0, grid=16):
    gates = Attention(kind=kind) if kind else None
    config = Model(name="stage1", width=4, code=16, attention=gates)
    return build(config, grid, seed, *dataset.standard(VOLUMES))


def drawn(n, levels, seed=0):
    """Scores of few levels, so that many are tied, and which are positive."""
    rng = np.random.default_rng(seed)
    return rng.integers(levels, size=(3, n)).astype(np.float32), rng.random(n) < 0.3


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auc_is_the_share_of_pairs_in_the_right_order(levels):
    scores, positive = drawn(60, levels)
    found = auc_and_ap(scores, positive)[0]
    for row, auc in zip(scores, found, strict=True):
        pairs = [(a > b) + 0.5 * (a == b) for a, b in product(row[positive], row[~positive])]
        assert auc == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("levels", [3, 10_000])
def test_auc_is_the_statistic_of_mann_and_whitney_and_that_of_ranks(levels):
    scores, positive = drawn(500, levels)
    k, n = positive.sum(), len(positive)
    for row, auc in zip(scores, auc_and_ap(scores, positive)[0], strict=True):
        u = scipy_stats.mannwhitneyu(row[positive], row[~positive]).statistic
        ranks = scipy_stats.rankdata(row)[positive].sum() - k * (k + 1) / 2
        assert auc == pytest.approx(u / (k * (n - k))) == pytest.approx(ranks / (k * (n - k)))


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_average_precision_is_precision_times_the_recall_that_each_threshold_adds(levels):
    scores, positive = drawn(80, levels)
    for row, ap in zip(scores, auc_and_ap(scores, positive)[1], strict=True):
        total, recall = 0.0, 0.0
        for threshold in np.unique(row)[::-1]:
            above = row >= threshold
            reached = (above & positive).sum() / positive.sum()
            total, recall = total + (reached - recall) * positive[above].mean(), reached
        assert recall == 1 and ap == pytest.approx(total)


def test_hand_computable_case():
    scores, positive = np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([True, False, True, False])
    auc, ap = auc_and_ap(scores, positive)
    assert auc.tolist() == [0.75] and ap.tolist() == pytest.approx([(1 + 2 / 3) / 2])


def test_score_that_is_everywhere_the_same_knows_nothing():
    positive = np.arange(50) < 7
    assert [x.item() for x in auc_and_ap(np.full((1, 50), 0.3, np.float32), positive)] == pytest.approx([0.5, 7 / 50])


def test_order_alone_counts_and_its_reverse_is_one_minus_the_area():
    scores, positive = drawn(300, 40)
    auc, ap = auc_and_ap(scores, positive)
    assert [x.tolist() for x in auc_and_ap(np.exp(scores / 10), positive)] == [auc.tolist(), ap.tolist()]
    assert auc_and_ap(-scores, positive)[0] == pytest.approx(1 - auc)


@pytest.mark.parametrize("positive", [np.zeros(6, bool), np.ones(6, bool), np.zeros(0, bool)])
def test_without_tumour_or_without_other_tissue_there_is_no_number(positive):
    found = auc_and_ap(np.zeros((2, len(positive)), np.float32), positive)
    assert np.isnan(found).all() and np.shape(found) == (2, 2)


def test_score_that_is_no_number_has_none():
    scores = np.array([[1.0, np.nan, 2.0], [1.0, 0.0, 2.0]])
    assert np.isnan(auc_and_ap(scores, np.array([True, False, False]))[0]).tolist() == [True, False]


# --- what is scored


@pytest.mark.parametrize("kind", attention.KINDS)
def test_what_enters_a_gate_is_what_it_makes_the_features_of(kind):
    model = network(kind).eval()
    entered = localisation.entering(model, VOLUMES, STAGES)
    with torch.no_grad():
        features = model.features(VOLUMES)
        for stage in STAGES:
            torch.testing.assert_close(localisation.gate_of(model, stage)(entered[stage]), features[stage])


def test_stage_without_a_gate_gives_what_leaves_it():
    model = network(None).eval()
    entered = localisation.entering(model, VOLUMES, STAGES)
    with torch.no_grad():
        features = model.features(VOLUMES)
    assert all(torch.equal(entered[stage], features[stage]) for stage in STAGES)


def test_kinds_without_a_map_and_networks_without_gates_have_the_other_scores():
    others = {*product(STAGES, (NORM, RANDOM)), (INPUT, GRADIENT), (INPUT, MUA)}
    for kind in (None, "se", "conv"):
        assert set(localisation.scores(network(kind), VOLUMES, STAGES, 2)) == others
    assert {(stage, MAP) for stage in STAGES} <= set(localisation.scores(network("cbam"), VOLUMES, STAGES, 2))


def between(values):
    """A map (d, d, d) on the volume's grid, linear in each direction, as scipy interpolates."""
    place = np.stack(np.meshgrid(*[(np.arange(16) + 0.5) * len(values) / 16 - 0.5] * 3, indexing="ij"))
    return ndimage.map_coordinates(values.double().numpy(), place, order=1, mode="nearest")


@pytest.mark.parametrize("kind", ["sigmoid", "cbam", "attention-gate"])
def test_map_is_the_networks_own_between_its_voxels(kind):
    model = network(kind).eval()
    with torch.no_grad():
        own = model.maps(VOLUMES)
    found = localisation.scores(model, VOLUMES, STAGES, 2)
    for stage in STAGES:
        for p, values in enumerate(own[stage][:, 0]):
            np.testing.assert_allclose(found[stage, MAP][p, 0], between(values), rtol=1e-4)


def test_upsampled_map_stays_in_its_place(monkeypatch):
    """A map that is the place of its voxels' centres, in mm, is that of the volume's: but beyond the outer ones."""

    def centres(n):
        return ((torch.arange(n) + 0.5) * phantoms.CUBE / n - phantoms.CUBE / 2).view(1, 1, n, 1, 1)

    monkeypatch.setattr(
        attention.SpatialGate, "map", lambda self, x: centres(x.shape[-1]).expand(len(x), 1, *x.shape[2:])
    )
    found = localisation.scores(network(), VOLUMES, STAGES, 1)
    for stage, n in zip(STAGES, (4, 2), strict=True):
        reach = (phantoms.CUBE - phantoms.CUBE / n) / 2
        expected = centres(16).clamp(-reach, reach).expand(3, 1, 16, 16, 16)
        torch.testing.assert_close(found[stage, MAP], expected, rtol=1e-5, atol=1e-4)


class Linear(nn.Module):
    """A network whose code is W z."""

    def __init__(self, n):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, n, generator=torch.Generator().manual_seed(0)))

    def encode(self, z):
        return z.flatten(1) @ self.matrix.T


def test_gradient_of_a_linear_code_is_twice_its_gram_matrix_times_the_standardised_volume():
    mean, sd = torch.tensor([0.004, 0.9]), torch.tensor([0.002, 0.4])
    model, x = Autoencoder(Linear(2 * 3**3), Standard(mean, sd)), torch.rand(2, 2, 3, 3, 3)
    z = ((x - mean.view(1, 2, 1, 1, 1)) / sd.view(1, 2, 1, 1, 1)).flatten(1).double()
    gram = model.network.matrix.detach().double()
    expected = (2 * z @ gram.T @ gram).abs().view(2, 2, 3, 3, 3).sum(1, keepdim=True)
    torch.testing.assert_close(localisation.gradient(model, x).double(), expected, rtol=1e-4, atol=1e-3)


def test_random_gates_are_the_specified_gate_with_other_weights_the_same_for_every_network():
    model, entered = network(None), localisation.entering(network(None), VOLUMES, STAGES)
    found = localisation.scores(model, VOLUMES, STAGES, 3)
    for stage in STAGES:
        assert found[stage, RANDOM].shape[1] == 3
        for draw in range(3):
            gate = initialise(attention.SpatialGate(entered[stage].shape[1]), draw)
            w1, w2 = (layer.weight.detach()[:, :, 0, 0, 0] for layer in (gate.squeeze, gate.score))
            inner = torch.einsum("oc,cdhw->odhw", w1, entered[stage][1]) + gate.squeeze.bias.view(-1, 1, 1, 1)
            score = torch.einsum("oc,cdhw->odhw", w2, inner.clamp(min=0))[0] + gate.score.bias
            by_hand = between((1 / (1 + torch.exp(-score))).detach())
            np.testing.assert_allclose(found[stage, RANDOM][1, draw], by_hand, rtol=1e-4)
        assert not np.allclose(found[stage, RANDOM][:, 0], found[stage, RANDOM][:, 1], rtol=1e-2)


def test_phantoms_do_not_see_each_other():
    model = network()
    together = localisation.scores(model, VOLUMES, STAGES, 2)
    alone = localisation.scores(model, VOLUMES[1:2], STAGES, 2)
    for key in together:
        torch.testing.assert_close(together[key][1:2], alone[key], rtol=1e-4, atol=1e-5)


def state(model):
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    modes = [module.training for module in model.modules()]
    wanted = [(p.requires_grad, p.grad) for p in model.parameters()]
    return hooks, modes, wanted, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [2, 3])
def test_nothing_is_left_behind_on_the_network(training, channels):
    """Neither after a pass nor after one that fails: no hook, gradient, mode or statistic."""
    model = network("random").train(training)
    before, volumes = state(model), VOLUMES[:, :1].expand(-1, channels, -1, -1, -1)
    if channels == 2:
        localisation.scores(model, volumes, STAGES, 2)
    else:
        with pytest.raises(RuntimeError):
            localisation.scores(model, volumes, STAGES, 2)
    after = state(model)
    assert after[0] == 0 and before[:3] == after[:3] and all(grad is None for _, grad in after[2])
    assert all(torch.equal(value, after[3][name]) for name, value in before[3].items())


# --- how it is judged


def test_hard_volumes_show_their_tumours_and_are_judged_in_the_tissue_alone():
    tables = np.concatenate([TABLES[:2], phantoms.without_inclusions(TABLES[2:])])
    labels = phantoms.labels(tables, 16).numpy()
    hard = phantoms.hard(tables, 16)[:, :1].float()
    hard[:, 0][torch.from_numpy(labels == 0)] = 100.0  # whatever lies in the air
    rows = localisation.judge({(INPUT, MUA): hard}, labels, first=5)
    assert rows["phantom"].tolist() == [5, 6, 7]
    assert rows[["auc", "ap"]].to_numpy()[:2].tolist() == [[1, 1], [1, 1]] and rows.loc[2, ["auc", "ap"]].isna().all()
    expected = [(label > 1).sum() / (label > 0).sum() for label in labels]
    assert rows["prevalence"].tolist() == pytest.approx(expected) and expected[2] == 0


def test_several_inclusions_are_one_target():
    labels = np.array([[1, 1, 2, 3, 0]]).reshape(1, 5, 1, 1)
    score = torch.tensor([0.1, 0.2, 0.9, 0.3, 5.0]).view(1, 1, 5, 1, 1)
    assert localisation.judge({("encoder1", NORM): score}, labels)["auc"].tolist() == [1.0]


def test_table_has_a_row_a_score_draw_and_phantom_whatever_the_batch(monkeypatch):
    models = {("sigmoid-2", 1): network("sigmoid"), ("stage1-onecycle", 1): network(None)}
    whole = localisation.table(models, VOLUMES, LABELS, STAGES)
    monkeypatch.setattr(localisation, "BATCH", 2)
    parts = localisation.table(models, VOLUMES, LABELS, STAGES)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-3)
    assert list(whole) == localisation.COLUMNS
    counts = whole.groupby(["arm", "score"]).size()
    n = len(LABELS)
    assert counts["sigmoid-2", MAP] == counts["sigmoid-2", NORM] == 2 * n and counts["sigmoid-2", MUA] == n
    assert counts["stage1-onecycle", RANDOM] == 2 * n * localisation.DRAWS and ("stage1-onecycle", MAP) not in counts
    assert not whole.duplicated(["arm", "seed", "stage", "score", "draw", "phantom"]).any()


def test_no_network_gives_an_empty_table():
    assert localisation.table({}, VOLUMES, LABELS, STAGES).columns.tolist() == localisation.COLUMNS


def test_networks_are_those_of_the_last_checkpoint_of_runs_that_ended(monkeypatch, reference, tmp_path):
    config, folder, history = reference["one cycle, bf16"]
    run = SimpleNamespace(config=config, folder=lambda: folder, result=lambda: history)
    failed = SimpleNamespace(config=config, folder=lambda: folder, result=lambda: SimpleNamespace(failed="loss inf"))
    monkeypatch.setattr(localisation.study, "members", lambda *a: {("a", 0): run, ("a", 1): failed})
    found = localisation.networks("4.4-shown", "smoke", 2, tmp_path)
    assert list(found) == [("a", 0)] and not found["a", 0].training
    tiny.assert_same_weights(found["a", 0].state_dict(), tiny.weights(config, folder))


def test_test_part_is_that_of_the_split_from_the_first_on(monkeypatch):
    config = tiny.tiny().data.model_copy(update={"phantoms": 48})
    data = dataset.load(config)
    monkeypatch.setattr(localisation, "MOST", 5)
    volumes, labels = localisation.test_part(data)
    assert torch.equal(volumes, data.volumes("test")[:5]) and len(data.part("test")) > 5
    assert np.array_equal(labels > 0, data.tissue("test")[:5].numpy())


def test_largest_inclusion_is_shown_at_a_voxel_of_its_own():
    labels = np.ones((8, 8, 8), np.uint8)
    labels[0, 0, 0] = 2
    labels[2:7, 2:7, 2:7] = 3
    labels[3:6, 3:6, 3:6] = 4  # a later one, in its middle: the centroid is no voxel of the largest
    at = localisation.largest(labels)
    assert labels[at] == 3 and np.abs(np.array(at) - 4).max() == 2
    with pytest.raises(ValueError, match="no inclusion"):
        localisation.largest(np.ones((4, 4, 4), np.uint8))
