"""Detectors of every method with random weights: what is tested here is that two ways through them agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import stadfast as sf
from stadfast.methods import METHODS
from stadfast.methods.graph import ScoringGraph

SIZE = 64
SMALL: dict[str, dict[str, object]] = {
    # The default's second teacher makes a detector of 490 MB; this one, too, is another network than the first.
    "rstpm": {"backbone2": "resnet34", "decoder_blocks": 1},
    "stereotype": {"arch": "wide"},  # the default's patches have 65 pixels
}


def build(method: str, **arguments: object) -> sf.Detector:
    """A detector as if fitted; its thresholds lie between the scores of the images below."""
    torch.manual_seed(0)
    chosen = SMALL.get(method, {}) | arguments
    detector = sf.methods.create(method, image_size=SIZE, device="cpu", **chosen)
    detector._check_arguments()
    graph = ScoringGraph(*detector._build(pretrained=False))
    generator = torch.Generator().manual_seed(1)
    for parameter in graph.parameters():  # a student that starts as its teacher's copy finds nothing
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.3 * parameter.data.std(correction=0) * noise
    detector._adopt(graph)
    detector.notes_, detector.calibration_, detector.metadata_ = ["a note"], {}, {}
    detector.history_, detector.broken_ = [], []
    detector._set_thresholds(1e9, 1e9)
    found = detector.predict(make_images())
    detector._set_thresholds(found.pred_score.median().item(), found.anomaly_map.median().item())
    return detector


def make_images() -> Tensor:
    """(5, 3, 80, 72) uint8, smooth and noisy."""
    generator = torch.Generator().manual_seed(3)
    rough = torch.rand(5, 3, 10, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, (80, 72), mode="bicubic")
    noise = 0.1 * torch.rand(5, 3, 80, 72, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return make_images()


@pytest.fixture(scope="session")
def detectors() -> Callable[..., sf.Detector]:
    """Builds each detector once."""
    built: dict[tuple[object, ...], sf.Detector] = {}

    def get(method: str, **arguments: object) -> sf.Detector:
        key = (method, *arguments.items())
        if key not in built:
            built[key] = build(method, **arguments)
        return built[key]

    return get


@pytest.fixture(params=sorted(METHODS))
def detector(request: pytest.FixtureRequest, detectors: Callable[..., sf.Detector]) -> sf.Detector:
    return detectors(request.param)


@pytest.fixture
def stpm(detectors: Callable[..., sf.Detector]) -> sf.Detector:
    return detectors("stpm")


@pytest.fixture
def two_sizes() -> sf.Detector:
    """Its input sizes are those of the images that graphs are recorded with, were they not avoided."""
    return build("msfi", scales=[SIZE, SIZE + 29])
