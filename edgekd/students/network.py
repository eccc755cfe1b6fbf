"""A student of stages as a torch module: convolutions, batch norm, ReLU and add, which every runtime runs in int8.

Hard swish, squeeze-and-excite and attention are there for the spaces that ask for them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.students.spec import HEAD_DIM, Activation, StageSpec, StudentSpec

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


class SqueezeExcite(nn.Module):
    """Channel gate: mean -> 1x1 -> ReLU -> 1x1 -> hard sigmoid -> scale. Source: Hu et al. 2018; MobileNetV3's form."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, channels // 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), scaled per channel."""
        scale = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        out: Tensor = x * self.gate(scale)
        return out


class Block(nn.Module):
    """One inverted or fused residual block. (batch, in, height, width) -> (batch, out, height/stride, width/stride)."""

    def __init__(self, stage: StageSpec, in_channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        hidden, out = in_channels * stage.expansion, stage.channels
        self.residual = stride == 1 and in_channels == out
        layers: list[nn.Module] = []
        if stage.block == "fused":
            hidden = hidden if stage.expansion > 1 else out
            layers += _conv_bn(in_channels, hidden, stage.kernel, stride=stride, activation=activation)
        else:
            if stage.expansion > 1:
                layers += _conv_bn(in_channels, hidden, 1, activation=activation)
            layers += _conv_bn(hidden, hidden, stage.kernel, stride=stride, groups=hidden, activation=activation)
        if stage.squeeze_excite:
            layers.append(SqueezeExcite(hidden))
        if stage.block == "inverted" or stage.expansion > 1:
            layers += _conv_bn(hidden, out, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, with the input added where shapes allow."""
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class BasicBlock(nn.Module):
    """Two dense convolutions beside a shortcut, a strided 1x1 convolution where the shape changes. Source: He 2016."""

    def __init__(self, stage: StageSpec, in_channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        out = stage.channels
        layers = _conv_bn(in_channels, out, stage.kernel, stride=stride, activation=activation)
        layers += _conv_bn(out, out, stage.kernel)
        if stage.squeeze_excite:
            layers.append(SqueezeExcite(out))
        self.layers = nn.Sequential(*layers)
        same = stride == 1 and in_channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(in_channels, out, 1, stride=stride))
        self.activation = _ACTIVATIONS[activation](inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, height, width) -> (batch, out, height / stride, width / stride)."""
        out: Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return out


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, then a perceptron, each beside a shortcut; batch norms fold into convolutions.

    Source: Graham et al. 2021, "LeViT", section 4.
    """

    def __init__(self, stage: StageSpec, in_channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        out, hidden = stage.channels, stage.channels * stage.expansion
        same = stride == 1 and in_channels == out
        entry = [] if same else _conv_bn(in_channels, out, 3, stride=stride, activation=activation)
        self.entry = nn.Sequential(*entry)
        self.qkv = nn.Sequential(*_conv_bn(out, 3 * out, 1))
        self.project = nn.Sequential(*_conv_bn(out, out, 1))
        self.perceptron = nn.Sequential(*_conv_bn(out, hidden, 1, activation=activation), *_conv_bn(hidden, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, height, width) -> (batch, out, height / stride, width / stride)."""
        x = self.entry(x)
        batch, channels, height, width = x.shape
        query, key, value = (
            part.reshape(batch, channels // HEAD_DIM, HEAD_DIM, height * width).transpose(2, 3)
            for part in self.qkv(x).chunk(3, 1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.project(mixed.transpose(2, 3).reshape(batch, channels, height, width))
        out: Tensor = x + self.perceptron(x)
        return out


class StudentNet(nn.Module):
    """Stem, stages and classifier. `features` is a Sequential of [stem, stage, ..., stage, head convolution].

    Shapes: (batch, in_channels, image_size, image_size) -> logits (batch, num_classes).
    """

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        act = spec.activation
        stem = nn.Sequential(
            *_conv_bn(spec.in_channels, spec.stem_channels, 3, stride=spec.stem_stride, activation=act)
        )
        rooms: list[nn.Module] = [stem]
        channels = spec.stem_channels
        for stage in spec.stages:
            rooms.append(_stage(stage, channels, act))
            channels = stage.channels
        rooms.append(nn.Sequential(*_conv_bn(channels, spec.head_channels, 1, activation=act)))
        self.features = nn.Sequential(*rooms)
        self.classifier = nn.Linear(spec.head_channels, spec.num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def build_stages(spec: StudentSpec) -> StudentNet:
    """The module of a spec of stages, freshly initialised from torch's global generator.

    >>> stage = StageSpec(channels=16, depth=2, stride=2)
    >>> sizes = {"image_size": 28, "in_channels": 1, "num_classes": 10, "stem_channels": 8, "head_channels": 32}
    >>> spec = StudentSpec(stages=(stage,), **sizes)
    >>> build_stages(spec)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return StudentNet(spec)


def _stage(stage: StageSpec, in_channels: int, activation: Activation) -> nn.Sequential:
    kinds: dict[str, type[nn.Module]] = {"basic": BasicBlock, "attention": AttentionBlock}
    make = kinds.get(stage.block, Block)
    blocks = [make(stage, in_channels, stage.stride, activation)]
    blocks += [make(stage, stage.channels, 1, activation) for _ in range(stage.depth - 1)]
    return nn.Sequential(*blocks)


def _conv_bn(
    in_channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: Activation | None = None
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out)]
    if activation is not None:
        layers.append(_ACTIVATIONS[activation](inplace=False))  # in place would corrupt feature taps
    return layers


def _initialise(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=0.01)
            nn.init.zeros_(child.bias)
