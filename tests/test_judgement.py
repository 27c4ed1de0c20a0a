"""Judged runs: what a perfect, a blank and a cheating predictor score; sets against their definitions; the cache."""

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path

import histories
import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint
from tiny import a_run, tiny

from dotlib import __main__ as command
from dotlib import arms as known
from dotlib import config, improvements, judged_records, judged_scores, judged_sets, judgement, metrics, study, trivial
from dotlib.data import dataset, phantoms, store
from dotlib.records import ResultsError
from dotlib.sections import generalisation, measured

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = config.Data(phantoms=24, fractions=(4, 1, 1), grid=32)
TINY = tiny().data
KEYS = ("stage1-onecycle", 0), ("legacy-phase0", 1)
CHANNELS = ("mua", "musp")


@pytest.fixture(scope="module")
def every():
    return judged_sets.sets(BASE, dataset.load(BASE))


def judged(predictor, on):
    """One predictor on a set: value and n by (metric, channel)."""
    return judgement.judge({0: predictor}, on)[0].set_index(["metric", "channel"]).sort_index()


def identity(seen, tables):
    return seen


@pytest.fixture(scope="module")
def perfect(every):
    return judged(identity, every["default"])


@pytest.mark.parametrize(
    ("metric", "value"),
    dict.fromkeys(("nrmse", "nrmse_p95", "rmse", "background_noise", "bias", "abs_bias"), 0).items()
    | dict.fromkeys(("ssim", "skill", "crc", "crc_inside"), 1).items(),
)
def test_identity_is_perfect(perfect, metric, value):
    for channel in CHANNELS:
        assert perfect.loc[(metric, channel), "value"] == pytest.approx(value, abs=1e-6)
        assert perfect.loc[(metric, channel), "n"] > 0


def test_identity_is_perfect_in_the_legacy_convention(perfect):
    assert perfect.loc[("legacy_rmse", ""), "value"] == 0 and perfect.loc[("legacy_psnr", ""), "value"] == np.inf
    assert perfect.loc[("legacy_ssim", ""), "value"] == pytest.approx(1)


def test_identity_passes_the_clinical_criterion_on_every_inclusion(perfect, every):
    """Those that the truth shows with a contrast; labels and contrasts are counted anew."""
    tables = every["default"].tables
    truth, labels = phantoms.rasterise(tables, 32), phantoms.labels(tables, 32)
    regions = metrics.regions(labels, 2.0)
    count = int((metrics.contrast(truth, regions)[..., 0].abs() >= 0.1).sum())
    row = perfect.loc[("contrast_passed", "mua")]
    assert row["value"] == row["n"] == count >= 4


def test_wilson_interval_is_that_of_statsmodels():
    for count, total in ((0, 12), (5, 12), (12, 12), (180, 195)):
        found = measured.passed(pd.Series([count, count]), pd.Series([total, total]))
        assert found[1:3] == pytest.approx(proportion_confint(count, total, method="wilson"))
        assert found.estimate == pytest.approx(count / total)


def test_tumours_that_are_painted_into_the_twin_do_not_pass(every):
    """A predictor that shows each phantom's tumours whatever it sees has a perfect contrast, and passes nowhere."""
    on = every["default"]
    memory = on.volumes(on.tables)
    found = judged(lambda seen, tables: memory, on)
    assert found.loc[("crc", "mua"), "value"] == pytest.approx(1)
    assert found.loc[("contrast_twin", "mua"), "value"] == found.loc[("contrast", "mua"), "value"] > 0.2
    assert found.loc[("contrast_passed", "mua"), "value"] == 0 < found.loc[("contrast_passed", "mua"), "n"]


def test_twin_is_the_phantom_without_its_tumours(every):
    for name in ("default", "hard voxels", "input noise 1 %"):
        (part,) = every[name].parts()
        background = part.regions.background[:, None].expand_as(part.truth)
        assert torch.equal(part.truth[background], part.reference[background])
        assert torch.equal(part.seen[background], part.seen_twin[background])
        inside = part.regions.inclusions.any(1)[:, None].expand_as(part.truth)
        assert (part.reference[inside] < part.truth[inside]).float().mean() > 0.99


