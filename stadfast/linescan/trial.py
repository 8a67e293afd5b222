"""A trial of an inspector: defects at known places of a generated web, and what became of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .arguments import check_positive
from .observer import Event

if TYPE_CHECKING:
    from ..data import Defect

_SLACK = 16  # pixels by which an event may miss a defect's box and still mean it
_VISIBLE = 12  # pixels of the smallest defect that counts as one


@dataclass(frozen=True)
class Injected:
    """A defect of the web, and the box around its true pixels (ends excluded), rows counted as lines."""

    defect: Defect
    lines: tuple[int, int]
    columns: tuple[int, int]


@dataclass
class Outcome:
    """What became of one injected defect.

    Attributes:
        events: those that mean it.
        offset: (lines, columns) from the middle of its box to that of its largest event's; None if missed.
        delay: seconds from its largest event's last line to the report; None if missed.
    """

    injected: Injected
    events: list[Event] = field(default_factory=list)

    @property
    def largest(self) -> Event | None:
        return max(self.events, key=lambda event: event.defect.area, default=None)

    @property
    def offset(self) -> tuple[float, float] | None:
        if (event := self.largest) is None:
            return None
        boxes = ((event.defect.rows, self.injected.lines), (event.defect.columns, self.injected.columns))
        return tuple((sum(found) - sum(true)) / 2 for found, true in boxes)  # type: ignore[return-value]

    @property
    def delay(self) -> float | None:
        return None if self.largest is None else self.largest.delay


@dataclass(frozen=True)
class Verdict:
    """All outcomes, and the events that mean no defect."""

    outcomes: list[Outcome]
    false: list[Event]

    @property
    def found(self) -> int:
        return sum(bool(outcome.events) for outcome in self.outcomes)

    @property
    def recall(self) -> float:
        return self.found / max(len(self.outcomes), 1)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind -> (found, injected)."""
        kinds = sorted({outcome.injected.defect.kind for outcome in self.outcomes})
        return {
            kind: (sum(map(bool, of)), len(of))
            for kind in kinds
            for of in [[o.events for o in self.outcomes if o.injected.defect.kind == kind]]
        }

    def offsets(self) -> tuple[float, float]:
        """Median and largest distance between the middles of box and event, pixels (nan if nothing was found)."""
        found = [float(np.hypot(*o.offset)) for o in self.outcomes if o.offset is not None]
        return (statistics.median(found), max(found)) if found else (float("nan"), float("nan"))

    def delays(self) -> tuple[float, float]:
        """Median and largest delay of a report, seconds (nan if nothing was found)."""
        found = [o.delay for o in self.outcomes if o.delay is not None]
        return (statistics.median(found), max(found)) if found else (float("nan"), float("nan"))


def inject(
    material: str, width: int, lines: int, count: int, *, first: int = 0, seed: int = 0
) -> list[Injected]:
    """Defects of all kinds in turn, at random places, one in each of ``count`` equal stretches of the web.

    Args:
        material: of the web, see :class:`stadfast.data.Material`.
        width: of the web.
        lines: length of the web.
        count: of the defects.
        first: row of the material that is line 0.
        seed: of the web; the places follow from it.

    Raises:
        UsageError: the stretches are too short for a defect each.
    """
    from ..data import Material
    from ..data.synthetic import DEFECTS, random_defect

    for name, value in (("lines", lines), ("count", count)):
        check_positive(name, value)
    stretch = lines // count
    margin = min(width, 256)  # more than the largest defect's reach
    if stretch < 3 * margin:
        raise UsageError(
            f"count: expected at most {lines // (3 * margin)} defects in {lines} lines, got {count}"
        )
    random = np.random.default_rng((seed, 0xD0))
    kinds, found = DEFECTS[material], []
    for i in range(count):
        rows = (first + i * stretch + margin, first + (i + 1) * stretch - margin)
        while True:
            defect = random_defect(material, width, random, rows, kinds[i % len(kinds)])
            top = max(defect.row - defect.reach, 0)
            mask = Material(material, width, seed, defects=[defect]).rows(top, 2 * defect.reach)[1]
            if mask.sum() >= _VISIBLE:
                break
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (top - first + int(y[0]), top - first + int(y[-1]) + 1)
        found.append(Injected(defect, box, (int(x[0]), int(x[-1]) + 1)))
    return found


def judge(injected: Sequence[Injected], events: Sequence[Event], slack: int = _SLACK) -> Verdict:
    """Which events mean which defect: those whose boxes touch when they are ``slack`` pixels larger.

    Growing events do not count; they are followed by the whole.
    """
    outcomes, false = [Outcome(one) for one in injected], []
    for event in events:
        if event.defect.growing:
            continue
        meant = [
            o for o in outcomes
            if _touch(event.defect.rows, o.injected.lines, slack)
            and _touch(event.defect.columns, o.injected.columns, slack)
        ]  # fmt: skip
        for outcome in meant:
            outcome.events.append(event)
        if not meant:
            false.append(event)
    return Verdict(outcomes, false)


def _touch(a: tuple[int, int], b: tuple[int, int], slack: int) -> bool:
    return a[0] - slack < b[1] and b[0] - slack < a[1]
