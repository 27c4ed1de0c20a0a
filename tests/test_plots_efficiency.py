"""Pictures of efficiency: they show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest

from dotlib.plots import efficiency as plots_efficiency
from dotlib.sections import loss_scale, roofline, step_profile

TABLE = pd.DataFrame(
    {
        "factor": ["naive loop", "trainer", "precision", "compile"],
        "setting": ["fp32", "as it is", "fp32", "graphs"],
        "ratio": [1.0, 2.0, 1.5, np.nan],
        "lowest": [1.0, 1.8, 1.4, np.nan],
        "highest": [1.0, 2.5, 1.6, np.nan],
        "kept, MB": [10.0, 5.0, 10.0, np.nan],
        "note": ["", "", "", "CUDA only"],
    }
)


def test_ways_shows_ratios_ranges_and_memory_of_what_was_run():
    left, right = plots_efficiency.ways(TABLE).axes
    lines, dots = left.collections
    assert dots.get_offsets().tolist() == [[1, 0], [2, 1], [1.5, 2]]
    assert [segment[:, 0].tolist() for segment in lines.get_segments()] == [[1, 1], [1.8, 2.5], [1.4, 1.6]]
    assert [bar.get_width() for bar in right.patches] == [10, 5, 10]
    assert [label.get_text() for label in left.get_yticklabels()][1] == "trainer: as it is"


def test_segments_are_the_times_end_to_end():
    times = pd.DataFrame({"class": ["linear", "loss", "unaccounted"], "seconds": [0.2, 0.005, 0.1]})
    figure = plots_efficiency.stacked(times, "ms")
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([200, 5, 100])
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 200, 205])
    assert [text.get_text() for text in figure.axes[0].texts] == ["66%", "33%"]


def test_a_negative_rest_has_no_segment_and_keeps_its_name():
    times = pd.DataFrame({"class": ["linear", "unaccounted"], "seconds": [0.22, -0.02]})
    figure = plots_efficiency.stacked(times, "ms")
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([220, 0])
    assert figure.axes[0].get_xlim() == pytest.approx((0, 220))
    assert figure.legends[0].get_texts()[1].get_text() == "unaccounted, -10.0%"


def test_a_class_has_its_colour_in_every_picture():
    def color(names):
        times = pd.DataFrame({"class": names, "seconds": [1.0] * len(names)})
        bars = plots_efficiency.stacked(times, "ms").axes[0].patches
        return dict(zip(names, [bar.get_facecolor() for bar in bars], strict=True))

    every = color(list(step_profile.CLASSES))
    assert len(set(every.values())) == len(every)
    assert color(["loss"])["loss"] == every["loss"]


def test_roofline_shows_ceilings_and_points():
    ceilings = pd.DataFrame({"ceiling": ["copy", "bf16 products"], "value": [10.0, 200.0]})
    points = pd.DataFrame({"class": ["whole step", "data"], "flop/byte": [5.0, 0.0], "GFLOP/s": [30.0, 0.0]})
    figure = plots_efficiency.roofline(points, ceilings, 50.0)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    x, y = lines["this machine, bf16 products (measured)"].get_data()
    np.testing.assert_allclose(y, np.minimum(10 * x, 200))
    assert lines["whole step"].get_xydata().tolist() == [[5, 30]] and "data" not in lines
    sheets = [line.get_ydata() for label, line in lines.items() if label.startswith("_") and len(line.get_ydata()) > 2]
    assert sorted(max(y) for y in sheets) == sorted(1e3 * gpu.product for gpu in roofline.GPUS.values())
    assert "not measured" in " ".join(lines)


def test_scaler_marks_the_skipped_steps():
    traces = {name: loss_scale.trace(g, loss_scale.EDGE, "cpu", 4) for name, g in loss_scale.GROWTH.items()}
    figure = plots_efficiency.scaler(traces, loss_scale.INITIAL)
    upper, lower = figure.axes[:2], figure.axes[2:]
    for ax, below, steps in zip(upper, lower, traces.values(), strict=True):
        marks = next(line for line in ax.lines if line.get_label() == "step skipped")
        assert marks.get_xdata().tolist() == steps["step"][steps["skipped"]].tolist()
        assert below.lines[0].get_ydata()[-1] == steps["skipped"].sum()
