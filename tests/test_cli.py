import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import stadfast as sf
from stadfast.cli import _guard, app
from stadfast.cli._output import picture_names, plain
from stadfast.data import write_material
from stadfast.errors import DataError, UsageError

runner = CliRunner()
FIT = ("--backbone", "efficientnet_lite0", "--image-size", "64", "--device", "cpu")


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def program(*arguments, **options):
    command = [sys.executable, "-m", "stadfast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def write_images(folder, count, seed, spot=False):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        image = generator.normal(120, 12, (72, 96, 3))
        if spot:
            image[20:40, 30:60] = (250, 20, 20)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02}.png")


@pytest.fixture(scope="session")
def category(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "cloth"
    write_images(root / "train" / "good", 10, 0)
    write_images(root / "test" / "good", 3, 1)
    write_images(root / "test" / "spot", 3, 2, spot=True)
    mask = np.zeros((72, 96), np.uint8)
    mask[20:40, 30:60] = 255
    (root / "ground_truth" / "spot").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(mask).save(root / "ground_truth" / "spot" / f"{index:02}_mask.png")
    return root


@pytest.fixture(scope="session")
def model(category, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "cloth.safetensors"
    result = run("fit", category, *FIT, "--epochs", 2, "--batch-size", 4, "--output", path)
    assert result.exit_code == 0, result.output
    assert str(path) in result.stdout
    return path


# ---------------------------------------- the program


def test_help_and_version_do_not_load_torch():
    code = "import sys; from stadfast.cli import app; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
    result = program("--version")
    assert (result.returncode, result.stdout) == (0, f"stadfast {sf.__version__}\n")
    assert all(name in program("--help").stdout for name in ("fit", "score", "evaluate", "info", "demo"))


@pytest.mark.parametrize(
    "arguments",
    [
        "fit",
        "fit x",
        "nonsense",
        "score x",
        "info --nonsense",
        "fit x -o y --epochs 0",
        "score m p --batch-size a",
    ],
)
def test_wrong_usage_ends_with_2(arguments):
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert "Error:" in result.stderr


def test_help_names_every_method():
    assert f"--method {'|'.join(sf.methods.METHODS)} " in " ".join(run("fit", "--help").stdout.split())


@pytest.mark.parametrize("command", [command.callback.__name__ for command in app.registered_commands])
def test_help_is_in_whole_phrases(command):
    for parameter in get_command(app).commands[command].params:
        assert not re.match(r"Of |If ", parameter.help or ""), parameter.name
        assert "default " not in (parameter.help or ""), parameter.name  # default: ...
    assert "[[" not in run(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit d -o m --image-size big", "--image-size: expected a number, or HxW"),
        ("export m -o a.pt --size big", "--size: expected a number, or HxW"),
        ("fit d -o m --set variant", "--set: expected NAME=VALUE, such as variant=paper"),
        ("fit d -o m --set seed=1", "--set seed: this argument has its own option, --seed"),
        ("score m d -o s --skip-broken", "--skip-broken does not go with --output"),
        ("evaluate m d -o s --native-scale", "--native-scale does not go with --output"),
        ("stream m genicam:x.cti --feature Gain", "--feature: expected NAME=VALUE, such as ExposureTime=200"),
    ],
)
def test_errors_name_the_option(arguments, message):
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert result.stderr.startswith(f"stadfast: error: {message}")
    assert result.stderr.count("\n") == 1


def failing(error, **options):
    def command(debug=False):
        raise error

    return _guard.guarded(command, **options)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("--x: wanted 1, got 2"), 2, "stadfast: error: --x: wanted 1, got 2\n"),
        (DataError("a.png: not an image"), 1, "stadfast: error: a.png: not an image\n"),
        (
            RuntimeError("line one\nline two"),
            1,
            "stadfast: error: RuntimeError: line one; run with --debug for the traceback\n",
        ),
        (MemoryError(), 1, "stadfast: error: MemoryError; run with --debug for the traceback\n"),
        (KeyboardInterrupt(), 130, "stadfast: interrupted; --resume continues\n"),
        (DataError("\x1b[2Jname\n.png: broken"), 1, "stadfast: error: \\x1b[2Jname\\n.png: broken\n"),
    ],
)
def test_errors_are_one_line_and_a_code(error, code, message, capsys):
    import typer

    with pytest.raises(typer.Exit) as caught:
        failing(error, after_interrupt="--resume continues")()
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == message


