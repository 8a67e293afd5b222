"""Folders by path and URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from stadfast.errors import DataError, StadfastError, UsageError
from stadfast.scale import store as module
from stadfast.scale.store import Store, list_files, needed, read_bytes


@pytest.fixture(params=["path", "file", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        pytest.importorskip("fsspec")
    return {"path": f"{tmp_path}/new", "file": f"file://{tmp_path}/new", "memory": f"memory://{tmp_path}"}[
        request.param
    ]


def test_what_was_written_is_there(location: str) -> None:
    store = Store(location)
    assert store.names() == set()
    store.write("a.txt", b"1")
    store.write("deep/er/b.txt", b"2")
    store.write("a.txt", b"3")
    assert store.read("a.txt") == b"3"
    assert read_bytes(f"{location}/deep/er/b.txt") == b"2"
    assert {name for name in store.names() if "." in name} == {"a.txt"}


def test_a_missing_file(location: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{location}/nothing")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StadfastError, match="cannot write"):
        Store(f"{tmp_path}/file").write("a", b"")


def test_unknown_protocols() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UsageError, match="nosuch"):
        list_files("nosuch://bucket")


def test_a_network_that_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Moody:
        left = 2

        def cat_file(self, path: str) -> bytes:
            self.left -= 1
            if self.left >= 0:
                raise TimeoutError("slow")
            return b"at last"

    moody = Moody()
    monkeypatch.setattr(module, "_filesystem", lambda location: (moody, location))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    assert read_bytes("s3://bucket/x") == b"at last"
    moody.left = 3
    with pytest.raises(OSError, match="TimeoutError: slow"):
        read_bytes("s3://bucket/x")


def test_a_folder_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def find(self, path: str) -> list[str]:
            raise PermissionError("no key")

    monkeypatch.setattr(module, "_filesystem", lambda location: (Closed(), location))
    with pytest.raises(DataError, match="cannot list s3://bucket: no key"):
        list_files("s3://bucket")


def test_what_is_not_installed() -> None:
    with pytest.raises(
        UsageError, match=r"--x needs nosuch, which is not installed: pip install 'stadfast\[ray\]'"
    ):
        needed("nosuch.module", "--x")
