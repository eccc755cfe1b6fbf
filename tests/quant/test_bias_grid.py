"""Biases on the int32 grid: nothing is left for an integer kernel to round, and the program says the same as before."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from edgekd.quant import ptq
from edgekd.quant.bias_grid import _step, biases_on_grid
from edgekd.quant.layers import WEIGHTED
from edgekd.quant.nodes import nodes_of, tensor_of
from edgekd.targets.spec import QuantSpec

SPEC = QuantSpec(scheme="affine", observer="minmax")


def layers(graph: fx.GraphModule) -> list[tuple[Tensor, Tensor]]:
    """(bias, step) of each int8 layer."""
    found = []
    for node in nodes_of(graph, *WEIGHTED):
        step = _step(graph, node)
        assert step is not None
        found.append((tensor_of(graph, node.args[2]).double(), step))
    return found


def test_every_bias_of_an_int8_program_is_a_whole_number_of_steps(make_net, images) -> None:
    graph = ptq(make_net(), [images], SPEC).module(check_guards=False)
    pairs = layers(graph)
    assert len(pairs) > 3
    for bias, step in pairs:
        codes = bias / step
        assert (codes - codes.round()).abs().max() < 0.01
        assert codes.abs().max() > 10, "a grid on which every bias is nearly zero would prove nothing"


def test_a_bias_moves_by_half_a_step_at_most_and_shared_biases_get_their_own(make_net, images) -> None:
    graph = ptq(make_net(), [images], SPEC).module(check_guards=False)
    (first, step), *_ = layers(graph)
    node = nodes_of(graph, *WEIGHTED)[0]
    moved = first + 0.3 * step
    graph.register_buffer("moved", moved.float())
    with graph.graph.inserting_before(node):
        node.args = (*node.args[:2], graph.graph.get_attr("moved"), *node.args[3:])
    biases_on_grid(graph)
    (again, _), *_ = layers(graph)
    assert torch.allclose(again, first, atol=float(0.01 * step.max()))
    assert torch.equal(graph.get_buffer("moved"), moved.float()), "another layer may read the same tensor"


class Huge(nn.Module):
    """A bias that int32 cannot hold on its grid: the input is tiny beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.layer.weight.mul_(1e-6)
            self.layer.bias.fill_(1e3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


def test_a_bias_beyond_int32_stays(images) -> None:
    net = Huge().eval()
    graph = ptq(net, [images * 1e-3], SPEC.model_copy(update={"bias_correction": False})).module(check_guards=False)
    ((bias, step),) = layers(graph)
    assert (bias / step).abs().max() > 2**31
    assert torch.allclose(bias.float(), net.layer.bias)
