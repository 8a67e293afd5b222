"""What a fitted detector does with images: its graph on batches of them, or at their own scale one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ..errors import DataError, StadfastError, UsageError
from .arguments import is_count
from .graph import Prediction, ScoringGraph
from .hardware import choose_device
from .native_scale import native_predictions
from .sources import images_of, read_resized


class Predictor:
    """What every :class:`~stadfast.methods.Detector` does once it has a ``graph_``."""

    image_score: ClassVar[str] = "maximum of the map"
    native_scale_ = False
    graph_: ScoringGraph
    broken_: list[tuple[Path, str]]
    batch_size: int
    device: str

    def stream(
        self, data: Any, *, batch_size: int | None = None, skip_broken: bool = False,
        native_scale: bool | None = None,
    ) -> Iterator[tuple[list[Path | int], Prediction]]:  # fmt: skip
        """Predict batch by batch, in constant memory.

        Args:
            data: as for :meth:`predict`.
            batch_size: as for :meth:`predict`.
            skip_broken: leave out unreadable files; after the last batch ``broken_`` lists them.
            native_scale: as for :meth:`predict`; each image is then a batch of its own.

        Returns:
            Iterator over ``(paths or indices, Prediction)`` of the batches, on the CPU, in the order of the images.

        Raises:
            StadfastError: not fitted. UsageError: an argument is out of range, or the method has no native scale.
            DataError: images that cannot be used; of a file that cannot be read, when its turn comes.
        """
        self._fitted()
        if self.native_scale_ if native_scale is None else native_scale:
            self._check_native_scale()
            images = images_of(data)
            self.broken_ = []
            return native_predictions(self, images, self.broken_ if skip_broken else None)
        return self._predictions(self._batches(data, batch_size, skip_broken))

    def _predictions(
        self, batches: Iterable[tuple[list[Path | int], Tensor]]
    ) -> Iterator[tuple[list[Path | int], Prediction]]:
        for sources, batch in batches:
            with torch.no_grad():  # not around yield: the caller's code is not to run in it
                prediction = Prediction(*(t.cpu() for t in self.graph_(batch)))
            yield sources, prediction

    def _batches(
        self, data: Any, batch_size: int | None, skip_broken: bool
    ) -> Iterator[tuple[list[Path | int], Tensor]]:
        """``(paths or indices, images as ``preprocess.resize`` gives them)``, on the graph's device."""
        graph = self._fitted()
        if batch_size is not None and not is_count(batch_size):
            raise UsageError(f"batch_size: expected a whole number from 1, got {batch_size!r}")
        device, images = next(graph.parameters()).device, images_of(data)
        self.broken_ = []
        loaded = read_resized(images, graph.preprocess, device, broken=self.broken_ if skip_broken else None)
        return _stacked(loaded, batch_size or self._batch_size)

    def predict(
        self, data: Any, *, batch_size: int | None = None, skip_broken: bool = False,
        native_scale: bool | None = None,
    ) -> Prediction:  # fmt: skip
        """Scores, labels, maps and masks of images.

        Args:
            data: path(s), folder, or whatever :func:`stadfast.data.as_images` takes: Pillow images, NumPy arrays and
                tensors, channels first or last, or a list of these; one image or many, of any sizes.
            batch_size: images computed at once; None: the training's.
            skip_broken: leave out unreadable files; ``broken_`` lists them.
            native_scale: do not resize the images to ``image_size``, but run the network on them as they are, in
                memory bounded by their width: maps have their resolution. None: if the detector was fitted so.

        Returns:
            Prediction on the CPU, in the order of the images.

        Raises:
            DataError: images that cannot be used, or, at native scale, of different sizes (``stream`` takes them).
        """
        batches = [
            p
            for _, p in self.stream(
                data, batch_size=batch_size, skip_broken=skip_broken, native_scale=native_scale
            )
        ]
        sizes = {tuple(p.anomaly_map.shape[2:]) for p in batches}
        if len(sizes) > 1:
            first, second, *_ = sorted(sizes)
            raise DataError(
                f"at native scale the maps have {len(sizes)} sizes, such as {first} and {second}, and make no batch; "
                "stream() gives them one by one"
            )
        return Prediction(*(torch.cat(field) for field in zip(*batches, strict=True)))

    def score(
        self, data: Any, *, batch_size: int | None = None, skip_broken: bool = False,
        native_scale: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Image scores (N,), float32; higher is more anomalous. Arguments as :meth:`predict`."""
        batches = self.stream(data, batch_size=batch_size, skip_broken=skip_broken, native_scale=native_scale)
        return torch.cat([prediction.pred_score for _, prediction in batches])

    def maps(
        self, data: Any, *, batch_size: int | None = None, skip_broken: bool = False,
        native_scale: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Anomaly maps (N, 1, H, W), float32, at ``image_size`` (at native scale: the images' own)."""
        return self.predict(
            data, batch_size=batch_size, skip_broken=skip_broken, native_scale=native_scale
        ).anomaly_map

    def to(self, device: str) -> Self:
        """Move a fitted detector to a device."""
        self._fitted().to(choose_device(device))
        self.device = device
        return self

    def _fitted(self) -> ScoringGraph:
        graph = getattr(self, "graph_", None)
        if graph is None:
            raise StadfastError(
                f"this {type(self).__name__} is not fitted: call fit(), or stadfast.load() a bundle"
            )
        return graph

    @property
    def _batch_size(self) -> int:
        """Images of a step."""
        return self.batch_size

    def _check_native_scale(self) -> None:
        if self.image_score != Predictor.image_score:
            raise UsageError(
                f"native_scale: the image score is the {self.image_score}, which has no native scale; "
                "stadfast.linescan.native_maps gives the maps"
            )


def _stacked(
    loaded: Iterator[tuple[Path | int, Tensor]], batch_size: int
) -> Iterator[tuple[list[Path | int], Tensor]]:
    while chunk := list(islice(loaded, batch_size)):
        sources, images = zip(*chunk, strict=True)
        batch = torch.stack(images)
        if batch.dim() == 4:  # a pyramid of sizes comes packed, pixel by pixel
            batch = batch.contiguous(memory_format=torch.channels_last)
        yield list(sources), batch
