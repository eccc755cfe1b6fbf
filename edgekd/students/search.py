"""Find the student of highest capacity that keeps every limit: exhaustive, deterministic, with memoised stage costs.

The search knows no device: what a kernel takes and what memory a graph needs comes from a `CostModel`, such as
`edgekd.latency.ProfileCost`. Quality is a prior, not an accuracy: decide between close candidates by training them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple, Protocol

from edgekd.students.layers import Layer, head_layers, layers_of, stage_layers
from edgekd.students.selection import Candidate, Figures, Infeasible, Limits, Selection
from edgekd.students.space import SearchSpace
from edgekd.students.spec import StageSpec, StudentSpec

# Logarithms: a tenth more compute, weights or depth is worth the same at any size. The factors are judgement, not a
# fit; training decides between close candidates. Moved activations are charged: of two students of like capacity one
# that writes less trains faster (28 px, batch 128, bf16, one x86 core: dense bodies of 9 MMACs took 140 ms a step,
# inverted ones of 4 to 8 MMACs 400 to 480 ms) and needs less memory on the device.
_MACS_WEIGHT, _PARAMETERS_WEIGHT, _DEPTH_WEIGHT, _ACTIVATIONS_WEIGHT = 1.0, 0.35, 0.5, 0.7


class CostModel(Protocol):
    """What a device charges; implemented for a profile by `edgekd.latency.ProfileCost`."""

    @property
    def p90_over_p50(self) -> float:
        """How much slower the 90th percentile is than the median."""

    def kernel_ms(self, kind: str, macs: int, moved_elements: int) -> float:
        """Median milliseconds of one fused kernel at batch 1."""

    def memory_mib(self, weight_elements: int, peak_activation_elements: int) -> float:
        """Peak memory of the process in MiB."""

    def size_mib(self, weight_elements: int, kernels: int) -> float:
        """Size of the artifact in MiB."""


class _Totals(NamedTuple):
    """Sums over the kernels of a part of the network, and its peak of live activations."""

    milliseconds: float
    macs: int
    activation_elements: int
    weight_elements: int
    kernels: int
    peak_elements: int


def capacity_score(figures: Figures) -> float:
    """Prior for accuracy from size alone: logs of compute, weights and depth, less a charge for moved activations."""
    return (
        _MACS_WEIGHT * math.log(figures.macs)
        + _PARAMETERS_WEIGHT * math.log(figures.parameters)
        + _DEPTH_WEIGHT * math.log(figures.kernels)
        - _ACTIVATIONS_WEIGHT * math.log(figures.activation_elements)
    )


def figures_of(spec: StudentSpec, cost: CostModel) -> Figures:
    """Predicted cost of one student on the device of a cost model."""
    return _figures([_totals(layers_of(spec), cost)], cost)


def search(space: SearchSpace, *, cost: CostModel, limits: Limits, keep: int = 20) -> Selection | Infeasible:
    """The best `keep` students of a space under the limits, or the cheapest one and by how much it misses.

    The same space, cost model and limits always give the same answer; about a second for 9,000 students.
    """
    measure = _Measure(cost)
    best: list[tuple[float, int]] = []
    specs: dict[int, Candidate] = {}
    cheapest: tuple[float, Candidate] | None = None
    considered = fitting = 0
    for order, spec in enumerate(space.specs()):
        considered += 1
        figures = measure(spec)
        overruns = figures.overruns(limits)
        score = capacity_score(figures)
        if overruns:
            worst = max(overruns.values())
            if cheapest is None or worst < cheapest[0]:
                cheapest = (worst, Candidate(spec=spec, figures=figures, score=score))
            continue
        fitting += 1
        heapq.heappush(best, (score, -order))
        specs[-order] = Candidate(spec=spec, figures=figures, score=score)
        if len(best) > keep:
            del specs[heapq.heappop(best)[1]]
    if best:
        top = tuple(specs[order] for _, order in sorted(best, reverse=True))
        return Selection(top=top, limits=limits, considered=considered, fitting=fitting)
    if cheapest is None:
        raise ValueError(f"search space '{space.name}' is empty")
    return Infeasible(cheapest=cheapest[1], limits=limits, considered=considered)


class _Measure:
    """Figures of a spec, with the sums of every (stage, channels in, size) computed once."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._stage = cache(self._stage_totals)
        self._ends = cache(self._end_totals)

    def __call__(self, spec: StudentSpec) -> Figures:
        parts = []
        size, channels = -(-spec.image_size // spec.stem_stride), spec.stem_channels
        for stage in spec.stages:
            parts.append(self._stage(stage, channels, size))
            size, channels = -(-size // stage.stride), stage.channels
        bare = spec.model_copy(update={"stages": (StageSpec(channels=channels, depth=1),)})
        return _figures([self._ends(bare, channels, size), *parts], self._cost)

    def _stage_totals(self, stage: StageSpec, in_channels: int, size: int) -> _Totals:
        return _totals(stage_layers(stage, in_channels, size), self._cost)

    def _end_totals(self, bare: StudentSpec, channels: int, size: int) -> _Totals:
        return _totals([layers_of(bare)[0], *head_layers(bare, channels, size)], self._cost)


def _totals(layers: Iterable[Layer], cost: CostModel) -> _Totals:
    found = list(layers)
    return _Totals(
        milliseconds=sum(cost.kernel_ms(layer.kind, layer.macs, layer.moved_elements) for layer in found),
        macs=sum(layer.macs for layer in found),
        activation_elements=sum(layer.read_elements + layer.write_elements for layer in found),
        weight_elements=sum(layer.weight_elements for layer in found),
        kernels=len(found),
        peak_elements=max(layer.live_elements for layer in found),
    )


def _figures(parts: list[_Totals], cost: CostModel) -> Figures:
    p50_ms = sum(part.milliseconds for part in parts)
    weights = sum(part.weight_elements for part in parts)
    return Figures.model_construct(
        latency_p50_ms=p50_ms,
        latency_p90_ms=p50_ms * cost.p90_over_p50,
        peak_memory_mib=cost.memory_mib(weights, max(part.peak_elements for part in parts)),
        artifact_size_mib=cost.size_mib(weights, sum(part.kernels for part in parts)),
        macs=sum(part.macs for part in parts),
        parameters=weights,
        activation_elements=sum(part.activation_elements for part in parts),
        kernels=sum(part.kernels for part in parts),
    )
