"""The teacher's features are the same wherever they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import stadfast as sf
from stadfast.backbones import create_backbone, freeze
from stadfast.errors import DataError, UsageError
from stadfast.methods.features import FeatureStore
from stadfast.methods.graph import Preprocess
from stadfast.methods.hardware import Precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher() -> Any:
    return freeze(create_backbone("resnet18", ["layer1", "layer2"], seed=3))


def make(images: Any, teacher: Any, dtype: str = "fp32", **more: Any) -> FeatureStore:
    preprocess = Preprocess((48, 64), teacher.mean, teacher.std)
    return FeatureStore(
        images, preprocess, teacher, precision=Precision(dtype, "test"), device=CPU, batch_size=5,
        show_progress=False, **more,
    )  # fmt: skip


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stadfast.methods.features._SHARE_OF_DISK", 0.0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_memory_and_disk_and_recomputation_agree(
    images: Tensor, teacher: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = make(list(images), teacher, dtype)
    disk = make(list(images), teacher, dtype, budget_gb=0.0)
    monkeypatch.setattr("stadfast.methods.features._SHARE_OF_DISK", 0.0)
    recomputed = make(list(images), teacher, dtype, budget_gb=0.0)
    assert [store.kept for store in (memory, disk, recomputed)] == ["memory", "disk", "recomputed"]
    indices = torch.tensor([11, 0, 5])
    expected, features = memory.batch(indices)
    assert expected.dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "fp32" else {"rtol": 0.02, "atol": 0.02}
    for store in (disk, recomputed):
        x, levels = store.batch(indices)
        for ours, theirs in zip([x, *levels], [expected, *features], strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance)


def test_features_are_the_teachers(images: Tensor, teacher: Any) -> None:
    x, features = make(list(images), teacher).batch(torch.arange(12))
    expected = teacher(x)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", ["memory", "recomputed"])
def test_broken_files_are_left_out(
    images: Tensor, teacher: Any, tmp_path: Path, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    paths[2].write_bytes(b"")
    if keep == "recomputed":
        monkeypatch.setattr("stadfast.methods.features._SHARE_OF_DISK", 0.0)
        more = {"budget_gb": 0.0}
    else:
        more = {}
        with pytest.raises(DataError, match=r"2\.png"):
            make(paths, teacher)
    store = make(paths, teacher, skip_broken=True, **more)
    assert store.kept == keep
    assert len(store) == 6
    assert [path for path, _ in store.broken] == [paths[2]]
    x, _ = store.batch(torch.tensor([2]))
    expected = (
        sf.data.to_float(images[3])[None] - torch.tensor(teacher.mean).view(1, 3, 1, 1)
    ) / torch.tensor(teacher.std).view(1, 3, 1, 1)
    assert (x.mean() - expected.mean()).abs() < 0.05  # the fourth image: the third has left


def test_negative_budget_is_refused(images: Tensor, teacher: Any) -> None:
    with pytest.raises(UsageError, match="cache_gb"):
        make(list(images), teacher, budget_gb=-1.0)
