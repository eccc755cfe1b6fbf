"""Batches as a pure function of (seed, step): a position in the data is one number, so a resumed run sees what the
uninterrupted one would have seen, and every process of a distributed run sees its slice of the same batch.

The samples are an endless row of permutations of the training split, cut into batches; no image is dropped.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from edgekd.data.augmentation import augment
from edgekd.data.dataset import Dataset
from edgekd.distill.training import Training


@dataclass(frozen=True)
class Batch:
    """What every source and loss may read. images: the student's normalised input, float32 (batch, C, H, W);
    labels, index: int64 (batch,); progress: share of the stage that is done, in [0, 1)."""

    images: Tensor
    labels: Tensor
    index: Tensor
    step: int
    progress: float


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and words; unlike `seed + step`, near inputs give unrelated streams.

    >>> seed_of(0, "augment", 1) != seed_of(1, "augment", 0)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(size: int, *, seed: int, epoch: int) -> Tensor:
    """The order of one pass, int64 (size,)."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_of(seed, "order", epoch)))


@dataclass(frozen=True)
class Share:
    """Which process of how many; each takes every world-th sample of a batch."""

    rank: int = 0
    world: int = 1


class BatchStream:
    """The batches of one stage, made one ahead in a thread. Use as a context manager, so that the thread ends.

    training.batch_size counts the samples over all processes.
    """

    def __init__(self, dataset: Dataset, training: Training, *, device: torch.device, share: Share) -> None:
        self.dataset, self.device, self.share = dataset, device, share
        self.batch_size, self.seed, self.shift_px = training.batch_size, training.seed, training.shift_px
        self.steps = training.steps_for(len(dataset.train))
        self._order: dict[int, Tensor] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edgekd-batches")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def index(self, step: int) -> Tensor:
        """Sample numbers of the whole batch of a step, int64 (batch_size,)."""
        size = len(self.dataset.train)
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while position < end:
            epoch, offset = divmod(position, size)
            parts.append(self._permutation(epoch)[offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._order:
            self._order = {old: order for old, order in self._order.items() if old == epoch - 1}
            self._order[epoch] = permutation(len(self.dataset.train), seed=self.seed, epoch=epoch)
        return self._order[epoch]

    def at(self, step: int) -> Batch:
        """The batch of a step, made here and now."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "augment", step))
        index = self.index(step)
        pixels = self.dataset.train.images(index)
        # The whole batch is augmented before it is cut, so that a sample's draw does not depend on the process count.
        pixels = augment(pixels, generator=generator, flip=self.dataset.horizontal_flip, shift_px=self.shift_px)
        mine = slice(self.share.rank, None, self.share.world)
        index, pixels = index[mine], pixels[mine]
        labels = self.dataset.train.labels[index]
        images = self.dataset.preprocessing.normalise(self._send(pixels))
        return Batch(images, self._send(labels), self._send(index), step, step / self.steps)

    def _send(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def take(self, step: int) -> Batch:
        """The batch of a step, from the thread where it was expected; the next one is started."""
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self.at(step)
        if step + 1 < self.steps:
            self._ahead = (step + 1, self._pool.submit(self.at, step + 1))
        return batch
