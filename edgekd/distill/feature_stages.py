"""Taps that fit any model: `stage:K`, the last feature of the K-th resolution; `head`, the input of the last Linear.

A recipe is written once for models of different module names; these are turned into paths with the models at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.sources import device_of, evaluating
from edgekd.errors import InputError

QUARTERS = 4  # what a row of transformer blocks is divided into


def real_tap(model: nn.Module, tap: str, example: Tensor) -> str:
    """The path of `stage:K` (0 the first, -1 the last) or `head` in a model; any other tap as it is.

    Raises: InputError: the model has no such stage, or no Linear.
    """
    if tap != "head" and not tap.startswith("stage:"):
        return tap
    stages, head = _seen(model, example)
    name = type(model).__name__
    if tap == "head":
        if head is None:
            raise InputError(f"tap 'head': {name} has no Linear", fix="name a module path")
        return f"{head}@in"
    try:
        return stages[int(tap.removeprefix("stage:"))]
    except (ValueError, IndexError) as error:
        raise InputError(
            f"tap '{tap}': {name} has stages 0 to {len(stages) - 1}", fix="count from the end: -1"
        ) from error


def feature_stages(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Module paths from shallow to deep: where each resolution of the feature maps ends, or quarters of the blocks.

    example: (batch, channels, height, width), the model's input.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    >>> feature_stages(net, torch.zeros(1, 1, 4, 4))
    ('1', '2')
    """
    return _seen(model, example)[0]


def _seen(model: nn.Module, example: Tensor) -> tuple[tuple[str, ...], str | None]:
    """Stages, and the last Linear."""
    fired: list[tuple[str, Any]] = []
    linears: list[str] = []

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, _inputs: Any, output: Any) -> None:
            fired.append((name, output.shape if isinstance(output, Tensor) else None))
            if isinstance(module, nn.Linear):
                linears.append(name)

        return note

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(noting(name)).remove)
        with torch.no_grad(), evaluating(model):
            model(example.to(device_of(model)))
    names = [name for name, _ in fired]
    shapes = {name: shape for name, shape in fired if names.count(name) == 1 and shape is not None}
    return _quarters(model, shapes) or _resolutions(shapes), linears[-1] if linears else None


def _quarters(model: nn.Module, shapes: dict[str, torch.Size]) -> tuple[str, ...]:
    """The ends of the quarters of the outermost row (the longest of several) of blocks that give tokens."""
    rows = [
        [f"{name}.{child}" for child, _ in module.named_children()]
        for name, module in model.named_modules()
        if name and isinstance(module, (nn.Sequential, nn.ModuleList))
    ]
    rows = [row for row in rows if len(row) > 1 and all(len(shapes.get(block, ())) == 3 for block in row)]
    if not rows:
        return ()
    row = min(rows, key=lambda row: (row[0].count("."), -len(row)))
    ends = dict.fromkeys(max(1, round(len(row) * k / QUARTERS)) - 1 for k in range(1, QUARTERS + 1))
    return tuple(row[end] for end in ends)


def _resolutions(shapes: dict[str, torch.Size]) -> tuple[str, ...]:
    """The last module of each map size, largest first; a container fires after what is in it and so is preferred."""
    ends: dict[tuple[int, int], str] = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            ends[(shape[2], shape[3])] = name
    return tuple(ends[size] for size in sorted(ends, key=lambda size: -size[0] * size[1]))
