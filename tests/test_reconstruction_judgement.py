"""Judged reconstructions: who is judged where, what each method makes of a set, and the tables that come of it."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from judged import errors, judged, places
from seen import BASE, MUA, MUSP, made_up, table

from dotlib import (
    arms,
    checkpoint,
    config,
    evaluation,
    inference,
    machine,
    reconstruction_records,
    reconstruction_times,
)
from dotlib import reconstruction_judgement as judgement
from dotlib.config import CHANNELS, LIFTED
from dotlib.data import classical, phantoms, samples
from dotlib.reconstruction_judgement import (
    BEST,
    ENSEMBLE,
    ENSEMBLES,
    FITTED,
    LESIONS,
    RUN,
    SHUFFLED,
    Judge,
    as_lifted,
    shuffled,
)
from dotlib.reconstruction_judgement import (
    LIFTED as AS_LIFTED,
)
from dotlib.reconstruction_records import COLUMNS, TRUTH
from dotlib.reconstruction_scores import scores
from dotlib.reconstruction_sets import COVERAGES, FRESH, HOME, PATTERNS, THRESHOLDS, views
from dotlib.reconstruction_tuning import Setting
from dotlib.reconstructions import CONTROL, NETWORK

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = config.PROFILES["quick"].base.data
SNR, LONGER = "reconstruct-snr", "reconstruct-longer"
KEYS = [(NETWORK, 0), (NETWORK, 1), (CONTROL, 0), (SNR, 0), (LONGER, 0)]
SETTINGS = {"tikhonov": Setting(2.0, 8.0), "gaussian": Setting(3.0, 5.0)}
BRIGHT = ((0, 0, 12), 8, 0.010, 1.5)


class Made:
    """A run that is finished: an arm of the smoke profile, and what its result says."""

    def __init__(self, arm, seed, failed=""):
        self.config, self.data = arms.arm(arm, "smoke", seed), f"data of {arm}"
        info = {"config_digest": self.config.digest(), "code": "c0de", "test": "7e57", "parameters": 9}
        self.history = types.SimpleNamespace(failed=failed, info=info)
        self.asked = f"{arm} {seed}"

    def folder(self):
        return self.asked

    def result(self):
        return self.history


def network(run):
    """In the place of a network: 1 + a tenth of the seed, times mua0 and musp0 of what is seen, wherever it is tissue.

    The control sees nothing in musp.
    """

    def answer(seen):
        level = (1 + run.config.seed / 10) * seen[:, 6:8]
        if run.config.lift.kind == "none":
            level = level * torch.tensor([1.0, 0]).view(2, 1, 1, 1).to(level)
        return level * (seen[:, 8:9] > 0)

    return answer


def judging(monkeypatch):
    """`judge(keys, settings)`: a judge of made-up networks, whose volumes are on 16^3 voxels."""
    runs = {}
    monkeypatch.setattr(machine, "device", lambda: "cpu")
    monkeypatch.setattr(inference, "trained", lambda c, folder, on: network(runs[folder]))
    monkeypatch.setattr(inference, "predict", lambda model, seen, dtype: model(seen.float()))

    def make(keys=KEYS, settings=SETTINGS):
        wanted = {key: Made(*key) for key in keys}
        runs.update({run.asked: run for run in wanted.values()})
        return Judge(wanted, settings)

    make.runs = runs
    return make


@pytest.fixture
def judge(monkeypatch):
    return judging(monkeypatch)


def storing(monkeypatch):
    """At home each network sees the draw of its own: the set's lift, as `samples.of` would find it. What was asked."""
    asked, made = [], made_up([table(BRIGHT), table(BRIGHT)], HOME)

    def of(c, data, part):
        asked.append((c.lift.kind, part))
        return types.SimpleNamespace(frozen=lambda: samples.joined(made.lifted, made.fraction))

    monkeypatch.setattr(samples, "of", of)
    return asked


