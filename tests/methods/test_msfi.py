"""Multi-scale Feature Imitation: blocks that know nothing of each other, their maps, pruning and bundles."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import stadfast as sf
from stadfast.errors import BundleError, StadfastError, UsageError
from stadfast.methods.blocks import Block, BlockImitation, ImitationNetwork
from stadfast.methods.bundle import read_tensors, write_tensors
from stadfast.methods.graph import Preprocess, PyramidPreprocess
from stadfast.methods.hardware import Precision
from stadfast.methods.imitation import feature_stores
from stadfast.methods.training import TrainingOptions, train
from stadfast.runtime import Scorer, export

FP32 = Precision("fp32", "test")
SCALES = [32, (64, 48)]
NAMES = ["layer1@32", "layer2@32", "layer1@64x48", "layer2@64x48"]


def small(teacher_weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "weights": teacher_weights, "layers": ["layer1", "layer2"], "scales": SCALES, "image_size": (48, 64),
        "epochs": 3, "batch_size": 4, "precision": "fp32", "device": "cpu",
    }  # fmt: skip


@pytest.fixture
def arguments(teacher_weights: dict[str, Tensor]) -> dict[str, Any]:
    return small(teacher_weights)


@pytest.fixture(scope="module")
def trained(teacher_weights: dict[str, Tensor], images: Tensor) -> sf.FeatureImitation:
    detector = sf.FeatureImitation(**small(teacher_weights))
    return detector.fit(images, show_progress=False)  # type: ignore[return-value]


@pytest.fixture
def fitted(trained: sf.FeatureImitation) -> sf.FeatureImitation:
    """A copy, which a test may prune."""
    return deepcopy(trained)


def built(arguments: dict[str, Any]) -> tuple[PyramidPreprocess, ImitationNetwork]:
    preprocess, network = sf.FeatureImitation(**arguments)._build(pretrained=True)
    return preprocess, network.eval()  # type: ignore[return-value]


def plain_map(network: ImitationNetwork, inputs: list[Tensor], weights: list[float]) -> Tensor:
    """The paper's map: each block's squared distance over 4, upsampled, averaged by weight."""
    total = torch.zeros(())
    sizes = list(dict.fromkeys(block.size for block in network.blocks))
    for block, weight in zip(network.blocks, weights, strict=True):
        x = inputs[sizes.index(block.size)]
        for path in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2"):
            if path == block.layer:
                break
            x = network.teacher.get_submodule(path)(x)
        t, s = network.teacher.get_submodule(block.layer)(x), network.student(block)(x)
        distance = (F.normalize(s, dim=1) - F.normalize(t, dim=1)).square().sum(1, keepdim=True) / 4
        total = total + weight * F.interpolate(distance, network.size, mode="bilinear")
    return total / sum(weights)


# ---------------------------------------------------------------------------------- the network


def test_modules_are_named_by_layer_and_size(arguments: dict[str, Any]) -> None:
    _, network = built(arguments)
    assert [block.name for block in network.blocks] == NAMES
    assert network.sizes == ((32, 32), (64, 48))


def test_sizes_are_made_from_the_original_in_either_form(arguments: dict[str, Any], images: Tensor) -> None:
    preprocess, _ = built(arguments)
    x = sf.data.to_float(images[:3])
    packed = preprocess.resize(x)
    assert packed.shape == (3, 32 * 32 + 64 * 48, 3)
    for size, direct, unpacked in zip(preprocess.sizes, preprocess(x), preprocess(packed), strict=True):
        expected = Preprocess(size, preprocess.mean.flatten().tolist(), preprocess.std.flatten().tolist())(x)
        assert torch.equal(direct, expected)
        assert torch.equal(unpacked, expected)
        assert unpacked.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("weights", [None, [0.5, 0.0, 0.125, 0.375]])
def test_map_is_the_plain_one(arguments: dict[str, Any], images: Tensor, weights: list[float] | None) -> None:
    preprocess, network = built(arguments)
    if weights:
        network.weights = weights
    with torch.no_grad():
        inputs = preprocess(sf.data.to_float(images[:3]))
        maps = network(inputs)
        assert maps.shape == (3, 1, 48, 64)
        torch.testing.assert_close(maps, plain_map(network, inputs, network.weights), rtol=1e-4, atol=1e-7)
        each = network.maps(inputs)
        assert each.shape == (3, 4, 48, 64)
        together = (each * torch.tensor(network.weights).view(1, -1, 1, 1)).sum(1, keepdim=True)
        torch.testing.assert_close(together, maps, rtol=1e-4, atol=1e-7)


def test_the_first_layer_imitates_from_the_image(arguments: dict[str, Any], images: Tensor) -> None:
    layers = ["stem", "layer1"]
    weights = sf.backbones.create_backbone("resnet18", layers, seed=7).state_dict()
    preprocess, network = built(arguments | {"layers": layers, "scales": [32], "weights": weights})
    with torch.no_grad():
        (x,) = preprocess(sf.data.to_float(images[:2]))
        student, teacher = network.features([x])
        assert torch.equal(student[0], network.student(network.blocks[0])(x))
        assert torch.equal(teacher[0], network.teacher(x, ["stem"])[0])


@pytest.mark.parametrize(
    ("backbone", "layers"), [("vgg16", ["pool1", "pool3"]), ("efficientnet_lite0", ["blocks.1", "blocks.3"])]
)
def test_other_backbones_have_blocks_too(backbone: str, layers: list[str]) -> None:
    detector = sf.FeatureImitation(backbone, weights=None, layers=layers, scales=[64], image_size=64)
    preprocess, network = detector._build(pretrained=False)
    x = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        student, teacher = network.eval().features(preprocess(x))  # type: ignore[operator]
    assert [s.shape for s in student] == [t.shape for t in teacher]
    assert all((s - t).abs().max() > 0 for s, t in zip(student, teacher, strict=True))


# ---------------------------------------------------------------------------------- training


def trainees(arguments: dict[str, Any], images: Tensor) -> tuple[dict[str, BlockImitation], ImitationNetwork]:
    detector = sf.FeatureImitation(**(arguments | {"scales": [32]}))
    _, network = detector._build(pretrained=True)
    preprocess = Preprocess((32, 32), network.teacher.mean, network.teacher.std)
    parts = list(images[:9]), list(images[9:])
    options = TrainingOptions(epochs=1, show_progress=False)
    teacher: Any = lambda x: network.teacher(x, network.needed((32, 32)))  # noqa: E731
    stores = feature_stores(detector, preprocess, teacher, *parts, FP32, options, False)
    found = {block.name: BlockImitation(detector, network, block, *stores, FP32) for block in network.blocks}
    return found, network


def test_loss_is_the_mean_distance_to_the_teacher_from_the_teachers_input(
    arguments: dict[str, Any], images: Tensor
) -> None:
    found, network = trainees(arguments, images)
    network.eval()
    x = Preprocess((32, 32), network.teacher.mean, network.teacher.std)(sf.data.to_float(images[[3, 0, 7]]))
    before, target = network.teacher(x, ["layer1", "layer2"])
    student = network.student(Block((32, 32), "layer2"))(before)
    expected = (F.normalize(student) - F.normalize(target)).square().sum(1).mean()
    torch.testing.assert_close(found["layer2@32"].loss(torch.tensor([3, 0, 7])), expected)


def test_no_gradient_reaches_the_teacher_or_another_block(arguments: dict[str, Any], images: Tensor) -> None:
    found, network = trainees(arguments, images)
    network.train()
    assert not any(
        m.training for m in network.teacher.modules()
    )  # batch norm as it was, whatever the parent does
    found["layer2@32"].loss(torch.arange(4)).backward()
    for block in network.blocks:
        gradients = [p.grad for p in network.student(block).parameters()]
        trained = block.name == "layer2@32"
        assert all((g is not None and g.abs().sum() > 0) == trained for g in gradients)
    assert all(p.grad is None for p in network.teacher.parameters())


def test_training_a_block_changes_no_other(arguments: dict[str, Any], images: Tensor) -> None:
    found, network = trainees(arguments, images)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train(found["layer2@32"], TrainingOptions(epochs=2, batch_size=4, show_progress=False))
    for name, tensor in network.state_dict().items():
        mine = name.startswith("students.layer2@32.") and not name.endswith("num_batches_tracked")
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before[name]) != mine, name


def test_order_and_company_do_not_matter(arguments: dict[str, Any], images: Tensor) -> None:
    def result(order: list[str]) -> dict[str, Tensor]:
        found, network = trainees(arguments, images)
        for name in order:
            train(found[name], TrainingOptions(epochs=2, batch_size=4, show_progress=False))
        return network.state_dict()

    forward, backward = result(["layer1@32", "layer2@32"]), result(["layer2@32", "layer1@32"])
    alone = result(["layer2@32"])
    for name, tensor in forward.items():
        assert torch.equal(tensor, backward[name]), name
        if "layer2@32" in name:
            assert torch.equal(tensor, alone[name]), name


def test_fit_trains_every_block_and_keeps_its_own_best_epoch(
    fitted: sf.FeatureImitation, teacher_weights: dict[str, Tensor]
) -> None:
    phases = fitted.metadata_["training"]["phases"]
    assert list(phases) == NAMES
    for name in NAMES:
        records = [record for record in fitted.history_ if record.phase == name]
        assert len(records) == 3
        assert phases[name]["validation"] == min(record.validation for record in records)
        assert records[-1].loss < records[0].loss
    for name, tensor in fitted.graph_.network.teacher.state_dict().items():
        assert torch.equal(tensor, teacher_weights[name]), name


def test_a_block_stops_early_by_itself(
    arguments: dict[str, Any], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 2.0, *(3.0, 2.0, 1.0, 4.0), *(2.0, 1.0, 3.0), *(5.0, 4.0, 3.0, 2.0, 1.0)])
    monkeypatch.setattr(BlockImitation, "validate", lambda trainee: next(values))
    detector = sf.FeatureImitation(**(arguments | {"epochs": 5, "patience": 1}))
    detector.fit(images, show_progress=False)
    lengths = [sum(record.phase == name for record in detector.history_) for name in NAMES]
    assert lengths == [2, 4, 3, 5]


def test_a_stopped_fit_resumes_where_it_was(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path, fitted: sf.FeatureImitation
) -> None:
    class StopError(Exception):
        pass

    def stop(record: Any) -> None:
        if record.phase == "layer1@64x48" and record.epoch == 2:
            raise StopError

    file = tmp_path / "run.checkpoint"
    with pytest.raises(StopError):
        sf.FeatureImitation(**arguments).fit(images, checkpoint=file, callbacks=[stop], show_progress=False)
    resumed = sf.FeatureImitation(**arguments)
    resumed.fit(images, checkpoint=file, resume=True, show_progress=False)
    assert [replace(r, seconds=0.0) for r in resumed.history_] == [
        replace(r, seconds=0.0) for r in fitted.history_
    ]
    assert torch.equal(resumed.score(images), fitted.score(images))


# ---------------------------------------------------------------------------------- pruning


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_pruning_removes_parameters_sizes_and_depth(fitted: sf.FeatureImitation, images: Tensor) -> None:
    whole = fitted.graph_.network
    kept = ["layer1@32"]
    assert isinstance(whole, ImitationNetwork)
    lost = sum(parameters(whole.student(b)) for b in whole.blocks if b.name not in kept)
    lost += parameters(whole.teacher.get_submodule("layer2"))
    fitted.prune(kept)
    network = fitted.graph_.network
    assert parameters(network) == parameters(whole) - lost
    assert not any("layer2" in name for name in network.state_dict())
    assert network.sizes == fitted.graph_.preprocess.sizes == ((32, 32),)
    assert fitted.modules_ == {"layer1@32": 1.0}
    with torch.no_grad():
        inputs = PyramidPreprocess([(32, 32)], (48, 64), network.teacher.mean, network.teacher.std)
        x = inputs(sf.data.to_float(images[:2]))
        torch.testing.assert_close(network(x), plain_map(network, x, [1.0]), rtol=1e-4, atol=1e-7)
    assert fitted.calibration_["source"].endswith("before the weights changed")


def test_the_teacher_goes_no_deeper_than_a_size_needs(fitted: sf.FeatureImitation, images: Tensor) -> None:
    fitted.prune(["layer1@32", "layer2@64x48"])
    network = fitted.graph_.network
    seen: dict[str, list[tuple[int, ...]]] = {"conv1": [], "layer1": [], "layer2": []}
    for name, calls in seen.items():
        network.teacher.get_submodule(name).register_forward_hook(
            lambda _, inputs, __, calls=calls: calls.append(tuple(inputs[0].shape[-2:]))
        )
    fitted.score(images[:2])
    assert seen == {"conv1": [(32, 32), (64, 48)], "layer1": [(8, 8), (16, 12)], "layer2": [(16, 12)]}


def test_pruning_what_has_no_weight_changes_no_map(fitted: sf.FeatureImitation, images: Tensor) -> None:
    fitted._use_modules(dict(zip(NAMES, [0.5, 0.0, 0.0, 1.5], strict=True)))
    assert fitted.modules_ == {"layer1@32": 0.25, "layer2@32": 0.0, "layer1@64x48": 0.0, "layer2@64x48": 0.75}
    before, threshold = fitted.maps(images), fitted.threshold_
    fitted.prune()
    assert list(fitted.modules_) == ["layer1@32", "layer2@64x48"]
    torch.testing.assert_close(fitted.maps(images), before, rtol=1e-5, atol=0)
    assert float(fitted.graph_.threshold) == pytest.approx(threshold)
    fitted.prune(1)
    assert fitted.modules_ == {"layer2@64x48": 1.0}


@pytest.mark.parametrize(
    ("keep", "named"),
    [
        (0, "from 1 to 4, got 0"),
        (5, "from 1 to 4, got 5"),
        (2, "search_weights"),
        (["layer3@32"], "layer1@32"),
        ([], "names out of"),
        ("layer1@32", "names out of"),
    ],
)
def test_prune_says_what_it_wants(fitted: sf.FeatureImitation, keep: Any, named: str) -> None:
    with pytest.raises(UsageError, match=f"keep: .*{named}"):
        fitted.prune(keep)
    assert list(fitted.modules_) == NAMES


def test_a_new_fit_forgets_the_pruning(fitted: sf.FeatureImitation, images: Tensor) -> None:
    fitted.prune(["layer1@32"]).fit(images, show_progress=False)
    assert fitted.modules_ == dict.fromkeys(NAMES, 0.25)


# ---------------------------------------------------------------------------------- bundles, graphs


@pytest.mark.parametrize("keep", [None, ["layer2@32", "layer1@64x48"]])
def test_a_bundle_gives_the_same_bits(
    fitted: sf.FeatureImitation, images: Tensor, tmp_path: Path, keep: list[str] | None
) -> None:
    if keep:
        fitted._use_modules({"layer2@32": 0.3, "layer1@64x48": 0.7})
        fitted.calibrate(images)
    fitted.save(tmp_path / "model")
    loaded = sf.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded, sf.FeatureImitation)
    assert loaded.modules_ == fitted.modules_
    assert list(loaded.modules_) == (keep or NAMES)
    for ours, theirs in zip(loaded.predict(images), fitted.predict(images), strict=True):
        assert torch.equal(ours, theirs)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    with safe_open(tmp_path / "model", framework="pt") as file:
        students = {name.split(".")[2] for name in file.keys() if ".students." in name}  # noqa: SIM118
    assert students == set(keep or NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"modules": {"layer1@32": 1.0}},
        {"modules": {"layer9@32": 1.0}},
        {"modules": dict.fromkeys(NAMES, 0.25) | {"layer9@32": 0.0}},
        {"modules": dict.fromkeys(NAMES, -0.25)},
        {"modules": dict.fromkeys(NAMES, float("nan"))},
        {"modules": {}},
        {"modules": "all"},
        {"search": {"objective": "ce"}},
        {"search": None},
    ],
)
def test_damaged_modules_are_a_damaged_bundle(
    fitted: sf.FeatureImitation, tmp_path: Path, change: dict[str, Any]
) -> None:
    fitted.save(tmp_path / "model")
    tensors, header = read_tensors(tmp_path / "model")
    write_tensors(tmp_path / "model", tensors, header | change)
    with pytest.raises(BundleError, match="damaged"):
        sf.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("keep", [None, ["layer2@64x48"]])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_traced_graph_is_the_graph(
    fitted: sf.FeatureImitation, images: Tensor, keep: list[str] | None
) -> None:
    if keep:
        fitted.prune(keep)
    x = sf.data.to_float(images)
    traced = torch.jit.trace(fitted.graph_, x[:2], strict=False)
    for ours, theirs in zip(traced(x[3:5]), fitted.graph_(x[3:5]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    scores = fitted.score(images[3:5])
    torch.testing.assert_close(traced(x[3:5])[0], scores, rtol=1e-4, atol=0)


def test_the_exported_graph_shrinks_with_the_pruning(
    fitted: sf.FeatureImitation, images: Tensor, tmp_path: Path
) -> None:
    sizes = []
    for keep in (NAMES, ["layer1@32"]):
        file = export(fitted.prune(keep), tmp_path / f"{len(keep)}.pt")
        scores = Scorer(file, device="cpu", precision="fp32")(images[:3])
        torch.testing.assert_close(scores.anomaly_map, fitted.maps(images[:3]), rtol=1e-3, atol=1e-6)
        sizes.append(file.stat().st_size)
    assert sizes[1] < 0.2 * sizes[0]


def test_images_of_different_sizes_share_a_batch(fitted: sf.FeatureImitation, images: Tensor) -> None:
    other = F.interpolate(images[:1].float() / 255, (31, 77))[0]
    p = fitted.predict([images[0], other])
    assert p.anomaly_map.shape == (2, 1, 48, 64)
    torch.testing.assert_close(p.pred_score[:1], fitted.score(images[0]), rtol=1e-4, atol=0)
    assert 0 <= p.anomaly_map.min() <= p.anomaly_map.max() <= 1


# ---------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [64, 64]}, "scales"),
        ({"scales": [64, (64, 64)]}, "scales"),
        ({"scales": [16]}, "scales"),
        ({"scales": 256}, "scales"),
        ({"scales": ["big"]}, "scales"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"momentum": "much"}, "momentum"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"layers": ["layer9"]}, "layer9"),
        ({"backbone": "resnet19"}, "resnet19"),
        ({"image_size": 8}, "image_size"),
        ({"patience": 0}, "patience"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], images: Tensor, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(StadfastError, match=named):
        sf.FeatureImitation(**(arguments | wrong)).fit(images, show_progress=False)
