"""Large images: the same machinery, from the first row to the last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..methods.hardware import choose_device
from .native import check_rows, check_strip, graph_of, graph_on, whole_maps
from .streamer import RowStreamer

_ROWS_AT_ONCE = 1024  # converted from the caller's tensor, so that the image is never copied whole
_SMALL = 2**19  # pixels, below which the whole image at once is faster (benchmarks/linescan.py)


class NativeMaps:
    """:func:`native_maps` for many images, whose network is converted once.

    Args:
        detector, depth_first, device, precision, downscale: as there.
    """

    def __init__(
        self,
        detector: Any,
        *,
        depth_first: bool | None = None,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        downscale: int = 1,
    ) -> None:
        self._graph, self._detector, self._depth_first = graph_of(detector), detector, depth_first
        _, downscale = check_strip(1, downscale, precision, None)
        if depth_first is None and getattr(self._graph.network, "global_term", None) is not None:
            self._depth_first = False
        self._device = choose_device(str(device)) if device else self._graph.preprocess.mean.device
        self._downscale, self._precision = downscale, precision
        self._streamer = self._make_streamer() if depth_first else None

    def _make_streamer(self) -> RowStreamer:
        return RowStreamer(
            self._detector, 1, device=self._device, precision=self._precision, downscale=self._downscale
        )

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) or (3, H, W), uint8 or float in [0, 1] -> (B, 1, H, W) float32 on the CPU.

        Raises:
            UsageError: another shape or dtype, or no pixels.
        """
        if isinstance(images, Tensor) and images.dim() == 3:
            images = images[None]
        width = images.shape[-1] if isinstance(images, Tensor) and images.dim() == 4 else 0
        check_rows(images, width, None)
        if 0 in images.shape:
            raise UsageError(f"images: expected no empty dimension, got {tuple(images.shape)}")
        small = images.shape[0] * images.shape[2] * width < _SMALL
        if self._depth_first is False or (self._depth_first is None and small):
            self._graph = graph_on(self._graph, self._device)
            maps = whole_maps(
                self._graph, images.to(self._device), self._downscale, precision=self._precision
            )
            return maps.cpu()
        self._streamer = self._streamer or self._make_streamer()
        if self._streamer.width != width:
            self._streamer.set_width(width)
        return self._streamed(images, self._streamer)

    def _streamed(self, images: Tensor, streamer: RowStreamer) -> Tensor:
        maps = torch.empty(images.shape[0], 1, *images.shape[2:])
        streamer.reset()
        given = 0
        for part in [*images.split(_ROWS_AT_ONCE, dim=2), None]:
            found = streamer.finish() if part is None else streamer.push(part)
            maps[:, :, given : given + found.shape[2]] = found
            given += found.shape[2]
        return maps


def native_maps(
    detector: Any,
    images: Tensor,
    *,
    depth_first: bool | None = None,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    downscale: int = 1,
) -> Tensor:
    """Anomaly maps of images at their own resolution, without tiles.

    A map of H x W pixels is that of the detector's network for inputs of this size: no image is squashed to the size
    that the detector was fitted for. Where H or W is no multiple of the network's deepest stride, the image is extended
    to the next multiple by repeating its last row and column, and the map is cropped.

    Args:
        detector: fitted; or the path of a bundle.
        images: (B, 3, H, W) or (3, H, W), uint8, or float in [0, 1].
        depth_first: row block by row block (:class:`RowStreamer`), in memory bounded by the width and with the block's
            features in the cache; False: the whole image at once, which any method can do and is equal; None: what is
            faster: the former, unless there are few pixels or the method's maps have a global term.
        device: None: the detector's.
        precision: ``"fp32"`` or ``"bf16"``.
        downscale: average squares of so many pixels first; the map has the image's resolution all the same.

    Returns:
        (B, 1, H, W) float32, on the CPU.

    Raises:
        UsageError: an argument is out of range, or the detector's maps have a global term (``depth_first``).
    """
    engine = NativeMaps(
        detector, depth_first=depth_first, device=device, precision=precision, downscale=downscale
    )
    return engine(images)
