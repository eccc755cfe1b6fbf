"""Average pools over an even number of pixels, as depthwise convolutions.

A pool keeps the grid of what it reads (LiteRT knows no other), so a quarter of the sums of 2x2 codes lies halfway
between two, where every runtime rounds in its own way: resnet18d's int8 file kept 28.6 dB of its program in LiteRT. A
convolution has a grid of its own, with steps that no sum lies halfway between (`edgekd.quant.rescaling`).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import fx

from edgekd.quant.layers import shape_behind
from edgekd.quant.nodes import add_tensor, aten, nodes_of, replace_by

decomposed = torch.ops.quantized_decomposed
CODE_MAX = 127
# Pixels of a pool; larger ones are rare, and slow as convolutions.
AREA_MAX = 25


def pools_to_convolutions(graph: fx.GraphModule) -> None:
    """Rewrite the pools of a float graph, in place; the same function."""
    for index, pool in enumerate(_pools(graph)):
        weight = torch.full(_weight_shape(pool), 1 / _area(pool))
        with graph.graph.inserting_before(pool):
            _replace(graph, pool, add_tensor(graph, f"average_{index}", weight))
    graph.recompile()


def pools_to_int8_convolutions(graph: fx.GraphModule) -> None:
    """Rewrite the pools that read int8 images, in place. Exact: one code for all weights stands for 1 / pixels."""
    for index, pool in enumerate(_pools(graph)):
        if cast(fx.Node, pool.args[0]).target is not decomposed.dequantize_per_tensor.default:
            continue
        shape = _weight_shape(pool)
        tensors = {
            "codes": torch.full(shape, CODE_MAX, dtype=torch.int8),
            "scale": torch.full(shape[:1], 1 / (CODE_MAX * _area(pool))),
            "zero_point": torch.zeros(shape[0], dtype=torch.int64),
        }
        with graph.graph.inserting_before(pool):
            stored = [add_tensor(graph, f"average_{index}_{key}", value) for key, value in tensors.items()]
            grid: Any = (*stored, 0, -CODE_MAX, CODE_MAX, torch.int8)
            weight = graph.graph.call_function(decomposed.dequantize_per_channel.default, grid)
            _replace(graph, pool, weight)
    graph.recompile()


def _pools(graph: fx.GraphModule) -> list[fx.Node]:
    pools = nodes_of(graph, aten.avg_pool2d.default)
    return [pool for pool in pools if _area(pool) in range(2, AREA_MAX, 2) and _is_convolution(pool)]


def _is_convolution(pool: fx.Node) -> bool:
    """Whether every window has as many pixels, padding counted: no divisor of its own, nothing beyond the last row."""
    kernel, stride, padding, _, counts_padding, divisor = _arguments(pool)
    before, after = (shape_behind(node)[-2:] for node in (cast(fx.Node, pool.args[0]), pool))
    sizes = zip(before, kernel, stride, padding, strict=True)
    whole = tuple((size + 2 * p - k) // s + 1 for size, k, s, p in sizes) == tuple(after)
    return divisor is None and whole and (counts_padding or not any(padding))


def _arguments(pool: fx.Node) -> tuple[list[int], list[int], list[int], bool, bool, int | None]:
    """Kernel, stride, padding, ceil mode, whether padding counts, divisor."""
    given = (*pool.args[1:], *([], [0, 0], False, True, None)[len(pool.args) - 2 :])
    kernel, stride, padding = (2 * list(sizes) if len(sizes) == 1 else list(sizes) for sizes in cast(Any, given[:3]))
    return (kernel, stride or kernel, padding, *cast(Any, given[3:]))


def _area(pool: fx.Node) -> int:
    return math.prod(_arguments(pool)[0])


def _weight_shape(pool: fx.Node) -> tuple[int, ...]:
    return (int(pool.meta["val"].shape[1]), 1, *_arguments(pool)[0])


def _replace(graph: fx.GraphModule, pool: fx.Node, weight: fx.Node) -> None:
    _, stride, padding, *_ = _arguments(pool)
    channels = _weight_shape(pool)[0]
    arguments: Any = (pool.args[0], weight, None, stride, padding, [1, 1], channels)
    convolution = graph.graph.call_function(aten.conv2d.default, arguments)
    convolution.meta = dict(pool.meta)
    replace_by(graph, pool, convolution)
