"""Every method in every format says what the detector says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import stadfast as sf
from stadfast.cli import app
from stadfast.data import read_image
from stadfast.runtime import Scorer, compare, export, read_metadata
from stadfast.runtime.archive import SUFFIXES, format_of, load_exported, load_torchscript
from stadfast.runtime.lowering import lower_exported

FORMATS = ("torchscript", "export")


def outputs(path: Path, images: Tensor) -> tuple[Tensor, ...]:
    """The archive's own four tensors, without the scorer."""
    module = load_torchscript(path) if format_of(path) == "torchscript" else load_exported(path)
    with torch.no_grad():
        return module(images.float() / 255)


def assert_agree(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.is_floating_point():
            assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[sf.Detector, str], tuple[Path, Scorer]]:
    """Each detector's archive and its scorer, once per format."""
    made: dict[tuple[str, str], tuple[Path, Scorer]] = {}

    def get(detector: sf.Detector, format: str) -> tuple[Path, Scorer]:
        key = (detector.method, format)
        if key not in made:
            file = tmp_path_factory.mktemp(detector.method) / f"model{SUFFIXES[format]}"
            path = export(detector, file, format)
            made[key] = path, Scorer(path, device="cpu", precision="fp32")
        return made[key]

    return get


@pytest.fixture(scope="module")
def photographs(shared: Path) -> Tensor:
    """(20, 3, 256, 256) uint8: bottles, good and defective, larger than the detectors' 64 x 64."""
    files = sorted((shared / "data/mvtec_bottle/test").rglob("*.png"))[::4]
    return torch.stack([read_image(path) for path in files[:20]])


