"""What the metrics take: NumPy arrays, torch tensors on any device, or lists of maps; checked in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, UsageError

_NATIVE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_BY_BFLOAT16 = (torch.bool, torch.uint8, torch.int8)  # which holds every such number exactly
_BY_FLOAT64 = (torch.int32, torch.int64, torch.uint32, torch.uint64)


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a tensor that shares memory with it where that is possible."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch has no read-only or reversed views
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} must be numbers in an array or a tensor, got {type(value).__name__}"
        ) from error


def as_scores(value: Any, name: str = "scores", finite: bool = True) -> Tensor:
    """Scores in a floating-point type that keeps them apart. The shape is kept.

    Raises:
        UsageError: not real numbers.
        DataError: NaN or infinite; not found without ``finite``, but in float64.
    """
    scores = as_tensor(value, name)
    if scores.dtype in _BY_BFLOAT16:
        return scores.to(torch.bfloat16)
    if scores.dtype in _BY_FLOAT64:
        return scores.to(torch.float64)
    if scores.is_complex():
        raise UsageError(f"{name} must be real numbers, got {scores.dtype}")
    if scores.dtype not in _NATIVE:
        return scores.to(torch.float32)  # 16-bit integers
    if not finite and scores.dtype != torch.float64:
        return scores
    if scores.numel() and not bool(torch.stack(torch.aminmax(scores)).isfinite().all()):
        bad = (~torch.isfinite(scores)).nonzero()
        raise DataError(
            f"{name} must be finite, got {len(bad)} NaN or infinite of {scores.numel()} values, "
            f"the first at {bad[0].tolist()}"
        )
    return scores


def as_binary(value: Any, name: str, threshold: float | None = None) -> Tensor:
    """Labels or a mask as bool: {0, 1} or {0, 255} as they are, anything else only by ``value > threshold``.

    Raises:
        DataError: other values than these, and no ``threshold`` to say what they mean.
    """
    mask = as_tensor(value, name)
    if mask.dtype == torch.bool:
        return mask
    if threshold is not None:
        return above(mask, threshold)
    binary = mask != 0
    if mask.dtype == torch.uint8 and bool(((mask == 255) | ~binary).all()):
        return binary
    if not bool(((mask == 1) | ~binary).all()):
        raise DataError(
            f"{name} must be binary ({{0, 1}}, {{0, 255}} as uint8, or bool), got {mask.dtype} from "
            f"{mask.min().item():g} to {mask.max().item():g}; binarise first, for instance mask > 0.5"
        )
    return binary


def above(values: Tensor, threshold: float) -> Tensor:
    """``values > threshold`` of the exact numbers: in the values' own type, the threshold would be rounded."""
    if values.ndim > 2 and len(values):  # in float64 only one by one
        return torch.stack([above(image, threshold) for image in values])
    return values.double() > threshold


def next_below(values: NDArray[Any], dtypes: set[torch.dtype]) -> NDArray[np.float64]:
    """Thresholds t for which ``score > t`` selects the values and all above: the next lower floats.

    Scores of one half type get the next lower ones of that type: a comparison in it would round others up again.
    """
    wide = torch.float64 if values.dtype == np.float64 else torch.float32
    dtype = next(iter(dtypes)) if dtypes in ({torch.float16}, {torch.bfloat16}) else wide
    below = torch.nextafter(torch.from_numpy(values).to(dtype), torch.tensor(-torch.inf, dtype=dtype))
    return below.double().numpy()


