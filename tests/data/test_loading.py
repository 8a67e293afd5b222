from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stadfast.data import ImageLoader, UnreadableImageError
from stadfast.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Image i has the value i; 3 and 7 are broken."""
    for i in range(10):
        path = tmp_path / f"{i}.png"
        if i in (3, 7):
            path.write_text("broken")
        else:
            Image.fromarray(np.full((4, 5), i, np.uint8)).save(path)
    return tmp_path


def threads() -> int:
    return sum(thread.name.startswith("stadfast-read") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 1, 3])
class TestImageLoader:
    def test_order_and_broken_files(self, folder: Path, workers: int) -> None:
        def slow_if_even(image: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01 * (1 - int(image[0, 0, 0]) % 2))
            return image

        loader = ImageLoader(folder, slow_if_even, skip_broken=True, workers=workers)
        for _ in range(2):  # each iteration starts anew
            found = [(path.name, int(image[0, 0, 0])) for path, image in loader]
            assert found == [(f"{i}.png", i) for i in (0, 1, 2, 4, 5, 6, 8, 9)]
            assert [path.name for path, _ in loader.broken] == ["3.png", "7.png"]
            assert all("not an image" in reason for _, reason in loader.broken)
        assert len(loader) == 10
        assert threads() == 0

    def test_first_broken_file_raises(self, folder: Path, workers: int) -> None:
        seen = []
        with pytest.raises(UnreadableImageError, match=r"3\.png"):
            seen += [image for _, image in ImageLoader(folder, workers=workers)]
        assert threads() == 0

    def test_nothing_readable(self, folder: Path, workers: int) -> None:
        paths = [folder / "3.png", folder / "7.png"]
        with pytest.raises(
            DataError, match=r"none of 2 images can be read; the first is .*3\.png: not an image"
        ):
            list(ImageLoader(paths, skip_broken=True, workers=workers))

    def test_errors_of_the_transform_pass_through(self, folder: Path, workers: int) -> None:
        def fail(image: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            list(ImageLoader(folder, fail, skip_broken=True, workers=workers))
        assert threads() == 0

    def test_leaving_early_ends_the_threads(self, folder: Path, workers: int) -> None:
        for _path, _image in ImageLoader(folder, workers=workers):
            break
        assert threads() == 0
        iterator = iter(ImageLoader(folder, workers=workers))
        next(iterator)
        iterator.close()  # type: ignore[attr-defined]
        assert threads() == 0


def test_prefetch_is_bounded(folder: Path) -> None:
    started = []

    def note(image: torch.Tensor) -> torch.Tensor:
        started.append(1)
        return image

    paths = [folder / "0.png"] * 100
    for i, _ in enumerate(ImageLoader(paths, note, workers=2, prefetch=5)):
        time.sleep(0.005)
        assert len(started) <= i + 1 + 5 + 1
        if i == 20:
            break
    assert len(started) < 40


@pytest.mark.parametrize(
    ("arguments", "words"), [({"workers": -1}, "workers is -1"), ({"prefetch": 0}, "prefetch is 0")]
)
def test_impossible_arguments(folder: Path, arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ImageLoader(folder, **arguments)


def test_empty_and_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        ImageLoader([])
    with pytest.raises(DataError, match="does not exist"):
        ImageLoader([tmp_path / "nowhere.png"])
