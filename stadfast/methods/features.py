"""The frozen teacher's features, computed once and kept: half of a training step that need not be repeated."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._progress import progress
from ..errors import UsageError
from . import distributed
from .graph import Preprocess
from .hardware import Precision, available_memory
from .sources import Images, read_resized

logger = logging.getLogger("stadfast")

_SHARE_OF_MEMORY = 0.5  # of what is free; the rest is for training itself
_SHARE_OF_DISK = 0.5
_WHERE = {"memory": "kept in memory", "disk": "kept on disk", "recomputed": "computed anew for each batch"}


class FeatureStore:
    """Preprocessed images with their teacher features, by index.

    Kept in memory if they fit the budget, else in files of a temporary folder, else computed anew for each batch.
    Tensors are stored channels_last and in the training precision.

    Args:
        images: paths, or (3, H, W) tensors as :func:`stadfast.data.as_images` returns them.
        preprocess: to the teacher's input.
        teacher: frozen, normalised (B, 3, H, W) -> list of (B, C_l, H_l, W_l).
        precision: dtype of the stored tensors and of the teacher's arithmetic.
        device: where the teacher runs and the batches are delivered.
        budget_gb: memory for the store; None: half of what is free.
        skip_broken: leave out unreadable files (listed in ``broken``) instead of raising.

    Attributes:
        broken: (path, reason) of the files left out.
        kept: ``"memory"``, ``"disk"`` or ``"recomputed"``.
    """

    def __init__(
        self,
        images: Images,
        preprocess: Preprocess,
        teacher: Callable[[Tensor], list[Tensor]],
        *,
        precision: Precision,
        device: torch.device,
        budget_gb: float | None = None,
        batch_size: int = 32,
        skip_broken: bool = False,
        show_progress: bool = True,
    ) -> None:
        if budget_gb is not None and budget_gb < 0:
            raise UsageError(f"cache_gb: expected 0 or more, got {budget_gb}")
        self.broken: list[tuple[Path, str]] = []
        self._images = images
        self._preprocess, self._teacher = preprocess, teacher
        self._precision, self._device = precision, device
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._stored: list[Tensor] = []
        shapes = [
            tuple(t.shape[1:]) for t in self._compute(torch.zeros(1, 3, *preprocess.size, device=device))
        ]
        self.kept = self._choose(shapes, budget_gb)
        if self.kept != "recomputed":
            self._stored = [self._allocate(len(self._images), shape) for shape in shapes]
        if self.kept != "recomputed" or skip_broken:
            self._fill(batch_size, skip_broken, show_progress)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(images (B, 3, H, W), features L x (B, C_l, H_l, W_l))`` on the device, channels_last."""
        if self._stored:
            tensors = [t.index_select(0, indices.to(t.device)).permute(0, 3, 1, 2) for t in self._stored]
            tensors = [t.to(self._device, non_blocking=True) for t in tensors]
        else:
            chosen: Any = [self._images[i] for i in indices.tolist()]
            tensors = self._compute(
                torch.stack([x for _, x in read_resized(chosen, self._preprocess, self._device)])
            )
        return tensors[0], tensors[1:]

    def _choose(self, shapes: list[tuple[int, ...]], budget_gb: float | None) -> str:
        size = sum(torch.Size(s).numel() for s in shapes) * self._precision.dtype.itemsize * len(self._images)
        users = distributed.processes_here()
        free = available_memory(self._device) / (users if self._device.type == "cpu" else 1)
        budget = _SHARE_OF_MEMORY * free if budget_gb is None else budget_gb * 1e9
        disk = _SHARE_OF_DISK * shutil.disk_usage(tempfile.gettempdir()).free / users
        kept = "memory" if size <= budget else "disk" if size <= disk else "recomputed"
        logger.info(
            "teacher features of %d images, %.2f GB: %s (budgets: memory %.1f GB, disk %.1f GB)",
            len(self._images), size / 1e9, _WHERE[kept], budget / 1e9, disk / 1e9,
        )  # fmt: skip
        return kept

    def _allocate(self, n: int, shape: tuple[int, ...]) -> Tensor:
        channels, height, width = shape
        full = (n, height, width, channels)
        dtype = self._precision.dtype
        if self.kept == "memory":
            return torch.empty(full, dtype=dtype, device=self._device)
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="stadfast-features-")
        file = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}.bin"
        return torch.from_file(str(file), shared=True, size=torch.Size(full).numel(), dtype=dtype).view(full)

    def _fill(self, batch_size: int, skip_broken: bool, show: bool) -> None:
        """Compute all features once; images that cannot be read leave the store."""
        readable: list[Any] = []
        pending: list[Tensor] = []

        def flush() -> None:
            if self._stored and pending:
                first = len(readable) - len(pending)
                for stored, tensor in zip(self._stored, self._compute(torch.stack(pending)), strict=True):
                    stored[first : len(readable)] = tensor.permute(0, 2, 3, 1)
            pending.clear()

        with progress("teacher features", len(self._images), show=show) as job:
            broken = self.broken if skip_broken else None
            for source, image in read_resized(self._images, self._preprocess, self._device, broken=broken):
                readable.append(source if isinstance(source, Path) else self._images[source])
                pending.append(image)
                if len(pending) == batch_size:
                    flush()
                job.advance()
            flush()
        self._images = readable
        self._stored = [t[: len(readable)] for t in self._stored]

    @torch.no_grad()
    def _compute(self, images: Tensor) -> list[Tensor]:
        """The normalised images and their features, in the store's precision."""
        dtype = self._precision.dtype
        images = self._preprocess(images).contiguous(memory_format=torch.channels_last)
        with self._precision.autocast(self._device):
            features = self._teacher(images)
        return [images.to(dtype), *(f.to(dtype) for f in features)]
