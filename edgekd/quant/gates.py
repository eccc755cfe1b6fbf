"""Gates (x * sigmoid(x) and its piecewise linear form) as two int8 operators that every runtime has fast kernels for.

A whole hardswish is a scalar loop in LiteRT (XNNPACK does not take it) and a float island in ONNX Runtime; as a product
with a gate on a fixed grid it is int8 throughout. Measured, one x86 thread: mobilenet_v3_small in LiteRT 5.5 -> 1.8 ms,
efficientnet_b0 in ONNX Runtime 21 -> 11 ms. OpenVINO fuses the whole operator, so its
specification leaves it whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgekd.quant.nodes import add_call, aten, nodes_of, replace_by

# What stands for each gated activation: x * gate(x).
GATES: dict[object, Any] = {
    aten.hardswish.default: aten.hardsigmoid.default,
    aten.hardswish_.default: aten.hardsigmoid.default,
    aten.silu.default: aten.sigmoid.default,
    aten.silu_.default: aten.sigmoid.default,
}
# Ranges that are known before any image is seen: 255 steps of 1/256 from 0, 255 of 1/128 from -1. LiteRT's kernels
# refuse every other grid behind these operators, and ONNX Runtime's hard sigmoid becomes a change of scale on it.
FIXED_RANGES: dict[object, tuple[float, float]] = {
    aten.sigmoid.default: (0.0, 255 / 256),
    aten.sigmoid_.default: (0.0, 255 / 256),
    aten.hardsigmoid.default: (0.0, 255 / 256),
    aten.hardsigmoid_.default: (0.0, 255 / 256),
    aten.softmax.int: (0.0, 255 / 256),
    aten.tanh.default: (-1.0, 127 / 128),
}


def split_gates(graph: fx.GraphModule) -> None:
    """Write each hardswish and silu as a product of its input and its gate, in place; the same function."""
    for node in nodes_of(graph, *GATES):
        with graph.graph.inserting_before(node):
            gate = add_call(graph, node, GATES[node.target], node.args[0])
            product = add_call(graph, node, aten.mul.Tensor, node.args[0], gate)
        replace_by(graph, node, product)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def has_gates(program: ExportedProgram) -> bool:
    """Whether there is anything for `split_gates` to split."""
    return bool(nodes_of(program.graph_module, *GATES))


def hard_sigmoids_as_sums(graph: fx.GraphModule) -> None:
    """Write each int8 hard sigmoid as x / 6 and + 1/2 on int8 grids, in place: LiteRT has no hard sigmoid operator.

    Both keep the codes exact but for one rounding: x / 6 has x's own codes, and the sum saturates on the gate's grid
    where the hard sigmoid is flat.
    """
    decomposed = torch.ops.quantized_decomposed
    for node in nodes_of(graph, aten.hardsigmoid.default):
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.target is not decomposed.dequantize_per_tensor.default:
            continue
        _, scale, *rest = source.args
        grid: tuple[Any, ...] = (float(scale) / 6, *rest)  # type: ignore[arg-type]
        with graph.graph.inserting_before(node):
            sixth = graph.graph.call_function(aten.mul.Tensor, (source, 1 / 6))
            codes = graph.graph.call_function(decomposed.quantize_per_tensor.default, (sixth, *grid))
            back = graph.graph.call_function(decomposed.dequantize_per_tensor.default, (codes, *grid))
            total = graph.graph.call_function(aten.add.Tensor, (back, 0.5))
        node.replace_all_uses_with(total)
        graph.graph.erase_node(node)
    graph.recompile()


def hard_sigmoids_as_codes(graph: fx.GraphModule) -> None:
    """Write each int8 hard sigmoid as a change of grid, in place: the same codes, read as other numbers.

    On a grid of 6/256 around 0 the code c stands for 6 c / 256, whose hard sigmoid is (c + 128) / 256: the code c on
    the gate's own grid. Saturation at +-3 is that of the grid. ONNX Runtime, whose hard sigmoid is float, computes
    nothing.
    """
    decomposed = torch.ops.quantized_decomposed
    for node in nodes_of(graph, aten.hardsigmoid.default):
        readers = [user for user in node.users if user.target is decomposed.quantize_per_tensor.default]
        if len(readers) < len(node.users) or any(tuple(r.args[1:3]) != (1 / 256, -128) for r in readers):
            continue
        for reader in readers:
            reader.args = (node.args[0], 6 / 256, 0, *reader.args[3:])
        graph.graph.erase_node(node)
    graph.recompile()
