"""Loss values as they come: their sums for the history, and a watch for nan and inf that does not stall a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Meter:
    """Sums by term since the last `reset`, the first step's values, and the first step at which each was not finite.

    On a GPU the values stay there until somebody asks. On a CPU they are Python's numbers at once: five operations on
    a tensor of a few values take 30 us, reading it takes 2.
    """

    def __init__(self, labels: Sequence[str], device: torch.device) -> None:
        self.labels = tuple(labels)
        self.first: Tensor | None = None
        self.count = 0
        self._here = device.type == "cpu"
        self._open = False
        self._newest = [0.0] * len(labels)
        self._device_newest = torch.zeros(len(labels), device=device)
        self._sums, self._first_bad = [0.0] * len(labels), [-1] * len(labels)
        self._device_sums = torch.zeros(len(labels), dtype=torch.float64, device=device)
        self._device_first_bad = torch.full((len(labels),), -1, dtype=torch.int64, device=device)

    def add(self, values: Sequence[Tensor], parts: int = 1) -> None:
        """Take the values () by term of one of the parts of a step; nothing is read back from a GPU."""
        if self._here:
            numbers = [value.item() / parts for value in values]
            self._newest = [a + b for a, b in zip(self._newest, numbers, strict=True)] if self._open else numbers
        else:
            stacked = torch.stack(list(values)) / parts
            self._device_newest = self._device_newest + stacked if self._open else stacked
        self._open = True

    def end_step(self, step: int) -> None:
        """All parts of the step were added."""
        self._open = False
        self.count += 1
        if self.first is None:
            self.first = torch.tensor(self._newest) if self._here else self._device_newest
        if not self._here:
            bad = torch.isfinite(self._device_newest).logical_not_().logical_and_(self._device_first_bad < 0)
            self._device_first_bad.masked_fill_(bad, step)
            self._device_sums += self._device_newest
            return
        for i, value in enumerate(self._newest):
            self._sums[i] += value
            if not math.isfinite(value) and self._first_bad[i] < 0:
                self._first_bad[i] = step

    @property
    def sums(self) -> Tensor:
        """Sums by term, float64 (terms,), on the device."""
        return torch.tensor(self._sums, dtype=torch.float64) if self._here else self._device_sums

    def restore(self, sums: Tensor, count: int) -> None:
        """Take the sums of a checkpoint back."""
        self._sums = sums.tolist()
        self._device_sums.copy_(sums)
        self.count = count

    def first_bad_term(self) -> tuple[str, int] | None:
        """(term, step) of the earliest value that was not finite; reads from the device."""
        first_bad = self._first_bad if self._here else self._device_first_bad.tolist()
        if max(first_bad) < 0:
            return None
        step, label = min((step, label) for step, label in zip(first_bad, self.labels, strict=True) if step >= 0)
        return label, step

    def first_by_term(self) -> dict[str, float]:
        """The values of the stage's first step; reads from the device."""
        return {} if self.first is None else dict(zip(self.labels, self.first.tolist(), strict=True))

    def newest_by_term(self) -> dict[str, float]:
        """The newest step's values; reads from the device."""
        return dict(zip(self.labels, self._newest if self._here else self._device_newest.tolist(), strict=True))

    def reset(self) -> None:
        """Start a new epoch."""
        self._sums = [0.0] * len(self.labels)
        self._device_sums.zero_()
        self.count = 0
