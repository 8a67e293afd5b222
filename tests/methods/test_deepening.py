"""Stereotype Deepening: the losses, the training of a level, the scales."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from trees import TINY, doctor, random, tree

from stadfast.methods._deepening import (
    DoctorTraining,
    LevelTraining,
    Recipe,
    compactness_loss,
    scale_terms,
    standardise_level,
    whiten_level,
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
        "over_channels": True, "learning_rate": 1e-2, "weight_decay": 0.0, "seed": 0, "window": 8,
        "by_component": True,
    }  # fmt: skip
    return Recipe(**(arguments | changes))


def store(images: Tensor, size: tuple[int, int], teacher: Any = lambda _: []) -> FeatureStore:
    preprocess = Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return FeatureStore(
        list(images),
        preprocess,
        teacher,
        precision=FP32,
        device=torch.device("cpu"),
        show_progress=False,
    )


@pytest.fixture
def small() -> FeatureStore:
    return store((random(6, 3, 24, 20) * 60 + 128).clamp(0, 255).to(torch.uint8), (24, 20))


def test_children_learn_from_their_parents_and_these_stay(small: FeatureStore) -> None:
    found = tree()
    standardise_level(found, 0, small, 4, True)
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    for level in (1, 2):
        training = LevelTraining(found, level, small, small, recipe(), 4, 12)
        with torch.no_grad():
            first = training.validate()
        training.module.train()
        for _ in range(12):
            loss = training.loss(torch.arange(4))
            training.optimizer.zero_grad()
            loss.backward()
            training.optimizer.step()
        training.module.eval()
        with torch.no_grad():
            assert training.validate() < 0.8 * first
        training.settle()
        if level == 1:
            standardise_level(found, 1, small, 4, True)
            masters = {i: found.networks[i].head.weight.clone() for i in (1, 2)}
    after = found.state_dict()
    doctor = [name for name in before if name.startswith("networks.0.")]
    assert all(torch.equal(before[name], after[name]) for name in doctor)
    assert all(torch.equal(masters[i], found.networks[i].head.weight) for i in masters)
    assert all(p.grad is None for p in found.networks[0].parameters())


def test_the_error_is_towards_ones_own_parent(small: FeatureStore) -> None:
    found = tree()
    for level in (0, 1):
        standardise_level(found, level, small, 4, True)
    training = LevelTraining(found, 2, small, None, recipe(), 4, 12)
    images = pad_images(small.batch(torch.arange(3))[0], TINY.field, TINY.stride)
    error, learnt = training._errors(images, [])
    wanted = torch.zeros(())
    for child, parent in {3: 1, 4: 1, 5: 2, 6: 2}.items():
        known = found.standardised(parent, found.networks[parent](images, TINY.stride))
        wanted = wanted + (known - found.networks[child](images, TINY.stride)).square().mean()
    torch.testing.assert_close(error, wanted, rtol=1e-4, atol=1e-5)
    assert len(learnt) == 4
    summed = LevelTraining(found, 2, small, None, recipe(over_channels=False), 4, 12)._errors(images, [])[0]
    torch.testing.assert_close(summed, DESCRIPTOR * error, rtol=1e-4, atol=1e-4)


class Drawn:
    """Patches that are always the same."""

    channels, classes, device = 4, 2, torch.device("cpu")

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        n = len(indices)
        return random(n, 3, TINY.patch, TINY.patch), torch.zeros(n, dtype=torch.int64), random(n, 4, seed=1)

    def autocast(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


def test_mu_is_the_doctors_only_with_compactness() -> None:
    def loss(**changes: Any) -> float:
        training = DoctorTraining(tree().networks[0], Drawn(), None, recipe(**changes), 1.0, 4, 12)  # type: ignore[arg-type]
        return float(training.loss(torch.arange(4)).detach())

    error = loss()
    assert error > 0
    assert loss(mu=0.0) == pytest.approx(error, rel=1e-5)
    compactness = loss(mu=0.0, compact_doctor=True)
    assert 0 < compactness <= 1
    assert loss(mu=0.5, compact_doctor=True) == pytest.approx(0.5 * error + 0.5 * compactness, rel=1e-5)


def test_mu_weighs_error_against_compactness(small: FeatureStore) -> None:
    found = tree()

    def loss(**changes: Any) -> float:
        return float(
            LevelTraining(found, 1, small, None, recipe(**changes), 4, 12).loss(torch.arange(4)).detach()
        )

    error = loss()
    assert loss(mu=0.0, compact_students=False) == pytest.approx(error, rel=1e-5)
    compactness = loss(mu=0.0)
    assert 0 < compactness <= 2  # of two masters
    assert loss(mu=0.5) == pytest.approx(0.5 * error + 0.5 * compactness, rel=1e-5)
    assert loss(mu=0.5, compactness="literal") == pytest.approx(0.5 * error + 0.5 * 2 * 16 * 15 / 2, rel=1e-5)


def test_a_level_is_standardised_over_the_images(small: FeatureStore) -> None:
    found = tree()
    standardise_level(found, 1, small, 4, True)
    images = pad_images(small.batch(torch.arange(6))[0], TINY.field, TINY.stride)
    with torch.no_grad():
        for master in (1, 2):
            x = found.standardised(master, found.networks[master](images, TINY.stride))
            torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(DESCRIPTOR), rtol=0, atol=1e-3)
            torch.testing.assert_close(
                x.std((0, 2, 3), correction=0), torch.ones(DESCRIPTOR), rtol=0, atol=1e-3
            )
    assert torch.equal(found.mean[0], torch.zeros(DESCRIPTOR))  # the doctor is another level
    standardise_level(found, 1, small, 4, False)
    with torch.no_grad():
        x = found.standardised(1, found.networks[1](images, TINY.stride))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(DESCRIPTOR), rtol=0, atol=1e-3)
    assert float(x.std(correction=0)) == pytest.approx(1, rel=1e-3)
    assert float(x.std((0, 2, 3)).max()) > 1.2


def test_whitened_errors_of_good_images_have_no_correlation(small: FeatureStore) -> None:
    found = tree((2,), whitened=True)
    whiten_level(found, 1, small, 4)
    images = pad_images(small.batch(torch.arange(6))[0], TINY.field, TINY.stride)
    with torch.no_grad():
        said = [
            network(images, TINY.stride).transpose(0, 1).flatten(1).double() for network in found.networks
        ]
    errors = torch.cat([said[0] - said[1], said[0] - said[2]], dim=1)
    for whitening, differences in zip(found.whitening.double(), (errors, said[1] - said[2]), strict=True):
        moments = differences @ differences.T / differences.shape[1]
        ridge = 0.01 * moments.diagonal().mean() * torch.eye(DESCRIPTOR)
        unit = whitening @ (moments + ridge) @ whitening.T
        torch.testing.assert_close(unit, torch.eye(DESCRIPTOR).double(), rtol=0, atol=1e-3)


def test_stored_descriptors_of_a_pretrained_doctor_are_cut_with_the_images(small: FeatureStore) -> None:
    source = doctor()
    found = tree((1,), size=(48, 64), stride=4, doctor=source)
    images = (random(3, 3, 48, 64) * 60 + 128).clamp(0, 255).to(torch.uint8)
    stored = store(images, (48, 64), lambda x: [source.codes(x, TINY.stride)])
    training = LevelTraining(found, 1, stored, stored, recipe(window=5), 2, 10)
    batch, features = stored.batch(torch.arange(3))
    for seed in range(20):
        cut, (known,) = training._crop(batch, features, torch.Generator().manual_seed(seed))
        assert known.shape[-2:] == (5, 5)
        assert cut.shape[-1] == TINY.field + 4 * TINY.stride
        # Where the window is: the very descriptors, and the pixels of the same place.
        y, x = next(
            (y, x) for y in range(8) for x in range(12)
            if torch.equal(features[0][..., y : y + 5, x : x + 5], known)
        )  # fmt: skip
        padded = pad_images(batch, TINY.field, TINY.stride)
        assert torch.equal(padded[..., 4 * y : 4 * y + cut.shape[-2], 4 * x : 4 * x + cut.shape[-1]], cut)
    first = training.validate()
    for _ in range(10):
        loss = training.loss(torch.arange(2))
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
    training.module.eval()
    with torch.no_grad():
        assert training.validate() < 0.9 * first
    assert training.optimizer.param_groups[0]["lr"] < 0.05 * 1e-2  # nearly at the end of the cosine


def test_terms_are_scaled_by_their_deviation(small: FeatureStore) -> None:
    found = tree()
    scale_terms(found, small, 4)
    with torch.no_grad():
        raw = found.raw_terms(small.batch(torch.arange(6))[0])
    torch.testing.assert_close(found.term_scale, raw.std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6)
