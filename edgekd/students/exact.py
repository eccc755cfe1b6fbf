"""Proof that no student of a body beats the best one found, or one that does: a mixed-integer linear programme.

One choice per stage; costs add over stages, so the limits are linear; the peak of live activations is a maximum,
which one continuous variable above every stage's peak makes linear. The capacity prior is a sum of logarithms of
totals: the concave ones are the least of their tangents, the one that is charged runs along its secants, one segment
being picked. Both lie above the prior, so what the programme cannot reach does not exist. With points a factor of
1.25 apart a logarithm is off by at most ln(1.25)^2 / 8 = 0.006, and the optimum is proved to `TOLERANCE` of the prior,
the worth of 2% more compute.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from edgekd.students.bounds import Left, Row, Term, narrowed
from edgekd.students.costs import (
    ACTIVATIONS_WEIGHT,
    DEPTH_WEIGHT,
    GATE_WEIGHT,
    KERNELS_PER_GATE,
    MACS_WEIGHT,
    PARAMETERS_WEIGHT,
    RESOLUTION_WEIGHT,
    Prices,
    Totals,
)
from edgekd.students.selection import Limits
from edgekd.students.space import Body, StageSpace

_RATIO = 1.25  # between neighbouring points at which a logarithm is approximated
TOLERANCE = 0.02
_NODES = 100  # of branch and bound, a count and not a time: the answer must not depend on how busy the host is


class Programme:
    """One body's programme: solve it for any limits. Columns: a binary per (stage, choice), then the helpers."""

    def __init__(self, space: StageSpace, body: Body, prices: Prices) -> None:
        self.ends = space.ends(body, prices)
        self.stages = space.stage_totals(body, prices)
        self._prices = prices
        columns = [choice for stage in self.stages for choice in stage]
        self._n = len(columns)
        self._ms = np.array([c.milliseconds for c in columns])
        self._macs = np.array([float(c.macs) for c in columns])
        self._weights = np.array([float(c.weight_elements) for c in columns])
        self._kernels = np.array([float(c.kernels) for c in columns])
        self._moved = np.array([float(c.activation_elements) for c in columns])
        self._gates = np.array([float(c.gates) for c in columns])
        self._peak = np.array([float(c.peak_elements) for c in columns])
        self._depth = self._kernels - KERNELS_PER_GATE * self._gates
        starts = np.cumsum([0, *(len(stage) for stage in self.stages)]).tolist()
        self._slices = [slice(a, b) for a, b in itertools.pairwise(starts)]

    def totals(self, picks: tuple[int, ...]) -> Totals:
        """Of the whole student."""
        found = self.ends
        for stage, pick in zip(self.stages, picks, strict=True):
            found = found.plus(stage[pick])
        return found

    def better(self, limits: Limits, than: float) -> tuple[tuple[int, ...] | None, bool]:
        """Choices that keep the limits and may be better than a capacity, or None; and whether None is proved."""
        if self.hopeless(limits):
            return None, True
        than -= RESOLUTION_WEIGHT * math.log(self.ends.image_size)  # of every student of this body
        caps = [
            (row, bound - fixed - peak * self.ends.peak_elements) for row, peak, fixed, bound in self._limits(limits)
        ]
        terms, bonus = self._terms(), GATE_WEIGHT * self._gates
        left = narrowed(self._slices, terms, bonus, caps, than + TOLERANCE)
        if left is None:
            return None, True
        gain, rows, extra = self._capacity(terms, left)
        rows.append((gain, than + TOLERANCE, np.inf))
        return self._solve(gain, rows, extra, limits, left)

    def hopeless(self, limits: Limits) -> bool:
        """Whether not even the cheapest choice of every stage keeps one of the limits."""
        return any(
            self._least(row) + peak * self.ends.peak_elements + fixed > bound
            for row, peak, fixed, bound in self._limits(limits)
        )

    def least_overrun(self, limits: Limits) -> tuple[int, ...]:
        """The choices whose worst overrun of a limit is least."""
        rows = [
            (np.concatenate([row, [peak], [-bound]]), -np.inf, -fixed)
            for row, peak, fixed, bound in self._limits(limits)
        ]
        rows += [(np.concatenate([row, [-1.0], [0.0]]), -np.inf, 0.0) for row in self._peaks()]
        rows += [(np.concatenate([row, [0.0], [0.0]]), 1.0, 1.0) for row in self._one_each()]
        cost = np.zeros(self._n + 2)
        cost[-1] = 1.0
        bounds = ([0.0] * self._n + [self.ends.peak_elements, 0.0], [1.0] * self._n + [np.inf, np.inf])
        picks, _ = self._run(cost, rows, bounds, np.array([1] * self._n + [0, 0]))
        assert picks is not None  # a large enough overrun always exists
        return picks

    def _limits(self, limits: Limits) -> list[tuple[Row, float, float, float]]:
        """(coefficients of the choices, coefficient of the peak, constant, bound) of every limit."""
        cost, ends, p90 = self._prices.cost, self.ends, self._prices.cost.p90_over_p50
        unit = 1 << 20
        memory_0, size_0 = cost.memory_mib(0, 0), cost.size_mib(0, 0)
        per_weight = (cost.memory_mib(unit, 0) - memory_0) / unit
        per_peak = (cost.memory_mib(0, unit) - memory_0) / unit
        size_weight, size_kernel = (cost.size_mib(unit, 0) - size_0) / unit, (cost.size_mib(0, unit) - size_0) / unit
        memory_0 += per_weight * ends.weight_elements
        size_0 += size_weight * ends.weight_elements + size_kernel * ends.kernels
        found = [
            *self._latencies(p90 * limits.time_margin, limits.latency_p90_ms),
            (per_weight * self._weights, per_peak, memory_0, limits.peak_memory_mib),
            (size_weight * self._weights + size_kernel * self._kernels, 0.0, size_0, limits.artifact_size_mib),
            (self._macs, 0.0, float(ends.macs), float(limits.macs)),
        ]
        if limits.energy_mj is not None and self._prices.watts is not None:
            found += self._latencies(self._prices.watts * limits.time_margin, limits.energy_mj)
        return [(row / bound, peak / bound, fixed / bound, 1.0) for row, peak, fixed, bound in found]

    def _latencies(self, factor: float, bound: float) -> list[tuple[Row, float, float, float]]:
        """One row per tariff: the largest of them is what a network costs besides its parts."""
        ends = self.ends
        return [
            (
                factor * (self._ms + slope * self._weights),
                0.0,
                factor * (ends.milliseconds + fixed + slope * ends.weight_elements),
                bound,
            )
            for fixed, slope in self._prices.tariffs
        ]

    def _terms(self) -> list[Term]:
        """The logarithms of the capacity; the last is the one that is charged."""
        ends = self.ends
        return [
            Term(MACS_WEIGHT, self._macs, float(ends.macs)),
            Term(PARAMETERS_WEIGHT, self._weights, float(ends.weight_elements)),
            Term(DEPTH_WEIGHT, self._depth, float(ends.kernels)),
            Term(-ACTIVATIONS_WEIGHT, self._moved, float(ends.activation_elements)),
        ]

    def _capacity(self, terms: list[Term], left: Left) -> tuple[Row, list[tuple[Row, float, float]], int]:
        """Gain per column, rows (without the peak), and the number of helper columns after the choices."""
        concave = terms[:-1]
        high = left.ranges[-1][1]
        edges = _points(*left.ranges[-1])
        segments = len(edges) - 1
        width = self._n + len(concave) + 2 * segments
        gain, rows = np.zeros(width), []
        gain[: self._n] = GATE_WEIGHT * self._gates
        for number, (weight, row, fixed) in enumerate(concave):
            column = self._n + number
            gain[column] = weight
            for point in _points(*left.ranges[number]):
                line = np.zeros(width)
                line[column], line[: self._n] = 1.0, -row / point
                rows.append((line, -np.inf, math.log(point) - 1.0 + fixed / point))
        first = self._n + len(concave)
        spread, picked = np.zeros(width), np.zeros(width)
        spread[: self._n] = -self._moved / high
        for number, (lo, hi) in enumerate(itertools.pairwise(edges)):
            chosen, amount = first + number, first + segments + number
            slope = (math.log(hi) - math.log(lo)) / (hi - lo)
            gain[amount], gain[chosen] = (
                -ACTIVATIONS_WEIGHT * slope * high,
                -ACTIVATIONS_WEIGHT * (math.log(lo) - slope * lo),
            )
            spread[amount], picked[chosen] = 1.0, 1.0
            for bound, sign in ((lo / high, -1.0), (hi / high, 1.0)):  # lo z <= a <= hi z
                line = np.zeros(width)
                line[amount], line[chosen] = sign, -sign * bound
                rows.append((line, -np.inf, 0.0))
        fixed = self.ends.activation_elements / high
        rows += [(spread, fixed, fixed), (picked, 1.0, 1.0)]
        return gain, rows, width - self._n

    def _solve(
        self, gain: Row, rows: list[tuple[Row, float, float]], extra: int, limits: Limits, left: Left
    ) -> tuple[tuple[int, ...] | None, bool]:
        """Helpers come after the choices, the peak last."""
        pad = np.zeros(extra)
        full = [(np.append(row, 0.0), lo, hi) for row, lo, hi in rows]
        full += [
            (np.concatenate([row, pad, [peak]]), -np.inf, bound - fixed)
            for row, peak, fixed, bound in self._limits(limits)
        ]
        full += [(np.concatenate([row, pad, [-1.0]]), -np.inf, 0.0) for row in self._peaks()]
        full += [(np.concatenate([row, pad, [0.0]]), 1.0, 1.0) for row in self._one_each()]
        segments = (extra - 3) // 2
        lower = [0.0] * self._n + [-np.inf] * 3 + [0.0] * (2 * segments) + [float(self.ends.peak_elements)]
        upper = left.allowed.astype(float).tolist() + [np.inf] * 3 + [1.0] * (2 * segments) + [np.inf]
        whole = np.array([1] * self._n + [0] * 3 + [1] * segments + [0] * (segments + 1))
        return self._run(-np.append(gain, 0.0), full, (lower, upper), whole)

    def _run(
        self,
        cost: Row,
        rows: list[tuple[Row, float, float]],
        bounds: tuple[list[float], list[float]],
        whole: Any,
    ) -> tuple[tuple[int, ...] | None, bool]:
        """The best choices found, and whether the solver went to the end."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        matrix, low, high = (np.array(column) for column in zip(*rows, strict=True))
        found = milp(
            cost,
            constraints=LinearConstraint(matrix, low, high),
            integrality=whole,
            bounds=Bounds(*bounds),
            # Presolve is what takes long: 2.7 s against 0.2 s for a body of the gated space at 224 px.
            options={"node_limit": _NODES, "mip_rel_gap": 1e-3, "presolve": False},
        )
        return None if found.x is None else self._picks(found.x), found.status in (0, 2)

    def _picks(self, values: Row) -> tuple[int, ...]:
        picks, start = [], 0
        for stage in self.stages:
            picks.append(int(np.argmax(values[start : start + len(stage)])))
            start += len(stage)
        return tuple(picks)

    def _one_each(self) -> list[Row]:
        rows, start = [], 0
        for stage in self.stages:
            row = np.zeros(self._n)
            row[start : start + len(stage)] = 1.0
            rows.append(row)
            start += len(stage)
        return rows

    def _peaks(self) -> list[Row]:
        return [row * self._peak for row in self._one_each()]

    def _least(self, row: Row) -> float:
        return self._sum(row, np.min)

    def _sum(self, row: Row, of: Any) -> float:
        found, start = 0.0, 0
        for stage in self.stages:
            found += float(of(row[start : start + len(stage)]))
            start += len(stage)
        return found


def _points(low: float, high: float) -> list[float]:
    """From low to high, at most `_RATIO` apart.

    >>> _points(1.0, 1.5625)
    [1.0, 1.25, 1.5625]
    """
    steps = max(1, math.ceil(math.log(max(high / low, 1.0)) / math.log(_RATIO) - 1e-9))
    return [float(low * (high / low) ** (step / steps)) for step in range(steps + 1)]
