"""Injected defects are where they are said to be, and the verdict counts what it should."""

from __future__ import annotations

import numpy as np
import pytest

from stadfast.data import Material
from stadfast.errors import UsageError
from stadfast.linescan import DefectEvent, Event
from stadfast.linescan.trial import inject, judge


def event(rows, columns, *, area=100, growing=False, delay=0.5):
    defect = DefectEvent(0, rows, columns, None, None, area, None, 1.0, 0.5, (rows[0], columns[0]), growing)
    return Event(defect, 0, 0.0, 0.0, delay, (0, 0), False)


def test_boxes_are_the_defects_of_the_web():
    truths = inject("woven", 128, 5 * 800, 5, first=1000, seed=2)
    assert len({one.defect.kind for one in truths}) == 5
    web = Material("woven", 128, 2, defects=[one.defect for one in truths])
    for number, one in enumerate(truths):
        _, mask = web.rows(1000 + number * 800, 800)
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert one.lines == (number * 800 + y[0], number * 800 + y[-1] + 1)
        assert one.columns == (x[0], x[-1] + 1)
    with pytest.raises(UsageError, match="at most"):
        inject("woven", 128, 1000, 5)


def test_verdict():
    truths = inject("woven", 128, 3 * 800, 3)
    (top, bottom), (left, right) = truths[0].lines, truths[0].columns
    exact = event((top, bottom), (left, right), area=500, delay=0.25)
    part = event((top - 20, top - 10), (left, right))  # within the slack
    growing = event((0, 2400), (0, 128), growing=True)
    far = event((top + 400, top + 410), (left, right))
    verdict = judge(truths, [part, exact, growing, far])
    assert (verdict.found, len(verdict.outcomes), verdict.false) == (1, 3, [far])
    assert verdict.recall == pytest.approx(1 / 3)
    assert verdict.outcomes[0].events == [part, exact]
    assert verdict.offsets() == (0, 0)
    assert verdict.delays() == (0.25, 0.25)
    kind = truths[0].defect.kind
    assert verdict.by_kind()[kind] == (1, 1)
    assert sum(of for _, of in verdict.by_kind().values()) == 3
    assert all(np.isnan(judge(truths, []).offsets()))
