"""The state of this host, read and never changed: recorded before and after every measurement."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from pydantic import Field

from edgekd.artifact import Frozen
from edgekd.device_benchmarks import device_state

SYS = Path("/sys")
PROC = Path("/proc")
RUNTIMES = ("ai-edge-litert", "tflite-runtime", "onnxruntime", "openvino")


class HostState(Frozen):
    """What a latency depends on besides the model. None or empty: this host does not tell.

    cpu_steal_s: time the hypervisor gave to others since boot; the difference of two states is the measurement's share.
    thread_mask: logical CPUs that a process may use. serial_sha256: the start of the serial number's hash. power_mode,
    throttled: as the board's own tool says it (nvpmodel, vcgencmd). thermal_status: Android's, 0 is none. clocks: as
    jetson_clocks shows them. emulated: user-mode QEMU or Android's emulator, whose times are no latency.
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
    thread_mask: tuple[int, ...] = ()
    frequencies_mhz: dict[str, float] = Field(default_factory=dict)
    memory_mib: float | None = None
    boot_id: str | None = None
    device_model: str | None = None
    soc: str | None = None
    os_build: str | None = None
    serial_sha256: str | None = None
    power_mode: str | None = None
    throttled: str | None = None
    thermal_status: int | None = None
    clocks: str | None = None
    emulated: bool = False

    @property
    def runtimes(self) -> str:
        """The runtimes with their versions, for a line; "" where there are none, or they are not told."""
        return ", ".join(f"{name} {self.versions[name]}" for name in RUNTIMES if name in self.versions)


def host_state() -> HostState:
    """Read it now, as it is read on a device. Takes a few milliseconds; imports no runtime."""
    return HostState(**device_state.state(str(SYS), str(PROC)))


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
    return device_state.cpu_model(str(PROC))


def cpu_flags() -> frozenset[str]:
    """Instruction set extensions by the kernel's names (x86: avx512_vnni, amx_int8; ARM: asimddp); empty off Linux."""
    return flags_in(device_state.text(str(PROC / "cpuinfo")) or "")


def flags_in(cpuinfo: str) -> frozenset[str]:
    """The instruction set extensions of the first core in the text of /proc/cpuinfo.

    >>> sorted(flags_in("processor : 0\\nFeatures : fp asimddp\\n"))
    ['asimddp', 'fp']
    """
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
