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


def run(folder: Path, output: str, patience: float | None = None, *, begun: bool = False) -> tuple[bool, str]:
    """(finished, standard error) of a run that is killed after ``patience`` seconds, from its first checkpoint on if
    it shall have ``begun``."""
    process = start(folder, output)
    while begun and process.poll() is None and not (folder / f"{output}.checkpoint").exists():
        time.sleep(0.01)
    try:
        errors = process.communicate(timeout=patience)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        errors = process.communicate()[1]
    assert "Traceback" not in errors
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0, errors


def kill_and_resume(folder: Path, name: str, kills: int, duration: float) -> tuple[int, list[str]]:
    """Runs until so many have been killed and the last has finished: (models made, epochs resumed after).

    Every other one is killed late by the clock, the others after their first checkpoint: on a busy machine a run may
    take several times as long as the one that was timed.
    """
    random_moments = random.Random(name)
    expected = (folder / "whole.safetensors").read_bytes()
    models, resumed = 0, []
    for _ in range(10 * KILLS):
        output = f"{name}{models}.safetensors"
        begun = kills % 2 == 1
        moment = random_moments.uniform(0.0 if begun else 0.6, 0.4 if begun else 1.0) * duration
        finished, errors = run(folder, output, moment if kills else None, begun=begun)
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

    with ThreadPoolExecutor() as pool:
        halves = list(pool.map(lambda name: kill_and_resume(workplace, name, KILLS // 2, duration), "ab"))
    assert all(models for models, _ in halves)
    assert any(resumed for _, resumed in halves), "no run was killed after its first checkpoint: too early"