@pytest.mark.parametrize("format", FORMATS)
def test_the_archive_is_the_detector(
    detector: sf.Detector, images: Tensor, archives: Callable, format: str
) -> None:
    path, scorer = archives(detector, format)
    wanted = detector.predict(images)
    assert 0 < int(wanted.pred_label.sum()) < len(images)
    assert_agree(outputs(path, images), wanted, 1e-4)
    same_size = images[:, :, :64, :64].contiguous()
    assert_agree(outputs(path, same_size[:1]), detector.predict(same_size[:1]), 1e-4)
    found = compare(detector, scorer, images)
    assert found.images == 5
    assert found.relative_map <= 1e-4
    assert found.relative_score <= 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_the_archive_is_the_detector_on_photographs(
    detector: sf.Detector, photographs: Tensor, archives: Callable, format: str
) -> None:
    found = compare(detector, archives(detector, format)[1], photographs)
    assert found.images == 20
    assert found.relative_map <= 1e-4
    assert found.relative_score <= 1e-4


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "vgg16"])
def test_other_backbones(
    detectors: Callable[..., sf.Detector], backbone: str, format: str, images: Tensor, tmp_path: Path
) -> None:
    detector = detectors("stpm", backbone=backbone)
    scorer = Scorer(detector, device="cpu", precision="fp32")
    assert scorer.path == "fused"
    assert_agree(scorer(images), detector.predict(images), 1e-4)
    path = export(detector, tmp_path / f"model{SUFFIXES[format]}", format)
    assert_agree(outputs(path, images), detector.predict(images), 1e-4)
    assert_agree(Scorer(path, device="cpu", precision="fp32")(images), detector.predict(images), 1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_portable_and_fixed_size(stpm: sf.Detector, images: Tensor, tmp_path: Path, format: str) -> None:
    path = export(
        stpm, tmp_path / f"model{SUFFIXES[format]}", format, portable=True, size=tuple(images.shape[2:])
    )
    assert_agree(outputs(path, images), stpm.predict(images), 1e-4)
    assert read_metadata(path)["portable"] is True
    with pytest.raises(sf.StadfastError, match="80 x 72"):
        Scorer(path, device="cpu", warm_up=False)(images[:, :, :70])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_in_the_archive(
    stpm: sf.Detector, images: Tensor, tmp_path: Path, precision: str
) -> None:
    whole = export(stpm, tmp_path / "whole.pt").stat().st_size
    path = export(stpm, tmp_path / "half.pt", precision=precision)
    assert path.stat().st_size < 0.55 * whole
    found, wanted = outputs(path, images), stpm.predict(images)
    assert found[2].dtype == torch.float32
    assert_agree((found[0], found[2]), (wanted.pred_score, wanted.anomaly_map), 0.05)


def test_a_portable_archive_runs_without_stadfast(stpm: sf.Detector, images: Tensor, tmp_path: Path) -> None:
    path = export(stpm, tmp_path / "model.pt", portable=True)
    torch.save(images.float() / 255, tmp_path / "images.pt")
    program = """
import sys, torch
images = torch.load(sys.argv[2])
scores = torch.jit.load(sys.argv[1])(images)[0]
assert not any(name.startswith("stadfast") for name in sys.modules)
print(scores.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(path), str(tmp_path / "images.pt")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    torch.testing.assert_close(torch.tensor(eval(done.stdout)), stpm.score(images), rtol=1e-4, atol=0)


def test_metadata(detector: sf.Detector, tmp_path: Path) -> None:
    path = export(detector, tmp_path / "model.pt")
    found = read_metadata(path)
    assert found["method"] == detector.method
    assert found["threshold"] == detector.threshold_
    assert found["pixel_threshold"] == detector.pixel_threshold_
    assert found["network_size"] == [64, 64]
    assert found["image_size"] is None
    assert found["notes"] == ["a note"]
    assert found["image_score"] == detector.image_score


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_other_runtimes(stpm: sf.Detector, images: Tensor, tmp_path: Path, format: str) -> None:
    pytest.importorskip("openvino")
    if format == "onnx":
        pytest.importorskip("onnxscript")
    size: int | str = "dynamic"
    if format == "onnx":
        with pytest.raises(sf.errors.UsageError, match="the network's 64 x 64 only"):
            export(stpm, tmp_path / "model.onnx", format)
        images, size = images[:, :, :64, :64].contiguous(), 64
    path = export(stpm, tmp_path / f"model{SUFFIXES[format]}", format, size=size)
    found = compare(stpm, Scorer(path, precision="fp32"), images)
    assert found.relative_map <= 1e-4
    half = export(stpm, tmp_path / f"half{SUFFIXES[format]}", format, precision="fp16", size=size)
    assert compare(stpm, Scorer(half, precision="fp32"), images).relative_map <= 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format: expected one of torchscript"),
        ({"precision": "int8"}, "precision: expected one of fp32"),
        ({"format": "openvino", "precision": "bf16"}, "for openvino, got 'bf16'"),
        ({"aot": True}, "aot: goes with format 'export' only, got 'torchscript'"),
        ({"size": "big"}, "size: expected 'dynamic'"),
        ({"size": (8, 8)}, "size: expected 'dynamic'"),
        (
            {"format": "onnx"},
            r"path: expected a name that ends with \.onnx for format 'onnx', got .*model\.pt",
        ),
        ({"path": "model.xml"}, r"path: expected a name such as model\.pt for format 'torchscript'"),
        ({"path": "model.safetensors"}, r"path: expected a name such as model\.pt"),
    ],
)
def test_wrong_arguments(stpm: sf.Detector, tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(sf.errors.UsageError, match=message):
        export(stpm, tmp_path / arguments.pop("path", "model.pt"), **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_an_error(stpm: sf.Detector, tmp_path: Path, format: str) -> None:
    """In a process of its own: torch's writer of archives ends it when the disk is full."""
    stpm.metadata_ = {"data": {}, "training": {}}
    stpm.save(tmp_path / "model.safetensors")
    program = (
        "import resource, signal, sys, stadfast as sf\n"
        "detector = sf.load('model.safetensors', device='cpu')\n"
        "sf.ops.backend()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        f"    sf.export(detector, 'archive.pt', {format!r})\n"
        "except sf.StadfastError as error:\n"
        "    sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "cannot write archive.pt" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_verify_fails_where_the_archive_disagrees(
    stpm: sf.Detector, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stpm.metadata_ = {"data": {}, "training": {}}
    stpm.save(tmp_path / "model.safetensors")
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    arguments = ["export", "model.safetensors", "-o", "archive.pt", "--verify", "image.png"]
    monkeypatch.chdir(tmp_path)
    agreed = CliRunner().invoke(app, arguments)
    assert agreed.exit_code == 0, agreed.output
    monkeypatch.setattr(
        sf.runtime.scorer.Scorer,
        "__call__",
        lambda self, batch: sf.load("model.safetensors").predict(255 - batch),
    )
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "archive.pt does not agree with the detector" in refused.stderr


def test_an_exported_program_goes_to_any_device(
    detectors: Callable[..., sf.Detector], tmp_path: Path
) -> None:
    """mkd's says where its tensors were when it was recorded."""
    module = load_exported(export(detectors("mkd"), tmp_path / "model.pt2", "export"))
    graph = lower_exported(module, torch.device("cpu"))
    assert not [node for node in graph.graph.nodes if "assert" in str(node.target)]
    assert not [node for node in graph.graph.nodes if node.kwargs.get("device") is not None]


def test_an_unfitted_detector(tmp_path: Path) -> None:
    with pytest.raises(sf.StadfastError, match="not fitted"):
        export(sf.STPM(), tmp_path / "model.pt")


def test_a_graph_for_any_size_resizes_to_each_of_its_input_sizes(
    two_sizes: sf.Detector, images: Tensor, tmp_path: Path
) -> None:
    path = export(two_sizes, tmp_path / "model.pt")
    assert_agree(outputs(path, images), two_sizes.predict(images), 1e-4)


@pytest.mark.slow
def test_machine_code(stpm: sf.Detector, images: Tensor, tmp_path: Path) -> None:
    """Compiled once, for one size, as that is what takes the least time."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    path = export(stpm, tmp_path / "model.pt2", "export", size=tuple(images.shape[2:]), aot=True)
    assert read_metadata(path)["aot"] is True
    compiled = torch._inductor.aoti_load_package(str(path))
    assert_agree(tuple(compiled(images.float() / 255)), stpm.predict(images), 1e-4)
    with pytest.raises(sf.errors.BundleError, match="machine code"):
        Scorer(path)


def test_machine_code_without_a_compiler(
    stpm: sf.Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(sf.StadfastError, match=r"cannot compile the graph here: no compiler$"):
        export(stpm, tmp_path / "model.pt2", "export", aot=True)
    assert not (tmp_path / "model.pt2").exists()
