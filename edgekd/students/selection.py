"""What a search hands back: the student, what it is predicted to cost, and who came close; or why nothing fits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.artifact import Frozen
from edgekd.students.spec import AnySpec
from edgekd.targets.legality import Misfit

_TIMES = ("latency_p90_ms", "energy_mj")


class Limits(Frozen):
    """Upper bounds a student must keep. macs: a fraction of the teacher's (a student as big as its teacher is none).

    energy_mj: of one inference; None: no limit, or a device whose power is not known.
    time_margin: what predicted latency and energy are multiplied by before they are held against their limits: how far
    predictions are off where they are too low, and the headroom that is kept.
    """

    latency_p90_ms: float = Field(gt=0)
    peak_memory_mib: float = Field(gt=0)
    artifact_size_mib: float = Field(gt=0)
    macs: int = Field(gt=0)
    energy_mj: float | None = Field(default=None, gt=0)
    time_margin: float = Field(default=1.0, gt=0)

    @property  # not cached: a copy with other limits would take the cache along
    def bounds(self) -> dict[str, float]:
        """What the figures themselves must keep, by their names: time limits are divided by the margin."""
        found = {
            "latency_p90_ms": self.latency_p90_ms / self.time_margin,
            "peak_memory_mib": self.peak_memory_mib,
            "artifact_size_mib": self.artifact_size_mib,
            "macs": float(self.macs),
        }
        return found if self.energy_mj is None else {**found, "energy_mj": self.energy_mj / self.time_margin}


class Figures(Frozen):
    """Predicted cost of one student on the device; latency_p90_ms is the p50 times the profile's p90/p50.

    parameters: weights and biases once batch norms are folded. activation_elements: read and
    written over all kernels. gates: blocks with squeeze-and-excite. image_size: px of the input.
    energy_mj: None where the device's power is unknown.
    """

    kind: Literal["predicted"] = "predicted"
    latency_p50_ms: float
    latency_p90_ms: float
    peak_memory_mib: float
    artifact_size_mib: float
    macs: int
    parameters: int
    activation_elements: int
    kernels: int
    gates: int = 0
    image_size: int = Field(ge=1)
    energy_mj: float | None = None

    def overruns(self, limits: Limits) -> dict[str, float]:
        """By what factor each limit is missed, worst first; empty when all are kept.

        >>> figures = Figures(latency_p50_ms=2, latency_p90_ms=3, peak_memory_mib=1, artifact_size_mib=1, macs=10,
        ...                   parameters=5, activation_elements=9, kernels=3, image_size=8)
        >>> figures.overruns(Limits(latency_p90_ms=1.5, peak_memory_mib=8, artifact_size_mib=8, macs=8))
        {'latency_p90_ms': 2.0, 'macs': 1.25}
        """
        own = self.__dict__
        ratios = {name: own[name] / bound for name, bound in limits.bounds.items() if own[name] is not None}
        over = [(name, ratio) for name, ratio in ratios.items() if ratio > 1]
        return dict(sorted(over, key=lambda item: -item[1]))


class Candidate(Frozen):
    """A student, its predicted cost, and its capacity score (a prior: higher is probably more accurate)."""

    spec: AnySpec
    figures: Figures
    score: float


class LeftOut(Frozen):
    """Students of a space that were not searched because of an operator: refused, or avoided as it leaves the unit."""

    space: str
    students: int
    misfit: Misfit


class Selection(Frozen):
    """The best candidates that keep every limit, best first.

    considered: how many students the space holds; fitting: how many of those looked at one by one keep the limits.
    front: fastest first, each of higher capacity than any faster one found. method: how the search was done.
    left_out: who is not among `considered`, one entry for each space and operator.
    """

    top: tuple[Candidate, ...] = Field(min_length=1)
    limits: Limits
    considered: int
    fitting: int
    front: tuple[Candidate, ...] = ()
    method: str = ""
    left_out: tuple[LeftOut, ...] = ()

    @property
    def chosen(self) -> Candidate:
        """The student to train."""
        return self.top[0]


class Infeasible(Frozen):
    """No student keeps every limit. cheapest: the one that misses by least; binding: the limit it misses most."""

    cheapest: Candidate
    limits: Limits
    considered: int

    @property
    def overruns(self) -> dict[str, float]:
        """By what factor the cheapest candidate misses each limit, worst first."""
        return self.cheapest.figures.overruns(self.limits)

    @property
    def binding(self) -> str:
        """The limit that is missed most."""
        return next(iter(self.overruns))

    def explain(self) -> str:
        """One line: the binding limit, what the cheapest student needs, and by how much it misses."""
        figures, limits = self.cheapest.figures.model_dump(), self.limits.model_dump()
        margin = self.limits.time_margin
        misses = [
            f"{name} {figures[name]:.4g}{f' x {margin:.2f} margin' if name in _TIMES and margin != 1 else ''} > "
            f"{limits[name]:.4g} (x{ratio:.2f})"
            for name, ratio in self.overruns.items()
        ]
        return f"no student of {self.considered} fits; the cheapest misses {', '.join(misses)}"
