"""Pictures of judged runs: they show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest

from dotlib.plots import generalisation as plots_generalisation

SETS, FAMILIES = ("default", "small", "input noise 1 %"), ("default", "small")
RATIOS = {
    ("default", "small"): (1.5, 1.2, 1.9), ("default", "input noise 1 %"): (1.02, 0.9, 1.1),
    ("small", "default"): (2.24, 1.8, 2.8), ("small", "input noise 1 %"): (np.nan, np.nan, np.nan),
}  # fmt: skip


@pytest.fixture
def crossed():
    rows = []
    for family in FAMILIES:
        for on in SETS:
            ratio, low, high = RATIOS.get((family, on), (1.0, 1.0, 1.0))
            row = {"trained on": family, "tested on": on, "home": family == on, "nrmse": 0.2514, "ratio": ratio}
            rows.append(row | {"ratio low": low, "ratio high": high})
    return pd.DataFrame(rows)


def test_matrix_writes_each_ratio_in_its_cell(crossed):
    ax = plots_generalisation.matrix(crossed).axes[0]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    assert written == {
        (0, 0): "0.251", (0, 1): "1.50", (0, 2): "(1.02)",  # home; resolved; not resolved
        (1, 0): "2.24", (1, 1): "0.251", (1, 2): "",
    }  # fmt: skip
    assert [label.get_text() for label in ax.get_xticklabels()] == list(FAMILIES)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(SETS) and ax.get_ylim()[0] > ax.get_ylim()[1]


def test_matrix_colours_are_about_one(crossed):
    (image,) = plots_generalisation.matrix(crossed).axes[0].images
    assert image.norm.vmin * image.norm.vmax == pytest.approx(1) and image.norm.vmax == pytest.approx(2.24)
    assert image.get_array()[0, 1] == 2.24 and image.get_array().mask.tolist()[2] == [False, True]


def test_home_is_framed(crossed):
    frames = plots_generalisation.matrix(crossed).axes[0].patches
    assert [frame.get_xy() for frame in frames] == [(-0.5, -0.5), (0.5, 0.5)]


def road():
    """Two networks, two sets; one network was not run in phase 1, and its phase 0 is of a single seed."""
    rows = []
    for phase, ends in (
        (0, {"RMSE": (0.08, 0.08), "SSIM": (0.7, 0.7)}),
        (1, {"RMSE": (0.07, 0.06), "SSIM": (0.75, 0.8)}),
    ):
        for network in ("legacy", "stage1"):
            for on in ("default", "small"):
                for measure, (a, b) in ends.items():
                    row = {"phase": phase, "network": network, "tested on": on, "measure": measure, "asked from": a}
                    estimate = (
                        np.nan if (phase, network) == (1, "legacy") else 0.1 + 0.2 * phase + 0.5 * (on == "small")
                    )
                    width = np.inf if network == "legacy" else 0.05
                    row |= {"asked to": b, "estimate": estimate, "low": estimate - width, "high": estimate + width}
                    rows.append(row)
    levels = [
        {"tested on": on, "measure": m, "predictor": p, "value": v}
        for on in ("default", "small")
        for m in ("RMSE", "SSIM")
        for p, v in (("all zeros", 0.45), ("mean volume", np.nan))
    ]
    return pd.DataFrame(rows), pd.DataFrame(levels)


def test_roadmap_shows_means_intervals_bands_and_levels():
    figure = plots_generalisation.roadmap(*road())
    assert [ax.get_title() for ax in figure.axes[:2]] == ["tested on default", "tested on small"]
    ax = figure.axes[1]  # RMSE, small
    dots = {line.get_label(): line for line in ax.lines}
    assert dots["stage1"].get_ydata().tolist() == pytest.approx([0.6, 0.8])
    np.testing.assert_allclose(dots["legacy"].get_ydata(), [0.6, np.nan])
    assert dots["all zeros"].get_ydata()[0] == 0.45 and "mean volume" not in dots
    assert dots["stage1"].get_xdata().tolist() == pytest.approx([0.12, 1.12])
    segments = [s.tolist() for lines in ax.collections if hasattr(lines, "get_segments") for s in lines.get_segments()]
    np.testing.assert_allclose(segments, [[[0.12, 0.55], [0.12, 0.65]], [[1.12, 0.75], [1.12, 0.85]]])
    bands = [c.get_datalim(ax.transData) for c in ax.collections if not hasattr(c, "get_segments")]
    np.testing.assert_allclose([(band.y0, band.y1) for band in bands], [(0.08, 0.08), (0.06, 0.07)])


def test_a_network_has_its_colour_where_another_was_not_run():
    table, levels = road()
    gone = table.assign(estimate=table["estimate"].where(table["network"] == "stage1"))
    colors = [
        next(line for line in plots_generalisation.roadmap(each, levels).axes[0].lines if line.get_label() == "stage1")
        for each in (table, gone)
    ]
    assert len({line.get_color() for line in colors}) == 1
    assert "legacy" not in {line.get_label() for line in plots_generalisation.roadmap(gone, levels).axes[0].lines}
