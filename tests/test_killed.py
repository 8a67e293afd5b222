"""kill -9 during ``fit``, ten times at random moments: ``--resume`` always continues, to the uninterrupted result."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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


def kill_and_resume(folder: Path, name: str, kills: int, moments: list[float]) -> tuple[int, list[str]]:
    """Runs until so many have been killed and the last has finished: (models made, epochs resumed after)."""
    expected = (folder / "whole.safetensors").read_bytes()
    models, resumed = 0, []
    for moment in moments:
        output = f"{name}{models}.safetensors"
        finished, errors = run(folder, output, moment if kills else None)
        kills -= not finished
        resumed += re.findall(r"resuming after epoch (\d+)", errors)
        if finished:
            assert (folder / output).read_bytes() == expected
            assert not (folder / f"{output}.checkpoint").exists()
            models += 1
            if not kills:
                return models, resumed
    raise AssertionError(f"{kills} kills are left: the moments are too late")


def test_ten_kills(workplace: Path) -> None:
    began = time.monotonic()
    assert run(workplace, "whole.safetensors")[0]
    duration = time.monotonic() - began

    def half(name: str) -> tuple[int, list[str]]:
        random_moments = random.Random(name)
        moments = [random_moments.uniform(0.6, 1.0) * duration for _ in range(10 * KILLS)]
        return kill_and_resume(workplace, name, KILLS // 2, moments)

    with ThreadPoolExecutor() as pool:
        halves = list(pool.map(half, "ab"))
    assert all(models for models, _ in halves)
    assert any(resumed for _, resumed in halves), "no run was killed after its first checkpoint: too early"
