"""The tiny data set and a small teacher as the files that a run reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from edgekd.data import Dataset
from edgekd.teachers import save_teacher
from edgekd.teachers.wide_resnet import WideResNet


def tiny_npz(folder: Path, dataset: Dataset) -> Path:
    """`tiny.npz` with the training and test images and their labels."""
    splits = {"train": dataset.train, "test": dataset.test}
    arrays = {f"x_{name}": split.images(range(len(split))).numpy() for name, split in splits.items()}
    arrays |= {f"y_{name}": split.labels.numpy() for name, split in splits.items()}
    np.savez(folder / "tiny.npz", **arrays)
    return folder / "tiny.npz"


def teacher_file(
    folder: Path,
    dataset: Dataset,
    *,
    name: str = "teacher",
    depth: int = 10,
    width: int = 1,
    model: nn.Module | None = None,
) -> Path:
    """`NAME.safetensors`: a wide ResNet for the data, `model` or an untrained one."""
    pre = dataset.preprocessing
    facts = {
        "architecture": f"edgekd:wrn{depth}-{width}",
        "num_classes": dataset.num_classes,
        "in_channels": pre.channels,
        "image_size": pre.image_size,
        "mean": list(pre.mean),
        "std": list(pre.std),
    }
    model = model or WideResNet(depth, width, num_classes=dataset.num_classes, in_channels=pre.channels)
    return save_teacher(model.eval(), folder / f"{name}.safetensors", facts)
