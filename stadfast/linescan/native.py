"""Native scale: a detector's network on images of any size, none of them resized.

The network was made for inputs whose height and width are multiples of its deepest stride. An image (or strip) of
another size is extended to the next multiple by repeating its last row and column, and the map is cropped. So the
ratio of a level to the image is exactly its stride, whatever the size: what bilinear interpolation needs to know,
and what a strip that has not ended yet can tell.
"""

from __future__ import annotations

import copy
import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import StadfastError, UsageError
from .arguments import check_positive
from .flat_field import FlatField

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_READ = (torch.uint8, torch.float32)  # what normalize_images takes


def is_recorded() -> bool:
    """Whether a graph of PyTorch's own operators is being made of what runs."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def native_network(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The same network, sharing its weights, with maps of another size.

    Raises:
        UsageError: its maps have no size of their own to change.
    """
    at_size: Any = getattr(network, "at_size", None)
    if at_size is not None:
        return at_size(size)
    if not hasattr(network, "size"):
        raise UsageError(
            f"detector: {type(network).__name__} cannot run at native scale: its maps' size is fixed"
        )
    other = copy.copy(network)
    other.size = size  # type: ignore[assignment]
    ratios = scale_ratios(network)
    return _ScaledCopies(other, ratios) if ratios else other


def scale_ratios(network: nn.Module) -> list[Fraction]:
    """The sizes of a network's inputs over that of its maps; empty if it takes the image itself.

    Raises:
        UsageError: heights and widths have different ratios, or an input is smaller, but not by a whole factor.
    """
    sizes: Any = getattr(network, "sizes", None)
    if sizes is None:
        return []
    if len(sizes) == 1:
        return [Fraction(1)]
    height, width = network.size  # type: ignore[misc]
    ratios = [Fraction(h, height) for h, _ in sizes]
    for ratio, (_, w) in zip(ratios, sizes, strict=True):
        if ratio != Fraction(w, width):
            raise UsageError(
                f"detector: at native scale its inputs are scaled copies of the image, and {sizes} are none of "
                f"{height} x {width}: fit it with scales and image_size of one shape"
            )
        if ratio < 1 and ratio.numerator != 1:
            raise UsageError(
                f"detector: one of its inputs is {ratio} of the image; at native scale wanted whole multiples, "
                f"fractions above 1, or 1/2, 1/3, ...: choose other scales, or an image_size other than {height}"
            )
    return ratios


class _ScaledCopies(nn.Module):
    """A network for images of several sizes, which are made from one: bilinear, with antialiasing where smaller."""

    def __init__(self, network: nn.Module, ratios: list[Fraction]) -> None:
        super().__init__()
        self.network, self.ratios = network, ratios

    def forward(self, images: Tensor) -> Any:
        return self.network([self._copy(images, ratio) for ratio in self.ratios])

    def _copy(self, images: Tensor, ratio: Fraction) -> Tensor:
        if ratio == 1:
            return images
        size = [int(int(side) * ratio) for side in images.shape[2:]]  # sizes of a recording are tensors
        return F.interpolate(images, size, mode="bilinear", antialias=ratio < 1)


def is_archive(detector: Any) -> bool:
    """Whether it is the path of an archive of :func:`stadfast.export`, by its suffix."""
    from ..runtime.archive import SUFFIXES

    return isinstance(detector, (str, os.PathLike)) and Path(detector).suffix.lower() in SUFFIXES.values()


def graph_of(detector: Any) -> Any:
    """The scoring graph of a fitted detector, or of a bundle's path.

    Raises:
        StadfastError: not fitted. BundleError: no bundle. UsageError: an archive.
    """
    if is_archive(detector):
        raise UsageError(
            f"detector: expected one that is fitted, or its bundle, got the archive {detector}, whose network runs at "
            "one size only; RowStreamer alone streams archives"
        )
    if isinstance(detector, (str, os.PathLike)):
        from ..methods import load

        detector = load(detector)
    graph = getattr(detector, "graph_", None)
    if graph is None:
        raise StadfastError(f"detector: expected a fitted one, got {type(detector).__name__} without graph_")
    return graph


def graph_on(graph: Any, device: torch.device) -> Any:
    """The graph itself if it is on that device, else a copy: the caller's detector stays where it is."""
    return graph if graph.preprocess.mean.device == device else copy.deepcopy(graph).to(device)


def deepest_stride(network: nn.Module) -> int:
    """Rows and columns of native images are extended to a multiple of this."""
    stride = math.lcm(*(s for module in network.modules() for s in getattr(module, "strides", ())))
    return math.lcm(stride, *((stride / ratio).numerator for ratio in scale_ratios(network)))


