"""What a job leaves behind: scores as Parquet, one file a part, and beside it the part of the metrics' state."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ..metrics import Evaluation
from ..report.evaluation import MASKS_RESIZED, with_decisions
from .store import needed

_COLUMNS = {
    "path": "string", "score": "float32", "defective": "bool_", "error": "string", "label": "int64", "defect": "string",
}  # fmt: skip


class Row(NamedTuple):
    """One image's line in the scores: either ``score`` and ``defective``, or ``error``."""

    path: str
    score: float | None
    defective: bool | None
    error: str | None
    label: int | None = None
    defect: str | None = None


@dataclass
class Report:
    """What came of a part.

    Attributes:
        number: of the part.
        images, defective, broken: counts.
        bytes_read: of image files and masks.
        read_s, score_s, other_s: seconds that the worker waited for images, computed, and did everything else.
        memory_mb: what the worker's process held in memory at the end (10^6 bytes).
    """

    number: int
    images: int = 0
    defective: int = 0
    broken: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    score_s: float = 0.0
    other_s: float = 0.0
    memory_mb: float = 0.0


def scores_file(number: int) -> str:
    return f"part-{number:06d}.parquet"


def state_file(number: int) -> str:
    return f"_state-{number:06d}.npz"  # whoever reads the folder as one table leaves out names with _


def scores_bytes(rows: Sequence[Row], report: Report) -> bytes:
    """A Parquet file of the rows, with the report in its footer."""
    arrow, parquet = needed("pyarrow", "Parquet"), needed("pyarrow.parquet", "Parquet")
    fields = [(name, getattr(arrow, kind)()) for name, kind in _COLUMNS.items()]
    schema = arrow.schema(fields, metadata={"stadfast": json.dumps(asdict(report))})
    columns = dict(zip(_COLUMNS, zip(*rows, strict=True), strict=True))
    file = io.BytesIO()
    parquet.write_table(arrow.table(columns, schema=schema), file)
    return file.getvalue()


def report_of(scores: bytes) -> Report | None:
    """The report in the footer of a file of :func:`scores_bytes`; None if the file is damaged."""
    parquet = needed("pyarrow.parquet", "Parquet")
    try:
        return Report(**json.loads(parquet.read_schema(io.BytesIO(scores)).metadata[b"stadfast"]))
    except Exception:  # pyarrow's are of many kinds
        return None


class LabelledCounts:
    """The metrics' state of labelled images, and the detector's decisions on them; adds up over parts.

    All figures come from whole numbers (scores by 16-bit key, decisions), from the list of image scores, and for AUPRO
    from sums of the regions' shares: parts added in their order give the same bits wherever they were counted.
    """

    def __init__(self) -> None:
        self.evaluation = Evaluation(exact=False)
        self.decisions = np.zeros((2, 2), np.int64)  # images by label and by decision

    def to_bytes(self) -> bytes:
        arrays = {key: np.asarray(value) for key, value in self.evaluation.state.items()}
        file = io.BytesIO()
        np.savez_compressed(file, decisions=self.decisions, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    def add(self, contents: bytes) -> None:
        """Add what :meth:`to_bytes` gave."""
        with np.load(io.BytesIO(contents)) as file:
            arrays = dict(file)
        self.decisions += arrays.pop("decisions")
        other = Evaluation(exact=False)
        other.state = {key: _restored(key, value) for key, value in arrays.items()}
        self.evaluation.merge(other)

    def figures(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """What ``metrics.evaluate`` gives, with the detector's thresholds and its decisions."""
        figures = self.evaluation.compute()
        bounds = [*figures["bounds"]["pixel"].values(), *figures["bounds"]["aupro"].values()]
        counted = f"pixel figures are counted by 16-bit keys, at most {max(bounds):.2g} from the exact ones"
        figures["notes"].append(counted)
        return with_decisions(figures, header, self.decisions, masks=MASKS_RESIZED)


def _restored(key: str, value: np.ndarray) -> Any:
    if key.startswith("images/"):
        return value.tolist()
    return value if key.startswith("pixels/") else int(value)
