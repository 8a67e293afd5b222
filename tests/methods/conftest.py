"""A detector that fits in a second: a small input, two levels, random teacher weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stadfast as sf
from stadfast.backbones import create_backbone

SIZE = (48, 64)


@pytest.fixture(scope="session")
def teacher_weights() -> dict[str, Tensor]:
    return create_backbone("resnet18", ["layer1", "layer2"], seed=7).state_dict()


@pytest.fixture(scope="session")
def images() -> Tensor:
    """(12, 3, 60, 80) uint8: stripes of one period, shifted at random, with noise."""
    generator = torch.Generator().manual_seed(1)
    shift = 8 * torch.rand(12, 3, 1, 1, generator=generator)
    stripes = 0.5 + 0.3 * torch.sin((torch.arange(80.0) + shift).expand(12, 3, 60, 80) * (2 * torch.pi / 8))
    noise = 0.02 * torch.randn(12, 3, 60, 80, generator=generator)
    return ((stripes + noise).clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture
def arguments(teacher_weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "weights": teacher_weights, "layers": ["layer1", "layer2"], "image_size": SIZE, "epochs": 3, "batch_size": 4,
        "precision": "fp32", "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="session")
def fitted(teacher_weights: dict[str, Tensor], images: Tensor) -> sf.STPM:
    detector = sf.STPM(
        weights=teacher_weights, layers=["layer1", "layer2"], image_size=SIZE, epochs=60, batch_size=4,
        precision="fp32", device="cpu",
    )  # fmt: skip
    return detector.fit(images, show_progress=False)
