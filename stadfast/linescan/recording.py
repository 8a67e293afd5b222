"""A network's operators, recorded on an example without data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..runtime.export import record_on_cpu
from ..runtime.lowering import lower
from ..runtime.siblings import join
from .native import deepest_stride, native_network
from .sliding import Activation

Node = Any  # of torch.fx, whose types of arguments are a union of everything

_ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]]] = {  # what oneDNN calls them, and default arguments
    "hardtanh": ("hardtanh", (-1.0, 1.0)), "leaky_relu": ("leaky_relu", (0.01,)), "relu": ("relu", ()),
    "sigmoid": ("sigmoid", ()), "silu": ("swish", ()),
}  # fmt: skip
_EXAMPLE = 128  # rows and columns; a multiple of every stride


def record(network: nn.Module, downscale: int) -> fx.GraphModule:
    """The operators of a network at native scale, as the Scorer runs them: batch norm folded, siblings joined."""
    side = math.lcm(_EXAMPLE, deepest_stride(network))
    size = side * downscale
    example = torch.zeros(1, 3, side, side)
    recorded = record_on_cpu(native_network(network, (size, size)), example)
    return trace(lower(recorded, example.device), example)


def trace(module: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """The operators of a lowered graph for one size, whose nodes have ``meta["shape"]`` and ``meta["dtype"]``."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(module, tracing_mode="fake", _allow_non_fake_inputs=True)(example)
    for node in list(graph.graph.nodes):
        _without_indices(node)
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta.update(shape=tuple(value.shape), dtype=value.dtype)
    join(graph)
    return graph


def _without_indices(node: Node) -> None:
    """Max pooling as one value."""
    if operator_name(node) == "max_pool2d_with_indices":
        node.target = torch.ops.aten.max_pool2d.default
        node.meta["val"] = node.meta["val"][0]
        for item in list(node.users):
            item.replace_all_uses_with(node)
            node.graph.erase_node(item)


def operator_name(node: Node) -> str:
    """``relu`` for aten.relu_.default."""
    target: Any = node.target
    return getattr(target, "_opname", getattr(target, "__name__", str(target))).removesuffix("_")


def functional(node: Node) -> Callable[..., Tensor]:
    """The operator that does not write into its argument."""
    target: Any = node.target
    return getattr(getattr(torch.ops.aten, operator_name(node)), target._overloadname)


def only_user(node: Node) -> Node | None:
    users = [user for user in node.users if user.users or user.op == "output"]
    return users[0] if len(users) == 1 else None


def activation_of(node: Node) -> tuple[Node, Activation | None]:
    """The activation that alone takes up what a node gives, and the node at which both end."""
    user = only_user(node)
    if user is None or operator_name(user) not in _ACTIVATIONS or user.kwargs:
        return node, None
    function, (name, defaults) = user.target, _ACTIVATIONS[operator_name(user)]
    numbers = (*user.args[1:], *defaults[len(user.args) - 1 :])
    return user, Activation(lambda x: function(x, *numbers), name, numbers)


def keeps_rows(node: Node) -> bool:
    """Whether a reduction goes along the channels alone."""
    dims = next((a for a in node.args[1:] if isinstance(a, (list, tuple))), None)
    return dims is not None and list(dims) in ([1], [-3]) and True in node.args


def height(node: Any) -> int:
    return int(node.meta["shape"][2])
