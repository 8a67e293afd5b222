"""The one training loop: seeded, resumable, with the best epoch kept and the time left shown."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._progress import Progress, progress
from ..errors import StadfastError
from . import distributed
from .checkpoint import TrainingState, read_checkpoint, write_checkpoint

logger = logging.getLogger("stadfast")

_CHECKPOINT_OVERHEAD = 0.05  # share of the time that may go into writing checkpoints


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's outcome, as callbacks and the history see it.

    Attributes:
        epoch: 1-based.
        loss: mean training loss.
        validation: the value that selects the best epoch (lower is better), None without held-out images.
        seconds: wall time of the epoch.
        phase: which of a method's trainings, such as ``"teacher"``; empty if there is one only.
    """

    epoch: int
    loss: float
    validation: float | None
    seconds: float = field(compare=False)
    phase: str = ""


Callback = Callable[[EpochRecord], None]


class Trainee(Protocol):
    """What a method gives to the loop.

    ``module`` holds all that is trained (its state is what checkpoints and the best epoch keep); ``loss`` maps
    indices of training images to a scalar; ``validate`` returns a value to minimise, or None.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer

    def __len__(self) -> int: ...
    def loss(self, indices: Tensor) -> Tensor: ...
    def validate(self) -> float | None: ...


@dataclass(frozen=True)
class TrainingOptions:
    """How long to train and how to come back.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the last batch of an epoch may be smaller.
        seed: of the order of the images, epoch by epoch.
        patience: stop after so many epochs without a better validation value; None: never.
        checkpoint: file that holds the state at the end of an epoch (as often as 5 % of the time allows); None: none.
        resume: continue from the checkpoint if it is there.
        identity: what a checkpoint must agree with to be continued (arguments, data).
        callbacks: called with each EpochRecord.
        show_progress: the bar with the time left.
        name: of the phase, for methods that train several networks one after the other.
    """

    epochs: int
    batch_size: int = 32
    seed: int = 0
    patience: int | None = None
    checkpoint: Path | None = None
    resume: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    show_progress: bool = True
    name: str = ""

    def phase(self, name: str, **changes: Any) -> TrainingOptions:
        """The options of one of several trainings, with a checkpoint file of its own.

        A resumed run takes finished phases from their files, so that :func:`train` returns at once for them.

        Args:
            name: of the phase; lower-case words.
            changes: other fields that differ, such as ``epochs``.
        """
        file = self.checkpoint
        own = file and file.with_name(f"{file.name}.{name.replace(' ', '-')}")
        return replace(self, name=name, checkpoint=own, **changes)


def train(trainee: Trainee, options: TrainingOptions) -> list[EpochRecord]:
    """Train, and leave the best epoch's weights (the last one's without validation) in ``trainee.module``.

    The order of the images depends on the seed and the epoch alone, so that a resumed run is the uninterrupted one.

    Returns:
        One record for each epoch, resumed ones included.

    Raises:
        StadfastError: the loss is not finite.
        BundleError: the checkpoint belongs to another run.
    """
    state = _starting_state(trainee, options)
    parallel = distributed.DataParallel(trainee.module)
    steps = math.ceil(len(trainee) / options.batch_size)
    written, cost = time.monotonic(), 0.0
    with progress(
        options.name or "training",
        options.epochs * steps,
        done=len(state.history) * steps,
        show=options.show_progress,
    ) as job:
        while len(state.history) < options.epochs and not _exhausted(state, options.patience):
            record = _run_epoch(trainee, parallel, len(state.history) + 1, options, job)
            state.history.append(asdict(record))
            if record.validation is not None and (state.best is None or record.validation < state.best_value):
                state.best_value, state.best = record.validation, _copy(trainee.module)
            due = time.monotonic() - written >= cost / _CHECKPOINT_OVERHEAD
            if options.checkpoint and distributed.is_main() and due:
                begun = time.monotonic()
                write_checkpoint(options.checkpoint, trainee, state, options.identity)
                written = time.monotonic()
                cost = written - begun
            for callback in options.callbacks:
                callback(record)
    if options.checkpoint and distributed.is_main():
        write_checkpoint(options.checkpoint, trainee, state, options.identity)
    if state.best is not None:
        trainee.module.load_state_dict(state.best)
    return [EpochRecord(**record) for record in state.history]


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord:
    """The record whose weights :func:`train` leaves behind."""
    validated = [r for r in history if r.validation is not None]
    return min(validated, key=lambda r: (r.validation, r.epoch)) if validated else history[-1]


def summary(history: Sequence[EpochRecord]) -> dict[str, Any]:
    """What a bundle says of its training; phase by phase where there were several."""
    phases = {record.phase: [r for r in history if r.phase == record.phase] for record in history}
    if len(phases) > 1:
        return {"phases": {name: summary(records) for name, records in phases.items()}}
    best = best_epoch(history)
    return {
        "epochs": len(history), "selected_epoch": best.epoch, "loss": best.loss, "validation": best.validation,
    }  # fmt: skip


def _starting_state(trainee: Trainee, options: TrainingOptions) -> TrainingState:
    if not (options.resume and options.checkpoint):
        return TrainingState()
    found = distributed.on_main(lambda: _read(trainee, options))
    if found is None:
        return TrainingState()
    state, module, optimizer = found
    if not distributed.is_main():
        trainee.module.load_state_dict(module)
        trainee.optimizer.load_state_dict(optimizer)
    return state


def _read(
    trainee: Trainee, options: TrainingOptions
) -> tuple[TrainingState, dict[str, Any], dict[str, Any]] | None:
    """What the checkpoint holds, if there is one; the trainee continues from it."""
    assert options.checkpoint is not None
    if not options.checkpoint.exists():
        logger.info("nothing to resume at %s: starting from the beginning", os.fspath(options.checkpoint))
        return None
    state = read_checkpoint(options.checkpoint, trainee, options.identity)
    logger.info("resuming after epoch %d of %d", len(state.history), options.epochs)
    return state, _on_cpu(trainee.module.state_dict()), _on_cpu(trainee.optimizer.state_dict())


def _on_cpu(value: Any) -> Any:
    """Nested dictionaries and lists of tensors as other processes can take them, which have other GPUs."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _exhausted(state: TrainingState, patience: int | None) -> bool:
    values = [record["validation"] for record in state.history]
    if patience is None or not values or values[-1] is None:
        return False
    return len(values) - 1 - values.index(min(values)) >= patience