@pytest.mark.parametrize("name", ["default", "small"])
def test_trivial_predictors_score_what_trivial_gives_them(every, name):
    on, mean = every[name], dataset.load(BASE).mean("train")
    scored = trivial.score(on.tables, 32, mean).groupby("predictor")
    for predictor, volumes in judgement.predictors(on, mean, "cpu").items():
        found, expected = judged(volumes, on)["value"], scored.get_group(predictor)
        for metric in ("nrmse", "ssim", "background_noise"):
            for channel in CHANNELS:
                assert found[metric, channel] == pytest.approx(
                    expected[f"{metric}_{channel}"].mean(), rel=1e-5, abs=1e-7
                )
        for channel, column in (("", "legacy_rmse"), ("mua", "legacy_mua_rmse"), ("musp", "legacy_musp_rmse")):
            assert found["legacy_rmse", channel] == pytest.approx(np.sqrt((expected[column] ** 2).mean()), rel=1e-5)


def test_own_background_has_no_skill_and_zeros_less(every):
    on = every["hard voxels"]
    found = judgement.judge(judgement.predictors(on, torch.zeros(2, 32, 32, 32), "cpu"), on)
    skill = {name: table.set_index(["metric", "channel"])["value"]["skill", "mua"] for name, table in found.items()}
    assert skill["ellipsoid, own background"] == 0 > skill["all zeros"]


def test_blank_image_shows_no_contrast_and_passes_nothing(every):
    found = judged(lambda seen, tables: torch.zeros_like(seen), every["default"])
    assert found.loc[("crc", "mua"), "n"] == 0 and np.isnan(found.loc[("crc", "mua"), "value"])
    for metric in ("contrast_passed", "crc_inside"):
        assert found.loc[(metric, "mua"), "value"] == 0 < found.loc[(metric, "mua"), "n"]


def test_family_without_tumours_has_errors_and_no_contrasts(every):
    found = judged(identity, every["none"])
    assert found.loc[("nrmse", "mua"), "n"] == 4 and found.loc[("contrast_passed", "mua"), "n"] == 0
    assert found.loc[("skill", "mua"), "n"] == 0  # the reference is the truth


def test_families_are_in_the_frame_of_a_simulated_file(recorded, monkeypatch):
    from tiny import RECORDED

    monkeypatch.setattr(judged_sets, "SEED", RECORDED.seed)
    with store.File(recorded) as file:
        assert np.array_equal(judged_sets.drawn("default", RECORDED, len(file)), file.raw("ellipsoids"), equal_nan=True)


def test_sets_have_the_phantoms_of_their_family_and_of_the_test_part(every):
    assert tuple(every) == judged_sets.NAMES and set(phantoms.FAMILIES) < set(every)
    assert np.array_equal(every["default"].tables, dataset.load(BASE).part("test"), equal_nan=True)
    axes = every["small"].tables[:, 1:, phantoms.AXES]
    assert np.nanmax(axes) <= 9 and np.nanmin(axes) >= 5
    for family in set(phantoms.FAMILIES) - {"default"}:  # BASE has no probe, whose frame would turn them
        drawn = phantoms.sample(family, 4, judged_sets.SEED)
        assert np.array_equal(every[family].tables, drawn, equal_nan=True), family
    assert {len(on) for on in every.values()} == {4}
    assert len({on.digest for on in every.values()}) == len(every)


def test_no_training_phantom_is_in_another_familys_set():
    """Known by the tissue's axes, which no frame changes; all training sets of the judged studies."""

    def axes(tables):
        return {row.tobytes() for row in tables[:, 0, phantoms.AXES]}

    trained, arms = set(), {arm for name in judgement.STUDIES for arm in known.STUDIES[name].arms}
    for family, seed in {(data.family, data.seed) for data in (known.arm(arm, "quick").data for arm in arms)}:
        trained |= axes(phantoms.sample(family, 384, seed))
    base = config.PROFILES["quick"].base.data
    for family in ("small", "superficial", "high-contrast", "superellipsoid"):
        drawn = judged_sets.drawn(family, base, judged_sets.COUNT)
        assert len(drawn) == 64 and not axes(drawn) & trained, family


