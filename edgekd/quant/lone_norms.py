"""Batch norms that cannot be folded (pre-activation networks have them), as depthwise convolutions.

Left alone, a runtime would run such a batch norm as a float multiply and add between a dequantise and a quantise.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from edgekd.quant.nodes import aten, nodes_of, tensor_of

decomposed = torch.ops.quantized_decomposed


def norms_to_convolutions(graph: fx.GraphModule) -> None:
    """Rewrite each eval-mode batch norm of images as a float 1x1 depthwise convolution, in place; the same function."""
    for index, norm in enumerate(_norms_of_images(graph)):
        gain, offset = _affine(graph, norm)
        names = _store(graph, f"lone_norm_{index}", weight=gain.reshape(-1, 1, 1, 1), bias=offset)
        with graph.graph.inserting_before(norm):
            weight, bias = (graph.graph.get_attr(name) for name in names)
            weight.meta["val"], bias.meta["val"] = gain.reshape(-1, 1, 1, 1), offset
            _replace(graph, norm, weight, bias)
    graph.recompile()


def norms_to_int8_convolutions(graph: fx.GraphModule) -> None:
    """Rewrite each eval-mode batch norm that reads int8 images as a 1x1 depthwise int8 convolution, in place.

    Exact: with one weight per channel, the channel's scale |w| / 127 makes its code +-127 stand for w itself.
    """
    for index, norm in enumerate(_norms_of_images(graph)):
        source = cast(fx.Node, norm.args[0])
        if source.target is decomposed.dequantize_per_tensor.default:
            _replace_by_int8(graph, norm, f"lone_norm_{index}")
    graph.recompile()


def _replace_by_int8(graph: fx.GraphModule, norm: fx.Node, name: str) -> None:
    gain, offset = _affine(graph, norm)
    codes = torch.where(gain < 0, -127, 127).to(torch.int8).reshape(-1, 1, 1, 1)
    scale = (gain.abs() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = torch.zeros(len(gain), dtype=torch.int64)
    names = _store(graph, name, codes=codes, scale=scale, zero_point=zero_point, bias=offset)
    with graph.graph.inserting_before(norm):
        *grid, bias = (graph.graph.get_attr(name) for name in names)
        arguments: Any = (*grid, 0, -127, 127, torch.int8)
        weight = graph.graph.call_function(decomposed.dequantize_per_channel.default, arguments)
        _replace(graph, norm, weight, bias)


def _norms_of_images(graph: fx.GraphModule) -> list[fx.Node]:
    norms = nodes_of(graph, aten.batch_norm.default)
    return [n for n in norms if isinstance(n.meta.get("val"), Tensor) and n.meta["val"].ndim == 4]


def _affine(graph: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """gain and offset (channels) such that the batch norm is x * gain + offset."""
    mean, variance = (tensor_of(graph, cast(fx.Node, node)).double() for node in norm.args[3:5])
    weight, bias = (
        tensor_of(graph, node).double() if isinstance(node, fx.Node) else default
        for node, default in zip(norm.args[1:3], (torch.ones_like(mean), torch.zeros_like(mean)), strict=True)
    )
    gain = torch.rsqrt(variance + cast(float, norm.args[7])) * weight
    return gain.float(), (bias - mean * gain).float()


def _store(graph: fx.GraphModule, prefix: str, **tensors: Tensor) -> list[str]:
    for key, value in tensors.items():
        graph.register_buffer(f"{prefix}_{key}", value)
    return [f"{prefix}_{key}" for key in tensors]


def _replace(graph: fx.GraphModule, norm: fx.Node, weight: fx.Node, bias: fx.Node) -> None:
    channels = norm.meta["val"].shape[1]
    arguments = (norm.args[0], weight, bias, [1, 1], [0, 0], [1, 1], channels)
    convolution = graph.graph.call_function(aten.conv2d.default, arguments)
    convolution.meta = dict(norm.meta)
    norm.replace_all_uses_with(convolution)
    graph.graph.erase_node(norm)
