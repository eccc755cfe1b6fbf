"""A small inverted-residual network (BN with unusual literals, ReLU6, residual, dropout, linear), and it prepared."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekd.quant import QatModel, prepare_qat
from edgekd.targets.spec import QuantSpec


def conv_bn_act(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03),
        nn.ReLU6(inplace=True),
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = conv_bn_act(channels, 2 * channels, kernel=1)
        self.depthwise = conv_bn_act(2 * channels, 2 * channels, groups=2 * channels)
        self.project = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(self.expand(x)))


class TinyNet(nn.Module):
    """taps: also return the features, the stem's convolution, or both."""

    def __init__(self, taps: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.taps = taps
        self.stem = conv_bn_act(3, 8, stride=2)
        self.features = Residual(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor):
        convolved = self.stem[0](x)
        kept = convolved.clone()
        features = self.features(self.stem[2](self.stem[1](convolved)))
        logits = self.head(self.dropout(features.mean((2, 3))))
        signals = {"features": features, "convolved": kept}
        return (logits, {name: signals[name] for name in self.taps}) if self.taps else logits


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def make_net(images: Tensor) -> Callable[..., nn.Module]:
    """Builds the network with settled batch-norm statistics; the same weights every time."""

    def make(taps: tuple[str, ...] = ()) -> nn.Module:
        torch.manual_seed(0)
        net = TinyNet(taps).train()
        for parameter in net.parameters():
            parameter.data.mul_(1.5)
        with torch.no_grad():
            for _ in range(100):
                net(images)
        return net.eval()

    return make


@pytest.fixture(scope="session")
def prepared(make_net: Callable[..., nn.Module], images: Tensor) -> dict[str, QatModel]:
    """Per scheme a QAT model with a tap, after two training steps. Shared: use `fresh`."""
    models = {}
    for scheme in ("affine", "symmetric"):
        torch.manual_seed(0)
        model = prepare_qat(make_net(("features",)), images, QuantSpec(scheme=scheme))
        optimiser = torch.optim.SGD(model.parameters(), 1e-3)
        for _ in range(2):
            logits, taps = model(images)
            (logits.square().mean() + taps["features"].mean()).backward()
            optimiser.step()
            optimiser.zero_grad()
        models[scheme] = model
    return models


@pytest.fixture
def fresh(prepared: dict[str, QatModel]) -> Callable[[str], QatModel]:
    """A copy of a prepared model that a test may change."""
    return lambda scheme="affine": copy.deepcopy(prepared[scheme])
