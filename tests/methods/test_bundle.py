"""Damaged, hostile and newer bundles are refused in words."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stadfast as sf
from stadfast.errors import BundleError, StadfastError


@pytest.fixture(scope="module")
def bundle(fitted: sf.STPM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "good.safetensors"
    fitted.save(path)
    return path


def rewrite(bundle: Path, path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """A copy whose header and tensors ``change`` has altered; a returned string replaces the header's JSON."""
    from safetensors import safe_open

    with safe_open(bundle, framework="pt") as file:
        header = json.loads(file.metadata()["stadfast"])
    tensors = load_file(bundle)
    text = change(header, tensors)
    save_file(tensors, path, metadata={"stadfast": text if isinstance(text, str) else json.dumps(header)})
    return path


def set_key(*keys: str, to: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = to

    return change


def drop_tensor(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors["network.student.conv1.weight"]


def poison_tensor(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["network.student.conv1.weight"][0, 0, 0, 0] = float("nan")


def reshape_tensor(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["network.teacher.conv1.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_key("format", to=2), "upgrade stadfast"),
        (set_key("format", to=None), "not a detector"),
        (set_key("format", to="checkpoint-1"), "not a detector"),
        (set_key("method", to="patchcore"), "patchcore"),
        (set_key("method", to=["stpm"]), "damaged"),
        (set_key("arguments", to=3), "damaged"),
        (set_key("arguments", "backbone", to="resnet1000"), "resnet1000"),
        (set_key("arguments", "image_size", to=[1, -1]), "image_size"),
        (set_key("arguments", "surprise", to=1), "surprise"),
        (set_key("threshold", to="high"), "damaged"),
        (set_key("threshold", to=float("inf")), "threshold"),
        (set_key("calibration", to=None), "damaged"),
        (lambda header, tensors: header.pop("threshold"), "threshold"),
        (lambda header, tensors: header.pop("training"), "training"),
        (lambda header, tensors: "{", "JSON"),
        (lambda header, tensors: "[1]", "list"),
        (lambda header, tensors: "[" * 100_000, "JSON"),
        (drop_tensor, "student.conv1.weight"),
        (poison_tensor, "NaN"),
        (reshape_tensor, "teacher.conv1.weight"),
    ],
)
def test_damaged_headers_and_tensors(bundle: Path, tmp_path: Path, change: Any, named: str) -> None:
    path = rewrite(bundle, tmp_path / "bad.safetensors", change)
    with pytest.raises(BundleError, match=named) as error:
        sf.load(path)
    assert "bad.safetensors" in str(error.value)


def test_truncated_at_any_point(bundle: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    for length in (0, 4, 8, 100, 1000, len(content) // 2, len(content) - 1):
        path = tmp_path / f"cut{length}.safetensors"
        path.write_bytes(content[:length])
        with pytest.raises(BundleError, match=path.name):
            sf.load(path)


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bomb.safetensors").write_bytes(pickle.dumps(_Bomb()))
    torch.save(_Bomb(), "bomb.pt")
    for name in ("bomb.safetensors", "bomb.pt"):
        with pytest.raises(BundleError, match=name):
            sf.load(name)
    assert not Path("exploded").exists()


def test_missing_file_folder_and_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        sf.load(tmp_path / "none.safetensors")
    with pytest.raises(BundleError, match="is a folder"):
        sf.load(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BundleError, match="did not write it"):
        sf.load(tmp_path / "foreign.safetensors")


def test_a_full_disk_leaves_the_old_bundle(bundle: Path, fitted: sf.STPM, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "m.safetensors"
    path.write_bytes(bundle.read_bytes())

    def full(*args: Any, **kwargs: Any) -> None:
        with open("/dev/full", "wb") as file:  # noqa: PTH123
            file.write(b"x" * 10_000)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StadfastError, match=r"m\.safetensors: the disk is full"):
            fitted.save(path)
    assert path.read_bytes() == bundle.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_scores_that_are_not_finite_give_no_threshold(fitted: sf.STPM) -> None:
    broken = copy.deepcopy(fitted)
    for tensor in broken.graph_.network.student.parameters():
        tensor.data.fill_(float("nan"))
    with pytest.raises(StadfastError, match="not finite, as after a training that has diverged"):
        broken.calibrate(torch.rand(4, 3, 64, 64))
