"""Inside a check's child process: the images, and what a session or a program answers on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Holds
from edgekd.runtimes import FloatArray, Session

CHUNK = 256
# Outputs of segmentation nets are large: fewer parity images where they would pass this.
KEPT_BYTES_MAX = 2**28
# A runtime too slow for the time it is given is still judged on this many images.
IMAGES_MIN = 32


class Images:
    """The parent's images, normalised a chunk at a time. labels: None where there are none to compare with."""

    def __init__(self, folder: Path) -> None:
        self.pixels: npt.NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        file = folder / "labels.npy"
        self.labels: npt.NDArray[np.int64] | None = np.load(file, allow_pickle=False) if file.is_file() else None
        self._table: FloatArray = np.load(folder / "table.npy", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def normalised(self, start: int, stop: int) -> FloatArray:
        """float32 [stop - start, C, H, W]."""
        pixels = self.pixels[start:stop]
        return np.stack([row[pixels[:, channel]] for channel, row in enumerate(self._table)], axis=1)

    def for_input(self, holds: Holds, start: int, stop: int) -> FloatArray:
        """What a session eats: normalised values, or the pixels themselves as float32 0..255."""
        return self.normalised(start, stop) if holds == "normalised" else self.pixels[start:stop].astype(np.float32)


class Deadline:
    """Seconds from now; the first images are always allowed."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def passed(self, done: int) -> bool:
        """Whether to stop after `done` images."""
        return done >= IMAGES_MIN and time.monotonic() > self._end


def all_outputs(
    session: Session, images: Images, count: int, *, holds: Holds, deadline: Deadline
) -> dict[str, FloatArray]:
    """Every output of the first `count` images by name, float32 [n, ...]; n is less where time or memory ends."""
    names: list[str] = []

    def one(index: int) -> list[FloatArray]:
        found = session.read_all(session.invoke(session.feed(images.for_input(holds, index, index + 1))))
        names[:] = found
        return list(found.values())

    values = gathered(one, count, deadline)
    return dict(zip(names, values, strict=True))


def gathered(one: Callable[[int], list[FloatArray]], count: int, deadline: Deadline) -> list[FloatArray]:
    """What `one` gives for images 0, 1, ..., joined output by output; until `count`, the deadline, or memory ends."""
    kept: list[list[FloatArray]] = []
    for index in range(count):
        found = [value if value.ndim > 1 else value.reshape(1, -1) for value in one(index)]
        kept.append(found)
        size = sum(value.nbytes for value in found)
        if deadline.passed(index + 1) or (index + 1) * size > KEPT_BYTES_MAX:
            break
    return [np.concatenate(values) for values in zip(*kept, strict=True)]


def classify(answer: Callable[[int, int], FloatArray], start: int, stop: int, *, deadline: Deadline) -> FloatArray:
    """Logits of the images from `start` on, float32 [n, classes], in chunks, until `stop` or the deadline."""
    parts: list[FloatArray] = []
    for first in range(start, stop, CHUNK):
        if deadline.passed(first):
            break
        parts.append(answer(first, min(first + CHUNK, stop)))
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
