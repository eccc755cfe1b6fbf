"""Rewrites of a traced graph that change no number and let int8 pass: attention, splits and per-channel scales."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from edgekd.quant.nodes import add_call, aten, nodes_of, replace_by, store, tensor_of

# Marks an operator that joins two float ones: a quantisation between them would only cost time and accuracy.
STAYS_FLOAT = "edgekd_stays_float"
BROADCASTING = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


def simplify(graph: fx.GraphModule) -> None:
    """Write what converters or int8 have no good form for in simpler operators, in place; the same numbers."""
    for node in nodes_of(graph, aten.scaled_dot_product_attention.default):
        _decompose_attention(graph, node)
    for node in nodes_of(graph, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        _replace_parts(graph, node, _slices(node))
    for node in nodes_of(graph, aten.unbind.int):
        dimension = _dimension(node, 1)
        _replace_parts(graph, node, lambda index, at=dimension: (aten.select.int, (at, index)))  # type: ignore[misc]
    for node in nodes_of(graph, aten.avg_pool2d.default):
        _name_global_pool(graph, node)
    for node in nodes_of(graph, aten.addcmul.default):
        _decompose_addcmul(graph, node)
    _drop_expansions(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _decompose_attention(graph: fx.GraphModule, node: fx.Node) -> None:
    """softmax(q k^T * scale + mask) v with each product an operator of its own, so that products can be int8.

    TensorRT 8 knows no fused attention, and its opset-23 form crashes the RTX builder. What no vision backbone has
    (causal, boolean or grouped attention) is left to the converters.
    """
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    mask = given.get("attn_mask")
    if given.get("is_causal") or given.get("enable_gqa") or (mask and mask.meta["val"].dtype is torch.bool):
        return
    width = given["query"].meta["val"].shape[-1]
    with graph.graph.inserting_before(node):
        turned = add_call(graph, node, aten.transpose.int, given["key"], -2, -1)
        scores = add_call(graph, node, aten.matmul.default, given["query"], turned)
        scores = add_call(graph, node, aten.mul.Tensor, scores, given.get("scale") or 1 / math.sqrt(width))
        scores.meta[STAYS_FLOAT] = True
        if mask:
            scores = add_call(graph, node, aten.add.Tensor, scores, mask)
            scores.meta[STAYS_FLOAT] = True
        weights = add_call(graph, node, aten.softmax.int, scores, -1)
        if given.get("dropout_p"):
            weights = add_call(graph, node, aten.dropout.default, weights, given["dropout_p"], True)
        product = add_call(graph, node, aten.matmul.default, weights, given["value"])
    replace_by(graph, node, product)


def _dimension(node: fx.Node, position: int) -> int:
    return cast(int, node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0))


def _slices(node: fx.Node) -> Callable[[int], tuple[Any, tuple[int, ...]]]:
    dimension = _dimension(node, 2)
    sizes = [int(part.shape[dimension]) for part in node.meta["val"]]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return lambda index: (aten.slice.Tensor, (dimension, ends[index] - sizes[index], ends[index]))


def _replace_parts(graph: fx.GraphModule, node: fx.Node, part: Callable[[int], tuple[Any, tuple[int, ...]]]) -> None:
    """Let each reader of one output compute that output alone."""
    readers = list(node.users)
    if any(user.target is not operator.getitem for user in readers):
        return
    for user in readers:
        target, arguments = part(cast(int, user.args[1]))
        with graph.graph.inserting_before(user):
            replace_by(graph, user, add_call(graph, node, target, node.args[0], *arguments))
    graph.graph.erase_node(node)


def _name_global_pool(graph: fx.GraphModule, node: fx.Node) -> None:
    """An average over the whole image as the global pool that it is: int8 gives that a grid of its own."""
    kernel, padding = cast(Any, node.args[1]), node.args[3] if len(node.args) > 3 else [0, 0]
    sizes = tuple(cast(fx.Node, node.args[0]).meta["val"].shape[-2:])
    whole = sizes == tuple(kernel if len(kernel) == 2 else 2 * kernel) and not any(cast(Any, padding))
    if whole and len(node.args) < 7:  # the seventh is a divisor
        with graph.graph.inserting_before(node):
            pool = add_call(graph, node, aten.adaptive_avg_pool2d.default, node.args[0], [1, 1])
        replace_by(graph, node, pool)


def _decompose_addcmul(graph: fx.GraphModule, node: fx.Node) -> None:
    """bias + weight * x as a product and a sum (ConvNeXt V2): Core ML's converter knows no addcmul."""
    offset, left, right = node.args
    with graph.graph.inserting_before(node):
        product = add_call(graph, node, aten.mul.Tensor, left, right)
        if (factor := node.kwargs.get("value", 1)) != 1:
            product = add_call(graph, node, aten.mul.Tensor, product, factor)
        total = add_call(graph, node, aten.add.Tensor, offset, product)
    replace_by(graph, node, total)