@pytest.fixture
def stored(monkeypatch):
    return storing(monkeypatch)


@pytest.fixture
def home(stored):
    return made_up([table(BRIGHT), table(BRIGHT)], HOME)


@pytest.mark.parametrize("view", views(QUICK).values(), ids=views(QUICK))
def test_networks_are_judged_where_they_are_asked_for(judge, view):
    """All at home; those of other patterns on the patterns and beside them; the main ones everywhere."""
    found = judge().asked(view)
    if view.name == HOME:
        assert found == KEYS
    elif view.name in (*PATTERNS, FRESH):
        assert found == [(NETWORK, 0), (NETWORK, 1), (SNR, 0), (LONGER, 0)]
    else:
        assert found == [(NETWORK, 0), (NETWORK, 1), (LONGER, 0)]


def test_own_networks_are_the_seeds_of_the_main_one(judge):
    assert judge().own() == [(NETWORK, 0), (NETWORK, 1)]
    assert judge([(CONTROL, 0)]).own() == []


def test_network_is_loaded_from_its_own_folder(judge):
    one = judge()
    seen = torch.ones(1, 9, *[LIFTED] * 3)
    assert [one.network(key, seen)[0, 0, 0, 0, 0].item() for key in KEYS] == pytest.approx([1, 1.1, 1, 1, 1])
    assert one.network((CONTROL, 0), seen)[0, 1].max() == 0


def test_network_sees_at_home_what_it_was_trained_with_and_elsewhere_the_set(judge, stored):
    one, there = judge(), made_up([table(BRIGHT)], FRESH)
    assert torch.equal(one.shown((CONTROL, 0), there), samples.joined(there.lifted, there.fraction))
    assert not stored
    at_home = made_up([table(BRIGHT)], HOME)
    one.shown((CONTROL, 0), at_home)
    one.shown((NETWORK, 0), at_home, "validation")
    assert stored == [("none", "test"), ("linear", "validation")]


@pytest.fixture
def solved(monkeypatch):
    """Classical volumes are their regularisation; what was asked for."""
    asked = []

    def volumes(data, lift, method, regularisation, part, most, length, folder):
        asked.append((method, regularisation, length, part, most))
        return torch.full((2, 2, *[LIFTED] * 3), regularisation)

    monkeypatch.setattr(classical, "volumes", volumes)
    return asked


def with_path(seen, path):
    return dataclasses.replace(seen, data=dataclasses.replace(seen.data, path=path))


@pytest.mark.parametrize(("name", "group"), [(HOME, HOME), (THRESHOLDS, "thresholds"), ("all around", "coverage")])
def test_total_variation_is_computed_at_home_alone(judge, stored, solved, tmp_path, name, group):
    seen = with_path(made_up([table(BRIGHT)], name, group), tmp_path / "file.h5")
    found = judge(settings={"tv": Setting(3.0, 5.0)}).volumes(seen)
    assert (("Gauss-Newton, total variation", 0) in found) == bool(solved) == (group == HOME)


@pytest.mark.parametrize(
    ("name", "group", "solves"),
    [(HOME, HOME, True), (THRESHOLDS, "thresholds", True), ("all around", "coverage", True), ("deep", "family", False)],
)
def test_classical_methods_are_computed_where_they_are_compared(judge, stored, solved, tmp_path, name, group, solves):
    seen = with_path(made_up([table(BRIGHT), table(BRIGHT)], name, group), tmp_path / "file.h5")
    found = judge().volumes(seen)
    names = {("Tikhonov", 0): 2.0, ("Gauss-Newton", 0): 3.0}
    assert {key for key in found if key in names} == (set(names) if solves else set())
    assert solved == ([("tikhonov", 2.0, 8.0, "test", None), ("gaussian", 3.0, 5.0, "test", None)] if solves else [])
    for key in names if solves else ():
        torch.testing.assert_close(found[key], names[key] * seen.fraction.float().expand_as(seen.truth))
    assert {(FITTED, 0), (AS_LIFTED, 0), (NETWORK, 0)} <= set(found)
    more = {(BEST, 0), (SHUFFLED, 0), (SHUFFLED, 1), (ENSEMBLE, 0), (CONTROL, 0), (SNR, 0)}
    assert {key for key in found if key in more} == (more if name == HOME else set())
    assert torch.equal(found[FITTED, 0], seen.fitted)
    assert all(volume.shape == seen.truth.shape for volume in found.values())


