"""Blur and opening of maps against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from stadfast.methods.smoothing import GaussianBlur, opening

CROSS = ndimage.generate_binary_structure(2, 1)


@pytest.mark.parametrize(("size", "sigma"), [((48, 64), 4.0), ((9, 5), 4.0), ((33, 1), 1.5), ((20, 20), 0.3)])
def test_blur_is_scipys(size: tuple[int, int], sigma: float) -> None:
    maps = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(0))
    expected = np.stack([ndimage.gaussian_filter(m[0].double().numpy(), sigma) for m in maps])
    ours = GaussianBlur(size, sigma)(maps)[:, 0]
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_blur_keeps_a_level_and_the_total() -> None:
    blur = GaussianBlur((40, 30), 4.0)
    torch.testing.assert_close(blur(torch.full((1, 1, 40, 30), 3.0)), torch.full((1, 1, 40, 30), 3.0))
    maps = torch.rand(2, 1, 40, 30, generator=torch.Generator().manual_seed(0))
    totals = [x.double().sum((1, 2, 3)) for x in (blur(maps), maps)]
    torch.testing.assert_close(*totals, rtol=1e-5, atol=0)  # weights and maps are float32


def test_opening_is_the_opening_of_every_binary_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 12, (4, 1, 17, 23), generator=generator).float()
    opened = opening(maps)
    for threshold in range(12):
        for ours, image in zip(opened[:, 0] >= threshold, maps[:, 0] >= threshold, strict=True):
            # beyond the border nothing erodes, as in OpenCV
            eroded = ndimage.binary_erosion(image.numpy(), CROSS, border_value=1)
            expected = ndimage.binary_dilation(eroded, CROSS)
            assert np.array_equal(ours.numpy(), expected), threshold
    assert not torch.equal(opened, maps)


def test_opening_levels_what_is_smaller_than_the_cross() -> None:
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 2, 2] = 5.0  # a point
    cross = torch.zeros_like(maps)
    cross[0, 0, 6, 5:8] = cross[0, 0, 5:8, 6] = 3.0
    assert torch.equal(opening(maps + cross), cross)
