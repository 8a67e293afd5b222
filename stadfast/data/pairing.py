"""Which mask belongs to which image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError


def match_masks(
    images: Sequence[tuple[Path, Path]], root: Path, masks: Sequence[Path], by_folder: bool = False
) -> dict[Path, Path]:
    """Image -> mask, by the place in the folder and the name: ``x/0.jpg`` -> ``x/0_mask.png`` or ``x/0.png``.

    Args:
        images: (image, the folder it was found in).
        root: the folder of the masks.
        masks: the masks in it.
        by_folder: a mask may also lie in a sub-folder of ``root`` called like the image's folder.

    Raises:
        DataError: an image without a mask, a mask without an image, or two of one kind for one of the other.
    """
    by_name: dict[Path, Path] = {}
    for path in masks:
        name = path.relative_to(root).with_suffix("")
        if name in by_name:
            raise DataError(f"{by_name[name]} and {path} are masks of the same image; wanted one")
        by_name[name] = path
    owner: dict[Path, Path] = {}
    for image, folder in images:
        inside = image.relative_to(folder).with_suffix("")
        places = [Path(folder.name) / inside, inside] if by_folder else [inside]
        names = [name for place in places for name in (place.with_name(f"{place.name}_mask"), place)]
        mask = next((by_name[name] for name in names if name in by_name), None)
        if mask is None:
            raise DataError(f"{image} has no mask; wanted {root / names[0]}.png or {root / names[1]}.png")
        if mask in owner:
            raise DataError(f"{mask} is the mask of both {owner[mask]} and {image}; wanted one each")
        owner[mask] = image
    for path in masks:
        if path not in owner:
            raise DataError(f"{path} is a mask without an image")
    return {image: mask for mask, image in owner.items()}
