"""Data sets as folders: MVTec AD's layout, loose folders, and plain lists of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from .images import IMAGE_EXTENSIONS
from .pairing import match_masks

PathLike = str | os.PathLike[str]
PathOrPaths = PathLike | Sequence[PathLike]


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        image: its file.
        label: 0 good, 1 defective, None unknown.
        defect: the kind of defect; None for good images.
        mask: the ground-truth mask's file; None for good images and where no masks exist.
    """

    image: Path
    label: int | None = None
    defect: str | None = None
    mask: Path | None = None


class Dataset:
    """What all data sets have.

    Attributes:
        name: of the data set, or of its category.
        root: its folder.
        train: good images only.
        test: good and defective images.
    """

    name: str
    root: Path
    train: list[Sample]
    test: list[Sample]

    @property
    def defects(self) -> list[str]:
        """The kinds of defects in ``test``, sorted."""
        return sorted({sample.defect for sample in self.test if sample.defect is not None})

    def __repr__(self) -> str:
        kinds = f", defects {', '.join(self.defects)}" if self.defects else ""
        return f"{type(self).__name__}({self.name!r}: {len(self.train)} train, {len(self.test)} test{kinds})"


class MVTecLayout(Dataset):
    """A category in the layout of MVTec AD.

    ``train/good/*``, ``test/good/*``, ``test/<defect>/*``, and ``ground_truth/<defect>/<stem>_mask.png`` or
    ``<stem>.png``. ``train`` or ``test`` may be missing, and is empty then; without ``ground_truth`` no sample
    has a mask. Otherwise every defective image must have its mask, and every mask its image.

    Args:
        root: the category's folder, or with ``category`` the folder that holds all categories.
        category: such as ``"bottle"``.
        extensions: of image files; default :data:`IMAGE_EXTENSIONS`.

    Raises:
        DataError: a folder, an image or a mask is missing; names it.
    """

    def __init__(
        self, root: PathLike, category: str | None = None, extensions: Sequence[str] | None = None
    ) -> None:
        folder = _category_folder(Path(root), category)
        self.root = folder
        self.name = folder.resolve().name
        good = folder / "train" / "good"
        self.train = [Sample(path, 0) for path in list_images(good, extensions)] if good.is_dir() else []
        self.test = self._read_test(extensions)

    def _read_test(self, extensions: Sequence[str] | None) -> list[Sample]:
        test, truth = self.root / "test", self.root / "ground_truth"
        if not test.is_dir():
            return []
        kinds = sorted(path.name for path in subfolders(test))
        if not kinds:
            raise DataError(f"{test} has no folders; wanted test/good and test/<defect>")
        if truth.is_dir():
            for path in subfolders(truth):
                if path.name not in kinds:
                    raise DataError(f"masks without images: {path} exists, but {test / path.name} does not")
        samples: list[Sample] = []
        for kind in kinds:
            images = list_images(test / kind, extensions)
            if kind == "good":
                samples += [Sample(path, 0) for path in images]
            elif not truth.is_dir():
                samples += [Sample(path, 1, kind) for path in images]
            else:
                masks = match_masks(
                    [(path, test / kind) for path in images], truth / kind, list_images(truth / kind)
                )
                samples += [Sample(path, 1, kind, masks[path]) for path in images]
        return samples


