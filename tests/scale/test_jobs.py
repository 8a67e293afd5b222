"""Jobs in this process: what they write, what they resume, what they refuse. (Most need pyarrow, of the extra ray.)"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import stadfast as sf
from stadfast import metrics
from stadfast.backbones import create_backbone
from stadfast.cli import app
from stadfast.data import open_dataset, read_image, read_mask, resize_mask
from stadfast.errors import BundleError, StadfastError, UsageError
from stadfast.scale import Cluster, evaluate, score
from stadfast.scale.results import LabelledCounts
from stadfast.scale.worker import picture_name


def test_heat_maps_stay_in_their_folder() -> None:
    assert picture_name("/data/a/b.png", "/data/") == "a/b.png.png"
    assert picture_name("../../etc/b.png", "") == "etc/b.png.png"
    assert picture_name("s3://bucket/a.png", "s3://bucket/") == "a.png.png"
    assert picture_name("s3://bucket/a.png", "") == "bucket/a.png.png"
    assert picture_name("/t/x.parquet#7", "") == "t/x.parquet#7.png"


def labelled(seed: int, n: int = 6) -> tuple[Tensor, list[Tensor | None], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(n, 1, 16, 16, generator=generator)
    masks: list[Tensor | None] = [None] * n
    masks[0] = torch.zeros(16, 16, dtype=torch.bool)
    masks[0][2:5, 3:9] = True
    return maps, masks, [1] + [0] * (n - 1)


def test_states_of_parts_add_up_to_the_whole() -> None:
    whole, total = metrics.Evaluation(exact=False), LabelledCounts()
    for seed in range(4):
        maps, masks, labels = labelled(seed)
        part = LabelledCounts()
        for evaluation in (whole, part.evaluation):
            evaluation.update(maps, masks, labels, maps.amax((1, 2, 3)), ["hole"] * len(maps))
        part.decisions += [[5 - seed, seed], [0, 1]]
        total.add(part.to_bytes())
    header = {"threshold": 0.5, "pixel_threshold": 0.4, "notes": ["a leak"]}
    figures, wanted = total.figures(header), whole.compute()
    for name in ("image", "pixel", "n"):
        assert figures[name] == wanted[name]
    assert figures["aupro"] == pytest.approx(wanted["aupro"], abs=1e-12)
    assert figures["at_threshold"] == {"true_positive_rate": 1.0, "false_positive_rate": 6 / 20}
    assert figures["notes"][0] == "a leak"
    assert figures["threshold"] == 0.5


def test_arguments_are_checked(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine: expected one of local, ray, got 'spark'"):
        score(model, [str(tmp_path)], str(tmp_path), engine="spark")
    for name in ("part_size", "batch_size", "readers"):
        with pytest.raises(UsageError, match=f"{name}: expected a number from 1, got 0"):
            score(model, [str(tmp_path)], str(tmp_path), **{name: 0})  # type: ignore[arg-type]
    for name, value in (("actors", 0), ("cpus", 0), ("gpus", -0.5)):
        with pytest.raises(UsageError, match=f"{name}: expected"):
            Cluster(**{name: value})  # type: ignore[arg-type]


HIDE_RAY = (
    "import sys; sys.modules['ray'] = None; from stadfast.cli import main; sys.argv[0] = 'stadfast'; main()"
)


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_without_ray_one_line_says_how_to_install_it(command: str, model: Path, material: Path) -> None:
    arguments = [command, str(model), str(material), "--output", "out", "--engine", "ray"]
    run = subprocess.run([sys.executable, "-c", HIDE_RAY, *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == (
        "stadfast: error: --engine ray needs ray, which is not installed: pip install 'stadfast[ray]'\n"
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("score {} x.png --resume", "--resume goes with --output"),
        ("score {} x.png --part-size 9", "--part-size goes with --output"),
        ("score {} x.png --engine ray", "--engine goes with --output"),
        ("evaluate {} data --actors 2", "--actors goes with --output"),
        ("score {} x.png -o out --engine spark", "--engine: expected one of local, ray, got 'spark'"),
        ("score {} x.png -o out --cpus 2", "--cpus goes with --engine ray"),
        ("evaluate {} data -o out --address auto", "--address goes with --engine ray"),
        ("evaluate {} data -o out --report r.html", "--report needs all maps"),
        ("evaluate {} data --streaming", "--streaming is for --maps and --masks"),
        ("evaluate --maps a --masks b --device cpu", "--device is for MODEL and DATA"),
        ("evaluate --maps a --masks b --batch-size 16", "--batch-size is for MODEL and DATA"),
        ("evaluate --maps a --masks b --part-size 9", "--part-size is for MODEL and DATA"),
    ],
)
def test_options_without_effect_are_refused(model: Path, command: str, message: str) -> None:
    result = CliRunner().invoke(app, command.format(model).split())
    assert result.exit_code == 2
    assert result.stderr.startswith(f"stadfast: error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_json_that_cannot_be_written_is_found_first(
    command: str, model: Path, material: Path, tmp_path: Path
) -> None:
    arguments = [command, model, material, "--output", tmp_path / "out", "--json", tmp_path]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2
    assert f"--json: {tmp_path} is a folder; wanted the name of a file" in result.stderr
    assert not (tmp_path / "out").exists()


class TestWithParquet:
    """What is written."""

    @pytest.fixture(autouse=True)
    def _parquet(self) -> None:
        self.parquet = pytest.importorskip("pyarrow.parquet")

    def rows(self, folder: Path) -> list[dict]:  # type: ignore[type-arg]
        return self.parquet.read_table(folder).to_pylist()

    def test_scores_are_those_of_the_scorer(self, model: Path, archive: Path, tmp_path: Path) -> None:
        summary = score(
            model, [str(archive)], str(tmp_path / "out"), part_size=9, batch_size=4, precision="fp32",
            show_progress=False,
        )  # fmt: skip
        assert (summary.images, summary.broken, summary.parts, summary.done_before) == (42, 2, 5, 0)
        rows = self.rows(tmp_path / "out")
        assert [row["path"] for row in rows] == sorted(str(path) for path in archive.rglob("*.png"))
        scorer = sf.Scorer(model, precision="fp32")
        for row in rows:
            if row["error"] is None:
                alone = scorer(read_image(row["path"])).pred_score.item()
                assert row["score"] == pytest.approx(alone, rel=1e-4)  # in another batch
                assert row["defective"] == (row["score"] > scorer.threshold)
        errors = {Path(row["path"]).name: row["error"] for row in rows if row["error"]}
        assert errors == {
            "broken.png": "not an image, or of a format that Pillow does not know",
            "empty.png": "the file is empty (0 bytes)",
        }
        assert all(row["score"] is None and row["defective"] is None for row in rows if row["error"])
        assert summary.defective == sum(row["defective"] or 0 for row in rows)
        assert summary.bytes_read == sum(path.stat().st_size for path in archive.rglob("*.png"))

    def test_resume_scores_only_what_is_missing(self, model: Path, archive: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        options = {"part_size": 9, "batch_size": 4, "show_progress": False}
        score(model, [str(archive)], str(out), **options)  # type: ignore[arg-type]
        before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("part-*")}
        table = self.parquet.read_table(out)
        (out / "part-000001.parquet").unlink()
        (out / "part-000003.parquet").unlink()
        with pytest.raises(UsageError, match=r"^output: .* holds an earlier run: resume=True"):
            score(model, [str(archive)], str(out), **options)  # type: ignore[arg-type]
        summary = score(model, [str(archive)], str(out), resume=True, **options)  # type: ignore[arg-type]
        assert (summary.parts, summary.done_before, summary.images, summary.broken) == (5, 3, 42, 2)
        assert self.parquet.read_table(out).equals(table)
        changed = {p.name for p in out.glob("part-*") if p.stat().st_mtime_ns != before[p.name][0]}
        assert changed == {"part-000001.parquet", "part-000003.parquet"}

    @pytest.mark.parametrize("name", ["native.safetensors", "native.pt"])
    def test_a_detector_of_native_scale_is_resized_only_if_told(
        self, material: Path, tmp_path: Path, name: str
    ) -> None:
        weights = create_backbone("resnet18", seed=1).state_dict()
        detector = sf.STPM(weights=weights, image_size=32, epochs=1, batch_size=4, layers=["layer1"])
        detector.fit(material, native_scale=True, show_progress=False)
        write = detector.save if name.endswith("safetensors") else partial(sf.export, detector)
        write(tmp_path / name)
        arguments = (tmp_path / name, [str(material / "test")], str(tmp_path / "out"))
        for job in (score, evaluate):
            with pytest.raises(UsageError, match=rf"{name} was fitted at native scale.*native_scale=False"):
                job(*arguments, show_progress=False)
            with pytest.raises(UsageError, match="native_scale: expected None or False"):
                job(*arguments, native_scale=True, show_progress=False)
        command = ["score", *arguments[:1], *arguments[1], "--output", *arguments[2:], "--device", "cpu"]
        refused = CliRunner().invoke(app, list(map(str, command)))
        assert (refused.exit_code, "--resize-images takes it" in refused.stderr) == (2, True)
        assert not (tmp_path / "out").exists()
        resized = CliRunner().invoke(app, [*map(str, command), "--resize-images"])
        assert resized.exit_code == 0, resized.stderr
        assert len(self.rows(tmp_path / "out")) == 13

    @pytest.mark.parametrize("wrong", [{"precision": "fp99"}, {"threads": 0}, {"device": "nosuch"}])
    def test_a_job_that_could_not_start_leaves_the_folder_free(
        self, model: Path, archive: Path, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        source = min((archive / "day1").glob("*.png"))
        with pytest.raises(UsageError, match=f"{next(iter(wrong))}: expected"):
            score(model, source, tmp_path / "out", show_progress=False, **wrong)
        score(model, source, tmp_path / "out", show_progress=False)
        assert len(self.rows(tmp_path / "out")) == 1

    def test_resume_scores_damaged_parts_anew(self, model: Path, material: Path, tmp_path: Path) -> None:
        samples = open_dataset(material).test
        options: dict[str, Any] = {"part_size": 4, "show_progress": False}
        wanted, _ = evaluate(model, samples, tmp_path, **options)
        table = self.parquet.read_table(tmp_path)
        (tmp_path / "part-000001.parquet").write_bytes(b"no table")
        self.parquet.write_table(table.replace_schema_metadata(), tmp_path / "part-000003.parquet")
        (tmp_path / "_state-000002.npz").unlink()
        figures, summary = evaluate(model, samples, tmp_path, resume=True, **options)
        assert (summary.done_before, summary.parts, figures) == (1, 4, wanted)
        assert self.parquet.read_table(tmp_path).equals(table)
        (tmp_path / "_state-000002.npz").write_bytes(b"no state")
        with pytest.raises(StadfastError, match=r"_state-000002\.npz is damaged or gone.* resume=True"):
            evaluate(model, samples, tmp_path, resume=True, **options)
        for damage in (b"{", b"5"):
            (tmp_path / "_plan.json").write_bytes(damage)
            with pytest.raises(StadfastError, match=r"_plan\.json is damaged"):
                score(model, samples, tmp_path, resume=True, **options)

    def test_resume_refuses_another_job(self, model: Path, archive: Path, tmp_path: Path) -> None:
        out = str(tmp_path)
        score(model, [str(archive / "day0")], out, part_size=30, show_progress=False)
        with pytest.raises(UsageError, match="holds another job: its part_size is 30, now it is 8"):
            score(model, [str(archive / "day0")], out, part_size=8, resume=True)
        with pytest.raises(UsageError, match="holds another job: its images is 21, now it is 42"):
            score(model, [str(archive)], out, part_size=30, resume=True)

    def test_heat_maps_of_anomalies_only(self, model: Path, material: Path, tmp_path: Path) -> None:
        summary = score(
            model, material / "test", tmp_path / "out", heatmaps=tmp_path / "maps", show_progress=False
        )
        defective = [row["path"] for row in self.rows(tmp_path / "out") if row["defective"]]
        assert 0 < summary.defective == len(defective)
        written = {str(path.relative_to(tmp_path / "maps")) for path in (tmp_path / "maps").rglob("*.png")}
        assert written == {str(Path(path).relative_to(material / "test")) + ".png" for path in defective}
        assert read_image(tmp_path / "maps" / min(written)).shape == (3, 64, 64)

    def test_from_a_table_to_a_url(self, model: Path, archive: Path, tmp_path: Path) -> None:
        arrow, fsspec = pytest.importorskip("pyarrow"), pytest.importorskip("fsspec")
        images = sorted((archive / "day1").glob("*.png"))
        table = arrow.table({"image": [path.read_bytes() for path in images]})
        memory = fsspec.filesystem("memory")
        with memory.open("/tables/t.parquet", "wb") as file:
            self.parquet.write_table(table, file, row_group_size=6)
        options = {"part_size": 8, "batch_size": 4, "show_progress": False}
        score(model, ["memory://tables"], "memory://results", **options)  # type: ignore[arg-type]
        score(model, [str(archive / "day1")], str(tmp_path), **options)  # type: ignore[arg-type]
        parts = [name for name in memory.ls("/results", detail=False) if "part-" in name]
        found = [
            row for name in sorted(parts) for row in self.parquet.read_table(memory.open(name)).to_pylist()
        ]
        assert [row["score"] for row in found] == [row["score"] for row in self.rows(tmp_path)]
        assert found[0]["path"] == "memory:///tables/t.parquet#0"

    def test_metrics_are_those_of_one_evaluation(self, model: Path, material: Path, tmp_path: Path) -> None:
        samples = open_dataset(material).test
        evaluated = evaluate(model, samples, str(tmp_path), part_size=5, batch_size=4, show_progress=False)
        figures, summary = evaluated.figures, evaluated.summary
        scorer = sf.Scorer(model, batch_size=4)
        whole = metrics.Evaluation(exact=False)
        exact = metrics.Evaluation()
        for begin in range(0, len(samples), 5):
            part = samples[begin : begin + 5]
            for some in (part[:4], part[4:]):
                if some:
                    found = scorer([read_image(sample.image) for sample in some])
                    masks = [
                        None if s.mask is None else resize_mask(read_mask(s.mask), (64, 64)) for s in some
                    ]
                    labels, kinds = [s.label for s in some], [s.defect for s in some]
                    for evaluation in (whole, exact):
                        evaluation.update(found.anomaly_map, masks, labels, found.pred_score, kinds)
        wanted, limits = whole.compute(), exact.compute()
        for name in ("image", "pixel", "n"):
            assert figures[name] == wanted[name]
        assert figures["aupro"] == pytest.approx(wanted["aupro"], abs=1e-12)
        assert figures["image"] == limits["image"]
        for name, value in limits["pixel"].items():
            assert abs(figures["pixel"][name] - value) <= figures["bounds"]["pixel"][name]
        assert summary.images == len(samples) == figures["n"]["images"]
        ours = sf.evaluate(sf.load(model), samples, show_progress=False).figures
        assert figures.keys() - ours.keys() == {"bounds"}
        for name in ("threshold", "pixel_threshold"):
            assert figures[name] == ours[name]
        assert figures["at_threshold"].keys() == ours["at_threshold"].keys()
        assert figures["protocol"]["masks"] == ours["protocol"]["masks"]

    def test_what_cannot_be_evaluated_becomes_a_row(
        self, model: Path, material: Path, tmp_path: Path
    ) -> None:
        arrow = pytest.importorskip("pyarrow")
        good = str(material / "test/good/000.png")
        (tmp_path / "mask.png").write_bytes(b"no image")
        columns = {
            "path": [good, good, good, "missing.png", good, ""], "label": [0, None, 1, 1, 301, 0],
            "mask": [None, None, "mask.png", None, None, None],
        }  # fmt: skip
        self.parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
        figures, summary = evaluate(
            model, [str(tmp_path / "t.parquet")], str(tmp_path / "out"), show_progress=False
        )
        assert [row["error"] for row in self.rows(tmp_path / "out")] == [
            None, "its label is None; wanted 0 (good) or 1 (defective)",
            "mask: not an image, or of a format that Pillow does not know", "no such file",
            "its label is 301; wanted 0 (good) or 1 (defective)", "no image in this row",
        ]  # fmt: skip
        assert [row["label"] for row in self.rows(tmp_path / "out")] == columns["label"]
        assert (figures["n"]["images"], summary.broken) == (1, 5)

    def test_an_archive_for_one_size(self, model: Path, archive: Path, tmp_path: Path) -> None:
        sf.export(sf.load(model), tmp_path / "fixed.pt", size=(64, 64))
        summary = score(
            tmp_path / "fixed.pt", [str(archive)], str(tmp_path / "out"), batch_size=8, show_progress=False
        )
        wide = [row for row in self.rows(tmp_path / "out") if row["error"] and "64 x 65" in row["error"]]
        assert len(wide) == 14  # every third of 40
        assert summary.broken == 16

    def test_no_model(self, archive: Path, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"nothing\.pt"):
            score(tmp_path / "nothing.pt", [str(archive)], str(tmp_path / "out"))
        for damaged in (tmp_path / "damaged.safetensors", archive / "day0/broken.png"):
            damaged.write_bytes(b"no image")
            with pytest.raises(BundleError, match=f"^{re.escape(str(damaged))}"):
                score(damaged, [str(archive)], str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        with pytest.raises(UsageError, match="wanted one file"):
            score(tmp_path / "model.xml", [str(archive)], str(tmp_path / "out"))

    def test_an_output_that_cannot_be_written(self, model: Path, archive: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StadfastError, match="cannot write"):
            score(model, [str(archive)], str(tmp_path / "file"), show_progress=False)

    def test_on_the_command_line(self, model: Path, material: Path, tmp_path: Path) -> None:
        out, results = tmp_path / "out", tmp_path / "results.json"
        command = ["evaluate", model, material, "--output", out, "--part-size", "4", "--json", results]
        run = subprocess.run(
            [sys.executable, "-m", "stadfast", *map(str, command)], capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert f"{out}: 13 images" in run.stdout
        assert "pixel AUROC" in run.stdout
        written = json.loads(results.read_text())
        assert "bounds" in written
        assert written["job"]["memory_mb_max"] > 0
        assert "memory_mb" not in written["job"]
        again = CliRunner().invoke(app, list(map(str, command)))
        assert again.exit_code == 2
        assert f"error: --output: {out} holds an earlier run: --resume goes on" in again.stderr
