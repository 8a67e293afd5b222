"""Convolutions with what follows them as one operator, oneDNN's or our own, with its weights laid out ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .. import ops
from .convolutions import convolved, join_blocks, join_poolings, join_stems
from .lowering import finish

aten = torch.ops.aten
mkldnn = torch.ops.mkldnn

CONVOLUTION = aten.convolution.default
ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}

# A rounding that turns a switch makes a gradient jump: those sums stay as the detector does them.
_SWITCHES = {aten.threshold_backward.default, aten.max_unpool2d.default}

_POOLING_DEFAULTS: tuple[Any, ...] = (None, None, [], [0, 0], [1, 1], False)


class Activation(NamedTuple):
    """oneDNN's name of a function, with its numbers."""

    name: str
    numbers: tuple[float, ...] = ()


_IDENTITY = Activation("none")
ACTIVATIONS: dict[Any, Callable[..., Activation]] = {
    aten.relu.default: lambda: Activation("relu"),
    aten.relu_.default: lambda: Activation("relu"),
    aten.relu6.default: lambda: Activation("hardtanh", (0.0, 6.0)),
    aten.hardtanh.default: lambda low=-1.0, high=1.0: Activation("hardtanh", (float(low), float(high))),
    aten.hardtanh_.default: lambda low=-1.0, high=1.0: Activation("hardtanh", (float(low), float(high))),
    aten.silu.default: lambda: Activation("swish"),
    aten.silu_.default: lambda: Activation("swish"),
    aten.leaky_relu.default: lambda slope=0.01: Activation("leaky_relu", (float(slope),)),
    aten.leaky_relu_.default: lambda slope=0.01: Activation("leaky_relu", (float(slope),)),
}


def fuse(module: fx.GraphModule, *, residuals: bool = True) -> int:
    """Replace convolutions by a fused operator, in place; returns how many: ours where it is faster, or oneDNN's.

    ``act(conv(x) + residual)`` becomes one call. The residual is overwritten where nothing needs it afterwards.
    A convolution that oneDNN's operator does not take stays as it is. Without ``residuals`` additions stay apart.
    """
    for node in module.graph.nodes:
        _replace_pooling(node)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    switched = any(node.target in _SWITCHES for node in module.graph.nodes)
    count = 0
    for node in list(module.graph.nodes):
        if node.target is CONVOLUTION and _fits(module, node):
            _replace(module, node, order, residuals, switched)
            count += 1
    join_poolings(module)
    join_blocks(module)
    join_stems(module)
    finish(module)
    return count


def _replace_pooling(node: fx.Node) -> None:
    """Square max pooling by our own kernel, which takes a fifth of the time."""
    if node.target is not aten.max_pool2d.default or len(node.meta.get("shape", ())) != 4:
        return
    given: tuple[Any, ...] = (*node.args, *_POOLING_DEFAULTS[len(node.args) :])
    _, kernel, stride, padding, dilation, ceil_mode = given
    square = all(len(set(sides)) == 1 for sides in (kernel, stride or kernel, padding, dilation))
    if square and dilation[0] == 1 and not ceil_mode and node.meta["dtype"] != torch.float64:
        node.args = (node.args[0], kernel[0], (stride or kernel)[0], padding[0])
        node.target = ops.max_pool2d


class Convolution(NamedTuple):
    """The arguments of ``aten::convolution`` that matter here."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    groups: int


def convolution(node: fx.Node) -> Convolution:
    """What a node calls ``aten::convolution`` with."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    return Convolution(x, weight, bias, stride, padding, dilation, transposed, groups)  # type: ignore[arg-type]


def _fits(module: fx.GraphModule, node: fx.Node) -> bool:
    found = convolution(node)
    constant = found.weight.op == "get_attr" and (found.bias is None or found.bias.op == "get_attr")
    known = len(found.x.meta.get("shape", ())) == 4 and ops.onednn_takes(node.meta["dtype"])
    return constant and not found.transposed and known


