"""A network's operators, recorded on an example without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .native import native_network

Node = Any  # of torch.fx, whose types of arguments are a union of everything

EXAMPLE = 256  # rows and columns; a multiple of every stride


def record(network: nn.Module, downscale: int) -> fx.GraphModule:
    """The operators of a network at native scale, with ``node.meta["val"]`` for the shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    size = EXAMPLE * downscale
    example = torch.zeros(1, 3, EXAMPLE, EXAMPLE)
    device = next(network.parameters()).device
    with torch.no_grad():
        trace = make_fx(
            native_network(network, (size, size)), tracing_mode="fake", _allow_non_fake_inputs=True
        )
        return trace(example.to(device))


def operator_name(node: Node) -> str:
    """``relu`` for aten.relu_.default."""
    target: Any = node.target
    return getattr(target, "_opname", getattr(target, "__name__", str(target))).removesuffix("_")


def functional(node: Node) -> Callable[..., Tensor]:
    """The operator that does not write into its argument."""
    target: Any = node.target
    return getattr(getattr(torch.ops.aten, operator_name(node)), target._overloadname)


def first_result(node: Node) -> Node:
    return next(user for user in node.users if user.args[1] == 0)


def only_user(node: Node) -> Node | None:
    users = [user for user in node.users if user.users or user.op == "output"]
    return users[0] if len(users) == 1 else None


def keeps_rows(node: Node) -> bool:
    """Whether a reduction goes along the channels alone."""
    dims = next((a for a in node.args[1:] if isinstance(a, (list, tuple))), None)
    return dims is not None and list(dims) in ([1], [-3]) and True in node.args


def height(node: Any) -> int:
    return int(node.meta["val"].shape[2])
