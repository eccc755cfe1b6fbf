"""What an int8 program holds: how much of it is int8, and its weights in the form some converters need."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgekd.quant.layers import PRODUCTS, WEIGHTED, macs_of
from edgekd.quant.nodes import nodes_of, tensor_of

decomposed = torch.ops.quantized_decomposed
DEQUANTISE = {
    decomposed.dequantize_per_tensor.default,
    decomposed.dequantize_per_tensor.tensor,
    decomposed.dequantize_per_channel.default,
}


def int8_coverage(program: ExportedProgram) -> tuple[int, int]:
    """(n_quantised, n_total): convolutions and linear layers whose input and weight are both int8, and all of them."""
    nodes = nodes_of(program.graph_module, *WEIGHTED)
    return sum(_is_int8(node) for node in nodes), len(nodes)


def int8_macs(program: ExportedProgram) -> tuple[int, int]:
    """(int8, total) multiply-adds of one image; the products of attention count beside the layers."""
    nodes = nodes_of(program.graph_module, *WEIGHTED, *PRODUCTS)
    return sum(macs_of(node) for node in nodes if _is_int8(node)), sum(macs_of(node) for node in nodes)


def _is_int8(node: fx.Node) -> bool:
    return all(isinstance(operand, fx.Node) and operand.target in DEQUANTISE for operand in node.args[:2])


def unfold_weights(program: nn.Module | ExportedProgram) -> nn.Module:
    """The program as a module whose weights are float and pass through quantise and dequantise; the same outputs.

    So do other stored tensors that are int8, such as a position code. LiteRT and OpenVINO's torch frontend fold them
    themselves and take int8 constants for float ones. A module given
    is rewritten in place.
    """
    graph = program.module(check_guards=False) if isinstance(program, ExportedProgram) else program
    graph = cast(fx.GraphModule, graph)
    stored = (decomposed.dequantize_per_channel.default, decomposed.dequantize_per_tensor.default)
    for index, node in enumerate(nodes_of(graph, *stored)):
        source = node.args[0]
        if isinstance(source, fx.Node) and source.op == "get_attr":
            _unfold(graph, node, f"float_weight_{index}")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _unfold(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    graph.register_buffer(name, _dequantised(graph, node))
    per_tensor = node.target is decomposed.dequantize_per_tensor.default
    quantise = (decomposed.quantize_per_tensor if per_tensor else decomposed.quantize_per_channel).default
    with graph.graph.inserting_before(node):
        weight = graph.graph.get_attr(name)
        quantised = graph.graph.call_function(quantise, (weight, *node.args[1:]))
    node.args = (quantised, *node.args[1:])


def _dequantised(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """The float values that a dequantise makes of a stored tensor: a weight per channel, a position code per tensor."""
    codes = tensor_of(graph, cast(fx.Node, node.args[0])).float()
    if node.target is decomposed.dequantize_per_tensor.default:
        return (codes - cast(int, node.args[2])) * cast(float, node.args[1])
    scale, zero_point = (tensor_of(graph, cast(fx.Node, argument)).float() for argument in node.args[1:3])
    shape = [-1 if dimension == cast(int, node.args[3]) else 1 for dimension in range(codes.ndim)]
    return (codes - zero_point.reshape(shape)) * scale.reshape(shape)
