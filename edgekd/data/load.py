"""What `--data` may say, and who reads it."""

from __future__ import annotations

import os
from pathlib import Path

from edgekd.data.cifar import CIFAR10, CIFAR100, cifar_at, load_cifar, load_cifar_path
from edgekd.data.dataset import Dataset
from edgekd.data.fashion_mnist import idx_folder, load_fashion_mnist, load_idx_folder
from edgekd.data.folder import load_folder
from edgekd.data.npz import load_npz
from edgekd.errors import InputError, did_you_mean

NAMES = ("fashion-mnist", "cifar10", "cifar100")
_SMALLEST_IMAGE_PX = 8


def load_data(
    spec: str | None = None, *, image_size: int | None = None, skip_bad: bool = False, seed: int = 0
) -> Dataset:
    """A dataset by name, or from an image folder, an .npz file, a CIFAR archive or folder, or a folder of IDX files.

    spec: None takes EDGEKD_DATA where it is set, else fashion-mnist. image_size: px; None keeps the data's own.
    skip_bad: leave out images that cannot be decoded (counted in the note) instead of refusing the data.
    seed: of the held-out validation part.
    Raises: InputError: the data are not there or cannot be used; names the folder or file and the cure.
    """
    if image_size is not None and image_size < _SMALLEST_IMAGE_PX:
        raise InputError(f"image size {image_size} px is too small", fix=f"use at least {_SMALLEST_IMAGE_PX}")
    wanted = spec if spec is not None else os.environ.get("EDGEKD_DATA") or "fashion-mnist"
    if wanted == "fashion-mnist":
        return load_fashion_mnist(image_size=image_size, seed=seed)
    for kind in (CIFAR10, CIFAR100):
        if wanted == kind.name:
            return load_cifar(kind, image_size=image_size, seed=seed)
    return _load_path(wanted, image_size=image_size, skip_bad=skip_bad, seed=seed)


def _load_path(spec: str, *, image_size: int | None, skip_bad: bool, seed: int) -> Dataset:
    path = Path(spec).expanduser()
    if not path.exists():
        is_name = path.name == spec and not path.suffix
        fix = f"{did_you_mean(spec, NAMES)} or give a folder" if is_name else "give an existing folder or file"
        raise InputError("no such data", where=spec, fix=fix)
    if cifar_at(path) is not None:
        return load_cifar_path(path, image_size=image_size, seed=seed)
    if path.is_dir():
        if (found := idx_folder(path)) is not None:
            return load_idx_folder(found, image_size=image_size, seed=seed)
        return load_folder(path, image_size=image_size, skip_bad=skip_bad, seed=seed)
    if path.suffix == ".npz":
        return load_npz(path, image_size=image_size, skip_bad=skip_bad, seed=seed)
    fix = f"known: {', '.join(NAMES)}, an image folder, an .npz file, {CIFAR10.archive}, {CIFAR100.archive}"
    raise InputError("not data that edgekd reads", where=path, fix=fix)
