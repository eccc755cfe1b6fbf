"""Forms of a graph that ONNX Runtime's CPU kernels are faster at, with the same numbers.

Measured on one x86 thread with fastvit_t8 at 64 px, CPU time: GELU as one operator makes the fp32 file 1.22 times as
fast; both together the int8 file 2.0 times, from 0.84 of the former fp32 file's speed to 1.78 of it.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import onnx
    from torch import fx

# The domain of ONNX Runtime's own operators.
CONTRIB = "com.microsoft"
# Of x / 2 times 1 + erf(x / sqrt 2), by what they give: the operator, and the number in it.
GELU_PARTS = {"scaled": ("Div", math.sqrt(2)), "erf": ("Erf", None), "sum": ("Add", 1.0), "half": ("Mul", 0.5)}


def gelus_to_fuse(graph: fx.GraphModule) -> None:
    """Write each exact GELU as x / 2 times 1 + erf(x / sqrt 2), in place: the order that ONNX Runtime fuses.

    torch's exporter writes x times half the sum, which stays five passes over the tensor. See `gelus_of_codes`.
    """
    from edgekd.quant.nodes import aten, nodes_of

    for node in nodes_of(graph, aten.gelu.default):
        if node.kwargs.get("approximate", "none") != "none":
            continue
        calls, x = graph.graph.call_function, node.args[0]
        with graph.graph.inserting_before(node):
            half = calls(aten.mul.Tensor, (x, 0.5))
            erf = calls(aten.erf.default, (calls(aten.div.Tensor, (x, math.sqrt(2))),))
            product = calls(aten.mul.Tensor, (half, calls(aten.add.Tensor, (erf, 1.0))))
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


def gelus_of_codes(model: onnx.ModelProto) -> int:
    """Write what `gelus_to_fuse` left as ONNX Runtime's own Gelu, in place; returns how many.

    For int8 graphs: it gives each reader of a DequantizeLinear one of its own before it looks for a GELU to fuse, and
    then finds none.
    """
    import onnx

    graph = model.graph
    gone: set[str] = set()
    for x, product, parts in _gelus(graph):
        gone |= {node.output[0] for node in parts}
        product.op_type, product.domain = "Gelu", CONTRIB
        del product.input[:]
        product.input.append(x)
    if gone:
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node if n.output[0] not in gone]
        del graph.node[:]
        graph.node.extend(copies)
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    return len(gone) // len(GELU_PARTS)


def _gelus(graph: onnx.GraphProto) -> list[tuple[str, onnx.NodeProto, list[onnx.NodeProto]]]:
    """(input, last operator, the others) of each GELU as `gelus_to_fuse` writes it."""
    made = {name: node for node in graph.node for name in node.output}
    reads = Counter(name for node in graph.node for name in node.input)
    numbers = _numbers(graph)

    def part(kind: str, name: str) -> onnx.NodeProto | None:
        operator, number = GELU_PARTS[kind]
        node = made.get(name)
        if node is None or node.op_type != operator or reads[name] != 1:
            return None
        found = [numbers[given] for given in node.input if given in numbers]
        holds = not found if number is None else len(found) == 1 and math.isclose(found[0], number, rel_tol=1e-6)
        return node if holds else None

    gelus = []
    for product in [node for node in graph.node if node.op_type == "Mul" and len(node.input) == 2]:
        half, total = part("half", product.input[0]), part("sum", product.input[1])
        erf = part("erf", next(n for n in total.input if n not in numbers)) if total is not None else None
        scaled = part("scaled", erf.input[0]) if erf is not None else None
        if half is None or total is None or erf is None or scaled is None or scaled.input[0] not in half.input:
            continue
        gelus.append((scaled.input[0], product, [scaled, erf, total, half]))
    return gelus


def _numbers(graph: onnx.GraphProto) -> dict[str, float]:
    """Stored tensors of one value."""
    from onnx import numpy_helper

    arrays = ((tensor.name, numpy_helper.to_array(tensor)) for tensor in graph.initializer if sum(tensor.dims) <= 1)
    return {name: float(array.reshape(-1)[0]) for name, array in arrays if array.size == 1}


def fine_softmaxes_in_float(graph: fx.GraphModule) -> None:
    """Keep ONNX Runtime from computing a softmax on codes where that overflows, in place; the same codes.

    Twice the values on a grid twice as wide, for softmax, product and rounding are no pattern that it fuses: swin_tiny
    at 224 px (random weights) keeps 35 dB of its program, not 18.
    """
    from edgekd.export.program import softmaxes_of_codes
    from edgekd.quant.nodes import aten
    from edgekd.runtimes.onnxruntime import SOFTMAX_STEP_MIN

    for softmax, quantise in softmaxes_of_codes(graph, SOFTMAX_STEP_MIN):
        with graph.graph.inserting_before(quantise):
            twice = graph.graph.call_function(aten.mul.Tensor, (softmax, 2.0))
        quantise.args = (twice, 2.0 * cast(float, quantise.args[1]), *quantise.args[2:])
    graph.recompile()


def channels_repeated(graph: fx.GraphModule) -> None:
    """Repeat the int8 channels before a convolution that gives several from each, which then is depthwise, in place.

    ONNX Runtime has a kernel for one output channel per input channel; for more it calls one matrix product per group.
    """
    import torch

    from edgekd.quant.nodes import add_tensor, aten, nodes_of

    for index, node in enumerate(nodes_of(graph, aten.conv2d.default)):
        repeats = _repeats(node)
        if repeats is None:
            continue
        read = cast("fx.Node", node.args[0])
        with graph.graph.inserting_before(node):
            channels = torch.arange(cast(int, node.args[6])).repeat_interleave(repeats)
            order = add_tensor(graph, f"repeated_channels_{index}", channels)
            codes = graph.graph.call_function(aten.index_select.default, (read.args[0], 1, order))
            again = graph.graph.call_function(read.target, (codes, *read.args[1:]))  # type: ignore[arg-type]
        node.args = (again, *node.args[1:6], len(channels))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _repeats(node: fx.Node) -> int | None:
    """Output channels per input channel of an int8 convolution whose groups are its channels; None of any other."""
    import torch

    source, weight = cast("fx.Node", node.args[0]), cast("fx.Node", node.args[1])
    groups = cast(int, node.args[6]) if len(node.args) > 6 else 1
    if source.target is not torch.ops.quantized_decomposed.dequantize_per_tensor.default:
        return None
    outputs, inputs = weight.meta["val"].shape[:2]
    return outputs // groups if inputs == 1 and groups > 1 and outputs > groups else None
