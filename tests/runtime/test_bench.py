"""Latencies are measured in turn, described, and printed as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import stadfast as sf
from stadfast.cli import app
from stadfast.errors import UsageError
from stadfast.runtime import export
from stadfast.runtime.bench import Timing, interleave, measure


def test_percentiles() -> None:
    timing = Timing(tuple(i / 1000 for i in range(1, 101)))
    found = timing.summary(images=4)
    assert found["p50_ms"] == pytest.approx(50.5)
    assert found["p95_ms"] == pytest.approx(95.05)
    assert found["p99_ms"] == pytest.approx(99.01)
    assert found["images_per_s"] == pytest.approx(4 / 0.0505, rel=1e-3)


def test_contenders_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    timings = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=4)
    assert "".join(calls) == "aaabbb" + "aabbbbaa" * 2  # each turn: one call that is not timed, one that is
    assert all(len(timing.samples) == 4 for timing in timings.values())


def test_a_slower_peer_has_a_ratio_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("stadfast.runtime.bench.time", SimpleNamespace(perf_counter=lambda: now))
    contenders = {"ours": lambda _: takes(0.25), "theirs": lambda _: takes(1.0)}
    cases = measure(contenders, torch.zeros(2, 4, 4, 3, dtype=torch.uint8), [1, 5], 5, torch.device("cpu"))
    assert [case["batch"] for case in cases] == [1, 5]
    assert cases[0]["ratios"]["theirs / ours"] == 4


def test_the_command(stpm: sf.Detector, tmp_path: Path) -> None:
    path = export(stpm, tmp_path / "model.pt")
    Image.new("RGB", (70, 60), (9, 80, 200)).save(tmp_path / "image.png")
    done = CliRunner().invoke(
        app,
        ["bench", str(path), "--images", str(tmp_path / "image.png"), "--batch", "1,2", "--rounds", "5",
         "--device", "cpu", "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["image_size"] == [60, 70]
    assert {name for case in found["cases"] for name in case["timings"]} == {
        "stadfast",
        "stadfast, with decoding",
    }
    assert "with decoding" in done.output
    assert Image.open(tmp_path / "out.png").size[0] > 100


def test_eager_is_a_peer(stpm: sf.Detector, tmp_path: Path) -> None:
    stpm.metadata_ = {"data": {}, "training": {}}
    stpm.save(tmp_path / "model.safetensors")
    arguments = [
        "bench",
        str(tmp_path / "model.safetensors"),
        "--against",
        "eager",
        "--batch",
        "1",
        "--rounds",
        "5",
    ]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--json", "-"])
    assert done.exit_code == 0, done.output
    assert "eager / stadfast" in json.loads(done.stdout)["cases"][0]["ratios"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "tensorrt"], "--against: expected some of"),
        (["--batch", "1,x"], "--batch: expected numbers"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["bench", str(tmp_path / "model.pt"), *arguments, "--debug"])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