class Folder(Dataset):
    """Good and defective images in folders of one's own (arguments as in anomalib's ``Folder``).

    The kind of a defect is the name of the sub-folder of ``abnormal_dir`` that the image lies in, or the name
    of ``abnormal_dir`` itself. Where there are defective images but no ``normal_test_dir``, a part of the
    good images is kept from training for the test. A mask has its image's name in ``mask_dir``: that of
    ``crack/7.png`` is ``crack/7.png`` or ``crack/7_mask.png``.

    Args:
        name: the data set's name.
        normal_dir: folder(s) of good images for training.
        root: what relative folders are relative to; default the working folder.
        abnormal_dir: folder(s) of defective images.
        normal_test_dir: folder(s) of good images for testing.
        mask_dir: folder(s) of masks: one for all, or one for each of ``abnormal_dir``. If given, every
            defective image must have its mask, and every mask its image.
        normal_split_ratio: part of the good images that goes to the test, in [0, 1).
        extensions: of image files; default :data:`IMAGE_EXTENSIONS`.
        seed: of the split.

    Raises:
        DataError: a folder is missing or empty, or an image or mask has no partner; names it.
        UsageError: arguments that exclude each other.
    """

    def __init__(
        self,
        name: str,
        normal_dir: PathOrPaths,
        root: PathLike | None = None,
        abnormal_dir: PathOrPaths | None = None,
        normal_test_dir: PathOrPaths | None = None,
        mask_dir: PathOrPaths | None = None,
        normal_split_ratio: float = 0.2,
        extensions: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= normal_split_ratio < 1:
            raise UsageError(f"normal_split_ratio is {normal_split_ratio}; wanted a number in [0, 1)")
        base = Path(root) if root is not None else Path()
        self.name, self.root = name, base
        abnormal, masks = _under(base, abnormal_dir), _under(base, mask_dir)
        if masks and not abnormal:
            raise UsageError("mask_dir is given without abnormal_dir")
        if len(masks) not in (0, 1, len(abnormal)):
            raise UsageError(f"mask_dir has {len(masks)} folders, abnormal_dir has {len(abnormal)}")
        normal = [path for folder in _under(base, normal_dir) for path in list_images(folder, extensions)]
        if not normal:
            raise DataError(f"normal_dir is {normal_dir!r}; wanted a folder of good images")
        held_out = [
            path for folder in _under(base, normal_test_dir) for path in list_images(folder, extensions)
        ]
        if abnormal and not held_out:
            normal, held_out = _split(normal, normal_split_ratio, seed)
        self.train = [Sample(path, 0) for path in normal]
        self.test = [Sample(path, 0) for path in held_out] + _abnormal_samples(abnormal, masks, extensions)


def list_images(
    paths: PathOrPaths | Sample | Iterable[Any], extensions: Sequence[str] | None = None
) -> list[Path]:
    """All image files of a folder (recursive, sorted), or of a list of files and folders (in its order).

    Hidden files and folders are left out, and ``ground_truth`` beside ``test``: masks are no images. What is named
    itself counts all the same, a file whatever its extension.

    Args:
        paths: a file, a folder, a :class:`Sample`, or a list of these.
        extensions: of image files, upper or lower case; default :data:`IMAGE_EXTENSIONS`.

    Raises:
        DataError: a path does not exist, or a folder holds no image; names it.
    """
    allowed = tuple(f".{e.lower().lstrip('.')}" for e in extensions) if extensions else IMAGE_EXTENSIONS
    if isinstance(paths, (str, os.PathLike, Sample)):
        return _list_one(paths, allowed)
    found = [path for item in paths for path in _list_one(item, allowed)]
    if not found:
        raise DataError("no images: the list of paths is empty")
    return found


def open_dataset(path: PathLike | Dataset, category: str | None = None) -> Dataset:
    """The data set at a path: a category in MVTec AD's layout, else a folder of good images (``train`` only).

    Args:
        path: a folder, an image file, or a data set, which is returned as it is.
        category: if ``path`` holds several categories.

    Returns:
        :class:`MVTecLayout` or :class:`Folder`.

    Raises:
        DataError: no such path, no image in it, or a damaged layout.
    """
    if isinstance(path, Dataset):
        return path
    folder = Path(path)
    if category is not None or _looks_like_category(folder) or _categories(folder):
        return MVTecLayout(folder, category)
    return Folder(folder.resolve().name, normal_dir=folder)


# -------------------------------------------------------------------------------------------- helpers


def _list_one(item: Any, allowed: tuple[str, ...]) -> list[Path]:
    if isinstance(item, Sample):
        return [item.image]
    if not isinstance(item, (str, os.PathLike)):
        raise DataError(
            f"{item!r:.80} is of type {type(item).__name__}; wanted an image's or a folder's path"
        )
    path = Path(item)
    if path.is_dir():
        found = _walk(path, allowed)
        if not found:
            raise DataError(f"{path} holds no images; wanted files that end in {', '.join(allowed)}")
        return found
    if not path.exists():
        raise DataError(f"{path} does not exist; wanted an image or a folder of images")
    return [path]


def _walk(root: Path, allowed: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links may form a circle
            names.clear()
            continue
        seen.add(real)
        masks = "ground_truth" if "test" in names else None
        names[:] = [name for name in names if not name.startswith(".") and name != masks]
        found += [Path(folder, f) for f in files if f.lower().endswith(allowed) and not f.startswith(".")]
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; hidden ones, such as a notebook's ``.ipynb_checkpoints``, are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _looks_like_category(folder: Path) -> bool:
    if (folder / "train" / "good").is_dir():
        return True
    test = folder / "test"
    return test.is_dir() and any(
        part.is_dir() for part in (folder / "train", folder / "ground_truth", test / "good")
    )


def _categories(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [path.name for path in subfolders(folder) if _looks_like_category(path)]


def _category_folder(root: Path, category: str | None) -> Path:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; wanted a category in MVTec AD's layout")
    known = ", ".join(_categories(root))
    folder = (
        root
        if category is None or (root.name == category and _looks_like_category(root))
        else root / category
    )
    if not folder.is_dir():
        raise DataError(f"{root} has no category {category!r}; it has {known or 'none'}")
    trains = (folder / "train").is_dir() or not _looks_like_category(folder)
    if trains and not (folder / "train" / "good").is_dir():
        if category is None and known:
            raise DataError(f"{root} holds several categories; choose one with category=: {known}")
        raise DataError(f"{folder / 'train' / 'good'} does not exist; wanted a folder of good images")
    return folder


def _under(base: Path, folders: PathOrPaths | None) -> list[Path]:
    if folders is None:
        return []
    if isinstance(folders, (str, os.PathLike)):
        folders = [folders]
    return [base / folder for folder in folders]


def _split(paths: list[Path], ratio: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Some of the good images for the test; both parts keep their order."""
    import numpy as np

    count = min(max(round(ratio * len(paths)), 1), len(paths) - 1) if ratio > 0 else 0
    chosen = set(np.random.default_rng(seed).permutation(len(paths))[:count].tolist())
    return [p for i, p in enumerate(paths) if i not in chosen], [
        p for i, p in enumerate(paths) if i in chosen
    ]


def _abnormal_samples(
    folders: list[Path], masks: list[Path], extensions: Sequence[str] | None
) -> list[Sample]:
    found = [(path, folder) for folder in folders for path in list_images(folder, extensions)]
    found = [(path, folder if folder.is_dir() else folder.parent) for path, folder in found]
    partner: dict[Path, Path] = {}
    if len(masks) == 1:
        partner = match_masks(found, masks[0], list_images(masks[0]), by_folder=True)
    elif masks:
        for folder, root in zip(folders, masks, strict=True):
            partner |= match_masks([pair for pair in found if pair[1] == folder], root, list_images(root))
    samples = []
    for path, folder in found:
        inside = path.relative_to(folder).parts
        kind = inside[0] if len(inside) > 1 else folder.name
        samples.append(Sample(path, 1, kind, partner.get(path)))
    return samples
