"""What scores one part after the other: images read ahead by threads, one ``Scorer``, one file a part."""

from __future__ import annotations

import io
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ..data import UnreadableImageError, read_image, read_mask, resize_mask
from ..errors import DataError, StadfastError
from ..methods.graph import Prediction
from ..report import overlay
from ..runtime import Scorer
from ..runtime.memory import resident_memory
from .results import LabelledCounts, Report, Row, scores_bytes, scores_file, state_file
from .sources import Item, Part, contents
from .store import Store


@dataclass(frozen=True)
class Job:
    """What every worker has to know; it travels to other machines.

    Attributes:
        model_name: the file's name, whose ending says what it is.
        model: its contents.
        output: the folder of the results, path or URL.
        heatmaps: the folder of the pictures, path or URL; None: none.
        root: what their names are relative to.
        labelled: count for the metrics, too.
        batch_size: images computed at once.
        precision, device: the Scorer's.
        readers: threads that read and decode images.
        threads: of torch, in each worker; None: torch's choice.
    """

    model_name: str
    model: bytes
    output: str
    heatmaps: str | None = None
    root: str = ""
    labelled: bool = False
    batch_size: int = 16
    precision: str = "auto"
    device: str = "auto"
    readers: int = 2
    threads: int | None = None


class _Image:
    """An item as it comes from the reading threads: the picture, and the mask where one is wanted; or an error."""

    def __init__(self, item: Item, labelled: bool) -> None:
        self.item = item
        self.pixels: Tensor | None = None
        self.mask: Tensor | None = None
        self.error: str | None = None
        self.bytes_read = 0
        try:
            if labelled and item.label not in (0, 1):
                raise DataError(f"its label is {item.label}; wanted 0 (good) or 1 (defective)")
            self.pixels = read_image(item.name, self._contents(item.image))
            if labelled and item.mask is not None:
                self.mask = read_mask("its mask", self._contents(item.mask))
                if self.mask.shape != self.pixels.shape[1:]:
                    raise DataError(f"the mask is {_size(self.mask)}, but the image is {_size(self.pixels)}")
        except UnreadableImageError as error:
            self.error = error.reason if self.pixels is None else f"mask: {error.reason}"
        except DataError as error:
            self.error = str(error)
        except OSError as error:
            what = "" if self.pixels is None else "mask: "
            missing = isinstance(error, FileNotFoundError)
            self.error = what + ("no such file" if missing else error.strerror or str(error))

    def _contents(self, source: str | bytes | None) -> bytes:
        found = contents(source)
        self.bytes_read += len(found)
        return found