def test_debug_shows_the_traceback():
    with pytest.raises(RuntimeError, match="line one"):
        failing(RuntimeError("line one"))(debug=True)
    result = program("info", "missing.safetensors", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_standard_output_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python does then
    _guard.guarded(lambda debug=False: print("nobody hears"))()


def test_warnings_are_one_line(capsys):
    import warnings

    _guard.guarded(lambda debug=False: warnings.warn("no compiler", stacklevel=1))()
    assert capsys.readouterr().err == "stadfast: warning: no compiler\n"


# ---------------------------------------- the commands


def test_fit_leaves_the_model_and_nothing_else(model):
    assert [path.name for path in model.parent.iterdir()] == [model.name]
    detector = sf.load(model)
    assert detector.method == "stpm"
    assert detector._size == (64, 64)


def test_fit_says_what_it_does_on_stderr(category, tmp_path):
    result = run(
        "fit", category / "train" / "good", *FIT, "--epochs", 1, "--precision", "fp32", "-o", tmp_path / "m"
    )
    assert result.exit_code == 0
    assert "training on cpu in fp32" in result.stderr
    assert result.stdout.count("\n") == 1


def test_fit_reads_rectangular_sizes_and_the_variant(category, tmp_path):
    result = run("fit", category, "--backbone", "efficientnet_lite0", "--image-size", "64x96", "--epochs", 1,
                 "--set", "variant=paper", "-o", tmp_path / "m")  # fmt: skip
    assert result.exit_code == 0, result.output
    detector = sf.load(tmp_path / "m")
    assert (detector._size, detector.variant) == ((64, 96), "paper")


def test_fit_skips_broken_files_on_request(category, tmp_path):
    folder = tmp_path / "good"
    write_images(folder, 6, 0)
    (folder / "bad.png").write_bytes(b"\x89PNG nothing")
    refused = run("fit", folder, *FIT, "--epochs", 1, "-o", tmp_path / "m")
    assert refused.exit_code == 1
    assert "bad.png" in refused.stderr
    result = run("fit", folder, *FIT, "--epochs", 1, "--skip-broken", "-o", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert re.search(r"skipped .*bad\.png", result.stderr)


def test_fit_finds_out_first_that_it_cannot_write(category, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file" / "m"):
        result = run("fit", category, "-o", output)
        assert result.exit_code == 2
        assert str(output) in result.stderr
        assert "training" not in result.stderr


def test_score_prints_a_line_for_each_image(model, category):
    result = run("score", model, category / "test" / "spot", category / "test" / "good" / "00.png")
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [Path(line[0]).name for line in lines] == ["00.png", "01.png", "02.png", "00.png"]
    out = sf.load(model).predict([line[0] for line in lines])
    assert [float(line[1]) for line in lines] == pytest.approx(out.pred_score.tolist(), rel=1e-4)
    assert [line[2] == "defective" for line in lines] == out.pred_label.tolist()


def test_score_writes_json(model, category, tmp_path):
    shown = run("score", model, category / "test", "--json", "-")
    run("score", model, category / "test", "--json", tmp_path / "s.json", "--batch-size", 2)
    for text in (shown.stdout, (tmp_path / "s.json").read_text()):
        document = json.loads(text)
        assert len(document["images"]) == 6
        assert set(document["images"][0]) == {"path", "score", "defective"}
        assert document["threshold"] == sf.load(model).threshold_
        assert document["skipped"] == []


def test_score_skips_and_lists_broken_files(model, tmp_path):
    write_images(tmp_path / "in", 2, 0)
    (tmp_path / "in" / "01b.png").write_bytes(b"")
    refused = run("score", model, tmp_path / "in", "--json", tmp_path / "s.json")
    assert refused.exit_code == 1
    assert "01b.png" in refused.stderr
    assert not (tmp_path / "s.json").exists()
    result = run("score", model, tmp_path / "in", "--json", "-", "--skip-broken")
    assert [Path(entry["path"]).name for entry in json.loads(result.stdout)["skipped"]] == ["01b.png"]
    assert "01b.png" in result.stderr


def test_heat_maps_mirror_the_folders_and_are_not_scored_again(model, category, tmp_path):
    write_images(tmp_path / "in" / "a", 2, 0)
    write_images(tmp_path / "in" / "b", 1, 0)
    for _ in range(2):  # the second run finds the first one's pictures in its folder
        result = run("score", model, tmp_path / "in", "--heatmaps", tmp_path / "in" / "maps")
        assert result.exit_code == 0, result.output
        assert result.stdout.count("\n") == 3
    names = sorted(
        path.relative_to(tmp_path / "in" / "maps").as_posix()
        for path in (tmp_path / "in" / "maps").rglob("*.png")
    )
    assert names == ["a/00.png.png", "a/01.png.png", "b/00.png.png"]
    assert Image.open(tmp_path / "in" / "maps" / names[0]).size == (96, 72)


def test_picture_names_never_collide_and_never_escape(tmp_path):
    images = [tmp_path / name for name in ("a.png", "a.jpg", "sub/a.png", "sub/../b.png")]
    images.append(Path("/etc/../c.png"))
    names = list(picture_names(images))
    assert len(set(names)) == len(images)
    for name in names:
        assert not name.is_absolute()
        assert ".." not in name.parts


def test_odd_file_names_stay_on_their_line(model, tmp_path):
    folder = tmp_path / "in"
    write_images(folder, 1, 0)
    (folder / "00.png").rename(folder / "new\nline\x1b[2J<b>&.png")
    result = run("score", model, folder, "--heatmaps", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    assert "\x1b" not in result.stdout
    assert len(list((tmp_path / "maps").iterdir())) == 1


def test_evaluate_writes_figures_and_report(model, category, tmp_path):
    result = run("evaluate", model, category, "--json", tmp_path / "e.json", "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "e.json").read_text())
    for level in ("image", "pixel"):
        assert {"auroc", "ap", "f1_max"} <= set(figures[level])
    assert {"0.3", "0.05"} <= set(figures["aupro"])
    assert figures["threshold"] == sf.load(model).threshold_
    assert figures["n"]["images"] == 6
    assert set(figures["per_type"]) == {"spot"}
    assert figures["image"]["auroc"] > 0.9  # a red square on grey noise
    assert figures["pixel"]["auroc"] > 0.8
    assert "spot" in result.stdout
    report = (tmp_path / "r.html").read_text()
    assert "efficientnet_lite0" in report
    assert "spot/00.png" in report


def test_evaluate_skips_broken_masks_on_request(model, category, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(category, data)
    mask = sorted((data / "ground_truth").rglob("*.png"))[0]
    mask.write_bytes(b"broken")
    result = run("evaluate", model, data)
    assert result.exit_code == 1
    assert str(mask) in result.stderr
    result = run("evaluate", model, data, "--skip-broken", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert [entry["path"] for entry in json.loads(result.stdout)["skipped"]] == [str(mask)]


def test_evaluate_agrees_with_the_library(model, category):
    from stadfast import metrics
    from stadfast.data import open_dataset, read_mask

    figures = json.loads(run("evaluate", model, category, "--json", "-").stdout)
    samples = open_dataset(category).test
    out = sf.load(model).predict([sample.image for sample in samples])
    assert figures["image"]["auroc"] == metrics.auroc(out.pred_score, [sample.label for sample in samples])
    assert read_mask(samples[-1].mask).shape == (72, 96)


def test_evaluate_needs_test_images(model, category):
    result = run("evaluate", model, category / "train" / "good")
    assert result.exit_code == 1
    assert "has no test images" in result.stderr


def test_info_tells_the_backend_and_a_models_facts(model):
    result = run("info")
    assert result.exit_code == 0
    for word in ("backend", "cache folder", "torch", "processor", "CPU features", "GPU"):
        assert word in result.stdout
    result = run("info", model)
    for word in ("stpm", "efficientnet_lite0", "threshold", "seed", "versions torch"):
        assert word in result.stdout


def test_demo_goes_the_whole_way(tmp_path, monkeypatch):
    from stadfast.cli import demo

    monkeypatch.setattr(demo, "QUICK", demo.Plan(8, 2, 1, epochs=1, web_seconds=2, web_defects=2))
    write_material(tmp_path / "material", "woven", (64, 64), train=9, test_good=3, test_per_defect=2)
    (tmp_path / "heatmaps" / "hole").mkdir(parents=True)
    (tmp_path / "heatmaps" / "hole" / "001.png.png").write_bytes(b"an earlier demo's")
    result = run("demo", "--quick", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "plain PyTorch" in result.stdout
    assert {"material", "model.safetensors", "figures.json"} <= {path.name for path in tmp_path.iterdir()}
    assert len(list((tmp_path / "heatmaps").rglob("*.png"))) == 5
    assert len(list((tmp_path / "material" / "train").rglob("*.png"))) == 8
    assert len(list((tmp_path / "material" / "test").rglob("*.png"))) == 7
    assert "Generated woven material" in (tmp_path / "report.html").read_text()
    assert re.search(r"^all +\d +\d ", result.stdout, re.MULTILINE)
    figures = json.loads((tmp_path / "stream.json").read_text())
    assert figures["lines"] + figures["lines_lost"] == 2000
    assert figures["injected"] == 2
    assert (tmp_path / "stream.png").exists()


@pytest.mark.parametrize("name", ["material/train/good/web.png", "heatmaps/notes.txt"])
def test_demo_leaves_other_peoples_files_alone(tmp_path, name):
    write_material(tmp_path / "material", "woven", (32, 32), train=1, test_good=0, test_per_defect=0)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    result = run("demo", "--quick", "--output", tmp_path)
    assert result.exit_code == 2
    assert f"{name} is not of an earlier demo; wanted another folder" in result.stderr
    assert (tmp_path / name).read_bytes() == b"mine"
    assert len(list((tmp_path / "material/train/good").glob("0*.png"))) == 1


def test_json_has_no_nan():
    assert plain({"a": float("nan"), "b": (1, float("inf")), "c": Path("x")}) == {
        "a": None,
        "b": [1, None],
        "c": "x",
    }


# ---------------------------------------- real processes


@pytest.mark.parametrize("extra", ["", "--json scores.json"])
def test_a_closed_pipe_is_no_error(model, category, tmp_path, extra):
    command = f"{sys.executable} -m stadfast score {model} {category}/test --batch-size 1 {extra} | head -n 1"
    environment = os.environ | {"PYTHONPATH": str(Path(sf.__file__).parents[1])}
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert result.stdout.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert "error" not in result.stderr


def test_ctrl_c_says_how_to_go_on(category, tmp_path):
    command = [
        sys.executable,
        "-m",
        "stadfast",
        "fit",
        category,
        *FIT,
        "--epochs",
        "2000",
        "-o",
        tmp_path / "m",
    ]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )  # fmt: skip
    time.sleep(0.5)
    for line in process.stderr:
        if "teacher features" in line:
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in error
    assert "Traceback" not in error
    assert not (tmp_path / "m").exists()


def test_sigterm_leaves_no_half_files(model, category, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(3000):
        (folder / f"{index}.png").symlink_to(next((category / "test/good").glob("*.png")))
    process = subprocess.Popen(
        [sys.executable, "-m", "stadfast", "score", model, folder, "--json", tmp_path / "out" / "scores.json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    assert list((tmp_path / "out").iterdir())  # the file under its other name
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in error
    assert not list((tmp_path / "out").iterdir())


def test_resuming_a_finished_fit_changes_nothing(category, model):
    before = model.read_bytes()
    result = run("fit", category, *FIT, "--epochs", 2, "--resume", "--output", model)
    assert result.exit_code == 0
    assert "nothing to resume" in result.stderr
    assert model.read_bytes() == before


def test_evaluate_anybodys_maps(tmp_path):
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 40, 50), np.uint8)
    masks[0, 5:9, 5:9] = masks[1, 20:30, 30:45] = 255
    maps = rng.random((3, 40, 50)).astype(np.float32) + masks / 400
    for kind, name, index in (("scratch", "000", 0), ("scratch", "001", 1), ("good", "000", 2)):
        (tmp_path / "maps" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(maps[index]).save(tmp_path / "maps" / kind / f"{name}.tiff")
        if kind != "good":
            (tmp_path / "masks" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(masks[index]).save(tmp_path / "masks" / kind / f"{name}_mask.png")
    folders = ("--maps", tmp_path / "maps", "--masks", tmp_path / "masks")
    result = run("evaluate", *folders, "--json", "-")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    expected = sf.metrics.evaluate(maps, masks > 0)
    assert figures["aupro"]["0.3"] == pytest.approx(expected["aupro"]["0.3"], abs=1e-12)
    assert figures["n"] == expected["n"]
    streamed = json.loads(run("evaluate", *folders, "--streaming", "--json", "-").stdout)
    error = abs(streamed["aupro"]["0.3"] - expected["aupro"]["0.3"])
    assert error <= streamed["bounds"]["aupro"]["0.3"] + 1e-12
    assert "scratch" in run("evaluate", *folders).stdout


def test_evaluate_by_another_protocol(model, category):
    options = ("--resize", "maps", "--smoothing", "1.5", "--pixels", "anomalous")
    result = run("evaluate", model, category, *options, "--json", "-")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    expected = sf.evaluate(sf.load(model), category, resize="maps", smoothing=1.5, images="anomalous").figures
    assert figures["aupro"] == pytest.approx(expected["aupro"], abs=1e-4)
    for key, value in (("smoothing", 1.5), ("images", "anomalous"), ("masks", "as they are")):
        assert figures["protocol"][key] == value
    for wrong in (("--resize", "both"), ("--pixels", "some"), ("--pixels", "all", "--output", "x")):
        refused = run("evaluate", model, category, *wrong)
        assert (refused.exit_code, wrong[0].strip("-") in refused.stderr.replace("images", "pixels")) == (
            2,
            True,
        )


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--maps", "a"), ("m", "d", "--maps", "a", "--masks", "b"), ("m",),
        ("--maps", "a", "--masks", "b", "--report", "r.html"),
    ],
)  # fmt: skip
def test_evaluate_wants_a_model_or_maps(arguments):
    result = run("evaluate", *arguments)
    assert result.exit_code == 2
    assert "MODEL" in result.stderr