class Preparation(nn.Module):
    """What happens to rows before the network: flat field, normalisation, extension, integer down-scaling.

    Shape: (B, 3, n, W) uint8, or float in [0, 1] -> (B, 3, n / downscale, columns / downscale), channels_last.

    Args:
        preprocess: with ``mean`` and ``std`` (1, 3, 1, 1).
        width: W.
        columns: to which W is extended.
        dtype: of the result.
    """

    gain: Tensor
    offset: Tensor

    def __init__(
        self, preprocess: Any, width: int, columns: int, downscale: int = 1, flat_field: FlatField | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        gain, offset = 1 / preprocess.std, -preprocess.mean / preprocess.std
        self.mean, self.std = preprocess.mean.flatten().tolist(), preprocess.std.flatten().tolist()
        if flat_field is not None:
            offset = offset + gain * flat_field.offset[None, :, None].to(gain)
            gain = gain * flat_field.gain[None, :, None].to(gain)
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)
        self.missing, self.downscale, self.dtype = columns - width, downscale, dtype
        self.at_once = flat_field is None and columns == width and downscale == 1

    def forward(self, rows: Tensor) -> Tensor:
        return self.normalised(rows).to(self.dtype, memory_format=torch.channels_last)

    def normalised(self, rows: Tensor) -> Tensor:
        """The same; in one pass where that can be done on a CPU, otherwise still planar float32."""
        if self.at_once and rows.device.type == "cpu" and rows.dtype in _READ and not is_recorded():
            return ops.normalize_images(rows, self.mean, self.std, self.dtype)
        gain = self.gain / 255 if rows.dtype == torch.uint8 else self.gain
        x = torch.addcmul(self.offset, rows.float(), gain)
        if self.missing:
            x = F.pad(x, (0, self.missing, 0, 0), mode="replicate")
        if self.downscale > 1:
            x = F.avg_pool2d(x, self.downscale)
        return x


def extend_rows(rows: Tensor, multiple: int) -> Tensor:
    """The last row repeated up to a multiple."""
    missing = -rows.shape[2] % multiple
    return torch.cat([rows, rows[:, :, -1:].expand(-1, -1, missing, -1)], dim=2) if missing else rows


@torch.no_grad()
def whole_maps(
    graph: Any,
    images: Tensor,
    downscale: int = 1,
    flat_field: FlatField | None = None,
    precision: str = "fp32",
) -> Tensor:
    """The network on whole images at once: what a stream's maps are equal to.

    Args:
        graph: of a fitted detector.
        images: (B, 3, H, W) on the graph's device, uint8 or float in [0, 1].
        downscale: as in :class:`RowStreamer`.
        flat_field: as there.
        precision: as there.

    Returns:
        (B, 1, H, W) float32.
    """
    height, width = images.shape[2:]
    unit = deepest_stride(graph.network) * downscale
    columns = width + -width % unit
    rows = extend_rows(images, unit)
    prepare = Preparation(graph.preprocess, width, columns, downscale, flat_field).to(images.device)
    network = native_network(graph.network, (rows.shape[2], columns))
    with torch.autocast(images.device.type, DTYPES["bf16"], enabled=precision == "bf16"):
        found = network(prepare(rows))
    maps = found[0] if isinstance(found, tuple) else found
    return maps[:, :, :height, :width].float()


# ------------------------------------------------------------------------------------------- arguments


def check_strip(width: Any, downscale: Any, precision: Any, flat_field: FlatField | None) -> tuple[int, int]:
    """Width and down-scaling, as integers of Python's own."""
    width, downscale = check_positive("width", width), check_positive("downscale", downscale)
    if precision not in DTYPES:
        raise UsageError(f"precision: expected one of {', '.join(DTYPES)}, got {precision!r}")
    if flat_field is not None and flat_field.gain.shape != (3, width):
        raise UsageError(
            f"flat_field: expected gains of shape (3, {width}), got {tuple(flat_field.gain.shape)}"
        )
    return width, downscale


def check_rows(rows: Any, width: int, before: Tensor | None) -> None:
    """``before``: earlier rows of the same strip."""
    if not isinstance(rows, Tensor) or rows.dim() != 4 or rows.shape[1] != 3 or rows.shape[3] != width:
        came = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise UsageError(f"rows: expected a tensor (B, 3, n, {width}), got {came}")
    if rows.dtype != torch.uint8 and not rows.is_floating_point():
        raise UsageError(f"rows: expected uint8, or float in [0, 1], got {rows.dtype}")
    if before is not None and (rows.shape[0] != before.shape[0] or rows.dtype != before.dtype):
        raise UsageError(
            f"rows: expected {before.shape[0]} cameras in {before.dtype} as at the strip's beginning, "
            f"got {rows.shape[0]} in {rows.dtype}"
        )
