"""The search for the modules' weights: what it finds, what it remembers, and that no figure counts its images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import stadfast as sf
from stadfast.cli import app
from stadfast.data import Sample
from stadfast.errors import DataError, UsageError
from stadfast.methods.sources import split
from stadfast.methods.weight_search import OBJECTIVES, defect_share, draw_search_set, search
from stadfast.metrics import functional


def constructed() -> tuple[Tensor, Tensor]:
    """Three modules' maps of two images: large values that mean nothing, small ones that find the defect, noise."""
    generator = torch.Generator().manual_seed(0)
    share = torch.zeros(2, 16, 16)
    share[:, 4:8, 4:8] = 1.0
    maps = torch.rand(2, 3, 16, 16, generator=generator) * torch.tensor([0.2, 0.01, 0.05]).view(3, 1, 1)
    maps[:, 1] += 0.02 * share
    return maps, share


def auroc(maps: Tensor, share: Tensor, weights: Tensor) -> float:
    return float(functional.auroc((maps * weights.view(-1, 1, 1)).sum(1), share))


def test_rank_finds_the_map_that_ranks() -> None:
    maps, share = constructed()
    weights = search(maps, share, "rank")
    assert weights.sum() == pytest.approx(1.0)
    assert weights.argmax() == 1
    assert weights[1] > 0.9
    assert auroc(maps, share, torch.full((3,), 1 / 3)) < 0.8
    assert auroc(maps, share, weights) > 0.99


def test_cross_entropy_is_as_low_as_a_search_of_all_weights_makes_it() -> None:
    maps, share = constructed()
    weights = search(maps, share, "ce")

    def loss(w: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy((maps * w.view(-1, 1, 1)).sum(1), share)

    assert weights.sum() == pytest.approx(1.0)
    steps = [i / 20 for i in range(21)]
    grid = [torch.tensor([a, b, max(1 - a - b, 0.0)]) for a in steps for b in steps if a + b < 1.001]
    assert loss(weights) <= min(map(loss, grid)) + 1e-3
    assert loss(weights) < loss(torch.full((3,), 1 / 3)) - 3e-3


def test_cross_entropy_likes_large_values_of_maps_that_rank_alike() -> None:
    maps, share = constructed()
    maps[:, 0] = 4 * maps[:, 1]
    weights = search(maps[:, :2], share, "ce")
    assert weights[0] > 0.9


def test_a_search_repeats_itself_and_knows_its_seed() -> None:
    maps, share = constructed()
    assert torch.equal(search(maps, share, "rank", 3), search(maps, share, "rank", 3))
    assert not torch.equal(search(maps, share, "rank", 3), search(maps, share, "rank", 4))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("value", "named"), [(0.0, "defective"), (1.0, "normal")])
def test_a_search_needs_both_kinds_of_pixels(objective: str, value: float, named: str) -> None:
    with pytest.raises(DataError, match=f"needs {named} pixels"):
        search(constructed()[0][:1, :2, :8, :8], torch.full((1, 8, 8), value), objective)


def test_a_share_of_each_kind_is_drawn_with_the_seed() -> None:
    samples = [Sample(Path(f"{kind}{i}"), 1, kind) for kind in ("crack", "hole") for i in range(20)]
    samples += [Sample(Path("spot0"), 1, "spot")] + [Sample(Path(f"good{i}"), 0) for i in range(20)]
    drawn = draw_search_set(samples, 0.1, 0)
    assert [s.defect for s in drawn] == ["crack", "crack", "hole", "hole", "spot"]
    assert drawn == draw_search_set(samples, 0.1, 0) != draw_search_set(samples, 0.1, 1)
    assert len(draw_search_set(samples, 1.0)) == 41
    with pytest.raises(UsageError, match="fraction: expected"):
        draw_search_set(samples, 0)
    with pytest.raises(DataError, match="needs defective images"):
        draw_search_set(samples[41:])


def test_defective_share_of_cells(tmp_path: Path) -> None:
    Image.frombytes("L", (8, 4), bytes([255, 255, 0, 0] * 2 + [0] * 24)).save(tmp_path / "mask.png")
    share = defect_share(Sample(Path("x.png"), 1, "hole", tmp_path / "mask.png"), (2, 2))
    assert share.tolist() == [[0.25, 0.25], [0.0, 0.0]]
    assert defect_share(Sample(Path("x.png"), 0), (2, 2)).sum() == 0
    with pytest.raises(DataError, match=r"x\.png: the weight search needs a mask"):
        defect_share(Sample(Path("x.png"), 1, "hole"), (2, 2))


# ---------------------------------------------------------------------------------- on a detector


