"""Which end of an array or a tensor holds the channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

_CHANNELS = (1, 3, 4)
_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")  # of arrays, in either byte order


def channels_first(images: np.ndarray | Tensor, name: str = "image") -> Tensor:
    """(H, W), (H, W, C), (C, H, W) or a batch of these as (B, C, H, W), C = 1, 3 or 4: a view where that can be one.

    Where both ends could be channels, an array's last counts, as Pillow and OpenCV have it, and a tensor's first.

    Args:
        images: uint8, uint16 or floating point.
        name: what errors call it.

    Raises:
        DataError: another shape or dtype, or nothing in it.
    """
    shape = tuple(images.shape)
    is_array = isinstance(images, np.ndarray)
    tensor = _tensor(images, name) if isinstance(images, np.ndarray) else images.detach()
    if tensor.dtype not in (torch.uint8, torch.uint16) and not tensor.is_floating_point():
        raise _wrong_dtype(name, str(tensor.dtype).removeprefix("torch."))
    if len(shape) == 2:
        tensor = tensor[None, None]
    elif len(shape) == 3:
        tensor = tensor[None]
    first = tensor.dim() == 4 and tensor.shape[1] in _CHANNELS
    # A grey image (H, W) has no channels, however narrow it is.
    last = tensor.dim() == 4 and tensor.shape[3] in _CHANNELS and len(shape) > 2
    if not (first or last):
        raise DataError(f"{name} has shape {shape}; {_advice(shape, is_array)}")
    if tensor.numel() == 0:
        raise DataError(f"{name} has shape {shape}: it is empty")
    return tensor.permute(0, 3, 1, 2) if last and (is_array or not first) else tensor


def _tensor(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.name not in _DTYPES:
        raise _wrong_dtype(name, array.dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has neither read-only memory nor negative strides
    return torch.from_numpy(array)


def _wrong_dtype(name: str, dtype: object) -> DataError:
    return DataError(f"{name} has dtype {dtype}; wanted uint8, uint16 or floats in [0, 1]")


def _advice(shape: tuple[int, ...], is_array: bool) -> str:
    wanted = "wanted (H, W), (H, W, C), (C, H, W) or a batch of these, with C = 1, 3 or 4"
    if len(shape) == 3 and (shape[-1] if is_array else shape[0]) > 4:
        return f"{wanted}; for a batch of grey images pass {'array[..., None]' if is_array else 'tensor[:, None]'}"
    return wanted
