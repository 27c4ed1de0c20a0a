"""The volume viewer: what its pictures show, how its controls are linked, and what is left of it without widgets."""

import base64
import io
import re
import time

import nbformat
import numpy as np
import pytest
from matplotlib import colormaps
from nbconvert import HTMLExporter
from PIL import Image

from dotlib import viewer
from dotlib.data import phantoms, probe
from dotlib.plots import viewer as pictures

SHAPE, CUBE, VIEW = (4, 5, 6), 60.0, "application/vnd.jupyter.widget-view+json"
ACROSS = {0: (1, 2), 1: (0, 2), 2: (0, 1)}  # normal: the axes across and up


def drawn(seed=0, shape=(2, *SHAPE)):
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


@pytest.fixture
def shown():
    """A viewer of every kind of volume on a grid with three different lengths."""
    arms = {"a": drawn(1), "b": drawn(2)}
    return viewer.view(drawn(), arms, attention={"a": drawn(3, SHAPE)}, uncertainty={"b": drawn(4)}, cube=CUBE)


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.value)).convert("RGB")).astype(int)


def sampled(view, normal):
    """The colours (across, up, 3) in the middles of a plane's voxels, found from the picture's measures alone."""
    columns, rows = (SHAPE[axis] for axis in ACROSS[normal])
    x = pictures.LEFT + (np.arange(columns) + 0.5) * pictures.SIDE / columns
    y = pictures.TOP + pictures.SIDE - (np.arange(rows) + 0.5) * pictures.SIDE / rows
    return pixels(view.planes[normal])[y.astype(int)[None], x.astype(int)[:, None]]


def lookup(values, limits, name):
    """The colours of a map of 256 by hand: its entry floor(256 (v - low) / (high - low))."""
    entry = (256 * (values - limits[0]) / (limits[1] - limits[0])).astype(int).clip(0, 255)
    return np.round(255 * colormaps[name](np.arange(256))[:, :3]).astype(int)[entry]


def off_the_lines(view, normal):
    """Where a plane's voxels are neither in the crosshair's row nor in its column, or in both."""
    column, row = (view.voxel[axis] for axis in ACROSS[normal])
    columns, rows = (np.arange(SHAPE[axis]) for axis in ACROSS[normal])
    return (columns[:, None] != column) == (rows[None] != row)


@pytest.mark.parametrize("voxel", [(0, 0, 0), (1, 2, 4), (3, 4, 5)])
def test_every_plane_has_the_colours_of_its_values(shown, voxel):
    truth, a, sd, attention = drawn(), drawn(1), drawn(4), drawn(3, SHAPE)[None]
    both = np.stack([truth, a, drawn(2)])
    reach = np.abs(both[1:] - truth).max((0, 2, 3, 4))
    for slider, i in zip(shown.sliders, voxel, strict=True):
        slider.value = i
    cases = {
        "truth": (truth, both.min((0, 2, 3, 4)), both.max((0, 2, 3, 4)), "viridis"),
        "prediction of a": (a, both.min((0, 2, 3, 4)), both.max((0, 2, 3, 4)), "viridis"),
        "error of a": (a - truth, -reach, reach, "RdBu_r"),
        "attention of a": (attention, [attention.min()], [attention.max()], "viridis"),
        "sd of b": (sd, (0, 0), sd.max((1, 2, 3)), "viridis"),
    }
    assert set(cases) < set(shown.layers)
    for name, (volume, low, high, colours) in cases.items():
        shown.show.value = name
        for channel in range(len(volume)):
            shown.channel.value = channel
            for normal in range(3):
                plane = np.take(volume[channel], voxel[normal], normal)
                seen = off_the_lines(shown, normal)
                expected = lookup(plane, (low[channel], high[channel]), colours)
                np.testing.assert_allclose(sampled(shown, normal)[seen], expected[seen], atol=1)


