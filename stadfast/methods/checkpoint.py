"""A training state as one safetensors file: weights, the best epoch's weights, optimiser, history. Never pickle."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import BundleError
from .bundle import read_tensors, write_tensors

if TYPE_CHECKING:
    from .training import Trainee

_FORMAT = "checkpoint-1"


@dataclass
class TrainingState:
    """Where a run stands at the end of an epoch, beside the module and its optimiser.

    Attributes:
        history: one dictionary per finished epoch (the fields of EpochRecord).
        best_value: lowest validation value so far.
        best: the module's state at that epoch.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_value: float = float("inf")
    best: dict[str, Tensor] | None = None


def checkpoint_files(path: Path) -> list[Path]:
    """The files of a run whose checkpoint is ``path``: itself, and those of its phases."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}*"))


def write_checkpoint(path: Path, trainee: Trainee, state: TrainingState, identity: Mapping[str, Any]) -> None:
    """Write atomically; an interrupted write leaves the previous checkpoint."""
    tensors = {f"module.{k}": v for k, v in trainee.module.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in (state.best or {}).items()}
    scalars: dict[str, dict[str, Any]] = {}
    optimizer = trainee.optimizer.state_dict()
    for index, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                scalars.setdefault(str(index), {})[name] = value
    header = {
        "format": _FORMAT,
        "identity": dict(identity),
        "history": state.history,
        "best_value": state.best_value if state.best is not None else None,
        "optimizer": {"scalars": scalars, "param_groups": optimizer["param_groups"]},
    }
    write_tensors(path, tensors, header)


def read_checkpoint(path: Path, trainee: Trainee, identity: Mapping[str, Any]) -> TrainingState:
    """Restore module and optimiser and return the rest.

    Raises:
        BundleError: damaged, or from a run with other arguments or data; the message names the difference.
    """
    tensors, header = read_tensors(path)
    if header.get("format") != _FORMAT:
        raise BundleError(f"{path} is not a checkpoint of this version of stadfast")
    theirs, ours = header.get("identity", {}), json.loads(json.dumps(dict(identity)))
    theirs, ours = (_flat(side) for side in (theirs, ours))
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise BundleError(
                f"{path} belongs to another run: its {name} is {theirs.get(name)!r}, now it is {ours.get(name)!r}; "
                "delete it to start anew"
            )
    try:
        trainee.module.load_state_dict(_part(tensors, "module."))
        trainee.optimizer.load_state_dict(_optimizer_state(tensors, header["optimizer"]))
        _lay_out_as_parameters(trainee.optimizer)
        best = _part(tensors, "best.") or None
        best_value = header["best_value"]
        return TrainingState(
            list(header["history"]), float("inf") if best_value is None else best_value, best
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(
            f"{path} is damaged: {str(error).splitlines()[0]}; delete it to start anew"
        ) from error


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """With the arguments among the rest, so that a difference is one value's."""
    arguments = identity.get("arguments")
    return {k: v for k, v in identity.items() if k != "arguments"} | (
        arguments if isinstance(arguments, dict) else {}
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in header["scalars"].items()}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = [{k: _as_tuple(v) for k, v in group.items()} for group in header["param_groups"]]
    return {"state": state, "param_groups": groups}


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Files hold contiguous tensors; fused optimisers expect the (channels_last) strides of the parameters."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def _as_tuple(value: Any) -> Any:
    """JSON turns tuples (Adam's betas) into lists; parameter indices stay a list."""
    return tuple(value) if isinstance(value, list) and value and isinstance(value[0], float) else value