def test_ensemble_is_the_mean_of_the_seeds(judge, home):
    found = judge(settings={}).volumes(home)
    mean = (found[NETWORK, 0] + found[NETWORK, 1]) / 2
    torch.testing.assert_close(found[ENSEMBLE, 0], mean)
    inside = home.regions.tissue[:, None].expand_as(mean)
    assert (mean[:, :1][inside[:, :1]] / MUA).mean() == pytest.approx(1.05, rel=1e-3)


def test_larger_networks_have_ensembles_of_their_own(judge, home):
    found = judge([(NETWORK, 0), (LONGER, 0), (LONGER, 1), (SNR, 0), (SNR, 1)], {}).volumes(home)
    assert {arm for arm, _ in found if arm.startswith(ENSEMBLE)} == {ENSEMBLES[LONGER]}
    torch.testing.assert_close(found[ENSEMBLES[LONGER], 0], (found[LONGER, 0] + found[LONGER, 1]) / 2)


def test_one_seed_is_no_ensemble(judge, home):
    found = judge([(NETWORK, 0), (CONTROL, 0)], {}).volumes(home)
    assert (ENSEMBLE, 0) not in found and (SHUFFLED, 0) in found


def test_best_homogeneous_volume_is_the_mean_of_the_tissue(judge, home):
    """The least squares of one value over whole voxels."""
    best = judge([(NETWORK, 0)], {}).volumes(home)[BEST, 0]
    for volume, truth, tissue in zip(best, home.truth, home.regions.tissue, strict=True):
        for a, b in zip(volume, truth, strict=True):
            torch.testing.assert_close(a, b[tissue].mean() * tissue, rtol=1e-4, atol=0)


def test_shuffled_keeps_its_own_tissue_and_takes_all_else_of_the_phantom_before():
    shown = torch.arange(3.0).view(3, 1, 1, 1, 1) + torch.arange(16).view(1, 16, 1, 1, 1) * 10.0
    shown = shown.expand(3, 16, 2, 2, 2).clone()
    before = shown.clone()
    found = shuffled(shown)[:, :, 0, 0, 0]
    own = [CHANNELS.index("tissue"), *range(8, 16)]
    for channel in range(16):
        phantom = [0, 1, 2] if channel in own else [2, 0, 1]
        assert (found[:, channel] - 10 * channel).tolist() == phantom, channel
    assert torch.equal(shown, before)


def test_volumes_as_lifted_are_tikhonovs_of_the_same_lambda_and_length(lit):
    """To what fp16 keeps of a lift."""
    seen = lit[FRESH]
    view = seen.view
    coarse = classical.volumes(view.data, view.lift, "tikhonov", 1.0, "test", folder=lit.folder)
    exact, found = classical.refined(coarse, seen.fraction), as_lifted(seen)
    inside = (seen.fraction > 0).expand_as(found)
    assert (found[inside] / exact[inside] - 1).abs().max() < 2e-3 and not found[~inside].any()
    assert (seen.fitted[inside] / exact[inside] - 1).abs().max() > 0.05


