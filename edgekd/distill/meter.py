"""Loss values as they come: their sums for the history, and a watch for nan and inf that does not stall a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Meter:
    """Sums by term since the last `reset`, the first step's values, and the first step at which each was not finite."""

    def __init__(self, labels: Sequence[str], device: torch.device) -> None:
        self.labels = tuple(labels)
        self.sums = torch.zeros(len(labels), dtype=torch.float64, device=device)
        self.newest = torch.zeros(len(labels), device=device)
        self.first_bad = torch.full((len(labels),), -1, dtype=torch.int64, device=device)
        self.first: Tensor | None = None
        self.count = 0

    def add(self, values: Tensor, step: int) -> None:
        """Take a step's values (terms,); nothing is read back from the device."""
        bad = torch.isfinite(values).logical_not_().logical_and_(self.first_bad < 0)
        self.first_bad.masked_fill_(bad, step)
        self.sums += values
        self.newest = values
        if self.first is None:
            self.first = values
        self.count += 1

    def first_bad_term(self) -> tuple[str, int] | None:
        """(term, step) of the earliest value that was not finite; reads from the device."""
        seen = [(step, label) for label, step in zip(self.labels, self.first_bad.tolist(), strict=True) if step >= 0]
        return (min(seen)[1], min(seen)[0]) if seen else None

    def first_by_term(self) -> dict[str, float]:
        """The values of the stage's first step; reads from the device."""
        return {} if self.first is None else dict(zip(self.labels, self.first.tolist(), strict=True))

    def newest_by_term(self) -> dict[str, float]:
        """The newest step's values; reads from the device."""
        return dict(zip(self.labels, self.newest.tolist(), strict=True))

    def reset(self) -> None:
        """Start a new epoch."""
        self.sums.zero_()
        self.count = 0
