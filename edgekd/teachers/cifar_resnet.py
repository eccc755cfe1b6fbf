"""ResNets for 32 px images, in the layer names and with the parameter-free shortcut of the widely used CIFAR weights.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2 (option A shortcuts); layer names of
akamaster/pytorch_resnet_cifar10, whose weights load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN; the shortcut takes every second pixel and pads channels with zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.padding = stride, (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height/stride, width/stride)."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet-depth of three stages of (depth - 2) / 6 blocks, channels width, 2 width, 4 width.

    Shapes: (batch, in_channels, height, width) -> (batch, num_classes).
    Raises: ValueError: depth is not 6n + 2, or width is odd or not positive.

    >>> sum(p.numel() for p in CifarResNet(20, 16).parameters())
    269722
    """

    def __init__(self, depth: int, width: int, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6 or width < 2 or width % 2:
            raise ValueError(f"CifarResNet needs depth 6n + 2 and an even width, got {depth} and {width}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = [width, width, 2 * width, 4 * width]
        stages = []
        for i, stride in enumerate((1, 2, 2)):
            blocks = [BasicBlock(channels[i], channels[i + 1], stride)]
            blocks += [BasicBlock(channels[i + 1], channels[i + 1], 1) for _ in range((depth - 2) // 6 - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