def test_ensemble_is_calibrated_as_it_is_and_by_the_factor_of_validation(judge, stored, monkeypatch):
    """Two networks, 1 and 1.1 times the tissue's values; the truth of validation lies where the factor is known."""
    tables = [table(), table()]
    seen, one = made_up(tables, HOME), judge([(NETWORK, 0), (NETWORK, 1)], {})
    validation = torch.tensor([MUA, MUSP]).half().float().view(1, 2, 1, 1, 1) * seen.regions.tissue[:, None]
    # mean 1.05, sd 0.1 / sqrt(2); off by 0.2 of mua and by 0.05 of musp
    truth = validation * torch.tensor([1.25, 1.0]).view(1, 2, 1, 1, 1)
    monkeypatch.setattr(type(seen.data), "volumes", lambda self, part: {"validation": truth}[part])
    monkeypatch.setattr(type(seen.data), "tissue", lambda self, part: {"validation": seen.regions.tissue}[part])
    rows = one.calibrated(seen, one.volumes(seen))
    factors = np.array([0.2, 0.05]) / (0.1 / np.sqrt(2))
    assert len(rows) == 2 * 2 * 2 * 10
    for channel, value, factor in (("mua", MUA, factors[0]), ("musp", MUSP, factors[1])):
        found = rows[rows["channel"] == channel]
        plain, scaled = found[~found["scaled"]], found[found["scaled"]]
        assert (plain["scale"] == 1).all() and scaled["scale"].to_numpy() == pytest.approx(factor, rel=1e-3)
        assert plain["sd"].to_numpy() == pytest.approx(value * 0.1 / np.sqrt(2), rel=5e-3)
        assert scaled["sd"].to_numpy() == pytest.approx(factor * plain["sd"].to_numpy(), rel=1e-5)
        assert plain["rmse"].to_numpy() == pytest.approx(0.05 * value, rel=2e-2)
    assert {part for _, part in stored} == {"test", "validation"}


def test_one_network_has_no_calibration(judge, home):
    one = judge([(NETWORK, 0)], {})
    rows = one.calibrated(home, one.volumes(home))
    assert rows.empty and {"scaled", "scale", "part", "channel", "bin", "sd", "rmse", "beyond"} <= set(rows.columns)


def loading(monkeypatch):
    """The sets of the smoke profile, made up: two phantoms each; those that were loaded."""
    loaded = []

    def load_set(view, folder):
        loaded.append(view.name)
        tables = [table(), table()] if view.data.family == "none" else [table(BRIGHT), table(BRIGHT)]
        covered = None
        if view.group == "coverage":
            covered = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
            first = 4 * list(COVERAGES).index(view.name)
            covered[..., first : first + 4] = True
        return made_up(tables, view.name, view.group, covered=covered)

    monkeypatch.setattr(judgement, "load_set", load_set)
    monkeypatch.setattr(judgement, "times", lambda seen, settings, judge: pd.DataFrame([{"step": seen.view.name}]))
    monkeypatch.setattr(Judge, "calibrated", lambda self, seen, found: pd.DataFrame({"part": [len(found)]}))
    return loaded


def finishing(make):
    """Runs of all kinds, one of which failed."""
    runs = {key: Made(*key) for key in KEYS} | {("reconstruct-one-draw", 0): Made("reconstruct-one-draw", 0, "loss")}
    make.runs.update({run.asked: run for run in runs.values()})
    return runs


@pytest.fixture
def sets(monkeypatch, stored):
    return loading(monkeypatch)


@pytest.fixture
def finished(judge):
    return finishing(judge)


@pytest.fixture(scope="module")
def everything(one_thread):
    """All of it judged: the record, the names of the sets, the runs."""
    with pytest.MonkeyPatch.context() as patch:
        storing(patch)
        sets, finished = loading(patch), finishing(judging(patch))
        return judgement.judged(finished, "smoke", {}), sets, finished


@pytest.fixture(scope="module")
def found(everything):
    return everything[0]


