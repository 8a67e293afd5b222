"""Sources of lines, each against what was put into it."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from stadfast.data import Defect, Material
from stadfast.errors import DataError, SourceError, UsageError
from stadfast.linescan.sources import (
    ArraySource,
    GeneratedWeb,
    GenICamCamera,
    ImageFiles,
    Paced,
    RawLines,
    VideoDevice,
    WatchedFolder,
)
from stadfast.linescan.sources.base import NOTHING, Block, natural_order
from stadfast.linescan.sources.raw import unpack


def everything(source, limit=10_000):
    """All lines until the end, and the notices; the source is opened and closed."""
    source.open()
    rows, notices = [], []
    for _ in range(limit):
        block = source.read(0.05)
        if block is None:
            break
        notices += block.notices
        if len(block.rows):
            rows.append(block.rows)
    else:
        raise AssertionError("the source has no end")
    source.close()
    return (np.concatenate(rows) if rows else None), notices


def noise(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


# ---------------------------------------------------------------- memory and simulator


@pytest.mark.parametrize("shape", [(100, 8), (100, 8, 1), (100, 8, 3)])
def test_array(shape):
    rows = noise(shape)
    found, _ = everything(ArraySource(rows, block=7, repeat=2))
    assert np.array_equal(found, np.concatenate([rows, rows]).reshape(200, 8, -1))


def test_sizes_may_be_numpys():
    rows, size = noise((300, 200)), np.uint8(200)
    assert np.array_equal(everything(ArraySource(rows, size, np.int64(1)))[0][:, :, 0], rows)
    assert everything(GeneratedWeb(lines=size, block=size))[0].shape == (200, 256, 3)
    with pytest.raises(UsageError, match="block"):
        ArraySource(rows, np.bool_(True))
    with pytest.raises(UsageError, match="first: expected a whole number from 0"):
        GeneratedWeb(first=0.5)


def test_generated_web_is_the_material():
    defect = Defect("hole", 60, 30, 10.0)
    source = GeneratedWeb("woven", 64, 150, first=20, seed=3, defects=[defect], block=32)
    found, _ = everything(source)
    assert np.array_equal(found, Material("woven", 64, 3, defects=[defect]).rows(20, 150)[0])
    assert np.array_equal(everything(source)[0], found)  # once more from the beginning


@pytest.fixture
def now(monkeypatch):
    """The clock: it stands still but for those who sleep."""
    now = [1_000_000_000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + round(seconds * 1e9)))
    return now


def test_paced_begins_anew_after_a_pause(now):
    lines, pause = Block(noise((20, 8, 1))), 5_000_000_000
    blocks = iter([lines, NOTHING, lines, None])
    inner = types.SimpleNamespace(name="folder", open=lambda: None, read=lambda timeout: next(blocks))
    source = Paced(inner, 1000, block=10)
    source.open()
    before = [source.read(0.1) for _ in range(3)]
    now[0] += pause
    after = [source.read(0.1) for _ in range(2)]
    assert [len(block.rows) for block in before + after] == [10, 10, 0, 10, 10]
    stamps = np.concatenate([block.timestamps for block in after])
    wanted = 1_020_000_000 + pause + np.arange(1, 21) * 1_000_000
    np.testing.assert_allclose(stamps, wanted, atol=2)
    assert now[0] == pytest.approx(wanted[-1], abs=2)
    assert source.read(0.1) is None


def test_paced_keeps_the_rate_and_the_lines(now):
    rows = noise((100, 8, 1))
    source = Paced(ArraySource(rows, block=64), 1000, block=10)
    source.open()
    found, stamps, empty = [], [], 0
    while (block := source.read(0.004)) is not None:
        empty += not len(block.rows)
        if len(block.rows):
            found.append(block.rows)
            stamps.append(block.timestamps)
            assert now[0] >= block.timestamps[-1] - 2
    assert np.array_equal(np.concatenate(found), rows)
    assert max(map(len, found)) == 10
    np.testing.assert_allclose(np.diff(np.concatenate(stamps)), 1_000_000, atol=2)
    assert empty  # no block is due within 4 ms: 10 lines take 10 ms
    assert now[0] - 1_000_000_000 == pytest.approx(100_000_000, abs=1000)


# ---------------------------------------------------------------- files


def save(path, rows):
    array = rows if rows.ndim == 2 or rows.shape[2] == 3 else rows[:, :, 0]
    Image.fromarray(array).save(path)
    return path


def test_files_in_natural_order(tmp_path):
    parts = [noise((30, 16, 3), seed=i) for i in range(12)]
    for i, part in enumerate(parts):
        save(tmp_path / f"line_{i}.png", part)
    found, notices = everything(ImageFiles(tmp_path, block=16))
    assert np.array_equal(found, np.concatenate(parts))
    assert notices == []
    source = ImageFiles(tmp_path, repeat=True)
    source.open()
    assert sum(len(source.read(0).rows) for _ in range(30)) == 900


def test_natural_order():
    names = ["a10b2", "a9", "b", "a10b10", "a", "a09"]
    assert [p.name for p in natural_order(map(Path, names))] == ["a", "a09", "a9", "a10b2", "a10b10", "b"]


def test_deep_and_broken_files(tmp_path):
    deep = noise((20, 16), np.uint16)
    save(tmp_path / "1.png", deep)
    (tmp_path / "2.png").write_bytes(b"\x89PNG but not really")
    found, notices = everything(ImageFiles(tmp_path))
    assert found.dtype == np.uint16
    assert np.array_equal(found[:, :, 0], deep)
    assert [(n.kind, n.fault) for n in notices] == [("unreadable", True)]
    assert "2.png" in notices[0].message


def test_no_files(tmp_path):
    with pytest.raises(DataError):
        ImageFiles(tmp_path / "nowhere")
    with pytest.raises(DataError):
        ImageFiles(tmp_path)


def test_watched_folder_waits_until_a_file_is_whole(tmp_path):
    old, new, late = (noise((10, 16), seed=i) for i in range(3))
    save(tmp_path / "0.png", old)
    source = WatchedFolder(tmp_path, existing=True, settle=0)
    source.open()
    assert np.array_equal(source.read(1).rows[:, :, 0], old)
    assert len(source.read(0).rows) == 0

    save(tmp_path / "whole.png", new)
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").unlink()
    source._settle = 1e6  # nothing is ever whole
    (tmp_path / "1.png").write_bytes(data[:20])
    assert len(source.read(0).rows) == 0
    (tmp_path / "1.png").write_bytes(data)
    assert len(source.read(0).rows) == 0
    source._settle = 0
    assert np.array_equal(source.read(1).rows[:, :, 0], new)
    save(tmp_path / "note.txt.png", late)
    (tmp_path / "text.txt").write_text("not an image")
    (tmp_path / "empty.png").touch()
    assert np.array_equal(source.read(1).rows[:, :, 0], late)
    assert len(source.read(0).rows) == 0


def test_watched_folder_only_new_files_and_a_folder_that_goes(tmp_path):
    folder = tmp_path / "in"
    with pytest.raises(SourceError, match="cannot watch"):
        WatchedFolder(folder).open()
    folder.mkdir()
    save(folder / "0.png", noise((10, 16)))
    source = WatchedFolder(folder, existing=False, settle=0)
    source.open()
    assert len(source.read(0).rows) == 0
    save(folder / "0.png", noise((12, 16), seed=5))  # replaced: new
    assert len(source.read(1).rows) == 12
    (folder / "0.png").unlink()
    folder.rmdir()
    with pytest.raises(SourceError, match="cannot watch"):
        source.read(0)
    folder.mkdir()
    source.open()
    save(folder / "0.png", noise((9, 16), seed=6))
    assert len(source.read(1).rows) == 9


# ---------------------------------------------------------------- raw lines


def pack12(values):
    """(n,) of 12 bits -> bytes, two in three, lowest bits first."""
    bits = (values[:, None] >> np.arange(12)) & 1
    return np.packbits(bits.reshape(-1).astype(np.uint8), bitorder="little").tobytes()


def test_unpack():
    values = noise((5 * 6,), np.uint16) % 4096
    found = unpack(pack12(values), 6, "mono12p")
    assert np.array_equal(found.reshape(-1) >> 4, values)
    assert unpack(b"\xff" * 9, 6, "mono12p").min() == 65535
    assert unpack(b"\0" * 9, 6, "mono12p").max() == 0
    deep = noise((5, 6, 1), np.uint16)
    assert np.array_equal(unpack(deep.astype("<u2").tobytes(), 6, "mono16"), deep)
    assert np.array_equal(unpack(noise((5, 6, 3)).tobytes(), 6, "rgb8"), noise((5, 6, 3)))


@pytest.mark.parametrize("format", ["mono8", "rgb8", "mono12p", "mono16"])
def test_raw_file_with_half_a_line_at_its_end(tmp_path, format):
    line = {"mono8": 10, "rgb8": 30, "mono12p": 15, "mono16": 20}[format]
    data = noise((50 * line,)).tobytes()
    (tmp_path / "lines.raw").write_bytes(data + b"half")
    found, notices = everything(RawLines(tmp_path / "lines.raw", 10, format))
    assert np.array_equal(found, unpack(data, 10, format))
    assert [n.kind for n in notices] == ["truncated"]
    assert f"4 of a line's {line} bytes" in notices[0].message


def test_fifo_in_odd_pieces(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    data = noise((300, 10, 1))
    source = RawLines(path, 10)
    source.open()
    assert len(source.read(0).rows) == 0  # nobody writes yet: no line, no end

    def write():
        with path.open("wb", buffering=0) as file:
            for i in range(0, 3000, 7):
                file.write(data.tobytes()[i : i + 7])

    writer = threading.Thread(target=write)
    writer.start()
    rows = []
    while (block := source.read(5)) is not None:
        rows.append(block.rows.reshape(-1, 10, 1))
    writer.join()
    source.close()
    assert np.array_equal(np.concatenate(rows), data)


def test_raw_lines_that_cannot_be(tmp_path):
    for arguments, named in (((0,), "width"), ((10, "mono9"), "format"), ((11, "mono12p"), "width")):
        with pytest.raises(UsageError, match=named):
            RawLines("-", *arguments)
    with pytest.raises(SourceError, match="nowhere"):
        RawLines(tmp_path / "nowhere", 10).open()
    with pytest.raises(UsageError, match="got the folder"):
        RawLines(tmp_path, 10)
    source = RawLines(tmp_path / "later", 10)
    (tmp_path / "later").mkdir()
    source.open()
    with pytest.raises(SourceError):
        source.read(0)


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python does then
    with pytest.raises(SourceError, match="standard input: it is closed"):
        RawLines("-", 10).open()


# ---------------------------------------------------------------- cameras


class FakeCapture:
    """What OpenCV's VideoCapture does, with frames of our own."""

    frames: ClassVar[list] = []
    there = True

    def __init__(self, device):
        self.device, self.left, self.released = device, list(self.frames), False

    def isOpened(self):  # noqa: N802
        return self.there

    def read(self):
        return (True, self.left.pop(0)) if self.left else (False, None)

    def release(self):
        self.released = True


