"""The tables of a hardware profile as types: frozen, unknown keys refused, numbers in plausible ranges.

A number that nobody has published is absent (None), never zero. Constants of the roofline that a file leaves out are
filled with the median of fitted units of that kind and say so in their evidence.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from edgekd.artifact import DevicePrecision, Frozen, Precision
from edgekd.errors import InputError, did_you_mean
from edgekd.profile.agreement import disagreements
from edgekd.profile.operators import is_operator, unknown_operator

# Strongest first. third-party: a table that is not the vendor's; fitted: to published measurements; assumed: a choice.
Confidence = Literal["measured", "datasheet", "vendor", "fitted", "derived", "third-party", "assumed", "recalled"]
Transport = Literal["local", "ssh", "adb", "macos", "none"]
UnitKind = Literal["cpu", "gpu", "npu"]
DeviceKind = Literal["jetson", "raspberry-pi", "android", "iphone", "x86", "gpu", "microcontroller", "other"]
Scheme = Literal["affine", "symmetric"]
Text = Annotated[str, Field(min_length=1)]
Gops = Annotated[float, Field(gt=0, le=1e7)]
Watts = Annotated[float, Field(gt=0, le=2000)]
Mib = Annotated[float, Field(gt=0, le=4 * 2**20)]


class Table(Frozen):
    """A table of a profile file: numbers are numbers (no quoted ones) and finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Evidence(Table):
    """Where one number comes from, where that differs from the rest of its table."""

    source: Text
    confidence: Confidence


class ComputeUnit(Table):
    """One engine of the device. Peaks are dense, at the clock the source names; overhead is per fused kernel.

    architecture: the design's generation (cortex-a76, ampere-sm87, hexagon-v75): equal ones are the same design.
    cores: how many cores the peaks count, and the threads that they need. precisions: what it runs where nobody
    publishes its peaks. fp16_runs_as_fp32: it has no fp16 arithmetic, so an fp16 file is unpacked and runs in fp32.
    efficiency: the fraction of the peak that real convolutions reach (1 = the roofline itself). fitted_rows: how many
    published measurements of this silicon the efficiencies and the overhead were fitted to.
    calibration_devices: names, in published tables of latencies, of devices with this very unit. relative_devices:
    names of devices with the nearest designs, nearest first, to borrow from. evidence: per key, where it differs.
    """

    kind: UnitKind
    name: Text
    architecture: str = ""
    cores: int | None = Field(default=None, gt=0, le=100_000)
    peak_fp32_gflops: Gops | None = None
    peak_fp16_gflops: Gops | None = None
    peak_int8_gops: Gops | None = None
    precisions: tuple[DevicePrecision, ...] = ()
    fp16_runs_as_fp32: bool = False
    dram_gb_per_s: float | None = Field(default=None, gt=0, le=20_000)
    kernel_overhead_us: float = Field(ge=0, le=100_000)
    efficiency: float = Field(gt=0, le=1)
    depthwise_efficiency: float = Field(gt=0, le=1)
    fitted_rows: int = Field(default=0, ge=0, le=1_000_000)
    calibration_devices: tuple[str, ...] = ()
    relative_devices: tuple[str, ...] = ()
    source: Text
    confidence: Confidence
    evidence: dict[str, Evidence] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _runs_something(self) -> ComputeUnit:
        if not self.precisions and not any(self.peak_gops(precision) for precision in get_args(Precision)):
            raise ValueError(
                "needs one of peak_fp32_gflops, peak_fp16_gflops, peak_int8_gops, or precisions where no peak is known"
            )
        _evidence_is_about_numbers(self)
        return self

    def peak_gops(self, precision: Precision) -> float | None:
        """Peak at a precision in 1e9 operations per second (a multiply-add is two), or None where none is known."""
        peaks = {"fp16": self.peak_fp16_gflops, "int8": self.peak_int8_gops}
        return peaks.get(precision, self.peak_fp32_gflops)  # w8 computes in float

    def runs(self, precision: Precision) -> bool:
        """Whether the unit has arithmetic of a precision, with or without a published peak."""
        return self.peak_gops(precision) is not None or precision in self.precisions


class Fallback(Table):
    """Operators that a runtime does not run on its unit: where they go instead, and why that is known.

    ops: in the words of the runtime's own format (`edgekd.profile.operators`).
    """

    ops: tuple[Text, ...] = Field(min_length=1)
    to: Literal["cpu", "gpu", "npu", "refused"]
    why: Text