@contextmanager
def model_file(name: str, contents: bytes, called: str) -> Iterator[Path]:
    """A model as a file of that name, for a time; errors that name the file name what the model is ``called``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(contents)
        try:
            yield path
        except StadfastError as error:
            error.args = tuple(str(part).replace(str(path), called) for part in error.args)
            raise


class PartScorer:
    """Scores parts. What becomes of a part depends on the part and the job alone, not on who scores it or when:
    the batches are always the same, so that a repeated part is written with the same bits.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        with model_file(job.model_name, job.model, job.model_name) as model:
            self.scorer = Scorer(
                model,
                device=job.device,
                precision=job.precision,
                batch_size=job.batch_size,
                threads=job.threads,
            )
        self._output = Store(job.output)
        self._heatmaps = None if job.heatmaps is None else Store(job.heatmaps)
        self._readers = ThreadPoolExecutor(job.readers, thread_name_prefix="stadfast-read")

    def __call__(self, part: Part) -> Report:
        """Score a part and write its files; the scores come last, and say that the part is finished."""
        report, counts = Report(part.number), LabelledCounts()
        rows: list[Row] = []
        images = self._read_ahead(part)
        began = clock = time.perf_counter()
        while batch := list(islice(images, self.job.batch_size)):
            report.read_s += time.perf_counter() - clock
            clock = time.perf_counter()
            predictions = self._scored(batch)
            report.score_s += time.perf_counter() - clock
            rows += map(_row, batch, predictions)
            report.bytes_read += sum(image.bytes_read for image in batch)
            good = [(i, p) for i, p in zip(batch, predictions, strict=True) if p is not None]
            self._draw(good)
            if self.job.labelled and good:
                _count(good, counts)
            clock = time.perf_counter()
        report.images = len(rows)
        report.defective = sum(row.defective is True for row in rows)
        report.broken = sum(row.error is not None for row in rows)
        report.memory_mb = resident_memory() / 1e6
        if self.job.labelled:
            self._output.write(state_file(part.number), counts.to_bytes())
        report.other_s = time.perf_counter() - began - report.read_s - report.score_s
        self._output.write(scores_file(part.number), scores_bytes(rows, report))
        return report

    def close(self) -> None:
        """End the reading threads."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self, part: Part) -> Iterator[_Image]:
        """In order, with a bounded number of images waiting."""
        waiting: deque[Future[_Image]] = deque()
        try:
            for item in part.read():
                waiting.append(self._readers.submit(_Image, item, self.job.labelled))
                if len(waiting) > 2 * self.job.readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _scored(self, batch: Sequence[_Image]) -> list[Prediction | None]:
        """One prediction each; None where there is an error, which is then in the image."""
        found: list[Prediction | None] = [None] * len(batch)
        readable = [i for i, image in enumerate(batch) if image.error is None]
        if not readable:
            return found
        try:
            answers = [p for _, p in self.scorer.stream([batch[i].pixels for i in readable])]
        except DataError as error:  # such as a size that the archive does not take: which one is it?
            if len(batch) == 1:
                batch[0].error = str(error)
                return found
            return [self._scored([image])[0] for image in batch]
        singles = (
            Prediction(*fields) for a in answers for fields in zip(*(f.split(1) for f in a), strict=True)
        )
        for i, single in zip(readable, singles, strict=True):
            found[i] = single
        return found

    def _draw(self, found: Sequence[tuple[_Image, Prediction]]) -> None:
        """Heat maps of the anomalous images."""
        for image, prediction in found:
            if self._heatmaps is not None and prediction.pred_label:
                assert image.pixels is not None
                picture = _picture(image.pixels, prediction.anomaly_map[0, 0], self.scorer.pixel_threshold)
                self._heatmaps.write(picture_name(image.item.name, self.job.root), picture)


def _count(found: Sequence[tuple[_Image, Prediction]], counts: LabelledCounts) -> None:
    """Labelled images' contribution to the metrics."""
    maps = torch.cat([prediction.anomaly_map for _, prediction in found])
    masks = [None if i.mask is None else resize_mask(i.mask, maps.shape[2:]) for i, _ in found]
    labels = [int(image.item.label or 0) for image, _ in found]
    scores = torch.cat([prediction.pred_score for _, prediction in found])
    counts.evaluation.update(maps, masks, labels, scores, [image.item.defect for image, _ in found])
    for label, (_, prediction) in zip(labels, found, strict=True):
        counts.decisions[label, int(prediction.pred_label)] += 1


def picture_name(name: str, root: str) -> str:
    """Where an image's heat map goes in its folder: the image's place below ``root``, and nowhere outside."""
    inside = name.removeprefix(root).partition("://")
    parts = [part for part in PurePosixPath(inside[2] or inside[0]).parts if part not in ("/", "..", ".")]
    return "/".join(parts) + ".png"


def _row(image: _Image, prediction: Prediction | None) -> Row:
    item = image.item
    if prediction is None:
        return Row(item.name, None, None, image.error, item.label, item.defect)
    score, defective = float(prediction.pred_score), bool(prediction.pred_label)
    return Row(item.name, score, defective, None, item.label, item.defect)


def _picture(pixels: Tensor, anomaly_map: Tensor, threshold: float) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(overlay(pixels, anomaly_map, threshold)).save(file, "PNG", compress_level=4)
    return file.getvalue()


def _size(image: Tensor) -> str:
    return " x ".join(str(side) for side in image.shape[-2:])
