"""Maps and masks from files, in the layouts that other libraries write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stadfast import metrics
from stadfast.errors import DataError
from stadfast.metrics.folders import evaluate_folders, read_map

TYPES = ["good"] * 2 + ["scratch"] * 2 + ["stain"] * 2


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 30, 40), bool)
    masks[2:4, 5:9, 3:30] = masks[4:, 12:20, 20:31] = True
    return (rng.random((6, 30, 40)) + 0.4 * masks).astype(np.float32), masks


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def write_set(root: Path, maps: np.ndarray, masks: np.ndarray, extension: str) -> None:
    for i, kind in enumerate(TYPES):
        write(root / "test" / kind / f"{i:03}{extension}", maps[i])
        if kind != "good":
            write(root / "ground_truth" / kind / f"{i:03}_mask.png", masks[i].astype(np.uint8) * 255)


@pytest.mark.parametrize("extension", [".tiff", ".npy"])
@pytest.mark.parametrize("inner", [True, False])
def test_mvtecs_layout(tmp_path: Path, scored, extension: str, inner: bool) -> None:
    maps, masks = scored
    write_set(tmp_path, maps, masks, extension)
    folders = (tmp_path / "test", tmp_path / "ground_truth") if inner else (tmp_path, tmp_path)
    assert evaluate_folders(*folders, show_progress=True) == metrics.evaluate(maps, masks, types=TYPES)


@pytest.mark.parametrize(("scale", "dtype"), [(180, np.uint8), (40000, np.uint16)])
def test_png_maps(tmp_path: Path, scored, scale: int, dtype: type) -> None:
    maps, masks = scored
    steps = (maps * scale).astype(dtype)
    write_set(tmp_path, steps, masks, ".png")
    assert evaluate_folders(tmp_path, tmp_path, limits=(0.1,)) == metrics.evaluate(
        steps, masks, types=TYPES, limits=(0.1,)
    )


def test_flat_folders_and_small_labels(tmp_path: Path, scored) -> None:
    maps, masks = scored
    for i in range(6):
        write(tmp_path / "maps" / f"{i}.npy", maps[i][None])
        if i > 0:
            write(tmp_path / "masks" / f"{i}.png", masks[i].astype(np.uint8))
    result = evaluate_folders(tmp_path / "maps", tmp_path / "masks", exact=False)
    assert result == metrics.evaluate(maps, masks, exact=False)


def test_defective_images_without_a_mask_count_as_images(tmp_path: Path, scored) -> None:
    maps, masks = scored
    write_set(tmp_path, maps, masks, ".tiff")
    (tmp_path / "ground_truth" / "stain" / "005_mask.png").unlink()
    result = evaluate_folders(tmp_path, tmp_path)
    assert result["n"]["anomalous"] == 4
    assert result["pixel"]["auroc"] == pytest.approx(metrics.auroc(maps[:5], masks[:5]), abs=1e-14)
    assert "leave out 1 images" in result["notes"][0]


def test_sizes_differ(tmp_path: Path, scored) -> None:
    maps, masks = scored
    write_set(tmp_path, maps[:, ::2, ::2].copy(), masks, ".tiff")
    with pytest.raises(DataError, match=r"002_mask.png is \(30, 40\) .* is \(15, 20\); see resize"):
        evaluate_folders(tmp_path, tmp_path)
    assert evaluate_folders(tmp_path, tmp_path, resize=(30, 40))["protocol"]["resize"] == [30, 40]


def test_maps_without_masks_are_resized_as_the_others(tmp_path: Path, scored) -> None:
    maps, masks = scored
    write_set(tmp_path, maps[:, ::2, ::2].copy(), masks, ".tiff")
    result = evaluate_folders(tmp_path, tmp_path, resize="maps")
    assert result == evaluate_folders(tmp_path, tmp_path, resize=(30, 40))
    assert result["n"]["normal"] == 2
    write(tmp_path / "ground_truth" / "stain" / "005_mask.png", np.zeros((31, 40), np.uint8))
    with pytest.raises(DataError, match=r"000.tiff has no mask, and the masks .* differ: .*005_mask"):
        evaluate_folders(tmp_path, tmp_path, resize="maps")


@pytest.mark.parametrize("resize", [None, (15, 20), "maps"])
def test_mask_threshold_is_of_the_files_own_numbers(tmp_path: Path, scored, resize) -> None:
    maps, masks = scored
    grey = masks.astype(np.uint8) * 100
    grey[:, 0, 0] = 20
    grey[2, 25, 2] = 250  # above half of the range, where the defect is not
    write_set(tmp_path, maps, masks, ".tiff")
    for i in range(2, 6):
        write(tmp_path / "ground_truth" / TYPES[i] / f"{i:03}_mask.png", grey[i])
    result = evaluate_folders(tmp_path, tmp_path, mask_threshold=50, resize=resize)
    resize = (30, 40) if resize == "maps" else resize  # as the protocol records it
    expected = metrics.evaluate(maps, grey, types=TYPES, mask_threshold=50, resize=resize)
    assert result == expected
    assert result["pixel"]["auroc"] > 0.7
    high = evaluate_folders(tmp_path, tmp_path, mask_threshold=127, resize=(15, 20))
    assert high["n"]["anomalous"] == 1  # though resized, its pixel is below the threshold


def test_mask_threshold_leaves_bool_masks_alone(tmp_path: Path, scored) -> None:
    maps, masks = scored
    for i in range(6):
        write(tmp_path / "maps" / f"{i}.npy", maps[i])
        write(tmp_path / "masks" / f"{i}.npy", masks[i])
    result = evaluate_folders(tmp_path / "maps", tmp_path / "masks", resize=(15, 20), mask_threshold=127)
    assert result == metrics.evaluate(maps, masks, resize=(15, 20), mask_threshold=127)
    assert result["n"]["anomalous"] == 4


def test_a_map_that_is_not_finite_is_named(tmp_path: Path, scored) -> None:
    maps, masks = scored
    maps[3, 4, 5] = np.nan
    write_set(tmp_path, maps, masks, ".tiff")
    with pytest.raises(DataError, match=r"scratch/003.tiff: "):
        evaluate_folders(tmp_path, tmp_path)


def test_problems_are_named_by_file(tmp_path: Path, scored) -> None:
    maps, masks = scored
    with pytest.raises(DataError, match="nowhere: no such folder"):
        evaluate_folders(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no files of .tiff"):
        evaluate_folders(tmp_path / "empty", tmp_path)
    write_set(tmp_path, maps, masks, ".tiff")
    (tmp_path / "test" / "stain" / "004.tiff").unlink()
    with pytest.raises(DataError, match=r"004_mask.png: no map in .* belongs to this mask, nor to 0 more"):
        evaluate_folders(tmp_path, tmp_path)
    (tmp_path / "broken.tiff").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken.tiff: cannot be read as an anomaly map"):
        read_map(tmp_path / "broken.tiff")
    write(tmp_path / "colour.png", (99 * np.dstack([maps[0]] * 3)).astype(np.uint8))
    assert read_map(tmp_path / "colour.png").shape == (30, 40)  # grey, saved as colour
    write(tmp_path / "colour.png", (99 * np.dstack([maps[0], maps[1], maps[2]])).astype(np.uint8))
    with pytest.raises(DataError, match=r"colour.png: expected one plane .* heat map holds no scores"):
        read_map(tmp_path / "colour.png")
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"evil.npy: cannot be read"):
        read_map(tmp_path / "evil.npy")
