"""One training by several processes that ``torchrun`` has started: each computes its share of every batch.

The order of the images, the batches and the weights after each step are those of one process with the same batch size,
up to rounding: gradients are averaged by DistributedDataParallel, batch norm normalises by the whole batch, and files
are written and read by the first process. So a run can be resumed by another number of processes.

Nothing here happens by itself: a program with processes of its own, each with a detector of its own, is left alone.
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: as a default argument it would be kept, threads and all
from torch import Tensor, nn

from ..errors import StadfastError, UsageError
from .batch_norm import SynchronisedBatchNorm2d

T = TypeVar("T")

_LOST = (
    "another process of this training has ended, and it cannot go on without it: see that process's message; "
    "the same command with --resume continues from the last checkpoint, also with another number of processes"
)


@dataclass
class _Group:
    rank: int = 0
    size: int = 1
    on_this_machine: int = 1
    batch: int = 0  # images of the step that is being computed, in all processes
    copies: int = 1  # processes that compute the same images, where there are fewer images than processes


_group = _Group()


def rank() -> int:
    return _group.rank


def size() -> int:
    return _group.size


def check_processes(method: str, data_parallel: bool, batch_size: int) -> None:
    """
    Raises:
        UsageError: a method whose batches cannot be shared, or smaller ones than there are processes.
    """
    if _group.size > 1 and not data_parallel:
        raise UsageError(
            f"{method} cannot be trained by several processes, as its losses compare the images of a batch "
            "with each other: run it without torchrun"
        )
    if batch_size < _group.size:
        raise UsageError(
            f"batch_size: expected at least {_group.size}, the number of processes, got {batch_size}"
        )


def is_main() -> bool:
    """Whether this process writes files and shows progress; true where there is one only."""
    return _group.rank == 0


def processes_here() -> int:
    """How many processes share this machine's memory."""
    return _group.on_this_machine


@contextmanager
def joined(device: str = "auto") -> Iterator[str]:
    """Join the processes that torchrun has started, for all detectors that are fitted within.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``; each process takes a GPU of its own.

    Yields:
        the device of this process. Without torchrun, or if it has started one process only, just ``device``.

    Raises:
        UsageError: a device with a number. StadfastError: (from within) another process has ended.
    """
    global _group
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield device
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"device: torchrun gives each process a GPU; expected auto, cpu or cuda, got {device!r}"
        )
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    with _end_in_words():
        dist.init_process_group("nccl" if on_gpu else "gloo")
        _group = _Group(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        try:
            yield f"cuda:{local}" if on_gpu else "cpu"
            dist.destroy_process_group()
        finally:
            _group = _Group()


@contextmanager
def _end_in_words() -> Iterator[None]:
    """Whichever comes first when a process dies, a broken connection or torchrun's SIGTERM, becomes one message."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StadfastError(_LOST)

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main_thread else None
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            raise StadfastError(_LOST) from error
        raise
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def on_main(function: Callable[[], T]) -> T:
    """Call it in the first process only; all return its result, or raise its error."""
    if _group.size == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def share(indices: Tensor) -> tuple[Tensor, float]:
    """This process's images of a batch, and their share of the batch's mean loss.

    Where there are fewer images than processes, each computes all of them.
    """
    if _group.size == 1:
        return indices, 1.0
    _group.batch = len(indices)
    _group.copies = _group.size if len(indices) < _group.size else 1
    if _group.copies > 1:
        return indices, 1 / _group.size
    mine = indices.tensor_split(_group.size)[_group.rank]
    return mine, len(mine) / len(indices)


def batch_images(here: int) -> int:
    """How many images the step has in all processes, ``here`` of them in this one."""
    return here if _group.size == 1 else _group.batch


def total(value: float, like: Tensor) -> float:
    """The sum over the processes; ``like`` says on which device to add."""
    if _group.size == 1:
        return value
    summed = torch.tensor([value], dtype=torch.float64, device=like.device)
    dist.all_reduce(summed)
    return summed.item()


class DataParallel:
    """The training of a module by all processes.

    Args:
        module: starts from the first process's weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._wrapped = module
        if _group.size > 1:
            wrap = nn.parallel.DistributedDataParallel
            new = "forward_sync_buffers" in inspect.signature(wrap).parameters  # the name until torch 2.14
            unsynced: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
            self._wrapped = wrap(module, **unsynced)  # all processes have the same statistics anyway

    @contextmanager
    def steps(self, trainee: Any) -> Iterator[None]:
        """Within it, ``trainee.module`` sees the gradients and the batch statistics of all processes' images."""
        if _group.size == 1:
            yield
            return
        norms: list[Any] = [module for module in self._module.modules() if type(module) is nn.BatchNorm2d]
        trainee.module = self._wrapped
        for norm in norms:
            norm.__class__ = SynchronisedBatchNorm2d  # in place: the optimiser knows its parameters
            norm.copies = lambda: _group.copies
        try:
            yield
        finally:
            trainee.module = self._module
            for norm in norms:
                norm.__class__ = nn.BatchNorm2d
                del norm.copies