def test_every_network_is_judged_on_the_sets_that_it_is_asked_for_on(everything):
    found, sets, _ = everything
    assert sets == list(views(config.PROFILES["smoke"].base.data))
    of = found.values.groupby("arm")["set"].unique().map(set)
    every = set(sets)
    assert of[NETWORK] == of[LONGER] == of[FITTED] == of[AS_LIFTED] == of[TRUTH] == every
    assert of[SNR] == {HOME, FRESH, *PATTERNS} and of[CONTROL] == of[SHUFFLED] == of[ENSEMBLE] == {HOME}
    assert "reconstruct-one-draw" not in of.index
    assert found.values.columns.tolist() == COLUMNS
    assert not found.values.duplicated([c for c in COLUMNS if c != "value"]).any()


def test_run_that_failed_has_a_row_and_no_values(everything):
    found, _, finished = everything
    assert found.runs.columns.tolist() == RUN and len(found.runs) == len(finished)
    row = found.runs.set_index("arm").loc["reconstruct-one-draw"]
    assert (row.failed, row.key, row.code, row.test) == ("loss", "data of reconstruct-one-draw", "c0de", "7e57")
    assert row.config == finished["reconstruct-one-draw", 0].config.digest() and row.samples_seen == ""
    assert (found.profile, found.source) == ("smoke", "runs/")


def test_criterion_is_judged_for_all_that_see_both_twins(found):
    """Networks of other patterns see the phantoms with tumours alone."""
    rows = found.values[found.values["metric"] == "contrast_visible"]
    assert set(rows["set"]) == {FRESH}
    assert set(rows["arm"]) == {NETWORK, LONGER, FITTED, AS_LIFTED}
    assert rows.dropna()["value"].eq(0).all() and len(rows.dropna()) == 5 * 2  # flat volumes show nothing


def test_union_is_that_of_the_sets_of_coverage(found):
    rows = found.values[found.values["metric"] == "nrmse_union"]
    assert set(rows["set"]) == set(COVERAGES)
    own = rows[(rows["arm"] == FITTED) & (rows["channel"] == "mua") & (rows["phantom"] == 0)]["value"]
    assert len(own) == 3 and own.nunique() == 1  # whatever each of them covers
    seen = made_up([table(BRIGHT)])
    truth, where = seen.truth[0, 0].numpy(), seen.regions.tissue[0].numpy().copy()
    where[..., 12:] = False
    level = float(torch.tensor(MUA).half())
    exact = np.sqrt(((truth[where] - level) ** 2).sum() / (truth[where] ** 2).sum())
    assert own.iloc[0] == pytest.approx(exact, rel=1e-5)


def test_lesions_are_counted_for_every_method_at_home_and_without_tumours(found):
    assert set(found.lesions.columns) == set(LESIONS)
    keys = set(found.lesions[["arm", "seed"]].itertuples(index=False, name=None))
    assert keys == {(NETWORK, 0), (NETWORK, 1), (LONGER, 0), (FITTED, 0), (AS_LIFTED, 0)}
    assert found.lesions.groupby(["arm", "seed", "channel"])["operating"].sum().eq(1).all()
    assert not found.lesions["recall"].any()


def test_judgement_is_recorded_and_read(found, tmp_path):
    reconstruction_records.save(found, tmp_path / "one")
    again = reconstruction_records.load(tmp_path / "one")
    assert len(again.values) and set(again.values["arm"]) == set(found.values["arm"])
    assert reconstruction_records.joined(found, again).values.equals(found.values)


def test_notebook_judges_at_home_alone(sets, finished, monkeypatch):
    """The runs that it trains itself, without classical settings."""
    computed = []
    monkeypatch.setattr(judgement.study, "members", lambda name, *a: {k: r for k, r in finished.items() if k[1] == 0})
    monkeypatch.setattr(judgement.study, "results", lambda name, *a: computed.append(name))
    assert judgement.shown("smoke", 0, None) is None and not computed  # without a store nothing is trained
    found = judgement.shown("smoke", 0, Path("runs"))
    assert sets == [HOME] and set(found.values["set"]) == {HOME}
    assert computed == ["4.6-shown", "4.6-control"]
    assert found.lesions.empty and found.lesions.columns.tolist() == LESIONS
    assert found.times["step"].tolist() == [HOME]


