"""anomalib's models, accelerated, give what they gave; skipped where anomalib is not installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stadfast.errors import DataError, UsageError
from stadfast.integrations.anomalib import accelerate

SIZE = (128, 128)


def randomise(model: nn.Module) -> nn.Module:
    """Weights that make every feature move, and running statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += (
            0.3 * parameter.data.std(correction=0) * torch.randn(parameter.shape, generator=generator)
        )
    return model.eval()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """anomalib without the download of ImageNet's weights."""
    pytest.importorskip("anomalib")
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False}))


def stfpm() -> nn.Module:
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    return STFPMModel(layers=["layer1", "layer2", "layer3"], backbone="resnet18")


def reverse_distillation(mode: str) -> nn.Module:
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    return ReverseDistillationModel(
        backbone="resnet18", input_size=SIZE, layers=["layer1", "layer2", "layer3"],
        anomaly_map_mode=AnomalyMapGenerationMode(mode), pre_trained=False,
    )  # fmt: skip


def efficient_ad() -> nn.Module:
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    return EfficientAdModel(teacher_out_channels=384)


MODELS = {
    "Stfpm": stfpm,
    "ReverseDistillation, product": lambda: reverse_distillation("multiply"),
    "ReverseDistillation, sum": lambda: reverse_distillation("add"),
    "EfficientAd": efficient_ad,
}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.1)])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_same_batch(offline: None, name: str, precision: str, tolerance: float) -> None:
    size = (256, 256) if name == "EfficientAd" else SIZE
    model = randomise(MODELS[name]())
    fast = accelerate(model, image_size=size, precision=precision)
    assert fast.path == "fused"
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(5))
    wanted, found = model(images), fast(images)
    assert type(found) is type(wanted)
    assert found.pred_label is None
    for field in ("pred_score", "anomaly_map"):
        a, b = getattr(found, field), getattr(wanted, field)
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@torch.no_grad()
def test_the_whole_model_with_its_pre_and_post_processing(offline: None) -> None:
    from anomalib.models import Stfpm

    model = Stfpm(evaluator=False, visualizer=False)
    model.model.load_state_dict(randomise(stfpm()).state_dict())
    model.eval()
    fast = accelerate(model, precision="fp32")
    images = torch.rand(2, 3, 256, 256)
    wanted, found = model(images), fast(images)
    assert found._fields == wanted._fields
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if b is not None and b.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_other_images_are_refused(offline: None) -> None:
    fast = accelerate(randomise(stfpm()), image_size=(64, 96), precision="fp32")
    for images in (torch.rand(1, 3, 96, 64), torch.rand(1, 1, 64, 96), torch.rand(3, 64, 96)):
        with pytest.raises(DataError, match=r"images: expected \(B, 3, 64, 96\), got"):
            fast(images)
    with pytest.raises(DataError, match=r"expected floating point, got torch\.uint8"):
        fast(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert fast(torch.rand(0, 3, 64, 96)).anomaly_map.shape[0] == 0
    with pytest.raises(UsageError, match="precision: expected auto, fp32 or bf16, got 'x'"):
        accelerate(randomise(stfpm()), precision="x")
    with pytest.raises(UsageError, match="image_size: expected"):
        accelerate(randomise(stfpm()), image_size=256)  # type: ignore[arg-type]


def test_other_models_are_refused() -> None:
    with pytest.raises(
        UsageError, match="expected anomalib's Stfpm, ReverseDistillation or EfficientAd, got Linear"
    ):
        accelerate(nn.Linear(2, 2))
