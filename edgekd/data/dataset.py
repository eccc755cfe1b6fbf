"""Splits and datasets: uint8 images with labels, in memory or behind a decoder. Nothing here reads files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from edgekd.data.preprocessing import Preprocessing
from edgekd.errors import InputError

SplitName = Literal["train", "val", "test"]
Index = Tensor | Sequence[int]

CACHE_LIMIT_BYTES = 2 * 2**30  # images are kept decoded in memory below this, else made on the fly
_CHUNK = 512


class Split(Protocol):
    """Images by index, all of one size."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        ...

    def __len__(self) -> int: ...

    def images(self, index: Index) -> Tensor:
        """Uint8 (len(index), channels, image_size, image_size)."""
        ...


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """A split in memory: uint8 (N, channels, height, width) and int64 (N,).

    Raises: ValueError: other dtypes or shapes, or different lengths.

    >>> split = TensorSplit(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0]))
    >>> len(split), tuple(split.images([2, 0]).shape)
    (3, (2, 1, 4, 4))
    """

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or self.labels.dtype != torch.int64:
            raise ValueError(f"expected uint8 NCHW and int64 labels, got {self.pixels.dtype}, {self.labels.dtype}")
        if len(self.pixels) != len(self.labels):
            raise ValueError(f"{len(self.pixels)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Index) -> Tensor:
        """Uint8 (len(index), channels, height, width), a copy."""
        return self.pixels.index_select(0, torch.as_tensor(index, dtype=torch.int64))


@dataclass(frozen=True, eq=False)
class View:
    """Some samples of another split, in the order of `index`; shares its images."""

    source: Split
    index: Tensor

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        return self.source.labels[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def images(self, index: Index) -> Tensor:
        """Uint8 (len(index), channels, image_size, image_size)."""
        return self.source.images(self.index[torch.as_tensor(index, dtype=torch.int64)])


@dataclass(frozen=True, eq=False)
class ResizedSplit:
    """Another split, fitted to a square size as it is read."""

    source: Split
    image_size: int

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def images(self, index: Index) -> Tensor:
        """Uint8 (len(index), channels, image_size, image_size)."""
        return fit_square(self.source.images(index), self.image_size)


@dataclass(frozen=True)
class Dataset:
    """Images of named classes in three splits. `val` is held out of the training images; `test` is never trained on.

    horizontal_flip: whether a mirrored image keeps its label. note: what a report must say beside the numbers, or "".
    fingerprint: sha256 over labels and image bytes; it changes when the data change.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    preprocessing: Preprocessing
    fingerprint: str
    note: str = ""
    horizontal_flip: bool = False

    @property
    def num_classes(self) -> int:
        """How many classes."""
        return len(self.classes)

    def split(self, name: SplitName) -> Split:
        """One of the three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def at(self, image_size: int) -> Dataset:
        """The same images as a model of another input size gets them: fitted to it as they are read."""
        if image_size == self.preprocessing.image_size:
            return self
        digest = hashlib.sha256(f"{self.fingerprint} at {image_size} px".encode())
        return replace(
            self,
            train=ResizedSplit(self.train, image_size),
            val=ResizedSplit(self.val, image_size),
            test=ResizedSplit(self.test, image_size),
            preprocessing=replace(self.preprocessing, image_size=image_size),
            fingerprint=digest.hexdigest(),
        )

    def sample(self, split: SplitName, n: int, seed: int = 0) -> Tensor:
        """Up to `n` sample indices of a split, int64 (n,), in proportion to its classes and the same for a seed."""
        return stratified_order(self.split(split).labels, seed)[:n]


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A permutation whose every prefix holds the classes in their proportions, each class from its first sample on.

    Shapes: int64 (N,) -> int64 (N,).

    >>> labels = torch.tensor([0] * 6 + [1] * 3)
    >>> labels[stratified_order(labels, seed=1)[:3]].bincount().tolist()
    [2, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    # The k-th of m samples of a class comes at position k/m of the whole; equal positions stay in shuffled order.
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    present = counts[counts > 0]
    position = torch.cat([torch.arange(int(m), dtype=torch.float64) / int(m) for m in present] or [torch.empty(0)])
    ties = torch.randperm(len(labels), generator=generator)
    return by_class[ties][torch.argsort(position[ties], stable=True)]


def hold_out(source: Split, *, seed: int) -> tuple[View, View]:
    """(train, val) of a training split: 5,000 images for val from 50,000 on, else a tenth, at least one of each class.

    Raises: InputError: a class has fewer than two images.
    """
    counts = torch.bincount(source.labels)
    if int(counts.min()) < 2:
        raise InputError(
            f"too few images: class {int(counts.argmin())} has {int(counts.min())} for training",
            fix="every class needs at least 2 (one is held out for validation)",
        )
    total = len(source)
    size = max(5000 if total >= 50_000 else total // 10, len(counts))
    order = stratified_order(source.labels, seed)
    return View(source, order[size:].sort().values), View(source, order[:size].sort().values)


def fit_square(images: Tensor, image_size: int) -> Tensor:
    """Resize the shorter side (bilinear, antialiased) and crop the centre: uint8 NCHW -> uint8 (N, C, size, size).

    >>> fit_square(torch.full((1, 3, 10, 20), 7, dtype=torch.uint8), 5).unique().tolist()
    [7]
    """
    height, width = images.shape[2:]
    if (height, width) == (image_size, image_size):
        return images
    factor = image_size / min(height, width)
    size = (max(image_size, round(height * factor)), max(image_size, round(width * factor)))
    scaled = functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    top, left = (size[0] - image_size) // 2, (size[1] - image_size) // 2
    cropped = scaled[:, :, top : top + image_size, left : left + image_size]
    return cropped.round_().clamp_(0, 255).to(torch.uint8)


def resized(split: TensorSplit, image_size: int) -> Split:
    """The split at another size: kept in memory where it fits, else resized as it is read."""
    if tuple(split.pixels.shape[2:]) == (image_size, image_size):
        return split
    if len(split) * split.pixels.shape[1] * image_size**2 > CACHE_LIMIT_BYTES:
        return ResizedSplit(split, image_size)
    parts = [fit_square(chunk, image_size) for chunk in torch.split(split.pixels, _CHUNK)]
    return TensorSplit(torch.cat(parts), split.labels)


def channel_statistics(
    split: Split, *, element_limit: int = 200_000_000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel / 255 per channel, to 4 decimals, over all images or an even sample of them.

    A channel that never varies gets the std of one grey level, so that dividing by it stays finite.
    """
    first = split.images([0])
    count = max(1, min(len(split), element_limit // first[0].numel()))
    index = torch.linspace(0, len(split) - 1, count).long()
    total = torch.zeros(first.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(index, _CHUNK):
        pixels = split.images(chunk).double()
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    n = count * first.shape[2] * first.shape[3]
    mean = total / n
    std = (squares / n - mean.square()).clamp_min(1.0).sqrt()
    return tuple(round(float(v) / 255, 4) for v in mean), tuple(round(float(v) / 255, 4) for v in std)


def fingerprint_of(*splits: TensorSplit, image_size: int) -> str:
    """Hex sha256 over the size, the labels and every pixel."""
    digest = hashlib.sha256(f"image_size {image_size}".encode())
    for split in splits:
        digest.update(str(tuple(split.pixels.shape)).encode())
        digest.update(split.labels.contiguous().numpy().data)
        digest.update(split.pixels.contiguous().numpy().data)
    return digest.hexdigest()