def test_what_is_judged_on_every_set_is_kept_by_weights_and_settings(monkeypatch, tmp_path):
    asked, weights = [], {"reconstruct 0": "a", "reconstruct 1": "b"}
    finished = {(NETWORK, seed): Made(NETWORK, seed) for seed in (0, 1)}
    settings = {"tikhonov": (0.5, 8.0)}

    def judge(*given):
        asked.append(given)
        return judged(errors(NETWORK, [[0.2], [0.3]]), places(contrast=[[1.0]]), profile="smoke")

    monkeypatch.setattr(judgement, "judged", judge)
    monkeypatch.setattr(judgement, "weights_of", lambda run: weights[run.asked])
    first, again = (judgement.everywhere(finished, "smoke", settings, tmp_path) for _ in range(2))
    assert asked == [(finished, "smoke", settings)] and first.source == again.source == "runs/"
    pd.testing.assert_frame_equal(first.values, again.values)
    judgement.everywhere(finished, "smoke", {"tikhonov": (0.5, 7.0)}, tmp_path)
    weights["reconstruct 1"] = "c"
    judgement.everywhere(finished, "smoke", settings, tmp_path)
    assert len(asked) == 3 and len(list((tmp_path / "judged").iterdir())) == 3


@pytest.mark.parametrize("states", [(True, True), (True, False)])
def test_evidence_is_of_the_store_where_all_is_done_else_of_the_record(monkeypatch, tmp_path, states):
    wanted = {(NETWORK, i): types.SimpleNamespace(done=lambda s=s: s) for i, s in enumerate(states)}
    monkeypatch.setattr(judgement, "members", lambda profile, seeds, store: wanted)
    monkeypatch.setattr(judgement.reconstruction_tuning, "recorded", lambda: "settings")
    monkeypatch.setattr(judgement, "everywhere", lambda *arguments: arguments)
    monkeypatch.setattr(judgement, "load", lambda folder: folder)
    found = judgement.evidence("smoke", 0, tmp_path / "runs", tmp_path)
    if states[1]:
        assert found == (wanted, "smoke", "settings", tmp_path / "runs")
    else:
        assert found is None
        (tmp_path / judgement.NAME).mkdir()
        assert judgement.evidence("smoke", 0, tmp_path / "runs", tmp_path) == tmp_path / judgement.NAME
    (tmp_path / judgement.NAME).mkdir(exist_ok=True)
    assert judgement.evidence("smoke", 0, None, tmp_path) == tmp_path / judgement.NAME  # without a store


class Saved(Made):
    """The same with a checkpoint: a network whose last convolution is awake, as a run leaves it; of BASE."""

    def __init__(self, seed, folder):
        super().__init__(NETWORK, seed)
        model = config.Model(name="unet", width=2)
        self.config = self.config.model_copy(update={"data": BASE, "test": None, "model": model})
        self.asked, chance = folder, torch.Generator().manual_seed(seed)
        folder.mkdir()
        self.network = inference.network(self.config)
        with torch.no_grad():
            weight = self.network.network.head.weight
            weight.copy_(0.3 * torch.randn(weight.shape, generator=chance))
        checkpoint.save(folder / "last.pt", {"judged": self.network.state_dict()}, self.config.digest())


@pytest.fixture
def saved(tmp_path):
    """Two seeds."""
    return {(NETWORK, seed): Saved(seed, tmp_path / str(seed)) for seed in (0, 1)}


def test_network_scores_at_home_what_its_own_judgement_says(lit, saved):
    """That which a run makes of its test phantoms at its end, from the checkpoint to the numbers."""
    seen, one = lit[HOME], Judge(saved, {})
    found = one.volumes(seen)
    for key, run in saved.items():
        dtype = machine.precision(run.config.training.precision, one.device)
        model = run.network.to(one.device).eval()
        keys = ["metric", "phantom", "inclusion", "channel"]
        own = evaluation.judge(model, seen.data, dtype, run.config).set_index(keys)["value"]
        rows = scores(found[key], seen).set_index(keys)["value"]
        assert len(rows) > 40 and rows.notna().sum() > 20
        pd.testing.assert_series_equal(rows, own[rows.index], rtol=1e-4)
    assert not torch.allclose(found[NETWORK, 0], found[NETWORK, 1], rtol=1e-2)


