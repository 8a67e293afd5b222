"""``stadfast stream``: the whole program, from a source's name to lines on standard output and an exit code."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import stadfast as sf
from stadfast.cli import app
from stadfast.cli._sources import make_sinks, make_source, parse_margin, parse_pitch
from stadfast.cli.stream import LiveLine, default_rows, describe, learn_flat_field
from stadfast.errors import DataError, StadfastError, UsageError
from stadfast.linescan import Status, native_maps, sinks, sources

WIDTH = 48
runner = CliRunner()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Fitted in a moment: it knows grey noise, and little else."""
    path = tmp_path_factory.mktemp("model") / "noise.safetensors"
    images = list(good(10 * 64).reshape(10, 64, WIDTH, 3))
    detector = sf.STPM("efficientnet_lite0", image_size=(64, WIDTH), epochs=1, batch_size=4, device="cpu")
    detector.fit(images).save(path)
    return path


def good(rows, seed=0):
    return np.random.default_rng(seed).normal(120, 10, (rows, WIDTH, 3)).clip(0, 255).astype(np.uint8)


def web(rows):
    """Noise with a square that nobody has seen before at lines 200 to 231, columns 10 to 39."""
    lines = good(rows, seed=1)
    lines[200:232, 10:40] = (255, 0, 0)
    lines[200:232:4, 10:40] = (0, 255, 255)
    return lines


@pytest.fixture(scope="module")
def threshold(model):
    """Something of the web, and of its first 220 lines, is above it."""
    return 0.5 * min(float(scores(model, rows).max()) for rows in (220, 400))


def scores(model, rows):
    """The map of the web's first lines."""
    lines = torch.from_numpy(web(400)[:rows]).permute(2, 0, 1)
    return native_maps(sf.load(model, device="cpu"), lines)[0, 0]


def run(*arguments, **options):
    return runner.invoke(app, ["stream", *map(str, arguments), "--device", "cpu"], **options)


def defects(path):
    return [r for r in map(json.loads, path.read_text().splitlines()) if r["type"] == "defect"]


def assert_has_peak(path, model, rows):
    """The highest score of the web's first lines is where the network has it."""
    wanted = scores(model, rows)
    highest = max(defects(path), key=lambda r: r["peak"])
    assert highest["peak"] == pytest.approx(float(wanted.max()), rel=1e-4)
    place = tuple(highest["peak_position"])  # of scores that are equal but for rounding, it may be any
    assert highest["peak"] == pytest.approx(float(wanted[place]), rel=1e-4)


