from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import CheckError
from edgekd.quant import layer_names, propose_float_layers, ptq, sensitivity
from edgekd.quant.calibration import calibrated
from edgekd.quant.layer_errors import _Probe
from edgekd.targets.spec import QuantSpec

SPEC = QuantSpec(scheme="affine", observer="mse", bias_correction=False)


class Fragile(nn.Module):
    """Five alike layers; one of them has a channel a thousand times the others, so that int8 ruins the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.loud, self.after = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.loud.weight[0] *= 1000
            self.loud.bias.fill_(1.0)
            self.after.weight[:, 0] /= 1000

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x))
        x = torch.relu(self.loud(x))
        return self.head(torch.relu(self.after(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def fragile() -> nn.Module:
    torch.manual_seed(0)
    return Fragile().eval()


def test_each_layer_is_judged_once_and_the_worst_come_first(make_net, images) -> None:
    errors = sensitivity(make_net(), [images], SPEC)
    assert sorted(e.layer for e in errors) == sorted(layer_names(make_net()))
    assert [e.snr_db for e in errors] == sorted(e.snr_db for e in errors)
    assert sum(e.macs_share for e in errors) == pytest.approx(1)
    by_name = {e.layer: e.macs_share for e in errors}
    assert by_name["head"] < 0.01 < by_name["stem.0"]


def test_the_layers_that_int8_ruins_are_found(fragile, images) -> None:
    worst = {error.layer for error in sensitivity(fragile, [images], SPEC)[:2]}
    assert worst == {"loud", "after"}  # the rounding of what is between them belongs to both


def test_the_probe_agrees_with_the_model_that_is_built(make_net, images) -> None:
    """Up to chance: the program's scales are moved by a thousandth (`round_alike`), and its codes with them."""
    net, many = (
        make_net(),
        torch.cat([images, torch.randn(112, *images.shape[1:], generator=torch.Generator().manual_seed(2))]),
    )
    for float_layers in ((), ("features.expand.0", "features.depthwise.0")):
        claimed = _Probe(calibrated(net, [many], SPEC), len(many)).snr_db(float_layers)
        spec = SPEC.model_copy(update={"float_layers": float_layers, "rounding": "nearest"})
        program = ptq(net, [many], spec).module()
        expected, got = net(many).detach(), torch.cat([program(image[None]) for image in many]).detach()
        real = float((10 * torch.log10(expected.square().sum(1) / (got - expected).square().sum(1))).mean())
        assert claimed == pytest.approx(real, abs=1.0)


def test_the_proposed_layers_are_few_and_reach_the_bar(fragile, images) -> None:
    probe = _Probe(calibrated(fragile, [images], SPEC), 16)
    bar = probe.snr_db(()) + 8
    chosen = propose_float_layers(fragile, [images], SPEC, snr_db=bar)
    assert set(chosen) <= {"loud", "after"}
    assert chosen
    assert probe.snr_db(chosen) >= bar


def test_nothing_is_proposed_where_int8_is_good_enough(make_net, images) -> None:
    assert propose_float_layers(make_net(), [images], SPEC, snr_db=5) == []


def test_a_bar_that_no_list_reaches_is_an_error(make_net, images) -> None:
    with pytest.raises(CheckError, match=r"with every layer float the outputs keep .* dB, not 300"):
        propose_float_layers(make_net(), [images], SPEC, snr_db=300)
