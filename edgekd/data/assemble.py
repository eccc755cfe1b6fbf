"""From pixels and labels of a training and a test part to a checked `Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from edgekd.data.dataset import (
    Dataset,
    Split,
    TensorSplit,
    channel_statistics,
    fingerprint_of,
    hold_out,
    resized,
)
from edgekd.data.preprocessing import Preprocessing
from edgekd.errors import InputError


class Facts(TypedDict, total=False):
    """What is known of a dataset beyond its samples; `val` is the held-out part where the data bring their own."""

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    note: str
    horizontal_flip: bool
    seed: int
    where: object
    val: Split | None


def from_tensors(train: TensorSplit, test: TensorSplit, *, image_size: int | None, **facts: Unpack[Facts]) -> Dataset:
    """A dataset of images in memory, at their own size (the shorter side) or at `image_size`.

    Raises: InputError: see `assemble`; the parts have different shapes.
    """
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InputError(
            f"training images are {tuple(train.pixels.shape[1:])} but test images are {tuple(test.pixels.shape[1:])}",
            where=facts["where"],
            fix="store both with the same shape",
        )
    size = image_size or min(train.pixels.shape[2:])
    check_labels(train.labels, test.labels, facts["classes"], where=facts["where"])
    facts["fingerprint"] = fingerprint_of(train, test, image_size=size)
    return assemble(resized(train, size), resized(test, size), image_size=size, **facts)


def assemble(train: Split, test: Split, *, image_size: int, **facts: Unpack[Facts]) -> Dataset:
    """Hold out a validation part and measure mean and std on the training part (before holding out).

    Raises: InputError: a label is out of range, a class is missing, or there are too few images.
    """
    where = facts["where"]
    check_labels(train.labels, test.labels, facts["classes"], where=where)
    val = facts.get("val")
    try:
        kept, val = (train, val) if val is not None else hold_out(train, seed=facts.get("seed", 0))
    except InputError as error:
        raise InputError(error.what, where=where, fix=error.fix) from error
    mean, std = channel_statistics(train)
    return Dataset(
        name=facts["name"],
        classes=facts["classes"],
        train=kept,
        val=val,
        test=test,
        preprocessing=Preprocessing(image_size=image_size, channels=len(mean), mean=mean, std=std),
        fingerprint=facts["fingerprint"],
        note=facts.get("note", ""),
        horizontal_flip=facts.get("horizontal_flip", False),
    )


def check_labels(train: Tensor, test: Tensor, classes: Sequence[str], *, where: object) -> None:
    """Every label names a class, every class has training images, and there are images to test on.

    Raises: InputError: one of these does not hold.
    """
    if len(classes) < 2:
        raise InputError(f"only {len(classes)} class", where=where, fix="a classifier needs at least 2 classes")
    if not len(test):
        raise InputError("no test images", where=where, fix="add images that are never trained on")
    for part, labels in (("training", train), ("test", test)):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            what = f"{part} label {bad} is out of range: there are {len(classes)} classes (0 to {len(classes) - 1})"
            raise InputError(what, where=where, fix="number the classes from 0 without gaps")
    counts = torch.bincount(train, minlength=len(classes))
    if int(counts.min()) < 2:
        scarce = int(counts.argmin())
        raise InputError(
            f"too few images: class '{classes[scarce]}' has {int(counts[scarce])} for training",
            where=where,
            fix="every class needs at least 2 (one is held out for validation)",
        )


def mirror_keeps_label(channels: int, classes: Sequence[str]) -> bool:
    """Whether to mirror images of unknown origin: colour photographs yes; grey images and digit-like classes no.

    >>> mirror_keeps_label(3, ["cat", "dog"]), mirror_keeps_label(3, ["0", "1"]), mirror_keeps_label(1, ["cat", "dog"])
    (True, False, False)
    """
    return channels == 3 and not all(len(name) <= 2 or name.isdigit() for name in classes)
