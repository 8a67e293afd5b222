"""Files by path or URL (``s3://``, ``gs://``, ``file://``, whatever fsspec has), read and written whole."""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from .._files import atomic_write
from ..errors import DataError, StadfastError, UsageError

_ATTEMPTS = 3  # of a remote read, a second apart and then two: networks have moments


def needed(module: str, what: str) -> Any:
    """A module of the extra ``ray``.

    Raises:
        UsageError: it is not installed; says what to do.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"{what} needs {package}, which is not installed: pip install 'stadfast[ray]'"
        ) from error


def is_remote(location: str) -> bool:
    return "://" in location and not location.startswith("file://")


def local(location: str | os.PathLike[str]) -> str:
    """Paths as they are, absolute, so that they mean the same in another process; ``file://`` taken off; other URLs."""
    location = os.fspath(location)
    return location if is_remote(location) else os.path.abspath(location.removeprefix("file://"))  # noqa: PTH100


def read_bytes(location: str) -> bytes:
    """A file's contents.

    Raises:
        OSError: it cannot be read; from a network, not at the third attempt either.
    """
    if not is_remote(location):
        return Path(local(location)).read_bytes()
    filesystem, path = _filesystem(location)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return filesystem.cat_file(path)
        except FileNotFoundError:
            raise
        except Exception as error:  # each kind of store has errors of its own
            if attempt == _ATTEMPTS:
                raise OSError(f"{type(error).__name__}: {error}") from error
            time.sleep(attempt)
    raise AssertionError


def list_files(location: str) -> list[str]:
    """All files below a remote folder, sorted, as URLs; hidden ones are left out.

    Raises:
        DataError: the folder cannot be listed.
    """
    filesystem, root = _filesystem(location)
    try:
        found = filesystem.find(root)
    except Exception as error:
        raise DataError(f"cannot list {location}: {error}") from error
    inside = [path for path in found if not any(p.startswith(".") for p in path[len(root) :].split("/"))]
    return [filesystem.unstrip_protocol(path) for path in sorted(inside)]


class Store:
    """A folder that results go to, by path or URL. Files appear whole or not at all.

    Object stores write so by themselves; on other remote file systems a file may be seen while it grows.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = local(location)

    def write(self, name: str, contents: bytes) -> None:
        """Write a file, folders on the way included.

        Raises:
            StadfastError: it cannot be written.
        """
        if not is_remote(self.location):
            with atomic_write(Path(self.location) / name) as temporary:
                temporary.write_bytes(contents)
            return
        filesystem, root = _filesystem(self.location)
        path = f"{root}/{name}"
        try:
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(path, contents)
        except Exception as error:
            raise StadfastError(f"cannot write {self.location}/{name}: {error}") from error

    def read(self, name: str) -> bytes:
        return read_bytes(f"{self.location}/{name}")

    def names(self) -> set[str]:
        """The files that lie in it, without those in its folders."""
        if not is_remote(self.location):
            folder = Path(self.location)
            return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        filesystem, root = _filesystem(self.location)
        filesystem.invalidate_cache()
        try:
            return {path.rpartition("/")[2] for path in filesystem.ls(root, detail=False)}
        except FileNotFoundError:
            return set()


def _filesystem(location: str) -> tuple[Any, str]:
    fsspec = needed("fsspec", "a URL")
    try:
        return fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:  # says which package the protocol needs
        raise UsageError(f"{location}: {error}") from error
