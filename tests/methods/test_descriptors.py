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


@pytest.mark.parametrize("architecture", [TINY, *EVERY], ids=lambda a: f"{a.patch}, code {a.code}")
def test_batch_norms_are_for_training_and_go_into_the_convolutions(architecture: Architecture) -> None:
    network, images = PatchNetwork(architecture, seed=2).double(), 3 * random(2, 3, 80, 80).double() + 1
    names, stride = list(network.state_dict()), architecture.stride
    network.learn()
    network.double().train()
    codes = network.codes(images, stride)
    if not architecture.scalar:
        codes = torch.where(codes < 0, codes / 5e-3, codes)  # before the LeakyReLU
        torch.testing.assert_close(codes.mean((0, 2, 3)), torch.zeros(architecture.code).double())
        wanted = torch.ones(architecture.code).double()
        torch.testing.assert_close(codes.std((0, 2, 3), correction=0), wanted, rtol=1e-2, atol=0)
    assert network.convs[0].weight.grad_fn is None
    with torch.no_grad():
        wanted = network.eval()(images, stride)
        network.settle()
        torch.testing.assert_close(network(images, stride), wanted, rtol=1e-9, atol=1e-9)
    assert list(network.state_dict()) == names


def test_one_value_has_no_variance() -> None:
    network = PatchNetwork(TINY, seed=0)
    network.learn()
    patch = random(1, 3, TINY.field, TINY.field)
    found = network.train()(patch, TINY.stride)
    assert found.isfinite().all()
    assert float(found.detach().square().sum()) > 0


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
