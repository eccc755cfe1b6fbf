"""The state of this host, read and never changed: recorded before and after every measurement."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from edgekd.artifact import Frozen

SYS = Path("/sys")
PROC = Path("/proc")
_RUNTIMES = ("torch", "torchvision", "timm", "onnxruntime", "openvino", "ai-edge-litert", "coremltools")


class HostState(Frozen):
    """What a latency depends on besides the model. None or empty: this host does not tell.

    cpu_steal_s: time the hypervisor gave to others since boot; the difference of two states is the measurement's share.
    """

    cpu_model: str
    logical_cpus: int
    usable_cpus: int
    governor: str | None
    frequency_mhz: float | None
    load_average: tuple[float, float, float] | None
    temperatures_c: dict[str, float]
    cpu_steal_s: float | None
    kernel: str
    python: str
    versions: dict[str, str]


def host_state() -> HostState:
    """Read it now. Takes about a millisecond; imports no runtime."""
    cpufreq = SYS / "devices/system/cpu/cpu0/cpufreq"
    khz = _text(cpufreq / "scaling_cur_freq")
    return HostState(
        cpu_model=cpu_model(),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        governor=_text(cpufreq / "scaling_governor"),
        frequency_mhz=float(khz) / 1000 if khz and khz.isdigit() else None,
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
        temperatures_c=temperatures_c(),
        cpu_steal_s=_steal_s(),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=installed_versions(_RUNTIMES),
    )


def temperatures_c() -> dict[str, float]:
    """Thermal zones by their kernel name, in degrees Celsius; empty on most virtual machines."""
    zones = sorted((SYS / "class/thermal").glob("thermal_zone*"))
    readings = {f"{_text(zone / 'type') or 'zone'}/{zone.name}": _text(zone / "temp") for zone in zones}
    return {name: int(value) / 1000 for name, value in readings.items() if value and value.lstrip("-").isdigit()}


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of the packages that are installed, without importing them."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name for a table, as the kernel tells it."""
    named = _cpuinfo("model name", "Model", "Hardware")
    return named or platform.processor() or platform.machine() or "unknown"


def cpu_flags() -> frozenset[str]:
    """Instruction set extensions by the kernel's names (x86: avx512_vnni, amx_int8; ARM: asimddp); empty off Linux."""
    return frozenset(_cpuinfo("flags", "Features").split())


def _cpuinfo(*keys: str) -> str:
    for line in (_text(PROC / "cpuinfo") or "").splitlines():
        if line.startswith(keys):
            return line.partition(":")[2].strip()
    return ""


def _steal_s() -> float | None:
    fields = (_text(PROC / "stat") or "").splitlines()[:1]
    ticks = fields[0].split()[1:] if fields else []
    return int(ticks[7]) / os.sysconf("SC_CLK_TCK") if len(ticks) > 7 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
