"""Large images and tiles: the same maps as of the whole image at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strips import SMALL, assert_equal, detector, stream, strip, whole

from stadfast.linescan import NativeMaps, TiledStreamer, images, native, native_maps, tiles
from stadfast.runtime.memory import resident_memory


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 45, 70), (2, 3, 130, 9)])
def test_images_of_any_size_at_native_scale(shape: tuple[int, ...]) -> None:
    image = strip(*shape[-2:], batch=shape[0] if len(shape) == 4 else 1)
    given = image if len(shape) == 4 else image[0]
    for depth_first in (True, False):
        assert_equal(native_maps(detector(SMALL), given, depth_first=depth_first), whole(SMALL, image))


def test_native_scale_is_what_the_detector_says_at_its_own_size() -> None:
    image = strip(48, 64)
    assert_equal(native_maps(detector(SMALL), image), detector(SMALL).maps(image))


def test_what_is_faster_is_chosen_by_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels at once, without a network converted for streaming; many row block by row block; both are equal."""
    engine, small, large = NativeMaps(detector("stem")), strip(48, 64), strip(1030, 512)
    monkeypatch.setattr(images, "RowStreamer", None)
    few = engine(small)
    with pytest.raises(TypeError):
        engine(large)
    monkeypatch.undo()
    monkeypatch.setattr(images, "whole_maps", None)
    many = engine(large)
    with pytest.raises(TypeError):
        engine(small)
    monkeypatch.undo()
    assert_equal(few, native_maps(detector("stem"), small, depth_first=True))
    assert_equal(many, native_maps(detector("stem"), large, depth_first=False))


@pytest.mark.slow
def test_large_images_in_memory_bounded_by_the_width() -> None:
    """Beside the map itself, a few blocks, whatever the height; and each part of the map is what its surroundings say.

    ``benchmarks/linescan.py --only images`` does the same at 20000 x 4096.
    """
    height, width = 8000, 2000
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (1, 3, 1000, width), dtype=torch.uint8, generator=generator)
    image = rows.repeat(1, 1, height // 1000, 1)
    native_maps(detector("stem"), image[:, :, :1500])  # whatever is made once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident_memory()
    maps = native_maps(detector("stem"), image)
    beside = resident_memory(peak=True) - before - maps.nbytes
    assert beside < 2 * image.nbytes  # the features of the first layer alone would be ten times as much
    part = native_maps(detector("stem"), image[:, :, 3000:3400], depth_first=False)
    assert_equal(maps[:, :, 3100:3300], part[:, :, 100:300])


def test_another_device_leaves_the_detector_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.device("meta")
    for module in (images, tiles):
        monkeypatch.setattr(module, "choose_device", lambda _: there)
    used = []
    monkeypatch.setattr(images, "whole_maps", lambda graph, *_, **__: used.append(graph) or torch.zeros(1))
    graph = detector(SMALL).graph_
    engine = NativeMaps(detector(SMALL), depth_first=False, device="cuda")
    engine(strip(8, 8))
    engine(strip(8, 8))
    assert (used[0].preprocess.mean.device, used[1]) == (there, used[0])
    TiledStreamer(detector(SMALL), 24, device="cuda")
    assert graph.preprocess.mean.device.type == "cpu"
    assert {p.device.type for p in graph.parameters()} == {"cpu"}
    assert native.graph_on(graph, torch.device("cpu")) is graph


def test_tiles_with_enough_overlap_are_exact_too() -> None:
    image = strip(150, 24)
    tiled = TiledStreamer(detector(SMALL), 24, rows_per_push=32, overlap=96)
    assert tiled.delay_rows == 96 + 31
    assert_equal(torch.cat(stream(tiled, image, [1, 50]), dim=2), whole(SMALL, image))
