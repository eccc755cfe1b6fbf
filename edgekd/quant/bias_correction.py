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
    and over the batches as a running mean. An image whose outputs are larger than the median image's weighs as much
    less as its mean square is larger: the few that clip would move the bias of all others (EfficientNet-B0 trained
    briefly on CIFAR-10: 17.3 dB of the mean image with weights, 11.3 without, 17.1 uncorrected).
    Source: Nagel et al. 2019, "Data-Free Quantization", section 4.2.2 (empirical), with the mean over images and
    positions.
    """
    layers = _give_biases(observed.graph)
    device = next((bias.device for bias in layers.values()), torch.device("cpu"))
    batches = [batch.to(device) for batch in observed.batches]
    wanted = _Means(observed.graph, layers)
    for batch in batches:  # all of them before any bias moves
        wanted.run(batch)
    correct = _Correct(observed.graph, layers, wanted)
    set_mode(observed.graph, "quantise")
    for batch in batches:
        correct.run(batch)
    set_mode(observed.graph, "pass")


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
    """Each image's mean of each output channel (images, channels): the last axis of a linear layer, else axis 1."""
    if node.target is torch.ops.aten.linear.default:
        return output.reshape(len(output), -1, output.shape[-1]).mean(1)
    return output.flatten(2).mean(2)


class _Means(fx.Interpreter):
    """Runs the float graph and keeps, batch by batch, each layer's channel means and mean squares of every image."""

    def __init__(self, graph: fx.GraphModule, layers: dict[fx.Node, Tensor]) -> None:
        super().__init__(graph)
        self.means: dict[fx.Node, list[Tensor]] = {node: [] for node in layers}
        self.squares: dict[fx.Node, list[Tensor]] = {node: [] for node in layers}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.means:
            self.means[n].append(_channel_means(n, result))
            self.squares[n].append(result.flatten(1).square().mean(1))
        return result

    def weights(self, node: fx.Node) -> list[Tensor]:
        """What each image counts, batch by batch: 1 up to the median mean square, then the median over its own."""
        every = torch.cat(self.squares[node])
        usual = every[every > 0].median() if every.any() else every.new_zeros(())
        return [torch.where(squares > usual, usual / squares, 1.0) for squares in self.squares[node]]


class _Correct(fx.Interpreter):
    """Runs the rounding graph and moves each layer's bias by a part of the error of its means, before going on."""

    def __init__(self, graph: fx.GraphModule, layers: dict[fx.Node, Tensor], wanted: _Means) -> None:
        super().__init__(graph)
        self.layers = layers
        self.left = {node: zip(wanted.means[node], wanted.weights(node), strict=True) for node in layers}
        self.weight_so_far = dict.fromkeys(layers, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n not in self.layers:
            return result
        means, weights = next(self.left[n])
        self.weight_so_far[n] += float(weights.sum())
        move = weights @ (means - _channel_means(n, result)) / self.weight_so_far[n]
        self.layers[n] += move
        shape = [-1] if n.target is torch.ops.aten.linear.default else [-1, *[1] * (result.ndim - 2)]
        return result + move.reshape(shape)
