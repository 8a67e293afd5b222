"""The overview picture: a column for each defect type, nothing for good images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stadfast.report import Record, write_overview


def test_a_column_for_each_defect_type(tmp_path: Path) -> None:
    records = []
    for i, defect in enumerate([None, "hole", "hole", "hole", "stain"]):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.full((40, 60, 3), 50 * i, np.uint8)).save(path)
        mask = torch.zeros(20, 30, dtype=torch.bool)
        mask[5:9, 5:9] = defect is not None
        records.append(
            Record(path, int(defect is not None), defect, float(i), torch.full((20, 30), 0.1), mask)
        )
    write_overview(tmp_path / "overview.png", records, threshold=0.5)
    picture = np.asarray(Image.open(tmp_path / "overview.png"))
    assert picture.shape == (40 + 8 + 40, 60 + 8 + 60, 3)
    assert (picture[:40, :60] == 100).all()  # of three holes the one with the median score
    assert (picture[:40, 68:] == 200).all()
    assert (picture[48:, :60] == (0, 230, 118)).all(axis=2).any()  # the ground truth's contour
    assert sorted(p.name for p in tmp_path.glob("*overview*")) == ["overview.png"]