def test_hard_voxels_hold_one_value_each(every):
    (part,) = every["hard voxels"].parts()
    for volume, rows in zip(part.truth, part.tables, strict=True):
        values = np.append(rows[np.isfinite(rows[:, phantoms.MUA]), phantoms.MUA], 0)
        assert np.isin(volume[0].numpy(), values).all()
    assert torch.equal(part.seen, part.truth)


def test_moved_phantom_lies_a_third_of_a_voxel_away(every):
    (still,), (moved,) = every["default"].parts(), every[judged_sets.VARIANTS[1]].parts()
    place = torch.arange(32.0, dtype=torch.float64)
    for axis in range(3):
        centres = [
            (part.reference[:, 1].double().movedim(1 + axis, -1).sum((1, 2)) @ place)
            / part.reference[:, 1].sum((1, 2, 3))
            for part in (still, moved)
        ]
        torch.testing.assert_close(centres[1] - centres[0], torch.full_like(centres[0], 1 / 3), atol=4e-3, rtol=0)


def test_noise_is_one_per_cent_of_the_range_on_the_input_alone(every):
    (clean,), (noisy,) = every["default"].parts(), every[judged_sets.VARIANTS[2]].parts()
    assert torch.equal(noisy.truth, clean.truth)
    sd = (noisy.seen - noisy.truth).std((0, 2, 3, 4))
    assert sd.tolist() == pytest.approx([0.01 * r for r in metrics.RANGES], rel=0.01)
    torch.testing.assert_close(noisy.seen_twin - noisy.reference, noisy.seen - noisy.truth, atol=1e-6, rtol=1e-5)


def test_other_voxels_describe_the_same_phantoms(every):
    """A coarse voxel holds the mean of what it covers, to within the rasteriser's own error."""
    (own,), (coarse,), (fine,) = (every[name].parts() for name in ("default", *judged_sets.VARIANTS[3:]))
    assert [part.truth.shape[-1] for part in (coarse, own, fine)] == [16, 32, 64]
    for larger, smaller in ((coarse, own), (own, fine)):
        means = smaller.truth.reshape(4, 2, *(larger.truth.shape[-1], 2) * 3).mean((3, 5, 7))
        scale = larger.truth.amax((0, 2, 3, 4), keepdim=True)
        assert ((means - larger.truth) / scale).square().mean((0, 2, 3, 4)).sqrt().max() < 8e-3
    assert coarse.regions.tissue.shape[-1] == 16 and fine.regions.tissue.shape[-1] == 64


@pytest.mark.parametrize("grid", [8, 16, 32])
def test_network_sees_every_grid_on_its_own_and_answers_in_place(runs, monkeypatch, grid):
    """A network that returns what it sees: a linear field comes back where it was, and a constant everywhere."""
    run, given = runs[0][KEYS[0]], []
    assert run.config.data.grid == 16
    monkeypatch.setattr(judgement.inference, "predict", lambda model, x, dtype: given.append(x) or x)
    ramp = (torch.arange(grid) + 0.5) / grid
    seen = torch.stack([ramp[None, :, None].expand((grid,) * 3), torch.full((grid,) * 3, 3.0)])[None]
    answer = judgement.network(run, "cpu")(seen, np.zeros((1, 6, 13)))
    assert given[0].shape == (1, 2, 16, 16, 16) and answer.shape == seen.shape
    inner = slice(grid // 8 + 1, -grid // 8 - 1) if grid > 8 else slice(2, -2)
    torch.testing.assert_close(answer[..., inner, inner, inner], seen[..., inner, inner, inner])
    torch.testing.assert_close(answer[:, 1], seen[:, 1])


def test_parts_add_up_to_the_set(every, monkeypatch):
    whole = judged(lambda seen, tables: 0.9 * seen, every["default"])
    monkeypatch.setattr(judged_sets, "CHUNK", 3)
    split = judged(lambda seen, tables: 0.9 * seen, every["default"])
    rows = whole.index.get_level_values("metric") != "localisation_chance"  # drawn by part
    pd.testing.assert_frame_equal(whole[rows], split[rows], rtol=1e-6)


def of_curve(losses, train=1.0):
    history = histories.made_up(known.arm("stage1-adam", "smoke"), curve=[0.5] * len(losses))
    epochs = history.epochs.assign(validation_loss=losses, train_loss=train)
    return judged_scores.training(dataclasses.replace(history, epochs=epochs)).set_index("metric")


def test_roughness_is_the_bend_of_the_log_loss():
    straight = of_curve(np.exp(-0.3 * np.arange(10)))
    assert straight.loc["roughness", "value"] == pytest.approx(0, abs=1e-12)
    saw = of_curve([9, 1, 7, 7, 3, 3, *np.exp([0, 1, 0, 1, 0, 1])], train=2.0)  # the first half does not count
    assert saw.loc["roughness", "value"] == pytest.approx(2) and saw.loc["roughness", "n"] == 4
    assert saw.loc["loss_ratio", "value"] == pytest.approx(np.e / 2)
    assert np.isnan(of_curve([1.0, 2.0]).loc["roughness", "value"])


def test_diverged_run_has_no_curve():
    assert judged_scores.training(histories.made_up(known.arm("stage1-adam", "smoke"), failed="loss nan")).empty


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_thread):
    """Two runs of tiny networks, finished, and their store."""
    store = tmp_path_factory.mktemp("judged")
    wanted = {KEYS[0]: a_run(store, "stage1-onecycle"), KEYS[1]: a_run(store, "stage1-adam", seed=1)}
    for run in wanted.values():
        run.result()
    return wanted, store


@pytest.fixture(scope="module")
def table(runs):
    return judgement.table(runs[0], TINY, runs[1])


def test_default_set_gives_a_runs_own_numbers(runs, table):
    for (arm, seed), run in runs[0].items():
        own = run.result().metrics
        own = own[own["checkpoint"] == "last"].groupby(["metric", "channel"])["value"]
        rows = table[(table["arm"] == arm) & (table["seed"] == seed) & (table["set"] == "default")]
        found = rows.set_index(["metric", "channel"])["value"]
        for metric in ("nrmse", "rmse", "background_noise", "bias"):
            assert found[metric, "mua"] == pytest.approx(own.get_group((metric, "mua")).mean(), rel=1e-6)
        assert found["crc", "musp"] == pytest.approx(own.get_group(("crc", "musp")).median(), rel=1e-6)
        assert found["legacy_rmse", ""] ** 2 == pytest.approx(
            (own.get_group(("legacy_rmse", "")) ** 2).mean(), rel=1e-6
        )


def test_arms_are_judged_on_the_sets_of_the_plan(table):
    sets = table.groupby("arm")["set"].unique().map(set)
    assert sets["legacy-phase0"] == {"default", "small", "training"}
    assert sets["stage1-onecycle"] == {*phantoms.FAMILIES, *judged_sets.VARIANTS, "training"}
    assert sets["all zeros"] == sets["stage1-onecycle"] - {"training"}


def test_second_call_computes_nothing_and_says_the_same(runs, table, monkeypatch):
    monkeypatch.setattr(judgement, "judge", lambda *arguments: pytest.fail("a set was judged again"))
    monkeypatch.setattr(judgement.inference, "trained", lambda *a, **o: pytest.fail("a network was loaded"))
    pd.testing.assert_frame_equal(judgement.table(runs[0], TINY, runs[1]), table, check_exact=True)


