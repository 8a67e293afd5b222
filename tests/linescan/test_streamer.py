"""The stream is the whole strip's map, however the strip is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strips import CASES, SMALL, TINY, assert_equal, detector, stream, streamer, strip, whole
from torch import Tensor

from stadfast.errors import UsageError
from stadfast.linescan import RowStreamer, TiledStreamer


@pytest.mark.parametrize("case", CASES)
def test_a_stream_is_the_whole_strip(case: str) -> None:
    unit = CASES[case][0]
    image = strip(max(5 * unit, 45) + 5, max(2 * unit, 32) + 3)
    found = streamer(case, image.shape[3])
    assert found.unit == unit
    assert_equal(torch.cat(stream(found, image, [37, 1, 0, 64]), dim=2), whole(case, image))


@pytest.mark.parametrize("case", TINY)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 150),
    width=st.sampled_from([32, 41, 48]),
    pushes=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_any_size_in_any_pushes(case: str, height: int, width: int, pushes: list[int], seed: int) -> None:
    height = max(height, 17 if case.startswith("stereotype") else 1)  # longer than its mirrored border
    image = strip(height, width, seed=seed)
    assert_equal(torch.cat(stream(streamer(case, width), image, pushes), dim=2), whole(case, image))


def test_without_compiled_kernels_the_recorded_references_are_streamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stadfast.ops._library.has_kernel", lambda device: False)
    for case in ("resnet18-paper", "vgg16"):
        image = strip(45, 21)
        maps = torch.cat(stream(RowStreamer(detector(case), 21), image, [9]), dim=2)
        assert_equal(maps, whole(case, image))


def test_steps_of_a_fixed_size_give_the_same() -> None:
    image = strip(107, 21)
    assert_equal(torch.cat(stream(streamer(SMALL, 21, 24), image, [10, 33]), dim=2), whole(SMALL, image))


def test_there_is_no_seam_at_the_boundaries_of_pushes() -> None:
    """The difference to the whole strip is as small there as anywhere, and the tiles' is not."""
    image = strip(200, 24)
    expected = whole(SMALL, image)
    exact = torch.cat(stream(streamer(SMALL, 24), image, [40]), dim=2)
    tiled = torch.cat(stream(TiledStreamer(detector(SMALL), 24, 40, overlap=8), image, [40]), dim=2)
    seams = [row + side for row in range(40, 200, 40) for side in (-1, 0)]
    limit = 1e-5 * expected.max()
    assert (exact - expected)[:, :, seams].abs().max() < limit < (tiled - expected)[:, :, seams].abs().max()


def test_the_state_does_not_grow() -> None:
    found = streamer(SMALL, 21)
    found.reset()
    sizes, rows = set(), 0
    for n in [1, 7, 64, 200, 3, 500, 8, 8]:
        rows += found.push(strip(n, 21)).shape[2]
        if found.rows > 16:
            sizes.add(found.state_bytes)
    assert len(sizes) == 1
    assert rows + found.finish().shape[2] == 791


@pytest.mark.parametrize(("case", "rows_per_push"), [(SMALL, None), (SMALL, 40), ("resnet18", None)])
def test_the_stated_delay_is_true_and_reached(case: str, rows_per_push: int | None) -> None:
    """Row r of the map comes with the push of row r + delay_rows at the latest, and for some r not before."""
    found = streamer(case, 16, rows_per_push)
    found.reset()
    given, worst = 0, 0
    for pushed, row in enumerate(strip(400, 16).split(1, dim=2)):
        new = found.push(row).shape[2]
        if new:
            worst = max(worst, pushed - given)
        given += new
    assert worst == found.delay_rows
    found.reset()


def test_a_defect_is_in_the_map_after_the_delay() -> None:
    """An impulse shows in its own row of the map, as soon as this row is out."""
    good = strip(320, 32)
    bad = good.clone()
    bad[:, :, 200:204, 12:20] = 1 - bad[:, :, 200:204, 12:20].round()
    found = streamer(SMALL, 32)
    maps = []
    for image in (good, bad):
        found.reset()
        maps.append(
            torch.cat(
                [found.push(row) for row in image[:, :, : 201 + found.delay_rows].split(1, dim=2)], dim=2
            )
        )
    assert maps[0].shape[2] > 200
    changed = (maps[0] - maps[1]).abs().amax(dim=(0, 1, 3)) / maps[0].max()
    assert changed[200] > 0.01
    assert changed[:60].max() < 1e-6


