"""Per-column correction of what the camera and the light do to the columns of a line."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError

_MINIMUM_ROWS = 2
_FLAT = 1e-3  # a column whose values vary less than this share of the usual says nothing about its gain


class FlatField(NamedTuple):
    """``corrected = gain * value + offset`` for values in [0, 1].

    Attributes:
        gain, offset: (3, W) float32.
    """

    gain: Tensor
    offset: Tensor

    @classmethod
    def learn(cls, rows: Tensor) -> FlatField:
        """Give every column the mean and the standard deviation that the columns have on average.

        Moment matching (Horn & Woodham, "Destriping Landsat MSS images by histogram modification", 1979). It takes a
        texture that is the same in all columns in the long run: stripes along the web would be removed as well.
        The gain's relative error is about ``1 / sqrt(2 n)`` for n independent rows.

        Args:
            rows: (B, 3, n, W) of good material, float in [0, 1] or uint8; the more, the better.

        Raises:
            DataError: a wrong shape, or less than two rows.
        """
        if rows.dim() != 4 or rows.shape[1] != 3 or rows.shape[0] * rows.shape[2] < _MINIMUM_ROWS:
            raise DataError(
                f"rows: expected (B, 3, n, W) with at least {_MINIMUM_ROWS} rows, got {tuple(rows.shape)}"
            )
        values = rows.double() / (255 if rows.dtype == torch.uint8 else 1)
        variance, mean = torch.var_mean(values, dim=(0, 2))
        usual = variance.mean(dim=1, keepdim=True)
        gain = torch.where(variance > usual * _FLAT**2, (usual / variance).sqrt(), 1.0)
        offset = mean.mean(dim=1, keepdim=True) - gain * mean
        return cls(gain.float(), offset.float())
