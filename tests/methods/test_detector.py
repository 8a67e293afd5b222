"""What every detector promises: inputs, outputs, calibration, bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.base
import torch
from PIL import Image
from torch import Tensor

import stadfast as sf
from stadfast.data import Dataset, Sample
from stadfast.errors import DataError, StadfastError, UsageError
from stadfast.methods.calibration import threshold_of
from stadfast.methods.sources import training_images


def test_prediction_has_the_promised_shapes(fitted: sf.STPM, images: Tensor) -> None:
    p = fitted.predict(images[:5])
    assert p._fields == ("pred_score", "pred_label", "anomaly_map", "pred_mask")
    assert p.pred_score.shape == p.pred_label.shape == (5,)
    assert p.anomaly_map.shape == p.pred_mask.shape == (5, 1, 48, 64)
    assert p.pred_score.dtype == p.anomaly_map.dtype == torch.float32
    assert p.pred_label.dtype == p.pred_mask.dtype == torch.bool
    assert torch.equal(p.pred_score, p.anomaly_map.flatten(1).amax(1))
    assert torch.equal(p.pred_label, p.pred_mask.flatten(1).any(1))
    assert torch.equal(p.pred_label, p.pred_score > fitted.threshold_)


def test_score_and_maps_are_predicts(fitted: sf.STPM, images: Tensor) -> None:
    p = fitted.predict(images)
    assert torch.equal(fitted.score(images), p.pred_score)
    assert torch.equal(fitted.maps(images), p.anomaly_map)


def as_files(images: Tensor, folder: Path) -> list[Path]:
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def test_all_inputs_give_the_same_scores(fitted: sf.STPM, images: Tensor, tmp_path: Path) -> None:
    images = images[:4]
    hwc = images.permute(0, 2, 3, 1).contiguous().numpy()
    paths = as_files(images, tmp_path)
    expected = fitted.score(images)
    inputs: dict[str, Any] = {
        "NHWC uint8": hwc,
        "NHWC uint16": hwc.astype(np.uint16) * 257,
        "NHWC float": hwc.astype(np.float64) / 255,
        "list of HWC": list(hwc),
        "NCHW float tensor": images.float() / 255,
        "channels_last tensor": images.contiguous(memory_format=torch.channels_last),
        "list of CHW": list(images),
        "Pillow": [Image.fromarray(x) for x in hwc],
        "paths": paths,
        "strings": [str(p) for p in paths],
        "folder": tmp_path,
    }
    for name, given in inputs.items():
        # a network's rounding depends on the layout, and 257 v / 65535 is v / 255 but for the last bit
        torch.testing.assert_close(fitted.score(given), expected, rtol=1e-4, atol=0, msg=name)
    torch.testing.assert_close(fitted.score(hwc[0]), expected[:1], rtol=1e-4, atol=0)
    torch.testing.assert_close(fitted.score(paths[1]), expected[1:2], rtol=1e-4, atol=0)


def test_images_of_different_sizes_share_a_batch(fitted: sf.STPM, images: Tensor) -> None:
    other = torch.nn.functional.interpolate(images[:1].float() / 255, (31, 77))[0]
    p = fitted.predict([images[0], other])
    assert p.anomaly_map.shape == (2, 1, 48, 64)
    torch.testing.assert_close(p.pred_score[:1], fitted.score(images[0]), rtol=1e-4, atol=0)


def test_batch_size_changes_nothing(fitted: sf.STPM, images: Tensor) -> None:
    torch.testing.assert_close(fitted.score(images, batch_size=5), fitted.score(images), rtol=1e-4, atol=0)


def test_an_anomaly_stands_out(fitted: sf.STPM, images: Tensor) -> None:
    damaged = images[:4].clone()
    damaged[:, :, 20:30, 20:30] = 255 * torch.eye(10, dtype=torch.uint8)
    assert fitted.score(damaged).mean() > 1.3 * fitted.score(images[:4]).mean()
    change = (fitted.maps(damaged) - fitted.maps(images[:4])).mean(dim=(0, 1))
    row, column = divmod(int(change.argmax()), 64)
    assert 12 <= row <= 28  # the damaged square in map pixels, and a little around
    assert 12 <= column <= 28


def test_stream_is_lazy_and_lists_broken_files(fitted: sf.STPM, images: Tensor, tmp_path: Path) -> None:
    paths = as_files(images[:5], tmp_path)
    paths[1].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"001\.png"):
        fitted.predict(tmp_path)
    batches = list(fitted.stream(tmp_path, batch_size=2, skip_broken=True))
    assert [source for sources, _ in batches for source in sources] == [
        p for i, p in enumerate(paths) if i != 1
    ]
    assert [path for path, _ in fitted.broken_] == [paths[1]]


@pytest.mark.parametrize("size", [-1, 0, 1.5, "all"])
def test_wrong_batch_sizes_are_named(fitted: sf.STPM, images: Tensor, size: Any) -> None:
    for call in (fitted.predict, fitted.stream):
        with pytest.raises(UsageError, match="batch_size"):
            call(images, batch_size=size)


def test_not_fitted_says_so(images: Tensor) -> None:
    for call in (sf.STPM().predict, sf.STPM().score, sf.STPM().save, sf.STPM().stream):
        with pytest.raises(StadfastError, match="not fitted"):
            call(images)


def test_fit_learns_from_a_category_folder(arguments: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "train/good").mkdir(parents=True)
    (tmp_path / "test/good").mkdir(parents=True)
    as_files(images[:10], tmp_path / "train/good")
    as_files(images[10:], tmp_path / "test/good")
    detector = sf.STPM(**arguments).fit(tmp_path, show_progress=False)
    assert detector.metadata_["data"]["train"] + detector.metadata_["data"]["held_out"] == 10


def test_a_data_set_without_training_images_is_named(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "test/good").mkdir(parents=True)
    as_files(images, tmp_path / "test/good")
    with pytest.raises(DataError, match="train/good does not exist"):
        sf.STPM(**arguments).fit(tmp_path, show_progress=False)


def test_a_data_set_may_be_of_ones_own(tmp_path: Path) -> None:
    class Own(Dataset):
        name, root, test = "own", tmp_path, ()
        train = (Sample(tmp_path / "0.png", 0),)

    assert training_images(Own()) == [tmp_path / "0.png"]


def test_fit_skips_broken_files_and_lists_them(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path
) -> None:
    paths = as_files(images, tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:80])
    with pytest.raises(DataError, match=r"003\.png"):
        sf.STPM(**arguments).fit(tmp_path, show_progress=False)
    detector = sf.STPM(**arguments).fit(tmp_path, skip_broken=True, show_progress=False)
    assert [path for path, _ in detector.broken_] == [paths[3]]
    counts = detector.metadata_["data"]
    assert counts["train"] + counts["held_out"] == len(paths) - 1


# ------------------------------------------------------------------------------------ calibration


def test_quantile_is_torchs(fitted: sf.STPM, images: Tensor) -> None:
    scores = fitted.score(images)
    fitted.calibrate(images, quantile=0.5)
    assert fitted.threshold_ == pytest.approx(scores.double().quantile(0.5).item(), rel=1e-6)
    assert fitted.predict(images).pred_label.sum() == 6


def test_target_fpr_is_the_conformal_rank(fitted: sf.STPM, images: Tensor) -> None:
    scores = fitted.score(images).sort().values
    fitted.calibrate(images, target_fpr=0.25)  # ceil(13 * 0.75) = 10th smallest of 12
    assert fitted.threshold_ == scores[9].item()
    assert fitted.calibration_ == {"target_fpr": 0.25, "images": 12, "source": "given images"}


@pytest.mark.parametrize(
    ("count", "target_fpr", "rank"), [(9, 0.7, 3), (9, 0.35, 7), (8, 1 / 3, 6), (8, 1 - 1e-12, 1)]
)
def test_the_rank_is_free_of_rounding(count: int, target_fpr: float, rank: int) -> None:
    scores = torch.arange(1.0, count + 1)  # ceil((9 + 1) (1 - 0.7)) is 3, although floats make it 4
    assert threshold_of(scores, target_fpr=target_fpr)[0] == rank


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"target_fpr": 0.01}, "at least 99 good images, got 12"),
        ({"target_fpr": 0.0}, "target_fpr"),
        ({"quantile": 1.5}, "quantile"),
        ({"quantile": "most"}, "quantile"),
        ({"quantile": 0.5, "target_fpr": 0.5}, "exclude"),
    ],
)
def test_impossible_calibrations_are_refused(
    fitted: sf.STPM, images: Tensor, rule: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fitted.calibrate(images, **rule)


def test_calibration_takes_good_images_only(fitted: sf.STPM, images: Tensor, tmp_path: Path) -> None:
    for folder in ("train/good", "test/good", "test/crack"):
        (tmp_path / folder).mkdir(parents=True)
        as_files(images, tmp_path / folder)
    with pytest.raises(DataError, match=r"with defective images; .* such as .*test/good"):
        fitted.calibrate(tmp_path)
    with pytest.raises(DataError, match="with defective images"):
        fitted.calibrate([tmp_path / "test/good", tmp_path])
    with pytest.raises(DataError, match=r"crack/000.png is defective \(crack\)"):
        fitted.calibrate(sf.MVTecLayout(tmp_path).test)
    assert fitted.calibrate(tmp_path / "test/good").calibration_["images"] == len(images)


# ----------------------------------------------------------------------------------------- bundles


def test_a_loaded_bundle_predicts_the_same_bits(fitted: sf.STPM, images: Tensor, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m.safetensors")
    loaded = sf.load(tmp_path / "m.safetensors", device="cpu")
    for ours, theirs in zip(fitted.predict(images), loaded.predict(images), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.threshold_ == fitted.threshold_
    loaded.save(tmp_path / "again.safetensors")
    assert json.loads(json.dumps(fitted.header())) == json.loads(json.dumps(loaded.header()))


def test_same_seed_same_bytes(arguments: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    for name in ("a", "b"):
        detector = sf.STPM(**arguments, deterministic=True).fit(images, show_progress=False)
        detector.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = sf.STPM(**arguments, seed=1, deterministic=True).fit(images, show_progress=False)
    other.save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_bundle_holds_no_path_of_the_machine(fitted: sf.STPM, tmp_path: Path) -> None:
    from stadfast.methods.base import _described

    assert _described(tmp_path / "teacher.pth") == "teacher.pth"
    assert fitted.header()["arguments"]["weights"] == "state dict"


def test_params_round_trip(arguments: dict[str, Any]) -> None:
    detector = sf.STPM(**arguments)
    assert sf.STPM(**detector.get_params()).get_params() == detector.get_params()
    assert "image_size=(48, 64)" in repr(detector)
    assert repr(sklearn.base.clone(detector)) == repr(detector)
    assert detector.set_params(epochs=7).get_params()["epochs"] == 7
    with pytest.raises(UsageError, match="no argument 'colour'"):
        detector.set_params(colour="red")


def test_numbers_may_be_numpys(arguments: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    numbers = {
        "image_size": (np.int64(48), np.int32(64)), "epochs": np.int64(1), "batch_size": np.uint8(4),
        "learning_rate": np.float32(0.4), "momentum": np.float64(0.9), "seed": np.int64(3),
    }  # fmt: skip
    assert sf.STPM(image_size=np.int64(64))._size == (64, 64)
    assert sklearn.base.clone(sf.STPM(**numbers)).get_params() == sf.STPM(**numbers).get_params()
    detector = sf.STPM(**(arguments | numbers)).fit(images, show_progress=False)
    detector.calibrate(images, quantile=np.float32(0.5)).save(tmp_path / "m")
    detector.set_params(**numbers)
    assert torch.equal(sf.load(tmp_path / "m").score(images, batch_size=np.int64(3)), detector.score(images))
    for wrong in ({"epochs": np.bool_(True)}, {"learning_rate": np.float32("nan")}, {"seed": np.int64(-1)}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            detector.set_params(**(numbers | wrong)).fit(images)


def test_changed_arguments_wait_for_the_next_fit(fitted: sf.STPM, images: Tensor, tmp_path: Path) -> None:
    expected = fitted.predict(images)
    fitted.set_params(image_size=96, variant="paper")
    fitted.save(tmp_path / "m.safetensors")
    for detector in (fitted, sf.load(tmp_path / "m.safetensors")):
        assert torch.equal(detector.predict(images).anomaly_map, expected.anomaly_map)


def test_a_fit_that_fails_changes_nothing(fitted: sf.STPM, images: Tensor, tmp_path: Path) -> None:
    fitted.save(tmp_path / "before")
    (tmp_path / "broken.png").write_bytes(b"broken")
    for native_scale in (False, True):
        with pytest.raises(DataError):
            fitted.fit([tmp_path / "broken.png"] * 6, native_scale=native_scale, show_progress=False)
    fitted.save(tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()
    assert not fitted.native_scale_


def test_a_device_may_be_torchs(arguments: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    detector = sf.STPM(**(arguments | {"device": torch.device("cpu")})).fit(images, show_progress=False)
    detector.save(tmp_path / "m")
    assert torch.equal(sf.load(tmp_path / "m").score(images), detector.score(images))


@pytest.mark.parametrize(
    "wrong",
    [{"combine": "prod"}, {"variant": ["paper"]}, {"precision": "int3"}, {"background_quantile": 1.1}],
)
def test_arguments_are_checked_before_any_image_is_listed(
    arguments: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        sf.STPM(**(arguments | wrong)).fit("no folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resume": True}, "resume: goes with checkpoint"), ({"checkpoint": "."}, "checkpoint: . is a folder")],
)
def test_options_of_fit_that_do_not_fit(
    arguments: dict[str, Any], images: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        sf.STPM(**arguments).fit(images, show_progress=False, **options)


def test_what_has_no_native_scale_is_not_trained_at_it(images: Tensor) -> None:
    for detector in (
        sf.MultiresolutionKD(weights=None),
        sf.StereotypeDeepening(weights=None, one_patch=True),
    ):
        with pytest.raises(UsageError, match="no native scale"):
            detector.fit(images, native_scale=True)


class MeanScored(sf.STPM):
    """A method whose image score is not the map's maximum, with a word to whoever reads its figures."""

    method = "mean-scored"

    class Network(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            maps = self.inner(x)
            return maps, maps.mean((1, 2, 3))

    def _build(self, pretrained: bool) -> Any:
        preprocess, network = super()._build(pretrained)
        return preprocess, self.Network(network)

    def _train(self, graph: Any, *rest: Any) -> Any:
        self.notes_.append("half of the figures are made up")
        inner = sf.methods.ScoringGraph(graph.preprocess, graph.network.inner)
        return super()._train(inner, *rest)


def test_a_score_beside_the_map_has_a_threshold_of_its_own(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = MeanScored(**arguments).fit(images, show_progress=False)
    p = detector.predict(images)
    torch.testing.assert_close(
        p.pred_score, p.anomaly_map.mean((1, 2, 3)), rtol=1e-5, atol=0
    )  # other batches
    assert detector.threshold_ < detector.pixel_threshold_
    assert torch.equal(p.pred_label, p.pred_score > detector.threshold_)
    assert torch.equal(p.pred_mask, p.anomaly_map > detector.pixel_threshold_)

    detector.save(tmp_path / "m")
    monkeypatch.setitem(sf.methods.METHODS, "mean-scored", MeanScored)
    loaded = sf.load(tmp_path / "m")
    assert (loaded.threshold_, loaded.pixel_threshold_) == (detector.threshold_, detector.pixel_threshold_)
    assert loaded.notes_ == ["half of the figures are made up"]
    assert all(torch.equal(a, b) for a, b in zip(p, loaded.predict(images), strict=True))


def test_a_stream_leaves_its_caller_the_gradients(fitted: sf.Detector) -> None:
    stream = fitted.stream(torch.rand(3, 3, 32, 32), batch_size=1)
    next(stream)
    assert torch.is_grad_enabled()
