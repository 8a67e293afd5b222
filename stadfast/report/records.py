"""The evaluated images, and which of them are worth a look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

EXAMPLES = 6  # images a section
TINY = 1e-45  # in place of a score of zero, where a logarithm is taken


@dataclass(frozen=True)
class Record:
    """One evaluated image.

    Attributes:
        image: its file.
        label: 0 good, 1 defective.
        defect: name of the defect type; None for good images.
        score: image score.
        map: (H, W) anomaly map.
        mask: (H, W) ground truth; None where there is none (good images).
    """

    image: Path
    label: int
    defect: str | None
    score: float
    map: Tensor
    mask: Tensor | None = None


def choose_examples(
    records: Sequence[Record], threshold: float, count: int = EXAMPLES
) -> dict[str, list[Record]]:
    """The images worth looking at, none twice: ``worst``, ``borderline`` and ``best``.

    A decision's margin is log(score / threshold), negated for good images: negative where it is wrong. The
    worst have the lowest margins, the borderline ones lie closest to the threshold on either side, and the
    best are the clearest of each type in turn.
    """

    def distance(record: Record) -> float:
        return math.log(max(record.score, TINY) / threshold)

    def margin(record: Record) -> float:
        return distance(record) if record.label else -distance(record)

    left = sorted(records, key=margin)
    worst = left[: min(count, max(1, len(left) // 3))]
    left = left[len(worst) :]
    borderline = sorted(left, key=lambda record: abs(distance(record)))[: min(count, len(left) // 2)]
    shown = {id(record) for record in borderline}
    by_type: dict[str, list[Record]] = {}
    for record in reversed(left):
        if id(record) not in shown:
            by_type.setdefault((record.defect or "defective") if record.label else "", []).append(record)
    turns = [(turn, record) for group in by_type.values() for turn, record in enumerate(group)]
    best = [record for _, record in sorted(turns, key=lambda pair: pair[0])][:count]
    return {"worst": worst, "borderline": borderline, "best": best}
