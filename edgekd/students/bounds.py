"""What is left of a body's choices once bounds have been followed, before any programme is solved.

A choice leaves when the cheapest rest cannot bring a sum under its upper bound, or the dearest rest not over its lower
one. Lower bounds follow from the capacity that must be beaten: whatever the other terms give at their best, this one
has to give the remainder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Row = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
_ROUNDS = 6


class Term(NamedTuple):
    """weight * log(fixed + row of the choices) in the capacity."""

    weight: float
    row: Row
    fixed: float


class Left(NamedTuple):
    """allowed: one flag per choice; ranges: of each term's total, in the order of the terms."""

    allowed: Mask
    ranges: tuple[tuple[float, float], ...]


def narrowed(
    stages: Sequence[slice],
    terms: Sequence[Term],
    bonus: Row,
    caps: Sequence[tuple[Row, float]],
    than: float,
) -> Left | None:
    """Choices and ranges with which a capacity above `than` may be reached within the caps; None: there are none.

    bonus: what a choice adds to the capacity beside the logarithms. caps: (row, most that it may sum to).
    """
    allowed = np.ones(len(bonus), dtype=bool)
    bounds = [(-math.inf, math.inf) for _ in terms]
    for _ in range(_ROUNDS):
        before = int(allowed.sum())
        for row, most in caps:
            _exclude(stages, allowed, row, -math.inf, most)
        if not _every_stage(stages, allowed):
            return None
        ranges = [_range(stages, allowed, term, bound) for term, bound in zip(terms, bounds, strict=True)]
        bounds = _implied(terms, ranges, _sum(stages, allowed, bonus, np.max) - than)
        for term, (low, high) in zip(terms, bounds, strict=True):
            _exclude(stages, allowed, term.row, low - term.fixed, high - term.fixed)
        if not _every_stage(stages, allowed):
            return None
        if int(allowed.sum()) == before:
            break
    ranges = [_range(stages, allowed, term, bound) for term, bound in zip(terms, bounds, strict=True)]
    return None if any(low > high for low, high in ranges) else Left(allowed, tuple(ranges))


def _implied(terms: Sequence[Term], ranges: Sequence[tuple[float, float]], spare: float) -> list[tuple[float, float]]:
    """Bounds of each total, when all other terms are at their best and the sum must not fall below zero.

    spare: the bonus at its best, less the capacity that must be beaten.
    """
    best = [
        term.weight * math.log(max(high if term.weight > 0 else low, 1e-9))
        for term, (low, high) in zip(terms, ranges, strict=True)
    ]
    found = []
    for number, term in enumerate(terms):
        others = spare + sum(best) - best[number]
        edge = math.exp(min(-others / term.weight, 700.0))
        low, high = ranges[number]
        edge = edge * (1 - 1e-9) if term.weight > 0 else edge * (1 + 1e-9)
        found.append((max(low, edge), high) if term.weight > 0 else (low, min(high, edge)))
    return found


def _exclude(stages: Sequence[slice], allowed: Mask, row: Row, low: float, high: float) -> None:
    """Take out what no choice of the other stages brings between low and high."""
    if not _every_stage(stages, allowed):
        return
    least = [float(row[stage][allowed[stage]].min()) for stage in stages]
    most = [float(row[stage][allowed[stage]].max()) for stage in stages]
    slack = 1e-9 * (abs(sum(most)) + 1)
    for number, stage in enumerate(stages):
        others_least, others_most = sum(least) - least[number], sum(most) - most[number]
        fits = (row[stage] + others_least <= high + slack) & (row[stage] + others_most >= low - slack)
        allowed[stage] &= fits


def _range(stages: Sequence[slice], allowed: Mask, term: Term, bound: tuple[float, float]) -> tuple[float, float]:
    low = term.fixed + _sum(stages, allowed, term.row, np.min)
    high = term.fixed + _sum(stages, allowed, term.row, np.max)
    return max(low, bound[0]), min(high, bound[1])


def _sum(stages: Sequence[slice], allowed: Mask, row: Row, of: Any) -> float:
    return sum(float(of(row[stage][allowed[stage]])) for stage in stages)


def _every_stage(stages: Sequence[slice], allowed: Mask) -> bool:
    return all(bool(allowed[stage].any()) for stage in stages)
