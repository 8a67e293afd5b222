"""The README's examples run, on small images."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import stadfast as sf
from stadfast.backbones import create_backbone

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")


def test_detector_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "bottle/train/good", 8)
    write_images(tmp_path / "bottle/test/broken_large", 3)
    write_images(tmp_path / "more/good/images", 100)
    save_file(create_backbone("resnet18", seed=0).state_dict(), "teacher.safetensors")
    wanted = 'sf.STPM(backbone="resnet18")'
    assert wanted in BLOCKS[0]
    small = 'sf.STPM(backbone="resnet18", weights="teacher.safetensors", image_size=32, epochs=1)'
    names: dict = {}
    exec(BLOCKS[0].replace(wanted, small), names)
    out = names["out"]
    assert out.pred_score.shape == out.pred_label.shape == (3,)
    assert out.anomaly_map.shape == out.pred_mask.shape == (3, 1, 32, 32)
    assert torch.equal(names["detector"].score("bottle/test/broken_large"), out.pred_score)
    assert names["detector"].calibration_["target_fpr"] == 0.01


def test_folders_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("ok", 5), ("nok", 2), ("masks", 2)):
        write_images(tmp_path / "part" / name, count)
    (example,) = re.findall(r"(sf\.Folder\(.*?\n).{41}(.*?\))", README)
    data = eval("".join(example))
    assert (len(data.train), len(data.test), data.test[-1].mask) == (4, 3, Path("part/masks/001.png"))


def test_ops_example() -> None:
    student = [torch.randn(2, c, n, n) for c, n in ((8, 16), (16, 8))]
    teacher = [torch.randn_like(s) for s in student]
    maps = sf.ops.pyramid_distance(student, teacher)
    names = {
        "sf": sf, "F": F, "math": math, "student": student, "teacher": teacher, "maps": maps, "size": (256, 256),
        "anomaly_maps": torch.rand(2, 8, 8), "masks": torch.rand(2, 8, 8) > 0.8,
    }  # fmt: skip
    exec(BLOCKS[1], names)
    first = BLOCKS[1].splitlines()[0].split("#")[0]
    equivalent = re.findall(r"^# {3}(.*)$", BLOCKS[1], flags=re.MULTILINE)
    assert len(equivalent) == 2
    exec(equivalent[0], names)
    torch.testing.assert_close(eval(first, names), eval(equivalent[1], names))


def test_deployment_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = create_backbone("resnet18", seed=0).state_dict()
    images = np.random.default_rng(0).integers(0, 256, (8, 40, 48, 3), dtype=np.uint8)
    detector = sf.STPM(weights=weights, image_size=32, epochs=1, device="cpu").fit(
        images, show_progress=False
    )
    write_images(tmp_path / "line/today", 3)
    names: dict = {"sf": sf, "detector": detector, "frame": images[0]}
    (example,) = [block for block in BLOCKS if "sf.export(" in block]
    exec(example, names)
    assert names["out"].anomaly_map.shape == (3, 1, 32, 32)
    assert [path.name for path in names["paths"]] == ["000.png", "001.png", "002.png"]
    scores = names["scorer"](images[0]).pred_score
    torch.testing.assert_close(scores, detector.score(images[0]), rtol=0.1, atol=1e-3)


def test_every_linked_file_is_there() -> None:
    root = Path(__file__).resolve().parent.parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (root / link).exists(), link
    for script in re.findall(r"`(\w+\.py)`", README):
        assert (root / "benchmarks" / script).exists(), script
