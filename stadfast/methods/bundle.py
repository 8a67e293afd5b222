"""One safetensors file with a JSON header: detectors and checkpoints. Never pickle, so that a file from a stranger
can do no more than fail to load."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from torch import Tensor

from .._files import atomic_write
from ..errors import BundleError

_KEY = "stadfast"  # the only metadata key: safetensors does not keep the order of several


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a file is called, or begins as, a safetensors file: a length of eight bytes, then JSON."""
    path = Path(path)
    if path.suffix.lower() == ".safetensors" or not path.is_file():
        return path.suffix.lower() == ".safetensors"
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write atomically. Equal contents give equal bytes."""
    from safetensors.torch import save

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        # In memory first: a full disk is then an OSError like everywhere.
        temporary.write_bytes(save(copies, metadata={_KEY: json.dumps(header, sort_keys=True)}))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file that :func:`write_tensors` wrote.

    Raises:
        BundleError: no such file, not a safetensors file, truncated, or without stadfast's header; an archive.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.suffix.lower() in (".onnx", ".xml") or is_zipfile(path):
        raise BundleError(
            f"{path} is an exported archive, which Scorer and bench run; wanted the .safetensors file of the detector "
            "that it was exported from"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata())
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is damaged or not a stadfast file: {error}") from error


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if not metadata or _KEY not in metadata:
        raise BundleError(f"{path} is a safetensors file, but stadfast did not write it (no {_KEY!r} header)")
    try:
        header = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise BundleError(f"{path}: its header is a {type(header).__name__}, wanted an object")
    return header
