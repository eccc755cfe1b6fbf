"""Multiply-adds of one operator from its shapes: the same count whatever runtime or layout the shapes come from."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shape = Sequence[int]


def conv_macs(output: Shape, weight: Shape) -> int:
    """weight: (out, in / groups, *kernel) or (out, *kernel, in / groups); output in any order, batch included.

    A transposed convolution is the same with its input for `output` and weight (in, out / groups, *kernel).

    >>> conv_macs((1, 8, 4, 4), (8, 3, 3, 3)) == 8 * 16 * 27
    True
    """
    return math.prod(output) * math.prod(weight[1:])


def matmul_macs(output: Shape, left: Shape) -> int:
    """Product of two matrices (or stacks of them); `left` may be stored transposed.

    >>> matmul_macs((1, 2, 5), (1, 2, 3)), matmul_macs((2, 5), (3, 2))
    (30, 30)
    """
    rows = output[-2] if len(output) > 1 else 1
    as_is = len(left) < 2 or left[-2] == rows
    return math.prod(output) * (left[-1] if as_is else left[-2])