def test_what_is_missing_is_all_that_is_computed(runs, table, monkeypatch):
    asked, plain = Counter(), judgement.judge

    def counted(predictors, on, *arguments):
        asked[on.name] += len(predictors)
        return plain(predictors, on, *arguments)

    monkeypatch.setattr(judgement, "judge", counted)
    (file,) = runs[0][KEYS[1]].path.glob("judged/small-*.csv")
    file.unlink()
    pd.testing.assert_frame_equal(judgement.table(runs[0], TINY, runs[1]), table, check_exact=True)
    assert asked == {"small": 1}


def test_arms_of_one_configuration_are_judged_once(runs, table, monkeypatch):
    monkeypatch.setattr(judgement, "judge", lambda *arguments: pytest.fail("a set was judged again"))
    again = judgement.table({**runs[0], ("stage1-phase1", 0): runs[0][KEYS[0]]}, TINY, runs[1])
    both = [
        again[(again["arm"] == arm) & (again["set"] == "small")]["value"].tolist()
        for arm in (KEYS[0][0], "stage1-phase1")
    ]
    assert both[0] and np.array_equal(*both, equal_nan=True)


def test_file_is_of_these_weights_on_this_set(runs, every, tmp_path):
    on, other = every["default"], every["small"]
    names = {
        judgement.kept(tmp_path, judgement.weights_of(run), s).name for run in runs[0].values() for s in (on, other)
    }
    assert len(names) == 4


def test_other_test_phantoms_are_refused_in_one_line(runs):
    with pytest.raises(
        study.StudyError, match=r"stage1-onecycle, seed 0: judged on test phantoms \w+, the profile has"
    ):
        judgement.table(runs[0], BASE.model_copy(update={"seed": 5}), runs[1])


def test_summary_is_made_of_means_medians_quantiles_and_pooled_squares():
    """Numbers that none of these confuses with another one, worked out here."""

    def column(*values):
        return torch.tensor([[x, 2 * x] for x in values], dtype=torch.float64)

    nan, three = torch.nan, torch.arange(1.0, 4)[:, None].repeat(1, 2)
    values = dict.fromkeys((*judged_scores.BY_PHANTOM, "legacy_rmse_of"), three)
    values |= {"nrmse": column(0.1, 0.2, 0.8), "bias": column(-0.3, 0.1, 0.5), "skill": column(0.9, 0.5, -2.0)}
    values |= {"legacy_rmse": torch.tensor([0.03, 0.05, 0.01]), "legacy_ssim": torch.tensor([0.2, 0.4, 0.9])}
    by_inclusion = torch.tensor([[0.84, 0.86], [1.09, 1.11], [nan, 0.0]])[..., None].repeat(1, 1, 2)
    values |= dict.fromkeys(judged_scores.BY_INCLUSION, by_inclusion)
    present = torch.tensor([[True, True], [True, True], [True, False]])
    values |= {"present": present[..., None].repeat(1, 1, 2)}
    values |= {"passed": torch.tensor([[1, 0], [1, 1], [0, 1]], dtype=torch.bool)}
    found = judged_scores.summary(values).set_index(["metric", "channel"])
    pooled = ((0.03**2 + 0.05**2 + 0.01**2) / 3) ** 0.5
    expected = {
        ("nrmse", "mua"): (0.1 + 0.2 + 0.8) / 3, ("nrmse_p50", "mua"): 0.2, ("nrmse_p95", "mua"): 0.2 + 0.9 * 0.6,
        ("nrmse_p95", "musp"): 0.4 + 0.9 * 1.2, ("log_nrmse", "mua"): np.log([0.1, 0.2, 0.8]).mean(),
        ("bias", "mua"): 0.1, ("abs_bias", "mua"): 0.3, ("skill", "mua"): -0.2, ("skill_p50", "mua"): 0.5,
        ("legacy_rmse", ""): pooled, ("legacy_psnr", ""): 20 * np.log10(1 / pooled), ("legacy_ssim", ""): 0.5,
        ("legacy_rmse", "musp"): (14 / 3) ** 0.5, ("crc", "mua"): (0.86 + 1.09) / 2, ("crc_inside", "mua"): 2 / 5,
        ("contrast_passed", "mua"): 3,
    }  # fmt: skip
    assert found.loc[list(expected), "value"].to_dict() == pytest.approx(expected)
    counted = found.loc[[("nrmse", "mua"), ("crc", "mua"), ("crc_inside", "mua"), ("contrast_passed", "mua")], "n"]
    assert counted.tolist() == [3, 4, 5, 5]


