"""CUDA graphs: what a GPU runs again and again, launched at once; the scorer's path has one per shape."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, fx

T = TypeVar("T")
_capturing = threading.Lock()  # one at a time in a process
_WARM_UP = 3  # calls: capture wants libraries initialised and algorithms chosen


def capture(run: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """A CUDA graph of what ``run`` does on the current device, and its results, which every replay overwrites.

    ``run`` is called some times before. Whatever it reads and writes must lie where it is whenever the graph runs.
    """
    with _capturing:
        side = torch.cuda.Stream()  # torch's own is one for all devices
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating memory and copying, which a global capture forbids.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            results = run()
        return graph, results


class CudaGraphs:
    """Runs a graph as captured CUDA graphs, one for each shape of batch that comes.

    Weights and features lie channels_last. A captured graph has fixed memory, so calls take turns, on the host (a lock)
    and on the device (an event, as they may come on several streams), and results are copied out. Shapes beyond the
    first ``_KEPT`` run uncaptured, lest memory grow with them.
    """

    _KEPT = 8

    def __init__(self, graph: fx.GraphModule, batch_size: int) -> None:
        for name, buffer in graph.named_buffers():
            if buffer.dim() == 4:
                setattr(graph, name, buffer.contiguous(memory_format=torch.channels_last))
        self.graph, self.batch_size = graph, batch_size
        self.captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}
        self.lock = threading.Lock()
        self.free: torch.cuda.Event | None = None  # when the last call's results are copied

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        key = tuple(images.shape)
        with self.lock, torch.cuda.device(images.device):
            if key not in self.captured and len(self.captured) >= self._KEPT:
                return self.graph(images.contiguous(memory_format=torch.channels_last))
            if key not in self.captured:
                self.captured[key] = self._capture(images)
            graph, inputs, outputs = self.captured[key]
            stream = torch.cuda.current_stream()
            if self.free is not None:
                stream.wait_event(self.free)
            inputs.copy_(images)
            graph.replay()
            results = tuple(x.clone() for x in outputs)
            self.free = stream.record_event()
            return results

    def _capture(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        inputs = images.clone(memory_format=torch.channels_last)
        graph, outputs = capture(lambda: self.graph(inputs))
        return graph, inputs, outputs
