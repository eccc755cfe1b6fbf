"""Hardware profiles: what a device can do, in numbers with units and sources. One TOML file per device in `profiles/`.

Strings become types here, once: unknown keys are refused with the nearest known key named, and the file is named too.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from edgekd.artifact import DevicePrecision, Frozen, Precision
from edgekd.errors import InputError, did_you_mean

Confidence = Literal["measured", "vendor", "derived", "recalled"]
Transport = Literal["local", "ssh", "adb", "macos"]


class Table(Frozen):
    """A table of a profile file: numbers are numbers (no quoted ones) and finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ComputeUnit(Table):
    """One engine of the device. Peaks are dense, at the clock the source names; overhead is per fused kernel.

    efficiency: the fraction of the peak that real convolutions reach (1 = the roofline itself).
    fitted_rows: how many published measurements of this silicon the efficiencies and the overhead were fitted to.
    """

    kind: Literal["cpu", "gpu", "npu"]
    name: str
    peak_fp32_gflops: float | None = Field(default=None, gt=0)
    peak_fp16_gflops: float | None = Field(default=None, gt=0)
    peak_int8_gops: float | None = Field(default=None, gt=0)
    dram_gb_per_s: float = Field(gt=0)
    kernel_overhead_us: float = Field(ge=0)
    efficiency: float = Field(gt=0, le=1)
    depthwise_efficiency: float = Field(gt=0, le=1)
    fitted_rows: int = Field(default=0, ge=0)
    source: str = Field(min_length=1)
    confidence: Confidence

    @model_validator(mode="after")
    def _has_a_peak(self) -> ComputeUnit:
        if not any(self.peak_gops(precision) for precision in get_args(Precision)):
            raise ValueError("needs one of peak_fp32_gflops, peak_fp16_gflops, peak_int8_gops")
        return self

    def peak_gops(self, precision: Precision) -> float | None:
        """Peak at a precision in 1e9 operations per second (a multiply-add is two), or None where it has none."""
        peaks = {"fp16": self.peak_fp16_gflops, "int8": self.peak_int8_gops}
        return peaks.get(precision, self.peak_fp32_gflops)  # w8 computes in float


class RuntimeSupport(Table):
    """A runtime on this device: its version there, which unit it drives, and what it accepts."""

    target: str
    version: str
    unit: Literal["cpu", "gpu", "npu"]
    precisions: tuple[DevicePrecision, ...] = Field(min_length=1)
    onnx_opset_max: int | None = Field(default=None, ge=7, le=30)
    onnx_ir_version_max: int | None = Field(default=None, ge=3, le=20)
    deployment_target: str | None = None
    compute_capability: str | None = None
    why: str
    source: str = Field(min_length=1)

    @field_validator("target")
    @classmethod
    def _target_exists(cls, target: str) -> str:
        known = _target_names()
        if target not in known:
            raise ValueError(f"no such target; {did_you_mean(target, known)}")
        return target

    def takes(self, precision: Precision) -> bool:
        """Whether a precision is legal here; w8 computes in float, so it is where float is."""
        return precision in self.precisions or (precision == "w8" and not {"fp32", "fp16"}.isdisjoint(self.precisions))


class Quantisation(Table):
    """Whether int8 pays on this device and what it must look like; `why` is shown to the user."""

    preferred_precision: DevicePrecision
    scheme: Literal["affine", "symmetric"] | None = None
    weight_bits: Literal[7, 8] = 8
    why: str = Field(min_length=1)
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _int8_needs_a_scheme(self) -> Quantisation:
        if self.preferred_precision == "int8" and self.scheme is None:
            raise ValueError("preferred_precision 'int8' needs scheme = 'affine' or 'symmetric'")
        return self


class Budgets(Table):
    """Default budgets for one inference at batch 1; `why` says where they come from."""

    latency_p90_ms: float = Field(gt=0)
    peak_memory_mib: float = Field(gt=0)
    artifact_size_mib: float = Field(gt=0)
    teacher_macs_fraction: float = Field(default=0.125, gt=0, le=1)
    why: str


class HardwareProfile(Table):
    """A device. The first runtime is the one a bundle is made for; the others are legal too.

    p90_over_p50: how much slower the 90th percentile is than the median on this device (headroom for the budget).
    cpu_flags, cpu_flags_absent: for a local profile, what the kernel of a host must and must not report to be this
    device (a machine with more is another device: its figures would flatter the profile). Without flags no host is.
    """

    name: str
    title: str
    ram_mib: int = Field(gt=0)
    p90_over_p50: float = Field(ge=1)
    transport: Transport
    units: tuple[ComputeUnit, ...] = Field(min_length=1)
    runtimes: tuple[RuntimeSupport, ...] = Field(min_length=1)
    quantisation: Quantisation
    budgets: Budgets
    cpu_flags: tuple[str, ...] = ()
    cpu_flags_absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _parts_agree(self) -> HardwareProfile:
        for mistake in _disagreements(self):
            raise ValueError(mistake)
        return self

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

    def runtime(self, target: str) -> RuntimeSupport:
        """How a target runs on this device. Raises: InputError: it does not; the ones that do are named."""
        for runtime in self.runtimes:
            if runtime.target == target:
                return runtime
        have = ", ".join(r.target for r in self.runtimes)
        raise InputError(f"no runtime '{target}'", where=f"profile '{self.name}'", fix=f"it has: {have}")


