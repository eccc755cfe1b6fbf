"""Batches as a pure function of (seed, step): a position in the data is one number, so a resumed run sees what the
uninterrupted one would have seen, and every process of a distributed run sees its slice of the same batch.

The samples are an endless row of permutations of the training split, cut into batches; no image is dropped.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd.data.augmentation import augment, moved
from edgekd.data.dataset import Dataset
from edgekd.distill.mixing import Mixing, draw_mixing
from edgekd.distill.training import Training

PROBES = 3
# Another thread's batch costs switches of the interpreter: measured 0.05 ms on an idle machine, 7 ms on a busy one.
WORTH_A_THREAD_S = 3e-4


@dataclass(frozen=True)
class Batch:
    """What every source and loss may read. images: the student's normalised input, float32 (batch, C, H, W);
    labels, index: int64 (batch,); progress: share of the stage that is done, in [0, 1).

    targets: float32 (batch, classes) where images were mixed; labels and index are then those of the greater part.
    view: int64 (batch,), which of `Training.views` augmentations each image is in. teacher_images: what frozen teachers
    see where it is not what the students see. part: which of the step's parts it is, where gradients are accumulated.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    step: int
    progress: float
    targets: Tensor | None = None
    view: Tensor | None = None
    teacher_images: Tensor | None = None
    part: int = 0

    def with_images(self, images: Tensor) -> Batch:
        """The same samples with other images, for everybody."""
        return replace(self, images=images, teacher_images=None)

    def parts(self, count: int) -> list[Batch]:
        """The batch in `count` parts of the same size, in order."""
        if count == 1:
            return [self]
        size = len(self.labels) // count
        rows = [slice(start, start + size) for start in range(0, size * count, size)]
        names = ("images", "labels", "index", "targets", "view", "teacher_images")
        whole = {name: value for name in names if (value := getattr(self, name)) is not None}
        return [
            replace(self, part=number, **{name: value[part] for name, value in whole.items()})
            for number, part in enumerate(rows)
        ]


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


def view_draws(index: Tensor, view: Tensor, *, seed: int) -> Tensor:
    """Three uniform draws in [0, 1) for each (sample, view), float64 (3, batch): the same in every run of this seed.

    A counter-based hash (SplitMix64, Steele, Lea & Flood 2014), since a generator per sample would take 10 us each.

    >>> a = view_draws(torch.tensor([5, 6]), torch.tensor([0, 0]), seed=1)
    >>> b = view_draws(torch.tensor([6]), torch.tensor([0]), seed=1)
    >>> bool((a[:, 1:] == b).all()), bool((a[:, 0] == a[:, 1]).any())
    (True, False)
    """
    state = (
        np.uint64(seed_of(seed, "view")) ^ (index.numpy().astype(np.uint64) << np.uint64(24))
    ) + view.numpy().astype(np.uint64)
    draws = []
    for stream in range(1, 4):
        z = _mix64(_mix64(state) + np.uint64(stream * 0x9E3779B97F4A7C15 % 2**64))
        draws.append((z >> np.uint64(11)).astype(np.float64) / 2**53)
    return torch.from_numpy(np.stack(draws))


def _mix64(z: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Share:
    """Which process of how many; each takes every world-th sample of a batch."""

    rank: int = 0
    world: int = 1


class BatchStream:
    """The batches of one stage, made one ahead in a thread where that pays. Use as a context manager: the thread ends.

    training.batch_size counts the samples over all processes.
    """

    def __init__(self, dataset: Dataset, training: Training, *, device: torch.device, share: Share) -> None:
        self.dataset, self.device, self.share = dataset, device, share
        self.training, self.batch_size, self.seed = training, training.batch_size, training.seed
        self.steps = training.steps_for(len(dataset.train))
        self.layout = torch.contiguous_format
        self._order: dict[int, Tensor] = {}
        self._making_s: list[float] = []
        self._labels = dataset.train.labels  # a view computes them anew each time it is asked
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
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._order:
            self._order = {old: order for old, order in self._order.items() if old == epoch - 1}
            self._order[epoch] = permutation(len(self.dataset.train), seed=self.seed, epoch=epoch)
        return self._order[epoch]

    def views(self, step: int) -> Tensor | None:
        """Which augmentation each sample of a step's whole batch is in, int64 (batch_size,); None: a fresh one."""
        if self.training.views is None:
            return None
        position = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return position // len(self.dataset.train) % self.training.views

    def at(self, step: int) -> Batch:
        """The batch of a step, made here and now."""
        index, view = self.index(step), self.views(step)
        # The whole batch is augmented before it is cut, so that a sample's draw does not depend on the process count.
        pixels = self.augmented(self.dataset.train.images(index), index, view, step)
        mine = slice(self.share.rank, None, self.share.world)
        images = self.dataset.preprocessing.normalise(self._my(pixels)).contiguous(memory_format=self.layout)
        labels = self._labels.index_select(0, index)
        batch = Batch(
            images,
            self._my(labels),
            self._my(index),
            step,
            step / self.steps,
            view=None if view is None else self._my(view),
        )
        return self._mixed(batch, pixels, labels, mine) if self.training.mixes else batch

    def augmented(self, pixels: Tensor, index: Tensor, view: Tensor | None, step: int) -> Tensor:
        """Pixels of these samples as a step sees them; view None: freshly drawn from the step."""
        flip, shift_px = self.dataset.horizontal_flip, self.training.shift_px
        if not (flip or shift_px):
            return pixels
        if view is None:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "augment", step))
            return augment(pixels, generator=generator, flip=flip, shift_px=shift_px)
        draws = view_draws(index, view, seed=self.training.view_seed)
        mirrored = (draws[2] < 0.5).unsqueeze(1) if flip else None
        shift = (draws[:2] * (2 * shift_px + 1)).long().clamp_max(2 * shift_px) - shift_px
        return moved(pixels, shift.unsqueeze(2), mirrored)

    def _mixed(self, batch: Batch, pixels: Tensor, labels: Tensor, mine: slice) -> Batch:
        training, size = self.training, pixels.shape[-1]
        seed = seed_of(self.seed, "mix", batch.step)
        mixing: Mixing = draw_mixing(len(labels), size, seed=seed, mixup=training.mixup, cutmix=training.cutmix)
        partner = mixing.partner[mine]
        others = self.dataset.preprocessing.normalise(self._send(pixels[partner]))
        targets = mixing.targets(labels[mine], labels[partner], self.dataset.num_classes)
        return replace(batch, images=mixing.images(batch.images, others), targets=self._send(targets))

    def _my(self, rows: Tensor) -> Tensor:
        """This process's rows, on its device."""
        return self._send(rows if self.share.world == 1 else rows[self.share.rank :: self.share.world])

    def _send(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def take(self, step: int) -> Batch:
        """The batch of a step, from the thread where it was expected; the next one is started.

        Where making one takes less than handing it from thread to thread, there is no thread.
        """
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self._made_here(step)
        if len(self._making_s) == PROBES and min(self._making_s) > WORTH_A_THREAD_S and step + 1 < self.steps:
            self._ahead = (step + 1, self._pool.submit(self.at, step + 1))
        return batch

    def _made_here(self, step: int) -> Batch:
        if len(self._making_s) == PROBES:
            return self.at(step)
        began = time.perf_counter()
        batch = self.at(step)
        self._making_s.append(time.perf_counter() - began)
        return batch
