"""The stream is the whole strip's map, however the strip is cut."""

from __future__ import annotations

import copy
import functools
import resource
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import stadfast as sf
from stadfast.errors import StadfastError, UsageError
from stadfast.linescan import FlatField, RowStreamer, TiledStreamer, native_maps
from stadfast.methods import Detector, ScoringGraph, create

# the deepest stride, the method and its arguments
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "resnet18": (16, "stpm", {}),
    "resnet18-paper": (8, "stpm", {"layers": ["stem", "layer2"], "variant": "paper", "combine": "sum"}),
    "resnet34": (8, "stpm", {"backbone": "resnet34", "layers": ["layer1", "layer2"], "image_size": (48, 64)}),
    "resnet50": (8, "stpm", {"backbone": "resnet50", "layers": ["layer1", "layer2"], "combine": "mean"}),
    "wide_resnet50_2": (4, "stpm", {"backbone": "wide_resnet50_2", "layers": ["layer1"]}),
    "vgg16": (8, "stpm", {"backbone": "vgg16", "layers": ["pool2", "pool3"]}),
    "efficientnet_lite0": (16, "stpm", {"backbone": "efficientnet_lite0"}),
    "stem": (4, "stpm", {"layers": ["stem"]}),
    "et-stpm": (8, "et-stpm", {"layers": ["layer2"]}),
    "msfi": (8, "msfi", {"scales": [64], "layers": ["layer1", "layer2"]}),
    "stereotype": (1, "stereotype", {"arch": "stad", "patch_size": 17, "widths": (1, 1), "map_stride": 1}),
    "stereotype-stride": (
        2,
        "stereotype",
        {"arch": "stad", "patch_size": 33, "widths": (2,), "map_stride": 2},
    ),
    "msfi-sizes": (8, "msfi", {"scales": [32, 64, 96], "image_size": 64, "layers": ["layer1"]}),
    "msfi-third": (12, "msfi", {"scales": [32, 128], "image_size": 96, "layers": ["layer1"]}),
    "rstpm": (32, "rstpm", {"backbone2": "resnet18", "decoder_blocks": 1}),
}
TINY = (
    "resnet34",
    "et-stpm",
    "rstpm",
    "msfi",
    "msfi-sizes",
    "stereotype",
    "stereotype-stride",
)  # every method
SMALL = "resnet34"  # the shortest reach: what is not about networks is tested on it


@functools.cache
def detector(case: str) -> Detector:
    """Not trained, but no two channels alike, and student unlike teacher."""
    _, method, arguments = CASES[case]
    return untrained(create(method, weights=None, device="cpu", **arguments))


def untrained(made: Detector) -> Detector:
    """Not trained, but no two channels alike, and student unlike teacher."""
    graph = ScoringGraph(*made._build(pretrained=False))
    generator = torch.Generator().manual_seed(3)
    for name, tensor in graph.state_dict().items():
        if "running_mean" in name:
            tensor.uniform_(-0.2, 0.2, generator=generator)
        elif "running_var" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
    made._adopt(graph)
    return made


@functools.cache
def streamer(case: str, width: int, rows_per_push: int | None = None) -> RowStreamer:
    return RowStreamer(detector(case), width, rows_per_push)


