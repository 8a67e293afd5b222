"""A recorded TorchScript graph as a torch.fx graph of ATen calls, which Python can rewrite.

Every archive and every detector takes this way into the fast path, whatever its networks are made of: freezing has
folded batch norm into the convolutions before, and what remains is a list of operators with constants.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx


@contextmanager
def quiet() -> Iterator[None]:
    """TorchScript is deprecated, works, and is what C++ programs load: no warning at every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        yield


class UnsupportedGraphError(Exception):
    """The graph holds something other than a sequence of operators, such as a branch: run it as it is."""


def lower(
    module: torch.jit.ScriptModule, device: torch.device, *, keep_resize: bool = False
) -> fx.GraphModule:
    """Freeze ``module`` and rewrite its ``forward`` as an fx graph with the constants on ``device``.

    Images that have the network's size already skip the resizing, unless ``keep_resize``.

    Raises:
        UnsupportedGraphError: control flow or an operator without a Python face.
    """
    with quiet():
        frozen = torch.jit.freeze(module.eval())
    return _Lowering(device, keep_resize).run(frozen.inlined_graph)


def lower_exported(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """The graph of an exported program, which is a list of ATen calls already, as :func:`lower` would give it."""
    module.graph.set_codegen(fx.graph.CodeGen())  # flat inputs and outputs
    for node in list(module.graph.nodes):
        # Checks of the input's shape, and of where tensors were when the program was recorded.
        if node.op == "call_module" or node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target in _RESIZINGS.values():
            node.target = resize
    return finish(module).to(device)


class _Lowering:
    """Values of the TorchScript graph by name: fx nodes, constants, or lists of both."""

    def __init__(self, device: torch.device, keep_resize: bool) -> None:
        self.device, self.keep_resize = device, keep_resize
        self.graph = fx.Graph()
        self.constants = torch.nn.Module()
        self.values: dict[str, Any] = {}
        self.numbers: set[Any] = set()  # nodes that give a number
        self.scalars: dict[fx.Node, Any] = {}  # constants of one integer

    def run(self, source: Any) -> fx.GraphModule:
        for value in list(source.inputs())[1:]:  # the first is the module itself
            self.values[value.debugName()] = self.graph.placeholder(_identifier(value.debugName()))
        for node in source.nodes():
            self._node(node)
        outputs = tuple(self.values[value.debugName()] for value in source.outputs())
        self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        return fx.GraphModule(self.constants, self.graph)

    def _node(self, node: Any) -> None:
        kind = node.kind()
        inputs = [self.values.get(value.debugName()) for value in node.inputs()]
        names = [value.debugName() for value in node.outputs()]
        if kind == "prim::Constant":
            self.values[names[0]] = self._constant(node.output().toIValue())
        elif kind == "aten::max_pool2d_with_indices" and not node.outputsAt(1).uses():
            self.values[names[0]] = self.graph.call_function(torch.ops.aten.max_pool2d.default, tuple(inputs))
        elif kind == "prim::ListConstruct":
            self.values[names[0]] = inputs
        elif kind == "prim::TupleConstruct":
            self.values[names[0]] = tuple(inputs)
        elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            source: Any = inputs[0]
            for i, name in enumerate(names):
                computed = isinstance(source, fx.Node)
                self.values[name] = self.graph.call_function(_item, (source, i)) if computed else source[i]
        elif kind == "aten::size" and len(inputs) == 2:
            self.values[names[0]] = self._number(_size, inputs)
        elif kind == "aten::numel":
            self.values[names[0]] = self._number(Tensor.numel, inputs)
        elif kind in _SAME_NUMBER and self._is_number(inputs[0]):
            self.values[names[0]] = inputs[0]
        elif kind in _ARITHMETIC and all(self._is_number(i) for i in self._operands(node)):
            self.values[names[0]] = self._number(_ARITHMETIC[kind], self._operands(node))
        elif kind.startswith("prim::"):
            raise UnsupportedGraphError(f"{kind} has no counterpart")
        elif len(names) == 1:
            self.values[names[0]] = self._operator(node, inputs)
        else:
            found = self._operator(node, inputs)
            for i, name in enumerate(names):
                self.values[name] = self.graph.call_function(_item, (found, i))

    def _number(self, function: Callable[..., Any], args: list[Any]) -> fx.Node:
        """Sizes stay Python numbers, so that another recording of the graph sees where they come from."""
        found = self.graph.call_function(function, tuple(args))
        self.numbers.add(found)
        return found

    def _is_number(self, value: Any) -> bool:
        if isinstance(value, fx.Node):
            return value in self.numbers
        return value is None or isinstance(value, (int, float))  # None: a bound that clamp was not given

    def _operands(self, node: Any) -> list[Any]:
        """The operands of arithmetic, constants as numbers; the factor of sums, which is 1, is left out."""
        count = 2 if node.kind() in ("aten::add", "aten::sub") else None
        values = [self.values.get(value.debugName()) for value in list(node.inputs())[:count]]
        return [self.scalars.get(value, value) if isinstance(value, fx.Node) else value for value in values]

    def _operator(self, node: Any, inputs: list[Any]) -> fx.Node:
        schema = torch._C.parse_schema(node.schema())
        namespace, name = schema.name.split("::")
        try:
            function = getattr(
                getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default"
            )
        except AttributeError as error:
            raise UnsupportedGraphError(f"{schema.name} is not known here") from error
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument, value in zip(schema.arguments, inputs, strict=True):
            if argument.kwarg_only:
                kwargs |= {argument.name: value} if value != argument.default_value else {}
            else:
                args.append(value)
        aten = torch.ops.aten
        flat = [i for value in inputs for i in (value if isinstance(value, list) else [value])]
        if not kwargs and any(isinstance(i, fx.Node) and i in self.numbers for i in flat):
            # methods and functions take the numbers of a recording, operators not
            if hasattr(Tensor, name):
                return self.graph.call_method(name, tuple(args))
            function = getattr(torch._C._nn, name, function)
        if function in _RESIZINGS.values() and not self.keep_resize:
            function = resize
        elif function is aten._convolution.default:  # a private name, which exporters do not know
            function, args = aten.convolution.default, args[:9]
        return self.graph.call_function(function, tuple(args), kwargs)

    def _constant(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return self.device
        if not isinstance(value, Tensor):
            return value
        name = f"constant_{len(list(self.constants.buffers()))}"
        self.constants.register_buffer(name, value.detach().to(self.device))
        node = self.graph.get_attr(name)
        if value.dim() == 0 and not value.is_floating_point():
            self.scalars[node] = value.item()
        return node


class _Propagation(fx.Interpreter):
    """Runs the graph and keeps what the nodes give."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta.update(shape=tuple(result.shape), dtype=result.dtype)
        return result


@torch.no_grad()
def propagate(module: fx.GraphModule, example: Tensor) -> Any:
    """Run the graph, and note every node's ``shape`` and ``dtype`` in its ``meta``; returns the outputs."""
    return _Propagation(module).run(example)


def finish(module: fx.GraphModule) -> fx.GraphModule:
    """After rewriting: drop what nothing uses any more, and compile the graph again."""
    module.graph.eliminate_dead_code()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers() if name not in used]:
        delattr(module, name)
    module.recompile()
    return module


def is_floating(node: fx.Node) -> bool:
    """Whether the node gave a tensor of floating-point numbers when it was propagated."""
    return "dtype" in node.meta and bool(node.meta["dtype"].is_floating_point)


def resize(images: Tensor, size: Any, align_corners: bool, *scales: Any) -> Tensor:
    """Bilinear with antialiasing; at equal size that is the identity, and left out."""
    if size is not None and list(images.shape[-2:]) == list(size):
        return images
    return _RESIZINGS[len(scales)](images, size, align_corners, *scales)


# By the number of scales: one list, or height and width, as a second recording writes it.
_RESIZINGS = {
    1: torch.ops.aten._upsample_bilinear2d_aa.vec,
    2: torch.ops.aten._upsample_bilinear2d_aa.default,
}


def _item(values: Any, index: int) -> Any:
    return values[index]


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.size(dim)


def _ceil(number: Any) -> Any:
    return number.ceil() if isinstance(number, Tensor) else math.ceil(number)


def _clamp(number: Any, low: Any = None, high: Any = None) -> Any:
    if isinstance(number, Tensor):
        return number.clamp(low, high)
    number = number if low is None else max(number, low)
    return number if high is None else min(number, high)


# Tracing records sizes as scalar tensors, and arithmetic on them as arithmetic of tensors.
_SAME_NUMBER = {"prim::NumToTensor", "aten::Int", "aten::ScalarImplicit"}
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": operator.neg,
    "aten::div": operator.truediv,
    "aten::ceil": _ceil,
    "aten::clamp": _clamp,
}
