"""The networks, losses and maps of :class:`~stadfast.methods.mkd.MultiresolutionKD`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import FeaturePyramid
from ..errors import UsageError
from .input_gradient import ExplicitBackward
from .smoothing import GaussianBlur, opening

_WIDTHS = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))
_EPS = 1e-8  # of the norms, as in torch's cosine_similarity
_CHUNK = 8  # images at a time: the activations of more do not stay in the caches
_SIGMA = 4.0  # of the Gaussian over the maps, in pixels
_WHITE = 0.99  # quantile of a map that the official code makes 1


def create_cloner(layers: Sequence[str], seed: int) -> FeaturePyramid:
    """The compact student of VGG-16: of its depth and with its pool2 to pool5, but 16 channels between them.

    Convolutions without bias, initialised as Glorot and Bengio (uniform); batch norm after each of them but the last
    before a pooling. 343,984 parameters up to pool5.

    Args:
        layers: out of pool1 (16 channels, where the source has 64) to pool5.
        seed: of the weights; the global random state is neither used nor changed.
    """
    modules: list[nn.Module] = []
    steps: list[tuple[str, tuple[str, ...]]] = []
    channels = 3
    with torch.device("meta"):
        for number in range(1, max(int(layer[-1]) for layer in layers) + 1):
            first, widths = len(modules), _WIDTHS[number - 1]
            for i, width in enumerate(widths):
                last = i == len(widths) - 1
                modules.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                modules.append(nn.MaxPool2d(2) if last else nn.BatchNorm2d(width))
                modules.append(nn.ReLU(inplace=True))  # commutes with the pooling, after which it is cheaper
                channels = width
            steps.append((f"pool{number}", tuple(f"features.{n}" for n in range(first, len(modules)))))
    cloner = FeaturePyramid(
        "cloner", layers, {"features": nn.Sequential(*modules)}, steps, (0.0,) * 3, (1.0,) * 3
    )
    generator = torch.Generator().manual_seed(seed)
    for module in cloner.to_empty(device="cpu").modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return cloner


def layer_losses(cloner: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Direction ``1 - cos(vec(c), vec(s))`` and value ``mean((c - s)^2)`` of one layer (eq. 1 and 2 of the paper).

    Args:
        cloner: features, (B, C, H, W).
        source: features, the same shape.

    Returns:
        Each (B,), at least float32.
    """
    c, s = _vectors(cloner), _vectors(source)
    return 1 - _cosine(c, s)[0], torch.linalg.vector_norm(c - s, dim=1).square() / c.shape[1]


