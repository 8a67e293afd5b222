"""EfficientNet-Lite0 without its classifier, in plain modules, under timm's names.

Tan and Le, "EfficientNet", 2019, in the variant for edge devices: no squeeze-and-excitation, ReLU6 for swish,
and TensorFlow's "same" padding, which depends on the size of the input. Written out here because plain
convolutions and batch norms can be fused, traced and streamed; the tests compare it with timm's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Per stage: number of blocks, expansion, kernel, stride of the first block, output channels.
_STAGES = (
    (1, 1, 3, 1, 16), (2, 6, 3, 2, 24), (2, 6, 5, 2, 40), (3, 6, 3, 2, 80),
    (3, 6, 5, 1, 112), (4, 6, 5, 2, 192), (1, 6, 3, 1, 320),
)  # fmt: skip
_STEM_CHANNELS = 32
_EPS = 1e-3


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: ceil(n / stride) outputs, the odd zero at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        for n, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = -n % stride + kernel - stride  # never negative, because kernel >= stride
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, then 1 x 1: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _conv(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs, _EPS)
        self.act = nn.ReLU6(inplace=True)
        self.conv_pw = _conv(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))
        return self.bn2(self.conv_pw(x))


class InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise convolution, 1 x 1 projection; plus the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.conv_pw = _conv(inputs, middle, 1)
        self.bn1 = nn.BatchNorm2d(middle, _EPS)
        self.conv_dw = _conv(middle, middle, kernel, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle, _EPS)
        self.act = nn.ReLU6(inplace=True)
        self.conv_pwl = _conv(middle, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs, _EPS)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.act(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.has_skip else y


def efficientnet_lite0() -> nn.ModuleDict:
    """``conv_stem``, ``bn1``, ``act`` and ``blocks`` (seven stages), to be run one after the other."""
    channels = _STEM_CHANNELS
    stages = []
    for count, expansion, kernel, stride, outputs in _STAGES:
        blocks: list[nn.Module] = []
        for i in range(count):
            step = stride if i == 0 else 1
            if expansion == 1:
                blocks.append(DepthwiseSeparable(channels, outputs, kernel, step))
            else:
                blocks.append(InvertedResidual(channels, outputs, kernel, step, expansion))
            channels = outputs
        stages.append(nn.Sequential(*blocks))
    return nn.ModuleDict({
        "conv_stem": _conv(3, _STEM_CHANNELS, 3, 2),
        "bn1": nn.BatchNorm2d(_STEM_CHANNELS, _EPS),
        "act": nn.ReLU6(inplace=True),
        "blocks": nn.Sequential(*stages),
    })  # fmt: skip
