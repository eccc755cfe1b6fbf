"""Which ranges a network gets where a few calibration images are not like the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.quant import ptq, sensitivity
from edgekd.quant.calibration import calibrated
from edgekd.quant.choosing import settle_best
from edgekd.quant.observers import ActivationObserver, set_mode
from edgekd.targets.spec import QuantSpec

SPEC = QuantSpec(scheme="affine", rounding="nearest")
EXTREME = 3


@pytest.fixture(scope="module")
def usual() -> Tensor:
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def some_extreme(usual: Tensor) -> Tensor:
    return usual * torch.where(torch.arange(64) % 16 < 1, 80.0, 1.0)[:, None, None, None]


def linear_net() -> nn.Module:
    """Nothing in it bounds an activation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 5)
    ).eval()


def image_db(net: nn.Module, calibration: Tensor, images: Tensor) -> float:
    """dB that the mean image keeps in the int8 program, whatever rows it shares its batch with."""
    program = ptq(net, calibration.split(16), SPEC).module(check_guards=False)
    with torch.no_grad():
        wanted, got = net(images), torch.cat([program(image[None]) for image in images])
    wanted, got = (logits - logits.mean(1, keepdim=True) for logits in (wanted, got))
    return float((10 * torch.log10(wanted.square().sum(1) / (wanted - got).square().sum(1))).mean())


def test_a_few_extreme_images_cost_the_others_little(usual, some_extreme) -> None:
    net = linear_net()
    without, beside = (image_db(net, images, usual[1:16]) for images in (usual, some_extreme))
    assert beside > without - 6
    assert beside > 20


def test_an_output_covers_all_it_was_seen_to_be_unless_a_few_images_are_extreme(usual, some_extreme) -> None:
    net = linear_net()
    reaches = []
    for images in (usual, some_extreme):
        observed = calibrated(net, images.split(16), SPEC)
        settle_best(observed, corrected=False)
        output = observed.graph.get_submodule(str(observed.graph.graph.output_node().args[0][0].target))
        assert isinstance(output, ActivationObserver)
        reaches.append(255 * output.scale / (output.seen.high - output.seen.low))
    assert reaches[0] == pytest.approx(1, rel=1e-3)
    assert reaches[1] < 0.1


def test_the_grids_are_those_that_were_judged_best(usual) -> None:
    net, spec = linear_net(), SPEC
    errors = {}
    for observer in ("auto", "mse", "minmax", "percentile"):
        observed = calibrated(net, usual.split(16), spec.model_copy(update={"observer": observer}))
        if observer == "auto":
            settle_best(observed, corrected=False)
        set_mode(observed.graph, "quantise")
        with torch.no_grad():
            got = observed.graph(usual)
            errors[observer] = float(((got[0] if isinstance(got, tuple) else got) - net(usual)).square().mean())
    assert errors["auto"] <= 1.1 * min(errors["mse"], errors["minmax"], errors["percentile"])


def test_a_model_may_give_one_number_per_image(usual) -> None:
    class Number(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 1))

        def forward(self, image: Tensor) -> Tensor:
            return self.net(image).squeeze(1)

    torch.manual_seed(0)
    net = Number().eval()
    program = ptq(net, usual.split(16), SPEC).module(check_guards=False)
    assert {error.layer for error in sensitivity(net, usual.split(16), SPEC)} == {"net.0", "net.2"}
    got = torch.cat([program(image[None]) for image in usual])
    assert (got - net(usual)).abs().max() < 0.05 * net(usual).abs().max()