def test_a_slider_moves_one_plane_and_the_lines_in_the_others(shown):
    before, z = [pixels(image) for image in shown.planes], shown.sliders[2]
    old, z.value = z.value, (z.value + 3) % SHAPE[2]
    after = [pixels(image) for image in shown.planes]
    assert (before[2] != after[2]).any(-1).mean() > 0.1
    for normal in (0, 1):  # in both, z is upwards: two rows, and the gap in the column
        changed = (before[normal] != after[normal]).any(-1)
        rows = pictures.TOP + pictures.SIDE - 1 - (np.array([old, z.value]) + 0.5) * pictures.SIDE / SHAPE[2]
        across = shown.voxel[1 - normal]
        column = pictures.LEFT + (across + 0.5) * pictures.SIDE / SHAPE[1 - normal]
        assert changed[rows.round().astype(int)].any(1).all()
        changed[[*np.floor(rows).astype(int), *np.ceil(rows).astype(int)]] = False
        changed[:, int(column)] = False
        assert not changed.any()


def test_no_error_has_the_colour_of_zero():
    truth = drawn()
    almost = truth.copy()
    almost[0, 0, 0, 0] += 0.1
    shown = viewer.view(truth, {"a": almost, "same": truth}, cube=CUBE)
    neutral = np.round(255 * np.array(colormaps["RdBu_r"](0.5)[:3])).astype(int)
    for name, sliders in (("error of same", (0, 0, 0)), ("error of a", (1, 1, 1))):
        shown.show.value = name
        for slider, i in zip(shown.sliders, sliders, strict=True):
            slider.value = i
        for normal in range(3):
            assert (abs(sampled(shown, normal)[off_the_lines(shown, normal)] - neutral) <= 1).all()


