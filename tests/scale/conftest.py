"""A detector, images and labelled images that all tests of large jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import stadfast as sf
from stadfast.backbones import create_backbone
from stadfast.data import write_material

SIZE = 64


@pytest.fixture(scope="package")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in MVTec's layout, 16 good training images and 13 test images."""
    folder = tmp_path_factory.mktemp("material")
    return write_material(folder, "brushed", (SIZE, SIZE), train=16, test_good=5, test_per_defect=2)


@pytest.fixture(scope="package")
def model(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = create_backbone("resnet18", seed=1).state_dict()
    detector = sf.STPM(
        weights=weights,
        image_size=SIZE,
        epochs=2,
        batch_size=4,
        precision="fp32",
        layers=["layer1", "layer2"],
    )
    detector.fit(material, show_progress=False)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    detector.save(path)
    return path


@pytest.fixture(scope="package")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of two sizes, and two files that are none."""
    folder = tmp_path_factory.mktemp("archive")
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        shape = (SIZE, SIZE + (i % 3 == 0), 3)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        place = folder / f"day{i // 20}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place / f"{i:03d}.png")
    (folder / "day0/broken.png").write_bytes(b"no image")
    (folder / "day1/empty.png").write_bytes(b"")
    return folder