class RuntimeSupport(Table):
    """A runtime on this device: its version there, which unit it drives, and what it accepts.

    delegate: the part that reaches the unit, where it is not the runtime's own (QNN, Core ML delegate).
    schemes: legal int8 activation schemes; empty: what the target takes. fallbacks: operators known to go elsewhere.
    """

    target: str
    version: str
    unit: UnitKind
    precisions: tuple[DevicePrecision, ...] = Field(min_length=1)
    schemes: tuple[Scheme, ...] = ()
    delegate: str | None = None
    onnx_opset_min: int | None = Field(default=None, ge=7, le=30)
    onnx_opset_max: int | None = Field(default=None, ge=7, le=30)
    onnx_ir_version_max: int | None = Field(default=None, ge=3, le=20)
    static_shapes: bool = False
    deployment_target: str | None = None
    compute_capability: str | None = None
    fallbacks: tuple[Fallback, ...] = ()
    why: Text
    source: Text
    confidence: Confidence = "recalled"

    @field_validator("target")
    @classmethod
    def _target_exists(cls, target: str) -> str:
        known = _target_names()
        if target not in known:
            raise ValueError(f"no such target; {did_you_mean(target, known)}")
        return target

    @field_validator("fallbacks")
    @classmethod
    def _operators_exist(cls, fallbacks: tuple[Fallback, ...], info: ValidationInfo) -> tuple[Fallback, ...]:
        target = info.data.get("target")  # absent where it is wrong itself
        names = [name for fallback in fallbacks for name in fallback.ops] if target is not None else []
        unknown = [unknown_operator(name, str(target)) for name in names if not is_operator(name, str(target))]
        if unknown:
            raise ValueError("\n".join(unknown))
        return fallbacks

    def takes(self, precision: Precision) -> bool:
        """Whether a precision is legal here; w8 computes in float, so it is where float is."""
        return precision in self.precisions or (precision == "w8" and not {"fp32", "fp16"}.isdisjoint(self.precisions))


class Quantisation(Table):
    """Whether int8 pays on this device and what it must look like; `why` is shown to the user."""

    preferred_precision: DevicePrecision
    scheme: Scheme | None = None
    weight_bits: Literal[7, 8] = 8
    why: Text
    source: Text
    confidence: Confidence = "recalled"

    @model_validator(mode="after")
    def _int8_needs_a_scheme(self) -> Quantisation:
        if self.preferred_precision == "int8" and self.scheme is None:
            raise ValueError("preferred_precision 'int8' needs scheme = 'affine' or 'symmetric'")
        return self


class Budgets(Table):
    """Default budgets for one inference at batch 1; `why` says where they come from.

    energy_mj: of one inference; None: no limit. thermal_headroom: the share of the latency budget that a cool device
    must leave free, since it will be slower when it is hot: 1 less the hot device's speed over the cool one's.
    evidence: of such a number, which is a fact and no choice.
    """

    latency_p90_ms: float = Field(gt=0, le=600_000)
    peak_memory_mib: Mib
    artifact_size_mib: Mib
    energy_mj: float | None = Field(default=None, gt=0, le=1e9)
    thermal_headroom: float = Field(default=0.0, ge=0, le=0.9)
    teacher_macs_fraction: float = Field(default=0.125, gt=0, le=1)
    why: Text
    evidence: dict[str, Evidence] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _evidence_is_about_its_numbers(self) -> Budgets:
        _evidence_is_about_numbers(self)
        return self


class Power(Table):
    """What the device may draw. limit_w: the cap of the mode or the sustained limit, an upper bound of the power."""

    limit_w: Watts
    idle_w: Watts | None = None
    source: Text
    confidence: Confidence


class UnitInMode(Table):
    """What a power mode changes about one unit; everything else stays."""

    kind: UnitKind
    name: str | None = None
    cores: int | None = Field(default=None, gt=0, le=100_000)
    peak_fp32_gflops: Gops | None = None
    peak_fp16_gflops: Gops | None = None
    peak_int8_gops: Gops | None = None
    dram_gb_per_s: float | None = Field(default=None, gt=0, le=20_000)
    calibration_devices: tuple[str, ...] | None = None


