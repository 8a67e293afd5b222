"""Networks of one architecture on one input, run as one: their channels side by side, convolutions in groups.

A student and its teacher take the same images through the same layers. Joined, their first convolution is one with
twice the outputs and every other one has two groups: half as many calls, each of twice the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .fusion import ACTIVATIONS, ADDITIONS, CONVOLUTION, convolution
from .lowering import finish

aten = torch.ops.aten

_CHANNEL_WISE = {*ACTIVATIONS, *ADDITIONS, aten.max_pool2d.default, aten.avg_pool2d.default}
_BLOCK = 32  # groups of other numbers of channels are slow in oneDNN

Siblings = tuple[fx.Node, ...]


def join(module: fx.GraphModule) -> int:
    """Join sibling networks in place, as far as they are alike; returns the number of convolutions left out.

    The graph must have been through :func:`~stadfast.runtime.lowering.propagate`.
    """
    joining = _Joining(module)
    joining.run()
    finish(module)
    return joining.saved


class _Joining:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.groups: dict[fx.Node, tuple[Siblings, fx.Node]] = {}  # first sibling -> (all, their joint node)
        self.members: set[fx.Node] = set()
        self.saved = 0

    def run(self) -> None:
        for node in list(self.module.graph.nodes):
            if node not in self.members:
                siblings = self._siblings(node)
                if len(siblings) > 1:
                    self._join(siblings)
        for siblings, joint in reversed(list(self.groups.values())):
            self._release(siblings, joint)

    def _siblings(self, node: fx.Node) -> Siblings:
        """``node`` and its counterparts in the other networks, empty if it has none."""
        first = next((i for i in _inputs(node) if i in self.groups), None)
        if first is None:
            if node.target is not CONVOLUTION or convolution(node).groups != 1:
                return ()
            return (
                node,
                *(u for u in convolution(node).x.users if u is not node and self._alike(u, node, 0)),
            )
        found = [node]
        for i, cousin in enumerate(self.groups[first][0][1:], start=1):
            match = next((user for user in cousin.users if self._alike(user, node, i)), None)
            if match is None:
                return ()
            found.append(match)
        return tuple(found)

    def _alike(self, other: fx.Node, node: fx.Node, position: int) -> bool:
        """Whether ``other`` does in its network what ``node`` does in the first, on corresponding inputs."""
        if other in self.members or other.target is not node.target:
            return False
        if other.meta.get("shape") != node.meta.get("shape") or other.kwargs != node.kwargs:
            return False
        if node.target is CONVOLUTION:
            a, b = convolution(node), convolution(other)
            shapes = [self._shape(c.weight) for c in (a, b)]
            return (
                self._corresponds(a.x, b.x, position)
                and a[3:] == b[3:]
                and not a.transposed
                and shapes[0] is not None
                and shapes[0] == shapes[1]
                and (a.bias is None) == (b.bias is None)
                and _fits_in_groups(shapes[0], a.groups, shared=position == 0 or a.x is b.x)
            )
        if node.target not in _CHANNEL_WISE or len(node.args) != len(other.args):
            return False
        return all(
            self._corresponds(a, b, position) if isinstance(a, fx.Node) else a == b
            for a, b in zip(node.args, other.args, strict=True)
        )

    def _corresponds(self, a: Any, b: Any, position: int) -> bool:
        if position == 0:
            return a is b
        return a in self.groups and self.groups[a][0][position] is b

    def _shape(self, weight: fx.Node) -> tuple[int, ...] | None:
        return tuple(getattr(self.module, str(weight.target)).shape) if weight.op == "get_attr" else None

    def _join(self, siblings: Siblings) -> None:
        node = siblings[0]
        graph = self.module.graph
        joined = {i: self.groups[i][1] for i in _inputs(node) if i in self.groups}
        if node.target is CONVOLUTION:
            parts = [convolution(sibling) for sibling in siblings]
            first = parts[0]
            weight = self._side_by_side([part.weight for part in parts])
            bias = None if first.bias is None else self._side_by_side([part.bias for part in parts])
            groups = first.groups * len(siblings) if first.x in joined else 1
            with graph.inserting_before(node):
                args: Any = (joined.get(first.x, first.x), weight, bias, *node.args[3:8], groups)
                joint = graph.call_function(CONVOLUTION, args)
            self.saved += len(siblings) - 1
        else:
            with graph.inserting_before(node):
                target: Any = node.target
                joint = graph.call_function(target, fx.map_arg(node.args, joined.__getitem__), node.kwargs)
        batch, channels, *rest = node.meta["shape"]
        joint.meta.update(node.meta, shape=(batch, channels * len(siblings), *rest))
        self.groups[node] = (siblings, joint)
        self.members.update(siblings)

    def _side_by_side(self, constants: Sequence[Any]) -> fx.Node:
        # All of their names: networks for several input sizes share a constant, each with a sibling of its own.
        name = "_".join([*(str(node.target) for node in constants), "joined"])
        values = [getattr(self.module, str(node.target)) for node in constants]
        self.module.register_buffer(name, torch.cat(values))
        with self.module.graph.inserting_before(constants[0]):
            return self.module.graph.get_attr(name)

    def _release(self, siblings: Siblings, joint: fx.Node) -> None:
        """Give each sibling's remaining users its share of the channels."""
        channels = siblings[0].meta["shape"][1]
        for i, node in enumerate(siblings):
            if node.users:
                with self.module.graph.inserting_after(joint):
                    share = (joint, 1, i * channels, (i + 1) * channels)
                    part = self.module.graph.call_function(aten.slice.Tensor, share)
                part.meta.update(node.meta)
                node.replace_all_uses_with(part)
            self.module.graph.erase_node(node)


def _inputs(node: fx.Node) -> list[fx.Node]:
    return [i for i in node.all_input_nodes if i.op != "get_attr"]


def _fits_in_groups(weight: tuple[int, ...] | None, groups: int, *, shared: bool) -> bool:
    """Whether oneDNN is fast with so many channels a group; convolutions that share their input need no groups."""
    if weight is None:
        return False
    outputs, inputs = weight[0] // groups, weight[1]
    depthwise = outputs == inputs == 1
    return shared or depthwise or (outputs % _BLOCK == 0 and inputs % _BLOCK == 0)
