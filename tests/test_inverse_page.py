"""The notebook of section 4.6 on made-up records: every cell runs, and its tables fit a page."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from judged import bins, judged, lesion, places, rows
from matplotlib import pyplot as plt

from dotlib import config, reconstruction_judgement, reconstruction_tuning
from dotlib.reconstruction_judgement import BEST, ENSEMBLE, ENSEMBLES, FITTED, LIFTED, METHODS, SHUFFLED
from dotlib.reconstruction_records import TRUTH
from dotlib.reconstruction_sets import COVERAGES, FRESH, HOME, PATTERNS
from dotlib.reconstructions import ARMS, CONTROL, EVERYWHERE, NETWORK, ON_PATTERNS
from dotlib.sections import inverse, inverse_picture, inverse_views

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "4.6-reconstruction-from-measurements.ipynb"
CODE = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"]  # fmt: skip
P, K, SEEDS = 3, 2, 3
LEVELS = {BEST: 0.5, FITTED: 0.6, CONTROL: 0.55, SHUFFLED: 0.8}  # of errors; other methods: 0.4


def seeds_of(arm, most):
    return most if arm in ARMS or arm == SHUFFLED else 1


def numbers(arm, on, metrics, seeds, inclusions=False, channels=("mua", "musp")):
    """Values of no meaning about a method's level, with three digits that all show."""
    shape = (seeds_of(arm, seeds), P, K) if inclusions else (seeds_of(arm, seeds), P)
    draw, level = np.random.default_rng(len(arm) + len(on)), LEVELS.get(arm, 0.4)
    return [row for metric in metrics for channel in channels
            for row in rows(arm, on, metric, level * draw.uniform(0.95, 1.05, shape), channel)]  # fmt: skip


def at_home(arms, seeds):
    true = dict.fromkeys(("distance", "radius"), np.full((P, K), 9.0))
    true |= {"contrast": np.full((P, K), 0.95), "localisation": np.full((P, K), 4.2), "covered": [[0.95, 0.6]] * P}
    every = [*inverse.FIDELITY.values(), *inverse.IMAGE.values()]
    of_inclusions = {"crc", "cnr", "dice", "contrast", "localisation"}
    true |= {"crc_sd_noise": np.full((P, K), 0.0123), "crc_sd_tissue": np.full((P, K), 0.234)}
    parts = [places(**true)]
    for arm in arms:
        parts.append(numbers(arm, HOME, dict.fromkeys(m for m in every if m not in of_inclusions), seeds))
        parts.append(numbers(arm, HOME, sorted(of_inclusions), seeds, inclusions=True))
    return parts


def small(seeds=2):
    """What a notebook trains itself: home alone, without Gauss-Newton, lesions and curves."""
    arms = (BEST, FITTED, LIFTED, NETWORK, SHUFFLED, *([ENSEMBLE] if seeds > 1 else []))
    return judged(*at_home(arms, seeds), numbers(CONTROL, HOME, ("nrmse", "nrmse_covered"), 1),
                  times=[("fit", 0.1), ("lift", 2.0), ("network", 0.01)], profile="smoke")  # fmt: skip


def whole():
    """Every method on every set."""
    arms = (BEST, FITTED, LIFTED, *METHODS.values(), *ARMS, SHUFFLED, *ENSEMBLES.values())
    parts = at_home(arms, SEEDS)
    sets = {name: group for group, names in inverse_views.GROUPS.items() for name in names}
    for name in (FRESH, *sets, "readings at 48^3"):
        on_patterns = ON_PATTERNS if name in (FRESH, *PATTERNS) else ()
        parts += [numbers(arm, name, ("nrmse", "nrmse_covered"), SEEDS)
                  for arm in (FITTED, LIFTED, *EVERYWHERE, *on_patterns)]  # fmt: skip
    for name in ("mua-only", "musp-only"):
        parts += [numbers(arm, name, ("crc", "crosstalk"), SEEDS, True) for arm in (FITTED, LIFTED, *EVERYWHERE)]
    parts += [numbers(arm, name, ("nrmse", "nrmse_covered", "nrmse_union"), SEEDS)
              for name in COVERAGES for arm in (FITTED, LIFTED, *METHODS.values(), *EVERYWHERE)]  # fmt: skip
    parts += [numbers(TRUTH, FRESH, ("contrast",), 1, True)]
    parts += [numbers(arm, FRESH, ("contrast_visible",), SEEDS, True, ("mua",)) for arm in (LIFTED, *EVERYWHERE)]
    found = [lesion(arm, s, t, 0.4 + 0.013 * s, 0.01 / t, t == 0.01, channel)
             for arm in arms for s in range(seeds_of(arm, SEEDS)) for t in (0.001, 0.01, 0.1)
             for channel in ("mua", "musp")]  # fmt: skip
    sd, rmse = np.linspace(1e-4, 1e-3, 10), np.linspace(2e-4, 9e-4, 10)
    curves = [bins(part, channel, sd, rmse, 0.123, scale)
              for part in ("covered", "uncovered") for channel in ("mua", "musp")
              for scale in (None, 1.23)]  # fmt: skip
    taken = [(name, 1.234) for name in ("fit", "lift", *METHODS, "network")]
    return judged(*parts, lesions=found, calibration=curves, times=taken)


