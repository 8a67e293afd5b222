"""Training the tree level by level: the doctor from a pretrained network, then every child from its parent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ._descriptors import DESCRIPTOR, PatchNetwork, pad_images
from ._patches import Patches
from ._tree import DescriptorTree, whitening
from .features import FeatureStore
from .moments import SMALLEST, moments

COMPACTNESS = ("pairs", "abs", "dims", "literal")
_TINY = 1e-6  # of the largest deviation: those below count as so much
_RIDGE = 1e-2  # of the mean variance of errors, added to all of them


@dataclass(frozen=True)
class Recipe:
    """What the trainings share.

    Attributes:
        mu: weight of the regression error; 1 - mu is the compactness loss's (the paper's eq. 6).
        compactness: its form, see :func:`compactness_loss`.
        compact_doctor, compact_students: who is trained with both losses; others learn by the error alone.
        compact_batch: descriptors that are compared with each other.
        over_channels: the error is a mean over the 512 channels, too.
        learning_rate, weight_decay: of Adam; the rate falls to 0 along half a cosine.
        seed: of what is drawn at each step.
        window: positions of an image's rows and columns that one step of the students looks at.
        by_component: a teacher's components have deviation 1 each, not only all of them together.
    """

    mu: float
    compactness: str
    compact_doctor: bool
    compact_students: bool
    compact_batch: int
    over_channels: bool
    learning_rate: float
    weight_decay: float
    seed: int
    window: int
    by_component: bool

    def adam(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def generator(self, steps: Tensor) -> torch.Generator:
        """What is drawn depends on the seed and the step alone, so that a resumed run is the uninterrupted one."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(steps))

    def slow_down(self, optimizer: torch.optim.Optimizer, done: Tensor, steps: int) -> None:
        """Set the learning rate after ``done`` of so many steps."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, int(done) / steps)))

    def weighed(self, error: Tensor, descriptors: Iterable[Tensor], generator: torch.Generator) -> Tensor:
        """Eq. 6: the error, and the compactness of some of each network's descriptors (n, 512)."""
        loss = self.mu * error
        if self.mu < 1:
            for found in descriptors:
                chosen = torch.randperm(len(found), generator=generator)[: self.compact_batch]
                rows = found[chosen.to(found.device)]
                loss = loss + (1 - self.mu) * compactness_loss(rows, self.compactness)
        return loss


def compactness_loss(descriptors: Tensor, form: str = "pairs") -> Tensor:
    """How much the descriptors of a batch resemble each other (section 3.2 of the paper, eqs. 2 to 5).

    With r_ij the Pearson correlation of descriptors i and j along their 512 channels, and n descriptors:

    - ``"pairs"``: ``2 / (n (n - 1)) sum_{i<j} r_ij^2``, independent of the batch size, as the text wants it;
    - ``"abs"``: |r_ij| instead of the square;
    - ``"dims"``: as pairs, of every two channels along the batch (L2-Net's form);
    - ``"literal"``: eq. 5 as printed, the number of pairs n (n - 1) / 2: a constant without gradient.

    Args:
        descriptors: (n, 512), n at least 2.
        form: see above.

    Returns:
        a scalar, float32.
    """
    n = descriptors.shape[0]
    if form == "literal":
        return descriptors.new_tensor(n * (n - 1) / 2, dtype=torch.float32)
    rows = descriptors.float().t() if form == "dims" else descriptors.float()
    unit = F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
    count = len(rows)
    first, second = torch.triu_indices(count, count, 1, device=rows.device)
    correlation = (unit @ unit.t())[first, second]
    return (correlation.abs() if form == "abs" else correlation.square()).mean()


