"""What a streamer computes: the network of a detector, or of an exported archive, as layers of a strip."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..errors import UsageError
from ..methods.graph import Preprocess
from ..runtime.lowering import UnsupportedGraphError, finish, lower, lower_exported, resize
from ..runtime.scorer import open_recorded
from .convert import convert, convert_recorded
from .native import deepest_stride, graph_of, is_archive, scale_ratios
from .network import StripNetwork
from .recording import Node, operator_name, trace

_MAPS = 2  # among an archive's outputs


class StripModel(NamedTuple):
    """Attributes:
    network: from normalised rows to map rows.
    preprocess: with ``mean`` and ``std`` (1, 3, 1, 1).
    unit: a strip is extended to a multiple of so many of the network's rows and columns.
    """

    network: StripNetwork
    preprocess: Any
    unit: int


def strip_model(detector: Any, downscale: int, precision: str) -> StripModel:
    """Of a fitted detector, a bundle's path, or the path of an archive; see :class:`RowStreamer`.

    Raises:
        UsageError: it cannot be streamed. StadfastError: not fitted. BundleError: no bundle or archive.
    """
    if is_archive(detector):
        return _of_archive(detector, downscale, precision)
    graph = graph_of(detector)
    network = convert(graph.network, downscale)
    return StripModel(network, graph.preprocess, math.lcm(network.unit, deepest_stride(graph.network)))


def _of_archive(path: str | os.PathLike[str], downscale: int, precision: str) -> StripModel:
    """The archive's resizing is taken out; what is left has sizes in it, of which only the ratios are used."""
    if downscale != 1:
        raise UsageError(
            f"downscale: expected 1 for the archive {path}, whose maps have their input's size, got {downscale}; "
            "stream the detector's bundle"
        )
    graph, metadata = _opened(path, precision)
    height, width = metadata["network_size"]
    mean, std = _take_out_resizing(graph, path, (height, width))
    network = convert_recorded(trace(graph, torch.zeros(1, 3, height, width)))
    if height % network.unit or width % network.unit:
        raise UsageError(
            f"detector: the archive {path} cannot be streamed: it was fitted at {height} x {width}, no multiple of its "
            f"stride {network.unit}, so that its maps are stretched by other factors than a strip's; stream its bundle"
        )
    preprocess = Preprocess((height, width), mean.flatten().tolist(), std.flatten().tolist())
    return StripModel(network, preprocess, network.unit)


def _opened(path: str | os.PathLike[str], precision: str) -> tuple[fx.GraphModule, dict[str, Any]]:
    module, metadata, kind = open_recorded(path)
    if module is None:
        raise UsageError(
            f"detector: a streamer reads TorchScript and torch.export archives, {path} is {kind}"
        )
    if metadata["image_size"] is not None:
        height, width = metadata["image_size"]
        raise UsageError(
            f"detector: the archive {path} was exported for images of {height} x {width} only; a strip has no such "
            "size: export with size='dynamic'"
        )
    if metadata["precision"] != precision:
        raise UsageError(
            f"precision: the archive {path} was exported in {metadata['precision']}, got {precision!r}"
        )
    lowered = lower_exported if isinstance(module, fx.GraphModule) else lower
    try:
        return lowered(module, torch.device("cpu")), metadata  # type: ignore[operator]
    except UnsupportedGraphError as error:
        raise UsageError(f"detector: the archive {path} cannot be streamed: {error}") from error


def _take_out_resizing(graph: fx.GraphModule, path: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Make the normalised image the graph's input, and its maps the output; returns mean and standard deviation.

    An input of another size than the maps' becomes a scaled copy of the image.
    """
    nodes = graph.graph.nodes
    (image,) = (node for node in nodes if node.op == "placeholder")
    inputs = [node for node in image.users if node.target is resize]
    sizes = [tuple(node.args[1]) for node in inputs]
    scale_ratios(SimpleNamespace(sizes=sizes, size=size))  # type: ignore[arg-type]
    constants: list[list[Tensor]] = []
    for resized, its_size in zip(inputs, sizes, strict=True):
        centred = _next(resized, "sub", path)
        normalised = _next(centred, "div", path)
        constants.append([getattr(graph, str(node.args[1])) for node in (centred, normalised)])
        with graph.graph.inserting_before(resized):
            copy = image if its_size == size else graph.graph.call_function(_copy, (image, its_size))
        normalised.replace_all_uses_with(copy)
    (output,) = (node for node in nodes if node.op == "output")
    output.args = (output.args[0][_MAPS],)
    finish(graph)
    if not constants or any(node in image.users for node in inputs):
        raise UsageError(f"detector: the archive {path} cannot be streamed: its resizing was not found")
    return constants[0][0], constants[0][1]


def _next(node: Node, name: str, path: Any) -> Node:
    """The one that takes up a node's value, as preprocessing does: with a constant."""
    users = list(node.users)
    if (
        len(users) != 1
        or operator_name(users[0]) != name
        or getattr(users[0].args[1], "op", "") != "get_attr"
    ):
        raise UsageError(
            f"detector: the archive {path} cannot be streamed: its resizing cannot be taken out, as no "
            f"normalisation follows it ({', '.join(operator_name(user) for user in users)})"
        )
    return users[0]


def _copy(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", antialias=size[0] < images.shape[2])
