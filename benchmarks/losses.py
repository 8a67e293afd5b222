"""The loss of every step of a training: ``rounding.py`` and the tests of several processes compare them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from stadfast.methods import training


class EnoughError(Exception):
    """Ends a training after as many steps as were asked for."""


def losses_of(
    fit: Callable[[], Any],
    change: Callable[[nn.Module], None] = lambda module: None,
    limit: int | None = None,
) -> list[float]:
    """What ``fit`` trains: its losses, at most the first ``limit``; ``change`` gets each module before its training."""
    found: list[float] = []
    step, start = training._step, training._starting_state

    def recorded(trainee: training.Trainee, indices: Tensor) -> float:
        found.append(step(trainee, indices))
        if len(found) == limit:
            raise EnoughError
        return found[-1]

    def changed(trainee: training.Trainee, options: training.TrainingOptions) -> training.TrainingState:
        change(trainee.module)
        return start(trainee, options)

    training._step, training._starting_state = recorded, changed
    try:
        with suppress(EnoughError):
            fit()
    finally:
        training._step, training._starting_state = step, start
    return found


def smooth(module: nn.Module) -> None:
    """Softplus for ReLU, averages for maxima: nothing is left that a rounding could throw."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Softplus(beta=5))
        elif isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        else:
            smooth(child)