def test_video(monkeypatch, tmp_path):
    frames = [noise((20, 16, 3), seed=i) for i in range(3)]
    monkeypatch.setattr(FakeCapture, "frames", frames)
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=FakeCapture))
    (tmp_path / "film.avi").touch()
    found, _ = everything(VideoDevice(tmp_path / "film.avi", rows=(5, 15)))
    assert np.array_equal(found, np.concatenate([f[5:15, :, ::-1] for f in frames]))
    device = VideoDevice("0")
    device.open()
    assert (device.live, VideoDevice(tmp_path / "film.avi").live) == (True, False)
    assert device._capture.device == 0
    assert len([device.read(0) for _ in range(3)]) == 3
    with pytest.raises(SourceError, match="no more frames"):
        device.read(0)
    monkeypatch.setattr(FakeCapture, "there", False)
    with pytest.raises(SourceError, match="cannot open video 7"):
        VideoDevice("7").open()


class Buffer:
    def __init__(self, camera, component):
        self.camera, self.payload = camera, types.SimpleNamespace(components=[component])
        if hasattr(component, "frame"):
            self.module = types.SimpleNamespace(frame_id=component.frame)

    def __enter__(self):
        self.camera.out += 1
        return self

    def __exit__(self, *_):
        self.camera.out -= 1
        self.payload.components[0].data[:] = 0  # the camera writes into it again