@pytest.mark.parametrize(
    ("case", "batch"), [("resnet18", 1), ("resnet18-paper", 2), ("efficientnet_lite0", 1)]
)
def test_steady_steps_and_others_in_turn(case: str, batch: int) -> None:
    """Blocks of the usual size go through memory made once, others do not; the state passes from one to the other."""
    image = strip(620, 32, batch)
    maps = torch.cat(stream(streamer(case, 32), image, [320, 64, 16, 128, 40, 24]), dim=2)
    assert_equal(maps, whole(case, image))


def test_cameras_of_a_batch_do_not_see_each_other() -> None:
    images = torch.cat([strip(70, 21, seed=1), strip(70, 21, seed=2)])
    both = torch.cat(stream(streamer(SMALL, 21), images, [17]), dim=2)
    single = [torch.cat(stream(streamer(SMALL, 21), image[None], [17]), dim=2) for image in images]
    assert_equal(both, torch.cat(single))


def test_a_strip_leaves_nothing_behind() -> None:
    found, image = streamer(SMALL, 21), strip(50, 21)
    found.push(strip(100, 21, batch=2, seed=5))
    found.finish()
    assert_equal(torch.cat([found.push(image), found.finish()], dim=2), whole(SMALL, image))
    assert found.rows == 0


def test_an_empty_strip_has_an_empty_map() -> None:
    found = streamer(SMALL, 21)
    found.reset()
    assert found.finish().shape == (0, 1, 0, 21)
    assert found.push(strip(1, 21)[:, :, :0]).shape == (1, 1, 0, 21)
    assert found.finish().shape == (1, 1, 0, 21)


def test_pixels_may_come_as_bytes() -> None:
    image = (strip(60, 21) * 255).to(torch.uint8)
    maps = torch.cat(stream(streamer(SMALL, 21), image, [25]), dim=2)
    assert_equal(maps, whole(SMALL, image.float() / 255))


def test_downscaled_maps_have_the_strips_resolution() -> None:
    image = strip(100, 37)
    found = RowStreamer(detector(SMALL), 37, downscale=2)
    assert found.unit == 16
    assert_equal(torch.cat(stream(found, image, [13, 50]), dim=2), whole(SMALL, image, downscale=2))


def test_half_precision_is_close_and_gives_float32() -> None:
    image = strip(90, 24)
    maps = torch.cat(stream(RowStreamer(detector(SMALL), 24, precision="bf16"), image, [32]), dim=2)
    expected = whole(SMALL, image)
    assert maps.dtype == torch.float32
    assert 0 < (maps - expected).abs().max() < 0.1 * expected.max()


# ------------------------------------------------------------------------------------------- the steady state


@pytest.fixture
def steady() -> tuple[RowStreamer, Tensor, Tensor]:
    """A streamer after its first rows, the rows of the next steps, and the maps that push gives for them."""
    found = streamer(SMALL, 21, 16)
    image = strip(256, 21)
    found.reset()
    found.push(image[:, :, :208])
    before = found.state
    expected = found.push(image[:, :, 208:])
    found._state = before
    return found, image[:, :, 208:], expected


def test_a_step_is_a_pure_function(steady: tuple[RowStreamer, Tensor, Tensor]) -> None:
    found, rows, expected = steady
    copies = [t.clone() for t in found.state]
    state, maps = found.state, []
    for block in rows.split(16, dim=2):
        found_maps, state = found.step(block, state)
        maps.append(found_maps)
    torch.testing.assert_close(torch.cat(maps, dim=2), expected, rtol=0, atol=0)
    for kept, old, new in zip(found.state, copies, state, strict=True):
        assert torch.equal(kept, old)
        assert new.shape == old.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_step_can_be_traced(steady: tuple[RowStreamer, Tensor, Tensor]) -> None:
    found, rows, expected = steady
    traced = torch.jit.trace(found.module, (rows[:, :, :16], found.state))
    state, maps = found.state, []
    for block in rows.split(16, dim=2):
        found_maps, state = traced(block, state)
        maps.append(found_maps)
    assert_equal(torch.cat(maps, dim=2), expected)


def test_a_step_can_be_exported(steady: tuple[RowStreamer, Tensor, Tensor]) -> None:
    found, rows, expected = steady
    program = torch.export.export(found.module, (rows[:, :, :16], found.state)).module()
    maps, state = program(rows[:, :, :16], found.state)
    assert_equal(maps, expected[:, :, :16])
    maps, _ = program(rows[:, :, 16:32], state)
    assert_equal(maps, expected[:, :, 16:32])


def test_the_steady_state_says_when_it_is_not_there() -> None:
    found = streamer(SMALL, 21, 16)
    found.reset()
    found.push(strip(16, 21))
    with pytest.raises(UsageError, match=r"state: the steady state needs \d+ rows .* 16 came"):
        _ = found.state
