"""Wide residual networks for small images (28 to 64 px).

Source: Zagoruyko & Komodakis 2016, "Wide Residual Networks", section 2 (pre-activation basic blocks).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3 with a 1x1 shortcut where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height/stride, width/stride)."""
        activated = torch.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return out + residual


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 blocks, channels 16k, 32k, 64k.

    Shapes: (batch, in_channels, height, width) -> (batch, num_classes).
    Raises: ValueError: depth is not 6n + 4.

    >>> sum(p.numel() for p in WideResNet(16, 2, in_channels=3).parameters()) == 691674
    True
    """

    def __init__(self, depth: int, width: int, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"WideResNet depth must be 6n + 4, got {depth}")
        blocks_per_stage = (depth - 4) // 6
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False)
        stages = []
        for i, stride in enumerate((1, 2, 2)):
            blocks = [PreActBlock(channels[i], channels[i + 1], stride)]
            blocks += [PreActBlock(channels[i + 1], channels[i + 1], 1) for _ in range(blocks_per_stage - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        pooled = torch.relu(self.bn(x)).mean((2, 3))
        logits: Tensor = self.fc(pooled)
        return logits
