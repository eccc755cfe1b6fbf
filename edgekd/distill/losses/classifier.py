"""The classifier of a model: the linear layer that makes its logits, which a few methods read or reuse."""

from __future__ import annotations

from torch import nn

from edgekd.distill.taps import resolve
from edgekd.errors import InputError


def classifier_of(model: nn.Module | None, path: str | None = None, *, who: str = "the model") -> nn.Linear:
    """The Linear at `path`, or the last one of the model.

    Raises: InputError: no such layer, or nothing to look into (a file in another runtime).

    >>> classifier_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 10)))
    Linear(in_features=4, out_features=10, bias=True)
    """
    found = [] if model is None else [resolve(model, path)] if path else list(model.modules())
    linears = [module for module in found if isinstance(module, nn.Linear)]
    if not linears:
        at = f" at '{path}'" if path else ""
        raise InputError(
            f"{who} has no Linear classifier{at} to look into", fix="name its path, or take another method"
        )
    return linears[-1]
