"""Latency, memory and size predicted from a graph's cost and a profile: a roofline, labelled as what it is.

Model: sum over fused kernels of max(compute time, memory time) + overhead, with the efficiencies of the profile.
How far off it is was checked against published measurements (scripts/check_roofline.py; docs/latency.md).
"""

from __future__ import annotations

import math
from typing import Literal

from edgekd.artifact import Frozen, Precision
from edgekd.errors import InputError
from edgekd.latency.cost import GraphCost
from edgekd.latency.footprint import BYTES_PER_ELEMENT, footprint_mib
from edgekd.profile import ComputeUnit, HardwareProfile

# Measured over predicted lies in these bounds for four networks of five. Evidence: scripts/check_roofline.py, with the
# table in docs/latency.md. Constants fitted to other networks of the same silicon: 10 to 90 % of 95 rows on 6 devices
# are 0.50 to 2.16 (81 % covered); constants borrowed from other devices, 283 rows on 12: 0.49 to 2.35 (86 %).
INTERVAL_FACTORS: dict[Literal["fitted", "assumed"], tuple[float, float]] = {
    "fitted": (0.5, 2.2),
    "assumed": (0.4, 2.5),
}

_MIB = 2.0**20
UNCALIBRATED = "roofline, uncalibrated"
_GRAPH_BYTES_PER_KERNEL = 2048


class Estimate(Frozen):
    """A predicted latency at batch 1. lo_ms to hi_ms should hold the measured median of four models out of five."""

    p50_ms: float
    lo_ms: float
    hi_ms: float
    provenance: str
    kind: Literal["predicted"] = "predicted"


def estimate_latency(cost: GraphCost, profile: HardwareProfile, *, unit: str, precision: Precision) -> Estimate:
    """Roofline time of one forward pass on a unit of a device; `edgekd.latency.Predictor` is the calibrated way.

    Unit: ms. Never faster for more multiply-adds, more bytes or less bandwidth.
    Raises: InputError: the device has no such unit, or the unit has no path at that precision.

    >>> from edgekd.latency.cost import OpCost
    >>> from edgekd.profile import load_profile
    >>> op = OpCost(kind="conv", name="c", macs=10**9)
    >>> cost = GraphCost(ops=(op,), parameters=0, peak_activation_elements=0)
    >>> estimate_latency(cost, load_profile("jetson-nano"), unit="gpu", precision="fp16").provenance
    'roofline, uncalibrated'
    """
    return roofline(cost, profile.unit(unit), precision)


def roofline(cost: GraphCost, engine: ComputeUnit, precision: Precision) -> Estimate:
    """Sum of the kernels' roofline times on a compute unit. Raises: InputError: no path at that precision."""
    seconds = sum(
        kernel_seconds(op.kind, op.macs, op.moved_elements, unit=engine, precision=precision) for op in cost.ops
    )
    low, high = INTERVAL_FACTORS["fitted" if engine.fitted_rows else "assumed"]
    p50_ms = seconds * 1e3
    return Estimate(p50_ms=p50_ms, lo_ms=p50_ms * low, hi_ms=p50_ms * high, provenance=UNCALIBRATED)


def kernel_seconds(kind: str, macs: int, moved_elements: int, *, unit: ComputeUnit, precision: Precision) -> float:
    """Roofline time of one kernel in seconds. Raises: InputError: the unit has no path at that precision."""
    peak_gops, bytes_per_element = arithmetic(unit, precision)
    efficiency = unit.depthwise_efficiency if kind == "depthwise" else unit.efficiency
    compute_s = 2 * macs / (peak_gops * 1e9 * efficiency)
    # A unit whose bandwidth nobody states (a microcontroller's SRAM) is taken as bound by arithmetic.
    bytes_per_s = unit.dram_gb_per_s * 1e9 if unit.dram_gb_per_s is not None else math.inf
    memory_s = moved_elements * bytes_per_element / bytes_per_s
    return max(compute_s, memory_s) + unit.kernel_overhead_us * 1e-6


def arithmetic(unit: ComputeUnit, precision: Precision) -> tuple[float, int]:
    """Peak in 1e9 operations per second and bytes per element of what really runs.

    An fp16 file on a unit without fp16 arithmetic is unpacked once and runs in fp32. int8 without an int8 path is an
    error: some runtimes refuse it, the others emulate it slowly.
    """
    runs: Precision = "fp32" if precision == "fp16" and not unit.runs("fp16") else precision
    peak_gops = unit.peak_gops(runs)
    if peak_gops is None:
        have = ", ".join(p for p in BYTES_PER_ELEMENT if unit.peak_gops(p))
        where = f"unit '{unit.kind}' ({unit.name})"
        if unit.runs(runs):
            what = f"nobody publishes its {runs} peak, which a roofline needs"
            raise InputError(what, where=where, fix=f"measure, or take a precision with a known peak: {have or 'none'}")
        raise InputError(f"no {precision} path", where=where, fix=f"it runs: {have}")
    return peak_gops, BYTES_PER_ELEMENT[runs]


def estimate_size_mib(cost: GraphCost, precision: Precision) -> float:
    """Predicted artifact size in MiB; see `artifact_mib`."""
    return artifact_mib(cost.weight_elements, len(cost.ops), precision)


def estimate_memory_mib(cost: GraphCost, precision: Precision, runtime: str) -> float:
    """Predicted growth of the process in MiB when a runtime loads and runs the model; see `footprint_mib`."""
    return footprint_mib(cost.weight_elements, cost.peak_activation_elements, precision, runtime)


def artifact_mib(weight_elements: int, kernels: int, precision: Precision) -> float:
    """Weights at the precision and 2 KiB of graph per kernel, in MiB.

    >>> artifact_mib(2**20, 0, "fp16")
    2.0
    """
    return (weight_elements * BYTES_PER_ELEMENT[precision] + kernels * _GRAPH_BYTES_PER_KERNEL) / _MIB
