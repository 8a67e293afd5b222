"""The tree of Stereotype Deepening: a doctor, its masters, their bachelors; and the maps of their disagreement."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import UsageError
from ._descriptors import DESCRIPTOR, Architecture, PatchNetwork, pad_images
from ._doctor import PretrainedDoctor

TERMS = ("inference", "delivery", "peer")


class Form(NamedTuple):
    """How a network's descriptors are compared.

    Attributes:
        network: its number.
        standardised: component by component, as its children have learnt them; otherwise as it says them itself.
        whitening: number of the matrix that they are multiplied by (see :func:`whitening`); None: none.
    """

    network: int
    standardised: bool
    whitening: int | None


def whitening(level: int, peers: bool) -> int:
    """The number of a level's whitening: of its errors (level 1 learns from level 0), or of its peers' differences."""
    return 2 * (level - 1) + peers


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

    def forms(self, term: str, pair: tuple[int, int], whitened: bool) -> tuple[Form, Form]:
        """How the descriptors of a pair of a term are compared."""
        level = next(level for level, members in enumerate(self.levels) if pair[1] in members)
        peers = term == "peer"
        matrix = whitening(level, peers) if whitened else None
        return Form(pair[0], not peers, matrix), Form(pair[1], False, matrix)


class DescriptorTree(nn.Module):
    """Normalised images (B, 3, H, W) -> maps (B, 1, H, W), and image scores (B,) where the image is one patch.

    A network's descriptors are compared in several forms (:class:`Form`), all affine in its codes of few channels;
    ``heads`` are the small ones that keep their distances (``ops.reduce_heads``), so that no map of 512 channels is
    made.

    Args:
        architecture: of every patch network.
        family: see :class:`Family`.
        size: (H, W) of the maps.
        stride: pixels between two positions of the maps before their upsampling.
        doctor: a pretrained network; None: a patch network, as all others.
        one_patch: the image is one patch, and has one score.
        terms: those of :data:`TERMS` that are summed.
        all_pairs, ordered: see :meth:`Family.pairs`.
        whitened: distances are Mahalanobis distances.
        seed: of the weights.
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor
    term_scale: Tensor

    def __init__(
        self, architecture: Architecture, family: Family, size: tuple[int, int], stride: int,
        *, doctor: PretrainedDoctor | None, one_patch: bool, terms: Sequence[str], all_pairs: bool, ordered: bool,
        whitened: bool, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.architecture, self.family, self.size, self.stride = architecture, family, size, stride
        self.one_patch = one_patch
        # Image sides at native scale are multiples of these.
        self.strides = (stride, *(doctor.strides if doctor else ()))
        # A pretrained doctor has descriptors at its own positions; patch networks anywhere, cheapest with all poolings.
        self.training_stride = stride if doctor else architecture.stride
        self.channels = doctor.channels if doctor else DESCRIPTOR
        count = len(family.parents) + 1
        patch_networks = [PatchNetwork(architecture, seed * 1009 + i, self.channels) for i in range(count)]
        self.networks = nn.ModuleList([doctor or patch_networks[0], *patch_networks[1:]])
        found = {
            name: pairs for name, pairs in family.pairs(all_pairs=all_pairs, ordered=ordered).items() if pairs
        }
        self.terms = [name for name in TERMS if name in found and name in terms]
        forms: dict[Form, int] = {}
        compared = [
            (group, [forms.setdefault(form, len(forms)) for form in family.forms(name, pair, whitened)])
            for group, name in enumerate(self.terms)
            for pair in found[name]
        ]
        if not self.terms:
            raise UsageError(f"terms: {list(terms)} are empty in a tree of widths {list(family.widths)}")
        self.forms = list(forms)
        self.groups, self.pairs = [group for group, _ in compared], [(i, j) for _, (i, j) in compared]
        for name, tensor in {
            "mean": torch.zeros(family.teachers, self.channels),
            "std": torch.ones(family.teachers, self.channels),
            "whitening": torch.eye(self.channels).repeat(2 * len(family.widths) if whitened else 0, 1, 1),
            "term_scale": torch.ones(len(self.terms)),
        }.items():
            self.register_buffer(name, tensor)
        codes = [self._code_channels(form.network) for form in self.forms]
        rank = min(self.channels, sum(codes) + len(codes))
        self.heads = nn.ModuleList(nn.Conv2d(channels, rank, 1).requires_grad_(False) for channels in codes)
        self.reduce()

    @property
    def doctor(self) -> PatchNetwork | PretrainedDoctor:
        return self.networks[0]  # type: ignore[return-value]

    def standardised(self, teacher: int, descriptors: Tensor) -> Tensor:
        """A teacher's descriptors (B, C, h, w) as its children learn them."""
        shape = (1, self.channels, 1, 1)
        return (descriptors - self.mean[teacher].view(shape)) / self.std[teacher].view(shape)

    def full_heads(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The head (C, k), (C,) of each form, in float64."""
        for form in self.forms:
            weight, bias = self._head(form.network)
            if form.standardised:
                mean, scale = self.mean[form.network].double(), self.std[form.network].double()
                weight, bias = weight / scale[:, None], (bias - mean) / scale
            if form.whitening is not None:
                whitening = self.whitening[form.whitening].double()
                weight, bias = whitening @ weight, whitening @ bias
            yield weight, bias

    def _head(self, number: int) -> tuple[Tensor, Tensor]:
        network = self.networks[number]
        if isinstance(network, PatchNetwork):
            assert network.head.bias is not None
            return network.head.weight.flatten(1).double(), network.head.bias.double()
        eye = torch.eye(self.channels, dtype=torch.float64, device=self.mean.device)
        return eye, torch.zeros_like(eye[0])

    def _code_channels(self, number: int) -> int:
        network = self.networks[number]
        return self.architecture.code if isinstance(network, PatchNetwork) else self.channels

    @torch.no_grad()
    def reduce(self) -> None:
        """Take the small heads from the full ones, after any of what :meth:`full_heads` reads."""
        weights, biases = zip(*self.full_heads(), strict=True)
        for head, weight, bias in zip(self.heads, *ops.reduce_heads(weights, biases), strict=True):
            head.weight.copy_(weight[..., None, None])  # type: ignore[union-attr,operator]
            head.bias.copy_(bias)  # type: ignore[union-attr,operator]

    def codes(self, images: Tensor, stride: int) -> dict[int, Tensor]:
        """The codes of each network that is compared, at positions ``stride`` apart."""
        padded = images if self.one_patch else pad_images(images, self.architecture.field, stride)
        found = {}
        for number in sorted({form.network for form in self.forms}):
            network = self.networks[number]
            found[number] = network.codes(padded if isinstance(network, PatchNetwork) else images, stride)  # type: ignore[operator]
        return found

    def raw_terms(self, images: Tensor) -> Tensor:
        """The sums of distances of each term at every position: (B, terms, h, w)."""
        codes = self.codes(images, self.stride)
        descriptors = [head(codes[form.network]) for form, head in zip(self.forms, self.heads, strict=True)]
        return ops.peer_distance(descriptors, self.pairs, self.groups)

    def at_size(self, size: tuple[int, int]) -> DescriptorTree:
        """The same networks for images of another size.

        Raises:
            UsageError: there are no maps, as each image is one patch.
        """
        if self.one_patch:
            raise UsageError("detector: with one_patch it has one number per image, and no native scale")
        other = copy.copy(self)
        other.size = size
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