def test_diverged_run_has_the_worst_errors_and_scores_and_nothing_else(runs, table):
    broken = a_run(runs[1], "stage1-onecycle", seed=7, optim__lr=1e38, optim__div=1)
    assert broken.result().failed
    found = judgement.table({**runs[0], ("stage1-phase2", 7): broken}, TINY, runs[1])
    rows = found[found["arm"] == "stage1-phase2"].set_index(["set", "metric", "channel"])["value"]
    assert set(rows.index.get_level_values("set")) == {"default", "small"}
    others = table[table["arm"].isin([arm for arm, _ in KEYS])].set_index(["set", "metric", "channel"])["value"]
    for key in (("default", "nrmse", "mua"), ("small", "rmse", "musp"), ("default", "legacy_rmse", "")):
        assert rows[key] == others[key].max()
    for key in (("default", "legacy_psnr", ""), ("small", "skill", "mua"), ("default", "contrast_passed", "mua")):
        assert rows[key] == others[key].min()
    assert rows[:, "crc"].isna().all() and rows[:, "bias"].isna().all()


@pytest.fixture
def found(runs, monkeypatch):
    """The two runs as those of a profile."""
    plain = judgement.table
    monkeypatch.setattr(judgement, "table", lambda finished, base, store, *rest: plain(finished, TINY, runs[1], *rest))
    return judgement.judged(runs[0], "smoke", runs[1])


def test_record_says_the_same_after_the_trip(found, tmp_path):
    judged_records.save(found, tmp_path / "results" / judgement.NAME)
    loaded = judged_records.load(tmp_path / "results" / judgement.NAME)
    pd.testing.assert_frame_equal(ordered(found.table), ordered(loaded.table), rtol=1e-5)
    pd.testing.assert_frame_equal(loaded.runs, found.runs)
    assert (loaded.profile, loaded.source) == ("smoke", f"results/{judgement.NAME}")
    assert loaded.provenance == found.provenance and len(loaded.metrics) == 4
    first = {path.name: path.read_bytes() for path in (tmp_path / "results" / judgement.NAME).iterdir()}
    judged_records.save(loaded, tmp_path / "again")
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert set(first) == {"judged.csv", "runs.csv", "about.json"}


def ordered(table):
    keys = judged_records.COLUMNS[:5]
    return table[judged_records.COLUMNS].sort_values(keys).reset_index(drop=True)


def test_runs_of_a_record_stand_beside_those_of_the_store(found, runs, table):
    """Half of the runs from the record, half from the store: the same numbers as all from the store."""
    a, b = ({key: runs[0][key]} for key in KEYS)
    earlier = dataclasses.replace(found, runs=found.runs[found.runs["arm"] == KEYS[1][0]])
    both = judgement.judged(a, "smoke", runs[1], earlier)
    pd.testing.assert_frame_equal(ordered(both.table), ordered(table), rtol=1e-5)
    pd.testing.assert_frame_equal(both.runs, found.runs)
    assert not set(judgement.judged(b, "smoke", runs[1]).runs["arm"]) & {KEYS[0][0]}


def test_diverged_run_has_the_worst_errors_among_recorded_ones_too(found, runs, table):
    failed = found.runs.assign(failed=["", "loss nan"])
    rows = judgement.judged({KEYS[0]: runs[0][KEYS[0]]}, "smoke", runs[1], dataclasses.replace(found, runs=failed[1:]))
    values = rows.table[rows.table["set"] == "default"].set_index(["arm", "metric", "channel"])["value"]
    assert values[KEYS[1][0], "nrmse", "mua"] == values[KEYS[0][0], "nrmse", "mua"]
    assert np.isnan(values[KEYS[1][0], "crc", "mua"])