class FakeHarvester:
    """What harvesters does: a list of buffers, None (nothing in time) and errors."""

    steps: ClassVar[list] = []
    made: ClassVar[list] = []

    def __init__(self):
        self.calls, self.out = [], 0
        node = types.SimpleNamespace
        self.remote_device = node(node_map=node(AcquisitionLineRate=node(value=None)))
        self.made.append(self)

    def __getattr__(self, name):
        return lambda *a: self.calls.append((name, *a))

    def create(self, search):
        self.calls.append(("create", search))
        if search == {"serial_number": "absent"}:
            raise ValueError("no candidate")
        return self

    def try_fetch(self, *, timeout):
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        return None if step is None else Buffer(self, step)


@pytest.fixture
def harvesters(monkeypatch, tmp_path):
    module = types.ModuleType("harvesters.core")
    module.Harvester = FakeHarvester
    monkeypatch.setitem(sys.modules, "harvesters", types.ModuleType("harvesters"))
    monkeypatch.setitem(sys.modules, "harvesters.core", module)
    monkeypatch.setattr(FakeHarvester, "steps", [])
    monkeypatch.setattr(FakeHarvester, "made", [])
    producer = tmp_path / "maker.cti"
    producer.touch()
    return producer


def component(data_format, lines, padding=0):
    data = lines.reshape(len(lines), -1)
    data = np.pad(data, ((0, 0), (0, padding))).reshape(-1).copy()
    return types.SimpleNamespace(data_format=data_format, data=data, height=len(lines), width=lines.shape[1])


