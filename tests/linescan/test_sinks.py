"""Sinks that write files: what was found is there, whole and in order, whatever happens."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webs
from PIL import Image

from stadfast.errors import SinkError, UsageError
from stadfast.linescan import Callback
from stadfast.linescan.observer import Run
from stadfast.linescan.pictures import PALETTE, levels, thumbnail_png
from stadfast.linescan.sinks import CsvTable, JsonLines, Thumbnails

SPOTS, inspect = webs.SPOTS, webs.inspect_spots


def records(path, type="defect"):
    return [r for r in map(json.loads, path.read_text().splitlines()) if r["type"] == type]


@pytest.mark.parametrize("fsync", ["event", "second", "never"])
def test_json_lines(tmp_path, fsync):
    path = tmp_path / "new" / "events.jsonl"
    recorder = inspect(JsonLines(path, fsync))
    assert records(path) == json.loads(json.dumps([e.record() for e in recorder.events]))
    assert [r["lines"] for r in records(path)] == [list(s[:2]) for s in SPOTS]
    assert [r["lines_mm"] for r in records(path)] == [[s[0] / 2, s[1] / 2] for s in SPOTS]
    assert [r["kind"] for r in records(path, "notice")] == ["start", "end"]
    assert records(path, "run")[0]["threshold"] == 0.5
    with path.open("a") as file:
        file.write('{"type": "defect", "torn by a power c')
    inspect(JsonLines(path, fsync))
    lines = path.read_text().splitlines()
    assert [i for i, line in enumerate(lines) if not line.endswith("}")] == [len(lines) // 2]
    assert len(lines) == 2 * (1 + 2 + 3) + 1


def test_csv(tmp_path):
    path = tmp_path / "events.csv"
    recorder = inspect(CsvTable(path))
    inspect(CsvTable(path))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6  # and one header
    for row, event in zip(rows[:3], recorder.events, strict=True):
        defect = event.defect
        assert (int(row["first_line"]), int(row["end_line"])) == defect.rows
        assert (float(row["left_mm"]), float(row["right_mm"])) == defect.columns_mm
        assert (int(row["peak_line"]), int(row["peak_column"])) == defect.peak_position
        assert float(row["peak"]) == defect.peak
        assert row["at_gap"] == "0"
    assert all(re.fullmatch(r"\d{8}T\d{6}Z", row["run"]) for row in rows)
    path.write_text("time,place\n")
    with pytest.raises(SinkError, match="begins with other columns"):
        inspect(CsvTable(path))
    assert path.read_text() == "time,place\n"


def test_an_event_is_printed_without_its_pictures(capsys):
    inspect(Callback(print))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(SPOTS)
    assert not any("array" in line for line in printed)


def test_a_journal_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for sink in (JsonLines(tmp_path / "file" / "events"), CsvTable(tmp_path), Thumbnails(tmp_path / "file")):
        with pytest.raises(SinkError, match="cannot write"):
            inspect(sink)
    with pytest.raises(UsageError, match="fsync"):
        JsonLines(tmp_path / "events", "sometimes")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told():
    with pytest.raises(SinkError, match="No space left"):
        inspect(JsonLines("/dev/full"))


def test_a_line_that_a_full_disk_has_torn(tmp_path, monkeypatch):
    path, events = tmp_path / "events.csv", inspect().events
    sink = CsvTable(path)
    sink.open(Run("camera", 0.5, None))
    write, room = os.write, [10]

    def cramped(file, data):
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[: room.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", cramped)
        with pytest.raises(SinkError, match="No space left"):
            sink.event(events[0])
    sink.event(events[1])
    sink.event(events[2])
    sink.close()
    whole = path.read_text().splitlines()
    assert len(whole) == 4  # the header, ten characters, and what came when there was room again
    assert len(whole[1]) == 10
    assert [line.split(",")[1] for line in whole[2:]] == ["1", "2"]


def test_thumbnails(tmp_path, monkeypatch):
    starts = ["20261123T111500Z", "20261123T111501Z"]
    for start in starts:  # the second run leaves the first one's
        monkeypatch.setattr(time, "gmtime", lambda *_, t=start: time.strptime(t, "%Y%m%dT%H%M%SZ"))
        recorder = inspect(Thumbnails(tmp_path / "pictures"))
    names = [f"{start}-{i:06d}.png" for start in starts for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == names
    for event, name in zip(recorder.events, names[3:], strict=True):
        image = np.asarray(Image.open(tmp_path / "pictures" / name))
        height, width = event.thumbnail_map.shape
        assert image.shape == (height, 2 * width + 2, 3)
        assert np.array_equal(image[:, :width], np.broadcast_to(event.thumbnail, (height, width, 3)))
        shown = Image.open(io.BytesIO(thumbnail_png(event.thumbnail, event.thumbnail_map, 0.5)))
        assert np.array_equal(image, np.asarray(shown))  # on the page
        colours = PALETTE[levels(event.thumbnail_map, 0.5)]
        assert np.array_equal(image[:, width + 2 :], colours)
        assert (np.ptp(colours, axis=2) > 0).any()  # not grey


# ---------------------------------------------------------------- kill -9

KILLER = """
# Forks inspectors and kills them at random moments; prints what they had told by then.
import importlib.util, json, os, random, signal, sys, time
import numpy as np
from stadfast.linescan import Callback, Inspector
from stadfast.linescan.sinks import JsonLines
from stadfast.linescan.sources import ArraySource
spec = importlib.util.spec_from_file_location("webs", sys.argv[1])
webs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(webs)
moments = random.Random(7)
for kill in range(6):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        lines = webs.web(100, 32, [(40, 50, 3, 9), (70, 72, 20, 30)])
        sinks = [JsonLines(f"{kill}.jsonl", ("event", "second", "never")[kill % 3]),
                 Callback(lambda event: os.write(tell, b"%d\\n" % event.defect.id))]
        Inspector(webs.Brightness, ArraySource(lines, repeat=None), sinks, threshold=0.5).run()
        os._exit(1)
    os.close(tell)
    heard, wanted = b"", moments.randint(1, 60)
    while heard.count(b"\\n") < wanted:
        heard += os.read(told, 1 << 16)
    time.sleep(moments.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    while part := os.read(told, 1 << 16):
        heard += part
    os.close(told)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    print(heard.count(b"\\n"))
"""


def test_kill_9_loses_no_closed_event(tmp_path):
    command = [sys.executable, "-c", KILLER, str(Path(webs.__file__))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = [int(line) for line in done.stdout.split()]
    assert len(told) == 6
    assert len(set(told)) > 1, "all were killed at the same event: the moments are not random"
    for kill, count in enumerate(told):
        text = (tmp_path / f"{kill}.jsonl").read_text()
        assert text.endswith("\n")
        found = records(tmp_path / f"{kill}.jsonl")
        assert len(found) >= count  # what was told after it was written
        assert [r["id"] for r in found] == list(range(len(found)))
        wanted = [[100 * i + a, 100 * i + b] for i in range(len(found)) for a, b in ((40, 50), (70, 72))]
        assert [r["lines"] for r in found] == wanted[: len(found)]
