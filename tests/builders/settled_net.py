"""A small network whose batch norms have seen data, for tests of the quantiser."""

from __future__ import annotations

import torch
from torch import nn


def net_of(*blocks: nn.Module) -> nn.Module:
    """A convolution to 8 channels, the blocks, logits of 5 classes; batch norms settled, in eval mode."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with torch.no_grad():
        for _ in range(30):
            net.train()(torch.randn(16, 3, 16, 16))
    return net.eval()