def test_genicam(harvesters):
    mono, rgb, deep = noise((8, 6, 1)), noise((4, 6, 3)), noise((4, 6, 1), np.uint16) % 4096
    deep[0, 0] = 4095
    FakeHarvester.steps += [
        component("Mono8", mono, padding=2), None, component("RGB8", rgb), component("Mono12", deep),
        component("BayerRG8", mono), RuntimeError("cable"),
    ]  # fmt: skip
    camera = GenICamCamera(harvesters, "SN1", {"AcquisitionLineRate": 20000})
    camera.open()
    fake = FakeHarvester.made[0]
    assert fake.remote_device.node_map.AcquisitionLineRate.value == 20000
    assert fake.calls == [
        ("add_file", str(harvesters)),
        ("update",),
        ("create", {"serial_number": "SN1"}),
        ("start",),
    ]
    assert np.array_equal(camera.read(1).rows, mono)
    assert len(camera.read(0).rows) == 0
    assert np.array_equal(camera.read(1).rows, rgb)
    found = camera.read(1).rows
    assert (found[0, 0], found.dtype) == (65535, np.uint16)
    assert np.array_equal(found >> 4, deep)
    with pytest.raises(SourceError, match="BayerRG8; set its PixelFormat"):
        camera.read(1)
    assert fake.out == 0  # every buffer went back
    with pytest.raises(SourceError, match="cable"):
        camera.read(1)
    camera.close()
    assert [call[0] for call in fake.calls[-3:]] == ["stop", "destroy", "reset"]
    camera.open()
    assert len(FakeHarvester.made) == 2


def test_genicam_tells_of_frames_that_never_came(harvesters):
    """65535 -> 1 is where the 16 bits of GigE Vision's numbers begin anew; the one without has none."""
    numbers = (7, 8, 11, 65535, 1, 2, None, 9, 10, 12)
    for number in numbers:
        frame = component("Mono8", noise((8, 6, 1)))
        if number is not None:
            frame.frame = number
        FakeHarvester.steps.append(frame)
    camera = GenICamCamera(harvesters)
    camera.open()
    told = {number: camera.read(1).notices for number in numbers}
    gaps = {
        number: [(n.kind, n.details, n.fault) for n in notices] for number, notices in told.items() if notices
    }
    assert gaps == {
        11: [("gap", {"lines": 16, "frames": 2}, False)],
        65535: [("gap", {"lines": 65523 * 8, "frames": 65523}, False)],
        12: [("gap", {"lines": 8, "frames": 1}, False)],
    }
    assert "16 lines lost: camera (the only one) of" in told[11][0].message
    FakeHarvester.steps.append(types.SimpleNamespace(**vars(component("Mono8", noise((8, 6, 1)))), frame=99))
    camera.open()  # the numbers begin anew
    assert camera.read(1).notices == ()


def test_genicam_that_is_not_there(harvesters, tmp_path):
    with pytest.raises(SourceError, match="no GenTL producer"):
        GenICamCamera(tmp_path / "none.cti").open()
    with pytest.raises(SourceError, match="no candidate"):
        GenICamCamera(harvesters, "absent").open()


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "harvesters.core", None)
    with pytest.raises(UsageError, match=r"stadfast\[video\]"):
        VideoDevice(0)
    with pytest.raises(UsageError, match=r"stadfast\[genicam\]"):
        GenICamCamera(tmp_path)
