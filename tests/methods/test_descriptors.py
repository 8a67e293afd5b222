"""Stereotype Deepening: the patch networks, dense and patch by patch."""

from __future__ import annotations

import pytest
import torch
from trees import TINY, random

from stadfast.methods._descriptors import (
    ARCHITECTURES,
    DESCRIPTOR,
    Architecture,
    PatchNetwork,
    choose_architecture,
    pad_images,
    padding,
)

EVERY = [found for variants in ARCHITECTURES.values() for found in variants]


def test_the_printed_table() -> None:
    """Parameters, sizes and the field of 61 pixels, as the paper's table has them."""
    paper = choose_architecture("paper", None)
    network = PatchNetwork(paper, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 47_361
    assert (paper.patch, paper.field, paper.stride, paper.code) == (64, 61, 8, 1)
    sides, x = [], torch.zeros(1, 3, 64, 64)
    convs = iter(network.convs)
    for layer in paper.layers:
        x = torch.max_pool2d(x, 2) if layer is None else next(convs)(x)
        sides.append(x.shape[-1])
    assert sides == [61, 30, 27, 13, 10, 5, 2, 1]
    assert choose_architecture("wide", None).code == 4


@pytest.mark.parametrize("architecture", EVERY, ids=lambda a: f"{a.patch}, code {a.code}")
def test_dense_equals_patch_by_patch(architecture: Architecture) -> None:
    network = PatchNetwork(architecture, seed=1).double()
    field = architecture.field
    images = random(2, 3, field + 9, field + 8).double()
    with torch.no_grad():
        dense = network(images, 1)
        assert dense.shape == (2, DESCRIPTOR, 10, 9)
        for y, x in [(0, 0), (3, 5), (9, 8)]:
            patch = images[:, :, y : y + architecture.patch, x : x + architecture.patch]
            if patch.shape[-2:] == (architecture.patch, architecture.patch):
                alone = network(patch, architecture.stride)
                assert alone.shape == (2, DESCRIPTOR, 1, 1)
                torch.testing.assert_close(dense[:, :, y, x], alone[:, :, 0, 0], rtol=0, atol=1e-6)
            # What lies beyond the field is not seen.
            field_only = network(images[:, :, y : y + field, x : x + field], architecture.stride)
            torch.testing.assert_close(dense[:, :, y, x], field_only[:, :, 0, 0], rtol=0, atol=1e-6)
        for stride in (2, 4, 8):
            if stride <= architecture.stride:
                torch.testing.assert_close(
                    network(images, stride), dense[:, :, ::stride, ::stride], rtol=0, atol=1e-6
                )


def test_networks_follow_from_their_seed() -> None:
    first, again, other = (PatchNetwork(TINY, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("architecture", EVERY, ids=lambda a: f"{a.patch}, code {a.code}")
def test_adapted_networks_have_no_dead_channel(architecture: Architecture) -> None:
    network, images = PatchNetwork(architecture, seed=2), 3 * random(2, 3, 96, 96) + 1
    network.adapt(images)
    codes = network.codes(images, architecture.stride)
    if not architecture.scalar:  # before the LeakyReLU
        codes = torch.where(codes < 0, codes / 5e-3, codes)
    torch.testing.assert_close(
        codes.mean((0, 2, 3)), torch.full((architecture.code,), 0.5), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(codes.std((0, 2, 3)), torch.ones(architecture.code), rtol=0, atol=1e-3)


@pytest.mark.parametrize("architecture", [TINY, *EVERY], ids=lambda a: f"{a.patch}")
@pytest.mark.parametrize("side", [64, 77, 100])
def test_padding_gives_every_position_its_patch(architecture: Architecture, side: int) -> None:
    for stride in (s for s in (1, 2, 4, 8) if s <= architecture.stride):
        positions, before, after = padding(side, architecture.field, stride)
        assert positions == -(-side // stride)
        assert (before + side + after - architecture.field) // stride + 1 == positions
        # The first field's centre is the centre of the first `stride` pixels, to half a pixel.
        centre = (architecture.field - 1) / 2 - before
        assert abs(centre - (stride - 1) / 2) <= 0.5 or architecture.field < stride
    assert (
        pad_images(torch.zeros(1, 3, side, 80), architecture.field, 1).shape[2]
        == side + architecture.field - 1
    )
