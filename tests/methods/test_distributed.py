"""One training by two processes of ``torchrun``: the losses are those of one; one is killed, and one goes on alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stadfast.backbones import create_backbone
from stadfast.errors import StadfastError, UsageError
from stadfast.methods import distributed
from stadfast.methods.bundle import read_tensors

PATIENCE_S = 120.0  # for what always happens, however slow the machine
HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    import distributed_fit  # type: ignore[import-not-found]

    output = tmp_path / "two" / "losses.json"
    output.parent.mkdir()
    with distributed_fit.double_precision():
        distributed_fit.trained(distributed_fit.Toy(), 2, checkpoint=output.with_name("alone.checkpoint"))
    command = [*TORCHRUN, str(HERE / "distributed_fit.py"), str(output)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two: dict[str, Any] = json.loads(output.read_text())
    assert two.pop("processes") == 2
    assert two.pop("threads left") == []
    refused = two.pop("refused")
    assert "compare the images of a batch" in refused["stereotype"]
    assert refused["batch_size"] == "batch_size: expected at least 2, the number of processes, got 1"

    one = distributed_fit.run(tmp_path)
    in_float32 = distributed_fit.smooth_losses()
    assert two.pop("of one process") == [[3, 4], pytest.approx(one["toy"], rel=1e-9)]
    assert two.pop("float32") == pytest.approx(in_float32, rel=1e-4)  # 51 steps
    assert len(one["stpm"]) == 51 + 1  # steps, and the threshold
    assert two.keys() == one.keys()
    for name, values in one.items():
        *losses, last = values
        assert two[name][:-1] == pytest.approx(losses, rel=1e-9), name
        assert two[name][-1] == pytest.approx(last, rel=1e-4), name  # scored in float32
    assert one["toy resumed"] == one["toy"]


class TestKilled:
    """``kill -9`` of one process of two."""

    @pytest.fixture
    def workplace(self, tmp_path: Path) -> Path:
        (tmp_path / "good").mkdir()
        generator = torch.Generator().manual_seed(0)
        for i in range(8):
            pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / f"good/{i}.png")
        weights = create_backbone("resnet18", ["layer1"], seed=1).state_dict()
        save_file(weights, tmp_path / "teacher.safetensors")
        return tmp_path

    def command(self, epochs: int) -> list[str]:
        return [
            "-m", "stadfast", "fit", "good", "--weights", "teacher.safetensors", "--image-size", "32", "--epochs",
            str(epochs), "--batch-size", "4", "--precision", "fp32", "--device", "cpu", "--set", 'layers=["layer1"]',
            "--output", "model.safetensors", "--resume",
        ]  # fmt: skip

    def test_ends_in_a_clear_error_and_can_be_resumed_by_one_process(self, workplace: Path) -> None:
        process = subprocess.Popen(
            [*TORCHRUN, *self.command(1_000_000)],
            cwd=workplace,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            checkpoint = workplace / "model.safetensors.checkpoint"
            wait_for(lambda: checkpoint.exists())
            os.kill(member(process.pid, rank=1), signal.SIGKILL)
            errors = process.communicate(timeout=PATIENCE_S)[1]
        finally:
            process.kill()
        assert process.returncode != 0
        message = (
            "stadfast: error: another process of this training has ended, and it cannot go on without it"
        )
        assert errors.count(message) == 1
        assert errors.count("training on cpu") == 1  # one log and one progress bar
        assert not (workplace / "model.safetensors").exists()

        epochs = len(read_tensors(checkpoint)[1]["history"])
        done = subprocess.run(
            [sys.executable, *self.command(epochs + 2)],
            cwd=workplace,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert re.search(rf"resuming after epoch {epochs} of {epochs + 2}", done.stderr)
        assert f"stpm, {epochs + 2} epochs" in done.stdout
        assert not checkpoint.exists()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def member(parent: int, rank: int) -> int:
    """The process of a rank, among those that torchrun has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if started_by == parent and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:  # gone meanwhile
            continue
    raise AssertionError(f"torchrun has no process of rank {rank}")


class TestAlone:
    """Without torchrun nothing changes."""

    def test_the_device_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with distributed.joined("cpu") as device:
            assert device == "cpu"
            assert distributed.size() == 1
        monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.setenv("RANK", "0")
        with distributed.joined("auto") as device:
            assert device == "auto"
        assert distributed.is_main()

    def test_a_numbered_device_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        with (
            pytest.raises(UsageError, match="expected auto, cpu or cuda, got 'cuda:1'"),
            distributed.joined("cuda:1"),
        ):
            pass

    def test_everything_is_this_processs(self) -> None:
        indices = torch.arange(3)
        assert distributed.share(indices) == (indices, 1.0)
        assert distributed.batch_images(3) == 3
        assert distributed.total(2.5, indices) == 2.5
        with pytest.raises(StadfastError, match="mine"):
            distributed.on_main(lambda: (_ for _ in ()).throw(StadfastError("mine")))
