"""An int8 program in float64: what its codes mean, without float32's own roundings between them.

In float32 the order of a sum decides which of two codes a value near the middle gets, and the next layers spread
that: torch keeps 24 dB of its own float64 answers for an int8 RegNetY, LiteRT and ONNX Runtime, which sum integers,
30. A runtime is to be judged by the program, not by one float32 reading of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed as operators  # noqa: F401  # registers what the next line names
from torch.nn import functional

decomposed = torch.ops.quantized_decomposed


def in_float64(graph: fx.GraphModule) -> fx.GraphModule | None:
    """The program (`folded`) from float64 to float64 values, or None where nothing in it is quantised."""
    found, graph = False, copy.deepcopy(graph)  # its parameters are the program's own
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _QUANTISERS:
            node.target, found = _QUANTISERS[node.target], True
            continue
        node.args, node.kwargs = _widened(node.args), _widened(node.kwargs)
        if node.target is torch.ops.aten.conv2d.default:
            node.target = _convolve
    if not found:
        return None
    graph.recompile()
    return graph.double()


def _widened(value: Any) -> Any:
    """Arguments with float64 where they ask for float32: casts and tensors made on the way."""
    return fx.node.map_aggregate(value, lambda leaf: torch.float64 if leaf is torch.float32 else leaf)


def _quantise(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """Codes as float64: whole numbers, so their type does not matter."""
    return torch.clamp(torch.round(x.double() / scale) + zero_point, low, high)


def _dequantise(codes: Tensor, scale: float, zero_point: int, *_: Any) -> Tensor:
    return (codes.double() - zero_point) * scale


def _quantise_channels(
    x: Tensor, scales: Tensor, zero_points: Tensor, axis: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    scale, zero_point = _along(scales, axis, x), _along(zero_points, axis, x)
    return torch.clamp(torch.round(x.double() / scale) + zero_point, low, high)


def _dequantise_channels(codes: Tensor, scales: Tensor, zero_points: Tensor, axis: int, *_: Any) -> Tensor:
    return (codes.double() - _along(zero_points, axis, codes)) * _along(scales, axis, codes)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """aten.conv2d, its groups in one product: PyTorch's float64 kernel takes them one by one, 5x slower at 64 px."""
    if groups == 1:
        return torch.ops.aten.conv2d.default(x, weight, bias, stride, padding, dilation)  # type: ignore[no-any-return]
    kernel, steps, edges, gaps = weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation)
    columns = functional.unfold(x, tuple(kernel), gaps, edges, steps)
    parts = columns.reshape(len(x), groups, -1, columns.shape[-1])
    found = weight.reshape(groups, len(weight) // groups, -1) @ parts
    height = (x.shape[2] + 2 * edges[0] - gaps[0] * (kernel[0] - 1) - 1) // steps[0] + 1
    image = found.reshape(len(x), len(weight), height, -1)
    return image if bias is None else image + bias[:, None, None]


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return sizes[0], sizes[-1]


def _along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """One value per channel, shaped to broadcast over `like`."""
    return values.double().reshape([-1 if i == axis % like.dim() else 1 for i in range(like.dim())])


_QUANTISERS: dict[object, Callable[..., Tensor]] = {
    decomposed.quantize_per_tensor.default: _quantise,
    decomposed.dequantize_per_tensor.default: _dequantise,
    decomposed.quantize_per_channel.default: _quantise_channels,
    decomposed.dequantize_per_channel.default: _dequantise_channels,
}