def strip(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Coarse structure with noise, so that levels of all scales have something to see."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return 0.8 * smooth + 0.2 * torch.rand(batch, 3, height, width, generator=generator)


@torch.no_grad()
def whole(case: str, image: Tensor, downscale: int = 1) -> Tensor:
    """The detector's own network on the whole strip, extended to a multiple of the stride."""
    graph, unit = detector(case).graph_, CASES[case][0] * downscale
    height, width = image.shape[2:]
    extended = F.pad(image, (0, -width % unit, 0, -height % unit), mode="replicate")
    normalised = (extended - graph.preprocess.mean) / graph.preprocess.std
    network = copy.copy(graph.network)
    network.size = tuple(extended.shape[2:])
    inputs = F.avg_pool2d(normalised, downscale)
    if not hasattr(network, "sizes"):
        return network(inputs)[:, :, :height, :width]
    sides = [size[0] for size in network.sizes]
    native = [1.0] if len(sides) == 1 else [side / graph.network.size[0] for side in sides]
    copies = [[round(n * ratio) for n in inputs.shape[2:]] for ratio in native]
    scaled = [F.interpolate(inputs, size, mode="bilinear", antialias=True) for size in copies]
    return network(scaled)[:, :, :height, :width]


def stream(streamer: RowStreamer | TiledStreamer, image: Tensor, pushes: list[int]) -> list[Tensor]:
    """The maps of all pushes and of the end; ``pushes`` is repeated as often as needed."""
    streamer.reset()
    maps, taken, turn = [], 0, 0
    while taken < image.shape[2]:
        n = pushes[turn % len(pushes)]
        maps.append(streamer.push(image[:, :, taken : taken + n]))
        taken, turn = taken + n, turn + 1
    return [*maps, streamer.finish()]


def assert_equal(maps: Tensor, expected: Tensor) -> None:
    assert maps.shape == expected.shape
    assert maps.dtype == torch.float32
    assert expected.max() > 1e-4  # maps that have something to say
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5 * expected.max().item())


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


# ------------------------------------------------------------------------------------------- images and tiles


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 45, 70), (2, 3, 130, 9)])
def test_images_of_any_size_at_native_scale(shape: tuple[int, ...]) -> None:
    image = strip(*shape[-2:], batch=shape[0] if len(shape) == 4 else 1)
    given = image if len(shape) == 4 else image[0]
    for depth_first in (True, False):
        assert_equal(native_maps(detector(SMALL), given, depth_first=depth_first), whole(SMALL, image))


def test_native_scale_is_what_the_detector_says_at_its_own_size() -> None:
    image = strip(48, 64)
    assert_equal(native_maps(detector(SMALL), image), detector(SMALL).maps(image))


