"""kill -9 during ``fit``, ten times at random moments: ``--resume`` always continues, to the uninterrupted result."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stadfast.backbones import create_backbone

KILLS = 10


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "good").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"good/{i:02d}.png")
    save_file(create_backbone("resnet18", seed=1).state_dict(), folder / "teacher.safetensors")
    return folder


def start(folder: Path, output: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "stadfast", "fit", "good", "--weights", "teacher.safetensors", "--image-size", "64",
        "--set", 'layers=["stem", "layer1"]', "--epochs", "50", "--batch-size", "8", "--precision", "fp32",
        "--deterministic", "--resume", "--output", output,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def run(folder: Path, output: str, patience: float | None = None) -> tuple[bool, str]:
    """(finished, standard error) of a run that is killed after ``patience`` seconds."""
    process = start(folder, output)
    try:
        errors = process.communicate(timeout=patience)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        errors = process.communicate()[1]
    assert "Traceback" not in errors
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0, errors


def test_ten_kills(workplace: Path) -> None:
    began = time.monotonic()
    assert run(workplace, "whole.safetensors")[0]
    duration = time.monotonic() - began
    expected = (workplace / "whole.safetensors").read_bytes()

    moments = random.Random(20)
    kills = models = 0
    resumed = []
    while kills < KILLS:
        output = f"model{models}.safetensors"
        finished, errors = run(workplace, output, moments.uniform(0.6, 1.0) * duration)
        kills += not finished
        if kills == KILLS and not finished:
            finished, errors = run(workplace, output)
        resumed += re.findall(r"resuming after epoch (\d+)", errors)
        if finished:
            assert (workplace / output).read_bytes() == expected
            assert not (workplace / f"{output}.checkpoint").exists()
            models += 1
    assert models >= 1
    assert resumed, "no run was killed after its first checkpoint: the moments are too early"
