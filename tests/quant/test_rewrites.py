from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.quant import export_float
from edgekd.quant.graph import trace
from edgekd.quant.nodes import aten, nodes_of
from edgekd.quant.rewrites import fold_scales


class Attention(nn.Module):
    def __init__(self, mask: str) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.mask = mask
        self.register_buffer("bias", torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        q, k, v = self.qkv(tokens).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        kwargs = {"bias": {"attn_mask": self.bias}, "scale": {"scale": 0.3}, "causal": {"is_causal": True}}
        out = nn.functional.scaled_dot_product_attention(q, k, v, **kwargs.get(self.mask, {}))
        return out.transpose(1, 2).flatten(1)


@pytest.mark.parametrize("mask", ["none", "bias", "scale", "causal"])
def test_attention_becomes_plain_products_with_the_same_result(mask: str) -> None:
    torch.manual_seed(0)
    net, x = Attention(mask).eval(), torch.randn(1, 4, 2, 4)
    program = export_float(net, (4, 2, 4))
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-6)
    left = nodes_of(program.graph_module, aten.scaled_dot_product_attention.default)
    assert bool(left) is (mask == "causal")  # left to the converters
    if not left:
        assert len(nodes_of(program.graph_module, aten.matmul.default)) == 2
        assert not nodes_of(program.graph_module, aten.unbind.int)


class Splits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        c, _, d = torch.split(x, [1, 1, 2], dim=1)
        e = x.split(3, dim=1)[1]
        return torch.cat([b, a, c, d, e], dim=1).flatten(1)


def test_splits_become_slices_of_the_same_values() -> None:
    x = torch.arange(16.0).reshape(1, 4, 2, 2)
    program = export_float(Splits(), (4, 2, 2))
    assert torch.equal(program.module()(x), Splits()(x))
    assert not nodes_of(program.graph_module, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
    assert len(nodes_of(program.graph_module, aten.slice.Tensor)) == 5


class Broadcasts(nn.Module):
    """Linear attention's expand, and ConvNeXt V2's addcmul."""

    def forward(self, x: Tensor) -> Tensor:
        context = x.sum(-1, keepdim=True)
        y = x.relu() * context.expand_as(x)
        return torch.addcmul(context.expand(-1, -1, 2, 4), x, y, value=0.5).flatten(1)


def test_operators_broadcast_by_themselves_and_addcmul_is_a_product_and_a_sum() -> None:
    x = torch.randn(1, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    program = export_float(Broadcasts(), (4, 2, 4))
    torch.testing.assert_close(program.module()(x), Broadcasts()(x))
    targets = {node.target for node in program.graph.nodes}
    assert not targets & {aten.expand.default, aten.expand_as.default, aten.addcmul.default}


def test_an_expand_that_gives_the_result_its_shape_stays() -> None:
    class Widens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(-1, keepdim=True).expand(-1, -1, -1, 3) * 2

    x = torch.randn(1, 4, 2, 4)
    torch.testing.assert_close(export_float(Widens(), (4, 2, 4)).module()(x), Widens()(x))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(4, 5, bias=False)
        self.gamma = nn.Parameter(torch.tensor([1e-5, 2.0, -0.5]))
        self.delta = nn.Parameter(torch.linspace(0.1, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gamma.reshape(1, -1, 1, 1) * self.conv(x)
        return (self.linear(x) * self.delta).flatten(1)


@pytest.mark.parametrize("trainable", [False, True])
def test_per_channel_factors_move_into_the_weights_before_them(trainable: bool) -> None:
    torch.manual_seed(0)
    net, x = LayerScale(), torch.randn(2, 2, 4, 4)
    graph = trace(net, x, dynamic_batch=True)
    gamma = net.gamma.detach().clone()
    fold_scales(graph, trainable=trainable)
    expected, got = net(x), graph(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(net.gamma, gamma)
    (convolution,) = nodes_of(graph, aten.conv2d.default)
    assert {user.target for user in convolution.users} == {aten.linear.default}
    if trainable:
        got.sum().backward()
        assert net.gamma.grad is not None
        assert net.gamma.grad.abs().max() > 0


def test_a_product_of_two_activations_is_no_layer_scale() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return (y * y.mean((2, 3), keepdim=True)).flatten(1)

    graph = trace(Gate(), torch.randn(2, 2, 3, 3), dynamic_batch=True)
    fold_scales(graph)
    assert len(nodes_of(graph, aten.mul.Tensor)) == 1
