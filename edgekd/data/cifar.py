"""CIFAR-10 and CIFAR-100 in their Python form (Krizhevsky 2009): the .tar.gz as published, or its folder.

The batches are pickles. They are read by an unpickler that can build dicts, lists, strings, numbers and NumPy arrays
and refuses everything else, so a file that only calls itself CIFAR cannot run code.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from edgekd.data.assemble import from_tensors
from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.data.download import cache_folder, fetch
from edgekd.errors import InputError

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
Reader = Callable[[str], bytes]


@dataclass(frozen=True)
class Cifar:
    """Names inside one of the two archives. MD5 as in torchvision 0.29, torchvision/datasets/cifar.py."""

    name: str
    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    meta: str
    class_names: str


CIFAR10 = Cifar(
    name="cifar10",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    labels="labels",
    meta="batches.meta",
    class_names="label_names",
)
CIFAR100 = Cifar(
    name="cifar100",
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    labels="fine_labels",
    meta="meta",
    class_names="fine_label_names",
)


def load_cifar(kind: Cifar, *, image_size: int | None, seed: int) -> Dataset:
    """By name: from the folder in EDGEKD_DATA, the cache, or a download into the cache.

    Raises: InputError: none of them has it; says where to put the archive.
    """
    cached = cache_folder() / kind.name
    named = os.environ.get("EDGEKD_DATA")
    for place in [*([Path(named).expanduser()] if named else []), cached]:
        for path in (place, place / kind.archive):
            if cifar_at(path) is kind:
                return load_cifar_path(path, image_size=image_size, seed=seed)
    why_not = fetch(BASE_URL, {kind.archive: kind.md5}, cached)
    if why_not is not None:
        fix = f"pass --data FOLDER/{kind.archive}, or put that file into {cached}"
        raise InputError(f"data '{kind.name}' is not on this machine and {why_not}", fix=fix)
    return load_cifar_path(cached / kind.archive, image_size=image_size, seed=seed)


def cifar_at(path: Path) -> Cifar | None:
    """Which of the two an archive (by its name) or a folder (by its files) is, or None."""
    for kind in (CIFAR10, CIFAR100):
        if path.is_file() and path.name == kind.archive:
            return kind
        if any((base / kind.meta).is_file() and (base / kind.test).is_file() for base in (path, path / kind.folder)):
            return kind
    return None


def load_cifar_path(path: Path, *, image_size: int | None, seed: int) -> Dataset:
    """The published archive (its MD5 is checked) or an extracted folder.

    Raises: InputError: neither, another MD5, a batch missing or damaged, or a pickle that wants more than arrays.
    """
    kind = cifar_at(path)
    if kind is None:
        raise InputError("not a CIFAR archive or folder", where=path, fix=f"expected {CIFAR100.archive} or its folder")
    read = _archive_reader(path, kind) if path.is_file() else _folder_reader(path, kind)
    batches = [_batch(read(name), kind, where=f"{path}: {name}") for name in (*kind.train, kind.test)]
    train = TensorSplit(torch.cat([b.pixels for b in batches[:-1]]), torch.cat([b.labels for b in batches[:-1]]))
    names = restricted_unpickle(read(kind.meta), where=f"{path}: {kind.meta}").get(kind.class_names)
    if not isinstance(names, list):
        raise InputError(f"no '{kind.class_names}'", where=f"{path}: {kind.meta}", fix="fetch the archive again")
    return from_tensors(
        train,
        batches[-1],
        image_size=image_size,
        name=kind.name,
        classes=tuple(str(name) for name in names),
        horizontal_flip=True,
        seed=seed,
        where=path,
    )


class _ArraysOnly(pickle.Unpickler):
    """Builds what a CIFAR batch holds and nothing else."""

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes in protocol 2
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._ALLOWED[module_name, global_name]
        except KeyError as error:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from error


def restricted_unpickle(data: bytes, *, where: object) -> dict[str, Any]:
    """A dict of plain values and arrays. Raises: InputError: damaged, or it asks for any other class or function."""
    try:
        document = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"not a CIFAR batch ({error})", where=where, fix="fetch the archive again") from error
    if not isinstance(document, dict):
        raise InputError("not a CIFAR batch", where=where, fix="fetch the archive again")
    return document


def _batch(data: bytes, kind: Cifar, *, where: str) -> TensorSplit:
    document = restricted_unpickle(data, where=where)
    rows, labels = document.get("data"), document.get(kind.labels)
    good = isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1] == 3072
    if not good or rows is None or not isinstance(labels, list) or len(labels) != len(rows):
        raise InputError(f"no 'data' (N, 3072) with '{kind.labels}' (N)", where=where, fix="fetch the archive again")
    pixels = torch.from_numpy(np.array(rows)).view(-1, 3, 32, 32)
    return TensorSplit(pixels, torch.tensor(labels, dtype=torch.int64))


def _folder_reader(path: Path, kind: Cifar) -> Reader:
    base = path if (path / kind.meta).is_file() else path / kind.folder

    def read(name: str) -> bytes:
        try:
            return (base / name).read_bytes()
        except OSError as error:
            raise InputError(f"'{name}' is missing", where=base, fix="extract the archive again") from error

    return read


def _archive_reader(path: Path, kind: Cifar) -> Reader:
    data = path.read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != kind.md5:
        raise InputError(f"MD5 is {md5}, expected {kind.md5}", where=path, fix="cut short or changed; fetch it again")

    def read(name: str) -> bytes:
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                member = archive.extractfile(f"{kind.folder}/{name}")
                return member.read() if member else b""
        except (KeyError, tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise InputError(f"'{name}' cannot be read ({error})", where=path, fix="fetch the archive again") from error

    return read