def _disagreements(profile: HardwareProfile) -> Iterator[str]:
    units = {unit.kind: unit for unit in profile.units}
    if len(units) < len(profile.units):
        yield "two units of the same kind: give each kind (cpu, gpu, npu) once"
    for runtime in profile.runtimes:
        if runtime.unit not in units:
            yield f"runtime '{runtime.target}' drives unit '{runtime.unit}', which the profile does not have"
        elif "int8" in runtime.precisions and units[runtime.unit].peak_int8_gops is None:
            yield f"runtime '{runtime.target}' lists int8, but unit '{runtime.unit}' has no peak_int8_gops"
    preferred, primary = profile.quantisation.preferred_precision, profile.runtimes[0]
    if preferred not in primary.precisions:
        legal = ", ".join(primary.precisions)
        yield f"preferred_precision '{preferred}' is not legal in the first runtime, '{primary.target}' ({legal})"


def profile_names() -> list[str]:
    """Names of the profiles that ship with edgekd, sorted."""
    root = resources.files("edgekd.profiles")
    return sorted(entry.name[:-5] for entry in root.iterdir() if entry.name.endswith(".toml"))


def load_profile(name_or_file: str) -> HardwareProfile:
    """A shipped profile by name, or a TOML file by path.

    Raises: InputError: no such profile (nearest names given), or the file is not a valid profile (key and cause named).

    >>> load_profile("jetson-nano").quantisation.preferred_precision
    'fp16'
    """
    path = Path(name_or_file)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise InputError("no such profile file", where=path)
        return parse_profile(path.read_text(encoding="utf-8"), where=str(path))
    if name_or_file not in profile_names():
        raise InputError(f"no profile '{name_or_file}'", fix=did_you_mean(name_or_file, profile_names()))
    text = (resources.files("edgekd.profiles") / f"{name_or_file}.toml").read_text(encoding="utf-8")
    return parse_profile(text, where=f"profiles/{name_or_file}.toml")


def parse_profile(text: str, *, where: str) -> HardwareProfile:
    """TOML text to a profile. Raises: InputError: names the file, the key, what was got and what to do."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML ({error})", where=where) from error
    try:
        # Through JSON, because only there does strict validation take a list for a tuple.
        return HardwareProfile.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        raise InputError(_first_mistake(error, document), where=where, fix=_cure(error)) from error


def _first(error: ValidationError) -> ErrorDetails:
    # A misspelt key is also a missing one: name the spelling, which is the cause.
    return min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")


def _first_mistake(error: ValidationError, document: dict[str, Any]) -> str:
    first = _first(error)
    key = _key_path(first["loc"], document)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{more}"
    if first["type"] == "missing":
        return f"missing key '{key}'{more}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not key or isinstance(first["input"], dict | list | BaseModel):
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    return f"{key} = {first['input']!r}: {message}{more}"


def _key_path(parts: tuple[int | str, ...], document: dict[str, Any]) -> str:
    """units.1.efficiency as `units[cpu].efficiency`: an entry of a list is named by its kind or target."""
    path, here = "", cast(Any, document)
    for part in parts:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None  # a missing key has no value to go on with
        if isinstance(part, int):
            name = (here.get("kind") or here.get("target")) if isinstance(here, dict) else None
            path += f"[{name or part}]"
        else:
            path += f".{part}" if path else part
    return path


def _cure(error: ValidationError) -> str:
    first = _first(error)
    if first["type"] == "extra_forbidden":
        return did_you_mean(str(first["loc"][-1]), _keys_at(first["loc"][:-1]))
    return "see docs/profiles.md"


def _keys_at(parts: tuple[int | str, ...]) -> list[str]:
    """The keys that are legal at a place; a key of another table is no help there."""
    tables: dict[str, type[BaseModel]] = {
        "units": ComputeUnit,
        "runtimes": RuntimeSupport,
        "quantisation": Quantisation,
        "budgets": Budgets,
    }
    model = tables.get(str(parts[0]), HardwareProfile) if parts else HardwareProfile
    return sorted(model.model_fields)


def _target_names() -> list[str]:
    # Names only: this room lies below edgekd.targets and loads none of them.
    installed = {entry.name for entry in entry_points(group="edgekd.targets")}
    return sorted({"tflite", "coreml", "openvino", "onnxruntime", "tensorrt", "null"} | installed)
