"""The columns' gain and offset, learnt and undone."""

from __future__ import annotations

import torch
from strips import SMALL, assert_equal, detector, stream, strip, whole
from torch import Tensor

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


def test_the_stream_is_that_of_the_corrected_strip() -> None:
    image = strip(60, 21)
    generator = torch.Generator().manual_seed(0)
    field = FlatField(
        1 + 0.1 * torch.rand(3, 21, generator=generator), 0.05 * torch.rand(3, 21, generator=generator)
    )
    found = RowStreamer(detector(SMALL), 21, flat_field=field)
    corrected = image * field.gain[None, :, None] + field.offset[None, :, None]
    assert_equal(torch.cat(stream(found, image, [25]), dim=2), whole(SMALL, corrected))