def paired_scores(scores: Any, labels: Any, finite: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """Scores and their labels, of one shape, as lists of one.

    Raises:
        UsageError: the shapes differ.
        DataError: a score is NaN or infinite, or the labels are not binary.
    """
    values, truths = as_scores(scores, finite=finite), as_binary(labels, "labels")
    if values.shape != truths.shape:
        raise UsageError(
            f"scores and labels must have one shape, got {tuple(values.shape)} and {tuple(truths.shape)}"
        )
    return [values], [truths.to(values.device)]


def split_images(value: Any, name: str, convert: Any, optional: bool = False) -> list[Any]:
    """(N,1,H,W), (N,H,W), one (H,W), or a sequence of (H,W) or (1,H,W) -> N images (H,W).

    ``convert(image, name)`` checks and converts: an array all at once, a sequence image by image. In an
    ``optional`` sequence, None stays None.

    Raises:
        UsageError: not numbers, or of another shape.
        DataError: an image without pixels.
    """
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [
            None
            if optional and image is None
            else convert(_plane(as_tensor(image, f"{name}[{i}]"), name, i), f"{name}[{i}]")
            for i, image in enumerate(value)
        ]
    images = as_tensor(value, name)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim == 2:
        images = images[None]
    if images.ndim != 3:
        raise UsageError(
            f"{name} must be (N,1,H,W), (N,H,W), (H,W) or a list of (H,W), got shape {tuple(images.shape)}"
        )
    _check_pixels(images, name)
    return list(convert(images, name))


def _plane(image: Tensor, name: str, index: int) -> Tensor:
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2:
        raise UsageError(f"{name}[{index}] must be (H,W) or (1,H,W), got shape {tuple(image.shape)}")
    _check_pixels(image, f"{name}[{index}]")
    return image


def _check_pixels(images: Tensor, name: str) -> None:
    if 0 in images.shape[-2:]:
        raise DataError(f"{name} must have pixels, got shape {tuple(images.shape)}")


def paired_images(maps: Any, masks: Any, finite: bool = True) -> tuple[list[Tensor], list[Tensor | None]]:
    """Maps as floats (H,W) and, one for each, their masks as bool (H,W) beside them; None is a good image.

    Raises:
        UsageError: different numbers of maps and masks, or a map and its mask differ in size.
        DataError: a score that is NaN or infinite, a mask that is not binary, or an image without pixels.
    """
    images = split_images(maps, "maps", partial(as_scores, finite=finite))
    return images, match_masks(images, split_images(masks, "masks", as_binary, optional=True))


def match_masks(maps: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The masks on their maps' devices, once numbers and sizes agree."""
    if len(masks) != len(maps):
        raise UsageError(f"maps and masks must be as many, got {len(maps)} maps and {len(masks)} masks")
    for i, (image, mask) in enumerate(zip(maps, masks, strict=True)):
        if mask is not None and mask.shape != image.shape:
            raise UsageError(
                f"masks[{i}] must be {tuple(image.shape)} like maps[{i}], got {tuple(mask.shape)}"
            )
    return [None if mask is None else mask.to(image.device) for image, mask in zip(maps, masks, strict=True)]


def state_groups(state: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A state's values by group and name, from its keys "group/name".

    Raises:
        UsageError: no mapping of such keys, of these names.
    """
    groups: dict[str, dict[str, Any]] = {}
    for key, value in check_state(state).items():
        group, slash, name = str(key).rpartition("/")
        if not slash or name not in names:
            raise UsageError(
                f"state {key!r} must be one of {', '.join(names)}, after a group's name and a slash; an exact "
                "metric's state and a streaming one's do not mix"
            )
        groups.setdefault(group, {})[name] = value
    return groups


def check_state(state: Any) -> Mapping[Any, Any]:
    """``state``, if it is a mapping; else raise a UsageError."""
    if not isinstance(state, Mapping):
        raise UsageError(f"state must be a dict, as another's state is, got {shown(state)}")
    return state


def largest(image: Tensor) -> float:
    """The highest score. NumPy takes a small array faster than torch gathers its threads."""
    if image.device.type == "cpu" and image.dtype != torch.bfloat16:
        return float(image.numpy().max())
    return image.max().item()


def any_set(mask: Tensor) -> bool:
    """Whether a mask has a pixel set."""
    return bool(mask.numpy().any() if mask.device.type == "cpu" else mask.any())


def common_dtype(scores: Sequence[Tensor]) -> list[Tensor]:
    """All scores in one type that keeps them apart: their own if they agree, else float32 or float64."""
    dtypes = {tensor.dtype for tensor in scores}
    if len(dtypes) <= 1:
        return list(scores)
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [tensor.to(dtype) for tensor in scores]


def check_limit(limit: float) -> None:
    """Raise a UsageError unless ``limit`` is a false positive rate to integrate to."""
    if not 0.0 < check_number(limit, "limit") <= 1.0:
        raise UsageError(f"limit must be in (0, 1], got {limit}")


def check_number(value: Any, name: str) -> float:
    """``value`` as a float; raise a UsageError unless it is a number, and not NaN."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises the last
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"{name} must be a number, got {shown(value)}")
    return number


def shown(value: Any) -> str:
    """For a message: arrays by their type only."""
    return type(value).__name__ if isinstance(value, (np.ndarray, Tensor)) else repr(value)
