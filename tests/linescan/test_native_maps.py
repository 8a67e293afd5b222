"""Large images and tiles: the same maps as of the whole image at once."""

from __future__ import annotations

import resource

import pytest
import torch
from strips import SMALL, assert_equal, detector, stream, strip, whole

from stadfast.linescan import TiledStreamer, native_maps


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 45, 70), (2, 3, 130, 9)])
def test_images_of_any_size_at_native_scale(shape: tuple[int, ...]) -> None:
    image = strip(*shape[-2:], batch=shape[0] if len(shape) == 4 else 1)
    given = image if len(shape) == 4 else image[0]
    for depth_first in (True, False):
        assert_equal(native_maps(detector(SMALL), given, depth_first=depth_first), whole(SMALL, image))


def test_native_scale_is_what_the_detector_says_at_its_own_size() -> None:
    image = strip(48, 64)
    assert_equal(native_maps(detector(SMALL), image), detector(SMALL).maps(image))


@pytest.mark.slow
def test_large_images_in_memory_bounded_by_the_width() -> None:
    """Beside the map itself, a few blocks; and each part of the map is what its surroundings say.

    ``benchmarks/linescan.py --only images`` does the same at 20000 x 4096.
    """
    height, width = 8000, 2000
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (1, 3, 1000, width), dtype=torch.uint8, generator=generator)
    image = rows.repeat(1, 1, height // 1000, 1)
    native_maps(detector("stem"), image[:, :, :1500])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    maps = native_maps(detector("stem"), image)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 1.5 * maps.numel() * maps.element_size()
    part = native_maps(detector("stem"), image[:, :, 3000:3400], depth_first=False)
    assert_equal(maps[:, :, 3100:3300], part[:, :, 100:300])


def test_tiles_with_enough_overlap_are_exact_too() -> None:
    image = strip(150, 24)
    tiles = TiledStreamer(detector(SMALL), 24, rows_per_push=32, overlap=96)
    assert tiles.delay_rows == 96 + 31
    assert_equal(torch.cat(stream(tiles, image, [1, 50]), dim=2), whole(SMALL, image))
