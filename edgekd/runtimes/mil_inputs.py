"""How MIL operators read their inputs: tensors, numpy scalars or lists of either, whatever the file stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Inputs = Mapping[str, Any]
Op = Callable[[Inputs], Any]


def tensor_of(value: Any) -> torch.Tensor:
    """As a tensor of its own dtype."""
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def number_of(value: Any) -> torch.Tensor:
    """As float32 unless it is a tensor of integers that indexes or counts."""
    tensor = tensor_of(value)
    return tensor.float() if tensor.dtype in (torch.float16, torch.float64) else tensor


def float_of(value: Any) -> torch.Tensor:
    """As float32, whatever it is."""
    return tensor_of(value).float()


def optional_float(inputs: Inputs, name: str) -> torch.Tensor | None:
    """An input as float32, None where the operator has none of that name."""
    return None if inputs.get(name) is None else float_of(inputs[name])


def ints_of(value: Any) -> list[int]:
    """A vector of integers, or one, as a list.

    >>> ints_of(torch.tensor([1, 2])), ints_of(3)
    ([1, 2], [3])
    """
    return [int(item) for item in (value if isinstance(value, (list, tuple)) else tensor_of(value).flatten().tolist())]


def ints_or(inputs: Inputs, name: str, default: list[int]) -> list[int]:
    """A vector of integers, or what the operator's definition says where the file leaves it out."""
    return default if inputs.get(name) is None else ints_of(inputs[name])


def axes_of(inputs: Inputs, rank: int) -> list[int]:
    """The `axes` of a reduction, not negative; all of them where none is named."""
    return [axis % rank for axis in ints_or(inputs, "axes", list(range(rank)))]


def unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Op:
    """An operator of `x` alone."""
    return lambda i: function(number_of(i["x"]))


def binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Op:
    """An operator of `x` and `y`, broadcast."""
    return lambda i: function(number_of(i["x"]), number_of(i["y"]))
