"""The columns' gain and offset, learnt and undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from strips import SMALL, assert_equal, detector, stream, strip, whole
from torch import Tensor

from stadfast.errors import DataError
from stadfast.linescan import FlatField, RowStreamer


def test_a_flat_field_undoes_the_columns_gain_and_offset() -> None:
    true = 0.3 + 0.4 * torch.rand(1, 3, 4000, 21, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    gain, offset = 1 + 0.3 * torch.rand(21, generator=generator), 0.1 * torch.rand(21, generator=generator)
    seen = (
        true * gain + offset
    ).double()  # so that the sums over the rows add no rounding to the field's own
    field = FlatField.learn(seen)
    corrected = seen * field.gain[None, :, None] + field.offset[None, :, None]

    def spread(of_columns: Tensor) -> float:
        return (of_columns / of_columns.mean(dim=-1, keepdim=True) - 1).abs().max().item()

    assert spread(corrected.mean(dim=2)) < 1e-5 < 0.05 < spread(seen.mean(dim=2))
    assert spread(corrected.std(dim=2)) < 1e-5 < 0.05 < spread(seen.std(dim=2))


def test_a_dead_column_keeps_its_gain() -> None:
    rows = torch.rand(1, 3, 100, 4, generator=torch.Generator().manual_seed(0))
    rows[..., 2] = 0.2
    field = FlatField.learn(rows)
    assert field.gain[:, 2].tolist() == [1, 1, 1]
    torch.testing.assert_close(0.2 + field.offset[:, 2], rows.mean(dim=(0, 2, 3)))


def test_rows_that_come_in_parts_are_learnt_as_if_at_once() -> None:
    rows = 0.4 + 0.1 * torch.rand(2, 3, 700, 5, generator=torch.Generator().manual_seed(0))
    rows[:, :, 600:] += 0.3
    variance, mean = torch.var_mean(rows.double(), dim=(0, 2))
    usual = variance.mean(dim=1, keepdim=True)
    gain = (usual / variance).sqrt()
    for given in (rows, iter(rows.split([1, 512, 187], dim=2))):
        field = FlatField.learn(given)
        torch.testing.assert_close(field.gain, gain.float())
        torch.testing.assert_close(
            field.offset, (mean.mean(dim=1, keepdim=True) - gain * mean).float(), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((1, 3, 9, 4), np.uint8), "expected a tensor .* got ndarray"),
        ([np.zeros((1, 3, 9, 4), np.uint8)], "got ndarray"),
        (torch.zeros(3, 9, 4), r"\(3, 9, 4\)"),
        (torch.zeros(1, 3, 9, 4, dtype=torch.int16), "int16"),
        (torch.full((1, 3, 9, 4), float("nan")), "not finite"),
        (torch.full((1, 3, 9, 4), float("inf")), "not finite"),
        (torch.full((1, 3, 9, 4), 255.0), "255; wanted floats"),
        (torch.zeros(1, 3, 1, 4), "at least 2 rows, got 1"),
        ([], "at least 2 rows, got 0"),
        ([torch.zeros(1, 3, 9, 4), torch.zeros(1, 3, 9, 5)], r"n, 4\)"),
    ],
)
def test_what_no_field_can_be_learnt_of(rows: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        FlatField.learn(rows)


def test_the_stream_is_that_of_the_corrected_strip() -> None:
    image = strip(60, 21)
    generator = torch.Generator().manual_seed(0)
    field = FlatField(
        1 + 0.1 * torch.rand(3, 21, generator=generator), 0.05 * torch.rand(3, 21, generator=generator)
    )
    found = RowStreamer(detector(SMALL), 21, flat_field=field)
    corrected = image * field.gain[None, :, None] + field.offset[None, :, None]
    assert_equal(torch.cat(stream(found, image, [25]), dim=2), whole(SMALL, corrected))
