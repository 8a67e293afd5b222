"""PeerEnsemble: Uninformed Students' score for other people's networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stadfast as sf
from stadfast.errors import DataError, UsageError


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(3, 16, 5, stride=2).eval()


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 20, 24, generator=generator) for n in (4, 4, 2)]


@pytest.mark.parametrize("standardise", [False, True])
def test_the_map_is_the_papers(batches: list[Tensor], standardise: bool) -> None:
    teacher, students = network(0), [network(seed) for seed in (1, 2, 3)]
    ensemble = sf.PeerEnsemble(teacher, students, standardise=standardise).fit(batches)

    def parts(images: Tensor) -> tuple[Tensor, Tensor]:
        known = teacher(images).double()
        if standardise:
            every = teacher(torch.cat(batches)).double()
            known = known - every.mean((0, 2, 3), keepdim=True)
            known = known / every.std((0, 2, 3), keepdim=True, correction=0)
        said = torch.stack([student(images).double() for student in students])
        error = (said.mean(0) - known).square().sum(1)
        return error, said.square().sum(2).mean(0) - said.mean(0).square().sum(1)

    with torch.no_grad():
        on_good = parts(torch.cat(batches))
        images = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(5))
        wanted = sum(
            (score - good.mean()) / good.std(correction=0)
            for score, good in zip(parts(images), on_good, strict=True)
        )
        maps = ensemble(images)
    assert maps.shape == (2, 1, 8, 10)
    torch.testing.assert_close(maps[:, 0].double(), wanted, rtol=1e-3, atol=1e-4)


def test_the_state_is_saved_and_maps_are_upsampled(batches: list[Tensor]) -> None:
    ensemble = sf.PeerEnsemble(network(0), [network(1), network(2)], standardise=False, size=(20, 24)).fit(
        batches
    )
    other = sf.PeerEnsemble(network(3), [network(4), network(5)], standardise=False, size=(20, 24))
    other.load_state_dict(ensemble.state_dict())
    with torch.no_grad():
        maps = ensemble(batches[0])
        assert maps.shape == (4, 1, 20, 24)
        assert torch.equal(other(batches[0]), maps)


def test_one_student_has_an_error_only(batches: list[Tensor]) -> None:
    ensemble = sf.PeerEnsemble(network(0), [network(1)]).fit(batches)
    with torch.no_grad():
        assert ensemble(batches[0]).isfinite().all()


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="students"):
        sf.PeerEnsemble(network(0), [])
    with pytest.raises(DataError, match="batches: expected at least one"):
        sf.PeerEnsemble(network(0), [network(1)]).fit([])
