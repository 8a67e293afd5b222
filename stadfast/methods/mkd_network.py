"""The networks, losses and maps of :class:`~stadfast.methods.mkd.MultiresolutionKD`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbones import FeaturePyramid
from .input_gradient import ExplicitBackward
from .smoothing import GaussianBlur, opening

_WIDTHS = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))
_EPS = 1e-8  # of the norms, as in torch's cosine_similarity
_CHUNK = 8  # images at a time: the activations of more do not stay in the caches
_SIGMA = 4.0  # of the Gaussian over the maps, in pixels
_WHITE = 0.99  # quantile of a map that the official code makes 1


def create_cloner(layers: Sequence[str], seed: int) -> FeaturePyramid:
    """The compact student of VGG-16: the same depth and the same outputs, 16 channels between them.

    Convolutions without bias, initialised as Glorot and Bengio (uniform); batch norm after each of them but the last
    before a pooling. 343,984 parameters up to pool5.

    Args:
        layers: out of pool1 to pool5.
        seed: of the weights; the global random state is neither used nor changed.
    """
    modules: list[nn.Module] = []
    steps: list[tuple[str, tuple[str, ...]]] = []
    channels = 3
    with torch.device("meta"):
        for number in range(1, max(int(layer[-1]) for layer in layers) + 1):
            first, widths = len(modules), _WIDTHS[number - 1]
            for i, width in enumerate(widths):
                norm = [nn.BatchNorm2d(width)] if i < len(widths) - 1 else []
                modules += [nn.Conv2d(channels, width, 3, padding=1, bias=False), *norm, nn.ReLU(inplace=True)]
                channels = width
            modules.append(nn.MaxPool2d(2))
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


def direction_and_value(cloner: Sequence[Tensor], source: Sequence[Tensor]) -> Tensor:
    """(B, 2): each image's two losses, summed over the layers (eq. 1 to 3 of the paper).

    Direction: ``1 - cos(vec(c), vec(s))``, each layer's features as one vector. Value: mean of ``(c - s)^2``.

    Args:
        cloner, source: L x (B, C_l, H_l, W_l), float32.
    """
    losses = []
    for c, s in zip(cloner, source, strict=True):
        cosine, _, _ = _cosine(c, s)
        losses.append(torch.stack([1 - cosine, (c - s).square().mean((1, 2, 3))], dim=1))
    return torch.stack(losses).sum(0)


def loss_gradients(
    cloner: Sequence[Tensor], source: Sequence[Tensor], weights: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of ``direction_and_value(cloner, source) @ weights`` with respect to both networks' features.

    Args:
        cloner, source: L x (B, C_l, H_l, W_l).
        weights: (2,) of direction and value.
    """
    to_cloner, to_source = [], []
    for c, s in zip(cloner, source, strict=True):
        cosine, norm_c, norm_s = (t.view(-1, 1, 1, 1) for t in _cosine(c, s))
        value = 2 * weights[1] / c[0].numel()
        cross = weights[0] / (norm_c * norm_s) + value
        to_cloner.append((weights[0] * cosine / norm_c.square() + value) * c - cross * s)
        to_source.append((weights[0] * cosine / norm_s.square() + value) * s - cross * c)
    return to_cloner, to_source


def _cosine(c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each (B,): cosine of the whole tensors, and their norms (at least eps)."""
    norm_c, norm_s = (t.square().sum((1, 2, 3)).clamp_min(_EPS**2).sqrt() for t in (c, s))
    return (c * s).sum((1, 2, 3)) / (norm_c * norm_s), norm_c, norm_s


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
        if localisation.method == "smoothgrad":  # the same noise for every image: the same image, the same map
            generator = torch.Generator().manual_seed(localisation.seed)
            noise = torch.randn(localisation.samples, 3, *size, generator=generator)
            self.register_buffer("noise", noise, persistent=False)
        self._source, self._cloner = (ExplicitBackward(network, layers) for network in (source, cloner))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # a loop over chunks would fix the batch
            return self._explain(images)
        maps, scores = zip(*(self._explain(chunk) for chunk in images.split(_CHUNK)), strict=True)
        return torch.cat(maps), torch.cat(scores)

    def _explain(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(maps, scores) of a few images."""
        if self.localisation.method == "smoothgrad":
            cloner, source = (network.forward(images)[0] for network in (self._cloner, self._source))
            scores = direction_and_value(cloner, source) @ self.loss_weights
            saliency = self._smoothgrad(images)
        else:
            gradient, scores = self.input_gradient(images)
            saliency = self._saliency(gradient)
        return opening(self.blur(saliency)), scores

    def input_gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (B, 3, H, W) of each image's loss with respect to the image, and the losses (B,)."""
        cloner, cloner_tape = self._cloner.forward(images)
        source, source_tape = self._source.forward(images)
        scores = direction_and_value(cloner, source) @ self.loss_weights
        to_cloner, to_source = loss_gradients(cloner, source, self.loss_weights)
        guided = self.localisation.method == "gbp"  # the official code guides the cloner alone
        gradient = self._cloner.backward(cloner_tape, to_cloner, guided=guided)
        if self.localisation.through == "both":
            gradient = gradient + self._source.backward(source_tape, to_source)
        return gradient, scores

    def _smoothgrad(self, images: Tensor) -> Tensor:
        """Mean saliency of noisy copies (Smilkov et al. 2017, arXiv 1706.03825), as the official code has it.

        Its noise has the standard deviation ``(noise / range)^2`` with each image's own range of values.
        """
        level = self.localisation.noise
        span = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
        deviation = (level / span.clamp_min(level)).square() if level else torch.zeros_like(span)
        saliency = sum(
            self._saliency(self.input_gradient(images + deviation * noise)[0]) for noise in self.noise.unbind()
        )
        saliency = saliency / self.localisation.samples
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