def _replace(
    module: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int], residuals: bool, switched: bool
) -> None:
    found = convolution(node)
    weight: Tensor = getattr(module, str(found.weight.target))
    ours = ops.convolve_takes(weight, found.stride, found.dilation, found.groups)
    ours = ours and not (switched and weight.dtype == torch.float32)
    chain, residual, overwrite = [node], None, False
    following = _only_user(node)
    if residuals and following is not None and following.target in ADDITIONS:
        other = _addend(following, node)
        overwrite = other not in (None, found.x) and _dies_at(other, following, order)  # type: ignore[arg-type]
        # Out of place oneDNN does not fuse groups and some layouts, and torch's way around knows no half types.
        apart = ours or (found.groups == 1 and node.meta["dtype"] == torch.float32)
        if other is not None and (overwrite or apart):
            residual = other
            chain.append(following)
    activation = _IDENTITY
    following = _only_user(chain[-1])
    if following is not None and following.target in ACTIVATIONS:
        wanted = ACTIVATIONS[following.target](*following.args[1:])
        if residual is None or wanted.name == "relu":
            activation = wanted
            chain.append(following)
    with module.graph.inserting_before(chain[-1]):
        if ours and activation.name in ("none", "relu"):
            fused = _by_ours(module, found, residual, overwrite, activation)
        else:
            fused = _by_onednn(module, found, residual, overwrite, activation)
    fused.meta.update(chain[-1].meta)
    order[fused] = order[chain[-1]]
    chain[-1].replace_all_uses_with(fused)
    for dead in reversed(chain):
        module.graph.erase_node(dead)


def _by_onednn(
    module: fx.GraphModule, found: Convolution, residual: fx.Node | None, overwrite: bool, activation: Activation
) -> fx.Node:  # fmt: skip
    rest = (
        _laid_out(module, found), found.bias, found.padding, found.stride, found.dilation, found.groups,
    )  # fmt: skip
    if residual is None:
        args: tuple[Any, ...] = (found.x, *rest, activation.name, list(activation.numbers), "")
        return module.graph.call_function(mkldnn._convolution_pointwise.default, args)
    kind = mkldnn._convolution_pointwise_ if overwrite else mkldnn._convolution_pointwise
    inputs = (residual, found.x) if overwrite else (found.x, residual)
    unary = None if activation is _IDENTITY else activation.name
    return module.graph.call_function(kind.binary, (*inputs, *rest, "add", 1.0, unary, [], ""))


def _by_ours(
    module: fx.GraphModule, found: Convolution, residual: fx.Node | None, overwrite: bool, activation: Activation
) -> fx.Node:  # fmt: skip
    weight: Tensor = getattr(module, str(found.weight.target))
    bias = weight.new_zeros(len(weight)) if found.bias is None else getattr(module, str(found.bias.target))
    winograd = ops.winograd_takes(weight, found.stride, found.dilation, found.groups)
    constants = []
    for name, tensor in (("packed", ops.pack_filters(weight, winograd=winograd)), ("sums", bias.float())):
        module.register_buffer(f"{found.weight.target}_{name}", tensor, persistent=False)
        constants.append(module.graph.get_attr(f"{found.weight.target}_{name}"))
    rest = (list(weight.shape[2:]), found.stride, found.padding, found.groups, activation is not _IDENTITY)
    return module.graph.call_function(convolved, (found.x, *constants, residual, overwrite, *rest))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _addend(addition: fx.Node, node: fx.Node) -> fx.Node | None:
    """What is added to the convolution's result, if it has the same shape and type."""
    left, right = addition.args[:2]
    scale = addition.args[2] if len(addition.args) > 2 else addition.kwargs.get("alpha", 1)
    other = right if left is node else left
    if left is right or scale != 1 or not isinstance(other, fx.Node):
        return None
    same = all(other.meta.get(key) == node.meta.get(key) for key in ("shape", "dtype"))
    return other if same and other.op == "call_function" else None


def _dies_at(value: fx.Node, addition: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether ``value`` owns its memory and nobody reads it after ``addition``."""
    fresh = value.op == "call_function" and not _is_view(value)
    return fresh and all(
        user is addition or (order[user] < order[addition] and not _is_view(user)) for user in value.users
    )


def _is_view(node: fx.Node) -> bool:
    """Whether the node's result may share memory with an input that lives on."""
    ours = (convolved, ops.convolve_pool, ops.max_pool2d)
    if node.target in (mkldnn._convolution_pointwise_.binary, *ours, *ACTIVATIONS, *ADDITIONS):
        return False  # written in place into an intermediate that nobody else holds
    returns = getattr(getattr(node.target, "_schema", None), "returns", None)
    return returns is None or any(value.alias_info is not None for value in returns)


def _laid_out(module: fx.GraphModule, found: Convolution) -> fx.Node:
    """The weight in the blocked layout that oneDNN prefers for inputs of this shape."""
    weight: Tensor = getattr(module, str(found.weight.target))
    shape = list(found.x.meta["shape"])
    laid_out = mkldnn._reorder_convolution_weight(
        weight, found.padding, found.stride, found.dilation, found.groups, shape
    )
    name = f"{found.weight.target}_laid_out"
    module.register_buffer(name, laid_out, persistent=False)  # opaque: it can be neither moved nor saved
    with module.graph.inserting_before(found.weight):
        return module.graph.get_attr(name)
