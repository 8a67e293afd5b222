"""Scores of other people's student ensembles: Uninformed Students (Bergmann, Fauser, Sattlegger, Steger: CVPR 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import UsageError
from .moments import moments


class PeerEnsemble(nn.Module):
    """Anybody's teacher and students -> anomaly maps, by regression error and predictive variance.

    ``map = (e - mean e) / std e + (v - mean v) / std v`` (eq. 9) with the regression error e (eq. 7) and the
    predictive variance v (eq. 8) of :func:`stadfast.ops.ensemble_scores`; means and deviations over good images.

    Args:
        teacher: images (B, ...) -> descriptors (B, C, h, w).
        students: at least one network of the same shapes.
        standardise: whether the students have learnt the teacher's descriptors standardised component by component
            over the training images (eq. 4); :meth:`fit` then takes its mean and deviation.
        size: (H, W) to which maps are upsampled; None: left as they are.

    Example:
        >>> ensemble = PeerEnsemble(teacher, [student1, student2, student3]).fit(list_of_good_batches)
        >>> maps = ensemble(images)  # (B, 1, h, w), higher is more anomalous
    """

    teacher_mean: Tensor
    teacher_std: Tensor
    score_mean: Tensor
    score_std: Tensor

    def __init__(
        self, teacher: nn.Module, students: Sequence[nn.Module], *, standardise: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not students:
            raise UsageError("students: expected at least one, got none")
        self.teacher, self.students = teacher, nn.ModuleList(students)
        self.standardise, self.size = standardise, size
        for name, value in (("teacher_mean", 0.0), ("teacher_std", 1.0)):
            self.register_buffer(name, torch.full((1, 1, 1, 1), value))
        self.register_buffer("score_mean", torch.zeros(2))
        self.register_buffer("score_std", torch.ones(2))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> PeerEnsemble:
        """Take means and deviations from good images.

        Args:
            batches: the teacher's input; a list or a loader, since it is read once or (to standardise) twice.

        Raises:
            DataError: no batch.
        """
        if self.standardise:
            mean, std = moments((self.teacher(x) for x in batches), (0, 2, 3))
            self.teacher_mean, self.teacher_std = (v.float().view(1, -1, 1, 1) for v in (mean, std))
        mean, std = moments((torch.stack(self.scores(x)) for x in batches), (1, 2, 3))
        self.score_mean.copy_(mean)
        self.score_std.copy_(std)
        return self

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Regression error and predictive variance, (B, h, w) each."""
        teacher = (self.teacher(images) - self.teacher_mean) / self.teacher_std
        return ops.ensemble_scores(teacher, [student(images) for student in self.students])

    def forward(self, images: Tensor) -> Tensor:
        """(B, ...) -> maps (B, 1, h, w), or (B, 1, *size)."""
        found = [
            (score - mean) / std
            for score, mean, std in zip(self.scores(images), self.score_mean, self.score_std, strict=True)
        ]
        # One student has no variance, and its score is the error alone.
        total = (found[0] + found[1] if len(self.students) > 1 else found[0])[:, None]
        return total if self.size is None else ops.upsample_combine([total], self.size)
