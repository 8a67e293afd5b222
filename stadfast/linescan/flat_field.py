"""Per-column correction of what the camera and the light do to the columns of a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError

_MINIMUM_ROWS = 2
_ROWS_AT_ONCE = 256  # in float64, whatever has come
_FLAT = 1e-3  # a column whose values vary less than this share of the usual says nothing about its gain


class FlatField(NamedTuple):
    """``corrected = gain * value + offset`` for values in [0, 1].

    Attributes:
        gain, offset: (3, W) float32.
    """

    gain: Tensor
    offset: Tensor

    @classmethod
    def learn(cls, rows: Tensor | Iterable[Tensor]) -> FlatField:
        """Give every column the mean and the standard deviation that the columns have on average.

        Moment matching (Horn & Woodham, "Destriping Landsat MSS images by histogram modification", 1979). It takes a
        texture that is the same in all columns in the long run: stripes along the web would be removed as well.
        The gain's relative error is about ``1 / sqrt(2 n)`` for n independent rows.

        Args:
            rows: (B, 3, n, W) of good material, float in [0, 1] or uint8; the more, the better. Or several of these,
                which need not be in memory at once.

        Raises:
            DataError: no tensor, a wrong shape, dtype or range, values that are not finite, another width than before,
                or less than two rows.
        """
        count, mean, variance = 0, torch.zeros(()), torch.zeros(())
        for tensor in (rows,) if isinstance(rows, Tensor) else rows:
            _check(tensor, mean.shape[1] if count else None)
            for part in tensor.split(_ROWS_AT_ONCE, dim=2):
                values = part.double() / (255 if part.dtype == torch.uint8 else 1)
                spread, middle = torch.var_mean(values, dim=(0, 2), correction=0)
                more = part.shape[0] * part.shape[2]
                share, step = more / (count + more), middle - mean
                # Of two samples together (Chan, Golub & LeVeque, 1979).
                mean = mean + share * step
                variance = (1 - share) * variance + share * spread + share * (1 - share) * step**2
                count += more
        if count < _MINIMUM_ROWS:
            raise DataError(f"rows: expected at least {_MINIMUM_ROWS} rows, got {count}")
        usual = variance.mean(dim=1, keepdim=True)
        gain = torch.where(variance > usual * _FLAT**2, (usual / variance).sqrt(), 1.0)
        offset = mean.mean(dim=1, keepdim=True) - gain * mean
        return cls(gain.float(), offset.float())


def _check(rows: Any, width: int | None) -> None:
    """``width``: of the rows before."""
    from ..data.decode import check_range

    if not isinstance(rows, Tensor):
        raise DataError(f"rows: expected a tensor (B, 3, n, W), got {type(rows).__name__}")
    if (
        rows.dim() != 4
        or rows.shape[1] != 3
        or rows.numel() == 0
        or rows.shape[3] != (width or rows.shape[3])
    ):
        raise DataError(f"rows: expected (B, 3, n, {width or 'W'}) with rows in it, got {tuple(rows.shape)}")
    if rows.dtype == torch.uint8:
        return
    if not rows.is_floating_point():
        raise DataError(f"rows: expected uint8, or float in [0, 1], got {rows.dtype}")
    low, high = (float(value) for value in torch.aminmax(rows))
    check_range(low, high, "rows")
