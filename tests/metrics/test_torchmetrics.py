"""The torchmetrics face, where torchmetrics is installed."""

from __future__ import annotations

import pickle

import pytest
import torch

from stadfast import metrics

from .cases import draw

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


def test_values_bounds_and_synchronised_states() -> None:
    from stadfast.metrics import torchmetrics as tm

    maps, masks = (torch.from_numpy(array) for array in draw(0, "random"))
    for cls, ours in (
        (tm.AUROC, metrics.AUROC(exact=False)),
        (tm.AveragePrecision, metrics.AveragePrecision(exact=False)),
        (tm.F1Max, metrics.F1Max(exact=False)),
        (tm.AUPRO, metrics.AUPRO(exact=False)),
    ):
        metric = pickle.loads(pickle.dumps(cls()))
        metric.update(maps[:2], masks[:2])
        metric(maps[2:], masks[2:])
        wanted = ours.update(maps, masks).compute()
        assert metric.compute().item() == pytest.approx(wanted.value, abs=1e-14)
        assert metric.bound() == pytest.approx(wanted.bound, abs=1e-14)
        assert metric.metric_state["total"].sum() == maps.numel()
        metric.reset()
        assert metric.metric_state["total"].sum() == 0


def test_scores_are_taken_raw() -> None:
    """torchmetrics squashes a batch whose scores leave [0, 1], which mixes up batches; ours never do."""
    from stadfast.metrics.torchmetrics import AUROC

    scores, labels = torch.tensor([0.1, 0.9, 1.5, 3.0]), torch.tensor([0, 0, 1, 1])
    metric = AUROC()
    for i in range(0, 4, 2):
        metric.update(scores[i : i + 2], labels[i : i + 2])
    assert metric.compute() == 1.0
