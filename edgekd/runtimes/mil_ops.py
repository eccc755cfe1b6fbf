"""What each MIL operator computes, in torch. One entry per operator name of coremltools' `mil.ops.defs` (iOS 15 to 18).

Every function takes the operator's named inputs (tensors, numpy scalars, strings) and returns one tensor, or a tuple
where the operator has several outputs. Source: the operator documentation in coremltools/converters/mil/mil/ops/defs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

Inputs = Mapping[str, Any]
Op = Callable[[Inputs], Any]
_INTEGER_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
_CASTS = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "bool": torch.bool}


def _tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def _number(value: Any) -> torch.Tensor:
    """As float32 unless it is a tensor of integers that indexes or counts."""
    tensor = _tensor(value)
    return tensor.float() if tensor.dtype in (torch.float16, torch.float64) else tensor


def _ints(value: Any) -> list[int]:
    return [int(item) for item in (value if isinstance(value, (list, tuple)) else _tensor(value).flatten().tolist())]


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Op:
    return lambda i: function(_number(i["x"]))


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Op:
    return lambda i: function(_number(i["x"]), _number(i["y"]))


def _reduce(function: Callable[..., torch.Tensor]) -> Op:
    def apply(i: Inputs) -> torch.Tensor:
        x = _number(i["x"])
        axes = _ints(i["axes"]) if i.get("axes") is not None else list(range(x.ndim))
        return function(x, dim=axes, keepdim=bool(i["keep_dims"]))

    return apply


# --- convolution, products, pooling ---


def _window_padding(i: Inputs, sizes: Sequence[int], kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """[before, after] per spatial axis in order, for the pad types custom, valid, same and same_lower."""
    kind, strides = str(i["pad_type"]), _ints(i["strides"])
    if kind == "valid":
        return [0] * (2 * len(kernel))
    if kind == "custom":
        return _ints(i["pad"])
    pads = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        pads += [larger, smaller] if kind == "same_lower" else [smaller, larger]
    return pads


def _reversed_pairs(pads: Sequence[int]) -> list[int]:
    """MIL pads the outermost axis first, torch the innermost.

    >>> _reversed_pairs([1, 2, 3, 4])
    [3, 4, 1, 2]
    """
    return [value for k in range(len(pads) - 2, -1, -2) for value in pads[k : k + 2]]


def _conv(i: Inputs) -> torch.Tensor:
    x, weight = _tensor(i["x"]).float(), _tensor(i["weight"]).float()
    bias = None if i.get("bias") is None else _tensor(i["bias"]).float()
    dilations, kernel = _ints(i["dilations"]), list(weight.shape[2:])
    x, padding = _padded(x, _window_padding(i, x.shape[2:], kernel, dilations), 0.0)
    function: Callable[..., torch.Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    groups = int(i.get("groups", 1))
    return function(x, weight, bias, stride=_ints(i["strides"]), padding=padding, dilation=dilations, groups=groups)


def _padded(x: torch.Tensor, pads: Sequence[int], value: float) -> tuple[torch.Tensor, list[int]]:
    """Leave symmetric padding to the operator (faster); do the rest here."""
    before, after = list(pads[0::2]), list(pads[1::2])
    if before == after:
        return x, before
    return F.pad(x, _reversed_pairs(pads), value=value), [0] * len(before)


def _max_pool(i: Inputs) -> torch.Tensor:
    x, kernel = _number(i["x"]), _ints(i["kernel_sizes"])
    pads = _window_padding(i, x.shape[2:], kernel, [1] * len(kernel))
    x = F.pad(x, _reversed_pairs(pads), value=float("-inf")) if any(pads) else x
    function: Callable[..., torch.Tensor] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    return function(x, kernel, stride=_ints(i["strides"]), ceil_mode=bool(i.get("ceil_mode", False)))


def _avg_pool(i: Inputs) -> torch.Tensor:
    x, kernel = _number(i["x"]), _ints(i["kernel_sizes"])
    pads = _window_padding(i, x.shape[2:], kernel, [1] * len(kernel))
    function: Callable[..., torch.Tensor] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]

    def pool(values: torch.Tensor) -> torch.Tensor:
        padded = F.pad(values, _reversed_pairs(pads)) if any(pads) else values
        return function(padded, kernel, stride=_ints(i["strides"]), ceil_mode=bool(i.get("ceil_mode", False)))

    pooled = pool(x)
    excludes = bool(i.get("exclude_padding_from_average", False)) and any(pads)
    return pooled / pool(torch.ones_like(x)) if excludes else pooled


def _linear(i: Inputs) -> torch.Tensor:
    bias = None if i.get("bias") is None else _tensor(i["bias"]).float()
    return F.linear(_tensor(i["x"]).float(), _tensor(i["weight"]).float(), bias)


def _matmul(i: Inputs) -> torch.Tensor:
    x, y = _tensor(i["x"]).float(), _tensor(i["y"]).float()
    x = x.transpose(-1, -2) if i.get("transpose_x") else x
    return x @ (y.transpose(-1, -2) if i.get("transpose_y") else y)


def _attention(i: Inputs) -> torch.Tensor:
    query, key, value = (_tensor(i[name]).float() for name in ("query", "key", "value"))
    mask = None if i.get("attn_mask") is None else _tensor(i["attn_mask"])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


# --- activations and normalisation ---


def _gelu(i: Inputs) -> torch.Tensor:
    x, mode = _number(i["x"]), str(i.get("mode", "EXACT"))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _layer_norm(i: Inputs) -> torch.Tensor:
    x = _number(i["x"])
    axes = _ints(i["axes"]) if i.get("axes") is not None else list(range(x.ndim))
    centred = x - x.mean(dim=axes, keepdim=True)
    out = centred * torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + float(i["epsilon"]))
    shape = [x.shape[a] if a in {axis % x.ndim for axis in axes} else 1 for a in range(x.ndim)]
    out = out if i.get("gamma") is None else out * _tensor(i["gamma"]).float().reshape(shape)
    return out if i.get("beta") is None else out + _tensor(i["beta"]).float().reshape(shape)


def _batch_norm(i: Inputs) -> torch.Tensor:
    scale, shift = (None if i.get(name) is None else _tensor(i[name]).float() for name in ("gamma", "beta"))
    mean, variance = _tensor(i["mean"]).float(), _tensor(i["variance"]).float()
    return F.batch_norm(_number(i["x"]), mean, variance, scale, shift, eps=float(i["epsilon"]))


# --- quantisation and types ---


def _along(value: Any, axis: Any, ndim: int) -> torch.Tensor:
    """A per-tensor scalar, or a per-channel vector shaped to broadcast along its axis."""
    tensor = _tensor(value).float()
    if tensor.numel() == 1 or axis is None:
        return tensor.reshape(()) if tensor.numel() == 1 else tensor
    return tensor.reshape([-1 if k == int(axis) % ndim else 1 for k in range(ndim)])


def _quantize(i: Inputs) -> torch.Tensor:
    x = _number(i["input"])
    scale = _along(i["scale"], i.get("axis"), x.ndim)
    zero_point = 0.0 if i.get("zero_point") is None else _along(i["zero_point"], i.get("axis"), x.ndim)
    low, high = _INTEGER_RANGES[str(i["output_dtype"])]
    return torch.clamp(torch.round(x / scale) + zero_point, low, high)


def _dequantize(i: Inputs) -> torch.Tensor:
    codes = _tensor(i["input"]).float()
    zero_point = 0.0 if i.get("zero_point") is None else _along(i["zero_point"], i.get("axis"), codes.ndim)
    return (codes - zero_point) * _along(i["scale"], i.get("axis"), codes.ndim)


def _cast(i: Inputs) -> torch.Tensor:
    x, dtype = _tensor(i["x"]), str(i["dtype"])
    if dtype == "fp16":
        return x.half().float()
    return x.float() if dtype == "fp32" else x.to(_CASTS[dtype])


# --- shapes ---


def _reshape(i: Inputs) -> torch.Tensor:
    x = _tensor(i["x"])
    return x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(_ints(i["shape"]))])


def _squeeze(i: Inputs) -> torch.Tensor:
    x = _tensor(i["x"])
    return x.squeeze() if i.get("axes") is None else x.squeeze(tuple(_ints(i["axes"])))


def _expand_dims(i: Inputs) -> torch.Tensor:
    x, axes = _tensor(i["x"]), _ints(i["axes"])
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _split(i: Inputs) -> tuple[torch.Tensor, ...]:
    x, axis = _tensor(i["x"]), int(i["axis"])
    if i.get("split_sizes") is not None:
        return tuple(torch.split(x, _ints(i["split_sizes"]), dim=axis))
    return tuple(torch.chunk(x, int(i["num_splits"]), dim=axis))


def _masks(i: Inputs, name: str, rank: int) -> list[int]:
    return [0] * rank if i.get(name) is None else _ints(i[name])


def _slice_by_index(i: Inputs) -> torch.Tensor:
    x = _tensor(i["x"])
    begin, end = _ints(i["begin"]), _ints(i["end"])
    strides = [1] * x.ndim if i.get("stride") is None else _ints(i["stride"])
    first, last, single = (_masks(i, name, x.ndim) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    for axis in range(x.ndim):
        if single[axis]:
            x = x.narrow(axis, begin[axis] % x.shape[axis], 1)
            continue
        span = range(x.shape[axis])[
            slice(None if first[axis] else begin[axis], None if last[axis] else end[axis], strides[axis])
        ]
        x = x.index_select(axis, torch.tensor(list(span), dtype=torch.int64))
    return x.squeeze(tuple(axis for axis in range(x.ndim) if single[axis]))


def _slice_by_size(i: Inputs) -> torch.Tensor:
    x = _tensor(i["x"])
    for axis, (begin, size) in enumerate(zip(_ints(i["begin"]), _ints(i["size"]), strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _pad(i: Inputs) -> torch.Tensor:
    pads, mode = _reversed_pairs(_ints(i["pad"])), str(i.get("mode", "constant"))
    if mode == "constant":
        return F.pad(_number(i["x"]), pads, value=float(i.get("constant_val", 0.0)))
    return F.pad(_number(i["x"]), pads, mode=mode)


def _gather(i: Inputs) -> torch.Tensor:
    x, indices, axis = _tensor(i["x"]), _tensor(i["indices"]).long(), int(i.get("axis", 0))
    chosen = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, chosen.reshape(-1))
    return picked.reshape([*x.shape[: axis % x.ndim], *indices.shape, *x.shape[axis % x.ndim + 1 :]])


def _classify(i: Inputs) -> tuple[Any, torch.Tensor]:
    probabilities = _number(i["probabilities"])
    return probabilities.argmax(dim=-1), probabilities


_POINTWISE: dict[str, Op] = {
    "abs": _unary(torch.abs),
    "ceil": _unary(torch.ceil),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "identity": lambda i: i["x"],
    "inverse": lambda i: 1.0 / (_number(i["x"]) + float(i.get("epsilon", 1e-4))),
    "log": lambda i: torch.log(_number(i["x"]) + float(i.get("epsilon", 0.0))),
    "relu": _unary(F.relu),
    "relu6": _unary(F.relu6),
    "round": _unary(torch.round),
    "rsqrt": lambda i: torch.rsqrt(_number(i["x"]) + float(i.get("epsilon", 1e-12))),
    "sigmoid": _unary(torch.sigmoid),
    "sign": _unary(torch.sign),
    "silu": _unary(F.silu),
    "softplus": _unary(F.softplus),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tanh": _unary(torch.tanh),
    "clip": lambda i: torch.clamp(_number(i["x"]), float(i["alpha"]), float(i["beta"])),
    "elu": lambda i: F.elu(_number(i["x"]), float(i["alpha"])),
    "gelu": _gelu,
    "leaky_relu": lambda i: F.leaky_relu(_number(i["x"]), float(i["alpha"])),
    "prelu": lambda i: F.prelu(_number(i["x"]), _tensor(i["alpha"]).float()),
    "sigmoid_hard": lambda i: torch.clamp(float(i["alpha"]) * _number(i["x"]) + float(i["beta"]), 0.0, 1.0),
    "linear_activation": lambda i: float(i["alpha"]) * _number(i["x"]) + float(i["beta"]),
    "softsign": _unary(F.softsign),
    "threshold": lambda i: torch.clamp(_number(i["x"]), min=float(i["alpha"])),
    "thresholded_relu": lambda i: torch.where(_number(i["x"]) >= float(i["alpha"]), _number(i["x"]), 0.0),
    "softmax": lambda i: torch.softmax(_number(i["x"]), dim=int(i.get("axis", -1))),
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _binary(torch.div),
    "floor_div": _binary(torch.floor_divide),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "pow": _binary(torch.pow),
    "select": lambda i: torch.where(_tensor(i["cond"]).bool(), _number(i["a"]), _number(i["b"])),
}

OPS: dict[str, Op] = {
    **_POINTWISE,
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "reduce_l2_norm": _reduce(torch.linalg.vector_norm),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_sum": _reduce(torch.sum),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "cast": _cast,
    "classify": _classify,
    "concat": lambda i: torch.cat([_number(value) for value in i["values"]], dim=int(i["axis"])),
    "expand_dims": _expand_dims,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda i: torch.stack([_number(value) for value in i["values"]], dim=int(i["axis"])),
    "tile": lambda i: _tensor(i["x"]).repeat(_ints(i["reps"])),
    "transpose": lambda i: _tensor(i["x"]).permute(_ints(i["perm"])),
}
