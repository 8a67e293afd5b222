"""Score anybody's anomaly maps: a folder of maps, one file per image, and a folder of masks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._progress import track
from ..errors import DataError
from ._inputs import as_binary
from .evaluation import Evaluation

MAP_EXTENSIONS = (".tiff", ".tif", ".npy", ".png")
MASK_EXTENSIONS = (".png", ".tiff", ".tif", ".bmp", ".npy")
GOOD_NAMES = ("good", "normal", "ok")  # folders of images without a defect

_Key = tuple[str, str]  # defect type ("" in a flat folder) and stem of the file


def evaluate_folders(
    maps_dir: str | os.PathLike[str],
    masks_dir: str | os.PathLike[str],
    *,
    exact: bool = True,
    show_progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """``evaluate`` of maps and masks in files, per defect type where they lie in folders of types.

    A map belongs to the mask of the same folder and name, ``_mask`` at the end of a mask's name aside; a map
    without a mask counts as good, unless it lies in a folder that is not called good, normal or ok: then it
    counts in the images' figures only. MVTec AD's layout and flat folders are recognised as they are:

        maps_dir                                        masks_dir
        [test/]scratch/003.tiff, [test/]good/000.tiff   [ground_truth/]scratch/003_mask.png
        003.npy                                         003.png

    Args:
        maps_dir: TIFF (float32, 8 or 16 bits), NPY of (H,W) or (1,H,W), or grey PNG of 8 or 16 bits; raw.
        masks_dir: PNG, TIFF, BMP or NPY: above ``mask_threshold`` is a defect. Without one: above half of the
            type's range, or, in a mask of small labels, whatever is not 0.
        exact: False for constant memory, see ``evaluate``.
        show_progress: on standard error.
        options: ``limits`` and the protocol's switches, see ``evaluate``.

    Returns:
        As ``evaluate``.

    Raises:
        DataError: a folder is missing or without such files, a file cannot be read, a map and its mask differ
            in size (``resize="maps"`` allows that, but for masks of several sizes where a map has none), or a mask has
            no map; the message names the file.
    """
    maps = _files(Path(maps_dir), MAP_EXTENSIONS, "test")
    masks = _files(Path(masks_dir), MASK_EXTENSIONS, "ground_truth")
    orphans = sorted(masks.keys() - maps.keys())
    if orphans:
        raise DataError(
            f"{masks[orphans[0]]}: no map in {maps_dir} belongs to this mask, nor to {len(orphans) - 1} more"
        )
    without = sorted(maps.keys() - masks.keys())
    if without and options.get("resize") == "maps":  # to what the others have
        options["resize"] = _size_of_all(list(masks.values()), maps[without[0]])
    evaluation = Evaluation(exact=exact, copy=False, **options)
    resized = evaluation.protocol.resize is not None
    threshold = evaluation.protocol.mask_threshold
    for key, path in track(sorted(maps.items()), "evaluating", show=show_progress):
        kind = key[0]
        image = read_map(path)
        mask = _read_mask(masks[key], threshold) if key in masks else None
        if mask is not None and mask.shape != image.shape and not resized:
            raise DataError(
                f"{masks[key]} is {mask.shape} (H, W), its map {path} is {image.shape}; see resize"
            )
        if mask is not None:  # as it is in the file: resizing may erase a small defect
            bad = bool(as_binary(mask, "mask", threshold).any())
        else:
            bad = kind != "" and kind.lower() not in GOOD_NAMES
        try:
            evaluation.update([image], [mask], labels=[bad], types=[kind or None])
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return evaluation.compute()


def read_map(path: str | os.PathLike[str]) -> NDArray[Any]:
    """An anomaly map file as (H, W), in the file's own numbers.

    Raises:
        DataError: damaged, not one plane of numbers, or a colour image.
    """
    path = Path(path)
    try:
        array = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_image(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an anomaly map: {error}") from error
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] in (3, 4) and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]  # grey, saved as colour
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise DataError(
            f"{path}: expected one plane of numbers (H, W), got {array.dtype} of shape {array.shape}; "
            "a coloured heat map holds no scores"
        )
    return array


def _read_image(path: Path) -> NDArray[Any]:
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB") if image.mode == "P" else image)


def _read_mask(path: Path, threshold: float | None) -> NDArray[Any]:
    """Bool, or with ``threshold`` as it is: that is applied after resizing."""
    grey = read_map(path)
    if threshold is not None or grey.dtype == np.bool_:
        return grey
    half = 0.5 if grey.dtype.kind == "f" else 255 // 2 if grey.max(initial=0) <= 255 else 65535 // 2
    return grey > half if (grey > half).any() else grey > 0


def _size_of_all(masks: list[Path], unmasked: Path) -> tuple[int, int]:
    """(H, W) of the masks, which a map without one is brought to."""
    size = read_map(masks[0]).shape
    for path in masks[1:]:
        shape = read_map(path).shape
        if shape != size:
            raise DataError(
                f"{unmasked} has no mask, and the masks to tell its size by differ: {masks[0]} is {size}, {path} is "
                f"{shape}"
            )
    return size[0], size[1]


def _files(root: Path, extensions: Iterable[str], wrapper: str) -> dict[_Key, Path]:
    """The folder's files by defect type and stem; ``wrapper`` is a folder that may lie in between."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / wrapper).is_dir():
        root = root / wrapper
    found: dict[_Key, Path] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in extensions):
        folder = PurePosixPath(path.relative_to(root).parent.as_posix())
        key = ("" if folder == PurePosixPath(".") else str(folder), path.stem.removesuffix("_mask"))
        if key in found:
            raise DataError(f"{path}: {found[key]} has the same name")
        found[key] = path
    if not found:
        raise DataError(f"{root}: no files of {', '.join(extensions)}")
    return found
