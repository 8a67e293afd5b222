"""Small descriptor trees for the tests of Stereotype Deepening."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stadfast.backbones import create_backbone, freeze
from stadfast.methods._descriptors import Architecture
from stadfast.methods._doctor import PretrainedDoctor
from stadfast.methods._tree import TERMS, DescriptorTree, Family

TINY = Architecture(18, ((6, 3), None, (5, 3), None, (4, 3)))  # a field of 18, all parts in little


def tree(
    widths: tuple[int, ...] = (2, 2), size: tuple[int, int] = (24, 20), **changes: Any
) -> DescriptorTree:
    arguments: dict[str, Any] = {
        "doctor": None, "one_patch": False, "terms": TERMS, "all_pairs": False, "ordered": True,
        "whitened": False, "seed": 0, "stride": 2,
    }  # fmt: skip
    arguments |= changes
    return DescriptorTree(TINY, Family(widths), size, arguments.pop("stride"), **arguments)


def doctor() -> PretrainedDoctor:
    """Not pretrained, but with features of two layers, of strides 4 and 8."""
    layers = ["layer1", "layer2"]
    return PretrainedDoctor(freeze(create_backbone("resnet18", layers, seed=1)), layers, one_patch=False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
