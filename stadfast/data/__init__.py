"""Images and folders: reading, layouts, lazy loading, and a generated material to try things on.

Importing this package loads none of its modules; each name is found at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _loader

if TYPE_CHECKING:
    from .decode import UnreadableImageError, image_size
    from .folders import Dataset, Folder, MVTecLayout, Sample, list_images, open_dataset
    from .images import IMAGE_EXTENSIONS, as_images, read_image, read_mask, resize_mask, to_float
    from .loading import ImageLoader
    from .synthetic import Defect, Material, write_material

_HOME = {
    "Dataset": "folders",
    "Folder": "folders",
    "MVTecLayout": "folders",
    "Sample": "folders",
    "list_images": "folders",
    "open_dataset": "folders",
    "IMAGE_EXTENSIONS": "images",
    "UnreadableImageError": "decode",
    "as_images": "images",
    "image_size": "decode",
    "read_image": "images",
    "read_mask": "images",
    "resize_mask": "images",
    "to_float": "images",
    "ImageLoader": "loading",
    "Defect": "synthetic",
    "Material": "synthetic",
    "write_material": "synthetic",
}

__all__ = [
    "IMAGE_EXTENSIONS",
    "Dataset",
    "Defect",
    "Folder",
    "ImageLoader",
    "MVTecLayout",
    "Material",
    "Sample",
    "UnreadableImageError",
    "as_images",
    "image_size",
    "list_images",
    "open_dataset",
    "read_image",
    "read_mask",
    "resize_mask",
    "to_float",
    "write_material",
]


__getattr__ = _loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
