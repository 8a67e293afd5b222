"""examples/cpp builds against the libtorch of the wheel and says what Python says, with and without our library."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import stadfast as sf
from stadfast import ops
from stadfast.runtime import export

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", SOURCE, "-B", build, f"-DTORCH={torch.__path__[0]}"]
    for command in ([*configure, "-DCMAKE_BUILD_TYPE=Release"], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return build / "score"


def run(program: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def test_the_program_gives_pythons_score(
    program: Path, detector: sf.Detector, images: Tensor, tmp_path: Path
) -> None:
    if "cpu" not in ops.backend().libraries:
        pytest.skip("no compiled kernels")
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.ppm")
    wanted = detector.predict(images[:1])
    for portable, library in ((False, [ops.backend().libraries["cpu"]]), (True, [])):
        archive = export(detector, tmp_path / "model.pt", portable=portable)
        done = run(program, archive, tmp_path / "image.ppm", *library)
        assert done.returncode == 0, done.stderr
        found = re.search(r"score (\S+)\nverdict (\w+)\npeak row (\d+) column (\d+) of 64 x 64", done.stdout)
        assert found, done.stdout
        assert float(found[1]) == pytest.approx(wanted.pred_score.item(), rel=1e-4)
        assert found[2] == ("defective" if wanted.pred_label.item() else "good")


def test_what_is_wrong_is_said(program: Path, stpm: sf.Detector, tmp_path: Path) -> None:
    assert "usage" in run(program).stderr
    archive = export(stpm, tmp_path / "model.pt", portable=True)
    (tmp_path / "image.ppm").write_bytes(b"P6 4 4 255\nshort")
    done = run(program, archive, tmp_path / "image.ppm")
    assert done.returncode == 1
    assert "truncated" in done.stderr
    done = run(program, tmp_path / "none.pt", tmp_path / "image.ppm")
    assert (done.returncode, done.stderr.count("frame #")) == (1, 0)
    assert "none.pt" in done.stderr
