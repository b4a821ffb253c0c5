"""What the pictures show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.quiver import Quiver

from pipeline.reporting.drawing import draw_translation
from pipeline.reporting.samples import Sample, evenly_spread


def make_sample(seed: int = 0, shape: tuple[int, int] = (20, 24), **parts: object) -> Sample:
    images = np.random.default_rng(seed).uniform(-0.8, 1, (3, *shape)).astype(np.float32)
    return replace(Sample(*images, case="patient07", slice=91), **parts)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def panel(figure: Figure, title: str):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def test_columns_are_those_that_the_samples_have(tmp_path, figures):
    image = np.zeros((20, 24), np.float32)
    draw_translation([make_sample()], tmp_path / "plain.png")
    draw_translation([make_sample(), make_sample(baseline=image)], tmp_path / "baseline.png")
    registered = make_sample(misaligned=image, warped=image, ddf=np.ones((2, 20, 24), np.float32))
    draw_translation([registered], tmp_path / "registered.png")
    plain = ["Source", "Prediction", "Target", "Error"]
    assert titles(figures[0]) == plain
    assert titles(figures[1]) == [*plain, "Intensity map", "Its error"]
    assert titles(figures[2]) == [*plain, "Misaligned target", "Warped prediction", "Displacement"]


def test_picture_is_a_file_with_nothing_beside_it(tmp_path):
    draw_translation([make_sample()], tmp_path / "new" / "picture.png", title="A title")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
    assert imread(tmp_path / "new" / "picture.png").std() > 0


def test_rows_share_their_scales(tmp_path, figures):
    bad = make_sample(1)
    good = replace(bad, prediction=bad.target + 0.01)
    draw_translation([good, bad], tmp_path / "picture.png")
    limits = [image.get_clim() for axes in figures[0].axes for image in axes.images]
    assert {limits[i] for i in (0, 1, 2, 4, 5, 6)} == {(-1, 1)}
    assert limits[3] == limits[7]
    assert limits[3][1] > 0.5


def test_error_is_the_distance_to_the_target(tmp_path, figures):
    sample = make_sample()
    draw_translation([sample], tmp_path / "picture.png", error_limit=0.3)
    shown = panel(figures[0], "Error").images[0]
    np.testing.assert_allclose(shown.get_array().T, np.abs(sample.prediction - sample.target))
    assert shown.get_clim() == (0, 0.3)


def test_view_is_the_radiologists(tmp_path, figures):
    draw_translation([make_sample()], tmp_path / "picture.png")
    to_screen = panel(figures[0], "Source").transData.transform
    left, right = to_screen((0, 5)), to_screen((10, 5))
    back, front = to_screen((5, 0)), to_screen((5, 10))
    assert right[0] < left[0]  # the first axis of RAS runs to the patient's right, which is shown on the left
    assert front[1] > back[1]


def test_arrows_are_the_field(tmp_path, figures):
    ddf = np.stack([np.full((20, 24), 2.0), np.full((20, 24), -1.0)])
    draw_translation([make_sample(ddf=ddf)], tmp_path / "picture.png")
    axes = panel(figures[0], "Displacement")
    (arrows,) = (item for item in axes.collections if isinstance(item, Quiver))
    assert set(arrows.U) == {2.0}
    assert set(arrows.V) == {-1.0}
    assert (arrows.angles, arrows.scale_units) == ("xy", "xy")
    np.testing.assert_allclose(axes.images[0].get_array(), np.sqrt(5))


def test_a_field_of_zeros_can_be_drawn(tmp_path, figures):
    draw_translation([make_sample(ddf=np.zeros((2, 20, 24)))], tmp_path / "picture.png")
    assert panel(figures[0], "Displacement").images[0].get_clim() == (0, pytest.approx(0.1))


def test_common_background_is_cut_off(tmp_path, figures):
    target = np.full((100, 100), -1.0)
    target[40:60, 30:50] = 0.5
    sample = Sample(target, target.copy(), target)
    sample.prediction[70, 35] = 0  # what a network invents outside the patient stays in view
    draw_translation([sample], tmp_path / "picture.png")
    assert panel(figures[0], "Source").images[0].get_array().shape == (20 + 6, 31 + 6)


def test_empty_images_are_drawn_whole(tmp_path, figures):
    image = np.full((20, 24), -1.0)
    draw_translation([Sample(image, image, image)], tmp_path / "picture.png")
    assert panel(figures[0], "Source").images[0].get_array().shape == (24, 20)


def test_rows_are_labelled(tmp_path, figures):
    draw_translation([make_sample(psnr=21.5), make_sample(case="x" * 50)], tmp_path / "picture.png", title="Title")
    text = [item.get_text() for item in figures[0].texts]
    assert "patient07\nslice 91" in text
    assert "Title" in text
    assert max(len(line) for label in text if "slice" in label for line in label.split("\n")) <= 26
    assert panel(figures[0], "Error").get_xlabel() == "PSNR 21.50 dB"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prediction": np.zeros((4, 4))}, r"prediction has shape \(4, 4\), expected the source's \(20, 24\)"),
        ({"source": np.zeros((1, 20, 24))}, r"pictures show slices \(X, Y\), got a source of shape \(1, 20, 24\)"),
        ({"ddf": np.zeros((3, 20, 24))}, r"ddf has shape \(3, 20, 24\), expected \(2, 20, 24\)"),
    ],
)
def test_samples_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        make_sample(**parts)


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no samples to draw"):
        draw_translation([], tmp_path / "picture.png")
    with pytest.raises(ValueError, match="samples must have one shape"):
        draw_translation([make_sample(), make_sample(shape=(8, 8))], tmp_path / "picture.png")
    with pytest.raises(ValueError, match="error_limit must be positive, got 0"):
        draw_translation([make_sample()], tmp_path / "picture.png", error_limit=0)


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(10, 2, [2, 7]), (3, 8, [0, 1, 2]), (100, 1, [50]), (0, 4, [])]
)
def test_evenly_spread(total, count, expected):
    assert evenly_spread(total, count) == expected
