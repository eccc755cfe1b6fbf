"""Latency of a graph on a profile: from rows of this very unit where there are some, else of its relatives, else none.

Order: measured devices that the profile's unit names as its own (`calibration_devices`), then its `relative_devices` in
their order; among these, rows of the asked runtime, then of the nearest one; a profile without either gets the
uncalibrated roofline. What an estimate rests on is its provenance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from edgekd.artifact import Precision
from edgekd.errors import InputError
from edgekd.latency.cost import GraphCost
from edgekd.latency.estimate import Estimate, arithmetic, roofline
from edgekd.latency.features import NAMES, UNITS, Graph, Vector, features, mask
from edgekd.latency.hierarchy import Matrix, Normal, Rows, fit_device
from edgekd.latency.published import style_of
from edgekd.latency.table import CalibrationTable, Costs, Interval, shipped_table
from edgekd.profile import ComputeUnit, HardwareProfile

# Runtimes of published rows that stand for a target, nearest first. A name matches where it begins a row's runtime.
_RUNTIMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("tflite", "cpu"): ("TFLite", "XNNPACK", "Paddle Lite", "ncnn", "ONNX Runtime", "PyTorch"),
    ("tflite", "gpu"): ("TFLite GPU", "TFLite", "Paddle Lite OpenCL", "ncnn Vulkan"),
    ("tflite", "npu"): ("TFLite (QNN delegate)", "TFLite EdgeTPU", "QNN DLC", "QNN", "ONNX Runtime (QNN EP)", "TFLite"),
    ("onnxruntime", "cpu"): ("ONNX Runtime", "OpenVINO", "PyTorch torch.compile", "ncnn", "XNNPACK", "TFLite"),
    ("onnxruntime", "npu"): ("ONNX Runtime (QNN EP)", "QNN DLC", "QNN", "TFLite (QNN delegate)"),
    ("onnxruntime", "gpu"): ("TensorRT", "PyTorch CUDA", "ncnn Vulkan"),
    ("openvino", "cpu"): ("OpenVINO", "PyTorch torch.compile", "ONNX Runtime", "ncnn"),
    ("openvino", "gpu"): ("OpenVINO", "ncnn Vulkan"),
    ("openvino", "npu"): ("OpenVINO",),
    ("tensorrt", "gpu"): ("TensorRT", "PyTorch CUDA", "ncnn Vulkan"),
    ("coreml", "npu"): ("Core ML",),
    ("coreml", "gpu"): ("Core ML", "ncnn Vulkan"),
    ("coreml", "cpu"): ("ncnn", "TFLite"),
}
_PRECISIONS: dict[str, tuple[str, ...]] = {
    "fp32": ("fp32", "fp16", "fp16?"),
    "fp16": ("fp16", "fp16?", "fp32"),
    "w8": ("fp32", "fp16"),
    "int8": ("int8", "w8a8"),
}
# Another device, or another runtime on the same one. Judgement: related devices of the tables differ by up to two.
BORROWED = Interval(0.5, 2.0, 0)
_PASS, _BEYOND = NAMES.index("pass"), NAMES.index("weights_beyond")


class Rest(NamedTuple):
    """What an estimate rests on: costs, the interval of its factors, and in words."""

    costs: Costs
    interval: Interval
    provenance: str


class Predictor:
    """Predicts milliseconds of graphs on one unit of a profile, one at a time or ten thousand at once.

    runtime: a target's name; threads: of a CPU, None for as many as the rows nearest to all cores have.
    Raises: InputError: the profile lacks the unit, the unit has no path at the precision, or threads are no count.

    >>> from edgekd.profile import load_profile
    >>> predictor = Predictor(load_profile("jetson-nano"), unit="gpu", runtime="tensorrt", precision="fp16")
    >>> predictor.rest is not None and predictor.rest.costs.device.name
    'NVIDIA Jetson Nano'
    """

    def __init__(
        self,
        profile: HardwareProfile,
        *,
        unit: str,
        runtime: str,
        precision: Precision,
        threads: int | None = None,
        table: CalibrationTable | None = None,
    ) -> None:
        self.profile, self.unit, self.precision = profile, profile.unit(unit), precision
        if threads is not None and not 1 <= threads <= 1024:
            raise InputError(f"{threads} threads", fix="give a count from 1 to 1024")
        self.table = shipped_table() if table is None else table
        self.rest = _rest(self.table, self.unit, runtime, precision, threads)
        if self.rest is None or not (self.unit.runs(precision) or precision == "fp16"):
            arithmetic(self.unit, precision)  # refuse at the door: there is no such path, or no peak for a roofline

    def estimate(self, cost: GraphCost) -> Estimate:
        """Median and 80 % interval at batch 1. Raises: InputError: an operator that no vocabulary knows."""
        refuse_unknown(cost)
        if self.rest is None:
            return roofline(cost, self.unit, self.precision)
        p50_ms = float(self.milliseconds(features(cost)[None])[0])
        low, high, _ = self.rest.interval
        return Estimate(p50_ms=p50_ms, lo_ms=p50_ms * low, hi_ms=p50_ms * high, provenance=self.rest.provenance)

    def milliseconds(self, rows: Matrix) -> Vector:
        """Medians for many graphs: features (graphs, features) to (graphs,). Raises: InputError: nothing to rest on."""
        return np.asarray(rows @ self._ms_per_unit)

    def work_ms(self, graph: Graph) -> float:
        """Milliseconds that some kernels add to a network, without what a pass costs: the price of a block.

        Raises: as `milliseconds`.
        """
        row = features(graph) * self._ms_per_unit
        return float(row.sum() - row[_PASS] - row[_BEYOND])

    @property
    def pass_ms(self) -> float:
        """What one inference costs besides its kernels. Raises: as `milliseconds`."""
        return float(self._ms_per_unit[_PASS] * UNITS[_PASS])

    @property
    def beyond_ms(self) -> float:
        """What each weight costs on top once no cache holds them all. Raises: as `milliseconds`."""
        return float(self._ms_per_unit[_BEYOND] * UNITS[_BEYOND])

    @cached_property
    def _ms_per_unit(self) -> Vector:
        if self.rest is None:
            raise InputError("no measured device to rest on", where=f"profile '{self.profile.name}'")
        return np.asarray(np.exp(self.rest.costs.theta) * mask(style_of(self.rest.costs.device.kind)))

    def adapted(self, rows: Matrix, milliseconds: Sequence[float]) -> Predictor:
        """The same predictor moved by networks measured on the device itself: features (networks, features), medians.

        Ten networks of different sizes and families bring a new device close to a known one. Raises: InputError: no
        kind of device covers the runtime and precision.
        """
        kind = self.rest.costs.device.kind if self.rest is not None else None
        if kind is None:
            raise InputError("no kind of device to start from", where=f"profile '{self.profile.name}'")
        prior = self.table.kinds[kind]
        measured = Rows(rows * mask(style_of(kind)), np.log(np.asarray(milliseconds)), np.ones(len(milliseconds)))
        theta = fit_device(measured, Normal(prior.mean, prior.covariance)).mean
        other = Predictor.__new__(Predictor)
        other.__dict__.update({key: value for key, value in self.__dict__.items() if key != "_ms_per_unit"})
        device = self.rest.costs.device._replace(name=self.profile.name) if self.rest else None
        assert device is not None
        words = f"{len(milliseconds)} networks measured on this device, {kind} of {_count(self.table, kind)} devices"
        bounds = self.table.few.get(kind, BORROWED)
        other.rest = Rest(Costs(device, len(milliseconds), theta), bounds, words)
        return other


def refuse_unknown(cost: GraphCost) -> None:
    """Raises: InputError: the graph has an operator whose cost nobody stated."""
    if cost.unknown:
        first = cost.unknown[0]
        raise InputError(
            f"unknown operator '{first.op}': its cost cannot be predicted",
            where=f"{first.name}",
            fix="measure with `edgekd profile`, or add it to edgekd/latency/vocabulary.py",
        )


def _rest(table: CalibrationTable, unit: ComputeUnit, runtime: str, precision: str, threads: int | None) -> Rest | None:
    runtimes, precisions = _RUNTIMES.get((runtime, unit.kind), ()), _PRECISIONS.get(precision, ())
    own, relatives = unit.calibration_devices, unit.relative_devices
    ranked = []
    for costs in table.devices:
        device = costs.device
        place = _place((*own, *relatives), device.name)
        rank = _rank(runtimes, device.runtime)
        if None in (place, rank) or device.precision not in precisions or _unit_of(costs) != unit.kind:
            continue
        borrowed = device.name not in own
        count = abs(_threads(device.threads, unit) - (threads or unit.cores or 4))
        exact = precisions.index(device.precision)
        ranked.append(((borrowed, place if borrowed else 0, rank, exact, count, -costs.networks, device), costs))
    if not ranked:
        return None
    return _described(table, unit, min(ranked, key=lambda pair: pair[0])[1], runtimes)


def _described(table: CalibrationTable, unit: ComputeUnit, costs: Costs, runtimes: Sequence[str]) -> Rest:
    device = costs.device
    same_runtime = bool(runtimes) and device.runtime.startswith(runtimes[0])
    words = f"{costs.networks} networks measured in {device.runtime}, {device.precision}"
    words += f", {device.threads} threads" if device.threads.isdigit() else ""
    words += f", on {device.name}"
    if device.name in unit.calibration_devices and same_runtime:
        return Rest(costs, _interval(table, costs), words)
    why = "a relative of this unit" if device.name not in unit.calibration_devices else "another runtime"
    return Rest(costs, _wider(_interval(table, costs)), f"{words} ({why})")


def _interval(table: CalibrationTable, costs: Costs) -> Interval:
    """The device's own interval, or its kind's, or the widest."""
    own = table.families.get("|".join(costs.device))
    return own or table.families.get(costs.device.kind) or BORROWED


def _wider(interval: Interval) -> Interval:
    return Interval(min(interval.low, BORROWED.low), max(interval.high, BORROWED.high), interval.rows)


def _place(names: Iterable[str], name: str) -> int | None:
    return next((i for i, known in enumerate(names) if known == name), None)


def _rank(runtimes: Sequence[str], runtime: str) -> int | None:
    return next((i for i, known in enumerate(runtimes) if runtime.startswith(known)), None)


def _unit_of(costs: Costs) -> str:
    return costs.device.kind.split(".")[0]


def _threads(text: str, unit: ComputeUnit) -> int:
    return int(text) if text.isdigit() else unit.cores or 4


def _count(table: CalibrationTable, kind: str) -> int:
    return sum(costs.device.kind == kind for costs in table.devices)
