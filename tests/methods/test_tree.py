"""Stereotype Deepening: the tree, who learns from whom, the terms of the map."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from trees import TINY, doctor, random, tree

import stadfast as sf
from stadfast.methods._descriptors import PatchNetwork, pad_images
from stadfast.methods._tree import DescriptorTree, Family


@pytest.mark.parametrize(
    ("widths", "levels", "parents"),
    [
        ((2, 2), [[0], [1, 2], [3, 4, 5, 6]], [0, 0, 1, 1, 2, 2]),
        ((3,), [[0], [1, 2, 3]], [0, 0, 0]),
        ((1, 3, 1), [[0], [1], [2, 3, 4], [5, 6, 7]], [0, 1, 1, 1, 2, 3, 4]),
    ],
)
def test_who_learns_from_whom(widths: tuple[int, ...], levels: list[list[int]], parents: list[int]) -> None:
    family = Family(widths)
    assert family.levels == levels
    assert family.parents == parents
    assert family.teachers == len(parents) + 1 - len(levels[-1])


def test_pairs_of_the_three_terms() -> None:
    family = Family((2, 2))
    default = family.pairs(all_pairs=False, ordered=True)
    assert default["inference"] == [(0, 1), (0, 2)]
    assert default["delivery"] == [(1, 3), (1, 4), (2, 5), (2, 6)]
    assert default["peer"] == [(1, 2), (2, 1), *itertools.permutations(range(3, 7), 2)]
    other = family.pairs(all_pairs=True, ordered=False)
    assert other["delivery"] == [*itertools.product((1, 2), (3, 4, 5, 6))]
    assert other["peer"] == [(1, 2), *itertools.combinations(range(3, 7), 2)]


def expected_terms(found: DescriptorTree, images: Tensor, all_pairs: bool, ordered: bool) -> Tensor:
    """By the full descriptors, one pair after the other."""
    padded = pad_images(images, TINY.field, found.stride)
    said = [
        network(padded, found.stride)
        if isinstance(network, PatchNetwork)
        else network.codes(images, found.stride)
        for network in found.networks
    ]
    known = [found.standardised(i, said[i]) for i in range(found.family.teachers)]
    pairs = found.family.pairs(all_pairs=all_pairs, ordered=ordered)
    level_of = {number: level for level, members in enumerate(found.family.levels) for number in members}

    def distance(a: Tensor, b: Tensor, child: int, peers: bool = False) -> Tensor:
        if len(found.whitening):
            number = 2 * (level_of[child] - 1) + peers
            return torch.einsum("ij,bjhw->bihw", found.whitening[number], a - b).square().sum(1).sqrt()
        return (a - b).square().sum(1).sqrt()

    maps = [sum(distance(known[i], said[j], j) for i, j in pairs[name]) for name in ("inference", "delivery")]
    maps.append(sum(distance(said[i], said[j], j, peers=True) for i, j in pairs["peer"]))
    return torch.stack(maps, 1)


def shuffled(found: DescriptorTree) -> DescriptorTree:
    """With standardisations and whitenings that matter."""
    found.mean.copy_(random(3, found.channels, seed=1))
    found.std.copy_(random(3, found.channels, seed=2).abs() + 0.5)
    found.whitening.add_(0.1 * random(*found.whitening.shape, seed=3))
    found.reduce()
    return found


@pytest.mark.parametrize("all_pairs", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("whitened", "stride"), [(False, 1), (False, 2), (True, 4)])
def test_terms_are_those_of_the_full_descriptors(
    all_pairs: bool, ordered: bool, whitened: bool, stride: int
) -> None:
    found = shuffled(tree(all_pairs=all_pairs, ordered=ordered, stride=stride, whitened=whitened).double())
    images = random(2, 3, 24, 20).double()
    with torch.no_grad():
        terms = found.raw_terms(images)
        assert terms.shape == (2, 3, -(-24 // stride), -(-20 // stride))
        torch.testing.assert_close(
            terms, expected_terms(found, images, all_pairs, ordered), rtol=1e-6, atol=0
        )
        forms = (
            15 if whitened else 9
        )  # peers have forms of their own where they have a whitening of their own
        assert found.heads[0].out_channels == forms * 5  # channels of the maps that are made, not 512
    assert all(term.min() > 0 for term in terms.unbind(1))


def test_terms_of_a_pretrained_doctor() -> None:
    found = shuffled(tree(doctor=doctor(), stride=4, whitened=True).double())
    images = random(2, 3, 32, 48).double()
    with torch.no_grad():
        terms = found.raw_terms(images)
        assert terms.shape == (2, 3, 8, 12)
        torch.testing.assert_close(terms, expected_terms(found, images, False, True), rtol=1e-6, atol=0)


def test_a_pretrained_doctor_says_features_side_by_side() -> None:
    source = doctor()
    images = random(2, 3, 64, 32)
    with torch.no_grad():
        one, two = source.source(images)
        codes = source.codes(images, 4)
        assert codes.shape == (2, 64 + 128, 16, 8)
        finer = torch.nn.functional.interpolate(two, scale_factor=2, mode="bilinear")
        features = torch.cat([one, finer], dim=1)
        torch.testing.assert_close(codes, features / features.norm(dim=1, keepdim=True) * 192**0.5)
        source.one_patch = True
        alone = source.codes(images, 4)
        features = torch.cat([one.mean((2, 3)), two.mean((2, 3))], dim=1)
    wanted = features / features.norm(dim=1, keepdim=True) * 192**0.5
    torch.testing.assert_close(alone[:, :, 0, 0], wanted)


def test_the_map_is_the_sum_of_the_scaled_terms() -> None:
    found = tree()
    found.term_scale.copy_(torch.tensor([2.0, 0.5, 4.0]))
    images = random(2, 3, 24, 20)
    with torch.no_grad():
        raw = found.raw_terms(images) / found.term_scale.view(1, 3, 1, 1)
        terms = found.term_maps(images)
        torch.testing.assert_close(found(images), terms.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
        for i in range(3):
            wanted = sf.ops.upsample_combine([raw[:, i : i + 1]], (24, 20))
            torch.testing.assert_close(terms[:, i : i + 1], wanted, rtol=1e-4, atol=1e-4)


def test_terms_can_be_chosen_and_empty_ones_are_left_out() -> None:
    assert tree(terms=["peer", "inference"]).terms == ["inference", "peer"]
    assert tree((3,)).terms == ["inference", "peer"]
    assert tree((1, 1)).terms == ["inference", "delivery"]
    images = random(1, 3, 24, 20)
    with torch.no_grad():
        alone = tree(terms=["delivery"])(images)
        torch.testing.assert_close(alone, tree().term_maps(images)[:, 1:2], rtol=1e-4, atol=1e-4)


def test_one_patch_has_one_score() -> None:
    found = tree(one_patch=True, size=(18, 18), stride=4)
    with torch.no_grad():
        maps, scores = found(random(5, 3, 18, 18))
    assert maps.shape == (5, 1, 18, 18)
    assert scores.shape == (5,)
    assert torch.equal(maps, scores.view(5, 1, 1, 1).expand_as(maps))


def test_the_tree_can_be_traced_and_exported() -> None:
    found = tree().eval().requires_grad_(False)
    images = random(2, 3, 24, 20)
    program = torch.export.export(found, (images,)).module()
    torch.testing.assert_close(program(images), found(images), rtol=1e-4, atol=1e-4)
