"""What each MIL operator computes, in torch. One entry per operator name of coremltools' `mil.ops.defs` (iOS 15 to 18).

Every function takes the operator's named inputs (tensors, numpy scalars, strings) and returns one tensor, or a tuple
where the operator has several outputs. Source: the operator documentation in coremltools/converters/mil/mil/ops/defs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from edgekd.runtimes.mil_inputs import (
    Inputs,
    Op,
    axes_of,
    binary,
    float_of,
    number_of,
    optional_float,
    tensor_of,
    unary,
)
from edgekd.runtimes.mil_shapes import SHAPES
from edgekd.runtimes.mil_spatial import SPATIAL

_INTEGER_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}
_CASTS = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,  # torch computes little in uint16
    "int32": torch.int32,
    "bool": torch.bool,
}


def _reduce(function: Callable[..., torch.Tensor]) -> Op:
    def apply(i: Inputs) -> torch.Tensor:
        x = number_of(i["x"])
        return function(x, dim=axes_of(i, x.ndim), keepdim=bool(i.get("keep_dims", False)))

    return apply


def _product(x: torch.Tensor, dim: list[int], keepdim: bool) -> torch.Tensor:
    for axis in sorted(dim, reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim)
    return x


def _compare(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Op:
    return lambda i: function(number_of(i["x"]), number_of(i["y"])).bool()


# --- products ---


def _linear(i: Inputs) -> torch.Tensor:
    return F.linear(float_of(i["x"]), float_of(i["weight"]), optional_float(i, "bias"))


def _matmul(i: Inputs) -> torch.Tensor:
    x, y = float_of(i["x"]), float_of(i["y"])
    x = x.transpose(-1, -2) if i.get("transpose_x") else x
    return x @ (y.transpose(-1, -2) if i.get("transpose_y") else y)


def _attention(i: Inputs) -> torch.Tensor:
    query, key, value = (float_of(i[name]) for name in ("query", "key", "value"))
    mask = None if i.get("attn_mask") is None else number_of(i["attn_mask"])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


# --- activations and normalisation ---


def _gelu(i: Inputs) -> torch.Tensor:
    x, mode = number_of(i["x"]), str(i.get("mode", "EXACT"))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _clamped_relu(i: Inputs) -> torch.Tensor:
    return torch.clamp(F.leaky_relu(number_of(i["x"]), float(i["alpha"])), max=float(i["beta"]))


def _softplus_parametric(i: Inputs) -> torch.Tensor:
    x = number_of(i["x"])
    alpha, beta = (float_of(i[name]).reshape(-1, *[1] * (x.ndim - 2)) for name in ("alpha", "beta"))
    return alpha * F.softplus(beta * x)


def _layer_norm(i: Inputs) -> torch.Tensor:
    x = number_of(i["x"])
    axes = axes_of(i, x.ndim)
    out = _standardised(x, axes, i)
    shape = [x.shape[a] if a in axes else 1 for a in range(x.ndim)]
    return _scaled(out, i, shape)


def _instance_norm(i: Inputs) -> torch.Tensor:
    x = number_of(i["x"])
    return _scaled(_standardised(x, list(range(2, x.ndim)), i), i, [-1, *[1] * (x.ndim - 2)])


def _standardised(x: torch.Tensor, axes: list[int], i: Inputs) -> torch.Tensor:
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + float(i.get("epsilon", 1e-5)))


def _scaled(x: torch.Tensor, i: Inputs, shape: list[int]) -> torch.Tensor:
    gamma, beta = optional_float(i, "gamma"), optional_float(i, "beta")
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _batch_norm(i: Inputs) -> torch.Tensor:
    scale, shift = optional_float(i, "gamma"), optional_float(i, "beta")
    mean, variance, epsilon = float_of(i["mean"]), float_of(i["variance"]), float(i.get("epsilon", 1e-5))
    return F.batch_norm(number_of(i["x"]), mean, variance, scale, shift, eps=epsilon)


def _l2_norm(i: Inputs) -> torch.Tensor:
    """Over the last three axes together."""
    x, epsilon = number_of(i["x"]), float(i.get("epsilon", 1e-6))
    return x * torch.rsqrt(x.square().sum(dim=(-3, -2, -1), keepdim=True) + epsilon)


def _local_response_norm(i: Inputs) -> torch.Tensor:
    scale, power, shift = float(i.get("alpha", 1e-4)), float(i.get("beta", 0.75)), float(i.get("k", 1.0))
    return F.local_response_norm(number_of(i["x"]), int(i["size"]), scale, power, shift)


# --- quantisation and types ---


def _along(value: Any, axis: Any, ndim: int) -> torch.Tensor:
    """A per-tensor scalar, or a per-channel vector shaped to broadcast along its axis."""
    tensor = tensor_of(value).float()
    if tensor.numel() == 1 or axis is None:
        return tensor.reshape(()) if tensor.numel() == 1 else tensor
    return tensor.reshape([-1 if k == int(axis) % ndim else 1 for k in range(ndim)])


def _quantize(i: Inputs) -> torch.Tensor:
    x = number_of(i["input"])
    scale = _along(i["scale"], i.get("axis"), x.ndim)
    zero_point = 0.0 if i.get("zero_point") is None else _along(i["zero_point"], i.get("axis"), x.ndim)
    low, high = _INTEGER_RANGES[str(i["output_dtype"])]
    return torch.clamp(torch.round(x / scale) + zero_point, low, high)


def _dequantize(i: Inputs) -> torch.Tensor:
    codes = tensor_of(i["input"]).float()
    zero_point = 0.0 if i.get("zero_point") is None else _along(i["zero_point"], i.get("axis"), codes.ndim)
    return (codes - zero_point) * _along(i["scale"], i.get("axis"), codes.ndim)


def _cast(i: Inputs) -> torch.Tensor:
    x, dtype = tensor_of(i["x"]), str(i["dtype"])
    if dtype == "fp16":
        return x.half().float()
    return x.float() if dtype == "fp32" else x.to(_CASTS[dtype])


def _classify(i: Inputs) -> tuple[Any, torch.Tensor]:
    probabilities = number_of(i["probabilities"])
    return probabilities.argmax(dim=-1), probabilities


_POINTWISE: dict[str, Op] = {
    "abs": unary(torch.abs),
    "ceil": unary(torch.ceil),
    "erf": unary(torch.erf),
    "exp": unary(torch.exp),
    "exp2": unary(torch.exp2),
    "floor": unary(torch.floor),
    "identity": lambda i: i["x"],
    "inverse": lambda i: 1.0 / (number_of(i["x"]) + float(i.get("epsilon", 1e-4))),
    "log": lambda i: torch.log(number_of(i["x"]) + float(i.get("epsilon", 0.0))),
    "relu": unary(F.relu),
    "relu6": unary(F.relu6),
    "round": unary(torch.round),
    "rsqrt": lambda i: torch.rsqrt(number_of(i["x"]) + float(i.get("epsilon", 1e-12))),
    "sigmoid": unary(torch.sigmoid),
    "sign": unary(torch.sign),
    "silu": unary(F.silu),
    "softplus": unary(F.softplus),
    "sqrt": unary(torch.sqrt),
    "square": unary(torch.square),
    "acos": unary(torch.acos),
    "asin": unary(torch.asin),
    "atan": unary(torch.atan),
    "atanh": unary(torch.atanh),
    "cos": unary(torch.cos),
    "cosh": unary(torch.cosh),
    "sin": unary(torch.sin),
    "sinh": unary(torch.sinh),
    "tan": unary(torch.tan),
    "logical_not": lambda i: torch.logical_not(tensor_of(i["x"])),
    "tanh": unary(torch.tanh),
    "clip": lambda i: torch.clamp(number_of(i["x"]), float(i["alpha"]), float(i["beta"])),
    "clamped_relu": _clamped_relu,
    "elu": lambda i: F.elu(number_of(i["x"]), float(i["alpha"])),
    "gelu": _gelu,
    "leaky_relu": lambda i: F.leaky_relu(number_of(i["x"]), float(i["alpha"])),
    "prelu": lambda i: F.prelu(number_of(i["x"]), float_of(i["alpha"])),
    "sigmoid_hard": lambda i: torch.clamp(float(i["alpha"]) * number_of(i["x"]) + float(i["beta"]), 0.0, 1.0),
    "linear_activation": lambda i: float(i["alpha"]) * number_of(i["x"]) + float(i["beta"]),
    "scaled_tanh": lambda i: float(i["alpha"]) * torch.tanh(float(i["beta"]) * number_of(i["x"])),
    "softplus_parametric": _softplus_parametric,
    "softsign": unary(F.softsign),
    "threshold": lambda i: torch.clamp(number_of(i["x"]), min=float(i["alpha"])),
    "thresholded_relu": lambda i: torch.where(number_of(i["x"]) >= float(i["alpha"]), number_of(i["x"]), 0.0),
    "softmax": lambda i: torch.softmax(number_of(i["x"]), dim=int(i.get("axis", -1))),
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "real_div": binary(torch.div),
    "floor_div": binary(torch.floor_divide),
    "mod": binary(torch.remainder),
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "pow": binary(torch.pow),
    "equal": _compare(torch.eq),
    "greater": _compare(torch.gt),
    "greater_equal": _compare(torch.ge),
    "less": _compare(torch.lt),
    "less_equal": _compare(torch.le),
    "not_equal": _compare(torch.ne),
    "logical_and": _compare(torch.logical_and),
    "logical_or": _compare(torch.logical_or),
    "logical_xor": _compare(torch.logical_xor),
    "select": lambda i: torch.where(tensor_of(i["cond"]).bool(), number_of(i["a"]), number_of(i["b"])),
}

OPS: dict[str, Op] = {
    **_POINTWISE,
    **SPATIAL,
    **SHAPES,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": lambda i: torch.einsum(str(i["equation"]), *[float_of(value) for value in i["values"]]),
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "local_response_norm": _local_response_norm,
    "reduce_l1_norm": _reduce(lambda x, dim, keepdim: x.abs().sum(dim=dim, keepdim=keepdim)),
    "reduce_l2_norm": _reduce(torch.linalg.vector_norm),
    "reduce_log_sum": _reduce(lambda x, dim, keepdim: x.sum(dim=dim, keepdim=keepdim).log()),
    "reduce_log_sum_exp": _reduce(torch.logsumexp),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_prod": _reduce(_product),
    "reduce_sum": _reduce(torch.sum),
    "reduce_sum_square": _reduce(lambda x, dim, keepdim: x.square().sum(dim=dim, keepdim=keepdim)),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "cast": _cast,
    "classify": _classify,
}