def layer_gradient(cloner: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    """Gradient of ``weights[0] * direction + weights[1] * value`` of one layer with respect to the cloner's features.

    ``d direction / dc = (cos c' - s') / |c|`` with the unit vectors c' and s', ``d value / dc = 2 (c - s) / N``.
    The losses are symmetric: with the arguments swapped it is the gradient with respect to the source's.

    Args:
        cloner: features, (B, C, H, W).
        source: features, the same shape.
        weights: (2,) of direction and value, or (B, 2).
    """
    cosine, norm_c, norm_s = _cosine(_vectors(cloner), _vectors(source))
    direction, value = weights.unbind(-1)
    value = 2 * value / cloner[0].numel()
    own = direction * cosine / norm_c.square() + value
    other = direction / (norm_c * norm_s) + value
    return own.view(-1, 1, 1, 1) * cloner - other.view(-1, 1, 1, 1) * source


def distillation_loss(cloner: Sequence[Tensor], source: Sequence[Tensor], weights: Tensor) -> Tensor:
    """(B,): each image's ``weights[0] * direction + weights[1] * value``, summed over the layers (eq. 3)."""
    losses = [torch.stack(layer_losses(c, s), dim=1) for c, s in zip(cloner, source, strict=True)]
    return torch.stack(losses).sum(0) @ weights


class TrainingLoss(torch.autograd.Function):
    """:func:`distillation_loss` of (weights, source, *cloner), differentiable with respect to the cloner.

    By :func:`layer_gradient`, which passes over the features far less often than autograd.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, source: list[Tensor], *cloner: Tensor) -> Tensor:
        ctx.source = source
        ctx.save_for_backward(weights, *cloner)
        return distillation_loss(cloner, source, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        weights, *cloner = ctx.saved_tensors
        scaled = gradients[0][:, None] * weights
        found = [layer_gradient(c, s, scaled).to(c.dtype) for c, s in zip(cloner, ctx.source, strict=True)]
        return None, None, *found


def _vectors(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W C), at least float32; no copy of channels_last float32."""
    vectors = features.permute(0, 2, 3, 1).flatten(1)
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _cosine(c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each (B,): cosine of the vectors, and their norms (at least eps)."""
    norm_c, norm_s = (torch.linalg.vector_norm(t, dim=1).clamp_min(_EPS) for t in (c, s))
    product = (c[:, None] @ s[:, :, None]).flatten()
    return product / (norm_c * norm_s), norm_c, norm_s


@dataclass(frozen=True)
class Localisation:
    """How the map is made of the loss; the arguments of :class:`~stadfast.methods.mkd.MultiresolutionKD`."""

    method: str = "gradient"
    through: str = "both"
    protocol: str = "raw"
    samples: int = 50
    noise: float = 0.05
    seed: int = 0


class SourceCloner(nn.Module):
    """Frozen source and its cloner; normalised images (B, 3, H, W) -> (maps (B, 1, H, W), image scores (B,)).

    Args:
        source, cloner: pyramids with the same layers and shapes.
        size: (H, W) of the images.
        layers: those whose loss is the score, and whose gradient makes the map.
        loss_weights: of direction and value.
        localisation: how the map is made.
    """

    global_term = "the gradient of a loss that is one number for the whole image"
    loss_weights: Tensor
    noise: Tensor

    def __init__(
        self, source: FeaturePyramid, cloner: FeaturePyramid, size: tuple[int, int],
        *, layers: Sequence[str], loss_weights: tuple[float, float], localisation: Localisation,
    ) -> None:  # fmt: skip
        super().__init__()
        self.source = source
        self.cloner = cloner
        self.localisation = localisation
        self.blur = GaussianBlur(size, _SIGMA)
        self.register_buffer("loss_weights", torch.tensor(loss_weights))
        if localisation.method == "smoothgrad":  # one noise for all images: equal images get equal maps
            generator = torch.Generator().manual_seed(localisation.seed)
            noise = torch.randn(localisation.samples, 3, *size, generator=generator)
            self.register_buffer("noise", noise, persistent=False)
        self._source, self._cloner = (ExplicitBackward(network, layers) for network in (source, cloner))

    def at_size(self, size: tuple[int, int]) -> SourceCloner:
        """The same network for images of another size, sharing its weights."""
        if self.localisation.method == "smoothgrad":
            raise UsageError("localisation: smoothgrad has noise of one image size")
        other = copy.copy(self)
        other._modules = {**self._modules, "blur": GaussianBlur(size, _SIGMA).to(self.loss_weights.device)}
        return other

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # a loop over chunks would fix the batch
            return self._explain(images)
        maps, scores = zip(*(self._explain(chunk) for chunk in images.split(_CHUNK)), strict=True)
        return torch.cat(maps), torch.cat(scores)

    def _explain(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(maps, scores) of a few images."""
        if self.localisation.method == "smoothgrad":
            cloner, source = (network.forward(images)[0] for network in (self._cloner, self._source))
            scores = distillation_loss(cloner, source, self.loss_weights)
            saliency = self._smoothgrad(images)
        else:
            gradient, scores = self.input_gradient(images)
            saliency = self._saliency(gradient)
        return opening(self.blur(saliency)), scores

    def input_gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (B, 3, H, W) of each image's loss with respect to the image, and the losses (B,)."""
        cloner, cloner_tape = self._cloner.forward(images)
        source, source_tape = self._source.forward(images)
        weights = self.loss_weights
        pairs = list(zip(cloner, source, strict=True))
        guided = self.localisation.method == "gbp"  # the official code guides the cloner alone
        to_cloner = [layer_gradient(c, s, weights) for c, s in pairs]
        gradient = self._cloner.backward(cloner_tape, to_cloner, guided=guided)
        if self.localisation.through == "both":
            to_source = [layer_gradient(s, c, weights) for c, s in pairs]
            gradient = gradient + self._source.backward(source_tape, to_source)
        scores = distillation_loss(cloner, source, weights)
        return gradient, scores

    def _smoothgrad(self, images: Tensor) -> Tensor:
        """Mean saliency of noisy copies (Smilkov et al. 2017, arXiv 1706.03825), as the official code has it.

        Its noise has the standard deviation ``(noise / range)^2`` with each image's own range of values.
        """
        level = self.localisation.noise
        span = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
        deviation = (level / span.clamp_min(level)).square() if level else torch.zeros_like(span)
        copies = (images + deviation * noise for noise in self.noise.unbind())
        total = torch.zeros_like(images[:, :1])
        for noisy in copies:
            total = total + self._saliency(self.input_gradient(noisy)[0])
        saliency = total / self.localisation.samples
        return _stretched(saliency, 1.0) if self.localisation.protocol == "paper" else saliency

    def _saliency(self, gradient: Tensor) -> Tensor:
        """(B, 1, H, W): magnitude of the gradient, summed over the colours."""
        saliency = gradient.abs().sum(1, keepdim=True)
        return _stretched(saliency, _WHITE) if self.localisation.protocol == "paper" else saliency


def _stretched(maps: Tensor, white: float) -> Tensor:
    """Each map from its own minimum (0) to its own quantile ``white`` (1), clipped."""
    flat = maps.flatten(1)
    low = flat.amin(1)
    high = flat.amax(1) if white == 1 else torch.quantile(flat, white, dim=1)
    span = (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    return ((maps - low.view(-1, 1, 1, 1)) / span.view(-1, 1, 1, 1)).clamp(0, 1)
