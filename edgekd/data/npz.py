"""Images in one NumPy archive, as pixels (x_train, y_train, ...) or as JPEGs (train_jpeg, train_offsets, ...).

Nothing in the archive is unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.data.assemble import assemble, check_labels, from_tensors, mirror_keeps_label
from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.data.encoded import check
from edgekd.errors import InputError

# (training images, labels, test images, labels)
_PIXEL_KEYS = (("x_train", "y_train", "x_test", "y_test"), ("x", "y", "xt", "yt"))
_LAYOUT = (
    "expected x_train, y_train, x_test, y_test, or train_jpeg, train_offsets, train_labels and the same for test or val"
)

Array = NDArray[Any]


@dataclass(frozen=True)
class _Blob:
    """JPEGs end to end in one array, as `Encoded`: image i is blob[offsets[i]:offsets[i + 1]]."""

    parts: tuple[tuple[str, Array, Array], ...]  # (key, blob, offsets)

    def __len__(self) -> int:
        return sum(len(offsets) - 1 for _, _, offsets in self.parts)

    def _place(self, i: int) -> tuple[str, Array, Array, int]:
        for key, blob, offsets in self.parts:
            if i < len(offsets) - 1:
                return key, blob, offsets, i
            i -= len(offsets) - 1
        raise IndexError(i)

    def read(self, i: int) -> bytes:
        _, blob, offsets, at = self._place(i)
        return bytes(blob[offsets[at] : offsets[at + 1]])

    def name(self, i: int) -> str:
        key, _, _, at = self._place(i)
        return f"{key}[{at}]"


def load_npz(path: Path, *, image_size: int | None, skip_bad: bool, seed: int) -> Dataset:
    """A dataset from an .npz file; class names from its `names` or `classes`, else numbers.

    Raises: InputError: not an .npz file, keys missing, wrong types, shapes or lengths, labels out of range, bad JPEGs.
    """
    arrays = _read(path)
    for keys in _PIXEL_KEYS:
        if all(key in arrays for key in keys):
            return _from_pixels(arrays, keys, path, image_size=image_size, seed=seed)
    test = next((part for part in ("test", "val") if f"{part}_jpeg" in arrays), "test")
    wanted = [f"{part}_{what}" for part in ("train", test) for what in ("jpeg", "offsets", "labels")]
    if not all(key in arrays for key in wanted):
        raise InputError(f"it holds {', '.join(sorted(arrays)[:8]) or 'nothing'}", where=path, fix=_LAYOUT)
    return _from_jpegs(arrays, ("train", test), path, image_size=image_size, skip_bad=skip_bad, seed=seed)


def _read(path: Path) -> dict[str, Array]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not hasattr(archive, "files"):
            raise InputError("a single array, not an .npz archive", where=path, fix=_LAYOUT)
        with archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"not a readable .npz archive ({error})", where=path, fix=_LAYOUT) from error


def _from_pixels(
    arrays: Mapping[str, Array], keys: tuple[str, ...], path: Path, *, image_size: int | None, seed: int
) -> Dataset:
    parts = [
        TensorSplit(_pixels(arrays[x], f"{path}: {x}"), _labels(arrays[y], len(arrays[x]), f"{path}: {y}"))
        for x, y in (keys[:2], keys[2:])
    ]
    classes = _classes(arrays, parts[0].labels)
    flip = mirror_keeps_label(parts[0].pixels.shape[1], classes)
    return from_tensors(
        *parts, image_size=image_size, name=path.stem, classes=classes, horizontal_flip=flip, seed=seed, where=path
    )


def _from_jpegs(
    arrays: Mapping[str, Array],
    parts: tuple[str, str],
    path: Path,
    *,
    image_size: int | None,
    skip_bad: bool,
    seed: int,
) -> Dataset:
    encoded = _Blob(tuple(_jpegs(arrays, part, path) for part in parts))
    counts = [len(offsets) - 1 for _, _, offsets in encoded.parts]
    train, test = (
        _labels(arrays[f"{part}_labels"], n, f"{path}: {part}_labels") for part, n in zip(parts, counts, strict=True)
    )
    classes = _classes(arrays, train)
    check_labels(train, test, classes, where=path)
    checked = check(encoded, image_size=image_size, where=path, skip_bad=skip_bad)
    return assemble(
        checked.split(range(counts[0]), train.tolist()),
        checked.split(range(counts[0], sum(counts)), test.tolist()),
        image_size=checked.image_size,
        name=path.stem,
        classes=classes,
        fingerprint=checked.fingerprint([*train.tolist(), *test.tolist()]),
        note=f"{len(checked.bad)} unreadable images skipped" if checked.bad else "",
        horizontal_flip=mirror_keeps_label(checked.channels, classes),
        seed=seed,
        where=path,
    )


def _jpegs(arrays: Mapping[str, Array], part: str, path: Path) -> tuple[str, Array, Array]:
    key = f"{part}_jpeg"
    blob, offsets = arrays[key], arrays[f"{part}_offsets"]
    whole = blob.dtype == np.uint8 and blob.ndim == 1 and offsets.ndim == 1 and offsets.dtype.kind in "iu"
    if (
        not whole
        or len(offsets) < 2
        or offsets[0] < 0
        or offsets[-1] > len(blob)
        or (np.diff(offsets.astype(np.int64)) < 0).any()
    ):
        what = f"{part}_offsets do not cut {key} into images"
        raise InputError(what, where=path, fix="offsets rise from 0 to the length of the uint8 array")
    return f"{path}: {key}", blob, offsets


def _pixels(array: Array, where: str) -> torch.Tensor:
    """Uint8 NHW, NHWC or NCHW to NCHW."""
    if array.dtype != np.uint8:
        raise InputError(f"holds {array.dtype}", where=where, fix="store pixels as uint8, 0 to 255")
    images = torch.from_numpy(array)
    if images.ndim == 3:
        return images.unsqueeze(1)
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise InputError(
        f"has shape {tuple(array.shape)}", where=where, fix="expected (N, H, W), (N, H, W, 1|3) or (N, 1|3, H, W)"
    )


def _labels(array: Array, count: int, where: str) -> torch.Tensor:
    flat = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise InputError(f"holds {array.dtype} {array.shape}", where=where, fix="expected one integer per image")
    if len(flat) != count:
        raise InputError(f"{len(flat)} labels for {count} images", where=where, fix="expected one integer per image")
    return torch.from_numpy(flat.astype(np.int64))


def _classes(arrays: Mapping[str, Array], labels: torch.Tensor) -> tuple[str, ...]:
    for key in ("names", "classes"):
        if key in arrays and arrays[key].ndim == 1:
            return tuple(str(name) for name in arrays[key])
    return tuple(str(i) for i in range(int(labels.max()) + 1 if len(labels) else 0))
