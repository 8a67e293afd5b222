"""The tree of Stereotype Deepening: a doctor, its masters, their bachelors; and the maps of their disagreement."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import UsageError
from ._descriptors import DESCRIPTOR, Architecture, PatchNetwork, pad_images

TERMS = ("inference", "delivery", "peer")


@dataclass(frozen=True)
class Family:
    """Who learns from whom: networks are numbered level by level, the doctor is 0.

    Attributes:
        widths: children of each network of level 0, 1, ...; (2, 2) is the paper's: two masters, each with two
            bachelors.
    """

    widths: tuple[int, ...]

    @property
    def levels(self) -> list[list[int]]:
        found, first = [[0]], 1
        for width in self.widths:
            count = len(found[-1]) * width
            found.append(list(range(first, first + count)))
            first += count
        return found

    @property
    def parents(self) -> list[int]:
        """Of networks 1, 2, ..."""
        return [
            p
            for level, width in zip(self.levels, self.widths, strict=False)
            for p in level
            for _ in range(width)
        ]

    @property
    def teachers(self) -> int:
        """Networks with children: the first so many."""
        return sum(len(level) for level in self.levels[:-1])

    def pairs(self, *, all_pairs: bool, ordered: bool) -> dict[str, list[tuple[int, int]]]:
        """The pairs of each of :data:`TERMS`, of (parent, child) or of two peers.

        Args:
            all_pairs: delivery from every network of a level to every one of the next, not to its children only.
            ordered: two peers count twice, as in the paper's sum over all i, j.
        """
        edges = [(parent, child) for child, parent in enumerate(self.parents, 1)]
        if all_pairs:
            between = zip(self.levels[1:-1], self.levels[2:], strict=True)
            deeper = [pair for upper, lower in between for pair in itertools.product(upper, lower)]
        else:
            deeper = [pair for pair in edges if pair[0] != 0]
        choose = itertools.permutations if ordered else itertools.combinations
        peers = [pair for level in self.levels[1:] for pair in choose(level, 2)]
        return {"inference": [pair for pair in edges if pair[0] == 0], "delivery": deeper, "peer": peers}


class DescriptorTree(nn.Module):
    """Normalised images (B, 3, H, W) -> maps (B, 1, H, W), and image scores (B,) where the image is one patch.

    A network that teaches is seen in two forms: what it says itself, which its own teacher and its peers are compared
    with, and that standardised component by component, which its children have learnt. All forms are affine in
    codes of few channels; ``small_weight`` and ``small_bias`` are the heads that keep their distances
    (``ops.reduce_heads``), so that no map of 512 channels is made.

    Args:
        architecture: of every network.
        family: see :class:`Family`.
        size: (H, W) of the maps.
        stride: pixels between two positions of the maps before their upsampling.
        one_patch: the image is one patch, and has one score.
        terms: those of :data:`TERMS` that are summed.
        all_pairs, ordered: see :meth:`Family.pairs`.
        seed: of the weights.
    """

    small_weight: Tensor
    small_bias: Tensor
    mean: Tensor
    std: Tensor
    term_scale: Tensor

    def __init__(
        self, architecture: Architecture, family: Family, size: tuple[int, int], stride: int,
        *, one_patch: bool, terms: Sequence[str], all_pairs: bool, ordered: bool, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.architecture, self.family, self.size, self.stride = architecture, family, size, stride
        self.one_patch = one_patch
        self.strides = (stride,)  # of images at native scale, height and width are multiples
        self.row_by_row = False
        count = len(family.parents) + 1
        self.networks = nn.ModuleList(PatchNetwork(architecture, seed * 1009 + i) for i in range(count))
        # The forms of the descriptors: the teachers' standardised ones, then everybody's but the doctor's own.
        self.forms = [*range(family.teachers), *range(1, count)]
        offset = family.teachers - 1
        found = family.pairs(all_pairs=all_pairs, ordered=ordered)
        found["peer"] = [(offset + i, offset + j) for i, j in found["peer"]]
        for name in ("inference", "delivery"):
            found[name] = [(parent, offset + child) for parent, child in found[name]]
        self.terms = [name for name in TERMS if found[name] and name in terms]
        self.pairs = [pair for name in self.terms for pair in found[name]]
        self.groups = [group for group, name in enumerate(self.terms) for _ in found[name]]
        rank = min(DESCRIPTOR, len(self.forms) * (architecture.code + 1))
        for name, tensor in {
            "mean": torch.zeros(family.teachers, DESCRIPTOR),
            "std": torch.ones(family.teachers, DESCRIPTOR),
            "small_weight": torch.zeros(len(self.forms), rank, architecture.code),
            "small_bias": torch.zeros(len(self.forms), rank),
            "term_scale": torch.ones(len(self.terms)),
        }.items():
            self.register_buffer(name, tensor)
        self.reduce()

    @property
    def doctor(self) -> PatchNetwork:
        return self.networks[0]  # type: ignore[return-value]

    def standardised(self, teacher: int, descriptors: Tensor) -> Tensor:
        """A teacher's descriptors (B, 512, h, w) as its children learn them."""
        shape = (1, DESCRIPTOR, 1, 1)
        return (descriptors - self.mean[teacher].view(shape)) / self.std[teacher].view(shape)

    def full_heads(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The head (512, k), (512,) of each form, in float64."""
        for index, number in enumerate(self.forms):
            head = self.networks[number].head  # type: ignore[union-attr]
            weight, bias = head.weight.flatten(1).double(), head.bias.double()  # type: ignore[union-attr,operator]
            if index < self.family.teachers:
                scale = self.std[number].double()
                weight, bias = weight / scale[:, None], (bias - self.mean[number].double()) / scale
            yield weight, bias

    @torch.no_grad()
    def reduce(self) -> None:
        """Take the small heads from the full ones, after these or their standardisation have changed."""
        weights, biases = zip(*self.full_heads(), strict=True)
        small, offsets = ops.reduce_heads(weights, biases)
        self.small_weight.copy_(torch.stack(small))
        self.small_bias.copy_(torch.stack(offsets))

    def raw_terms(self, images: Tensor) -> Tensor:
        """The sums of distances of each term at every position: (B, terms, h, w)."""
        stride = self.stride
        if not self.one_patch:
            images = pad_images(images, self.architecture.field, stride)
        codes = [network.codes(images, stride) for network in self.networks]  # type: ignore[operator]
        seen = [codes[number] for number in self.forms]
        if self.row_by_row:
            heads = zip(seen, self.small_weight[..., None, None], self.small_bias, strict=True)
            descriptors = [F.conv2d(code, weight, bias) for code, weight, bias in heads]
            return ops.peer_distance(descriptors, self.pairs, self.groups)
        return ops.code_distance(
            seen, self.small_weight.unbind(), self.small_bias.unbind(), self.pairs, self.groups
        )

    def at_size(self, size: tuple[int, int]) -> DescriptorTree:
        """The same networks for images of another size, every operator of which works row by row.

        Raises:
            UsageError: there are no maps, as each image is one patch.
        """
        if self.one_patch:
            raise UsageError("detector: with one_patch it has one number per image, and no native scale")
        other = copy.copy(self)
        other.size, other.row_by_row = size, True
        return other

    def term_maps(self, images: Tensor) -> Tensor:
        """The terms as they are summed, upsampled: (B, terms, H, W)."""
        terms = self._scaled(self.raw_terms(images))
        return torch.cat([ops.upsample_combine([term], self.size) for term in terms.split(1, dim=1)], dim=1)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        total = self._scaled(self.raw_terms(images)).sum(1, keepdim=True)
        if self.one_patch:
            return total.expand(-1, -1, *self.size).contiguous(), total.flatten()
        return ops.upsample_combine([total], self.size)

    def _scaled(self, terms: Tensor) -> Tensor:
        return terms / self.term_scale.view(1, -1, 1, 1)