class PowerMode(Table):
    """One way to run the device, chosen as `--profile NAME@MODE`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: Text
    limit_w: Watts | None = None
    units: tuple[UnitInMode, ...] = ()
    source: Text
    confidence: Confidence


class HardwareProfile(Table):
    """A device. The first runtime is the one a bundle is made for; the others are legal too.

    p90_over_p50: how much slower the 90th percentile is than the median on this device (headroom for the budget).
    cpu_flags, cpu_flags_absent: for a local profile, what the kernel of a host must and must not report to be this
    device (a machine with more is another device: its figures would flatter the profile). Without flags no host is.
    power_mode: the mode of `power_modes` that the numbers are for. name: with `@MODE` where it is not the file's own.
    experimental: shown as such; parts of edgekd do not fit the device.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(@[a-z0-9._-]+)?$")
    title: Text
    kind: DeviceKind = "other"
    soc: str = ""
    experimental: bool = False
    ram_mib: int = Field(gt=0, le=4 * 2**20)
    p90_over_p50: float = Field(ge=1, le=20)
    transport: Transport
    evidence: dict[str, Evidence] = Field(default_factory=dict)
    power: Power | None = None
    power_mode: str | None = None
    power_modes: tuple[PowerMode, ...] = ()
    units: tuple[ComputeUnit, ...] = Field(min_length=1)
    runtimes: tuple[RuntimeSupport, ...] = Field(min_length=1)
    quantisation: Quantisation
    budgets: Budgets
    cpu_flags: tuple[str, ...] = ()
    cpu_flags_absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _parts_agree(self) -> HardwareProfile:
        _evidence_is_about_numbers(self)
        mistakes = list(disagreements(self))
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    @property
    def device_name(self) -> str:
        """The name without a power mode."""
        return self.name.partition("@")[0]

    def unit(self, kind: str) -> ComputeUnit:
        """The compute unit of a kind. Raises: InputError: the device has none."""
        for unit in self.units:
            if unit.kind == kind:
                return unit
        have = ", ".join(u.kind for u in self.units)
        raise InputError(f"no compute unit '{kind}'", where=f"profile '{self.name}'", fix=f"it has: {have}")

    @property
    def primary(self) -> RuntimeSupport:
        """The runtime that the budgets are about."""
        return self.runtimes[0]

    def runtime(self, target: str, unit: str | None = None) -> RuntimeSupport:
        """How a target runs on this device, on a unit or on the first one listed for it.

        Raises: InputError: it does not; the ones that do are named.
        """
        for runtime in self.runtimes:
            if runtime.target == target and unit in (None, runtime.unit):
                return runtime
        have = ", ".join(dict.fromkeys(r.target for r in self.runtimes))
        if unit is not None:
            have = ", ".join(f"{r.target} on the {r.unit}" for r in self.runtimes)
        what = f"no runtime '{target}'" + (f" on the {unit}" if unit is not None else "")
        raise InputError(what, where=f"profile '{self.name}'", fix=f"it has: {have}")

    def in_mode(self, mode: str) -> HardwareProfile:
        """The device in one of its power modes. Raises: InputError: it has no such mode."""
        if not self.power_modes:
            raise InputError("no power modes", where=f"profile '{self.name}'", fix=f"leave '@{mode}' out")
        chosen = next((known for known in self.power_modes if known.name == mode), None)
        if chosen is None:
            fix = did_you_mean(mode, [known.name for known in self.power_modes])
            raise InputError(f"no power mode '{mode}'", where=f"profile '{self.name}'", fix=fix)
        return self if mode == self.power_mode else _moded(self, chosen)


def numbers_in(table: BaseModel) -> dict[str, float]:
    """The numbers that a table holds itself, by key."""
    values = {key: getattr(table, key) for key in type(table).model_fields}
    return {key: v for key, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _evidence_is_about_numbers(table: ComputeUnit | Budgets | HardwareProfile) -> None:
    numbers = numbers_in(table)
    for key in table.evidence:
        if key not in numbers:
            raise ValueError(f"evidence for '{key}', which is no number of this table; {did_you_mean(key, numbers)}")


def _moded(profile: HardwareProfile, mode: PowerMode) -> HardwareProfile:
    changes = {unit.kind: unit.model_dump(exclude_none=True, exclude={"kind"}) for unit in mode.units}
    units = tuple(_changed(unit, changes.get(unit.kind, {}), mode) for unit in profile.units)
    power = profile.power
    if mode.limit_w is not None:
        idle_w = power.idle_w if power is not None else None
        power = Power(limit_w=mode.limit_w, idle_w=idle_w, source=mode.source, confidence=mode.confidence)
    name = f"{profile.device_name}@{mode.name}"
    return profile.model_copy(update={"name": name, "power_mode": mode.name, "units": units, "power": power})


def _changed(unit: ComputeUnit, changes: dict[str, Any], mode: PowerMode) -> ComputeUnit:
    evidence = Evidence(source=mode.source, confidence=mode.confidence)
    numbers = {key: evidence for key, value in changes.items() if isinstance(value, float)}
    if numbers and "calibration_devices" not in changes:
        # Rows at other clocks are a relative's, not this mode's.
        relatives = (*unit.calibration_devices, *unit.relative_devices)
        changes = {**changes, "calibration_devices": (), "relative_devices": relatives, "fitted_rows": 0}
    return unit.model_copy(update={**changes, "evidence": {**unit.evidence, **numbers}})


@cache  # what is installed does not change under a process, and asking takes milliseconds
def _target_names() -> list[str]:
    # Names only: this room lies below edgekd.targets and loads none of them.
    installed = {entry.name for entry in entry_points(group="edgekd.targets")}
    return sorted({"tflite", "coreml", "openvino", "onnxruntime", "tensorrt", "null"} | installed)
