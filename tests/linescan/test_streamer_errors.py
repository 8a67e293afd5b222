"""What cannot be streamed is said in words."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from strips import SMALL, assert_equal, detector, stream, streamer, strip, untrained
from torch import Tensor

import stadfast as sf
from stadfast.errors import StadfastError, UsageError
from stadfast.linescan import FlatField, RowStreamer, TiledStreamer, native_maps
from stadfast.methods import create


def test_a_strip_shorter_than_a_mirrored_border_has_no_map() -> None:
    found = streamer("stereotype-distilled", 21)
    found.push(strip(8, 21))
    with pytest.raises(UsageError, match="rows: the strip has 8, and the mirrored border 8: wanted more"):
        found.finish()
    with pytest.raises(UsageError, match="width: expected more than 8 columns"):
        RowStreamer(detector("stereotype-distilled"), 8).push(strip(9, 8))


def test_one_patch_has_no_native_scale() -> None:
    made = untrained(create("stereotype", weights=None, device="cpu", one_patch=True, widths=(1,)))
    with pytest.raises(UsageError, match="with one_patch it has one number per image"):
        RowStreamer(made, 64)


def test_errors_name_the_argument() -> None:
    made = detector(SMALL)
    for message, call in {
        "width: expected a whole number from 1, got 0": lambda: RowStreamer(made, 0),
        "rows_per_push: expected a multiple of 8, got 20": lambda: RowStreamer(made, 16, 20),
        "precision: expected one of fp32, bf16, got 'int8'": lambda: RowStreamer(made, 16, precision="int8"),
        "device: expected auto, cpu, cuda or cuda:N, got 'foo'": lambda: RowStreamer(made, 16, device="foo"),
        "downscale: expected a whole number from 1, got 1.5": lambda: RowStreamer(made, 16, downscale=1.5),  # type: ignore[arg-type]
        r"flat_field: expected gains of shape \(3, 16\)": lambda: RowStreamer(
            made, 16, flat_field=FlatField(torch.ones(3, 8), torch.zeros(3, 8))
        ),
        r"rows: expected a tensor \(B, 3, n, 21\), got \(1, 3, 5, 20\)": lambda: streamer(SMALL, 21).push(
            strip(5, 20)
        ),
        "rows: expected uint8, or float": lambda: streamer(SMALL, 21).push(strip(5, 21).to(torch.int32)),
        "rows_per_push: a step has a fixed number": lambda: streamer(SMALL, 21).step(strip(8, 21), []),
        "overlap: expected a multiple of 8, got 4": lambda: TiledStreamer(made, 16, overlap=4),
        "images: expected no empty dimension": lambda: native_maps(made, strip(5, 20)[:, :, :0]),
    }.items():
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(StadfastError, match="fitted"):
        RowStreamer(sf.STPM(), 16)


@pytest.mark.parametrize("kind", [RowStreamer, TiledStreamer])
def test_what_the_streamers_order_differently_goes_by_name(kind: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind(detector(SMALL), 16, 8, "cpu")


def test_no_camera_has_an_empty_map() -> None:
    found = RowStreamer(detector(SMALL), 21, 8)
    maps = [found.push(strip(80, 21)[:0]) for _ in range(2)]
    assert torch.cat([*maps, found.finish()], dim=2).shape == (0, 1, 160, 21)


def test_sizes_may_be_numpys() -> None:
    made, sizes = detector(SMALL), (np.uint8(16), np.uint8(8))
    for found in (RowStreamer(made, *sizes), TiledStreamer(made, *sizes)):  # type: ignore[arg-type]
        maps = torch.cat([found.push(strip(40, 16)), found.finish()], dim=2)
        assert maps.shape == (1, 1, 40, 16)


def test_a_strip_keeps_its_cameras_and_dtype() -> None:
    found = streamer(SMALL, 21)
    found.reset()
    found.push(strip(5, 21))
    for other in (strip(5, 21, batch=2), (strip(5, 21) * 255).to(torch.uint8)):
        with pytest.raises(
            UsageError, match=r"rows: expected 1 cameras in torch.float32 as at the strip's beginning"
        ):
            found.push(other)
    found.reset()


def test_a_global_term_is_named_and_tiles_are_offered() -> None:
    quantile = sf.STPM(weights=None, layers=["layer1"], background_quantile=0.5, device="cpu")
    for made, term in (
        (quantile, "background_quantile"),
        (create("mkd", weights=None, device="cpu"), "gradient of a"),
    ):
        with pytest.raises(UsageError, match=rf"depend on .*{term}.*TiledStreamer"):
            RowStreamer(untrained(made), 32)
        image = strip(75, 32)
        tiles = TiledStreamer(made, 32, 32, overlap=32)
        maps = torch.cat(stream(tiles, image, [20]), dim=2)
        assert maps.shape == (1, 1, 75, 32)
        first = native_maps(made, image[:, :, :64], depth_first=False)[
            :, :, :32
        ]  # a tile is an image of its own
        assert_equal(maps[:, :, :32] / first.max(), first / first.max())


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([48, 64], "one of its inputs is 3/4 of the image; at native scale wanted .* 1/2, 1/3"),
        ([64, (64, 32)], r"scaled copies of the image, and .* are none of 64 x 64"),
    ],
)
def test_input_sizes_that_are_no_copies_of_the_strip_are_named(scales: list[Any], message: str) -> None:
    made = create("msfi", weights=None, layers=["layer1"], image_size=64, scales=scales, device="cpu")
    with pytest.raises(UsageError, match=message):
        RowStreamer(untrained(made), 32)


def test_a_layer_that_is_not_local_is_named() -> None:
    class Global(torch.nn.Module):
        size = (1, 1)

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y * y.mean(dim=(2, 3), keepdim=True)

    made = copy.copy(detector(SMALL))
    made.graph_ = copy.copy(made.graph_)
    made.graph_._modules = {**made.graph_._modules, "network": Global()}
    with pytest.raises(UsageError, match="mean is not known to work row by row"):
        RowStreamer(made, 16)
