"""Views of features: what a CNN calls a map, a ViT calls tokens and a head calls a vector.

map: (batch, channels, height, width); tokens: (batch, tokens, channels), a class token first or none; vector:
(batch, channels).
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from edgekd.errors import InputError


def as_map(feature: Tensor, where: str = "the tap") -> Tensor:
    """A map from a map, from tokens on a square grid (class and distillation tokens are dropped) or from a vector.

    Raises: InputError: any other shape; `where` is named.

    >>> import torch
    >>> [tuple(as_map(torch.zeros(shape)).shape) for shape in [(2, 8, 4, 4), (2, 17, 8), (2, 16, 8), (2, 8)]]
    [(2, 8, 4, 4), (2, 8, 4, 4), (2, 8, 4, 4), (2, 8, 1, 1)]
    """
    if feature.ndim == 4:
        return feature
    if feature.ndim == 2:
        return feature[:, :, None, None]
    if feature.ndim == 3:
        for extra in (0, 1, 2):  # none, a class token, DeiT's class and distillation tokens
            side = math.isqrt(max(feature.shape[1] - extra, 0))
            if side and side * side == feature.shape[1] - extra:
                return feature[:, extra:].transpose(1, 2).reshape(*feature.shape[::2], side, side)
    raise InputError(
        f"{where} gives {tuple(feature.shape)}",
        fix="tap a map (batch, channels, height, width), tokens (batch, tokens, channels) or a vector",
    )


def as_vector(feature: Tensor, where: str = "the tap") -> Tensor:
    """A vector from a vector, or the mean over a map's positions or over tokens.

    Raises: InputError: any other shape.

    >>> import torch
    >>> [tuple(as_vector(torch.zeros(shape)).shape) for shape in [(2, 8, 4, 4), (2, 17, 8), (2, 8)]]
    [(2, 8), (2, 8), (2, 8)]
    """
    if feature.ndim == 4:
        return feature.mean((2, 3))
    if feature.ndim == 3:
        return feature.mean(1)
    return as_map(feature, where).flatten(1)


def common_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps averaged down to the smaller height and width of the two.

    >>> import torch
    >>> [tuple(m.shape) for m in common_grid(torch.zeros(1, 3, 8, 2), torch.zeros(1, 5, 4, 4))]
    [(1, 3, 4, 2), (1, 5, 4, 2)]
    """
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a, b = (m if m.shape[2:] == size else functional.adaptive_avg_pool2d(m, size) for m in (a, b))
    return a, b


def align(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both features on the same grid, channels last: (batch, positions, channels).

    The finer of two maps (batch, channels, height, width) is averaged down to the coarser, and so are tokens
    (batch, tokens, channels) in their row; features of different kinds are averaged to one position.
    Raises: InputError: a feature has neither 2, 3 nor 4 dimensions.

    >>> import torch
    >>> [tuple(f.shape) for f in align(torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 2, 2))]
    [(2, 4, 8), (2, 4, 16)]
    """
    for feature in (student, teacher):
        if feature.ndim not in (2, 3, 4):
            raise InputError(f"a hint needs features of 2, 3 or 4 dimensions, got {tuple(feature.shape)}")
    if student.ndim != teacher.ndim:
        return _positions(student).mean(1, keepdim=True), _positions(teacher).mean(1, keepdim=True)
    if student.ndim == 4:
        student, teacher = common_grid(student, teacher)
    elif student.ndim == 3:
        count = min(student.shape[1], teacher.shape[1])
        student, teacher = (
            functional.adaptive_avg_pool1d(f.transpose(1, 2), count).transpose(1, 2) for f in (student, teacher)
        )
    return _positions(student), _positions(teacher)


def _positions(feature: Tensor) -> Tensor:
    if feature.ndim == 4:
        return feature.flatten(2).transpose(1, 2)
    return feature.unsqueeze(1) if feature.ndim == 2 else feature