def test_the_readout_holds_the_values_under_the_crosshair(shown):
    shown.sliders[0].value, shown.sliders[1].value, shown.sliders[2].value = 2, 4, 1
    at = (slice(None), 2, 4, 1)
    expected = {"truth": drawn()[at], "prediction of a": drawn(1)[at], "prediction of b": drawn(2)[at]}
    expected |= {f"error of {arm}": expected[f"prediction of {arm}"] - expected["truth"] for arm in "ab"}
    expected |= {"attention of a": drawn(3, SHAPE)[None][at], "sd of b": drawn(4)[at]}
    assert {name: tuple(v) for name, v in expected.items()} == shown.values()
    rows = dict(re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", shown.readout.value))
    for name, numbers in expected.items():
        cells = re.findall(r">([^<]+)</td>", rows[name + ("" if len(numbers) == 2 else " (no unit)")])
        np.testing.assert_allclose([float(c) for c in cells], numbers, rtol=1e-3)
    assert "x = 7.5, y = 24, z = -15 mm" in shown.readout.value
    assert shown.point == (7.5, 24, -15) and [s.label for s in shown.sliders] == ["7.5", "24", "-15"]


def test_images_have_no_tooltip(shown):
    """JupyterLab shows an error in place of an image that has one: it then looks for its description."""
    shown.fold.selected_index = 0
    assert {image.tooltip for image in (*shown.planes, shown.bar, shown.space)} == {None}


def test_attention_has_no_channel(shown):
    shown.show.value, shown.channel.value = "truth", 1
    bar = shown.bar.value
    shown.show.value = "attention of a"
    assert shown.channel.disabled and shown.bar.value != bar and shown.label.value.startswith("attention of a: ")
    shown.show.value = "truth"
    assert not shown.channel.disabled and shown.bar.value == bar
    assert shown.label.value.startswith("truth, musp in mm^-1: ")
    shown.show.value = "prediction of b"
    assert shown.bar.value == bar  # they share their range


def test_nan_is_grey_and_counts_nowhere():
    truth = drawn()
    truth[:, :2] = np.nan
    shown = viewer.view(truth, {"a": drawn(1)}, cube=CUBE)
    shown.sliders[0].value = 0
    assert (sampled(shown, 0)[off_the_lines(shown, 0)] == 153).all()
    assert shown.layers["truth"].ranges[0] == (min(np.nanmin(truth[0]), drawn(1)[0].min()),
                                               max(np.nanmax(truth[0]), drawn(1)[0].max()))  # fmt: skip
    assert "nan" in shown.readout.value


def test_names_of_arms_are_text():
    assert "&lt;img&gt;" in viewer.view(drawn(), {"<img>": drawn(1)}).readout.value


def test_it_opens_where_the_first_volume_is_largest_or_at_the_largest_tumour():
    volume = drawn()
    volume[0, 3, 1, 5] = 9
    assert viewer.view(predictions={"a": volume}).voxel == (3, 1, 5)
    assert viewer.view(attention={"a": volume[0]}).voxel == (3, 1, 5)
    rows = phantoms.sample("many", 1, 4)[0]
    centre = rows[1 + np.nanargmax(rows[1:, phantoms.AXES].prod(1)), phantoms.CENTRE]
    shown = viewer.view(phantoms.rasterise(rows[None], 32)[0], phantom=rows)
    assert np.abs(np.subtract(shown.point, centre)).max() <= 1  # half a voxel
    assert viewer.view(volume, phantom=phantoms.without_inclusions(rows[None])[0]).voxel == (3, 1, 5)


@pytest.fixture(scope="module")
def full():
    """A phantom on 64^3 with its probe, and where its value is known: its last tumour's centre."""
    rows, optodes = probe.draw(phantoms.sample("single", 1, 0)[0], 0, 0)
    return rows, optodes, phantoms.rasterise(rows[None], 64)[0].numpy()


def test_a_full_volume_shows_its_tumour_and_moves_fast(full):
    rows, optodes, truth = full
    shown = viewer.view(truth, {"a": 0.9 * truth, "b": truth}, phantom=rows, probe=optodes)
    np.testing.assert_allclose(shown.values()["truth"], rows[1, [phantoms.MUA, phantoms.MUSP]], rtol=1e-5)
    start = time.process_time()
    for i in range(10):
        shown.sliders[2].value = i
    assert (time.process_time() - start) / 10 < 0.1


def test_space_is_drawn_when_it_is_opened_and_follows(full):
    rows, optodes, truth = full
    shown = viewer.view(truth, phantom=rows, probe=optodes)
    shown.sliders[0].value = 3
    assert shown.space.value == b""
    shown.fold.selected_index = 0
    first = pixels(shown.space)
    shown.sliders[0].value = 60
    moved = pixels(shown.space)
    assert 0 < (first != moved).any(-1).sum() < 600  # two crosses
    shown.azimuth.value = 30
    assert (pixels(shown.space) != moved).any(-1).sum() > 2000


@pytest.mark.parametrize("rows", [False, True])
def test_from_above_x_is_to_the_right_and_y_upwards(full, rows):
    picture, place = pictures.scene(full[0] if rows else None, None, np.zeros((0, 3)), (90, -90), 64)
    (x, y), (right, same), (middle, up), high = (place(p) for p in ((0, 0, 0), (10, 0, 0), (0, 10, 0), (0, 0, 10)))
    np.testing.assert_allclose((same, middle, *high), (y, x, x, y), atol=0.01)
    assert right - x == pytest.approx(y - up) and 20 < right - x < 100
    assert 0 < x < picture.width and 0 < y < picture.height


def test_a_source_lies_where_its_triangle_is_drawn(full):
    _, optodes, _ = full
    lone = probe.Probe(optodes.sources[:1], np.array([[0, 0, 1000.0]]), optodes.pairs[:1])  # the detector out of sight
    picture, place = pictures.scene(None, lone, np.zeros((0, 3)), (90, -90), 64)
    x, y = (int(v) for v in place(optodes.sources[0]))
    assert abs(np.asarray(picture).astype(int)[y, x] - (0xD5, 0x5E, 0x00)).max() < 12


def test_peaks_are_the_skin_of_what_exceeds_half_the_rise():
    volume = np.full((9, 9, 9), 0.01)
    volume[3:6, 4:7, 0:3] = 0.03
    volume[0, 0, 8] = 0.019
    expected = {(x, y, z) for x in (-10, 0, 10) for y in (0, 10, 20) for z in (-40, -30, -20)} - {(0, 10, -30)}
    assert {tuple(p) for p in pictures.peaks(volume, 90).round(9)} == expected
    assert len(pictures.peaks(np.zeros((4, 4, 4)), 90)) == 0


V, P = drawn(), phantoms.sample("default", 1, 0)[0]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "no volume; at least one of truth, predictions, attention, uncertainty is accepted"),
        ({"truth": V[0]}, "truth has shape (4, 5, 6); (2, D, H, W) is accepted"),
        ({"truth": V, "predictions": {"a": V.T}}, "predictions['a'] has shape (6, 5, 4, 2); (2, 4, 5, 6) is accepted"),
        ({"truth": V, "predictions": V}, "predictions is of type ndarray; a mapping name -> volume is accepted"),
        ({"truth": V, "attention": {"a": V}}, "attention['a'] has shape (2, 4, 5, 6); (4, 5, 6) is accepted"),
        ({"uncertainty": {"a": V[:1]}}, "uncertainty['a'] has shape (1, 4, 5, 6); (2, D, H, W) is accepted"),
        ({"truth": V.astype(str)}, "truth holds <U32; numbers are accepted"),
        ({"truth": V * [[[[np.nan]]], [[[1]]]]}, "truth is infinite, or not a number throughout a channel"),
        ({"truth": np.where(V > 1.9, np.inf, V)}, "truth is infinite, or not a number throughout a channel"),
        ({"truth": V, "phantom": P[:5]}, "phantom has shape (5, 13); (6, 13) with a finite first row is accepted"),
        ({"truth": V, "probe": P}, "probe is of type ndarray; a Probe is accepted"),
        ({"truth": V, "cube": 0}, "cube is 0; a width in mm is accepted"),
        ({"truth": V, "cube": "64"}, "cube is '64'; a width in mm is accepted"),
    ],
)
def test_bad_input_is_one_line(given, line):
    with pytest.raises(ValueError, match="^" + re.escape(f"view: {line}")) as error:
        viewer.view(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("only", [False, True])
def test_it_is_shown_as_widgets_and_as_a_picture(shown, only):
    shown = viewer.view(attention={"a": drawn(3, SHAPE)}) if only else shown
    bundle, about = shown._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == shown.box.model_id
    assert bundle["text/plain"] == f"Viewer of {', '.join(shown.layers)}"
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.format == "PNG" and picture.width > 600
    said = about["image/png"]["alt"]
    assert said.startswith("Three planes through x = ") and all(name in said for name in shown.layers)


def test_the_picture_shows_truth_and_predictions_where_it_opened(shown):
    voxel = shown.start
    shown.sliders[0].value = (voxel[0] + 1) % SHAPE[0]
    images = [ax.images[0] for ax in shown.figure().axes if ax.images]
    planes = iter(images)
    limits = shown.layers["truth"].ranges[0]
    for volume in (drawn(2), drawn(1), drawn()):  # from below
        for normal in range(3):
            expected = lookup(np.take(volume[0], voxel[normal], normal).T, limits, "viridis")
            image = next(planes)
            assert image.origin == "lower"
            np.testing.assert_allclose(image.get_array(), expected, atol=1)
    assert len(images) == 9


def test_a_page_without_widgets_holds_the_picture(shown):
    bundle, _ = shown._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell("v", outputs=[nbformat.v4.new_output("display_data", data=bundle)])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert bundle["image/png"] in page.replace("\n", "") and shown.box.model_id not in page
