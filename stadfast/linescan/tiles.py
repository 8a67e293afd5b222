"""Overlapped tiles: for methods whose maps have a global term, and the peer of exact streaming."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..methods.hardware import choose_device
from .arguments import check_multiple
from .flat_field import FlatField
from .native import check_rows, check_strip, deepest_stride, graph_of, graph_on, whole_maps


class TiledStreamer:
    """Anomaly maps of an endless strip, tile by tile.

    Each tile is computed with ``overlap`` more rows on both sides, of which nothing is kept: rows of the map within the
    network's reach of a tile's edge would be wrong, and are right if the overlap is larger. What depends on the whole
    image (a quantile of the map, the gradient of a global loss) depends on the whole tile here, and differs from tile
    to tile: such maps have seams that no overlap takes away.

    Args:
        detector: fitted, of any method; or the path of a bundle.
        width: columns of the strip.
        rows_per_push: rows of a tile that are kept, a multiple of ``unit``.
        overlap: further rows on both sides, a multiple of ``unit``.
        device: None: the detector's.
        precision, downscale, flat_field: see :class:`RowStreamer`.

    Attributes:
        unit: the network's deepest stride times ``downscale``.
        delay_rows: so many rows after it has come, at the latest, a row's map is out.

    Raises:
        UsageError: an argument is out of range. StadfastError: the detector is not fitted.
    """

    def __init__(
        self,
        detector: Any,
        width: int,
        rows_per_push: int = 64,
        *,
        overlap: int = 144,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        downscale: int = 1,
        flat_field: FlatField | None = None,
    ) -> None:
        graph = graph_of(detector)
        width, downscale = check_strip(width, downscale, precision, flat_field)
        self.unit = deepest_stride(graph.network) * downscale
        rows_per_push = check_multiple("rows_per_push", rows_per_push, self.unit)
        overlap = check_multiple("overlap", overlap, self.unit)
        self._device = choose_device(str(device)) if device else graph.preprocess.mean.device
        self._graph = graph_on(graph, self._device)
        self._options: dict[str, Any] = {
            "downscale": downscale,
            "flat_field": flat_field,
            "precision": precision,
        }
        self.width, self.rows_per_push, self.overlap = width, rows_per_push, overlap
        self.delay_rows = overlap + rows_per_push - 1
        self._rows: Tensor | None = None
        self._first = self._given = 0  # the strip's row that _rows begins with; map rows that are out

    def push(self, rows: Tensor) -> Tensor:
        """The next rows (B, 3, n, W) -> the map's rows of finished tiles (B, 1, m, W), float32, m >= 0.

        Raises:
            UsageError: another shape, batch size or dtype than wanted.
        """
        check_rows(rows, self.width, self._rows)
        rows = rows.to(self._device)
        self._rows = rows if self._rows is None else torch.cat([self._rows, rows], dim=2)
        maps = [self._rows.new_zeros(rows.shape[0], 1, 0, self.width, dtype=torch.float32)]
        while self._first + self._rows.shape[2] >= self._given + self.rows_per_push + self.overlap:
            maps.append(self._tile())
        return torch.cat(maps, dim=2)

    def finish(self) -> Tensor:
        """End the strip: the rest of its map's rows. The next push begins a new strip."""
        maps = [
            torch.zeros(
                0 if self._rows is None else self._rows.shape[0], 1, 0, self.width, device=self._device
            )
        ]
        while self._rows is not None and self._given < self._first + self._rows.shape[2]:
            maps.append(self._tile())
        self.reset()
        return torch.cat(maps, dim=2)

    def reset(self) -> None:
        """Forget the strip; the next push begins a new one."""
        self._rows = None
        self._first = self._given = 0

    def _tile(self) -> Tensor:
        assert self._rows is not None
        start = self._given - self._first
        end = start + self.rows_per_push
        tile = whole_maps(self._graph, self._rows[:, :, : end + self.overlap], **self._options)
        maps = tile[:, :, start:end]
        self._given += maps.shape[2]
        done = max(0, end - self.overlap)
        self._rows = self._rows[:, :, done:].clone()
        self._first += done
        return maps
