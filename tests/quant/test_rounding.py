"""Rounding by the outputs: closer outputs than the nearest codes give, on the grid, and stored as they were chosen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekd.quant import ptq
from edgekd.quant.calibration import Calibrated, calibrated
from edgekd.quant.observers import PerChannelWeightObserver, observers_of, set_mode
from edgekd.quant.rounding import round_to_outputs, store_rounded
from edgekd.targets.spec import QuantSpec

# The tests make the weights' grid coarser (`observed`), so that rounding is what is lost and not the activations' grid.
SPEC = QuantSpec(scheme="affine", observer="minmax", bias_correction=False)


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(1)


# Each with the part of the error that must be left; three weights per output have little to make up for each other.
LAYERS = {
    "dense": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1), 0.7),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), 0.7),
    "dilated": (lambda: nn.Conv2d(3, 6, 3, padding=(2, 1), dilation=(2, 1)), 0.7),
    "pointwise": (lambda: nn.Conv2d(3, 6, 1, bias=False), 0.97),
    "linear": (lambda: nn.Linear(16, 6), 0.9),
}


def smooth() -> Tensor:
    """Images whose neighbouring pixels and channels are alike, as those of a camera are."""
    coarse = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, (16, 16), mode="bilinear").repeat(1, 3, 1, 1)
    return images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def observed(net: nn.Module, images: Tensor, bits: int) -> Calibrated:
    result = calibrated(net, images.split(8), SPEC)
    for observer in observers_of(result.graph):
        if isinstance(observer, PerChannelWeightObserver):
            observer.scale = observer.scale * observer.quant_max / (2 ** (bits - 1) - 1)
            observer.quant_max = 2 ** (bits - 1) - 1
            observer.quant_min = -observer.quant_max
    return result


def weight_error(net: nn.Module, graph: Calibrated, images: Tensor) -> float:
    """Variance of the outputs' error with only the weights rounded; their mean is the bias's."""
    for observer in observers_of(graph.graph):
        observer.mode = "quantise" if isinstance(observer, PerChannelWeightObserver) else "pass"
    error = (graph.graph(images) - net(images)).detach()
    return float((error - error.mean(0)).square().mean())


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_closer_than_with_the_nearest_codes(name: str) -> None:
    torch.manual_seed(0)
    layer, left = LAYERS[name]
    net, images = OneLayer(layer()).eval(), smooth()
    nearest = observed(net, images, bits=4)
    chosen = Calibrated(copy.deepcopy(nearest.graph), nearest.batches)
    round_to_outputs(chosen)
    assert weight_error(net, chosen, images) < left * weight_error(net, nearest, images)


def test_chosen_weights_are_on_the_grid_and_survive_conversion(make_net, images) -> None:
    graph = observed(make_net(), images, bits=8)
    round_to_outputs(graph)
    weights = [o for o in observers_of(graph.graph) if isinstance(o, PerChannelWeightObserver)]
    for observer in weights:
        assert observer.chosen is not None
        codes = observer.chosen.flatten(1) / observer.scale[:, None]
        assert (codes - codes.round()).abs().max() < 1e-3
        assert codes.abs().max() < 127.5
    set_mode(graph.graph, "quantise")
    before = graph.graph(images)
    store_rounded(graph.graph)
    for observer in weights:
        observer.chosen = None
    assert torch.equal(graph.graph(images), before)


def test_float_outputs_stay_what_they_were(make_net, images) -> None:
    graph = observed(make_net(), images, bits=4)
    before = graph.graph(images)
    round_to_outputs(graph)
    assert torch.equal(graph.graph(images), before)


def test_with_few_samples_the_nearest_codes_are_kept_nearly_everywhere() -> None:
    torch.manual_seed(0)
    net, one = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval(), torch.randn(2, 3, 16, 16)
    graph = observed(net, one, bits=8)
    round_to_outputs(graph)
    (observer,) = [o for o in observers_of(graph.graph) if isinstance(o, PerChannelWeightObserver)]
    assert observer.chosen is not None
    nearest = torch.round(net[1].weight / observer.scale[:, None]) * observer.scale[:, None]
    assert (observer.chosen != nearest).float().mean() < 0.05


def stored_codes(program: ExportedProgram) -> Tensor:
    values = [*program.state_dict.values(), *program.constants.values()]
    return torch.cat([t.flatten() for t in values if isinstance(t, Tensor) and t.dtype == torch.int8])


@pytest.mark.parametrize("rounding", ["nearest", "output"])
def test_the_specification_says_how_weights_are_rounded(make_net, images, rounding) -> None:
    found, nearest = (
        stored_codes(ptq(make_net(), [images], SPEC.model_copy(update={"rounding": how})))
        for how in (rounding, "nearest")
    )
    assert torch.equal(found, nearest) is (rounding == "nearest")
    assert (found.int() - nearest.int()).abs().max() <= 3
