"""Biases that undo what rounding does to the mean of each channel."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from edgekd.quant.calibration import Calibrated
from edgekd.quant.layers import WEIGHTED
from edgekd.quant.nodes import add_tensor, nodes_of, tensor_of
from edgekd.quant.observers import PerChannelWeightObserver, set_mode


def correct_biases(observed: Calibrated) -> None:
    """Move the bias of every int8 layer so that its mean output over the calibration images is the float model's.

    Layers are corrected in order, each with those before it corrected already: within a batch while it passes through,
    and over the batches as a running mean. Source: Nagel et al. 2019, "Data-Free Quantization", section 4.2.2
    (empirical), with the mean over images and positions.
    """
    layers = _give_biases(observed.graph)
    device = next((bias.device for bias in layers.values()), torch.device("cpu"))
    batches = [batch.to(device) for batch in observed.batches]
    wanted = [_float_means(observed.graph, layers, batch) for batch in batches]  # all of them before any bias moves
    set_mode(observed.graph, "quantise")
    for count, (batch, means) in enumerate(zip(batches, wanted, strict=True), start=1):
        _Correct(observed.graph, layers, means, 1 / count).run(batch)
    set_mode(observed.graph, "pass")


def _float_means(graph: fx.GraphModule, layers: dict[fx.Node, Tensor], batch: Tensor) -> dict[fx.Node, Tensor]:
    means = _Means(graph, layers)
    means.run(batch)
    return means.found


def _give_biases(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """A bias of its own for every layer with int8 weights, as the tensor to change: layers may share theirs."""
    modules = dict(graph.named_modules())
    biases = {}
    for index, node in enumerate(nodes_of(graph, *WEIGHTED)):
        source = cast(fx.Node, node.args[1])
        if source.op != "call_module" or not isinstance(modules[str(source.target)], PerChannelWeightObserver):
            continue
        given = node.args[2] if len(node.args) > 2 else None
        weight = tensor_of(graph, cast(fx.Node, source.args[0]))
        value = tensor_of(graph, given).clone() if isinstance(given, fx.Node) else weight.new_zeros(len(weight))
        with graph.graph.inserting_before(node):
            bias = add_tensor(graph, f"corrected_bias_{index}", value)
        node.args = (*node.args[:2], bias, *node.args[3:])
        biases[node] = value
    graph.recompile()
    return biases


def _channel_means(node: fx.Node, output: Tensor) -> Tensor:
    """Mean of each output channel: the last axis of a linear layer, axis 1 of a convolution."""
    if node.target is torch.ops.aten.linear.default:
        return output.reshape(-1, output.shape[-1]).mean(0)
    return output.transpose(0, 1).flatten(1).mean(1)


class _Means(fx.Interpreter):
    """Runs the float graph and keeps the mean of each layer's channels."""

    def __init__(self, graph: fx.GraphModule, layers: dict[fx.Node, Tensor]) -> None:
        super().__init__(graph)
        self.layers = layers
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.layers:
            self.found[n] = _channel_means(n, result)
        return result


class _Correct(fx.Interpreter):
    """Runs the rounding graph and moves each layer's bias by a part of the error of its means, before going on."""

    def __init__(
        self, graph: fx.GraphModule, layers: dict[fx.Node, Tensor], wanted: dict[fx.Node, Tensor], part: float
    ) -> None:
        super().__init__(graph)
        self.layers, self.wanted, self.part = layers, wanted, part

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n not in self.layers:
            return result
        error = self.wanted[n] - _channel_means(n, result)
        self.layers[n] += error * self.part
        shape = [-1] if n.target is torch.ops.aten.linear.default else [-1, *[1] * (result.ndim - 2)]
        return result + (error * self.part).reshape(shape)
