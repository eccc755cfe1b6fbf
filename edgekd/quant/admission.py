"""What a model and its calibration images must be before anything is traced: each refusal in one line."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from edgekd.errors import InputError


def require_usable(model: nn.Module) -> None:
    """Raises: InputError: a weight is NaN or infinite (the tensor is named), or the model takes several inputs."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            fix = "the training diverged, or the file is damaged"
            raise InputError(
                f"{bad} of {value.numel()} values of '{name}' are NaN or infinite", where="weights", fix=fix
            )
    inputs = _required_inputs(model)
    if len(inputs) > 1:
        raise InputError(f"the model takes {len(inputs)} inputs ({', '.join(inputs)})", fix="wrap it to take one image")


def _required_inputs(model: nn.Module) -> list[str]:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a compiled forward has no signature
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]


def calibration_images(batches: Iterable[Tensor]) -> list[Tensor]:
    """The calibration batches, each (batch, channels, height, width) and all of one image shape.

    Raises: InputError: none, not normalised float images, of several shapes, NaN or infinite, or all one value.
    """
    images = [batch for batch in batches if len(batch)]
    if not images:
        raise InputError("no calibration images", fix="give at least one batch from the training split")
    for index, batch in enumerate(images):
        _require_images(batch, images[0].shape[1:], f"calibration batch {index}")
    lows, highs = zip(*((float(b.min()), float(b.max())) for b in images), strict=True)
    if min(lows) == max(highs):
        fix = "give images of the training split through the model's own preprocessing"
        raise InputError(f"every calibration value is {lows[0]:g}", where="calibration", fix=fix)
    return images


def _require_images(batch: Tensor, shape: torch.Size, where: str) -> None:
    if batch.ndim != 4 or not batch.is_floating_point():
        raise InputError(
            f"shape {tuple(batch.shape)}, {batch.dtype}",
            where=where,
            fix="expected float (batch, channels, height, width)",
        )
    if batch.shape[1:] != shape:
        raise InputError(f"images of {tuple(batch.shape[1:])} after {tuple(shape)}", where=where, fix="use one size")
    if not torch.isfinite(batch).all():
        raise InputError("NaN or infinite values", where=where, fix="check the files and the preprocessing")


def single(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same images one by one."""
    return (batch[index : index + 1] for batch in batches for index in range(len(batch)))
