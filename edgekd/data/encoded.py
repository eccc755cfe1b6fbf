"""Encoded images (JPEG, PNG, ...) from files or from one array: checked whole, then cached or decoded as they are read.

Every image is decoded once at load time, because a truncated file must not surface an hour into a training run.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from edgekd.data.dataset import CACHE_LIMIT_BYTES, Index, Split, TensorSplit
from edgekd.errors import InputError

LARGE_IMAGE_SIZE = 224
_CHUNK = 16
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_T = TypeVar("_T")


class Encoded(Protocol):
    """Encoded images by number."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """The bytes of one image."""
        ...

    def name(self, i: int) -> str:
        """What to call it in an error: its path, or its place in an array."""
        ...


@dataclass(frozen=True)
class Checked:
    """What decoding everything once found: the pixels where they fit in memory, digests, and the bad with reasons."""

    encoded: Encoded
    image_size: int
    channels: int
    pixels: Tensor | None
    digests: Sequence[str]
    bad: dict[int, str] = field(default_factory=dict)

    def split(self, rows: Sequence[int], labels: Sequence[int]) -> Split:
        """The good images among `rows`, with their labels."""
        kept = [(row, label) for row, label in zip(rows, labels, strict=True) if row not in self.bad]
        index = torch.tensor([row for row, _ in kept], dtype=torch.int64)
        numbers = torch.tensor([label for _, label in kept], dtype=torch.int64)
        if self.pixels is not None:
            return TensorSplit(self.pixels[index], numbers)
        return EncodedSplit(self.encoded, index, numbers, self.image_size, self.channels)

    def fingerprint(self, labels: Sequence[int]) -> str:
        """Hex sha256 over the size, the labels and the bytes of every good image, in order."""
        digest = hashlib.sha256(f"image_size {self.image_size} channels {self.channels}".encode())
        for row, (label, one) in enumerate(zip(labels, self.digests, strict=True)):
            if row not in self.bad:
                digest.update(f"{label} {one}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """A split that decodes as it is read, for data that do not fit in memory."""

    encoded: Encoded
    index: Tensor
    labels: Tensor
    image_size: int
    channels: int

    def __len__(self) -> int:
        return len(self.index)

    def images(self, index: Index) -> Tensor:
        """Uint8 (len(index), channels, image_size, image_size). Raises: InputError: a file has gone or changed."""
        rows = self.index[torch.as_tensor(index, dtype=torch.int64)].tolist()
        return torch.from_numpy(np.stack(_in_threads(self._one, rows)))

    def _one(self, row: int) -> NDArray[np.uint8]:
        try:
            return decode(self.encoded.read(row), image_size=self.image_size, channels=self.channels)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read any more ({error})", where=self.encoded.name(row)) from error


def check(encoded: Encoded, *, image_size: int | None, where: object, skip_bad: bool) -> Checked:
    """Decode every image once, in threads.

    Raises: InputError: an image cannot be decoded (the first is named) and skip_bad is off, or all are bad.
    """
    headers = [h for h in _in_threads(lambda i: _header(encoded, i), range(len(encoded))) if h is not None]
    size = image_size or common_size([h[0] for h in headers])
    channels = 1 if headers and all(h[1] in _GREY_MODES for h in headers) else 3
    fits = len(encoded) * channels * size * size <= CACHE_LIMIT_BYTES
    pixels = np.zeros((len(encoded), channels, size, size), dtype=np.uint8) if fits else None
    digests: list[str] = []
    bad: dict[int, str] = {}

    def one(i: int) -> tuple[str, str]:
        try:
            data = encoded.read(i)
            image = decode(data, image_size=size, channels=channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return "", _reason(error)
        if pixels is not None:
            pixels[i] = image
        return hashlib.sha256(data).hexdigest(), ""

    for i, (digest, reason) in enumerate(_in_threads(one, range(len(encoded)))):
        digests.append(digest)
        if reason:
            bad[i] = reason
    _judge(encoded, bad, where=where, skip_bad=skip_bad)
    return Checked(encoded, size, channels, None if pixels is None else torch.from_numpy(pixels), digests, bad)


def common_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The side of the images where all are equal squares; else their median shorter side, at most 224 px.

    >>> common_size([(32, 32), (32, 32)]), common_size([(640, 480), (512, 512)]), common_size([(60, 50), (40, 40)])
    (32, 224, 45)
    """
    if not sizes:
        return LARGE_IMAGE_SIZE
    if len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1]:
        return sizes[0][0]
    return min(LARGE_IMAGE_SIZE, int(statistics.median(min(size) for size in sizes)))


def decode(data: bytes, *, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Bytes to uint8 (channels, image_size, image_size): EXIF rotation, RGB or grey, centre square, bilinear.

    Raises: OSError, ValueError: not an image, or cut short.
    """
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        image: Any = ImageOps.exif_transpose(opened)
        image = _eight_bit(image).convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    if image.size != (image_size, image_size):
        left, top = (image.size[0] - side) / 2, (image.size[1] - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None].copy() if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _eight_bit(image: Any) -> Any:
    """16-bit greys to 8 bits: PIL's own conversion clips them at 255 instead of scaling."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; store 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))


def _header(encoded: Encoded, i: int) -> tuple[tuple[int, int], str] | None:
    """(width, height) and mode without decoding; None where even that fails (decoding will say why)."""
    try:
        with Image.open(io.BytesIO(encoded.read(i))) as image:
            return image.size, image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _reason(error: BaseException) -> str:
    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__


def _judge(encoded: Encoded, bad: dict[int, str], *, where: object, skip_bad: bool) -> None:
    if not bad:
        return
    first = min(bad)
    if len(bad) == len(encoded):
        raise InputError(f"none of the {len(encoded)} files is an image (first: {encoded.name(first)})", where=where)
    if not skip_bad:
        more = f" (and {len(bad) - 1} more of {len(encoded)})" if len(bad) > 1 else ""
        what = f"cannot be decoded: {bad[first]}{more}"
        raise InputError(what, where=encoded.name(first), fix="repair or remove it, or pass --skip-bad")


def _in_threads(function: Callable[[int], _T], numbers: Iterable[int]) -> list[_T]:
    """Results in order; decoding releases the interpreter lock. Chunked: a task costs about as much as a thumbnail."""
    every = list(numbers)
    chunks = [every[i : i + _CHUNK] for i in range(0, len(every), _CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # PIL warns of odd EXIF and of large images; both decode
        return [one for done in pool.map(lambda chunk: [function(i) for i in chunk], chunks) for one in done]
