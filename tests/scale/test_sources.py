"""What a job is cut into."""

from __future__ import annotations

from pathlib import Path

import pytest

from stadfast.data import Sample
from stadfast.errors import DataError, UsageError
from stadfast.scale.sources import contents, plan


def test_parts_keep_the_order_and_hold_everything_once(archive: Path) -> None:
    planned = plan([str(archive)], 16)
    assert [part.size for part in planned.parts] == [16, 16, 10]
    assert [part.number for part in planned.parts] == [0, 1, 2]
    names = [item.name for part in planned.parts for item in part.read()]
    assert names == sorted(str(path) for path in archive.rglob("*.png"))
    assert planned.root == f"{archive}/"
    assert planned.images == 42


def test_the_fingerprint_follows_names_and_order(archive: Path) -> None:
    one, two = str(archive / "day0"), str(archive / "day1")
    assert plan([one, two], 16).fingerprint == plan([str(archive)], 16).fingerprint
    assert plan([two, one], 16).fingerprint != plan([one, two], 16).fingerprint


def test_samples_keep_their_labels() -> None:
    samples = [Sample(Path("a.png"), 0), Sample(Path("b.png"), 1, "hole", Path("b_mask.png"))]
    first, second = plan(samples, 8).parts[0].read()
    assert (first.name, first.label, first.mask) == ("a.png", 0, None)
    assert (second.label, second.defect, second.mask) == (1, "hole", str(Path.cwd() / "b_mask.png"))
    assert first.image == str(Path.cwd() / "a.png")  # a worker has another working folder


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        plan([str(tmp_path)], 8)


def test_a_source_alone_and_paths(archive: Path) -> None:
    wanted = plan([str(archive)], 16)
    for sources in (str(archive), archive, [archive]):
        assert plan(sources, 16) == wanted
    assert plan(Sample(Path("a.png"), 0), 8).images == 1
    with pytest.raises(UsageError, match="sources: expected paths, URLs or labelled samples, got int"):
        plan([5], 8)  # type: ignore[list-item]


def test_images_by_url(archive: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in sorted((archive / "day0").glob("*.png"))[:3]:
        memory.pipe_file(f"/pictures/{path.name}", path.read_bytes())
    memory.pipe_file("/pictures/.hidden/x.png", b"")
    memory.pipe_file("/pictures/notes.txt", b"")
    (part,) = plan(["memory://pictures"], 8).parts
    assert [item.name for item in part.read()] == [f"memory:///pictures/00{i}.png" for i in range(3)]
    with pytest.raises(DataError, match="no images"):
        plan(["memory://nothing"], 8)


class TestTables:
    """Columns ``image`` or ``path``."""

    @pytest.fixture
    def write(self, tmp_path: Path):  # type: ignore[no-untyped-def]
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

        def write(name: str, rows: int = 1000, **columns: list) -> str:  # type: ignore[type-arg]
            parquet.write_table(arrow.table(columns), tmp_path / name, row_group_size=rows)
            return str(tmp_path / name)

        return write

    @pytest.mark.parametrize("rows", [3, 7, 100])
    @pytest.mark.parametrize("size", [4, 9, 100])
    def test_parts_across_row_groups(self, write, rows: int, size: int) -> None:  # type: ignore[no-untyped-def]
        table = write("t.parquet", rows, image=[bytes([i]) for i in range(25)])
        planned = plan([table], size)
        assert planned.images == 25
        found = [(part.number, item) for part in planned.parts for item in part.read()]
        assert [item.image for _, item in found] == [bytes([i]) for i in range(25)]
        assert [item.name for _, item in found] == [f"{table}#{i}" for i in range(25)]
        assert [number for number, _ in found] == [i // size for i in range(25)]

    def test_paths_labels_and_structs(self, write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        write("a.parquet", path=["x.png", "/y.png", "s3://z"], label=[0, 1, 1], mask=[None, "m.png", None])
        write("b.parquet", image=[{"bytes": b"1", "path": "one.png"}], path=["one.png"], defect=["hole"])
        planned = plan([str(tmp_path)], 8)
        assert [part.table for part in planned.parts] == [str(tmp_path / f"{n}.parquet") for n in "ab"]
        items = [item for part in planned.parts for item in part.read()]
        assert [item.image for item in items] == [f"{tmp_path}/x.png", "/y.png", "s3://z", b"1"]
        assert [item.name for item in items] == ["x.png", "/y.png", "s3://z", "one.png"]
        assert [item.label for item in items] == [0, 1, 1, None]
        assert [item.mask for item in items] == [None, f"{tmp_path}/m.png", None, None]
        assert items[3].defect == "hole"

    def test_other_columns(self, write) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(DataError, match=r"columns a; wanted image .* or path"):
            plan([write("t.parquet", a=[1])], 8)

    @pytest.mark.parametrize(
        ("column", "value", "words"),
        [
            ("label", "good", "label is of type string; wanted integer"),
            ("defect", 3, "defect is of type int64; wanted string"),
            ("path", 3, "path is of type int64; wanted string"),
            ("image", 3, "image is of type int64; wanted binary"),
            ("image", {"pixels": 3}, "image is of type struct.*; wanted binary"),
            ("mask", {"bytes": 3}, "mask is of type struct.*; wanted string, binary"),
        ],
    )
    def test_columns_of_another_type(self, write, column: str, value: object, words: str) -> None:  # type: ignore[no-untyped-def]
        columns = {"path": ["x.png"], column: [value]}
        with pytest.raises(DataError, match=rf"t\.parquet: its column {words}"):
            plan([write("t.parquet", **columns)], 8)

    def test_labels_of_pandas(self, write) -> None:  # type: ignore[no-untyped-def]
        table = write("t.parquet", path=["a.png", "b.png", "c.png"], label=[1.0, float("nan"), None])
        assert [item.label for item in plan([table], 8).parts[0].read()] == [1, None, None]
        table = write("t.parquet", path=["a.png"], label=[0.5])
        with pytest.raises(DataError, match=r"t\.parquet: its column label has 0\.5"):
            list(plan([table], 8).parts[0].read())

    def test_rows_in_other_forms(self, write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        arrow = pytest.importorskip("pyarrow")
        images = [{"bytes": None, "path": "x.png"}, {"bytes": None, "path": None}, None]
        kinds = arrow.array(["hole", None, "hole"]).dictionary_encode()
        table = write(
            "t.parquet", image=images, defect=kinds, label=[True, False, None], mask=["", None, "m.png"]
        )
        items = list(plan([table], 8).parts[0].read())
        assert [item.image for item in items] == [f"{tmp_path}/x.png", None, None]
        assert [item.name for item in items] == ["x.png", f"{table}#1", f"{table}#2"]
        assert [item.label for item in items] == [1, 0, None]
        assert [item.defect for item in items] == ["hole", None, "hole"]
        assert [item.mask for item in items] == [None, None, f"{tmp_path}/m.png"]
        with pytest.raises(DataError, match="no image in this row"):
            contents(items[1].image)

    def test_no_parquet(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        (tmp_path / "t.parquet").write_bytes(b"no table")
        with pytest.raises(DataError, match=r"t\.parquet"):
            plan([str(tmp_path / "t.parquet")], 8)
