"""Reading many images: lazily, in order, with a few threads, at most a handful ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DataError, UsageError
from .decode import UnreadableImageError
from .folders import PathOrPaths, Sample, list_images
from .images import read_image

Transform = Callable[[Tensor], Tensor]


class ImageLoader:
    """Iterate over ``(path, image)`` of a list of files, in its order; the files are read by threads.

    Memory is bounded: at most ``prefetch`` images wait, whatever the number of files. Leaving a loop early
    ends the threads. Each iteration reads the files again.

    Args:
        paths: files, folders or samples, as :func:`~stadfast.data.list_images` takes them.
        transform: applied to each (3, H, W) image in the reading thread, such as a resize.
        skip_broken: leave out files that cannot be read and list them in ``broken``; else the first raises.
        workers: reading threads; 0 reads in the calling thread.
        prefetch: images read ahead; default two for each thread.

    Attributes:
        paths: the files.
        broken: (path, reason) of the files left out in the current or latest iteration.

    Raises:
        UnreadableImageError: (iterating) a file cannot be read. DataError: (iterating) none can.
    """

    def __init__(
        self,
        paths: PathOrPaths | Sequence[Sample],
        transform: Transform | None = None,
        *,
        skip_broken: bool = False,
        workers: int = 2,
        prefetch: int | None = None,
    ) -> None:
        if workers < 0:
            raise UsageError(f"workers is {workers}; wanted 0 or more")
        if prefetch is not None and prefetch < 1:
            raise UsageError(f"prefetch is {prefetch}; wanted 1 or more")
        self.paths = list_images(paths)
        self.transform = transform
        self.skip_broken = skip_broken
        self.workers = workers
        self.prefetch = prefetch or max(2 * workers, 1)
        self.broken: list[tuple[Path, str]] = []

    def __len__(self) -> int:
        """Number of files, broken ones included."""
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[Path, Tensor]]:
        broken = self.broken = []
        delivered = 0
        results = self._threaded() if self.workers else (self._read(path) for path in self.paths)
        with closing(results):
            for path, result in zip(self.paths, results, strict=True):
                if isinstance(result, Tensor):
                    delivered += 1
                    yield path, result
                elif self.skip_broken:
                    broken.append((path, result.reason))
                else:
                    raise result
        if not delivered:
            path, reason = broken[0]
            raise DataError(f"none of {len(broken)} images can be read; the first is {path}: {reason}")

    def _read(self, path: Path) -> Tensor | UnreadableImageError:
        try:
            image = read_image(path)
        except UnreadableImageError as error:
            return error
        return image if self.transform is None else self.transform(image)

    def _threaded(self) -> Generator[Tensor | UnreadableImageError, None, None]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="stadfast-read")
        waiting: deque[Future[Any]] = deque()
        todo = iter(self.paths)
        try:
            for path in todo:
                waiting.append(pool.submit(self._read, path))
                if len(waiting) > self.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
