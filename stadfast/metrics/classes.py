"""The metrics as objects that are fed batch by batch, merged across processes, and read at any time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from typing_extensions import Self

from ..errors import UsageError
from . import counts as _counts
from ._inputs import check_limit, paired_images, paired_scores
from .counts import NOTHING, Counts
from .refinement import refined_edges
from .states import Exact
from .streaming import NotFiniteError, Streaming


class Estimate(NamedTuple):
    """A metric and how far from the exact one it can be: ``bound`` is 0 where it is exact."""

    value: float
    bound: float


class F1Estimate(NamedTuple):
    """The largest F1, how much larger it can be, and the highest threshold that gives it, by ``score >``."""

    value: float
    bound: float
    threshold: float


Result = TypeVar("Result", Estimate, F1Estimate)


class Metric(Generic[Result]):
    """A ranking metric that is fed in batches.

    Args:
        exact: keep all scores (float32: 4 bytes a pixel) and rank them exactly, which takes some 85 bytes for each
            anomalous pixel. False: count them by their upper 16 bits, in 1.5 MB whatever comes (3 MB where some
            are float16), with a bound beside the value; scores of half types are counted by all their bits, and
            the bound is 0.
    """

    _limit = 1.0  # the highest false positive rate that matters

    def __init__(self, *, exact: bool = True) -> None:
        self.exact = exact
        self.reset()

    def reset(self) -> Self:
        """Forget everything."""
        self._held: Exact | Streaming = Exact() if self.exact else Streaming()
        return self

    def update(self, scores: Any, labels: Any) -> Self:
        """Add scores and labels of one shape; see ``metrics.auroc`` for what they may be."""
        try:
            self._held.add(*paired_scores(scores, labels, finite=self.exact), "", False)
        except NotFiniteError:
            paired_scores(scores, labels)  # says which
            raise
        return self

    def compute(self) -> Result:
        """The metric of all that was added; NaN where it is undefined."""
        return self._of(self._counts())

    def merge(self, *others: Self) -> Self:
        """Add what others hold: the result is that of one metric that saw it all.

        Raises:
            UsageError: one is of another kind or limit, or was refined from other maps; nothing has been added.
        """
        for other in others:
            if type(other) is not type(self) or other.exact != self.exact:
                raise UsageError(f"cannot merge {other!r} into {self!r}")
            if other._limit != self._limit:
                raise UsageError(f"cannot merge {other!r} of limit {other._limit} into one of {self._limit}")
            if not _same_bins(self._held, other._held):
                raise UsageError(
                    f"cannot merge {other!r} into one of other bins; merge first, and refine what was merged"
                )
        self.state = add_states(self.state, *(other.state for other in others))
        return self

    @property
    def state(self) -> dict[str, Any]:
        """What it holds, as values that ``+`` adds up: int64 and float64 arrays, or (if exact) lists.

        Save it, send it, sum it over processes; assigning to it restores it.
        """
        return self._held.state

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._held.state = state

    def __repr__(self) -> str:
        return f"{type(self).__name__}(exact={self.exact})"

    def _counts(self) -> Counts:
        held = self._held.counts(self._limit)
        return held[""] if held else NOTHING

    def _of(self, counts: Counts) -> Result:
        raise NotImplementedError


class AUROC(Metric[Estimate]):
    """Area under the ROC curve, as ``metrics.auroc``."""

    def _of(self, counts: Counts) -> Estimate:
        return Estimate(_counts.auroc(counts), _counts.auroc_bound(counts))


class AveragePrecision(Metric[Estimate]):
    """Average precision, as ``metrics.average_precision``."""

    def _of(self, counts: Counts) -> Estimate:
        return Estimate(_counts.average_precision(counts), _counts.average_precision_bound(counts))


class F1Max(Metric[F1Estimate]):
    """The largest F1 and its threshold, as ``metrics.f1_max``."""

    def _of(self, counts: Counts) -> F1Estimate:
        value, threshold = _counts.f1_max(counts)
        return F1Estimate(value, _counts.f1_max_bound(counts), threshold)


class AUPRO(Metric[Estimate]):
    """Area under the per-region overlap curve, as ``metrics.aupro``.

    Args:
        limit: the false positive rate to integrate to, in (0, 1].
        exact: as ``Metric``.
    """

    def __init__(self, limit: float = 0.3, *, exact: bool = True) -> None:
        check_limit(limit)
        self.limit = self._limit = limit
        super().__init__(exact=exact)

    def update(self, maps: Any, masks: Any) -> Self:
        """Add anomaly maps and their masks; see ``metrics.aupro`` for what they may be."""
        try:
            self._held.add(*paired_images(maps, masks, finite=self.exact), "", True)
        except NotFiniteError:
            paired_images(maps, masks)  # says which
            raise
        return self

    def refined(self) -> AUPRO:
        """An empty metric whose bins are fine where this one's bound comes from: feed it the same maps again.

        Raises:
            UsageError: this one is exact, or has seen no regions.
        """
        if not isinstance(self._held, Streaming):
            raise UsageError("an exact metric cannot be refined: its bound is 0")
        finer = AUPRO(self.limit, exact=False)
        finer._held = Streaming(refined_edges(self._held, self.limit))
        return finer

    def _of(self, counts: Counts) -> Estimate:
        return Estimate(_counts.aupro(counts, self.limit), _counts.aupro_bound(counts, self.limit))


def _same_bins(a: Exact | Streaming, b: Exact | Streaming) -> bool:
    edges = [held.edges for held in (a, b) if isinstance(held, Streaming) and held.edges is not None]
    return not edges or (len(edges) == 2 and np.array_equal(edges[0], edges[1]))


def add_states(*states: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a metric that saw everything that these saw."""
    total: dict[str, Any] = {}
    for state in states:
        for key, value in state.items():
            total[key] = total[key] + value if key in total else value
    return total