def tuned():
    rows = [(method, length, lam, 0.4 - lam / 100, 24) for method in METHODS for length in (8.0, 12.0)
            for lam in (0.1, 1.0)]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "length", "regularisation", "nrmse_covered", "n"])


def picture(*_):
    volume = torch.linspace(0, 1, 2 * 8**3).reshape(2, 8, 8, 8).numpy()
    predictions = {"Gauss-Newton": volume / 2, "network": volume * 0.9}
    return inverse_picture.Shown(None, None, volume, predictions, {"network": volume / 9}, 3)


def executed(monkeypatch, root, here, evidence):
    """The notebook's code with these records in the place of runs; what it shows, and its variables."""
    shown = []
    monkeypatch.setattr(config, "root", lambda: root)
    monkeypatch.setattr(reconstruction_tuning, "load", lambda folder: (tuned(), "quick"))
    monkeypatch.setattr(reconstruction_judgement, "shown", lambda profile, seeds, store: here)
    monkeypatch.setattr(reconstruction_judgement, "evidence", lambda profile, seeds, store, folder: evidence)
    monkeypatch.setattr(inverse_picture, "beside", picture)
    monkeypatch.setenv("DOTLIB_PROFILE", "smoke")
    variables = {"display": lambda *things: shown.extend(things)}
    with plt.rc_context():
        for source in CODE:
            exec(source, variables)
    return shown, variables


def written(root):
    return {path.stem.removeprefix("4.6-") for path in (root / "build" / "smoke" / "figures").glob("4.6-*.json")}


HERE = {"settings", "here", "here-image", "here-contrasts", "example"}


@pytest.mark.slow
def test_page_of_all_records_writes_what_it_shows(monkeypatch, tmp_path):
    """No table is wider than a page: writing it would fail."""
    _, variables = executed(monkeypatch, tmp_path, small(), whole())
    assert written(tmp_path) == HERE | {
        "methods", "methods-image", "methods-musp", "methods-image-musp", "contrasts", "contrasts-controls",
        "recovery", "recovery-distance", "recovery-radius", "recovery-contrast", "recovery-covered", "limits",
        "localisation", "lesions", "operating", "visible", "views", "views-table", "crosstalk",
        "patterns", "coverage", "calibration", "calibration-table", "times", "targets",
    }  # fmt: skip
    assert len(variables["contrasts"]) == 9 * 9 * 2  # five networks and four ensembles, 9 others, two parts
    targets = pd.read_csv(tmp_path / "build" / "smoke" / "figures" / "4.6-targets.csv")
    assert len(targets) == 4 * (6 + 3 + 2) and "not computed" not in set(targets["standing"])


def test_page_without_evidence_says_so(monkeypatch, tmp_path):
    shown, _ = executed(monkeypatch, tmp_path, small(), None)
    assert written(tmp_path) == HERE
    assert sum("holds no runs of it" in str(line) for line in shown if isinstance(line, str)) >= 10


def test_tables_of_a_record_of_home_alone_can_be_read(monkeypatch, tmp_path):
    executed(monkeypatch, tmp_path, small(), small())
    tables = list((tmp_path / "build" / "smoke" / "figures").glob("4.6-*.csv"))
    assert len(tables) > 10 and all(len(pd.read_csv(path).columns) for path in tables)
    assert not written(tmp_path) & {"coverage", "patterns", "views", "lesions", "operating"}


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_table_is_made_of_the_pages_own_record(seeds):
    """Home alone: what rests on more is empty, or says that it is not computed."""
    from dotlib.sections import inverse_ensemble, inverse_inclusions

    record = small(seeds)
    found = inverse.contrasts(record)
    assert set(found.loc[found["network"] == NETWORK, "seeds"]) == {seeds} and len(inverse.contrasts_table(found))
    assert len(inverse.answer(record, found).splitlines()) == 2 * (2 if seeds > 1 else 1)
    assert len(inverse.table(record)) == len(inverse.table(record, inverse.IMAGE, "musp")) == 6 + (seeds > 1)
    for fact in inverse_inclusions.BINS:
        assert len(inverse_inclusions.binned_table(inverse_inclusions.binned(record, fact)))
    assert len(inverse_inclusions.localised_table(inverse_inclusions.localised(record)))
    assert inverse_inclusions.visible(record).empty and inverse_inclusions.operating(record).empty
    assert inverse_ensemble.times(record)["seconds"].tolist() == [0.1, pytest.approx(2.11)]
    asked = inverse.asked(record, [NETWORK], (inverse.targets, inverse_inclusions.targets, inverse_views.targets))
    assert len(asked) == 11 and set(asked["standing"][:4]) == {"not computed"}
    if seeds == 1:
        assert set(asked["standing"]) == {"not computed", "not resolved"}


def test_page_fails_where_shuffled_measurements_do_as_well_as_the_best_tissue(monkeypatch, tmp_path):
    """The notebook's own assertion."""
    monkeypatch.setitem(LEVELS, SHUFFLED, 0.4)
    with pytest.raises(AssertionError):
        executed(monkeypatch, tmp_path, small(), None)
