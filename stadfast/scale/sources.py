"""Where the images of a large job come from, cut into parts of a fixed order: the units of work, files and resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..data import IMAGE_EXTENSIONS, Sample, list_images
from ..errors import DataError, UsageError
from .store import is_remote, list_files, local, needed, read_bytes

_IMAGE, _PATH = "image", "path"  # a table's columns
_LABELS = ("label", "defect", "mask")


class Item(NamedTuple):
    """One image of a job.

    Attributes:
        name: what the results call it.
        image: its path or URL, or the file's contents; None: its row has none.
        label: 0 good, 1 defective, None unknown.
        defect: the kind of defect.
        mask: the ground truth's path, URL or contents.
    """

    name: str
    image: str | bytes | None
    label: int | None = None
    defect: str | None = None
    mask: str | bytes | None = None


class Part(NamedTuple):
    """Neighbours in a job's fixed order, scored by one worker and written to one file.

    Attributes:
        number: from 0.
        size: number of images.
        items: the images themselves; empty where a table has them.
        table: path or URL of the Parquet file.
        start: the first row in it.
    """

    number: int
    size: int
    items: tuple[Item, ...] = ()
    table: str = ""
    start: int = 0

    def read(self) -> Iterator[Item]:
        """The images, in order."""
        return _rows(self.table, self.start, self.size) if self.table else iter(self.items)


class Plan(NamedTuple):
    """A job's parts.

    Attributes:
        parts: in order.
        root: the folder that all names have in common.
        fingerprint: changes with the images' names and order.
    """

    parts: list[Part]
    root: str
    fingerprint: str

    @property
    def images(self) -> int:
        return sum(part.size for part in self.parts)


Location = str | os.PathLike[str]  # a path or a URL
Sources = Location | Sample | Sequence[Location | Sample]


def plan(sources: Sources, part_size: int) -> Plan:
    """Cut images into parts of ``part_size``; a table's last part may be smaller.

    Args:
        sources: one or several labelled samples; or paths and URLs of images, of folders of images, of Parquet files,
            or of folders of these. A table has a column ``image`` (the files' contents, or a struct with ``bytes``
            or ``path``), or ``path`` (paths or URLs, relative ones to the table's folder), and where known ``label``
            (integers or booleans), ``defect`` and ``mask``.
        part_size: images a part.

    Raises:
        UsageError: sources of another type.
        DataError: nothing there, or a table without these columns, or with others' types.
    """
    tables: list[str] = []
    items: list[Item] = []
    sources = [sources] if isinstance(sources, (str, os.PathLike, Sample)) else list(sources)
    for source in sources:
        if isinstance(source, Sample):
            mask = None if source.mask is None else local(str(source.mask))
            image = str(source.image)
            items.append(Item(image, local(image), source.label, source.defect, mask))
        elif not isinstance(source, (str, os.PathLike)):
            raise UsageError(
                f"sources: expected paths, URLs or labelled samples, got {type(source).__name__}"
            )
        elif found := _tables(os.fspath(source)):
            tables += found
        else:
            items += [Item(name, local(name)) for name in _images(os.fspath(source))]
    parts: list[Part] = []
    for begin in range(0, len(items), part_size):
        some = tuple(items[begin : begin + part_size])
        parts.append(Part(len(parts), len(some), some))
    digest = hashlib.sha256(json.dumps([item.name for item in items]).encode())
    for table in tables:
        rows = _row_count(table)
        digest.update(f"{table}:{rows}".encode())
        for start in range(0, rows, part_size):
            parts.append(Part(len(parts), min(part_size, rows - start), table=table, start=start))
    if not parts:
        raise DataError(f"no images in {', '.join(map(str, sources))}")
    return Plan(parts, _common_folder([item.name for item in items]), digest.hexdigest()[:16])


def _tables(source: str) -> list[str]:
    """The Parquet files that a path or URL means; none if it means images."""
    if source.endswith(".parquet"):
        return [local(source)]
    if is_remote(source):
        return [name for name in list_files(source) if name.endswith(".parquet")]
    folder = Path(local(source))
    return sorted(str(path) for path in folder.glob("*.parquet")) if folder.is_dir() else []


def _images(source: str) -> list[str]:
    if not is_remote(source):
        return [str(path) for path in list_images(source.removeprefix("file://"))]
    found = [name for name in list_files(source) if name.lower().endswith(IMAGE_EXTENSIONS)]
    if not found:
        raise DataError(f"{source} holds no images; wanted files that end in {', '.join(IMAGE_EXTENSIONS)}")
    return found


def _common_folder(names: Sequence[str]) -> str:
    """The longest prefix, in whole folders, of the first and the last in the alphabet, and so of all."""
    if not names:
        return ""
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("/", 0, length) + 1]


# -------------------------------------------------------------------------------------------- tables


def _open(table: str) -> Any:
    parquet = needed("pyarrow.parquet", "a Parquet table")
    try:
        if is_remote(table):
            return parquet.ParquetFile(needed("fsspec", "a URL").open(table, "rb").open())
        return parquet.ParquetFile(table)
    except Exception as error:  # pyarrow's, or those of the store
        raise DataError(f"{table}: {str(error).splitlines()[0]}") from error


def _row_count(table: str) -> int:
    with _open(table) as file:
        schema = file.schema_arrow
        names = schema.names
        if _IMAGE not in names and _PATH not in names:
            raise DataError(
                f"{table} has the columns {', '.join(names)}; wanted {_IMAGE} (contents of files) or {_PATH}"
            )
        for name, (fits, wanted) in _kinds().items():
            if name in names and not fits(kind := schema.types[names.index(name)]):
                raise DataError(f"{table}: its column {name} is of type {kind}; wanted {wanted}")
        return file.metadata.num_rows


def _kinds() -> dict[str, tuple[Callable[[Any], bool], str]]:
    """By column: whether a type fits, and in words which would."""
    arrow = needed("pyarrow", "a Parquet table")
    types, null = arrow.types, arrow.null()

    def plain(kind: Any) -> Any:  # such as pandas's categories
        return kind.value_type if types.is_dictionary(kind) else kind

    def is_text(kind: Any) -> bool:
        kind = plain(kind)
        return types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind)

    def is_contents(kind: Any) -> bool:
        kind = plain(kind)
        return types.is_null(kind) or types.is_binary(kind) or types.is_large_binary(kind)

    def is_image(kind: Any) -> bool:
        if not types.is_struct(kind):
            return is_contents(kind)
        fields = {field.name: field.type for field in kind}
        return (
            bool(fields.keys() & {"bytes", "path"})
            and is_contents(fields.get("bytes", null))
            and is_text(fields.get("path", null))
        )

    def is_label(kind: Any) -> bool:
        kind = plain(kind)
        # pandas' labels are floats where one is missing
        whole = types.is_integer(kind) or types.is_floating(kind)
        return types.is_null(kind) or types.is_boolean(kind) or whole

    picture = "binary (contents of files), or a struct with bytes or path"
    return {
        _IMAGE: (is_image, picture), _PATH: (is_text, "string"), "label": (is_label, "integer (0 good, 1 defective)"),
        "defect": (is_text, "string"), "mask": (lambda kind: is_text(kind) or is_image(kind), f"string, {picture}"),
    }  # fmt: skip


def _rows(table: str, start: int, count: int) -> Iterator[Item]:
    """Rows of a table, of which only the row groups that hold them are read, a few rows at a time."""
    with _open(table) as file:
        metadata = file.metadata
        groups: list[int] = []
        first = row = 0  # the first row of the first group that is needed
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if row < start + count and row + rows > start:
                first = first if groups else row
                groups.append(group)
            row += rows
        columns = [name for name in (_IMAGE, _PATH, *_LABELS) if name in file.schema_arrow.names]
        batches = file.iter_batches(64, row_groups=groups, columns=columns)
        rows_in_order = (record for batch in batches for record in batch.to_pylist())
        wanted = islice(rows_in_order, start - first, start - first + count)
        for number, record in enumerate(wanted, start=start):
            yield _item(record, table, number)


def _item(record: dict[str, Any], table: str, number: int) -> Item:
    path, label = record.get(_PATH), record.get("label")
    image = _contents(record.get(_IMAGE))
    image = path if image is None else image
    return Item(
        name=path or (image if isinstance(image, str) else "") or f"{table}#{number}",
        image=_beside(image, table),
        label=None if label is None or label != label else _whole(label, table),
        defect=record.get("defect"),
        mask=_beside(_contents(record.get("mask")), table),
    )


def _whole(label: Any, table: str) -> int:
    if label != label // 1:
        raise DataError(
            f"{table}: its column label has {label!r}; wanted whole numbers (0 good, 1 defective)"
        )
    return int(label)


def _contents(cell: Any) -> Any:
    if not isinstance(cell, dict):
        return cell
    inside = cell.get("bytes")  # a struct, as Hugging Face's data sets have it
    return cell.get("path") if inside is None else inside


def _beside(location: Any, table: str) -> Any:
    """A relative path means a file in the table's folder, an empty one none."""
    if location == "":
        return None
    if not isinstance(location, str) or "://" in location or location.startswith("/"):
        return location
    return f"{table.rpartition('/')[0]}/{location}"


def contents(image: str | bytes | None) -> bytes:
    """The file behind an item.

    Raises:
        OSError: it cannot be read. DataError: there is none.
    """
    if image is None:
        raise DataError("no image in this row")
    return image if isinstance(image, bytes) else read_bytes(image)
