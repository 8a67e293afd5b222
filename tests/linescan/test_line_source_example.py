"""examples/line_source.py: a source of one's own is a few lines, and brings time and encoder with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

import stadfast as sf
from stadfast.data import Material
from stadfast.linescan import Callback

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "line_source.py"


def test_the_frame_grabber_is_inspected(capsys):
    spec = importlib.util.spec_from_file_location("line_source", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    good = np.stack([Material("woven", 64, seed).rows(0, 64)[0] for seed in range(6)])
    detector = sf.STPM(weights=None, layers=["layer1"], image_size=64, epochs=1, device="cpu").fit(good)
    events = []
    low = 0.6 * detector.pixel_threshold_  # hardly trained: something has to be found
    status = example.inspect(
        detector, Callback(events.append), Callback(example.show), threshold=low, min_area=4
    )
    assert (status.lines, status.lost, status.faults) == (640, 0, 0)
    assert len(events) == status.defects > 0
    for event in events:
        first, end = event.defect.rows
        assert event.encoder == (4 * first, 4 * (end - 1))
        assert event.last_time >= event.first_time
    assert capsys.readouterr().out.count("encoder (") == len(events)
