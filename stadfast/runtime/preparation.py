"""A camera's bytes straight to the network's input: conversion, normalisation and rounding in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .. import ops
from .images import to_unit
from .lowering import finish, resize

aten = torch.ops.aten


def prepare(
    images: Tensor, resizing: tuple[Any, ...], mean: list[float], std: list[float], dtype: Any
) -> Tensor:
    """Images as they come, uint8 or float32 in [0, 1], resized if they must be, then normalised.

    ``resizing`` holds :func:`~stadfast.runtime.lowering.resize`'s arguments, and is empty where the images have the
    network's size already.
    """
    if resizing and list(images.shape[-2:]) != list(resizing[0]):
        images = resize(to_unit(images) if images.dtype == torch.uint8 else images, *resizing)
    return ops.normalize_images(images, mean, std, dtype)


def fuse_preparation(module: fx.GraphModule) -> bool:
    """Replace resizing, ``(x - mean) / std`` and rounding by :func:`prepare`, in place.

    Returns:
        whether nothing else reads the images, so that the graph takes them as uint8, too.
    """
    images = next(node for node in module.graph.nodes if node.op == "placeholder")
    for node in list(module.graph.nodes):
        arguments = _normalization(module, node, images)
        if arguments is not None:
            last = _rounding(node) or node
            dtype = torch.float32 if last is node else torch.bfloat16
            with module.graph.inserting_before(last):
                fused = module.graph.call_function(prepare, (images, *arguments, dtype))
            fused.meta.update(last.meta)
            last.replace_all_uses_with(fused)
    finish(module)
    return bool(images.users) and all(user.target is prepare for user in images.users)


def _normalization(
    module: fx.GraphModule, division: fx.Node, images: fx.Node
) -> tuple[tuple[Any, ...], list[float], list[float]] | None:
    """The resizing's arguments, mean and std if ``division`` is ``(resize(images) - mean) / std``."""
    if division.target is not aten.div.Tensor or not isinstance(division.args[0], fx.Node):
        return None
    subtraction = division.args[0]
    if subtraction.target is not aten.sub.Tensor or subtraction.kwargs or len(subtraction.args) != 2:
        return None
    mean, std = (_per_channel(module, node.args[1]) for node in (subtraction, division))
    source, resizing = subtraction.args[0], ()
    if isinstance(source, fx.Node) and source.target is resize and source.args[1] is not None:
        source, *rest = source.args
        resizing = tuple(rest)  # type: ignore[assignment]
    return (resizing, mean, std) if source is images and mean and std else None


def _per_channel(module: fx.GraphModule, value: Any) -> list[float]:
    """The numbers of a constant (1, 3, 1, 1); empty for anything else."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return []
    constant: Tensor = getattr(module, str(value.target))
    return constant.flatten().tolist() if tuple(constant.shape) == (1, 3, 1, 1) else []


def _rounding(node: fx.Node) -> fx.Node | None:
    """The conversion to bfloat16 that alone reads ``node``."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1 or user.target is not aten.to.dtype:
        return None
    return user if user.args[1:] == (torch.bfloat16,) else None
