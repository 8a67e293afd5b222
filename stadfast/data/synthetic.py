"""A material to try things on: an endless woven or brushed web with defects whose masks are known.

Everything follows from the seed: row 10 million is computed as directly as row 0, pieces fit together without
a seam, and the pixels are the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, UsageError
from ._defects import PAINTERS, Defect, Patch, take_thread_out
from ._textures import Floats, Noise, Threads, brushed, camera, soften

DEFECTS: dict[str, tuple[str, ...]] = {
    "woven": ("hole", "missing_thread", "scratch", "slub", "stain"),
    "brushed": ("dent", "pit", "scratch", "stain"),
}

# Half extents, as shares of the smaller of width and 256 pixels.
_SIZES: dict[str, tuple[float, float]] = {
    "dent": (0.08, 0.17), "hole": (0.05, 0.12), "missing_thread": (0.20, 0.42), "pit": (0.018, 0.04),
    "scratch": (0.12, 0.32), "slub": (0.13, 0.30), "stain": (0.09, 0.20),
}  # fmt: skip
_STRIPE = 256  # rows that share the draw of their random defects
_ORIGIN = 4096  # keeps all internal row numbers positive
_SPLIT_ROWS = 1 << 26  # rows of the web between two folders of a written data set


class Material:
    """An endless web of material under a line-scan camera.

    Args:
        material: ``"woven"`` (a plain weave of two colours) or ``"brushed"`` (metal, brushed along the web).
        width: pixels across the web, at least 32.
        seed: of the web and its defects.
        defects: defects at chosen places.
        defect_rate: mean number of further, random defects in 1000 rows.

    Example:
        >>> image, mask = Material("brushed", width=512, defect_rate=2).rows(start=100_000, count=64)
        >>> image.shape, image.dtype, mask.shape, mask.dtype
        ((64, 512, 3), dtype('uint8'), (64, 512), dtype('bool'))
    """

    def __init__(
        self,
        material: str = "woven",
        width: int = 256,
        seed: int = 0,
        *,
        defects: Sequence[Defect] = (),
        defect_rate: float = 0.0,
    ) -> None:
        if material not in DEFECTS:
            raise UsageError(f"material is {material!r}; wanted one of {', '.join(DEFECTS)}")
        if width < 32:
            raise UsageError(f"width is {width}; wanted 32 or more pixels")
        if seed < 0 or defect_rate < 0:
            raise UsageError(f"seed is {seed} and defect_rate {defect_rate}; wanted 0 or more")
        for defect in defects:
            if defect.kind not in DEFECTS[material]:
                raise UsageError(f"defect is {defect.kind!r}; {material} has {', '.join(DEFECTS[material])}")
        self.material, self.width, self.seed = material, width, seed
        self.defect_rate = defect_rate
        self._chosen = tuple(defects)
        self._noise = Noise(seed)
        self._threads_taken: dict[Defect, int] = {}

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``start`` to ``start + count`` of the web.

        Args:
            start: first row, 0 or more.
            count: number of rows, 1 or more.

        Returns:
            image (count, width, 3) uint8 RGB and mask (count, width) bool, true on defects.
        """
        if start < 0 or count < 1:
            raise UsageError(f"start is {start} and count {count}; wanted start >= 0 and count >= 1")
        rows = np.arange(start - 1, start + count + 1, dtype=np.int64) + _ORIGIN  # one more for the lens
        mask = np.zeros((count + 2, self.width), dtype=bool)
        defects = self.defects(start - 1, count + 2)
        light = self._surface(rows, defects, mask)
        for defect in defects:
            if defect.kind in PAINTERS:
                self._paint(defect, rows, light, mask)
        return camera(self._noise, rows[1:-1], soften(light)), mask[1:-1]

    def defects(self, start: int, count: int) -> list[Defect]:
        """The defects that may touch these rows, in the order of their places."""
        found = [*self._chosen, *self._random_defects(start, count)]
        touching = [d for d in found if d.row + d.reach > start and d.row - d.reach < start + count]
        return sorted(touching, key=lambda d: (d.row, d.column, d.kind))

    def _random_defects(self, start: int, count: int) -> Iterator[Defect]:
        if self.defect_rate == 0:
            return
        for stripe in range(max(start // _STRIPE - 1, 0), (start + count) // _STRIPE + 2):
            random = _stream(self.seed, 1, stripe)
            for _ in range(int(self.defect_rate * _STRIPE / 1000 + random.random())):
                yield random_defect(
                    self.material, self.width, random, (stripe * _STRIPE, (stripe + 1) * _STRIPE)
                )

    def _surface(self, rows: np.ndarray, defects: list[Defect], mask: np.ndarray) -> Floats:
        """(R, W, 3) light, with those defects that change the threads themselves."""
        if self.material == "brushed":
            return brushed(self._noise, rows, self.width)
        threads = Threads(self._noise, rows, self.width)
        for defect in defects:
            if defect.kind == "missing_thread":
                if defect not in self._threads_taken:
                    place = Threads(self._noise, np.array([defect.row + _ORIGIN]), self.width)
                    self._threads_taken[defect] = int(place.m[0, min(max(defect.column, 0), self.width - 1)])
                mask |= take_thread_out(threads, defect, self._threads_taken[defect])
        return threads.paint(self._noise)

    def _paint(self, defect: Defect, rows: np.ndarray, light: Floats, mask: np.ndarray) -> None:
        top = defect.row + _ORIGIN - defect.reach
        first, last = np.searchsorted(rows, (top, top + 2 * defect.reach))
        left, right = max(defect.column - defect.reach, 0), min(defect.column + defect.reach, self.width)
        if first == last or left >= right:
            return
        inside = rows[first:last] - top
        patch = Patch(
            defect,
            Noise(defect.seed),
            inside,
            (inside - defect.reach).astype(np.float32)[:, None],
            (np.arange(left, right) - defect.column).astype(np.float32)[None],
            light[first:last, left:right],
        )
        mask[first:last, left:right] |= PAINTERS[defect.kind](patch)


def random_defect(
    material: str, width: int, random: np.random.Generator, rows: tuple[int, int], kind: str | None = None
) -> Defect:
    """A defect of random shape in the given rows, away from the sides of the web.

    Args:
        material: see :class:`Material`.
        width: of the web, pixels.
        random: where the numbers come from.
        rows: first and last row of the middle.
        kind: of the defect; default any that the material has.
    """
    u = random.random(5)
    kinds = DEFECTS[material]
    kind = kinds[int(u[0] * len(kinds))] if kind is None else kind
    low, high = _SIZES[kind]
    size = (low + (high - low) * u[1]) * min(width, 256)
    margin = min(size, 0.3 * width)
    return Defect(
        kind,
        row=int(rows[0] + u[2] * (rows[1] - rows[0])),
        column=int(margin + u[3] * (width - 2 * margin)),
        size=float(size),
        contrast=float(0.3 + 0.7 * u[4]),
        seed=int(random.random() * 2**31),
    )


def write_material(
    root: str | os.PathLike[str],
    material: str = "woven",
    size: tuple[int, int] = (256, 256),
    train: int = 50,
    test_good: int = 15,
    test_per_defect: int = 8,
    seed: int = 0,
) -> Path:
    """Write a data set in the layout of MVTec AD: PNG images of a web, and the masks of its defects.

    ``train/good/000.png``, ``test/good/000.png``, ``test/<defect>/000.png`` with one defect each, and
    ``ground_truth/<defect>/000_mask.png`` (0 and 255). Image i does not depend on how many follow it.

    Args:
        root: folder to write to; files of the same name are overwritten.
        material: ``"woven"`` or ``"brushed"``.
        size: (H, W) of the images, at least 32 each.
        train: number of good images for training.
        test_good: number of good images for the test.
        test_per_defect: number of images of each of :data:`DEFECTS`.
        seed: of everything.

    Returns:
        ``root``.

    Raises:
        UsageError: impossible arguments.
        DataError: a file cannot be written.
    """
    root = Path(root)
    height, width = size
    if height < 32 or width < 32:
        raise UsageError(f"size is {size}; wanted (H, W) of 32 or more pixels")
    if train < 1 or test_good < 0 or test_per_defect < 0:
        counts = f"train is {train}, test_good {test_good}, test_per_defect {test_per_defect}"
        raise UsageError(f"{counts}; wanted at least 1, 0 and 0")
    web = Material(material, width, seed)
    for folder, count, base in (("train", train, 0), ("test", test_good, 1)):
        for i in range(count):
            image, _ = web.rows(base * _SPLIT_ROWS + i * height, height)
            _write_png(image, root / folder / "good" / f"{i:03d}.png")
    for number, kind in enumerate(DEFECTS[material]):
        for i in range(test_per_defect):
            image, mask = _defective(web, kind, height, (2 + number) * _SPLIT_ROWS + i * height)
            _write_png(image, root / "test" / kind / f"{i:03d}.png")
            _write_png(mask.astype(np.uint8) * 255, root / "ground_truth" / kind / f"{i:03d}_mask.png")
    return root


def _defective(web: Material, kind: str, height: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of the web from row ``start``, with one defect that can be seen."""
    random = _stream(web.seed, 2, start)
    while True:
        margin = int(0.2 * height)
        defect = random_defect(
            web.material, min(web.width, 4 * height), random, (start + margin, start + height - margin), kind
        )
        image, mask = Material(web.material, web.width, web.seed, defects=[defect]).rows(start, height)
        if mask.sum() >= 12:
            return image, mask


def _stream(seed: int, purpose: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, purpose, index, 0x5EED))))


def _write_png(array: np.ndarray, path: Path) -> None:
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