def test_only_wanted_runs_of_the_same_configuration_are_taken_over(found, runs, tmp_path):
    missing = {key: a_run(tmp_path, "stage1-onecycle" if key == KEYS[0] else "stage1-adam", key[1]) for key in KEYS}
    assert len(judgement.elsewhere(found, missing).runs) == 2
    assert judgement.elsewhere(found, runs[0]).runs.empty  # the store has them
    assert judgement.elsewhere(found, {KEYS[0]: missing[KEYS[0]]}).runs["arm"].tolist() == [KEYS[0][0]]
    other = {KEYS[0]: a_run(tmp_path, "stage1-onecycle", optim__lr=1e-4)}
    assert judgement.elsewhere(found, other).runs.empty


def test_record_of_other_sets_is_refused_in_one_line(found, runs):
    moved = found.table.assign(value=1.01 * found.table["value"])
    with pytest.raises(study.StudyError, match="judged on other sets than these runs: remove it"):
        judgement.judged(runs[0], "smoke", runs[1], dataclasses.replace(found, table=moved))
    former = found.table[found.table["set"] == "small"].assign(set="a set that there was")
    with pytest.raises(study.StudyError, match="judged on other sets than these runs: remove it"):
        judgement.judged(runs[0], "smoke", runs[1], dataclasses.replace(found, table=pd.concat([found.table, former])))


def test_record_may_lack_the_sets_that_none_of_its_runs_is_judged_on(found, runs, table):
    """`legacy-phase0` is judged on two sets, `stage1-onecycle` on all."""
    late = judged_sets.VARIANTS[-1]
    earlier = dataclasses.replace(found, table=found.table[found.table["set"] != late])
    a, b = (found.runs[found.runs["arm"] == arm] for arm, _ in KEYS)
    both = judgement.judged({KEYS[0]: runs[0][KEYS[0]]}, "smoke", runs[1], dataclasses.replace(earlier, runs=b))
    pd.testing.assert_frame_equal(ordered(both.table), ordered(table), rtol=1e-5)
    with pytest.raises(study.StudyError, match="judged on other sets"):
        judgement.judged({KEYS[1]: runs[0][KEYS[1]]}, "smoke", runs[1], dataclasses.replace(earlier, runs=a))


