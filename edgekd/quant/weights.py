"""What an int8 program holds: how much of it is int8, and its weights in the form some converters need."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from edgekd.quant.graph import aten, nodes_of, tensor_of

decomposed = torch.ops.quantized_decomposed
DEQUANTISE = {
    decomposed.dequantize_per_tensor.default,
    decomposed.dequantize_per_tensor.tensor,
    decomposed.dequantize_per_channel.default,
}
COMPUTE = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv_transpose2d.input,
    aten.linear.default,
)


def int8_coverage(program: ExportedProgram) -> tuple[int, int]:
    """(n_quantised, n_total): convolutions and linear layers whose input and weight are both int8, and all of them."""
    nodes = nodes_of(program.graph_module, *COMPUTE)
    quantised = [n for n in nodes if all(isinstance(a, fx.Node) and a.target in DEQUANTISE for a in n.args[:2])]
    return len(quantised), len(nodes)


def unfold_weights(program: nn.Module | ExportedProgram) -> nn.Module:
    """The program as a module whose weights are float and pass through quantise and dequantise; the same outputs.

    LiteRT and OpenVINO's torch frontend fold weights themselves and take int8 constants for float ones. A module given
    is rewritten in place.
    """
    graph = program.module(check_guards=False) if isinstance(program, ExportedProgram) else program
    graph = cast(fx.GraphModule, graph)
    for index, node in enumerate(nodes_of(graph, decomposed.dequantize_per_channel.default)):
        source = node.args[0]
        if isinstance(source, fx.Node) and source.op == "get_attr":
            _unfold(graph, node, f"float_weight_{index}")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _unfold(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    codes, scale, zero_point = (tensor_of(graph, cast(fx.Node, argument)) for argument in node.args[:3])
    axis = cast(int, node.args[3])
    shape = [-1 if dimension == axis else 1 for dimension in range(codes.ndim)]
    graph.register_buffer(name, (codes.float() - zero_point.float().reshape(shape)) * scale.float().reshape(shape))
    with graph.graph.inserting_before(node):
        weight = graph.graph.get_attr(name)
        quantised = graph.graph.call_function(
            decomposed.quantize_per_channel.default, (weight, *node.args[1:]), dict(node.kwargs)
        )
    node.args = (quantised, *node.args[1:])
