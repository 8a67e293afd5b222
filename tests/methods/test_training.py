"""The loop: order, best epoch, early stop, resume equal to the uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stadfast as sf
from stadfast.errors import BundleError, StadfastError
from stadfast.methods.checkpoint import checkpoint_files
from stadfast.methods.training import EpochRecord, TrainingOptions, summary, train


class Toy:
    """A trainee whose validation values are given and whose module remembers the order of the images."""

    def __init__(self, values: list[float | None], n: int = 10) -> None:
        self.module = nn.Linear(1, 1)
        self.module.register_buffer("epochs", torch.zeros(()))
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.1)
        self.values, self.n, self.seen = iter(values), n, []

    def __len__(self) -> int:
        return self.n

    def loss(self, indices: Tensor) -> Tensor:
        self.seen.append(indices.tolist())
        return self.module(indices[:, None].float()).square().mean()

    def validate(self) -> float | None:
        self.module.epochs += 1
        return next(self.values)


def options(epochs: int, **more: Any) -> TrainingOptions:
    return TrainingOptions(epochs, batch_size=4, show_progress=False, **more)


def test_each_epoch_sees_each_image_once_in_a_seeded_order() -> None:
    toys = [Toy([None] * 2), Toy([None] * 2)]
    for toy in toys:
        train(toy, options(2, seed=3))
    assert toys[0].seen == toys[1].seen
    assert [len(batch) for batch in toys[0].seen] == [4, 4, 2] * 2
    for epoch in (toys[0].seen[:3], toys[0].seen[3:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(10))
    assert toys[0].seen[:3] != toys[0].seen[3:]


@pytest.mark.parametrize(
    ("values", "patience", "epochs", "best"),
    [
        ([3.0, 1.0, 2.0, 1.0], None, 4, 2),  # the first of equal epochs
        ([3.0, 1.0, 2.0, 2.0, 0.5], 2, 4, 2),
        ([None, None, None], None, 3, 3),  # without validation: the last
        ([3.0, 2.0, 1.0], 1, 3, 3),
    ],
)
def test_best_epoch_and_early_stop(values: list[Any], patience: int | None, epochs: int, best: int) -> None:
    toy = Toy(values)
    history = train(toy, options(len(values), patience=patience))
    assert len(history) == epochs
    assert toy.module.epochs == best


def test_callbacks_see_every_epoch() -> None:
    seen: list[EpochRecord] = []
    history = train(Toy([2.0, 1.0]), options(2, callbacks=[seen.append]))
    assert seen == history
    assert [record.epoch for record in seen] == [1, 2]


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    toy = Toy([1.0])
    toy.module.weight.data.fill_(float("nan"))
    with pytest.raises(StadfastError, match=r"epoch 1, step 1 is nan.*learning rate"):
        train(toy, options(1))


class StopError(Exception):
    pass


def stop_at(epoch: int) -> Any:
    def callback(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise StopError

    return callback


@pytest.fixture
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stadfast.methods.training._CHECKPOINT_OVERHEAD", float("inf"))


@pytest.mark.usefixtures("eager_checkpoints")
def test_resume_is_the_uninterrupted_run(arguments: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    def detector() -> sf.STPM:
        return sf.STPM(**(arguments | {"epochs": 5}))

    whole = detector().fit(images, show_progress=False)
    checkpoint = tmp_path / "m.checkpoint"
    for epoch in (2, 3):
        with pytest.raises(StopError):
            detector().fit(
                images, checkpoint=checkpoint, resume=True, callbacks=[stop_at(epoch)], show_progress=False
            )
    seen: list[EpochRecord] = []
    resumed = detector().fit(
        images, checkpoint=checkpoint, resume=True, callbacks=[seen.append], show_progress=False
    )
    assert [record.epoch for record in seen] == [4, 5]
    assert resumed.history_ == whole.history_
    assert resumed.threshold_ == whole.threshold_
    for name, tensor in whole.graph_.state_dict().items():
        assert torch.equal(tensor, resumed.graph_.state_dict()[name]), name


@pytest.mark.usefixtures("eager_checkpoints")
def test_more_epochs_continue_and_other_arguments_are_refused(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "m.checkpoint"
    sf.STPM(**arguments).fit(images, checkpoint=checkpoint, show_progress=False)
    longer = sf.STPM(**(arguments | {"epochs": 4})).fit(
        images, checkpoint=checkpoint, resume=True, show_progress=False
    )
    assert [record.epoch for record in longer.history_] == [1, 2, 3, 4]
    with pytest.raises(BundleError, match="its seed is 0, now it is 5;"):
        sf.STPM(**(arguments | {"seed": 5})).fit(
            images, checkpoint=checkpoint, resume=True, show_progress=False
        )
    with pytest.raises(BundleError, match="images"):
        sf.STPM(**arguments).fit(images[:9], checkpoint=checkpoint, resume=True, show_progress=False)


def test_a_damaged_checkpoint_is_named(arguments: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    checkpoint = tmp_path / "m.checkpoint"
    checkpoint.write_bytes(b"\0" * 50)
    with pytest.raises(BundleError, match=r"m\.checkpoint"):
        sf.STPM(**arguments).fit(images, checkpoint=checkpoint, resume=True, show_progress=False)


def test_resume_without_a_checkpoint_starts_anew(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path
) -> None:
    detector = sf.STPM(**arguments).fit(
        images, checkpoint=tmp_path / "none.checkpoint", resume=True, show_progress=False
    )
    assert len(detector.history_) == 3


@pytest.mark.usefixtures("eager_checkpoints")
def test_phases_resume_where_they_were(tmp_path: Path) -> None:
    """A finished phase is taken from its file without a step; the stopped one goes on."""
    whole = options(4, checkpoint=tmp_path / "run", resume=True)
    first, second = Toy([3.0, 1.0]), Toy([4.0, 3.0, 2.0, 1.0])
    history = train(first, whole.phase("the teacher", epochs=2))
    with pytest.raises(StopError):
        train(second, whole.phase("student", callbacks=[stop_at(3)]))
    assert [path.name for path in checkpoint_files(tmp_path / "run")] == ["run.student", "run.the-teacher"]

    again = Toy([])
    assert train(again, whole.phase("the teacher", epochs=2)) == history
    assert again.seen == []
    assert again.module.epochs == 2
    rest = train(Toy([1.0]), whole.phase("student"))
    assert [(record.epoch, record.phase) for record in rest] == [(n, "student") for n in (1, 2, 3, 4)]
    described = summary([*history, *rest])["phases"]
    assert {name: phase["epochs"] for name, phase in described.items()} == {"the teacher": 2, "student": 4}
    assert described["the teacher"]["selected_epoch"] == 2
