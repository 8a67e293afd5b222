"""Large images: the same machinery, from the first row to the last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .native import check_rows, check_strip, graph_of, whole_maps
from .streamer import RowStreamer

_ROWS_AT_ONCE = 1024  # converted from the caller's tensor, so that the image is never copied whole


def native_maps(
    detector: Any,
    images: Tensor,
    *,
    depth_first: bool = True,
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
        depth_first: row block by row block (:class:`RowStreamer`), in memory bounded by the width; False: the whole
            image at once, which any method can do and is equal.
        device: None: the detector's.
        precision: ``"fp32"`` or ``"bf16"``.
        downscale: average squares of so many pixels first; the map has the image's resolution all the same.

    Returns:
        (B, 1, H, W) float32, on the CPU.

    Raises:
        UsageError: an argument is out of range, or the detector's maps have a global term (``depth_first``).
    """
    if isinstance(images, Tensor) and images.dim() == 3:
        images = images[None]
    width = images.shape[-1] if isinstance(images, Tensor) and images.dim() == 4 else 0
    check_rows(images, width, None)
    if 0 in images.shape:
        raise UsageError(f"images: expected no empty dimension, got {tuple(images.shape)}")
    if not depth_first:
        graph = graph_of(detector)
        check_strip(width, downscale, precision, None)
        where = torch.device(device) if device else graph.preprocess.mean.device
        return whole_maps(graph.to(where), images.to(where), downscale, precision=precision).cpu()
    streamer = RowStreamer(detector, width, None, device, precision, downscale=downscale)
    maps = torch.empty(images.shape[0], 1, *images.shape[2:])
    given = 0
    parts = [*images.split(_ROWS_AT_ONCE, dim=2), None]
    for part in parts:
        found = streamer.finish() if part is None else streamer.push(part)
        maps[:, :, given : given + found.shape[2]] = found
        given += found.shape[2]
    return maps
