"""Counting agrees with what the field publishes, and with arithmetic on small modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import InputError
from edgekd.latency import trace_cost
from edgekd.latency.networks import build_named

# (torchvision name, 1e9 multiply-adds at 224 px): the papers' or torchvision's published figures.
PUBLISHED_GMACS = [
    ("mobilenet_v2", 0.3008),
    ("resnet18", 1.814),
    ("resnet50", 4.089),
    ("mobilenet_v3_small", 0.0565),
    ("shufflenet_v2_x1_0", 0.1449),
    ("efficientnet_b0", 0.386),
    ("regnet_y_400mf", 0.402),
    ("vit_b_16", 17.564),
]


@pytest.mark.parametrize(("name", "gmacs"), PUBLISHED_GMACS)
def test_multiply_adds_within_one_percent_of_published(name: str, gmacs: float) -> None:
    from torchvision.models import get_model_weights

    cost = trace_cost(build_named(f"torchvision:{name}"), (1, 3, 224, 224))
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert cost.parameters == next(iter(get_model_weights(name))).meta["num_params"]


def test_batch_norm_and_activation_join_their_convolution() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    (op,) = trace_cost(block, (1, 3, 4, 4)).ops
    assert (op.kind, op.macs) == ("conv", 8 * 3 * 9 * 16)
    assert (op.read_elements, op.write_elements) == (3 * 16, 8 * 16)
    assert op.weight_elements == 8 * 3 * 9 + 8  # the folded batch norm leaves one bias per channel


def test_an_in_place_activation_joins_too() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True))
    assert len(trace_cost(block, (1, 3, 4, 4)).ops) == 1


class Fork(nn.Module):
    """The convolution's output is read before its activation too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.relu(y) + y


def test_an_activation_stays_apart_when_its_input_is_read_elsewhere() -> None:
    assert [op.kind for op in trace_cost(Fork(), (1, 4, 2, 2)).ops] == ["conv", "other", "add"]


@pytest.mark.parametrize(
    ("module", "kind", "macs"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), "depthwise", 8 * 9 * 16),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), "conv", 8 * 4 * 9 * 16),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), "conv", 8 * 16 * 4 * 4),
        (nn.AvgPool2d(2), "pool", 0),
    ],
)
def test_kind_and_multiply_adds_of_a_layer(module: nn.Module, kind: str, macs: int) -> None:
    (op,) = trace_cost(module, (1, 8, 4, 4)).ops
    assert (op.kind, op.macs) == (kind, macs)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_counts_both_products() -> None:
    heads, tokens, depth = 2, 5, 8
    ops = trace_cost(Attention(), (1, heads, tokens, depth)).ops
    assert sum(op.macs for op in ops if op.kind == "linear") == 2 * heads * tokens * tokens * depth


def test_batch_scales_multiply_adds_but_not_weights() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))
    one, three = trace_cost(module, (1, 3, 4, 4)), trace_cost(module, (3, 3, 4, 4))
    assert three.macs == 3 * one.macs
    assert three.weight_elements == one.weight_elements == one.parameters


def test_peak_is_the_residual_and_the_widest_pair() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.narrow(self.wide(x))

    # while `narrow` runs, x (4), the wide map (16) and the result (4) are all alive, on 2 x 2 pixels
    assert trace_cost(Residual(), (1, 4, 2, 2)).peak_activation_elements == (4 + 16 + 4) * 4


def test_weights_computed_from_weights_cost_nothing() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    assert [op.kind for op in trace_cost(Standardised(3, 4, 1), (1, 3, 2, 2)).ops] == ["conv"]


def test_tracing_changes_neither_mode_nor_weights_nor_hooks() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).train()
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trace_cost(module, (1, 3, 4, 4))
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not module[0]._forward_hooks
    assert type(module[0].weight) is nn.Parameter


def test_ops_carry_the_path_of_their_module() -> None:
    cost = trace_cost(build_named("torchvision:resnet18"), (1, 3, 64, 64))
    assert cost.ops[0].name == "conv1"
    assert "layer4.1.conv2" in {op.name for op in cost.ops}


def test_a_shape_that_does_not_fit_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"cannot run Conv2d on \(1, 4, 8, 8\)"):
        trace_cost(nn.Conv2d(3, 8, 3), (1, 4, 8, 8))


def test_a_network_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(InputError, match="torchvision has no 'resnet81'; did you mean 'resnet18'"):
        build_named("torchvision:resnet81")
    with pytest.raises(InputError, match="write torchvision:NAME or timm:NAME"):
        build_named("resnet18")


def test_operators_are_those_that_exporters_see_whatever_fusion_makes_of_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cost = trace_cost(net, (1, 3, 8, 8))
    assert cost.operators == ("adaptive_avg_pool2d", "convolution", "hardswish", "view")
    pooled = trace_cost(nn.AdaptiveAvgPool2d(2), (1, 3, 8, 8))
    assert pooled.operators == ("_adaptive_avg_pool2d",)
    kinds = [nn.Conv2d(8, 8, 3, groups=8, dilation=2), nn.ConvTranspose2d(8, 4, 2)]
    assert [trace_cost(conv, (1, 8, 8, 8)).operators for conv in kinds] == [
        ("depthwise_convolution", "depthwise_convolution (dilated)"),
        ("transposed_convolution",),
    ]
    alone = trace_cost(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (1, 3, 8, 8)).operators
    assert len(alone) == 2
    assert "batch_norm" in alone[0]