def test_an_image_from_end_to_end(model, threshold, tmp_path):
    Image.fromarray(web(400)).save(tmp_path / "web.png")
    out = tmp_path / "out"
    result = run(
        model, tmp_path / "web.png", "--threshold", threshold, "--pixel-pitch", "0.5x0.25", "--rows", 32,
        "--jsonl", out / "a.jsonl", "--csv", out / "a.csv", "--thumbnails", out, "--metrics", out / "a.prom",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert_has_peak(out / "a.jsonl", model, 400)
    events = defects(out / "a.jsonl")
    printed = [line.split("\t") for line in result.stdout.splitlines()]
    assert [int(line[0]) for line in printed] == [r["id"] for r in events]
    assert [line[1] for line in printed] == [f"{r['lines'][0]}-{r['lines'][1] - 1}" for r in events]
    assert len((out / "a.csv").read_text().splitlines()) == 1 + len(events)
    assert len(list(out.glob("*.png"))) == len(events)
    assert "stadfast_lines_total 400\n" in (out / "a.prom").read_text()
    assert f"400 lines inspected: {len(events)} defects, 0 lines lost" in result.stderr
    assert "ended: " in result.stderr


def test_raw_lines_on_standard_input(model, threshold, tmp_path):
    data = web(400).tobytes()
    arguments = ("-", "--width", str(WIDTH), "--format", "rgb8", "--threshold", str(threshold))
    command = [
        sys.executable,
        "-m",
        "stadfast",
        "stream",
        str(model),
        *arguments,
        "--jsonl",
        tmp_path / "a.jsonl",
    ]
    done = subprocess.run(command, input=data + b"rest", capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert_has_peak(tmp_path / "a.jsonl", model, 400)
    assert b"warning: standard input ends with 4 of a line's 144 bytes" in done.stderr
    (tmp_path / "lines.raw").write_bytes(data + b"rest")
    result = run(model, tmp_path / "lines.raw", *arguments[1:], "--on-fault", "stop")
    assert result.exit_code == 1
    assert "lines.raw ends with 4 of a line's 144 bytes" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_every_event(model, threshold, tmp_path, number):
    """The web stops in the middle of the square; the program is told to end."""
    os.mkfifo(tmp_path / "fifo")
    journal = tmp_path / "a.jsonl"
    command = [
        sys.executable, "-m", "stadfast", "stream", model, tmp_path / "fifo", "--width", WIDTH, "--format", "rgb8",
        "--threshold", threshold, "--jsonl", journal, "--rows", "16", "--device", "cpu",
    ]  # fmt: skip
    child = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        with (tmp_path / "fifo").open("wb", buffering=0) as fifo:  # waits for the program
            fifo.write(web(220).tobytes())
            while not journal.exists() or '"start"' not in journal.read_text():
                assert child.poll() is None, child.communicate()[1]
                time.sleep(0.05)
            time.sleep(0.5)
            child.send_signal(number)
            errors = child.communicate(timeout=120)[1]
    finally:
        child.kill()
    assert child.returncode == 128 + number, errors
    assert "every event is closed" in errors
    assert "Traceback" not in errors
    (last,) = [r for r in map(json.loads, journal.read_text().splitlines()) if r.get("kind") == "end"]
    if last["lines"] == 220:  # all had come before the signal; they need not have
        assert_has_peak(journal, model, 220)


def test_a_reader_who_has_seen_enough(model, threshold, tmp_path):
    Image.fromarray(web(400)).save(tmp_path / "web.png")
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-m",
        "stadfast",
        "stream",
        model,
        tmp_path / "web.png",
        "--threshold",
        threshold,
    ]
    with os.fdopen(write, "wb") as out:
        done = subprocess.run(
            list(map(str, command)), stdout=out, stderr=subprocess.PIPE, timeout=120, check=False
        )
    assert done.returncode == 141, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere",), 1, "nowhere: no such file or folder"),
        (("-",), 2, "--width"),
        (("-", "--width", "9", "--format", "mono12p"), 2, "even"),
        (("-", "--width", "9", "--format", "mono9"), 2, "mono8, mono12p"),
        (("simulate:silk",), 1, "silk"),
        (("video:0",), 2, "stadfast[video]"),
        (("genicam:a.cti",), 2, "stadfast[genicam]"),
        ((".", "--watch", "now"), 2, "--watch"),
        (("simulate:woven", "--line-rate", "0"), 2, "line_rate"),
        (("simulate:woven", "--rows", "7"), 2, "rows_per_push"),
        (("simulate:woven", "--threshold", "nan"), 2, "threshold"),
        (("simulate:woven", "--threshold", "1", "--low", "2"), 2, "low"),
        (("simulate:woven", "--pixel-pitch", "wide"), 2, "--pixel-pitch"),
        (("simulate:woven", "--pixel-pitch", "0"), 2, "pixel_pitch"),
        (("simulate:woven", "--margin", "-1"), 2, "--margin"),
        (("simulate:woven", "--margin", "1x2x3"), 2, "--margin"),
        (("simulate:woven", "--overrun", "panic"), 2, "overrun"),
        (("simulate:woven", "--capacity", "1"), 2, "capacity"),
        (("simulate:woven", "--on-fault", "cry"), 2, "on_fault"),
        (("simulate:woven", "--precision", "fp8"), 2, "precision"),
        (("simulate:woven", "--tcp", "nowhere"), 2, "--tcp"),
        (("simulate:woven", "--webhook", "gopher://a"), 2, "url"),
        (("simulate:woven", "--metrics", "host:x"), 2, "--metrics"),
        (("simulate:woven", "--metrics", "a.txt"), 2, "PORT, HOST:PORT or FILE.prom, got 'a.txt'"),
        (("simulate:woven", "--fsync", "maybe"), 2, "--fsync"),
        (("simulate:woven", "--jsonl", "-"), 2, "--jsonl: expected a file"),
        (("simulate:woven", "--csv", "-"), 2, "--csv: expected a file"),
        (("simulate:woven", "--jsonl", "/dev/null/x"), 1, "cannot write"),
    ],
)
def test_bad_input_is_one_line(model, arguments, code, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "harvesters.core", None)
    result = run(model, *arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(errors) == 1


def test_rows_that_any_downscale_can_take(model):
    """64 are no multiple of 3 x 16."""
    result = run(model, "simulate:woven", "--width", WIDTH, "--lines", 1, "--downscale", 3)
    assert result.exit_code == 0, result.output
    assert [default_rows(sf.load(model, device="cpu"), scale) for scale in (1, 2, 3, 8)] == [64, 64, 96, 128]


def test_a_model_that_is_none(tmp_path):
    (tmp_path / "model").write_text("no model")
    result = run(tmp_path / "model", "simulate:woven")
    assert result.exit_code == 1
    assert "model" in result.stderr


# ---------------------------------------------------------------- what things are called


def test_sources_by_name(tmp_path):
    (tmp_path / "a.raw").touch()
    Image.fromarray(good(4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(make_source("-", width=4), sources.RawLines)
    assert isinstance(make_source(str(tmp_path / "fifo"), width=4), sources.RawLines)
    assert isinstance(make_source(str(tmp_path / "a.raw"), width=4, format="mono16"), sources.RawLines)
    assert isinstance(make_source(str(tmp_path)), sources.ImageFiles)
    assert isinstance(make_source(str(tmp_path / "a.png")), sources.ImageFiles)
    assert isinstance(make_source(str(tmp_path), watch="new"), sources.WatchedFolder)
    assert isinstance(make_source("simulate:brushed", lines=5), sources.GeneratedWeb)
    assert isinstance(make_source(f"simulate:{tmp_path}"), sources.ImageFiles)
    assert isinstance(make_source("simulate:woven", line_rate=5.0), sources.Paced)
    with pytest.raises(UsageError, match="folder"):
        make_source(str(tmp_path / "a.png"), watch="all")
    with pytest.raises(DataError):
        make_source(str(tmp_path / "b.png"))
    with pytest.raises(DataError):
        make_source("")
    with pytest.raises(UsageError, match="simulate:PATH"):
        make_source("simulate:")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("folder", {"format": "mono8"}),
        ("folder", {"width": 9}),
        ("a.png", {"width": 9}),
        ("a.png", {"lines": 9}),
        ("-", {"watch": "all"}),
        ("-", {"defect_rate": 1.0}),
        ("simulate:folder", {"lines": 100}),
        ("simulate:folder", {"format": "bogus"}),
        ("simulate:woven", {"serial": "1"}),
        ("simulate:woven", {"features": ["x"]}),
        ("video:0", {"width": 9}),
        ("genicam:a.cti", {"lines": 9}),
    ],
)
def test_an_option_of_another_kind_of_source_is_refused(name, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path in ("a.png", "folder/a.png"):
        Image.fromarray(good(4)).save(path)
    (option,) = options
    option = {"defect_rate": "defect-rate", "features": "feature"}.get(option, option)
    with pytest.raises(UsageError, match=f"--{option}: expected .*, got {name}"):
        make_source(name, **options)


def test_sinks_by_name(tmp_path):
    made = make_sinks(
        jsonl=tmp_path / "a", csv=tmp_path / "b", thumbnails=tmp_path / "c", tcp="[::1]:70", webhook="http://a/b",
        metrics="0",
    )  # fmt: skip
    kinds = [
        sinks.JsonLines,
        sinks.CsvTable,
        sinks.Thumbnails,
        sinks.TcpLines,
        sinks.WebHook,
        sinks.PrometheusServer,
    ]
    assert [type(sink) for sink in made] == kinds
    assert isinstance(make_sinks(metrics="a.prom")[0], sinks.PrometheusFile)


def test_pitch():
    assert (parse_pitch("0.25"), parse_pitch("0.2x0.25")) == (0.25, (0.2, 0.25))


def test_margin():
    assert (parse_margin("8"), parse_margin("8x12")) == ((8, 8), (8, 12))


def test_flat_field_of_images_of_two_widths(tmp_path):
    Image.fromarray(good(8)).save(tmp_path / "a.png")
    assert learn_flat_field(tmp_path).gain.shape == (3, WIDTH)
    Image.fromarray(good(8)[:, :20]).save(tmp_path / "b.png")
    with pytest.raises(StadfastError, match=r"one width in .*\[20, 48\]"):
        learn_flat_field(tmp_path)


STATUS = Status("running", 9.0, 5000, 512.3, 0.456, 169, 0.25, 7, 4096, 3, 0, 21, 1, 1, 0)


def test_the_live_line():
    assert describe(STATUS) == (
        "running: 512 lines/s, 21 lost, 3 defects, 46 % busy, delay 0.25 s, queue 7/4096"
    )


def test_the_live_line_fits_its_terminal(monkeypatch):
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 30, 0, 0))
    with os.fdopen(terminal, "w") as stderr, os.fdopen(controller, "rb", buffering=0) as seen:
        monkeypatch.setattr(sys, "stderr", stderr)
        LiveLine().status(STATUS)
        assert seen.read(1000) == b"\rrunning: 512 lines/s, 21 lost\x1b[K"
        monkeypatch.undo()
