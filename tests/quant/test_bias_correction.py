from __future__ import annotations

import torch
from torch import nn

from edgekd.quant.bias_correction import correct_biases
from edgekd.quant.calibration import calibrated
from edgekd.quant.nodes import aten, nodes_of, tensor_of
from edgekd.quant.observers import set_mode
from edgekd.targets.spec import QuantSpec

COARSE = QuantSpec(scheme="affine", observer="minmax", activation_min=-8, activation_max=7)


def mean_errors(net: nn.Module, images: torch.Tensor, *, corrected: bool) -> torch.Tensor:
    """Per class the mean of the logits' error on a grid so coarse that it is biased."""
    observed = calibrated(net, images.split(8), COARSE, quantise_output=False)
    if corrected:
        with torch.no_grad():
            correct_biases(observed)
    set_mode(observed.graph, "quantise")
    return (observed.graph(images) - net(images)).mean(0).detach()


def test_the_mean_error_of_the_outputs_shrinks(make_net, images) -> None:
    before, after = (mean_errors(make_net(), images, corrected=flag).abs() for flag in (False, True))
    assert after.norm() < 0.75 * before.norm()


def test_an_image_that_clips_does_not_move_the_bias_for_the_others(make_net, images) -> None:
    shifts = []
    for used in (images, torch.cat([images, 60 * images[:1]])):
        observed = calibrated(make_net(), images.split(8), COARSE)
        observed.batches = [used]
        (first, *_) = nodes_of(observed.graph, aten.conv2d.default)
        before = tensor_of(observed.graph, first.args[2]).clone()
        with torch.no_grad():
            correct_biases(observed)
        shifts.append(tensor_of(observed.graph, first.args[2]) - before)
    assert (shifts[1] - shifts[0]).norm() < 0.2 * shifts[0].norm()


def test_one_batch_is_matched_exactly_up_to_the_last_rounding_large_images_counting_less(make_net, images) -> None:
    observed = calibrated(make_net(), [images], COARSE)
    (linear,) = nodes_of(observed.graph, aten.linear.default)
    with torch.no_grad():
        correct_biases(observed)
    set_mode(observed.graph, "quantise")
    rounded = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if n is linear:
                rounded["logits"] = result
            return result

    Watch(observed.graph).run(images)
    wanted = make_net()(images)
    size = wanted.square().mean(1)
    weights = (size.median() / size).clamp(max=1)
    torch.testing.assert_close(weights @ rounded["logits"], weights @ wanted, rtol=1e-4, atol=1e-4)


def test_the_model_keeps_its_biases(make_net, images) -> None:
    net = make_net()
    before = net.head.bias.detach().clone()
    with torch.no_grad():
        correct_biases(calibrated(net, [images], COARSE))
    assert torch.equal(net.head.bias, before)


def test_a_layer_without_a_bias_gets_one(images) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3, bias=False)).eval()
    before, after = (mean_errors(net, images, corrected=flag).abs().max() for flag in (False, True))
    assert after < before
