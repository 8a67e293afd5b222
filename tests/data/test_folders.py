from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from stadfast.data import Dataset, Folder, MVTecLayout, Sample, list_images, open_dataset
from stadfast.errors import DataError, UsageError


def touch(root: Path, *names: str) -> None:
    """Make 2 x 2 images (or anything else as an empty file)."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".bmp"):
            Image.new("L", (2, 2)).save(path)
        else:
            path.touch()


def names(samples: list[Sample], root: Path) -> list[str]:
    return [sample.image.relative_to(root).as_posix() for sample in samples]


@pytest.fixture
def category(tmp_path: Path) -> Path:
    root = tmp_path / "set" / "bottle"
    touch(root, "train/good/001.png", "train/good/000.png", "test/good/000.png", "test/crack/000.png")
    touch(root, "test/crack/001.png", "test/a_hole/000.png")
    touch(
        root,
        "ground_truth/crack/000_mask.png",
        "ground_truth/crack/001.png",
        "ground_truth/a_hole/000_mask.png",
    )
    return root


class TestMVTecLayout:
    def test_samples(self, category: Path) -> None:
        data = MVTecLayout(category)
        assert data.name == "bottle"
        assert names(data.train, category) == ["train/good/000.png", "train/good/001.png"]
        assert {(s.label, s.defect, s.mask) for s in data.train} == {(0, None, None)}
        truth = category / "ground_truth"
        assert data.test == [
            Sample(category / "test/a_hole/000.png", 1, "a_hole", truth / "a_hole/000_mask.png"),
            Sample(category / "test/crack/000.png", 1, "crack", truth / "crack/000_mask.png"),
            Sample(category / "test/crack/001.png", 1, "crack", truth / "crack/001.png"),
            Sample(category / "test/good/000.png", 0),
        ]
        assert data.defects == ["a_hole", "crack"]
        assert repr(data) == "MVTecLayout('bottle': 2 train, 4 test, defects a_hole, crack)"

    def test_root_of_all_categories(self, category: Path) -> None:
        touch(category.parent, "cable/train/good/0.png")
        assert MVTecLayout(category.parent, "bottle").test == MVTecLayout(category).test
        assert MVTecLayout(category.parent, category="cable").test == []
        assert MVTecLayout(category, "bottle").name == "bottle"
        with pytest.raises(DataError, match="several categories; choose one with category=: bottle, cable"):
            MVTecLayout(category.parent)
        with pytest.raises(DataError, match="no category 'pill'; it has bottle, cable"):
            MVTecLayout(category.parent, "pill")

    def test_without_ground_truth_there_are_no_masks(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/0.png", "test/crack/0.png")
        assert MVTecLayout(tmp_path).test == [Sample(tmp_path / "test/crack/0.png", 1, "crack")]

    def test_only_train(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/0.png")
        assert MVTecLayout(tmp_path).test == []

    def test_nested_images_have_nested_masks(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/0.png", "test/crack/x/0.jpg", "test/crack/y/0.jpg")
        touch(tmp_path, "ground_truth/crack/x/0_mask.png", "ground_truth/crack/y/0.bmp")
        assert [s.mask for s in MVTecLayout(tmp_path).test] == [
            tmp_path / "ground_truth/crack/x/0_mask.png",
            tmp_path / "ground_truth/crack/y/0.bmp",
        ]

    def test_an_image_may_be_called_mask(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/0.png", "test/crack/a.png", "test/crack/a_mask.png")
        touch(tmp_path, "ground_truth/crack/a_mask.png", "ground_truth/crack/a_mask_mask.png")
        assert [s.mask.name for s in MVTecLayout(tmp_path).test if s.mask] == [
            "a_mask.png",
            "a_mask_mask.png",
        ]

    def test_extensions(self, category: Path) -> None:
        touch(category, "train/good/2.JPG", "train/good/notes.txt", "train/good/.hidden.png")
        assert len(MVTecLayout(category).train) == 3
        assert len(MVTecLayout(category, extensions=["png"]).train) == 2

    @pytest.mark.parametrize(
        ("remove", "add", "words"),
        [
            (["train/good/000.png", "train/good/001.png"], [], "train/good holds no images"),
            (["ground_truth/crack/001.png"], [], "test/crack/001.png has no mask; wanted .*001_mask.png or "),
            (["test/crack/001.png"], [], "ground_truth/crack/001.png is a mask without an image"),
            ([], ["ground_truth/scratch/000_mask.png"], "masks without images: .*scratch"),
            ([], ["ground_truth/crack/007_mask.png"], "007_mask.png is a mask without an image"),
            (["ground_truth/a_hole/000_mask.png"], [], "ground_truth/a_hole holds no images"),
            (["test/good/000.png"], [], "test/good holds no images"),
            ([], ["test/crack/000.jpg"], "000_mask.png is the mask of both .*000.jpg and .*000.png"),
            ([], ["test/dent/000.png"], "ground_truth/dent does not exist"),
            (
                [],
                ["ground_truth/crack/000_mask.bmp"],
                "000_mask.bmp and .*000_mask.png are masks of the same",
            ),
        ],
    )
    def test_damage_is_named(self, category: Path, remove: list[str], add: list[str], words: str) -> None:
        for name in remove:
            (category / name).unlink()
        touch(category, *add)
        with pytest.raises(DataError, match=words):
            MVTecLayout(category)

    def test_missing_folders_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere is not a folder"):
            MVTecLayout(tmp_path / "nowhere")
        touch(tmp_path, "test/good/0.png", "train/bad/0.png")
        with pytest.raises(DataError, match="train/good does not exist"):
            MVTecLayout(tmp_path)
        touch(tmp_path, "train/good/0.png")
        (tmp_path / "test/good/0.png").unlink()
        (tmp_path / "test/good").rmdir()
        with pytest.raises(DataError, match="test has no folders"):
            MVTecLayout(tmp_path)


class TestFolder:
    def test_normal_only(self, tmp_path: Path) -> None:
        touch(tmp_path, "ok/b.png", "ok/a.png")
        data = Folder("mine", "ok", root=tmp_path)
        assert names(data.train, tmp_path) == ["ok/a.png", "ok/b.png"]
        assert (data.name, data.test) == ("mine", [])

    def test_all_arguments(self, tmp_path: Path) -> None:
        touch(
            tmp_path,
            "ok/a.png",
            "ok2/a.png",
            "okt/a.png",
            "bad/0.png",
            "bad/burn/0.png",
            "m/0.png",
            "m/burn/0_mask.png",
        )
        data = Folder(
            name="x",
            root=tmp_path,
            normal_dir=["ok", "ok2"],
            normal_test_dir="okt",
            abnormal_dir="bad",
            mask_dir="m",
        )
        assert names(data.train, tmp_path) == ["ok/a.png", "ok2/a.png"]
        assert data.test == [
            Sample(tmp_path / "okt/a.png", 0),
            Sample(tmp_path / "bad/0.png", 1, "bad", tmp_path / "m/0.png"),
            Sample(tmp_path / "bad/burn/0.png", 1, "burn", tmp_path / "m/burn/0_mask.png"),
        ]

    @pytest.mark.parametrize("masks", [["m/crack", "m/hole"], "m"])
    def test_several_abnormal_folders(self, tmp_path: Path, masks: list[str] | str) -> None:
        touch(
            tmp_path,
            "ok/a.png",
            "crack/0.png",
            "hole/0.png",
            "m/crack/0.png",
            "m/hole/0_mask.png",
            "okt/0.png",
        )
        data = Folder("x", "ok", tmp_path, ["crack", "hole"], "okt", masks)
        assert [(s.defect, s.mask) for s in data.test[1:]] == [
            ("crack", tmp_path / "m/crack/0.png"),
            ("hole", tmp_path / "m/hole/0_mask.png"),
        ]

    def test_one_flat_mask_folder_must_not_be_ambiguous(self, tmp_path: Path) -> None:
        touch(tmp_path, "ok/a.png", "crack/0.png", "hole/0.png", "m/0.png", "okt/0.png")
        with pytest.raises(DataError, match=r"m/0\.png is the mask of both"):
            Folder("x", "ok", tmp_path, ["crack", "hole"], "okt", "m")

    @pytest.mark.parametrize(
        ("count", "ratio", "held_out"),
        [(10, 0.2, 2), (3, 0.2, 1), (10, 0, 0), (2, 0.9, 1), (1, 0.5, 0), (9, 0.5, 4)],
    )
    def test_split(self, tmp_path: Path, count: int, ratio: float, held_out: int) -> None:
        touch(tmp_path, "bad/0.png", *[f"ok/{i}.png" for i in range(count)])
        data = Folder("x", "ok", tmp_path, "bad", normal_split_ratio=ratio)
        good = [sample for sample in data.test if sample.label == 0]
        assert (len(data.train), len(good)) == (count - held_out, held_out)
        assert not {s.image for s in data.train} & {s.image for s in good}
        assert names(data.train, tmp_path) == sorted(names(data.train, tmp_path))

    def test_split_depends_on_the_seed_only(self, tmp_path: Path) -> None:
        touch(tmp_path, "bad/0.png", *[f"ok/{i}.png" for i in range(20)])
        runs = [Folder("x", "ok", tmp_path, "bad", seed=seed).test for seed in (0, 0, 1)]
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ({"normal_split_ratio": 1.0}, UsageError, "normal_split_ratio is 1.0"),
            ({"normal_split_ratio": -0.1}, UsageError, "normal_split_ratio is -0.1"),
            ({"normal_dir": "nowhere"}, DataError, "nowhere does not exist"),
            ({"normal_dir": "empty"}, DataError, "empty holds no images; wanted files that end in .png"),
            ({"normal_dir": []}, DataError, "normal_dir"),
            ({"abnormal_dir": "nowhere"}, DataError, "nowhere does not exist"),
            ({"mask_dir": "masks"}, UsageError, "mask_dir"),
            ({"abnormal_dir": "bad", "mask_dir": "nowhere"}, DataError, "nowhere does not exist"),
            ({"abnormal_dir": "bad", "mask_dir": "masks"}, DataError, "bad/1.png has no mask"),
            (
                {"abnormal_dir": "bad", "mask_dir": ["masks", "bad"]},
                UsageError,
                "mask_dir has 2 .*abnormal_dir has 1",
            ),
        ],
    )
    def test_refusals(self, tmp_path: Path, arguments: dict, error: type[Exception], words: str) -> None:
        touch(tmp_path, "ok/0.png", "bad/0.png", "bad/1.png", "masks/0.png")
        (tmp_path / "empty").mkdir()
        with pytest.raises(error, match=words):
            Folder(**{"name": "x", "normal_dir": "ok", "root": tmp_path} | arguments)


class TestListImages:
    def test_folder_is_recursive_and_sorted(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.png", "a/z.JPG", "a/.h/x.png", ".DS_Store", "._b.png", "n.txt")
        assert list_images(tmp_path) == [tmp_path / "a/z.JPG", tmp_path / "b.png"]

    def test_lists_keep_their_order(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.png", "c.dat", "a/1.png", "a/0.png")
        given = [str(tmp_path / "b.png"), tmp_path / "c.dat", tmp_path / "a", Sample(tmp_path / "b.png")]
        wanted = ["b.png", "c.dat", "a/0.png", "a/1.png", "b.png"]
        assert list_images(given) == [tmp_path / name for name in wanted]

    @pytest.mark.parametrize("extensions", [["dat"], (".DAT",)])
    def test_extensions(self, tmp_path: Path, extensions: list[str]) -> None:
        touch(tmp_path, "b.png", "c.dat")
        assert list_images(tmp_path, extensions) == [tmp_path / "c.dat"]

    def test_links_are_followed_once(self, tmp_path: Path) -> None:
        touch(tmp_path, "real/0.png", "data/1.png")
        (tmp_path / "data/link").symlink_to(tmp_path / "real")
        (tmp_path / "real/back").symlink_to(tmp_path / "data")
        assert names([Sample(p) for p in list_images(tmp_path / "data")], tmp_path) == [
            "data/1.png",
            "data/link/0.png",
        ]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ([], "list of paths is empty"),
            (["nowhere"], "nowhere does not exist"),
            ([3], "int"),
            ([None], "NoneType"),
        ],
    )
    def test_refusals(self, given: list, words: str) -> None:
        with pytest.raises(DataError, match=words):
            list_images(given)


class TestOpenDataset:
    def test_category(self, category: Path) -> None:
        assert isinstance(open_dataset(category), MVTecLayout)
        assert open_dataset(category.parent, "bottle").name == "bottle"
        data = open_dataset(str(category))
        assert isinstance(data, Dataset)
        assert open_dataset(data) is data

    def test_plain_folder(self, tmp_path: Path) -> None:
        touch(tmp_path, "mine/0.png", "mine/more/1.png")
        data = open_dataset(tmp_path / "mine")
        assert isinstance(data, Folder)
        assert (data.name, len(data.train), data.test) == ("mine", 2, [])
        assert {sample.label for sample in data.train} == {0}

    def test_damaged_layouts_are_no_plain_folders(self, tmp_path: Path, category: Path) -> None:
        with pytest.raises(DataError, match="choose one with category=: bottle"):
            open_dataset(category.parent)
        touch(tmp_path / "new", "train/bad/0.png", "test/good/0.png")
        with pytest.raises(DataError, match="train/good does not exist"):
            open_dataset(tmp_path / "new")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere does not exist"):
            open_dataset(tmp_path / "nowhere")


def test_real_data(shared: Path) -> None:
    data = open_dataset(shared / "data" / "mvtec_bottle")
    assert (len(data.train), len(data.test)) == (209, 83)
    assert sum(sample.mask is not None for sample in data.test) == 63


def test_masks_beside_test_images_are_no_images(category: Path) -> None:
    found = [path.relative_to(category).as_posix() for path in list_images(category.parent)]
    assert len(found) == 6
    assert not any("ground_truth" in path for path in found)
    assert len(list_images(category / "ground_truth")) == 3  # asked for
    touch(category.parent, "ground_truth/0.png")  # beside no test images: a folder as any other
    assert len(list_images(category.parent)) == 7


def test_a_set_for_testing_alone(tmp_path: Path) -> None:
    touch(tmp_path, "test/good/0.png", "test/crack/0.png")
    data = open_dataset(tmp_path)
    assert isinstance(data, MVTecLayout)
    assert data.train == []
    assert [sample.label for sample in data.test] == [1, 0]
