"""Training the tree level by level: the doctor from a pretrained network, then every child from its parent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ._descriptors import DESCRIPTOR, PatchNetwork, pad_images
from ._patches import Patches
from ._tree import DescriptorTree
from .features import FeatureStore
from .hardware import Precision

COMPACTNESS = ("pairs", "abs", "dims", "literal")
_POSITIONS = 8  # of an image's rows and columns that one step of training looks at
_ADAPTED = 16  # images that a network is adapted to before its training
_TINY, _SMALLEST = 1e-6, 1e-12  # deviations below count as so much: of the largest, and at all


@dataclass(frozen=True)
class Recipe:
    """What the trainings share.

    Attributes:
        mu: weight of the regression error; 1 - mu is the compactness loss's (the paper's eq. 6).
        compactness: its form, see :func:`compactness_loss`.
        compact_doctor, compact_students: who is trained with it.
        compact_batch: descriptors that are compared with each other.
        over_channels: the error is a mean over the 512 channels, too.
        learning_rate, weight_decay: of Adam.
        seed: of what is drawn at each step.
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

    def adam(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def generator(self, steps: Tensor) -> torch.Generator:
        """What is drawn depends on the seed and the step alone, so that a resumed run is the uninterrupted one."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(steps))

    def compact(self, descriptors: Tensor, generator: torch.Generator) -> Tensor:
        """The compactness loss of some of the descriptors (n, 512), with its weight in eq. 6."""
        chosen = torch.randperm(len(descriptors), generator=generator)[: self.compact_batch]
        rows = descriptors[chosen.to(descriptors.device)]
        return (1 - self.mu) * compactness_loss(rows, self.compactness)


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
        class_weight: float, batch_size: int,
    ) -> None:  # fmt: skip
        self._patches, self._held_out, self._recipe = patches, held_out, recipe
        self._class_weight, self._batch_size = class_weight, batch_size
        generator = torch.Generator().manual_seed(recipe.seed)
        doctor.adapt(patches.draw(_first(patches), torch.Generator().manual_seed(recipe.seed))[0].float())
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
        self._learning.steps += 1
        error, classes, descriptors = self._errors(self._patches, indices, generator)
        loss = self._recipe.mu * (error + self._class_weight * classes)
        if self._recipe.compact_doctor and self._recipe.mu < 1:
            loss = loss + self._recipe.compact(descriptors, generator)
        return loss

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
        recipe: Recipe, precision: Precision, batch_size: int,
    ) -> None:  # fmt: skip
        self._tree, self._images, self._held_out = tree, images, held_out
        self._recipe, self._precision, self._batch_size = recipe, precision, batch_size
        self._children = tree.family.levels[level]
        self._parents = sorted({tree.family.parents[child - 1] for child in self._children})
        seen = positions_of(tree, images.batch(_first(images))[0].float())
        for child in self._children:
            tree.networks[child].adapt(seen)  # type: ignore[operator]
        self._learning = _Stepped({str(i): tree.networks[i] for i in self._children}).to(tree.mean.device)
        self.module: nn.Module = self._learning
        self.optimizer = recipe.adam(self.module)

    def __len__(self) -> int:
        return len(self._images)

    def loss(self, indices: Tensor) -> Tensor:
        generator = self._recipe.generator(self._learning.steps)
        self._learning.steps += 1
        images = self._crop(positions_of(self._tree, self._images.batch(indices)[0]), generator)
        error, learnt = self._errors(images)
        loss = self._recipe.mu * error
        if self._recipe.compact_students and self._recipe.mu < 1:
            rows = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in learnt]
            loss = loss + sum(self._recipe.compact(x, generator) for x in rows)
        return loss

    def validate(self) -> float | None:
        """The regression error on the held-out images, summed over the children; the same windows in every epoch."""
        if self._held_out is None or len(self._held_out) == 0:
            return None
        total = 0.0
        for step, indices in enumerate(torch.arange(len(self._held_out)).split(self._batch_size)):
            images = positions_of(self._tree, self._held_out.batch(indices)[0])
            window = self._crop(images, torch.Generator().manual_seed(step))
            total += self._errors(window)[0].item() * len(indices)
        return total / len(self._held_out)

    def _errors(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(sum of the children's mean squared errors, their descriptors)."""
        tree, stride = self._tree, self._tree.architecture.stride
        with autocast(images, self._precision):
            with torch.no_grad():
                said = {i: tree.networks[i](images, stride) for i in self._parents}
            learnt = [tree.networks[i](images, stride) for i in self._children]
        known = [tree.standardised(i, x.float()).to(x.dtype) for i, x in said.items()]
        edges = [
            (self._parents.index(tree.family.parents[child - 1]), len(known) + k)
            for k, child in enumerate(self._children)
        ]
        error = ops.peer_distance([*known, *learnt], edges, squared=True).mean()
        return error / DESCRIPTOR if self._recipe.over_channels else error, learnt

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A window of at most _POSITIONS x _POSITIONS positions at any pixel, so that all offsets are seen."""
        if self._tree.one_patch:
            return images
        field, stride = self._tree.architecture.field, self._tree.architecture.stride
        window = field + (_POSITIONS - 1) * stride
        slices = []
        for side in images.shape[-2:]:
            length = min(window, side - stride + 1)
            first = int(torch.randint(side - length + 1, (1,), generator=generator))
            slices.append(slice(first, first + length))
        return images[..., slices[0], slices[1]]


def _first(images: Sized) -> Tensor:
    """Indices of the images that networks are adapted to."""
    return torch.arange(min(_ADAPTED, len(images)))


def autocast(images: Tensor, precision: Precision) -> torch.autocast:
    return torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision.name == "bf16")


def positions_of(tree: DescriptorTree, images: Tensor) -> Tensor:
    """The images with the borders that their patches need."""
    if tree.one_patch:
        return images
    return pad_images(images, tree.architecture.field, tree.architecture.stride)


def _moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of maps (B, C, h, w), float64."""
    count, sums, squares = 0, torch.zeros(()), torch.zeros(())
    for maps in batches:
        wide = maps.double()
        count += wide[:, 0].numel()
        sums = sums + wide.sum((0, 2, 3)).cpu()
        squares = squares + wide.square().sum((0, 2, 3)).cpu()
    mean = sums / count
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt()


def _batches(images: FeatureStore, batch_size: int) -> Iterator[Tensor]:
    for indices in torch.arange(len(images)).split(batch_size):
        yield images.batch(indices)[0].float()


@torch.no_grad()
def standardise_level(tree: DescriptorTree, level: int, images: FeatureStore, batch_size: int) -> None:
    """Set the teachers' mean and deviation of each component over the training images (section 3.3)."""
    stride = tree.architecture.stride
    for teacher in tree.family.levels[level]:
        network = tree.networks[teacher]
        mean, deviation = _moments(
            network(positions_of(tree, batch), stride) for batch in _batches(images, batch_size)
        )
        tree.mean[teacher].copy_(mean)
        tree.std[teacher].copy_(deviation.clamp_min(_TINY * float(deviation.max()) + _SMALLEST))


@torch.no_grad()
def scale_terms(tree: DescriptorTree, images: FeatureStore, batch_size: int) -> None:
    """Set each term's deviation over the positions of good images, so that their sum weighs them alike.

    This is the z-score of Uninformed Students but for its shift, which changes no order, and would make maps negative.
    """
    _, deviation = _moments(tree.raw_terms(batch) for batch in _batches(images, batch_size))
    tree.term_scale.copy_(deviation.clamp_min(_SMALLEST))