def test_factor_of_the_sd_is_that_of_the_validation_phantoms(lit, saved):
    """By numpy, from the checkpoints."""
    seen, one = lit[HOME], Judge(saved, {})
    rows = one.calibrated(seen, one.volumes(seen))
    volumes = []
    for key, run in saved.items():
        shown = samples.of(run.config, seen.data, "validation").frozen()
        volumes.append(one.network(key, shown).numpy().astype("f8"))
    tables = seen.data.ellipsoids[seen.data.labels == 1]
    tissue, truth = phantoms.labels(tables, 16).numpy()[0] > 0, phantoms.rasterise(tables, 16).numpy()[0]
    mean, sd = np.mean(volumes, 0)[0], np.std(volumes, 0, ddof=1)[0]
    for c, channel in enumerate(("mua", "musp")):
        exact = np.sqrt(((mean - truth)[c][tissue] ** 2).sum() / (sd[c][tissue] ** 2).sum())
        found = rows[(rows["channel"] == channel) & rows["scaled"]]["scale"]
        assert found.to_numpy() == pytest.approx(exact, rel=1e-3)


def test_times_are_medians_over_the_first_phantoms(lit, judge, monkeypatch):
    """Of each step that a phantom alone takes; the clock is counted."""
    ticks, order = iter(range(1000)), []
    monkeypatch.setattr(reconstruction_times.time, "perf_counter", lambda: float(next(ticks)))
    plain = classical.reconstruct

    def reconstruct(place, fit, method, *setting):
        order.append((method, setting, len(place.readings.pairs)))
        return plain(place, fit, "homogeneous", *setting)

    monkeypatch.setattr(classical, "reconstruct", reconstruct)
    one = judge([(NETWORK, 1), (NETWORK, 2)], SETTINGS)
    shapes = []
    monkeypatch.setattr(one, "network", lambda key, x: shapes.append((key, len(x))))
    monkeypatch.setattr(reconstruction_times, "COUNT", 2)
    found = reconstruction_times.times(lit[FRESH], SETTINGS, one.one(lit[FRESH]))
    assert found["step"].tolist() == ["fit", "lift", "tikhonov", "gaussian", "network"]
    assert found["n"].eq(2).all() and found["seconds"].eq(1).all() and found["threads"].eq(1).all()
    assert order == [("tikhonov", (2.0, 8.0), 64), ("gaussian", (3.0, 5.0), 64)] * 2
    assert shapes == [((NETWORK, 1), 1)] * 2 and BASE.measurements.pairs == 64


def test_median_of_three_times_is_the_middle_one(lit, judge, monkeypatch):
    clock = iter([0, 3, 10, 11, 20, 29, 30, 32, 40, 45, 50, 51])  # 3, 1 | 9, 2 | 5, 1: fit and lift of three phantoms
    monkeypatch.setattr(reconstruction_times.time, "perf_counter", lambda: float(next(clock)))
    found = reconstruction_times.times(lit[FRESH], {}, judge([(CONTROL, 0)], {}).one(lit[FRESH]))
    assert found.set_index("step")["seconds"].to_dict() == {"fit": 5, "lift": 1}


def test_members_are_the_runs_of_every_study(monkeypatch):
    asked = []
    monkeypatch.setattr(judgement.study, "members", lambda *a: asked.append(a) or {(a[0], 0): a[1]})
    found = judgement.members("quick", 0, "store")
    assert asked == [(name, "quick", 0, "store") for name in judgement.STUDIES]
    assert set(found) == {(name, 0) for name in judgement.STUDIES}
