"""Batch norm whose batch lies in several processes, on CPUs and GPUs (torch's own SyncBatchNorm is for GPUs only)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import StadfastError

_OVER = (0, 2, 3)  # images and positions


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """In training mode, mean and variance are those of all processes' images; otherwise ``nn.BatchNorm2d``.

    Attributes:
        copies: how many processes have the same images now: these count once in the running variance.
    """

    copies: Callable[[], int]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            values = count / self.copies()
            if values <= 1:
                raise StadfastError(
                    "batch norm needs more than one value a channel: larger images, or batches"
                )
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (values / (values - 1)), momentum)
        return y


class _Normalise(torch.autograd.Function):
    """``weight (x - mean) / sqrt(variance + eps) + bias`` with the statistics of all processes.

    Gradients of weight and bias are those of this process's images: DistributedDataParallel averages them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:  # type: ignore[override]
        wide = _wide(x)
        variance, mean = torch.var_mean(wide, _OVER, correction=0)
        count = torch.full_like(mean[:1], x.numel() / x.shape[1])
        mine = torch.cat([mean, variance, count]).double()
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        channels = len(mean)
        means, variances, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)
        total = counts.sum()
        together = (counts * means).sum(0) / total
        spread = (counts * (variances + (means - together).square())).sum(0) / total
        mean, variance = together.to(wide), spread.to(wide)
        scale = (spread + eps).rsqrt().to(wide)
        ctx.save_for_backward(x, mean, scale, weight, total)
        y = torch.addcmul(_channels(bias), wide - _channels(mean), _channels(scale * weight))
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mean, scale, weight, total = ctx.saved_tensors
        outer = _wide(gradients[0])
        unit = (_wide(x) - _channels(mean)) * _channels(scale)
        by_bias, by_weight = outer.sum(_OVER), (outer * unit).sum(_OVER)
        sums = torch.stack([by_bias, by_weight]).double()
        dist.all_reduce(sums)
        mean_outer, mean_unit = (sums / total).to(outer)
        centred = outer - _channels(mean_outer) - unit * _channels(mean_unit)
        return (centred * _channels(scale * weight)).to(x.dtype), by_weight, by_bias, None


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