class _Stepped(nn.ModuleDict):
    """What is trained, and how many steps it has been: the checkpoint holds both."""

    steps: Tensor

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(modules)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class DoctorTraining:
    """The doctor learns a pretrained network's features of patches, and to tell their classes (sections 3.1, 4.2.1).

    Loss: ``mean ||decode(D(p)) - P(p)||^2 + class_weight * cross entropy(classify(D(p)), class of p)``, P standardised.
    """

    def __init__(
        self, doctor: PatchNetwork, patches: Patches, held_out: Patches | None, recipe: Recipe,
        class_weight: float, batch_size: int, steps: int,
    ) -> None:  # fmt: skip
        self._patches, self._held_out, self._recipe = patches, held_out, recipe
        self._class_weight, self._batch_size, self._steps = class_weight, batch_size, steps
        generator = torch.Generator().manual_seed(recipe.seed)
        doctor.learn()
        self._learning = _Stepped({
            "doctor": doctor,
            "decoder": _linear(patches.channels, generator),
            "classifier": _linear(patches.classes, generator),
        }).to(patches.device)  # fmt: skip
        self.module: nn.Module = self._learning
        self.optimizer = recipe.adam(self.module)

    def __len__(self) -> int:
        return len(self._patches)

    def loss(self, indices: Tensor) -> Tensor:
        generator = self._recipe.generator(self._learning.steps)
        self._recipe.slow_down(self.optimizer, self._learning.steps, self._steps)
        self._learning.steps += 1
        error, classes, descriptors = self._errors(self._patches, indices, generator)
        error = error + self._class_weight * classes
        return self._recipe.weighed(error, [descriptors], generator) if self._recipe.compact_doctor else error

    def validate(self) -> float | None:
        """The loss without compactness, on the same patches of the held-out images in every epoch."""
        if self._held_out is None or len(self._held_out) == 0:
            return None
        total = 0.0
        for step, indices in enumerate(torch.arange(len(self._held_out)).split(self._batch_size)):
            error, classes, _ = self._errors(self._held_out, indices, torch.Generator().manual_seed(step))
            total += (error + self._class_weight * classes).item() * len(indices)
        return total / len(self._held_out)

    def _errors(
        self, patches: Patches, indices: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(regression error, cross entropy, descriptors (n, 512))."""
        images, labels, features = patches.draw(indices, generator)
        doctor, decoder, classifier = (self._learning[k] for k in ("doctor", "decoder", "classifier"))
        with patches.autocast():
            descriptors = doctor(images, doctor.architecture.stride).mean((2, 3))
            decoded, logits = decoder(descriptors), classifier(descriptors)
        error = F.mse_loss(decoded.float(), features)
        return error, F.cross_entropy(logits.float(), labels), descriptors


def _linear(outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(DESCRIPTOR, outputs)
    nn.init.normal_(layer.weight, 0.0, DESCRIPTOR**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class LevelTraining:
    """All children of one level learn their parents' standardised descriptors of good images (eq. 4 and 6).

    Their losses are added; they share no weight, and Adam knows no scale, so that each learns as if it were alone.
    """

    def __init__(
        self, tree: DescriptorTree, level: int, images: FeatureStore, held_out: FeatureStore | None,
        recipe: Recipe, batch_size: int, steps: int,
    ) -> None:  # fmt: skip
        self._tree, self._images, self._held_out = tree, images, held_out
        self._recipe, self._batch_size, self._steps = recipe, batch_size, steps
        self._children = tree.family.levels[level]
        self._parents = sorted({tree.family.parents[child - 1] for child in self._children})
        for child in self._children:
            tree.networks[child].learn()  # type: ignore[operator]
        self._learning = _Stepped({str(i): tree.networks[i] for i in self._children}).to(tree.mean.device)
        self.module: nn.Module = self._learning
        self.optimizer = recipe.adam(self.module)

    def __len__(self) -> int:
        return len(self._images)

    def loss(self, indices: Tensor) -> Tensor:
        generator = self._recipe.generator(self._learning.steps)
        self._recipe.slow_down(self.optimizer, self._learning.steps, self._steps)
        self._learning.steps += 1
        error, learnt = self._errors(*self._crop(*self._images.batch(indices), generator))
        if not self._recipe.compact_students:
            return error
        rows = (x.permute(0, 2, 3, 1).flatten(0, 2) for x in learnt)
        return self._recipe.weighed(error, rows, generator)

    def validate(self) -> float | None:
        """The regression error on the held-out images, summed over the children."""
        if self._held_out is None or len(self._held_out) == 0:
            return None
        total = 0.0
        for indices in torch.arange(len(self._held_out)).split(self._batch_size):
            images, features = self._held_out.batch(indices)
            total += self._errors(positions_of(self._tree, images), features)[0].item() * len(indices)
        return total / len(self._held_out)

    def settle(self) -> None:
        """After the training."""
        for child in self._children:
            self._tree.networks[child].settle()  # type: ignore[operator]

    def _errors(self, images: Tensor, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(sum of the children's mean squared errors, their descriptors) of images with their borders."""
        tree, stride = self._tree, self._tree.training_stride
        with autocast(images):
            with torch.no_grad():
                said = {i: said_by(tree, i, images, features) for i in self._parents}
            learnt = [tree.networks[i](images, stride) for i in self._children]
        known = [tree.standardised(i, x.float()).to(x.dtype) for i, x in said.items()]
        edges = [
            (self._parents.index(tree.family.parents[child - 1]), len(known) + k)
            for k, child in enumerate(self._children)
        ]
        error = ops.peer_distance([*known, *learnt], edges, squared=True).mean()
        return error / tree.channels if self._recipe.over_channels else error, learnt

    def _crop(
        self, images: Tensor, features: list[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """A window of at most ``recipe.window`` positions a side.

        At any pixel, so that all offsets are seen; where the doctor's descriptors are stored, at their positions.
        """
        images = positions_of(self._tree, images)
        if self._tree.one_patch:
            return images, features
        field, stride = self._tree.architecture.field, self._tree.training_stride
        for dim in (2, 3):
            positions = (images.shape[dim] - field) // stride + 1
            count = min(self._recipe.window, positions if features else positions - 1)
            grid = stride if features else 1
            last = (images.shape[dim] - field - (count - 1) * stride) // grid
            first = int(torch.randint(last + 1, (1,), generator=generator)) * grid
            images = images.narrow(dim, first, field + (count - 1) * stride)
            features = [x.narrow(dim, first // stride, count) for x in features]
        return images, features


def autocast(images: Tensor) -> torch.autocast:
    """In the precision in which the images are stored."""
    return torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.dtype == torch.bfloat16)


def positions_of(tree: DescriptorTree, images: Tensor) -> Tensor:
    """The images with the borders that their patches need."""
    if tree.one_patch:
        return images
    return pad_images(images, tree.architecture.field, tree.training_stride)


def said_by(tree: DescriptorTree, number: int, images: Tensor, features: list[Tensor]) -> Tensor:
    """A network's descriptors of images with their borders; a pretrained doctor's are the stored ``features``."""
    if number == 0 and features:
        return features[0]
    with autocast(images):
        return tree.networks[number](images, tree.training_stride)  # type: ignore[no-any-return]


def _batches(
    tree: DescriptorTree, images: FeatureStore, batch_size: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Images with the borders that their patches need, and what is stored of them."""
    for indices in torch.arange(len(images)).split(batch_size):
        found, features = images.batch(indices)
        yield positions_of(tree, found), features


@torch.no_grad()
def standardise_level(
    tree: DescriptorTree, level: int, images: FeatureStore, batch_size: int, by_component: bool
) -> None:
    """Set the mean of each component of the teachers over the training images, and the deviation (section 3.3)."""
    for teacher in tree.family.levels[level]:
        said = (said_by(tree, teacher, *batch) for batch in _batches(tree, images, batch_size))
        mean, deviation = moments(said, (0, 2, 3))
        if not by_component:
            deviation = deviation.square().mean().sqrt().expand_as(deviation)
        tree.mean[teacher].copy_(mean)
        tree.std[teacher].copy_(deviation.clamp_min(_TINY * float(deviation.max())))


@torch.no_grad()
def whiten_level(tree: DescriptorTree, level: int, images: FeatureStore, batch_size: int) -> None:
    """Set the whitenings of a level of children (1, 2 ...): its distances become Mahalanobis distances.

    ``W^T W = (M + 0.01 tr(M) / c I)^-1`` with the second moments M, over all positions of good images, of what the
    level's children get wrong, and another such of the differences of peers: a component that students cannot learn
    counts little, one that they always get right much. ``images``: not those of the training, if there are others.
    """
    members = tree.family.levels[level]
    edges = [(tree.family.parents[child - 1], child) for child in members]
    errors, differences = _Moments(tree.channels), _Moments(tree.channels)
    for batch in _batches(tree, images, batch_size):
        said = {i: said_by(tree, i, *batch).float() for i in members}
        known = {i: tree.standardised(i, said_by(tree, i, *batch).float()) for i in {p for p, _ in edges}}
        for parent, child in edges:
            errors.add(known[parent] - said[child])
        for one, other in itertools.combinations(members, 2):
            differences.add(said[one] - said[other])
    tree.whitening[whitening(level, peers=False)].copy_(errors.whitening())
    if len(members) > 1:
        tree.whitening[whitening(level, peers=True)].copy_(differences.whitening())


class _Moments:
    """Second moments of the channels of maps (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        self._sums, self._count = torch.zeros(channels, channels, dtype=torch.float64), 0

    def add(self, maps: Tensor) -> None:
        rows = maps.transpose(0, 1).flatten(1)
        self._sums += (rows @ rows.T).double().cpu()
        self._count += rows.shape[1]

    def whitening(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self._sums / self._count)
        values = values.clamp_min(0)
        return (values + _RIDGE * values.mean() + SMALLEST).rsqrt()[:, None] * vectors.T


@torch.no_grad()
def scale_terms(tree: DescriptorTree, images: FeatureStore, batch_size: int) -> None:
    """Set each term's deviation over the positions of good images, so that their sum weighs them alike.

    This is the z-score of Uninformed Students but for its shift, which changes no order, and would make maps negative.
    """
    batches = torch.arange(len(images)).split(batch_size)
    terms = (tree.raw_terms(images.batch(indices)[0].float()) for indices in batches)
    tree.term_scale.copy_(moments(terms, (0, 2, 3))[1])