def _run_epoch(
    trainee: Trainee, parallel: distributed.DataParallel, epoch: int, options: TrainingOptions, job: Progress
) -> EpochRecord:
    start = time.monotonic()
    trainee.module.train()
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + epoch)
    order = torch.randperm(len(trainee), generator=generator)
    total = 0.0
    with parallel.steps(trainee):
        for step, indices in enumerate(order.split(options.batch_size), start=1):
            value = _step(trainee, indices)
            if not math.isfinite(value):
                raise StadfastError(
                    f"training diverged: the loss of epoch {epoch}, step {step} is {value}; "
                    "lower the learning rate, or use precision fp32"
                )
            total += value * len(indices)
            job.advance(note=f"epoch {epoch}/{options.epochs}, loss {value:.4g}")
    trainee.module.eval()
    with torch.no_grad():
        validation = distributed.on_main(trainee.validate)
    return EpochRecord(epoch, total / len(trainee), validation, time.monotonic() - start, options.name)


def _step(trainee: Trainee, indices: Tensor) -> float:
    """One step of the optimiser, and the batch's mean loss before it; no step where that is not finite."""
    mine, weight = distributed.share(indices)
    loss = trainee.loss(mine)
    value = distributed.total(weight * loss.item(), loss)
    if math.isfinite(value):
        trainee.optimizer.zero_grad(set_to_none=True)
        (
            loss * (weight * distributed.size())
        ).backward()  # DistributedDataParallel takes the mean of the processes
        trainee.optimizer.step()
    return value


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
