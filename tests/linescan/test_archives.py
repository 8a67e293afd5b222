"""Strips from exported archives: the detector's own maps, without the detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import stadfast as sf
from stadfast.errors import BundleError, UsageError
from stadfast.linescan import Inspector, RowStreamer, TiledStreamer, native_maps
from stadfast.linescan.sources import ArraySource
from stadfast.methods import Detector, ScoringGraph, create

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stpm": ("stpm", {"layers": ["layer1", "layer2"], "image_size": (48, 64)}),
    "msfi": ("msfi", {"layers": ["layer1"], "image_size": 64, "scales": [32, 64, 96]}),
    "et-stpm": ("et-stpm", {"layers": ["layer2"], "image_size": 64}),
    "rstpm": ("rstpm", {"backbone2": "resnet18", "decoder_blocks": 1, "image_size": 64}),
    "stereotype": ("stereotype", {"arch": "wide", "widths": (2,), "image_size": 96}),
}
WIDTH = 41


def detector(case: str, **changes: Any) -> Detector:
    """Not trained, but its student is unlike its teacher."""
    method, arguments = CASES[case]
    made: Any = create(method, weights=None, device="cpu", **arguments | changes)
    graph = ScoringGraph(*made._build(pretrained=False))
    generator = torch.Generator().manual_seed(3)
    for tensor in graph.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
    made._adopt(graph)
    made.threshold_, made.pixel_threshold_, made.notes_ = 0.5, 0.25, []
    return made


def strip(height: int = 90) -> Tensor:
    return torch.rand(1, 3, height, WIDTH, generator=torch.Generator().manual_seed(0))


def stream(streamer: RowStreamer, image: Tensor) -> Tensor:
    return torch.cat([*(streamer.push(rows) for rows in image.split(37, dim=2)), streamer.finish()], dim=2)


@pytest.mark.parametrize(
    ("case", "format", "portable"),
    [("stpm", "torchscript", False), ("stpm", "export", False), ("stpm", "torchscript", True),
     ("msfi", "torchscript", False), ("et-stpm", "export", True),
     ("rstpm", "torchscript", False), ("stereotype", "torchscript", False), ("stereotype", "export", True)],
)  # fmt: skip
def test_an_archive_streams_as_its_detector(case: str, format: Any, portable: bool, tmp_path: Path) -> None:
    made = detector(case)
    path = sf.export(
        made, tmp_path / ("a.pt" if format == "torchscript" else "a.pt2"), format, portable=portable
    )
    ours, theirs = RowStreamer(made, WIDTH), RowStreamer(path, WIDTH)
    assert (theirs.unit, theirs.delay_rows) == (ours.unit, ours.delay_rows)
    expected = stream(ours, strip())
    torch.testing.assert_close(
        stream(theirs, strip()), expected, rtol=1e-5, atol=1e-5 * expected.max().item()
    )


def test_half_precision_is_the_archives_own(tmp_path: Path) -> None:
    made = detector("stpm")
    path = sf.export(made, tmp_path / "a.pt", precision="bf16")
    with pytest.raises(UsageError, match=r"precision: the archive .* was exported in bf16, got 'fp32'"):
        RowStreamer(path, WIDTH)
    expected = stream(RowStreamer(made, WIDTH), strip())
    found = stream(RowStreamer(path, WIDTH, precision="bf16"), strip())
    assert 0 < (found - expected).abs().max() < 0.1 * expected.max()


def test_what_cannot_be_streamed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = detector("stpm")
    dynamic = sf.export(made, tmp_path / "a.pt")
    fixed = sf.export(made, tmp_path / "fixed.pt", size=(60, 64))
    odd = sf.export(detector("stpm", image_size=50), tmp_path / "odd.pt")
    quantile = sf.export(detector("stpm", background_quantile=0.5), tmp_path / "quantile.pt")
    for message, call in {
        r"exported for images of 60 x 64 only; .*size='dynamic'": lambda: RowStreamer(fixed, WIDTH),
        r"fitted at 50 x 50, no multiple of its stride 8": lambda: RowStreamer(odd, WIDTH),
        r"its maps cannot be streamed: a slice along dimension 2": lambda: RowStreamer(quantile, WIDTH),
        r"downscale: expected 1 for the archive": lambda: RowStreamer(dynamic, WIDTH, downscale=2),
        r"RowStreamer alone streams archives": lambda: TiledStreamer(dynamic, WIDTH),
        r"got the archive .*a.pt, whose network runs at one size": lambda: native_maps(dynamic, strip()),
        r"overlap: tiles need a detector": lambda: Inspector(
            dynamic, ArraySource(np.zeros((9, WIDTH), np.uint8)), overlap=8
        ),
    }.items():
        with pytest.raises(UsageError, match=message):
            call()
    with monkeypatch.context() as patched:
        patched.setattr("stadfast.linescan.model.open_recorded", lambda path: (None, {}, "onnx"))
        with pytest.raises(UsageError, match=r"TorchScript and torch.export archives, .* is onnx"):
            RowStreamer(tmp_path / "a.onnx", WIDTH)
    (tmp_path / "torn.pt").write_bytes(dynamic.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"torn\.pt is damaged"):
        RowStreamer(tmp_path / "torn.pt", WIDTH)


def test_an_inspector_has_the_archives_threshold(tmp_path: Path) -> None:
    path = sf.export(detector("stpm"), tmp_path / "a.pt")
    rows = (strip()[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    inspector = Inspector(path, ArraySource(rows))
    assert inspector.threshold == 0.25
    assert inspector.run().lines == 90
