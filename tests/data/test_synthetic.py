from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stadfast.data import Defect, Material, MVTecLayout, read_image, read_mask, write_material
from stadfast.data.synthetic import DEFECTS
from stadfast.errors import DataError, UsageError

MATERIALS = sorted(DEFECTS)
KINDS = [(material, kind) for material in MATERIALS for kind in DEFECTS[material]]


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    for _ in range(radius):
        padded = np.pad(mask, 1)
        mask = (
            padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        )
    return mask


@pytest.mark.parametrize("material", MATERIALS)
class TestMaterial:
    def test_shapes_and_types(self, material: str) -> None:
        image, mask = Material(material, width=100).rows(7, 40)
        assert (image.shape, image.dtype) == ((40, 100, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((40, 100), bool)
        assert not mask.any()
        assert 60 < image.mean() < 190
        assert image.std() > 5

    @pytest.mark.parametrize("start", [0, 250, 40_000_003])
    def test_pieces_fit_without_a_seam(self, material: str, start: int) -> None:
        web = Material(material, width=200, seed=3, defect_rate=15)
        image, mask = web.rows(start, 300)
        assert mask.any()
        random = np.random.default_rng(0)
        row, pieces = start, []
        while row < start + 300:
            count = min(int(random.integers(1, 60)), start + 300 - row)
            pieces.append(Material(material, 200, 3, defect_rate=15).rows(row, count))
            row += count
        assert np.array_equal(image, np.concatenate([piece[0] for piece in pieces]))
        assert np.array_equal(mask, np.concatenate([piece[1] for piece in pieces]))

    def test_the_web_does_not_repeat(self, material: str) -> None:
        web = Material(material)
        parts = [web.rows(start, 64)[0].astype(int) for start in (0, 64, 4096, 1 << 20, 1 << 30)]
        for i, one in enumerate(parts):
            for other in parts[:i]:
                assert np.abs(one - other).mean() > 3

    def test_seeds_differ(self, material: str) -> None:
        one, two = (Material(material, seed=seed).rows(0, 64)[0].astype(int) for seed in (0, 1))
        assert np.abs(one - two).mean() > 3

    def test_it_is_darker_at_the_sides(self, material: str) -> None:
        columns = Material(material, width=256).rows(0, 1024)[0].mean((0, 2))
        assert columns[:24].mean() < 0.95 * columns[116:140].mean()
        assert columns[-24:].mean() < 0.95 * columns[116:140].mean()

    def test_rate_of_random_defects(self, material: str) -> None:
        web = Material(material, defect_rate=2.0)
        found = [d for d in web.defects(0, 100_000) if d.row < 100_000]
        assert len(found) == pytest.approx(200, rel=0.15)
        assert {d.kind for d in found} == set(DEFECTS[material])
        assert found == sorted(found, key=lambda d: d.row)
        assert not Material(material).defects(0, 100_000)


# Pinned: the generator promises the same pixels on every machine and with every version of NumPy.
@pytest.mark.parametrize(("material", "checksum"), [("brushed", 1652855935), ("woven", 2622249493)])
def test_pixels_are_pinned(material: str, checksum: int) -> None:
    image, mask = Material(material, width=160, seed=5, defect_rate=12).rows(1000, 500)
    assert zlib.crc32(mask.tobytes(), zlib.crc32(image.tobytes())) == checksum


@pytest.mark.parametrize(("material", "kind"), KINDS)
@pytest.mark.parametrize(("contrast", "size"), [(0.3, 20), (1.0, 40)])
def test_the_mask_shows_where_the_defect_is(material: str, kind: str, contrast: float, size: int) -> None:
    if kind == "pit":
        size //= 5
    for seed in range(5):
        defect = Defect(kind, row=128, column=120, size=size, contrast=contrast, seed=seed)
        clean, nothing = Material(material, seed=1).rows(0, 256)
        image, mask = Material(material, seed=1, defects=[defect]).rows(0, 256)
        assert not nothing.any()
        change = np.abs(image.astype(int) - clean).max(2)
        assert 12 <= mask.sum() < 0.2 * mask.size
        assert change[mask].mean() > 6
        assert change[mask].mean() > 8 * change[~dilate(mask, 4)].mean()
        assert change[~dilate(mask, max(8, size // 2))].max() <= 8  # levels: nothing to see


@pytest.mark.parametrize(("material", "kind"), KINDS)
def test_a_defect_is_one_region(material: str, kind: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    for seed in range(12):
        defect = Defect(kind, row=128, column=128, size=6 if kind == "pit" else 30, seed=seed)
        mask = Material(material, seed=2, defects=[defect]).rows(0, 256)[1]
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1


@pytest.mark.parametrize(("row", "column"), [(0, 0), (-10, 128), (128, 260), (255, 255)])
@pytest.mark.parametrize(("material", "kind"), KINDS)
def test_defects_may_lie_across_the_border(material: str, kind: str, row: int, column: int) -> None:
    image, mask = Material(material, defects=[Defect(kind, row, column, 30)]).rows(0, 256)
    assert image.shape == (256, 256, 3)
    assert mask.shape == (256, 256)


class TestWriteMaterial:
    @pytest.mark.parametrize("material", MATERIALS)
    def test_layout(self, tmp_path: Path, material: str) -> None:
        root = write_material(
            tmp_path / "x", material, (64, 96), train=3, test_good=2, test_per_defect=2, seed=1
        )
        data = MVTecLayout(root)
        assert (len(data.train), len(data.test)) == (3, 2 + 2 * len(DEFECTS[material]))
        assert data.defects == sorted(DEFECTS[material])
        for sample in data.train + data.test:
            assert read_image(sample.image).shape == (3, 64, 96)
            if sample.label:
                assert sample.mask is not None
                mask = read_mask(sample.mask)
                assert mask.shape == (64, 96)
                assert mask.sum() >= 12
                assert set(np.unique(np.array(Image.open(sample.mask)))) == {0, 255}
        assert {path.name for path in (root / "train" / "good").iterdir()} == {
            "000.png",
            "001.png",
            "002.png",
        }

    def test_more_images_leave_the_first_ones_as_they_are(self, tmp_path: Path) -> None:
        few = write_material(tmp_path / "a", size=(48, 48), train=2, test_good=1, test_per_defect=1)
        many = write_material(tmp_path / "b", size=(48, 48), train=4, test_good=3, test_per_defect=2)
        for path in few.rglob("*.png"):
            same = Image.open(many / path.relative_to(few))
            assert np.array_equal(np.array(Image.open(path)), np.array(same))

    def test_images_differ(self, tmp_path: Path) -> None:
        root = write_material(tmp_path, size=(48, 48), train=3, test_good=3, test_per_defect=0)
        images = {path.read_bytes() for path in root.rglob("*.png")}
        assert len(images) == 6
        assert not (root / "ground_truth").exists()

    def test_unwritable_folder_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"cannot write .*file"):
            write_material(tmp_path / "file", train=1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: Material("wood"), "material is 'wood'; wanted one of woven, brushed"),
        (lambda path: Material(width=31), "width is 31"),
        (lambda path: Material(seed=-1), "seed is -1"),
        (lambda path: Material(defect_rate=-1), "defect_rate -1"),
        (
            lambda path: Material("brushed", defects=[Defect("slub", 0, 0, 9)]),
            "defect is 'slub'; brushed has dent",
        ),
        (lambda path: Material().rows(-1, 5), "start is -1"),
        (lambda path: Material().rows(0, 0), "count 0"),
        (lambda path: write_material(path, "wood"), "material is 'wood'"),
        (lambda path: write_material(path, size=(31, 64)), r"size is \(31, 64\)"),
        (lambda path: write_material(path, train=0), "train is 0"),
        (lambda path: write_material(path, test_per_defect=-1), "test_per_defect -1"),
    ],
)
def test_impossible_arguments(tmp_path: Path, call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=words):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
