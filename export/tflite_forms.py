"""Forms of a graph that LiteRT's CPU kernels are faster at, with the same numbers.

XNNPACK has depthwise kernels for up to 25 weights per channel; a larger one (7x7 in ConvNeXt and FastViT) runs as a
tiny matrix product per channel. Measured on one x86 thread with AMX, CPU time: convnext_tiny at 64 px takes 48.9 ms in
int8, 7.1 in blocks, and 23.4 in fp32, 18.8 in rows; fastvit_t8 at 224 px 131 and 13.1, 28.1 and 14.2. Blocks of 32
are 20 to 30% faster still (not without AMX), with twice the zeros to store.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor, fx

# Weights per channel of the largest depthwise kernel, and channels of a block: what a product's tile computes anyway.
TAPS_MAX, BLOCK_MAX = 25, 16
# Of the one grid that LiteRT's int8 softmax writes on, less float32's error.
SOFTMAX_STEP = 0.999 / 256


def in_pairs(graph: fx.GraphModule) -> None:
    """Write stride, padding and dilation of one number as two, in place: LiteRT's converter takes no others."""
    from edgekd.quant.nodes import aten, nodes_of

    for node in nodes_of(graph, aten.conv2d.default):
        sizes = (2 * list(a) if isinstance(a, list) and len(a) == 1 else a for a in node.args[3:])
        node.args = (*node.args[:3], *sizes)
    graph.recompile()


def divisions_as_products(graph: fx.GraphModule) -> None:
    """Write x / y of computed tensors as x * (1 / y), in place, for int8 programs, which divide in float.

    LiteRT's converter would see vectors that are normalised and put them on its own int8 grid of steps of 1/128.
    """
    from edgekd.quant.nodes import aten, divides_tensors, nodes_of, replace_by

    for node in filter(divides_tensors, nodes_of(graph, aten.div.Tensor)):
        with graph.graph.inserting_before(node):
            inverse = graph.graph.call_function(aten.reciprocal.default, (node.args[1],))
            product = graph.graph.call_function(aten.mul.Tensor, (node.args[0], inverse))
        replace_by(graph, node, product)
    graph.recompile()


def fine_softmaxes_in_float(graph: fx.GraphModule) -> None:
    """Keep LiteRT from computing a softmax on codes with finer steps than its own 1/256, in place.

    It has no other: of attention over 49 tokens five codes would be left, over 197 one. What the softmax reads is
    multiplied by the float32 next to 1, so that it reads no codes; behind it, the converter moves operators away.
    """
    from edgekd.export.program import softmaxes_of_codes
    from edgekd.quant.nodes import aten

    for softmax, _ in softmaxes_of_codes(graph, SOFTMAX_STEP):
        with graph.graph.inserting_before(softmax):
            lifted = graph.graph.call_function(aten.mul.Tensor, (softmax.args[0], 1 + 2.0**-23))
        softmax.args = (lifted, *softmax.args[1:])
    graph.recompile()


def large_depthwise(graph: fx.GraphModule) -> None:
    """Rewrite depthwise convolutions that XNNPACK has no kernel for, in place: int8 in blocks, float in rows.

    Rows cannot keep the codes of an int8 convolution, since each sum would be rounded; blocks have zeros to store.
    """
    from edgekd.quant.nodes import aten, nodes_of, tensor_of

    for index, node in enumerate(nodes_of(graph, aten.conv2d.default)):
        stored = _stored_weight(node)
        if stored is None or not _is_large_depthwise(node, weight := tensor_of(graph, stored)):
            continue
        if stored is node.args[1]:
            _in_rows(graph, node, weight, f"weight_rows_{index}")
        else:
            _in_blocks(graph, node, weight, f"weight_blocks_{index}")
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _stored_weight(node: fx.Node) -> fx.Node | None:
    """The float tensor that is a convolution's weight: as it is, or quantised and dequantised."""
    import torch

    decomposed = torch.ops.quantized_decomposed
    weight = cast("fx.Node", node.args[1])
    for step in (decomposed.dequantize_per_channel.default, decomposed.quantize_per_channel.default):
        weight = cast("fx.Node", weight.args[0]) if weight.target is step else weight
    return weight if weight.op == "get_attr" else None


def _is_large_depthwise(node: fx.Node, weight: Tensor) -> bool:
    height, width = weight.shape[2:]
    *_, dilation, groups = _arguments(node)
    depthwise = groups > 1 and weight.shape[1] == 1 and set(dilation) == {1}
    return depthwise and height * width > TAPS_MAX >= width


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """Bias, stride, padding, dilation and groups of a convolution."""
    given = node.args[2:]
    return (*given, *(None, [1, 1], [0, 0], [1, 1], 1)[len(given) :])


def _in_blocks(graph: fx.GraphModule, node: fx.Node, weight: Tensor, name: str) -> None:
    """Channels in blocks that read one another with weights of zero: fewer, larger matrix products; the same sums."""
    import torch

    from edgekd.quant.nodes import add_tensor

    bias, stride, padding, dilation, groups = _arguments(node)
    block = max(size for size in range(1, BLOCK_MAX + 1) if groups % size == 0)
    outputs = torch.arange(len(weight))
    wide = weight.new_zeros(len(weight), block, *weight.shape[2:])
    wide[outputs, outputs // (len(weight) // groups) % block] = weight[:, 0]
    dequantise = cast("fx.Node", node.args[1])
    quantise = cast("fx.Node", dequantise.args[0])
    with graph.graph.inserting_before(node):  # a chain of its own: other convolutions may share the weight
        read = add_tensor(graph, name, wide)
        for step in (quantise, dequantise):
            read = graph.graph.call_function(step.target, (read, *step.args[1:]))  # type: ignore[arg-type]
    node.args = (node.args[0], read, bias, stride, padding, dilation, groups // block)


def _in_rows(graph: fx.GraphModule, node: fx.Node, weight: Tensor, name: str) -> None:
    """The sum of convolutions with as many rows of the weights as XNNPACK has kernels for."""
    from edgekd.quant.nodes import add_tensor, aten, replace_by

    bias, stride, (down, across), _, groups = _arguments(node)
    rows, steps = TAPS_MAX // weight.shape[3], stride[0] * (node.meta["val"].shape[2] - 1)
    call = graph.graph.call_function
    with graph.graph.inserting_before(node):
        padded = call(aten.pad.default, (node.args[0], [across, across, down, down]))
        parts: list[fx.Node] = []
        for top in range(0, weight.shape[2], rows):
            part = weight[:, :, top : top + rows].contiguous()
            read = call(aten.slice.Tensor, (padded, 2, top, top + steps + part.shape[2]))
            stored = add_tensor(graph, f"{name}_{top}", part)
            given = (read, stored, None if parts else bias, stride, [0, 0], [1, 1], groups)
            parts.append(call(aten.conv2d.default, given))
        total = functools.reduce(lambda left, right: call(aten.add.Tensor, (left, right)), parts)
    replace_by(graph, node, total)
