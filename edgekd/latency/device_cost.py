"""What one compute unit of a device charges: the cost model that a student search asks, calibrated where it can be."""

from __future__ import annotations

import copy

from edgekd.artifact import Precision
from edgekd.latency.cost import GraphCost
from edgekd.latency.estimate import (
    INTERVAL_FACTORS,
    UNCALIBRATED,
    Estimate,
    artifact_mib,
    kernel_seconds,
)
from edgekd.latency.features import CACHED_WEIGHTS, Graph
from edgekd.latency.footprint import footprint_mib
from edgekd.latency.predict import Predictor, refuse_unknown
from edgekd.profile import HardwareProfile


class ProfileCost:
    """Costs of graphs and parts of graphs; `edgekd.latency.Predictor` where it has rows to rest on, else the roofline.

    threads: of a CPU; None: as many as it has cores.
    Raises: InputError: the device has no such unit, or the unit has no path at that precision.

    >>> from edgekd.profile import load_profile
    >>> nano = ProfileCost(load_profile("jetson-nano"), unit="gpu", precision="fp16", runtime="tensorrt")
    >>> nano.provenance
    '14 networks measured in TensorRT, fp16, on NVIDIA Jetson Nano'
    """

    def __init__(
        self, profile: HardwareProfile, *, unit: str, precision: Precision, runtime: str, threads: int | None = None
    ) -> None:
        self.predictor = Predictor(profile, unit=unit, runtime=runtime, precision=precision, threads=threads)
        self._engine = profile.unit(unit)
        self._precision, self._runtime = precision, runtime
        self.p90_over_p50 = profile.p90_over_p50

    @property
    def provenance(self) -> str:
        """What the latencies rest on."""
        return UNCALIBRATED if self.predictor.rest is None else self.predictor.rest.provenance

    @property
    def interval(self) -> tuple[float, float]:
        """Measured over predicted lies between these for four networks of five."""
        if self.predictor.rest is not None:
            low, high, _ = self.predictor.rest.interval
            return low, high
        return INTERVAL_FACTORS["fitted" if self._engine.fitted_rows else "assumed"]

    @property
    def high(self) -> float:
        """What measured over predicted rarely exceeds: what a promise to fit a budget must allow for."""
        return self.interval[1]

    def resting_on(self, predictor: Predictor) -> ProfileCost:
        """The same with another predictor of the same unit: one moved by networks measured on the device."""
        other = copy.copy(self)
        other.predictor = predictor
        return other

    @property
    def tariffs(self) -> tuple[tuple[float, float], ...]:
        """What a network costs besides its work is the largest of these: (ms, ms per weight)."""
        if self.predictor.rest is None:
            return ((0.0, 0.0),)
        base, beyond = self.predictor.pass_ms, self.predictor.beyond_ms
        return (base, 0.0), (base - beyond * CACHED_WEIGHTS, beyond)

    def work_ms(self, graph: Graph) -> float:
        """Median milliseconds at batch 1 that kernels add to a network."""
        if self.predictor.rest is not None:
            return self.predictor.work_ms(graph)
        return 1e3 * sum(
            kernel_seconds(
                op.kind,
                op.macs,
                op.read_elements + op.write_elements + op.weight_elements,
                unit=self._engine,
                precision=self._precision,
            )
            for op in graph.ops
        )

    def graph_ms(self, cost: GraphCost) -> float:
        """As `work_ms`, of a traced network. Raises: InputError: an operator that no vocabulary knows."""
        refuse_unknown(cost)
        return self.work_ms(cost)

    def estimate(self, cost: GraphCost) -> Estimate:
        """Of a whole network. Raises: InputError: an operator that no vocabulary knows."""
        return self.predictor.estimate(cost)

    def memory_mib(self, weight_elements: int, peak_activation_elements: int) -> float:
        """Growth of the process in MiB when the runtime loads and runs the model."""
        return footprint_mib(weight_elements, peak_activation_elements, self._precision, self._runtime)

    def size_mib(self, weight_elements: int, kernels: int) -> float:
        """Size of the artifact in MiB."""
        return artifact_mib(weight_elements, kernels, self._precision)
