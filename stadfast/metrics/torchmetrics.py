"""The metrics as ``torchmetrics.Metric``s, for those who log and synchronise through torchmetrics.

Import this module where torchmetrics is installed; nothing else of stadfast needs it. The states are the
streaming counts: tensors of constant size that torchmetrics sums over processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torchmetrics
from torch import Tensor

from . import classes
from .streaming import Streaming


class _Streaming(torchmetrics.Metric):
    """Counts by 16-bit keys; ``compute`` gives the value, ``bound`` how far from the exact one it can be."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, metric: classes.Metric[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._metric = metric
        for name, start in Streaming().empty_table(half=True).items():
            self.add_state(name, torch.from_numpy(start), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add scores (or maps) and labels (or masks), as ``stadfast.metrics``' metric of that name."""
        self._metric.reset().update(preds, target)
        for key, value in self._metric.state.items():
            total = getattr(self, key.strip("/"))
            total += torch.from_numpy(value).to(total.device)

    def compute(self) -> Tensor:
        """() float64."""
        return torch.tensor(self._estimate().value, dtype=torch.float64)

    def bound(self) -> float:
        """How far ``compute`` can be from the exact value, of what this process has seen."""
        return self._estimate().bound

    def _estimate(self) -> Any:
        self._metric.state = {f"/{name}": getattr(self, name).cpu().numpy() for name in self._defaults}
        return self._metric.compute()


class AUROC(_Streaming):
    """``stadfast.metrics.AUROC(exact=False)``; raw scores: nothing is squashed, whatever their range."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(classes.AUROC(exact=False), **kwargs)


class AveragePrecision(_Streaming):
    """``stadfast.metrics.AveragePrecision(exact=False)``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(classes.AveragePrecision(exact=False), **kwargs)


class F1Max(_Streaming):
    """``stadfast.metrics.F1Max(exact=False)``; ``threshold()`` is the highest that gives the value."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(classes.F1Max(exact=False), **kwargs)

    def threshold(self) -> float:
        """``score > threshold`` gives the value."""
        return self._estimate().threshold


class AUPRO(_Streaming):
    """``stadfast.metrics.AUPRO(limit, exact=False)``: maps (N,1,H,W) or (N,H,W), masks likewise."""

    def __init__(self, limit: float = 0.3, **kwargs: Any) -> None:
        super().__init__(classes.AUPRO(limit, exact=False), **kwargs)
