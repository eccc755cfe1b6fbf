"""Hardware profiles: what a device can do, in numbers with units and sources. One TOML file per device in `profiles/`.

Strings become types here, once: unknown keys are refused with the nearest known key named, and the file is named too.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from edgekd.artifact import Frozen, Precision
from edgekd.errors import InputError, did_you_mean

Confidence = Literal["measured", "vendor", "derived", "recalled"]
Transport = Literal["local", "ssh", "adb", "macos"]


class ComputeUnit(Frozen):
    """One engine of the device. Peaks are dense, at the clock the source names; overhead is per fused kernel.

    efficiency: the fraction of the peak that real convolutions reach (1 = the roofline itself).
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
    source: str
    confidence: Confidence

    def peak_gops(self, precision: Precision) -> float | None:
        """Peak at a precision in 1e9 operations per second (a multiply-add is two), or None where it has none."""
        return {"fp32": self.peak_fp32_gflops, "fp16": self.peak_fp16_gflops, "int8": self.peak_int8_gops}[precision]


class RuntimeSupport(Frozen):
    """A runtime on this device: its version there, which unit it drives, and what it accepts."""

    target: str
    version: str
    unit: Literal["cpu", "gpu", "npu"]
    precisions: tuple[Precision, ...] = Field(min_length=1)
    onnx_opset_max: int | None = Field(default=None, ge=7, le=30)
    onnx_ir_version_max: int | None = Field(default=None, ge=3, le=20)
    deployment_target: str | None = None
    compute_capability: str | None = None
    why: str
    source: str


class Quantisation(Frozen):
    """Whether int8 pays on this device and what it must look like; `why` is shown to the user."""

    preferred_precision: Precision
    scheme: Literal["affine", "symmetric"] | None = None
    weight_bits: Literal[7, 8] = 8
    why: str
    source: str


class Budgets(Frozen):
    """Default budgets for one inference at batch 1; `why` says where they come from."""

    latency_p90_ms: float = Field(gt=0)
    peak_memory_mib: float = Field(gt=0)
    artifact_size_mib: float = Field(gt=0)
    teacher_macs_fraction: float = Field(default=0.125, gt=0, le=1)
    why: str


class HardwareProfile(Frozen):
    """A device. The first runtime is the one a bundle is made for; the others are legal too.

    p90_over_p50: how much slower the 90th percentile is than the median on this device (headroom for the budget).
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
    notes: tuple[str, ...] = ()

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
        return HardwareProfile.model_validate(document)
    except ValidationError as error:
        raise InputError(_first_mistake(error, document), where=where, fix=_cure(error)) from error


def _first_mistake(error: ValidationError, document: dict[str, Any]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{more}"
    if first["type"] == "missing":
        return f"missing key '{key}'{more}"
    return f"'{key}' = {first['input']!r}: {first['msg']}{more}"


def _cure(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return did_you_mean(str(first["loc"][-1]), sorted(_all_keys()))
    return "see docs/profiles.md"


def _all_keys() -> set[str]:
    models = (HardwareProfile, ComputeUnit, RuntimeSupport, Quantisation, Budgets)
    return {key for model in models for key in model.model_fields}
