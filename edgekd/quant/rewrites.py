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


def simplify(graph: fx.GraphModule) -> None:
    """Decompose attention and turn operators of several outputs into slices, in place."""
    for node in nodes_of(graph, aten.scaled_dot_product_attention.default):
        _decompose_attention(graph, node)
    for node in nodes_of(graph, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        _replace_parts(graph, node, _slices(node))
    for node in nodes_of(graph, aten.unbind.int):
        dimension = _dimension(node, 1)
        _replace_parts(graph, node, lambda index, at=dimension: (aten.select.int, (at, index)))  # type: ignore[misc]
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
