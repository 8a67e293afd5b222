"""Archives: what an exported file says of itself, and what is refused before anything in it runs."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import BundleError, StadfastError
from ..methods.arguments import is_number
from .lowering import quiet

ARCHIVE_FORMAT = 1
MEMBER = "stadfast.json"
SUFFIXES = {"torchscript": ".pt", "export": ".pt2", "onnx": ".onnx", "openvino": ".xml"}

_MAX_UNPACKED = 4 << 30
_MAX_SIDE = 1 << 16
# TorchScript can read and write files, and __setstate__ runs while it is being loaded.
_FORBIDDEN_CODE = re.compile(
    rb"__setstate__|torch\.(save|load|from_file)\b|\bops\.(?!(?:stadfast|prim)\b)\w+"
)
# sympy evaluates expressions: calls of its classes (capitalised) only, no attributes, no indexing.
_FORBIDDEN_EXPRESSION = re.compile(r"__|lambda|\b[a-z_]\w*\s*\(|\.\s*[A-Za-z_]|[\[\]{};:@\\]")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`stadfast.export` wrote about the archive: method, thresholds, sizes, precision, versions.

    Raises:
        BundleError: no such file, damaged, or not an archive of stadfast. StadfastError: a package is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        text = _READERS.get(path.suffix.lower(), _from_zip)(path)
        metadata = json.loads(text)
    except BundleError:
        raise
    except ImportError as error:
        extra = "onnx" if path.suffix.lower() == ".onnx" else "openvino"
        raise StadfastError(f"{path} needs {error.name}: pip install 'stadfast[{extra}]'") from error
    except Exception as error:  # damaged files fail in many ways: zip, XML, protobuf, JSON
        raise BundleError(f"{path} is damaged or no archive: {_first_line(error)}") from error
    return _checked(path, metadata)


def format_of(path: str | os.PathLike[str]) -> str:
    """``"torchscript"``, ``"export"``, ``"onnx"`` or ``"openvino"``, from what is in the file."""
    path = Path(path)
    if path.suffix.lower() in (".onnx", ".xml"):
        return "onnx" if path.suffix.lower() == ".onnx" else "openvino"
    with zipfile.ZipFile(path) as archive:
        return "export" if any("/models/" in name for name in archive.namelist()) else "torchscript"


def load_torchscript(path: str | os.PathLike[str]) -> torch.jit.ScriptModule:
    """The module in a TorchScript archive, on the CPU, once its code has been looked through.

    Raises:
        BundleError: damaged, or its code could do more than compute.
    """
    path = Path(path)
    with _readable(path), zipfile.ZipFile(path) as archive:
        _check_members(path, archive)
        for name in archive.namelist():
            found = _FORBIDDEN_CODE.search(archive.read(name)) if name.endswith(".py") else None
            if found:
                raise BundleError(f"{path} is refused: its code has {found.group().decode()!r} in {name}")
        with quiet():
            return torch.jit.load(os.fspath(path), map_location="cpu")


def load_exported(path: str | os.PathLike[str]) -> torch.nn.Module:
    """The module in a .pt2 archive, once its members and size expressions have been looked through.

    Raises:
        BundleError: damaged, or it holds more than a graph and tensors.
    """
    path = Path(path)
    with _readable(path), zipfile.ZipFile(path) as archive:
        _check_members(path, archive)
        for name in archive.namelist():
            if "custom_obj" in Path(name).name:
                raise BundleError(f"{path} is refused: it holds a pickled object, {name}")
            if name.endswith("models/model.json"):
                for text in _expressions(json.loads(archive.read(name))):
                    if _FORBIDDEN_EXPRESSION.search(text):
                        raise BundleError(f"{path} is refused: it holds the expression {text[:80]!r}")
        return torch.export.load(path).module()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{path} is damaged or no archive: {_first_line(error)}") from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_UNPACKED:
        raise BundleError(f"{path} would unpack to {size / 2**30:.1f} GiB; wanted at most 4 GiB")
    broken = archive.testzip()
    if broken is not None:
        raise BundleError(f"{path} is damaged: {broken} does not match its checksum")


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "expr_str" and isinstance(item, str):
                yield item
            yield from _expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from _expressions(item)


def _from_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"/extra/{MEMBER}"):
                return archive.read(name).decode()
    raise BundleError(f"{path} is an archive, but stadfast did not export it (no {MEMBER} in it)")


def _from_onnx(path: Path) -> str:
    import onnx

    model = onnx.load(os.fspath(path), load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == MEMBER:
            return str(entry.value)
    raise BundleError(f"{path} is an ONNX model, but stadfast did not export it (no {MEMBER} in it)")


def _from_openvino(path: Path) -> str:
    import openvino

    model = openvino.Core().read_model(os.fspath(path))
    if model.has_rt_info([MEMBER]):
        return str(model.get_rt_info([MEMBER]).value)
    raise BundleError(f"{path} is an OpenVINO model, but stadfast did not export it (no {MEMBER} in it)")


_READERS = {".onnx": _from_onnx, ".xml": _from_openvino}


def _checked(path: Path, metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("format"), int):
        raise BundleError(f"{path} is damaged: its {MEMBER} is not what stadfast writes")
    if metadata["format"] > ARCHIVE_FORMAT:
        raise BundleError(
            f"{path} has archive format {metadata['format']}; this stadfast reads up to {ARCHIVE_FORMAT}: "
            "upgrade stadfast"
        )
    missing = (_FITS.keys() - _OPTIONAL) - metadata.keys()
    if missing:
        raise BundleError(f"{path} is damaged: its {MEMBER} has no {', '.join(sorted(missing))}")
    for name, fits in _FITS.items():
        if name in metadata and not fits(metadata[name]):
            raise BundleError(f"{path} is damaged: its {MEMBER} has {name} {str(metadata[name])[:80]!r}")
    return metadata


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(n) is int and 0 < n <= _MAX_SIDE for n in value)
    )


_FITS: dict[str, Callable[[Any], bool]] = {
    "method": lambda value: isinstance(value, str),
    "threshold": is_number,
    "pixel_threshold": is_number,
    "network_size": _is_size,
    "image_size": lambda value: value is None or _is_size(value),
    "precision": lambda value: value in ("fp32", "bf16", "fp16"),
    "portable": lambda value: isinstance(value, bool),
    "aot": lambda value: isinstance(value, bool),
    "native_scale": lambda value: isinstance(value, bool),
}
_OPTIONAL = {"aot", "native_scale"}  # earlier versions did not write them


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
