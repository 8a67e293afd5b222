"""Multi-scale Feature Imitation: independent student blocks at several input sizes, weighted and pruned."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..backbones import create_backbone
from ..data import Sample
from ..errors import UsageError
from .arguments import MINIMUM_SIZE, both_sides, is_count
from .base import Detector
from .blocks import Block, BlockImitation, ImitationNetwork
from .graph import Preprocess, PyramidPreprocess, ScoringGraph
from .hardware import Precision
from .imitation import feature_stores
from .sources import Images, fingerprint, read_resized, split, training_images
from .training import EpochRecord, TrainingOptions, train
from .weight_search import OBJECTIVES, defect_share, kept_modules, search, search_samples

logger = logging.getLogger("stadfast")

_SEARCH_STEP = 4  # the weight search sees maps of a quarter of the height and width
_NOTE = "the weights of the modules were searched on labelled images, which figures must leave out"


class FeatureImitation(Detector):
    """Student blocks imitate single stages of a frozen teacher, at several sizes of the image.

    The block of layer l takes the teacher's features of the layer before (never another block's) and is trained to
    give those of layer l: ``mean_p ||t^ - s^||^2`` over positions p, features normalised along the channels. A layer
    at a size is a module, named ``"layer1@256"``. Map: weighted mean of the modules' ``||t^ - s^||^2 / 4``, each
    upsampled to ``image_size``. Image score: the map's maximum.

    Modules know nothing of each other: they are trained one by one, each with its own best epoch, and any of them can
    be left out afterwards, see :meth:`prune`.

    Args:
        backbone, weights, image_size, batch_size, seed, device, precision, deterministic, cache_gb: see
            :class:`Detector`; ``image_size`` is that of the maps.
        layers: what the blocks imitate; None: the backbone's default (for ResNets the paper's levels 2, 3, 4).
        scales: sizes of the network's inputs, numbers or (H, W); each is made from the original image.
        epochs: at most, for each block. The paper's "600 cycles" may be iterations, here some 40 to 60 epochs.
        patience: stop a block after so many epochs without improvement on the held-out images; None: never.
        validation_fraction: of the good images, held out to select each block's epoch and to calibrate.
        learning_rate, momentum, weight_decay: of SGD; the paper says nothing of weight decay.

    Attributes:
        modules_: name -> weight of each module, with the sum 1.
        search_: what the weights were searched on: ``objective`` and the ``images``' fingerprints; empty before.
    """

    method: ClassVar[str] = "msfi"

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        weights: Any = "default",
        layers: Sequence[str] | None = None,
        scales: Sequence[int | tuple[int, int]] = (128, 256, 384),
        image_size: int | tuple[int, int] = 256,
        epochs: int = 60,
        batch_size: int = 16,
        learning_rate: float = 0.5,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        validation_fraction: float = 0.2,
        patience: int | None = 10,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        deterministic: bool = False,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__(
            backbone, weights=weights, layers=layers, image_size=image_size, epochs=epochs, batch_size=batch_size,
            validation_fraction=validation_fraction, patience=patience, seed=seed, device=device,
            precision=precision, deterministic=deterministic, cache_gb=cache_gb,
        )  # fmt: skip
        self.scales = scales
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay

    # ---------------------------------------------------------------- building and training

    def _build(self, pretrained: bool) -> tuple[Preprocess, nn.Module]:
        pyramids = {
            size: create_backbone(self.backbone, self.layers, seed=self.seed + number)
            for number, size in enumerate(
                self._sizes(), start=1
            )  # teachers without weights have the seed itself
        }
        students = {
            Block(size, layer): pyramid.stage(layer)
            for size, pyramid in pyramids.items()
            for layer in pyramid.layers
        }
        if pretrained or not hasattr(self, "modules_"):  # a new fit forgets what was searched and pruned
            self.modules_ = {block.name: 1 / len(students) for block in students}
            self.search_: dict[str, Any] = {}
        students = {block: student for block, student in students.items() if block.name in self.modules_}
        layers = list(dict.fromkeys(block.layer for block in students))
        teacher = self._teacher(self.backbone, layers, self.weights, pretrained)
        weights = [self.modules_[block.name] for block in students]
        network = ImitationNetwork(teacher, students, weights, self._size)
        return PyramidPreprocess(network.sizes, self._size, teacher.mean, teacher.std), network

    def _train(
        self, graph: ScoringGraph, train_images: Images, held_out: Images, precision: Precision,
        options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        history: list[EpochRecord] = []
        for size in _network(graph).sizes:
            history += self._train_size(graph, size, train_images, held_out, precision, options, skip_broken)
        return history

    def _train_size(
        self, graph: ScoringGraph, size: tuple[int, int], train_images: Images, held_out: Images,
        precision: Precision, options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        """Train the blocks of one input size, one after the other, on features that are computed once."""
        network = _network(graph)
        preprocess = Preprocess(size, network.teacher.mean, network.teacher.std).to(graph.threshold.device)
        teacher = partial(network.teacher, layers=network.needed(size))
        stores = feature_stores(
            self, preprocess, teacher, train_images, held_out, precision, options, skip_broken
        )
        history: list[EpochRecord] = []
        for block in network.blocks:
            if block.size == size:
                trainee = BlockImitation(self, network, block, *stores, precision)
                history += train(trainee, options.phase(block.name))
        return history

    # ---------------------------------------------------------------- weights and pruning

    def search_weights(
        self,
        data: Any,
        objective: str = "ce",
        keep: int | None = None,
        *,
        fraction: float = 0.1,
        seed: int = 0,
    ) -> dict[str, float]:
        """Weigh the modules so that the map fits the ground truth of a few labelled images; takes seconds.

        The images are remembered, in the bundle, too: ``stadfast evaluate`` leaves them out of its figures.

        Args:
            data: labelled samples with masks; or a data set (or its folder), for a part of its test images.
            objective: ``"ce"`` (the paper) or ``"rank"``, see :func:`~stadfast.methods.weight_search.search`.
            keep: give weight 0 to all but so many modules of the largest weights; ``prune()`` then removes them.
            fraction: share of a data set's defective test images of each kind to search on.
            seed: of their choice.

        Returns:
            name -> weight, also in ``modules_``. Where ``data`` is the data set of the training, the thresholds are
            set anew from its held-out images; else :meth:`calibrate` with good images.

        Raises:
            UsageError: an argument is out of range. DataError: no defective image, or one without a mask.
        """
        names = [block.name for block in _network(self._fitted()).blocks]
        if objective not in OBJECTIVES:
            raise UsageError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
        if keep is not None and not (is_count(keep) and keep <= len(names)):
            raise UsageError(f"keep: expected a whole number from 1 to {len(names)}, got {keep!r}")
        samples, dataset = search_samples(data, fraction, seed)
        weights = search(*self._labelled_maps(samples), objective, seed)
        if keep is not None:
            weights[weights.argsort(descending=True, stable=True)[keep:]] = 0.0
        seen = {fingerprint([sample.image]) for sample in samples} | set(self.search_.get("images", ()))
        self.search_ = {"objective": objective, "images": sorted(seen)}
        self.notes_ = [*(note for note in self.notes_ if note != _NOTE), _NOTE]
        self._use_modules(dict(zip(names, weights.tolist(), strict=True)))
        self._calibrate_again([] if dataset is None else training_images(dataset))
        return dict(self.modules_)

    def prune(self, keep: int | Sequence[str] | None = None) -> Self:
        """Remove modules from the network, and with them the sizes and the depth of the teacher that nobody needs.

        Args:
            keep: so many modules of the largest weights, or the names of modules; None: those with a weight above 0,
                which leaves the maps as they are. Otherwise :meth:`calibrate` with good images afterwards.

        Raises:
            UsageError: too many, unknown names, or a number while the weights do not say which.
        """
        self._fitted()
        kept = kept_modules(self.modules_, keep)
        lost = sum(weight for name, weight in self.modules_.items() if name not in kept)
        self._use_modules({name: self.modules_[name] for name in kept})
        if lost > 0:
            self._calibrate_again([])
        return self

    def _use_modules(self, modules: Mapping[str, float]) -> None:
        """Rebuild the network with these modules and weights (scaled to the sum 1) and the parameters it has."""
        old, device = self.graph_, self.graph_.threshold.device
        total = math.fsum(modules.values())
        self.modules_ = {name: modules[name] / total for name in self.modules_ if name in modules}
        graph = ScoringGraph(*self._build(pretrained=False)).to(device)
        state = old.state_dict()
        graph.load_state_dict({name: state[name] for name in graph.state_dict()})
        self._adopt(graph)
        self._set_thresholds(self.threshold_, self.pixel_threshold_)

    def _calibrate_again(self, images: Images) -> None:
        """On the training's held-out images where ``images`` are the training's; else say that it is to be done."""
        same = images and fingerprint(images) == self.metadata_["data"]["fingerprint"]
        held_out = split(images, self._held_out_fraction(), self.seed)[1] if same else []
        if held_out:
            rule: dict[str, Any] = dict(self.calibration_)
            quantile, target_fpr = rule.get("quantile"), rule.get("target_fpr")
            self._calibrate(held_out, quantile, target_fpr, "held-out images", skip_broken=True)
            return
        logger.warning(
            "the thresholds are those from before the modules' weights changed: calibrate() on good images"
        )
        source = str(self.calibration_["source"]).partition(",")[0]
        self.calibration_["source"] = f"{source}, before the weights changed"

    @torch.no_grad()
    def _labelled_maps(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Each module's map and the defective share, at a low resolution: (N, modules, h, w) and (N, h, w)."""
        graph = self._fitted()
        grid = (self._size[0] // _SEARCH_STEP, self._size[1] // _SEARCH_STEP)
        share = torch.stack([defect_share(sample, grid) for sample in samples])
        maps = []
        for _, image in read_resized([s.image for s in samples], graph.preprocess, graph.threshold.device):
            found = _network(graph).maps(graph.preprocess(image[None]))
            maps.append(nn.functional.adaptive_avg_pool2d(found, grid).cpu())
        return torch.cat(maps), share

    def saw(self, image: Path | Tensor) -> bool:
        seen = self.search_.get("images", ())
        return bool(seen) and fingerprint([image]) in seen  # type: ignore[arg-type]

    # ---------------------------------------------------------------- saving

    def header(self) -> dict[str, Any]:
        return super().header() | {"modules": self.modules_, "search": self.search_}

    def _restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        modules = {str(name): float(weight) for name, weight in header["modules"].items()}
        if not all(weight >= 0 for weight in modules.values()) or not 0 < sum(modules.values()) < math.inf:
            raise ValueError(f"its modules have the weights {[*modules.values()]}")
        search = dict(header["search"])
        self.modules_ = modules
        self.search_ = search | {"images": [str(image) for image in search["images"]]} if search else {}
        super()._restore(header, tensors)
        self.modules_ = {
            block.name: modules[block.name] for block in _network(self.graph_).blocks
        }  # in order
        if len(self.modules_) < len(modules):
            raise ValueError(
                f"its modules are {', '.join(modules)}, of which it makes {', '.join(self.modules_)}"
            )

    # ---------------------------------------------------------------- arguments

    def _sizes(self) -> list[tuple[int, int]]:
        """``scales`` as (H, W)."""
        given = self.scales if isinstance(self.scales, (list, tuple)) else [None]
        sizes = [both_sides(size) for size in given]
        if not all(len(size) == 2 and all(map(is_count, size)) for size in sizes):
            raise UsageError(f"scales: expected sizes, as numbers or (H, W), got {self.scales!r}")
        return sizes  # type: ignore[return-value]

    def _check_arguments(self) -> None:
        super()._check_arguments()
        sizes = self._sizes()
        if not sizes or len(set(sizes)) < len(sizes) or min(map(min, sizes)) < MINIMUM_SIZE:
            raise UsageError(
                f"scales: expected different sizes of at least {MINIMUM_SIZE}, got {self.scales!r}"
            )


def _network(graph: ScoringGraph) -> ImitationNetwork:
    return graph.network  # type: ignore[return-value]