@pytest.mark.parametrize("name", ["judged.csv", "runs.csv"])
def test_changed_record_is_refused(found, tmp_path, name):
    judged_records.save(found, tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(ResultsError, match=f"{name} changed since it was recorded"):
        judged_records.load(tmp_path)


def test_record_of_another_base_or_without_a_part_is_refused(found, tmp_path):
    judged_records.save(found, tmp_path)
    about = json.loads((tmp_path / "about.json").read_text())
    about["base"]["data"]["phantoms"] = 25
    (tmp_path / "about.json").write_text(json.dumps(about))
    with pytest.raises(ResultsError, match="another base configuration than profile smoke"):
        judged_records.load(tmp_path)
    (tmp_path / "runs.csv").unlink()
    with pytest.raises(ResultsError, match=r"runs\.csv"):
        judged_records.load(tmp_path)


def test_larger_record_is_not_lost(found, tmp_path):
    judged_records.save(dataclasses.replace(found, profile="quick"), tmp_path)
    with pytest.raises(ResultsError, match="holds 2 runs of profile quick; remove it to record 2 of smoke"):
        judged_records.save(found, tmp_path)


def test_evidence_is_the_runs_then_the_record_then_nothing(found, runs, tmp_path, monkeypatch):
    take = functools.partial(judgement.evidence, "smoke", runs[1], tmp_path)
    missing = a_run(tmp_path / "other")
    monkeypatch.setattr(judgement, "members", lambda profile, store: {**runs[0], ("stage1-phase3", 0): missing})
    assert take() is None
    judged_records.save(found, tmp_path / judgement.NAME)
    assert take().source == f"{tmp_path.name}/{judgement.NAME}"
    monkeypatch.setattr(judgement, "members", lambda profile, store: runs[0])
    assert take().source == "runs/"


def test_full_profile_is_computed_where_there_is_a_gpu(runs, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(judgement, "members", lambda profile, store: runs[0])
    monkeypatch.setattr(study, "results", lambda name, *rest: asked.append(name))
    monkeypatch.setattr(judgement, "judged", lambda finished, profile, store: (len(finished), profile))
    assert judgement.evidence("full", runs[1], tmp_path) == (2, "full") and asked == list(judgement.STUDIES)


def test_page_counts_phantoms_and_seeds(found):
    from dotlib.chapter import Page
    from dotlib.report import Book

    assert Page(Book("4.5", "smoke", Path("nowhere")), found).n() == "4 phantoms, 1 seed"


@pytest.mark.gpu
def test_gpu_judges_as_the_cpu_does(every):
    def worse(seen, tables):
        return 0.9 * seen + 1e-4

    a, b = (judgement.judge({0: worse}, every["small"], device)[0] for device in ("cpu", "cuda"))
    pd.testing.assert_frame_equal(a, b, rtol=1e-4, atol=1e-6)


def test_command_lists_what_is_missing_and_records_the_rest(found, runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    missing = {("stage1-phase3", 2): a_run(tmp_path / "other")}
    monkeypatch.setattr(judgement, "members", lambda profile, store: runs[0] | missing)
    assert command.main(["judge", "--profile", "smoke", "--record"]) == 0
    out = capsys.readouterr().out
    assert "missing: stage1-phase3, seed 2\n2 of 3 runs judged, on 19 sets" in out
    assert len(judged_records.load(tmp_path / "results" / judgement.NAME).runs) == 2
    part = {KEYS[0]: runs[0][KEYS[0]], KEYS[1]: a_run(tmp_path / "other", "stage1-adam", seed=1)}
    monkeypatch.setattr(judgement, "members", lambda profile, store: part)
    assert command.main(["judge", "--profile", "smoke", "--record"]) == 0
    assert "1 of 2 runs judged" in (out := capsys.readouterr().out) and "taken over from the record: 1" in out
    assert len(judged_records.load(tmp_path / "results" / judgement.NAME).runs) == 2
    monkeypatch.setattr(judgement, "members", lambda profile, store: missing)
    assert command.main(["judge", "--profile", "smoke"]) == 1
    assert capsys.readouterr().err.startswith(
        "dotlib: no run of 4.5-roadmap, 4.5-data, 4.5-best is complete in profile smoke"
    )


def test_members_are_the_runs_of_all_studies():
    arms = {arm for name in judgement.STUDIES for arm in known.STUDIES[name].arms}
    assert set(improvements.ROADMAP) <= arms and set(judgement.EVERYWHERE) <= arms
    trained = {*generalisation.TRAINED.values()}
    assert len(trained) == 5 and all(judgement.asked(arm, on) for arm in trained for on in judged_sets.NAMES)


@pytest.mark.parametrize("harm", ["bit", "cut", "empty"])
def test_damaged_judgement_is_missing(tmp_path, harm):
    """It has a digest: an altered number is not taken for a result."""
    table = pd.DataFrame({"metric": ["nrmse"], "channel": ["mua"], "value": [0.1 + 0.2], "n": [4]})
    judgement._write(path := tmp_path / "a.csv", table)
    assert judgement._read(path).equals(table)
    raw = path.read_bytes()
    at = raw.index(b"0.3")
    path.write_bytes({"bit": raw[:at] + b"1" + raw[at + 1 :], "cut": raw[:-1], "empty": b""}[harm])
    assert judgement._whole(path) is None and judgement._whole(tmp_path / "none.csv") is None
