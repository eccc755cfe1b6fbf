from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import InputError
from edgekd.quant import export_float, prepare_qat, ptq
from edgekd.targets.spec import QuantSpec

SPEC = QuantSpec(scheme="affine")


def actions(net: nn.Module, images: Tensor):
    """Every door of the room."""
    return (
        lambda: export_float(net, images.shape[1:]),
        lambda: ptq(net, [images], SPEC),
        lambda: prepare_qat(net, images, SPEC),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(make_net, images, value) -> None:
    net = make_net()
    with torch.no_grad():
        net.features.depthwise[0].weight[3, 0, 1, 1] = value
    for action in actions(net, images):
        with pytest.raises(
            InputError, match=r"1 of 144 values of 'features\.depthwise\.0\.weight' are NaN or infinite"
        ):
            action()


def test_a_batch_norm_statistic_that_is_not_finite_is_refused_by_name(make_net, images) -> None:
    net = make_net()
    net.stem[1].running_var.fill_(float("nan"))
    for action in actions(net, images):
        with pytest.raises(InputError, match=r"'stem\.1\.running_var'"):
            action()


def test_a_model_of_two_inputs_is_refused_with_their_names(images) -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return (left + right).flatten(1)

    for action in actions(Two(), images):
        with pytest.raises(InputError, match=r"the model takes 2 inputs \(left, right\); wrap it to take one image"):
            action()


def test_control_flow_that_depends_on_values_is_refused_in_one_line(images) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(768, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1)) if x.mean() > 0 else self.head(-x.flatten(1))

    for action in actions(Branches(), images):
        with pytest.raises(InputError, match=r"torch\.export cannot trace the model") as caught:
            action()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration images"),
        ([torch.zeros(0, 3, 16, 16)], "no calibration images"),
        ([torch.full((2, 3, 16, 16), float("nan"))], "calibration batch 0: NaN or infinite values"),
        ([torch.randn(2, 3, 16, 16), torch.full((1, 3, 16, 16), float("inf"))], "calibration batch 1: NaN or infinite"),
        ([torch.zeros(2, 3, 16, 16)] * 2, "calibration: every calibration value is 0"),
        ([torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)], r"calibration batch 0: shape .* torch.uint8"),
        ([torch.randn(3, 16, 16)], "expected float"),
        ([torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)], r"images of \(3, 8, 8\) after \(3, 16, 16\)"),
    ],
)
def test_unusable_calibration_is_refused(make_net, batches, message) -> None:
    with pytest.raises(InputError, match=message):
        ptq(make_net(), batches, SPEC)


def test_a_model_that_only_runs_image_by_image_is_quantised_image_by_image(make_net, images) -> None:
    class OneOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).reshape(1, 5)

    program = ptq(OneOnly(), [images[:8]], SPEC)
    got = torch.cat([program.module()(image[None]) for image in images])
    expected = make_net()(images)
    assert (got - expected).square().sum() < 0.02 * expected.square().sum()
