"""Half precision for the networks, float32 for the maps: one policy for archives and for the scorer."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .. import ops
from .lowering import finish, is_floating

aten = torch.ops.aten

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# In half precision whatever their inputs are.
_NARROW = {aten.convolution.default}
# In the precision of their inputs: cheap, and without sums over many values.
_FOLLOW = {
    getattr(packet, overload)
    for packet in (
        aten.relu, aten.relu_, aten.relu6, aten.hardtanh, aten.hardtanh_, aten.leaky_relu, aten.leaky_relu_,
        aten.silu, aten.silu_, aten.add, aten.add_, aten.mul, aten.mul_, aten.max_pool2d, aten.avg_pool2d,
        aten.adaptive_avg_pool2d, aten.cat, aten.slice, aten.narrow, aten.constant_pad_nd, aten.pad,
        aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.contiguous, aten.view, aten.reshape, aten.flatten,
        aten.unsqueeze, aten.squeeze, aten.permute, aten.dropout,
    )
    for overload in packet.overloads()
}  # fmt: skip


_VIEWS = {"view", "reshape", "expand", "flatten", "unflatten", "permute", "transpose", "unsqueeze"}  # methods


def narrow(module: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """Let the convolutions and what stands between them compute in ``dtype``; everything else stays float32.

    Operators that read half types themselves (:func:`stadfast.ops.reads_half`) get the features as they are and
    give float32. Changes the module, which :func:`~stadfast.runtime.lowering.propagate` has been through, in place.
    """
    if dtype != torch.float32:
        _Narrowing(module, dtype).run()
        finish(module)
    return module


class _Narrowing:
    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        self.module, self.dtype = module, dtype
        self.is_half: set[fx.Node] = set()
        self.casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def run(self) -> None:
        for node in list(self.module.graph.nodes):
            if node.op not in ("call_function", "call_method", "output"):
                continue
            with self.module.graph.inserting_before(node):
                if node.target in _NARROW:
                    self._feed(node, self.dtype)
                    self.is_half.add(node)
                elif node.target in _FOLLOW or node.target in _VIEWS:
                    self._follow(node)
                elif not (ops.reads_half(node.target) and self._all_half(node)):
                    self._feed(node, torch.float32)

    def _follow(self, node: fx.Node) -> None:
        half = self._all_half(node)
        self._feed(node, self.dtype if half else torch.float32)
        if half:
            self.is_half.add(node)

    def _all_half(self, node: fx.Node) -> bool:
        computed = [i for i in node.all_input_nodes if i.op != "get_attr" and is_floating(i)]
        return bool(computed) and all(i in self.is_half for i in computed)

    def _constant(self, node: fx.Node) -> Tensor:
        return getattr(self.module, str(node.target))

    def _feed(self, node: fx.Node, dtype: torch.dtype) -> None:
        """Give ``node`` its inputs in ``dtype``."""

        def cast(value: fx.Node) -> fx.Node:
            if value.op == "get_attr":
                return self._cast_constant(value, dtype)
            if (value in self.is_half) == (dtype == self.dtype):
                return value
            if dtype == torch.float32 or node.target in _NARROW:
                return self._cast(value, dtype)
            return value

        node.args = fx.map_arg(node.args, cast)
        node.kwargs = fx.map_arg(node.kwargs, cast)

    def _cast(self, value: fx.Node, dtype: torch.dtype) -> fx.Node:
        key = (value, dtype)
        if key not in self.casts:
            with self.module.graph.inserting_after(value):
                self.casts[key] = self.module.graph.call_function(aten.to.dtype, (value, dtype))
        return self.casts[key]

    def _cast_constant(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        value = self._constant(node)
        if dtype == torch.float32 or not value.is_floating_point():
            return node
        key = (node, dtype)
        if key not in self.casts:
            name = f"{node.target}_{str(dtype).removeprefix('torch.')}"
            self.module.register_buffer(name, value.to(dtype))
            with self.module.graph.inserting_after(node):
                self.casts[key] = self.module.graph.get_attr(name)
        return self.casts[key]
