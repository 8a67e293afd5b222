import numpy as np
import pytest
import torch

from stadfast.errors import UsageError
from stadfast.report import heatmap, overlay, scale_position
from stadfast.report.heatmap import MASK_COLOUR, colour_bar, draw_contour


def test_the_threshold_is_mid_scale_and_decades_are_even():
    position = scale_position(torch.tensor([1e-5, 1e-4, 1e-3, 1e-2, 1e-1]), threshold=1e-3, decades=2)
    assert position == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-6)


@pytest.mark.parametrize(("value", "wanted"), [(0.0, 0), (-1.0, 0), (1e30, 1), (float("inf"), 1), (1e-45, 0)])
def test_values_off_the_scale_lie_on_its_ends(value, wanted):
    assert scale_position(np.array([value]), threshold=1.0)[0] == wanted


def test_one_value_has_one_colour_whatever_else_is_in_the_map():
    calm, hot = torch.full((4, 4), 2e-4), torch.full((4, 4), 5.0)
    hot[0, 0] = 2e-4
    assert (heatmap(calm, 1e-3)[0, 0] == heatmap(hot, 1e-3)[0, 0]).all()
    assert (heatmap(calm, 1e-3) == heatmap(calm, 1e-3)[0, 0]).all()


def test_lightness_rises_with_the_score():
    lightness = colour_bar(256).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness[0]) >= -1.0).all()
    assert lightness[0, -1] > 200 > 20 > lightness[0, 0]


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_without_a_logarithm_is_refused(threshold):
    with pytest.raises(UsageError, match="threshold must be a positive number"):
        heatmap(torch.ones(2, 2), threshold)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_overlay_keeps_the_images_size_and_greys_what_is_normal(dtype):
    image = torch.rand(3, 40, 60)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image
    values = torch.full((1, 8, 8), 1e-9)
    picture = overlay(image, values, 1.0)
    assert picture.shape == (40, 60, 3)
    assert picture.dtype == np.uint8
    assert np.ptp(picture.astype(int), axis=2).max() <= 3  # no colour where nothing is abnormal


def test_overlay_of_an_array_equals_that_of_a_tensor():
    image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    values = torch.rand(16, 24)
    assert (overlay(image, values, 0.5) == overlay(image.permute(1, 2, 0).numpy(), values.numpy(), 0.5)).all()


def test_an_image_of_16_bits_is_that_of_8():
    image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    finer = (image.to(torch.int32) * 257).to(torch.uint16)
    values = torch.rand(16, 24)
    for same in (finer, finer.permute(1, 2, 0).numpy()):
        assert (overlay(same, values, 0.5) == overlay(image, values, 0.5)).all()


@pytest.mark.parametrize(
    ("dtype", "words"), [(torch.int64, "int64 up to 200"), (torch.float32, "float32 up to 200")]
)
def test_images_of_other_values_are_refused(dtype, words):
    with pytest.raises(
        UsageError, match=rf"image must be uint8, uint16 or floating point in \[0, 1\], got {words}"
    ):
        overlay(torch.full((3, 4, 4), 200, dtype=dtype), torch.ones(4, 4), 1.0)


def test_contours_lie_just_outside_the_region():
    picture = np.zeros((20, 20, 3), np.uint8)
    mask = torch.zeros(20, 20)
    mask[5:10, 5:10] = 1
    draw_contour(picture, mask, MASK_COLOUR)
    drawn = (picture == MASK_COLOUR).all(axis=2)
    assert drawn[4:11, 4:11].sum() == drawn.sum() == 49 - 25
    assert not drawn[5:10, 5:10].any()


def test_contours_of_large_images_are_the_squares():
    mask = torch.rand(1300, 1500, generator=torch.Generator().manual_seed(0)) > 0.999
    picture = np.zeros((1300, 1500, 3), np.uint8)
    draw_contour(picture, mask, MASK_COLOUR)
    grown = (
        torch.nn.functional.max_pool2d(mask[None].float(), 11, stride=1, padding=5)[0] > 0
    )  # radius 1500 / 320
    assert np.array_equal((picture == MASK_COLOUR).all(axis=2), (grown & ~mask).numpy())


def test_overlay_draws_the_mask_and_the_region_above_the_threshold():
    values = torch.full((20, 20), 0.1)
    values[2:6, 2:6] = 10.0
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[12:16, 12:16] = True
    picture = overlay(torch.zeros(3, 20, 20), values, 1.0, mask)
    assert (picture[1, 3] == 255).all()
    assert tuple(picture[11, 13]) == MASK_COLOUR


@pytest.mark.parametrize("shape", [(3, 3), (4, 4, 4), (2, 3, 4, 4)])
def test_wrong_image_shapes_are_named(shape):
    with pytest.raises(UsageError, match="image must be"):
        overlay(torch.zeros(shape), torch.ones(4, 4), 1.0)


def test_wrong_map_shapes_are_named():
    with pytest.raises(UsageError, match=r"map must be \(H, W\), got \(2, 4, 4\)"):
        heatmap(torch.ones(2, 4, 4), 1.0)