@pytest.fixture(scope="module")
def category(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 good images to train on; 3 good, 4 with a spot and 1 with a bar to test."""
    root: Path = tmp_path_factory.mktemp("data") / "cloth"

    def write(folder: str, stack: Tensor, mask: Tensor | None = None) -> None:
        (root / folder).mkdir(parents=True)
        for i, image in enumerate(stack):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / folder / f"{i}.png")
        if mask is not None:
            truth = root / folder.replace("test", "ground_truth")
            truth.mkdir(parents=True)
            for i in range(len(stack)):
                Image.fromarray(mask.numpy() * 255).save(truth / f"{i}_mask.png")

    write("train/good", images[:10])
    write("test/good", images[9:].flip(2))
    for kind, count, place in (
        ("spot", 4, (slice(20, 40), slice(30, 50))),
        ("bar", 1, (slice(10, 20), slice(80))),
    ):
        mask = torch.zeros(60, 80, dtype=torch.uint8)
        mask[place] = 1
        noise = torch.randint(0, 255, (count, 3, 60, 80), generator=torch.Generator().manual_seed(2))
        write(f"test/{kind}", torch.where(mask.bool(), noise.byte(), images[:count]), mask)
    return root


@pytest.fixture(scope="module")
def trained(category: Path, teacher_weights: dict[str, Tensor]) -> sf.FeatureImitation:
    detector = sf.FeatureImitation(
        weights=teacher_weights, layers=["layer1", "layer2"], scales=[32, 64], image_size=64, epochs=5,
        batch_size=4, precision="fp32", device="cpu",
    )  # fmt: skip
    return detector.fit(category, show_progress=False)  # type: ignore[return-value]


@pytest.fixture
def detector(trained: sf.FeatureImitation) -> sf.FeatureImitation:
    return deepcopy(trained)


def test_search_weighs_and_sets_the_thresholds_anew(detector: sf.FeatureImitation, category: Path) -> None:
    before = detector.threshold_
    weights = detector.search_weights(category, "rank", keep=2, fraction=0.25)
    assert weights == detector.modules_
    assert sum(weights.values()) == pytest.approx(1.0)
    assert sum(weight > 0 for weight in weights.values()) == 2
    assert len(detector.search_["images"]) == 2  # a quarter of four spots, and the bar
    assert detector.calibration_["source"] == "held-out images"
    good = [sample.image for sample in sf.MVTecLayout(category).train]
    held_out = split(good, detector.validation_fraction, detector.seed)[1]
    expected = detector.score(held_out).double().quantile(0.995).item()
    assert detector.threshold_ == pytest.approx(expected, rel=1e-5) != before
    calibrated, maps = detector.threshold_, detector.maps(held_out)
    detector.prune()
    assert len(detector.modules_) == 2
    assert detector.threshold_ == calibrated
    assert detector.calibration_["source"] == "held-out images"
    torch.testing.assert_close(detector.maps(held_out), maps, rtol=1e-4, atol=1e-7)


def test_search_images_never_count(detector: sf.FeatureImitation, category: Path, tmp_path: Path) -> None:
    test = sf.MVTecLayout(category).test
    whole, records = sf.evaluate(detector, test)
    assert whole["n"]["images"] == len(records) == len(test) == 8
    detector.search_weights(category, fraction=0.25)
    drawn = {sample.image for sample in draw_search_set(test, 0.25)}
    detector.save(tmp_path / "model")
    for found in (detector, sf.load(tmp_path / "model", device="cpu")):
        figures, records = sf.evaluate(found, test)
        assert {record.image for record in records} == {s.image for s in test} - drawn
        assert figures["n"]["images"] == 6
        assert "left out 2 images that were used to make the detector" in figures["notes"]
        assert any("searched on labelled images" in note for note in figures["notes"])
    with pytest.raises(DataError, match="nothing to evaluate"):
        sf.evaluate(detector, [s for s in test if s.image in drawn])
    detector.search_weights(
        [s for s in test if s.image not in drawn and s.mask]
    )  # both searches' are remembered
    assert sf.evaluate(detector, test)[0]["n"] == {
        "images": 3, "normal": 3, "anomalous": 0, "regions": 0
    }  # fmt: skip


def test_a_search_on_samples_asks_for_a_calibration(
    detector: sf.FeatureImitation, category: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = detector.threshold_
    detector.search_weights([s for s in sf.MVTecLayout(category).test if s.defect == "spot"])
    assert "calibrate() on good images" in caplog.text
    assert detector.threshold_ == before
    assert detector.calibration_["source"] == "held-out images, before the weights changed"
    detector.calibrate(category / "test" / "good")
    assert detector.calibration_["source"] == "given images"


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        ({"objective": "auroc"}, UsageError, "objective"),
        ({"keep": 0}, UsageError, "keep"),
        ({"keep": 5}, UsageError, "keep"),
        ({"fraction": 1.5}, UsageError, "fraction"),
        ({"data": 3}, UsageError, "data"),
        ({"data": []}, UsageError, "data"),
    ],
)
def test_wrong_arguments_are_named(
    detector: sf.FeatureImitation, category: Path, wrong: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        detector.search_weights(**({"data": category} | wrong))


# ---------------------------------------------------------------------------------- on the command line


def test_prune_writes_a_smaller_detector(
    trained: sf.FeatureImitation, category: Path, tmp_path: Path
) -> None:
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    trained.save(whole)
    arguments = ["prune", whole, "--data", category, "--keep", 1, "--objective", "rank", "-o", small]
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "1 modules, weighed on 2 images" in result.stdout
    assert small.stat().st_size < whole.stat().st_size
    loaded = sf.load(small, device="cpu")
    assert isinstance(loaded, sf.FeatureImitation)
    assert list(loaded.modules_.values()) == [1.0]
    assert f"1.0000  {next(iter(loaded.modules_))}" in result.stdout


def test_prune_wants_a_detector_with_modules(fitted: sf.STPM, category: Path, tmp_path: Path) -> None:
    fitted.save(tmp_path / "stpm")
    arguments = ["prune", tmp_path / "stpm", "--data", category, "-o", tmp_path / "small"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2
    assert "only msfi has modules to prune" in result.stderr
