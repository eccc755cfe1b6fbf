"""Timing several ways to do the same by turns, so that a busy machine is busy for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Milliseconds per step, one value a round. The minimum is what is compared: noise only ever adds."""

    ms: tuple[float, ...]

    @property
    def least(self) -> float:
        """The minimum."""
        return min(self.ms)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: minimum, quartiles and how many."""
        quarter, middle, three = statistics.quantiles(self.ms, n=4, method="inclusive")
        return {"min_ms": self.least, "p25_ms": quarter, "p50_ms": middle, "p75_ms": three, "rounds": len(self.ms)}


def interleaved(
    ways: Mapping[str, Callable[[int], None]], *, steps: int, rounds: int, warmup: int = 2
) -> dict[str, Times]:
    """Let each way do `steps` steps in each of so many rounds, in an order that turns from round to round.

    Raises: ValueError: fewer than two rounds.
    """
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, got {rounds}")
    for way in ways.values():
        way(max(1, warmup))
    names = list(ways)
    ms: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in _turned(names, number):
            _settle()
            began = time.perf_counter()
            ways[name](steps)
            _settle()
            ms[name].append(1000 * (time.perf_counter() - began) / steps)
    return {name: Times(tuple(values)) for name, values in ms.items()}


def _turned(names: Sequence[str], number: int) -> list[str]:
    """Rotated by the round, and every second round backwards, so that nobody always follows the same one.

    >>> [_turned("abc", number) for number in range(2)]
    [['a', 'b', 'c'], ['a', 'c', 'b']]
    """
    shift = number % len(names)
    turned = [*names[shift:], *names[:shift]]
    return turned[::-1] if number % 2 else turned


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
