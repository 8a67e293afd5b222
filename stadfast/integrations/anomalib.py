"""anomalib's trained models on stadfast's kernels: the same call, the same ``InferenceBatch``, less time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import DataError, StadfastError, UsageError
from ..runtime import optimise

_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}  # of the largest value, on noise


class Accelerated:
    """Calls like the model that it was made from; see :func:`accelerate`.

    Attributes:
        precision: of the networks.
        path: how they run, as in :class:`stadfast.Scorer`.
        fields: those of ``InferenceBatch`` that the model fills.
        image_size: (H, W) of the images.
    """

    def __init__(
        self, run: Callable[[Tensor], Any], path: str, precision: str, fields: list[str],
        image_size: tuple[int, int],
    ) -> None:  # fmt: skip
        self._run, self.path, self.precision, self.fields = run, path, precision, fields
        self.image_size = image_size

    def __call__(self, images: Tensor) -> Any:
        """(B, 3, H, W) float as the model takes it -> ``InferenceBatch``.

        Raises:
            DataError: other images, such as of a size that the model was not accelerated for.
        """
        from anomalib.data import InferenceBatch

        size = (3, *self.image_size)  # a recorded graph would take others, and lose their resizing
        if not isinstance(images, Tensor) or images.dim() != 4 or tuple(images.shape[1:]) != size:
            came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise DataError(
                f"images: expected (B, {', '.join(map(str, size))}), got {came}; accelerate(image_size=...) says "
                "which size will come"
            )
        if not images.is_floating_point():
            raise DataError(f"images: expected floating point, got {images.dtype}")
        with torch.inference_mode():
            outputs = self._run(images)
        return InferenceBatch(**dict(zip(self.fields, outputs, strict=True)))


def accelerate(
    model: nn.Module, *, image_size: tuple[int, int] = (256, 256), precision: str = "auto"
) -> Accelerated:
    """Rewrite a trained Stfpm, ReverseDistillation or EfficientAd for this CPU.

    Takes the torch model (``STFPMModel``: normalised images in, score and map out) or the whole ``Stfpm`` (images in
    [0, 1] in, preprocessing and thresholds inside). Stfpm's and ReverseDistillation's distances come from stadfast's
    kernels; the convolutions of all three run fused. The model itself is not changed.

    Args:
        model: the trained model.
        image_size: (H, W) of the images that will come; no others are taken.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.

    Raises:
        UsageError: another model, one with a tiler, or wrong arguments. StadfastError: the rewritten model gives other
        results than the model, and is not returned.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision: expected auto, fp32 or bf16, got {precision!r}")
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        raise UsageError(f"image_size: expected (H, W), got {image_size!r}")
    plain = _checked(model).cpu()
    example = torch.rand(2, 3, *image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = {name: value for name, value in plain(example)._asdict().items() if value is not None}
    core = getattr(plain, "model", plain)
    if hasattr(core, "anomaly_map_generator"):
        core.anomaly_map_generator = _GENERATORS[type(core).__name__](core.anomaly_map_generator)
    fields = list(wanted)
    run, path, chosen = optimise(_Fields(plain, fields), example, precision)
    found = run(example)
    for name, value in zip(fields, found, strict=True):
        if value.is_floating_point():
            difference = float((value - wanted[name]).abs().max() / wanted[name].abs().max().clamp_min(1e-12))
            if not difference <= _TOLERANCE[chosen]:
                raise StadfastError(
                    f"{type(model).__name__} cannot be accelerated: its {name} would differ by {difference:.2g} of the "
                    f"largest value in {chosen}"
                )
    return Accelerated(run, path, chosen, fields, (image_size[0], image_size[1]))


def torch_inferencer(
    network: Any, backbone: str, size: tuple[int, int], device: torch.device | str = "cpu"
) -> Any:
    """anomalib's own ``TorchInferencer`` over its ``Stfpm`` with the weights of an STPM detector, to compare with.

    Args:
        network: with a ``teacher`` and a ``student`` (:class:`stadfast.backbones.FeaturePyramid`).
        backbone: the name that timm knows it by.
        size: (H, W) that anomalib's pre-processor resizes to.
        device: where it runs.
    """
    import timm
    from anomalib.deploy import TorchInferencer
    from anomalib.models import Stfpm

    create = timm.create_model
    timm.create_model = lambda *a, **k: create(
        *a, **{**k, "pretrained": False}
    )  # the weights follow; no download
    try:
        model = Stfpm(
            backbone=backbone, layers=network.teacher.layers, evaluator=False, visualizer=False,
            pre_processor=Stfpm.configure_pre_processor(size),
        )  # fmt: skip
    finally:
        timm.create_model = create
    for theirs, ours in (
        (model.model.teacher_model, network.teacher),
        (model.model.student_model, network.student),
    ):
        theirs.feature_extractor.load_state_dict(ours.state_dict())
    inferencer = object.__new__(TorchInferencer)  # its __init__ wants a pickle
    inferencer.device = torch.device(device)
    inferencer.model = model.eval().to(inferencer.device)
    return inferencer


class _Whole(nn.Module):
    """What an ``AnomalibModule`` runs, without Lightning around it."""

    def __init__(
        self, pre_processor: nn.Module | None, model: nn.Module, post_processor: nn.Module | None
    ) -> None:
        super().__init__()
        self.before, self.model, self.after = (
            pre_processor or nn.Identity(),
            model,
            post_processor or nn.Identity(),
        )

    def forward(self, images: Tensor) -> Any:
        return self.after(self.model(self.before(images)))


class _Fields(nn.Module):
    """An anomalib model as a function to a tuple, which can be recorded."""

    def __init__(self, model: nn.Module, fields: list[str]) -> None:
        super().__init__()
        self.model, self.fields = model, fields

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.model(images)
        return tuple(getattr(found, name) for name in self.fields)


class _StfpmMap(nn.Module):
    """``prod_l 1/2 ||t^ - s^||^2``, each level upsampled to the image, as anomalib's ``AnomalyMapGenerator``."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()

    def forward(
        self, teacher_features: dict[str, Tensor], student_features: dict[str, Tensor], image_size: Any
    ) -> Tensor:
        teacher, student = list(teacher_features.values()), list(student_features.values())
        size = (int(image_size[0]), int(image_size[1]))
        return ops.anomaly_map(student, teacher, size, weights=[0.5] * len(student))


class _ReverseDistillationMap(nn.Module):
    """``1 - cos`` as half of the squared distance of the unit vectors; then as anomalib's own generator."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        from anomalib.models.components import GaussianBlur2d

        self.size = tuple(generator.image_size)
        self.product = generator.mode == "multiply"
        kernel, sigma = generator.kernel_size, generator.sigma
        self.blur = GaussianBlur2d(kernel_size=(kernel, kernel), sigma=(sigma, sigma))

    def forward(self, student_features: list[Tensor], teacher_features: list[Tensor]) -> Tensor:
        maps = [
            F.interpolate(0.5 * distance, size=self.size, mode="bilinear", align_corners=True)
            for distance in ops.pyramid_distance(student_features, teacher_features)
        ]
        combined = maps[0]
        for level in maps[1:]:
            combined = combined * level if self.product else combined + level
        return self.blur(combined)


_GENERATORS: dict[str, Callable[[Any], nn.Module]] = {
    "STFPMModel": _StfpmMap,
    "ReverseDistillationModel": _ReverseDistillationMap,
}
_MODELS = (*_GENERATORS, "EfficientAdModel")


def _checked(model: nn.Module) -> nn.Module:
    """A copy of a model that can be accelerated."""
    core = getattr(model, "model", model)
    if type(core).__name__ not in _MODELS or not type(core).__module__.startswith("anomalib."):
        raise UsageError(
            f"model: expected anomalib's Stfpm, ReverseDistillation or EfficientAd, got {type(model).__name__}"
        )
    if getattr(core, "tiler", None) is not None:
        raise UsageError(
            "model: has a tiler, which cannot be recorded; score the tiles through a model without it"
        )
    if core is model:
        return copy.deepcopy(model).eval()
    return _Whole(
        *(copy.deepcopy(getattr(model, name)) for name in ("pre_processor", "model", "post_processor"))
    ).eval()