def _drop_expansions(graph: fx.GraphModule) -> None:
    """Let element-wise operators read what an `expand` would write out, where the result has the same shape.

    litert-torch (0.10) moves channels last and forgets the sizes of an `expand` (MobileViTv2); the others copy it.
    """
    for node in nodes_of(graph, aten.expand.default, aten.expand_as.default):
        source = cast(fx.Node, node.args[0])
        if all(_broadcasts(user, node, source) for user in node.users):
            replace_by(graph, node, source)


def _broadcasts(user: fx.Node, expanded: fx.Node, source: fx.Node) -> bool:
    if user.target not in BROADCASTING:
        return False
    shapes = [(source if part is expanded else part).meta["val"].shape for part in user.all_input_nodes]
    return bool(cast(Any, torch.broadcast_shapes)(*shapes) == user.meta["val"].shape)


def fold_scales(graph: fx.GraphModule, *, trainable: bool = False) -> None:
    """Fold a multiplication by a stored per-channel factor (LayerScale) into the layer before it, in place.

    Such factors differ by orders of magnitude between channels: on one int8 grid the small ones would vanish.
    trainable: the weight becomes weight x factor inside the graph, so that both go on learning.
    """
    for product in nodes_of(graph, aten.mul.Tensor, aten.mul_.Tensor):
        for layer, other in (product.args[:2], product.args[1::-1]):
            factor = _factor(graph, layer, other)
            if factor is not None:
                node = cast(fx.Node, layer)
                if trainable:
                    _multiply_rows(graph, node, cast(fx.Node, other), product)
                else:
                    _scale_rows(graph, node, factor)
                replace_by(graph, product, node)
                break
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _factor(graph: fx.GraphModule, layer: object, other: object) -> Tensor | None:
    """The factor of each output channel where `other` scales nothing but the channels of a layer that only it reads."""
    if not isinstance(layer, fx.Node) or layer.target not in (aten.conv2d.default, aten.linear.default):
        return None
    factor = _constant(graph, other)
    if factor is None or len(layer.users) > 1 or len(cast(fx.Node, layer.args[1]).users) > 1:
        return None
    is_image = layer.target is aten.conv2d.default
    shape = [int(layer.meta["val"].shape[1 if is_image else -1]), *([1, 1] if is_image else [])]
    fits = list(factor.shape)[-len(shape) :] == shape and factor.numel() == shape[0]
    return factor.reshape(-1) if fits else None


def _constant(graph: fx.GraphModule, node: object) -> Tensor | None:
    """The value of a stored tensor, also through reshapes."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        return tensor_of(graph, node)
    if node.target in (aten.reshape.default, aten.view.default, aten.unsqueeze.default):
        source = _constant(graph, node.args[0])
        return None if source is None else cast(Any, node.target)(source, *node.args[1:])
    return None


def _scale_rows(graph: fx.GraphModule, layer: fx.Node, factor: Tensor) -> None:
    weight, bias = cast(fx.Node, layer.args[1]), layer.args[2] if len(layer.args) > 2 else None
    value = tensor_of(graph, weight)
    store(graph, weight, value * factor.reshape(-1, *[1] * (value.ndim - 1)))
    if isinstance(bias, fx.Node):
        store(graph, bias, tensor_of(graph, bias) * factor)


def _multiply_rows(graph: fx.GraphModule, layer: fx.Node, factor: fx.Node, product: fx.Node) -> None:
    weight, bias = cast(fx.Node, layer.args[1]), layer.args[2] if len(layer.args) > 2 else None
    rank = weight.meta["val"].ndim
    with graph.graph.inserting_after(factor):
        flat = add_call(graph, product, aten.reshape.default, factor, [-1])
    _move_behind(layer, [flat])
    with graph.graph.inserting_before(layer):
        rows = add_call(graph, layer, aten.reshape.default, flat, [-1, *[1] * (rank - 1)])
        scaled = add_call(graph, layer, aten.mul.Tensor, weight, rows)
        offset = add_call(graph, layer, aten.mul.Tensor, bias, flat) if isinstance(bias, fx.Node) else None
    layer.args = (layer.args[0], scaled, *([offset] if offset is not None else layer.args[2:3]), *layer.args[3:])


def _move_behind(node: fx.Node, needed: list[fx.Node]) -> None:
    """Let what is computed from stored tensors alone stand before `node`, with what it is computed from."""
    for item in needed:
        _move_behind(node, item.all_input_nodes)
        node.prepend(item)
