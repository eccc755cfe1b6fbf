"""Checks of constructor arguments: one line each, the same words everywhere."""

from __future__ import annotations

from torch import Tensor

from edgekd.distill.sources import Signals
from edgekd.errors import InputError


def positive(**values: float) -> None:
    """Raises: ValueError: a value is not above 0 (nan is not), or infinite.

    >>> positive(temperature=-1.0)
    Traceback (most recent call last):
    ValueError: temperature must be positive and finite, got -1.0
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def not_negative(**values: float) -> None:
    """Raises: ValueError: a value is below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def share(**values: float) -> None:
    """Raises: ValueError: a value is outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def same_classes(student: Signals, teacher: Signals) -> None:
    """Raises: InputError: the two have different classes, or logits that are not (batch, classes)."""
    if student.logits.ndim != 2:
        raise InputError(f"the student's logits have shape {tuple(student.logits.shape)}", fix="give (batch, classes)")
    if student.logits.shape != teacher.logits.shape:
        raise InputError(
            f"the student has {student.logits.shape[-1]} classes, the teacher {teacher.logits.shape[-1]}",
            fix="use a teacher of the data's classes, or replace its last layer and fine-tune it",
        )


def several_values(feature: Tensor, method: str) -> None:
    """Raises: InputError: a batch norm behind this feature (batch, channels, ...) would see one value per channel."""
    if feature.numel() // feature.shape[1] < 2:
        raise InputError(
            f"{method} normalises over the batch, but gets one image of {tuple(feature.shape[1:])}",
            fix="give a larger batch_size",
        )


def several_images(student: Signals, method: str) -> None:
    """Raises: InputError: the batch holds one image, and the method compares images or normalises over them."""
    if len(student.logits) < 2:
        raise InputError(f"{method} needs a batch of at least 2 images per process", fix="give a larger batch_size")
