"""Pictures of section 4.6: they show the numbers that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dotlib.plots import TEXT_WIDTH
from dotlib.plots import inverse as plots_inverse

NAN, INF = np.nan, np.inf


def tuning():
    tried = {8.0: (0.5, 0.3, 0.4), 12.0: (0.6, 0.35, 0.25)}
    rows = [("tikhonov", length, lam, error) for length, errors in tried.items()
            for lam, error in zip((0.1, 1.0, 10.0), errors, strict=True)]  # fmt: skip
    rows += [("tv", NAN, lam, error) for lam, error in ((3.0, 0.45), (0.3, 0.2))]
    table = pd.DataFrame(rows, columns=["method", "length", "regularisation", "nrmse_covered"])
    return table.fillna({"length": 0.0}).sample(frac=1, random_state=0).sort_values("method", kind="stable")


def recovered():
    """Two methods in three bins, one of them of a single run; one bin is empty."""
    rows = [
        ("Gauss-Newton", "below 14", 5, 0.5, -INF, INF), ("Gauss-Newton", "14 to 20", 3, 0.3, -INF, INF),
        ("Gauss-Newton", "20 and more", 0, NAN, NAN, NAN), ("reconstruct", "below 14", 5, 0.7, 0.6, 0.8),
        ("reconstruct", "14 to 20", 3, 0.4, 0.2, 0.6), ("reconstruct", "20 and more", 0, NAN, NAN, NAN),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "bin", "inclusions", "median", "low", "high"])


def curves():
    table = pd.DataFrame({"method": ["a"] * 3 + ["b"] * 2, "threshold": [3, 1, 2, 1, 2],
                          "false_lesions": [0, 5, 1, 2, 0], "recall": [0.1, 0.9, 0.5, 0.4, 0.2]})  # fmt: skip
    return table, pd.DataFrame({"method": ["a"], "recall": [0.5], "false_lesions": [1.0]})


def elsewhere():
    rows = [
        ("", "fresh phantoms", "reconstruct", 1, 1, 1), ("", "fresh phantoms", "Tikhonov", 1, 0, INF),
        ("pattern", "snr", "reconstruct", 1.2, 1.1, 1.4), ("pattern", "snr", "Tikhonov", 0.9, 0, INF),
        ("pattern", "linear", "reconstruct", 1.5, 1.3, 1.7), ("noise", "loud", "reconstruct", 2, 1.6, 2.4),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "set", "method", "ratio", "ratio low", "ratio high"])


def calibrated():
    return pd.DataFrame(
        [(part, channel, scaled, b, sd * (1 + scaled), 2.0 * sd)
         for part in ("covered", "uncovered") for channel in ("mua", "musp") for scaled in (False, True)
         for b, sd in enumerate((0.001, 0.002, 0.004))],
        columns=["part", "channel", "scaled", "bin", "sd", "rmse"],
    )  # fmt: skip


MADE = {
    "settings": lambda: plots_inverse.settings(tuning()),
    "recovery": lambda: plots_inverse.recovery({"distance": recovered()}, {"distance": "distance, mm"}),
    "lesions": lambda: plots_inverse.lesions(*curves()),
    "views": lambda: plots_inverse.views(elsewhere()),
    "calibration": lambda: plots_inverse.calibration(calibrated()),
}


@pytest.mark.parametrize("name", MADE)
def test_figures_are_a_text_line_wide_and_no_longer_pyplots(name):
    before = plt.get_fignums()
    figure = MADE[name]()
    assert figure.get_figwidth() == pytest.approx(TEXT_WIDTH) and plt.get_fignums() == before
    figure.draw_without_rendering()


def segments(ax):
    """Upright or lying lines, each (2 ends, 2)."""
    return np.array([s for c in ax.collections if hasattr(c, "get_segments") for s in c.get_segments()])


def labels(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_settings_have_a_panel_a_method_and_a_line_a_length():
    axes = MADE["settings"]().axes
    assert [ax.get_title() for ax in axes] == ["Tikhonov", "Gauss-Newton, total variation"]
    found = {name: line.get_xydata().tolist() for name, line in labels(axes[0]).items()}
    assert found == {"8 mm": [[0.1, 0.5], [1, 0.3], [10, 0.4]], "12 mm": [[0.1, 0.6], [1, 0.35], [10, 0.25]]}
    assert axes[0].get_legend() and not axes[1].get_legend() and axes[0].get_xscale() == "log"


def test_ring_is_about_the_best_setting():
    """Over all lengths of a method."""
    for ax, best in zip(MADE["settings"]().axes, ((10, 0.25), (0.3, 0.2)), strict=True):
        rings = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
        assert [ring.get_xydata().tolist() for ring in rings] == [[list(best)]]


def test_settings_name_each_regularisation_that_was_tried():
    figure = MADE["settings"]()
    figure.draw_without_rendering()
    assert ticks(figure.axes[0].xaxis) == ["0.1", "1", "10"] and ticks(figure.axes[1].xaxis) == ["0.3", "3"]


def test_recovery_has_a_marker_a_method_and_bin():
    ax = MADE["recovery"]().axes[0]
    found = labels(ax)
    np.testing.assert_array_equal(found["Gauss-Newton"].get_ydata(), [0.5, 0.3, NAN])
    np.testing.assert_array_equal(found["reconstruct"].get_ydata(), [0.7, 0.4, NAN])
    for k, name in enumerate(("Gauss-Newton", "reconstruct")):
        assert found[name].get_xdata().tolist() == pytest.approx(np.arange(3) + (0.175 if k else -0.175))
    assert found["Gauss-Newton"].get_marker() != found["reconstruct"].get_marker()
    assert ticks(ax.xaxis) == ["below 14\n(n = 5)", "14 to 20\n(n = 3)", "20 and more\n(n = 0)"]
    assert ax.get_xlabel() == "distance, mm"


def test_recovery_has_intervals_where_there_are_any():
    found = segments(MADE["recovery"]().axes[0])
    np.testing.assert_allclose(found, [[[0.175, 0.6], [0.175, 0.8]], [[1.175, 0.2], [1.175, 0.6]]])


def test_full_recovery_is_a_line():
    ax = MADE["recovery"]().axes[0]
    assert [list(line.get_ydata()) for line in ax.lines if line.get_ls() == "--"] == [[1, 1]]


def test_recovery_has_a_panel_a_fact_and_one_legend():
    figure = plots_inverse.recovery({"a": recovered(), "b": recovered()}, {"a": "first", "b": "second"})
    assert [ax.get_xlabel() for ax in figure.axes] == ["first", "second"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Gauss-Newton", "reconstruct"]


def test_method_missing_in_one_panel_keeps_its_colour():
    """In the other panels, too."""
    less = recovered().query("method != 'Gauss-Newton'")
    axes = plots_inverse.recovery({"a": recovered(), "b": less}, {"a": "", "b": ""}).axes
    assert labels(axes[0])["reconstruct"].get_color() == labels(axes[1])["reconstruct"].get_color()


def test_lesions_are_curves_by_threshold_with_their_operating_points():
    ax = MADE["lesions"]().axes[0]
    found = {name: line.get_xydata().tolist() for name, line in labels(ax).items()}
    assert found == {"a": [[5, 0.9], [1, 0.5], [0, 0.1]], "b": [[2, 0.4], [0, 0.2]]}
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [dot.get_xydata().tolist() for dot in dots] == [[[1, 0.5]]]
    assert dots[0].get_color() == labels(ax)["a"].get_color() and ax.get_ylim()[0] == 0


def test_views_have_a_row_a_set_and_a_marker_a_method():
    """Fresh phantoms are what others are related to, and no row."""
    ax = MADE["views"]().axes[0]
    assert ax.get_yticks().tolist() == [0, -1, -2] and ticks(ax.yaxis) == ["snr", "linear", "loud"]
    found = labels(ax)
    np.testing.assert_allclose(found["reconstruct"].get_xydata(), [[1.2, 0.15], [1.5, -0.85], [2, -1.85]])
    np.testing.assert_allclose(found["Tikhonov"].get_xydata(), [[0.9, -0.15]])


def test_views_have_intervals_where_there_are_any():
    """The ratio of one run has the limits 0 and infinity, which are none."""
    np.testing.assert_allclose(segments(MADE["views"]().axes[0]), [
        [[1.1, 0.15], [1.4, 0.15]], [[1.3, -0.85], [1.7, -0.85]], [[1.6, -1.85], [2.4, -1.85]]
    ])  # fmt: skip


def test_views_draw_a_line_between_groups_and_one_at_no_loss():
    lines = [line for line in MADE["views"]().axes[0].lines if line.get_label().startswith("_")]
    across = [line.get_ydata()[0] for line in lines if line.get_ydata()[0] == line.get_ydata()[1]]
    upright = [line.get_xdata()[0] for line in lines if line.get_xdata()[0] == line.get_xdata()[1]]
    assert across == [-1.5] and upright == [1]


def test_calibration_has_a_line_a_part_hollow_and_filled():
    figure = MADE["calibration"]()
    mua, musp = figure.axes
    found = labels(mua)
    assert list(found) == ["covered, as it is", "covered, scaled", "uncovered, as it is", "uncovered, scaled"]
    assert found["covered, as it is"].get_xydata().tolist() == [[0.001, 0.002], [0.002, 0.004], [0.004, 0.008]]
    assert found["uncovered, scaled"].get_xydata().tolist() == [[0.002, 0.002], [0.004, 0.004], [0.008, 0.008]]
    hollow = {name: line.get_markerfacecolor() == "none" for name, line in found.items()}
    assert list(hollow.values()) == [True, False, True, False] and list(labels(musp)) == list(found)
    assert mua.get_xscale() == mua.get_yscale() == "log"


def test_calibrated_sd_lies_on_the_dashed_line():
    for ax in MADE["calibration"]().axes:
        (line,) = [line for line in ax.lines if line.get_ls() == "--"]
        assert line.get_xydata().tolist() == [[0.001, 0.001], [0.008, 0.008]]
