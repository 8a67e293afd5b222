"""From a method's network to the layers of a strip.

The network runs once on an example without data, and PyTorch records its operators (``make_fx``). Whatever is made of
operators that are local in the rows can be streamed, whichever method it belongs to: the tables below are the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import ops
from ..errors import UsageError
from .layers import Bilinear, Distance, Layer, Pointwise, Reflection, Rows, combination, interpolation
from .network import Link, StripNetwork
from .recording import Node, activation_of, functional, height, keeps_rows, only_user, operator_name, record
from .sliding import (
    Antialiased,
    Convolution,
    ConvolutionPool,
    MaxPool,
    TransposedConvolution,
    scale_and_shift,
)

# Other operators broadcast anyway.
_SAME = {"alias", "clone", "detach", "expand", "lift_fresh_copy", "_to_copy"}
_POINTWISE = {
    "abs", "clamp", "clamp_min", "div", "exp", "gelu", "hardswish", "hardtanh", "leaky_relu", "maximum",
    "minimum", "mul", "neg", "pow", "relu", "sigmoid", "silu", "sqrt", "sub", "tanh",
}  # fmt: skip
_OVER_CHANNELS = {"amax", "linalg_vector_norm", "mean", "sum"}
_BATCH_NORMS = {"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm"}


def convert(network: nn.Module, downscale: int = 1) -> StripNetwork:
    """The layers that compute a network's maps row by row.

    Args:
        network: (B, 3, h, w) normalised -> maps (B, 1, H, W), with ``size`` (H, W).
        downscale: the maps have so many times the rows and columns of the input.

    Raises:
        UsageError: the maps have a global term, or an operator needs more than some neighbouring rows.
    """
    term = getattr(network, "global_term", None)
    if term is not None:
        raise UsageError(
            f"detector: its maps cannot be streamed exactly, because they depend on {term}, which is not known before "
            "the strip ends; use TiledStreamer, whose overlapped tiles each have their own"
        )
    return convert_recorded(record(network, downscale))


def convert_recorded(graph: fx.GraphModule) -> StripNetwork:
    """The layers of a graph that :func:`~stadfast.linescan.recording.trace` has recorded.

    Raises:
        UsageError: an operator needs more than some neighbouring rows.
    """
    return _Converter(graph).network()


class _Converter:
    """Walks the recorded operators in their order; ``values`` has the number of each node's rows."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.side = graph, 0
        self.values: dict[Node, Any] = {
            node: getattr(graph, str(node.target)).detach()
            for node in graph.graph.nodes
            if node.op == "get_attr"
        }
        self.rows: list[Rows] = [Rows(Fraction(1))]
        self.layers: list[Layer] = []
        self.deferred: set[Node] = set()  # convolutions that wait for what is added to them
        self.links: list[Link] = []

    def network(self) -> StripNetwork:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node], self.side = 0, height(node)
            elif node.op == "output":
                result = node.args[0]
                output = self.values[result[0] if isinstance(result, (tuple, list)) else result]
                return StripNetwork(self.layers, self.links, output)
            elif node not in self.values and node.users:
                self.values[node] = self.operator(node)
        raise AssertionError("a graph without output")

    def operator(self, node: Node) -> Any:
        """The rows of a recorded operator: their number, or a list of numbers."""
        name = operator_name(node)
        if name == "getitem":
            return self.values[node.args[0]][node.args[1]]
        if name in _SAME:
            return self.values[node.args[0]]
        handler: Callable[[Node], Any] | None = getattr(self, f"_{name.lstrip('_')}", None)
        if name in _BATCH_NORMS:
            handler = self._batch_norm
        elif name in _POINTWISE or (name in _OVER_CHANNELS and keeps_rows(node)):
            handler = self._pointwise
        if handler is None:
            raise UsageError(f"detector: its maps cannot be streamed: {name} is not known to work row by row")
        return handler(node)

    def add(self, layer: Layer, *sources: int, at: int | None = None) -> list[int]:
        """Put a layer at the end of the chain, or at a place where its sources are known; returns its values."""
        at = len(self.layers) if at is None else at
        outputs = tuple(range(len(self.rows), len(self.rows) + len(layer.outputs)))
        self.rows += layer.outputs
        self.layers.insert(at, layer)
        self.links.insert(at, Link(sources, outputs))
        return list(outputs)

    # ---------------------------------------------------------------- one operator each

    def _convolution(self, node: Node) -> int | None:
        addition = only_user(node)
        added = not node.args[6] and addition is not None and self._adds_features(addition)  # 6: transposed
        if added and not any(other in self.deferred for other in addition.args[:2]):  # type: ignore[union-attr]
            self.deferred.add(node)  # the other addend may not have been seen yet
            return None
        return self._convolved(node, node, None)

    def _convolved(self, node: Node, end: Node, residual: int | None) -> int:
        """A convolution up to ``end``, which is itself, or an addition behind it."""
        source, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
        weight, bias = self.values[weight], None if bias is None else self.values[bias]
        last, activation = activation_of(end)
        if residual is not None and activation is not None and activation.name != "relu":
            last, activation = end, None  # oneDNN knows no other behind a sum
        source, padding = self._padding(source, padding)
        rows = self.rows[source]
        layer: Layer
        if transposed:
            around = padding[2], padding[0]
            layer = TransposedConvolution(
                rows, weight, bias, stride, dilation, groups, around, output_padding, activation
            )
            (out,) = self.add(layer, source)
        elif residual is None:
            layer = Convolution(rows, weight, bias, stride, dilation, groups, padding, activation)
            (out,) = self.add(layer, source)
        else:
            added = self.rows[residual]
            layer = Convolution(rows, weight, bias, stride, dilation, groups, padding, activation, added)
            (out,) = self.add(layer, source, residual)
        self.values[last] = out
        return out

    def _add(self, node: Node) -> int:
        convolution = next((a for a in node.args[:2] if a in self.deferred), None)
        if convolution is None:
            return self._pointwise(node)
        (other,) = (a for a in node.args[:2] if a is not convolution)
        return self._convolved(convolution, node, self.values[other])

    def _adds_features(self, addition: Node) -> bool:
        if operator_name(addition) != "add":
            return False
        left, right = addition.args[:2]
        nodes = isinstance(left, fx.Node) and isinstance(right, fx.Node) and left is not right
        return nodes and not addition.kwargs and left.meta["shape"] == right.meta["shape"]

    def _slice(self, node: Node) -> int:
        source, dim, start, end = (*node.args, 0, None, None)[:4]
        if node.meta["shape"] == source.meta["shape"]:
            return self.values[source]
        if dim not in (1, -3) or node.args[4:] not in ((), (1,)):
            raise UsageError(f"detector: its maps cannot be streamed: a slice along dimension {dim}")
        return self._joined([self.values[source]], lambda x: x[:, start:end])

    def _max_pool2d(self, node: Node) -> int:
        defaults: list[Any] = [None, None, [], [0, 0], [1, 1], False]
        source, kernel, stride, padding, dilation, _ = list(node.args) + defaults[len(node.args) :]
        value, alone = self.values[source], len(source.users) == 1
        pool = MaxPool(self.rows[value], kernel, stride or kernel, dilation, padding)
        before = self.layers[-1] if self.layers and self.links[-1].outputs == (value,) else None
        if alone and isinstance(before, Convolution) and before.starts() and pool.carried[0] >= 0:
            self.layers.pop()
            return self.add(ConvolutionPool(before, pool), *self.links.pop().sources)[0]
        return self.add(pool, value)[0]

    def _batch_norm(self, node: Node) -> list[int]:
        """Behind anything but a convolution."""
        source = self.values[node.args[0]]
        constants = [t.view(1, -1, 1, 1) for t in self._scale_and_shift(node)]

        def normalise(x: Tensor) -> Tensor:
            scale, shift = (t.to(x.dtype) for t in constants)
            return x * scale + shift

        return self.add(Pointwise([self.rows[source]], normalise, constants), source)

    def _pointwise(self, node: Node) -> int:
        function = functional(node)
        streams = [argument for argument in node.args if isinstance(argument, fx.Node)]
        constants = [isinstance(self.values[stream], Tensor) for stream in streams]
        sources = [self.values[s] for s, constant in zip(streams, constants, strict=True) if not constant]
        fixed = [self.values.get(a) if isinstance(a, fx.Node) else a for a in node.args]
        places = [i for i, a in enumerate(node.args) if a in streams and not isinstance(fixed[i], Tensor)]
        widen = operator_name(node) == "linalg_vector_norm"  # a sum of squares has no three digits in half
        last, activation = activation_of(node)

        def apply(*inputs: Tensor) -> Tensor:
            arguments = list(fixed)
            for place, x in zip(places, inputs, strict=True):
                arguments[place] = x.float() if widen and x.dtype != torch.float64 else x
            result = function(*arguments, **node.kwargs)
            return result if activation is None else activation.function(result)

        self.values[last] = self._joined(sources, apply, fixed)
        return self.values[last]

    def _cat(self, node: Node) -> int:
        tensors, dim = (*node.args, 0)[:2]
        if dim not in (1, -3):
            raise UsageError(f"detector: its maps cannot be streamed: cat along dimension {dim}")
        return self._joined([self.values[t] for t in tensors], lambda *inputs: torch.cat(inputs, dim=1))

    def _joined(
        self, sources: list[int], function: Callable[..., Tensor], constants: list[Any] | None = None
    ) -> int:
        rows = [self.rows[source] for source in sources]
        if len({(r.rate, r.extra) for r in rows}) > 1:
            raise UsageError("detector: its maps cannot be streamed: it joins rows of different strides")
        return self.add(Pointwise(rows, function, constants), *sources)[0]

    def _constant_pad_nd(self, node: Node) -> None:
        """The convolutions behind take it over."""
        if any(operator_name(user) != "convolution" or user.args[6] for user in node.users):
            raise UsageError("detector: its maps cannot be streamed: padding that no convolution follows")

    def _reflection_pad2d(self, node: Node) -> int:
        source, padding = node.args
        return self.add(Reflection(self.rows[self.values[source]], padding), self.values[source])[0]

    def _peer_distance(self, node: Node) -> int:
        descriptors, pairs, groups, squared = node.args
        pairs = list(zip(pairs[::2], pairs[1::2], strict=True))

        def distance(*inputs: Tensor) -> Tensor:
            return ops.peer_distance(inputs, pairs, groups, squared=squared)

        return self._joined([self.values[x] for x in descriptors], distance)

    def _upsample_bilinear2d(self, node: Node) -> int:
        source, _, align_corners = node.args[:3]
        if align_corners:
            raise UsageError("detector: its maps cannot be streamed: interpolation with align_corners")
        rate = self.rows[self.values[source]].rate * Fraction(height(node), height(source))
        return self._upsampled([self.values[source]], rate, rate, interpolation)

    def _pyramid_distance(self, node: Node) -> list[int]:
        students, teachers, eps = node.args
        return self._distances(students, teachers, eps)

    def _anomaly_map(self, node: Node) -> int:
        students, teachers, groups, weights, grid, size, combine, eps = node.args
        distances = self._distances(students, teachers, eps)
        return self._combination(distances, groups, weights, grid, size, combine)

    def _distances(self, students: Sequence[Node], teachers: Sequence[Node], eps: float) -> list[int]:
        """Of each level at once when its features are there, while they are in the cache."""
        found = []
        for pair in zip(students, teachers, strict=True):
            student, teacher = (self.values[node] for node in pair)
            layer = Distance(self.rows[student], self.rows[teacher], eps)
            made = [i for i, link in enumerate(self.links) if {student, teacher} & set(link.outputs)]
            found += self.add(layer, student, teacher, at=max(made, default=-1) + 1)
        return found

    def _upsample_combine(self, node: Node) -> int:
        maps, groups, weights, grid, size, combine = node.args
        return self._combination([self.values[m] for m in maps], groups, weights, grid, size, combine)

    def _combination(
        self, maps: list[int], groups: Any, weights: Any, grid: Any, size: Any, combine: str
    ) -> int:
        rates = [Fraction(int(n[0]), self.side) for n in (grid, size)]
        return self._upsampled(maps, rates[0], rates[1], combination(groups, weights, combine))

    def _upsampled(
        self, maps: list[int], grid: Fraction, rate: Fraction, resize: Callable[..., Tensor]
    ) -> int:
        rows = [self.rows[m] for m in maps]
        if any(r.extra for r in rows):
            raise UsageError(
                "detector: its maps cannot be streamed: it interpolates rows that no ratio relates to it"
            )
        return self.add(Bilinear(rows, grid, rate, resize), *maps)[0]

    def _upsample_bilinear2d_aa(self, node: Node) -> int:
        """Down to a whole fraction, as :func:`scale_ratios` has made sure."""
        source = self.values[node.args[0]]
        return self.add(Antialiased(self.rows[source], height(node.args[0]) // height(node)), source)[0]

    # ---------------------------------------------------------------- what belongs to a convolution

    def _padding(self, source: Node, padding: list[int]) -> tuple[int, tuple[int, int, int, int]]:
        """The convolution's source and padding, with that of a padding operator before it."""
        rows, columns = padding
        if source.op == "call_function" and operator_name(source) == "constant_pad_nd":
            inner, (left, right, top, bottom), *value = source.args
            if value in ([], [0], [0.0]):
                return self.values[inner], (left + columns, right + columns, top + rows, bottom + rows)
        return self.values[source], (columns, columns, rows, rows)

    def _scale_and_shift(self, norm: Node) -> tuple[Tensor, Tensor]:
        found: list[Any] = [None if a is None else self.values[a] for a in norm.args[1:5]]
        gain, offset, mean, variance = found
        return scale_and_shift(gain, offset, mean, variance, norm.args[-1])
