"""CUDA graphs: what a GPU runs again and again, launched at once; the scorer's path has one per shape."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx

T = TypeVar("T")
_capturing = threading.Lock()  # one at a time in a process
_WARM_UP = 3  # calls: capture wants libraries initialised and algorithms chosen


def capture(
    run: Callable[[], T], pool: Any = None, side: torch.cuda.Stream | None = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """A CUDA graph of what ``run`` does on the current device, and its results, which every replay overwrites.

    ``run`` is called some times before. Whatever it reads and writes must lie where it is whenever the graph runs.
    Graphs of one ``pool``, captured on one stream ``side``, share memory, so that they must never run at once.
    """
    with _capturing:
        if side is None:
            side = torch.cuda.Stream()  # torch's own is one for all devices
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating memory and copying, which a global capture forbids.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            results = run()
        return graph, results


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: tuple[Tensor, ...]


class CudaGraphs:
    """Runs a graph as captured CUDA graphs, one for each shape of batch that comes.

    Weights and features lie channels_last. A captured graph has fixed memory, which all share, so calls take turns, on
    the host (a lock) and on the device (an event, as they may come on several streams), and results are copied out.

    Where ``_KEPT`` shapes are captured, another one runs uncaptured until it has come ``_OFTEN`` times, so that many
    sizes in turn cause no captures; then it takes the place of the shape whose last call is the longest ago.
    """

    _KEPT, _OFTEN = 8, 8

    def __init__(self, graph: fx.GraphModule) -> None:
        for name, buffer in graph.named_buffers():
            if buffer.dim() == 4:
                setattr(graph, name, buffer.contiguous(memory_format=torch.channels_last))
        self.graph = graph
        self.captured: OrderedDict[tuple[int, ...], _Captured] = OrderedDict()  # the latest call's last
        self.uncaptured: Counter[tuple[int, ...]] = Counter()  # calls, since the last capture
        self.lock = threading.Lock()
        self.free: torch.cuda.Event | None = None  # when the last call's results are copied
        self.shared: tuple[Any, torch.cuda.Stream] | None = None  # memory pool, and its stream

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.cuda.device(images.device):
            with self.lock:
                if self._is_captured(images):
                    return self._replay(images)
            return self.graph(images.contiguous(memory_format=torch.channels_last))

    def _is_captured(self, images: Tensor) -> bool:
        """Whether there is a graph for images of this shape; captures one where that is worth it."""
        key = tuple(images.shape)
        if key in self.captured:
            return True
        if len(self.captured) >= self._KEPT:
            self.uncaptured[key] += 1
            if self.uncaptured[key] < self._OFTEN:
                return False
            if self.free is not None:
                self.free.synchronize()  # other streams than its memory's own may still use it
            self.captured.popitem(last=False)
        self.captured[key] = self._capture(images)
        self.uncaptured.clear()
        return True

    def _capture(self, images: Tensor) -> _Captured:
        if self.shared is None:
            self.shared = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        inputs = images.clone(memory_format=torch.channels_last)
        graph, outputs = capture(lambda: self.graph(inputs), *self.shared)
        return _Captured(graph, inputs, outputs)

    def _replay(self, images: Tensor) -> tuple[Tensor, ...]:
        key = tuple(images.shape)
        self.captured.move_to_end(key)
        graph, inputs, outputs = self.captured[key]
        stream = torch.cuda.current_stream()
        if self.free is not None:
            stream.wait_event(self.free)
        inputs.copy_(images)
        graph.replay()
        results = tuple(x.clone() for x in outputs)
        self.free = stream.record_event()
        return results
