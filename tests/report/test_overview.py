"""The overview picture: a column for each defect type, nothing for good images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stadfast.errors import UsageError
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


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    records = []
    for defect, size in (("hole", (40, 60)), ("stain", (24, 30))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{defect}.png")
        records.append(Record(tmp_path / f"{defect}.png", 1, defect, 1.0, torch.full((20, 30), 0.1)))
    write_overview(tmp_path / "overview.png", records, threshold=0.5)
    picture = np.asarray(Image.open(tmp_path / "overview.png"))
    assert picture.shape == (40 + 8 + 40, 60 + 8 + 30, 3)
    assert (picture[24:48, 68:] == 255).all()
    assert (picture[:24, 68:] == 0).all()


def test_without_defects_there_is_no_overview(tmp_path: Path) -> None:
    good = Record(tmp_path / "0.png", 0, None, 0.0, torch.zeros(4, 4))
    with pytest.raises(UsageError, match="at least one defective image, for a column; got 1 good ones"):
        write_overview(tmp_path / "overview.png", [good], threshold=0.5)
