"""Stereotype Deepening: the losses, the training of a level, the scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trees import TINY, random, tree

from stadfast.methods._deepening import (
    LevelTraining,
    Recipe,
    compactness_loss,
    scale_terms,
    standardise_level,
)
from stadfast.methods._descriptors import DESCRIPTOR, pad_images
from stadfast.methods.features import FeatureStore
from stadfast.methods.graph import Preprocess
from stadfast.methods.hardware import Precision

FP32 = Precision("fp32", "test")


def test_compactness_is_equation_five_as_reconstructed() -> None:
    x = random(7, DESCRIPTOR, seed=4).double()
    r = torch.corrcoef(x)
    above = [r[i, j] for i in range(7) for j in range(i + 1, 7)]
    assert float(compactness_loss(x)) == pytest.approx(
        2 / (7 * 6) * sum(float(v) ** 2 for v in above), rel=1e-5
    )
    assert float(compactness_loss(x, "abs")) == pytest.approx(
        sum(abs(float(v)) for v in above) / 21, rel=1e-5
    )
    assert float(compactness_loss(x, "literal")) == 21
    few = x[:, :5]
    channels = torch.corrcoef(few.t())
    wanted = [float(channels[i, j]) ** 2 for i in range(5) for j in range(i + 1, 5)]
    assert float(compactness_loss(few, "dims")) == pytest.approx(sum(wanted) / 10, rel=1e-5)


@pytest.mark.parametrize("form", ["pairs", "abs", "dims"])
def test_compactness_lowers_correlation_and_literal_does_not(form: str) -> None:
    x = (random(6, DESCRIPTOR) + random(1, DESCRIPTOR, seed=9)).requires_grad_()
    (gradient,) = torch.autograd.grad(compactness_loss(x, form), x)
    assert float(compactness_loss(x - 50 * gradient, form).detach()) < float(
        compactness_loss(x, form).detach()
    )
    assert not compactness_loss(x, "literal").requires_grad


def recipe(**changes: Any) -> Recipe:
    arguments: dict[str, Any] = {
        "mu": 1.0, "compactness": "pairs", "compact_doctor": False, "compact_students": True, "compact_batch": 16,
        "over_channels": True, "learning_rate": 1e-2, "weight_decay": 0.0, "seed": 0,
    }  # fmt: skip
    return Recipe(**(arguments | changes))


def store(images: Tensor, size: tuple[int, int]) -> FeatureStore:
    preprocess = Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return FeatureStore(
        list(images),
        preprocess,
        lambda _: [],
        precision=FP32,
        device=torch.device("cpu"),
        show_progress=False,
    )


@pytest.fixture
def small() -> FeatureStore:
    return store((random(6, 3, 24, 20) * 60 + 128).clamp(0, 255).to(torch.uint8), (24, 20))


def test_children_learn_from_their_parents_and_these_stay(small: FeatureStore) -> None:
    found = tree()
    standardise_level(found, 0, small, 4)
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    for level in (1, 2):
        training = LevelTraining(found, level, small, small, recipe(), FP32, 4)
        first = training.validate()
        for _ in range(12):
            loss = training.loss(torch.arange(4))
            training.optimizer.zero_grad()
            loss.backward()
            training.optimizer.step()
        with torch.no_grad():
            assert training.validate() < 0.8 * first
        if level == 1:
            standardise_level(found, 1, small, 4)
            masters = {i: found.networks[i].head.weight.clone() for i in (1, 2)}
    after = found.state_dict()
    doctor = [name for name in before if name.startswith("networks.0.")]
    assert all(torch.equal(before[name], after[name]) for name in doctor)
    assert all(torch.equal(masters[i], found.networks[i].head.weight) for i in masters)
    assert all(p.grad is None for p in found.networks[0].parameters())


def test_the_error_is_towards_ones_own_parent(small: FeatureStore) -> None:
    found = tree()
    for level in (0, 1):
        standardise_level(found, level, small, 4)
    training = LevelTraining(found, 2, small, None, recipe(), FP32, 4)
    images = pad_images(small.batch(torch.arange(3))[0], TINY.field, TINY.stride)
    error, learnt = training._errors(images)
    wanted = torch.zeros(())
    for child, parent in {3: 1, 4: 1, 5: 2, 6: 2}.items():
        known = found.standardised(parent, found.networks[parent](images, TINY.stride))
        wanted = wanted + (known - found.networks[child](images, TINY.stride)).square().mean()
    torch.testing.assert_close(error, wanted, rtol=1e-4, atol=1e-5)
    assert len(learnt) == 4
    summed = LevelTraining(found, 2, small, None, recipe(over_channels=False), FP32, 4)._errors(images)[0]
    torch.testing.assert_close(summed, DESCRIPTOR * error, rtol=1e-4, atol=1e-4)


def test_mu_weighs_error_against_compactness(small: FeatureStore) -> None:
    found = tree()

    def loss(**changes: Any) -> float:
        return float(
            LevelTraining(found, 1, small, None, recipe(**changes), FP32, 4).loss(torch.arange(4)).detach()
        )

    error = loss()
    assert loss(mu=0.5, compact_students=False) == pytest.approx(0.5 * error, rel=1e-5)
    compactness = loss(mu=0.0)
    assert 0 < compactness <= 2  # of two masters
    assert loss(mu=0.5) == pytest.approx(0.5 * error + 0.5 * compactness, rel=1e-5)
    assert loss(mu=0.5, compactness="literal") == pytest.approx(0.5 * error + 0.5 * 2 * 16 * 15 / 2, rel=1e-5)


def test_a_level_is_standardised_over_the_images(small: FeatureStore) -> None:
    found = tree()
    standardise_level(found, 1, small, 4)
    images = pad_images(small.batch(torch.arange(6))[0], TINY.field, TINY.stride)
    with torch.no_grad():
        for master in (1, 2):
            x = found.standardised(master, found.networks[master](images, TINY.stride))
            torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(DESCRIPTOR), rtol=0, atol=1e-3)
            torch.testing.assert_close(
                x.std((0, 2, 3), correction=0), torch.ones(DESCRIPTOR), rtol=0, atol=1e-3
            )
    assert torch.equal(found.mean[0], torch.zeros(DESCRIPTOR))  # the doctor is another level


def test_terms_are_scaled_by_their_deviation(small: FeatureStore) -> None:
    found = tree()
    scale_terms(found, small, 4)
    with torch.no_grad():
        raw = found.raw_terms(small.batch(torch.arange(6))[0])
    torch.testing.assert_close(found.term_scale, raw.std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6)
