"""Means over whole images as GlobalAveragePool, which ONNX Runtime computes in int8; ReduceMean it leaves in float."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def pool_globally(model: onnx.ModelProto) -> int:
    """Rewrite every ReduceMean over height and width that the graph then quantises, in place; returns how many.

    Without its dimensions of 1 the mean is flattened after the quantisation, so that the flattening moves codes.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input)}
    flattened: dict[int, onnx.NodeProto] = {}
    count = 0
    for node in graph.node:
        after = readers.get(node.output[0], [])
        if not _spatial(node, stored, ranks) or [reader.op_type for reader in after] != ["QuantizeLinear"]:
            continue
        if not _keeps_dimensions(node):
            flattened[id(after[0])] = _flatten_codes(after[0])
        node.op_type = "GlobalAveragePool"
        del node.input[1:]
        del node.attribute[:]
        node.output[0] += "_pooled"
        after[0].input[0] = node.output[0]
        count += 1
    _insert_after(graph, flattened)
    return count


def _spatial(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto], ranks: dict[str, int]) -> bool:
    from onnx import numpy_helper

    if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4:
        return False
    if len(node.input) > 1:
        axes = numpy_helper.to_array(stored[node.input[1]]).tolist() if node.input[1] in stored else []
    else:
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
    return sorted(axis % 4 for axis in axes) == [2, 3]


def _keeps_dimensions(node: onnx.NodeProto) -> bool:
    return next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1) == 1


def _flatten_codes(quantise: onnx.NodeProto) -> onnx.NodeProto:
    """The codes under another name, and the operator that gives them, flattened, the old one."""
    import onnx

    name = quantise.output[0]
    quantise.output[0] = f"{name}_4d"
    return onnx.helper.make_node("Flatten", [f"{name}_4d"], [name], name=f"{name}_flatten")


def _insert_after(graph: onnx.GraphProto, inserted: dict[int, onnx.NodeProto]) -> None:
    import onnx

    order = []
    for node in graph.node:
        order.append(node)
        if id(node) in inserted:
            order.append(inserted[id(node)])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]  # shapes of the means have changed
