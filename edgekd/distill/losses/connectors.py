"""Connectors: small trained modules that bring a student's channels to the teacher's. They live in the loss, so export
drops them."""

from __future__ import annotations

import math

from torch import nn


def convolution_and_norm(inputs: int, outputs: int) -> nn.Sequential:
    """1x1 convolution and batch norm, initialised as the reference code of OFD does (normal, fan out)."""
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.normal_(convolution.weight, 0, math.sqrt(2 / outputs))
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def three_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """1x1 convolutions with ReLU between, without bias, as the regressor of VID."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
    )


def generator(channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU between, as in masked generative distillation."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )
