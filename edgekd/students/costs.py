"""What a student is predicted to cost, summed over its parts, and the prior for how good it can get.

The search knows no device: what a kernel takes and what memory a graph needs comes from a `CostModel`, such as
`edgekd.latency.ProfileCost`; a `PartPrice` (a block table) may price whole parts instead of their kernels.
Quality is a prior, not an accuracy: decide between close candidates by training them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, overload

from edgekd.students.layers import Layer, Part, part_layers, part_loops, parts_of
from edgekd.students.selection import Figures
from edgekd.students.spec import StudentSpec

# Logarithms: a tenth more compute, weights or depth is worth the same at any size. The factors are judgement, not a
# fit; training decides between close candidates. Moved activations are charged: of two students of like capacity one
# that writes less trains faster (28 px, batch 128, bf16, one x86 core: dense bodies of 9 MMACs took 140 ms a step,
# inverted ones of 4 to 8 MMACs 400 to 480 ms) and needs less memory on the device.
MACS_WEIGHT, PARAMETERS_WEIGHT, DEPTH_WEIGHT, ACTIVATIONS_WEIGHT = 1.0, 0.35, 0.5, 0.7
# Squeeze-and-excite in all 13 to 16 blocks of a small network is worth about 1.3 times its compute (ln 1.3 = 0.26):
# MobileNetV3 (Howard 2019, table 10) and MnasNet (Tan 2019, table 3) with and without.
GATE_WEIGHT, KERNELS_PER_GATE = 0.02, 4
# Without it the fewest pixels win under any limit on compute, for the weights that they leave room for. So a factor in
# resolution is worth what the same factor in width is: the ratio of the two in a fit to the published ImageNet logits
# of accuracy is 0.77 in MobileNetV1 (16 nets) and 1.19 in MobileNetV2 (20 nets; tensorflow/models, research/slim/nets).
RESOLUTION_WEIGHT = 1.4

PartPrice = Callable[[Part], float]


class Work(NamedTuple):
    """Kernels of a part, and what a compiler that does not fold into contractions makes of the rest of it."""

    ops: tuple[Layer, ...]
    loops: tuple[Layer, ...]
    folded_macs: int = 0
    folded_elements: int = 0


def work_of(parts: Iterable[Part]) -> Work:
    """All of some parts."""
    every = list(parts)
    ops = tuple(layer for part in every for layer in part_layers(part))
    return Work(ops, tuple(nest for part in every for nest in part_loops(part)))


class Charges(Protocol):
    """What a device charges besides the time of a network's parts.

    Memory is affine in both its arguments, and so is size: the exact search relies on it.
    """

    @property
    def tariffs(self) -> tuple[tuple[float, float], ...]:
        """What a network costs besides its work is the largest of these: (ms, ms per weight)."""

    @property
    def p90_over_p50(self) -> float:
        """How much slower the 90th percentile is than the median."""

    def memory_mib(self, weight_elements: int, peak_activation_elements: int) -> float:
        """Peak memory of the process in MiB."""

    def size_mib(self, weight_elements: int, kernels: int) -> float:
        """Size of the artifact in MiB."""


class CostModel(Charges, Protocol):
    """The same with a price of kernels; implemented for a profile by `edgekd.latency.ProfileCost`."""

    def work_ms(self, graph: Work) -> float:
        """Median milliseconds at batch 1 that some kernels add to a network."""


def kernels_price(cost: CostModel) -> PartPrice:
    """A part's milliseconds as the sum over its kernels."""
    return lambda part: cost.work_ms(work_of([part]))


class Totals(NamedTuple):
    """Sums over the kernels of a part of the network, its peak of live activations, and the px of its input."""

    milliseconds: float
    macs: int
    activation_elements: int
    weight_elements: int
    kernels: int
    gates: int
    peak_elements: int
    image_size: int

    def plus(self, other: Totals, times: int = 1) -> Totals:
        """This and `times` the other, one after another."""
        return Totals(
            self.milliseconds + times * other.milliseconds,
            self.macs + times * other.macs,
            self.activation_elements + times * other.activation_elements,
            self.weight_elements + times * other.weight_elements,
            self.kernels + times * other.kernels,
            self.gates + times * other.gates,
            max(self.peak_elements, other.peak_elements if times else 0),
            max(self.image_size, other.image_size),  # the stem's: maps only shrink
        )


class Prices:
    """Totals of parts on one device, each part priced once; figures of whole students.

    price: milliseconds of a whole part, with tariffs of its own; by default the sum over its kernels and the cost's.
    watts: what the device draws while it runs, for the energy; None leaves the energy out.
    """

    @overload
    def __init__(self, cost: CostModel, *, watts: float | None = None) -> None: ...
    @overload
    def __init__(
        self,
        cost: Charges,
        price: PartPrice,
        *,
        tariffs: Sequence[tuple[float, float]] = ((0.0, 0.0),),
        watts: float | None = None,
    ) -> None: ...
    def __init__(
        self,
        cost: Any,
        price: PartPrice | None = None,
        *,
        tariffs: Sequence[tuple[float, float]] = ((0.0, 0.0),),
        watts: float | None = None,
    ) -> None:
        self.cost: Charges = cost
        self.watts = watts
        self.tariffs = cost.tariffs if price is None else tuple(tariffs)
        self._price = price or kernels_price(cost)
        self._known: dict[Part, Totals] = {}

    def part(self, part: Part) -> Totals:
        """Totals of one part."""
        found = self._known.get(part)
        if found is None:
            found = self._known[part] = self._totals(part)
        return found

    def of(self, spec: StudentSpec) -> Figures:
        """Figures of a student of stages."""
        return self.figures(total(self.part(part) for part in parts_of(spec)))

    def figures(self, totals: Totals) -> Figures:
        """Totals of a whole network as figures."""
        cost, weights = self.cost, totals.weight_elements
        p50_ms = totals.milliseconds + max(fixed + slope * weights for fixed, slope in self.tariffs)
        return Figures.model_construct(
            latency_p50_ms=p50_ms,
            latency_p90_ms=p50_ms * cost.p90_over_p50,
            peak_memory_mib=cost.memory_mib(totals.weight_elements, totals.peak_elements),
            artifact_size_mib=cost.size_mib(totals.weight_elements, totals.kernels),
            energy_mj=None if self.watts is None else self.watts * p50_ms,
            macs=totals.macs,
            parameters=totals.weight_elements,
            activation_elements=totals.activation_elements,
            kernels=totals.kernels,
            gates=totals.gates,
            image_size=totals.image_size,
        )

    def _totals(self, part: Part) -> Totals:
        layers = part_layers(part)
        return Totals(
            milliseconds=self._price(part),
            macs=sum(layer.macs for layer in layers),
            activation_elements=sum(layer.read_elements + layer.write_elements for layer in layers),
            weight_elements=sum(layer.weight_elements for layer in layers),
            kernels=len(layers),
            gates=int(part.squeeze_excite),
            peak_elements=max(layer.live_elements for layer in layers),
            image_size=part.size,
        )


def total(parts: Iterable[Totals]) -> Totals:
    """Parts one after another. At least one."""
    found = iter(parts)
    summed = next(found)
    for part in found:
        summed = summed.plus(part)
    return summed


def figures_of(spec: StudentSpec, cost: CostModel) -> Figures:
    """Predicted cost of one student on the device of a cost model."""
    return Prices(cost).of(spec)


def capacity_score(figures: Figures) -> float:
    """Prior for accuracy from size alone: logs of compute, weights, depth and resolution, less a charge for moved
    activations."""
    return (
        MACS_WEIGHT * math.log(figures.macs)
        + PARAMETERS_WEIGHT * math.log(figures.parameters)
        + DEPTH_WEIGHT * math.log(figures.kernels - KERNELS_PER_GATE * figures.gates)
        - ACTIVATIONS_WEIGHT * math.log(figures.activation_elements)
        + RESOLUTION_WEIGHT * math.log(figures.image_size)
        + GATE_WEIGHT * figures.gates
    )