@pytest.mark.slow
def test_large_images_in_memory_bounded_by_the_width() -> None:
    """Beside the map itself, a few blocks; and each part of the map is what its surroundings say.

    ``benchmarks/linescan.py --only images`` does the same at 20000 x 4096.
    """
    height, width = 8000, 2000
    image = torch.randint(0, 256, (1, 3, 1000, width), dtype=torch.uint8).repeat(1, 1, height // 1000, 1)
    native_maps(detector("stem"), image[:, :, :1500])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    maps = native_maps(detector("stem"), image)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 1.5 * maps.numel() * maps.element_size()
    part = native_maps(detector("stem"), image[:, :, 3000:3400], depth_first=False)
    assert_equal(maps[:, :, 3100:3300], part[:, :, 100:300])


def test_tiles_with_enough_overlap_are_exact_too() -> None:
    image = strip(150, 24)
    tiles = TiledStreamer(detector(SMALL), 24, rows_per_push=32, overlap=96)
    assert tiles.delay_rows == 96 + 31
    assert_equal(torch.cat(stream(tiles, image, [1, 50]), dim=2), whole(SMALL, image))


# ------------------------------------------------------------------------------------------- flat field


def test_a_flat_field_undoes_the_columns_gain_and_offset() -> None:
    true = 0.3 + 0.4 * torch.rand(1, 3, 4000, 21, generator=torch.Generator().manual_seed(0))
    gain, offset = 1 + 0.3 * torch.rand(21), 0.1 * torch.rand(21)
    seen = true * gain + offset
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
    field = FlatField(1 + 0.1 * torch.rand(3, 21), 0.05 * torch.rand(3, 21))
    found = RowStreamer(detector(SMALL), 21, flat_field=field)
    corrected = image * field.gain[None, :, None] + field.offset[None, :, None]
    assert_equal(torch.cat(stream(found, image, [25]), dim=2), whole(SMALL, corrected))


# ------------------------------------------------------------------------------------------- errors


def test_a_strip_shorter_than_a_mirrored_border_has_no_map() -> None:
    found = streamer("stereotype", 21)
    found.push(strip(8, 21))
    with pytest.raises(UsageError, match="rows: the strip has 8, and the mirrored border 8: wanted more"):
        found.finish()
    with pytest.raises(UsageError, match="width: expected more than 8 columns"):
        RowStreamer(detector("stereotype"), 8).push(strip(9, 8))


def test_one_patch_has_no_native_scale() -> None:
    made = untrained(create("stereotype", weights=None, device="cpu", one_patch=True, widths=(1,)))
    with pytest.raises(UsageError, match="with one_patch it has one number per image"):
        RowStreamer(made, 64)


def test_errors_name_the_argument() -> None:
    made = detector(SMALL)
    for message, call in {
        "width: expected a whole number from 1, got 0": lambda: RowStreamer(made, 0),
        "rows_per_push: expected a multiple of 8, got 20": lambda: RowStreamer(made, 16, 20),
        "precision: expected one of fp32, bf16, got 'int8'": lambda: RowStreamer(made, 16, precision="int8"),
        "downscale: expected a whole number from 1, got 1.5": lambda: RowStreamer(made, 16, downscale=1.5),  # type: ignore[arg-type]
        r"flat_field: expected gains of shape \(3, 16\)": lambda: RowStreamer(
            made, 16, flat_field=FlatField(torch.ones(3, 8), torch.zeros(3, 8))
        ),
        r"rows: expected a tensor \(B, 3, n, 21\), got \(1, 3, 5, 20\)": lambda: streamer(SMALL, 21).push(
            strip(5, 20)
        ),
        "rows: expected uint8, or float": lambda: streamer(SMALL, 21).push(strip(5, 21).to(torch.int32)),
        "rows_per_push: a step has a fixed number": lambda: streamer(SMALL, 21).step(strip(8, 21), []),
        "overlap: expected a multiple of 8, got 4": lambda: TiledStreamer(made, 16, overlap=4),
        "images: expected no empty dimension": lambda: native_maps(made, strip(5, 20)[:, :, :0]),
    }.items():
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(StadfastError, match="fitted"):
        RowStreamer(sf.STPM(), 16)


def test_a_strip_keeps_its_cameras_and_dtype() -> None:
    found = streamer(SMALL, 21)
    found.reset()
    found.push(strip(5, 21))
    for other in (strip(5, 21, batch=2), (strip(5, 21) * 255).to(torch.uint8)):
        with pytest.raises(
            UsageError, match=r"rows: expected 1 cameras in torch.float32 as at the strip's beginning"
        ):
            found.push(other)
    found.reset()


def test_a_global_term_is_named_and_tiles_are_offered() -> None:
    quantile = sf.STPM(weights=None, layers=["layer1"], background_quantile=0.5, device="cpu")
    for made, term in (
        (quantile, "background_quantile"),
        (create("mkd", weights=None, device="cpu"), "gradient of a"),
    ):
        with pytest.raises(UsageError, match=rf"depend on .*{term}.*TiledStreamer"):
            RowStreamer(untrained(made), 32)
        image = strip(75, 32)
        tiles = TiledStreamer(made, 32, 32, 32)
        maps = torch.cat(stream(tiles, image, [20]), dim=2)
        assert maps.shape == (1, 1, 75, 32)
        first = native_maps(made, image[:, :, :64], depth_first=False)[
            :, :, :32
        ]  # a tile is an image of its own
        assert_equal(maps[:, :, :32] / first.max(), first / first.max())


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([48, 64], "one of its inputs is 3/4 of the image; at native scale wanted .* 1/2, 1/3"),
        ([64, (64, 32)], r"scaled copies of the image, and .* are none of 64 x 64"),
    ],
)
def test_input_sizes_that_are_no_copies_of_the_strip_are_named(scales: list[Any], message: str) -> None:
    made = create("msfi", weights=None, layers=["layer1"], image_size=64, scales=scales, device="cpu")
    with pytest.raises(UsageError, match=message):
        RowStreamer(untrained(made), 32)


def test_a_layer_that_is_not_local_is_named() -> None:
    class Global(torch.nn.Module):
        size = (1, 1)

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y * y.mean(dim=(2, 3), keepdim=True)

    made = copy.copy(detector(SMALL))
    made.graph_ = copy.copy(made.graph_)
    made.graph_._modules = {**made.graph_._modules, "network": Global()}
    with pytest.raises(UsageError, match="mean is not known to work row by row"):
        RowStreamer(made, 16)
