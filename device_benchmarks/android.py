"""Android without Python: identity and heat from the phone's own shell, models run by `benchmark_model`."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgekd.device_benchmarks import benchmark_model
from edgekd.device_benchmarks.contender import Contender, ExportedArtifact
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.transports import DeviceError, Remote, faults
from edgekd.errors import CheckError

# Light throttling (1) already lowers clocks. Source: android.os.PowerManager.THERMAL_STATUS_*.
COOL, COOL_CAP_S, COOL_POLL_S = 0, 300.0, 5.0
STATE_TIMEOUT_S = 60.0
RUN_MARGIN_S = 120.0
_PROPERTIES = {
    "device_model": "ro.product.model",
    "soc": "ro.soc.model",
    "platform": "ro.board.platform",
    "os_build": "ro.build.fingerprint",
    "serial": "ro.serialno",
    "qemu": "ro.kernel.qemu",
    "boot_qemu": "ro.boot.qemu",
}
_STATE = r"""
for p in %s; do echo "prop $p $(getprop $p)"; done
echo "kernel $(uname -s) $(uname -r) $(uname -m)"
echo "boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
echo "load $(cat /proc/loadavg 2>/dev/null)"
echo "memory $(grep MemTotal /proc/meminfo 2>/dev/null)"
for c in /sys/devices/system/cpu/cpu[0-9]*; do
  echo "cpu ${c##*cpu} $(cat $c/cpu_capacity 2>/dev/null || cat $c/cpufreq/cpuinfo_max_freq 2>/dev/null || echo 0)" \
    "$(cat $c/cpufreq/scaling_cur_freq 2>/dev/null || echo 0) $(cat $c/cpufreq/scaling_governor 2>/dev/null)"
done
for z in /sys/class/thermal/thermal_zone*; do
  echo "zone ${z##*/} $(cat $z/type $z/temp 2>/dev/null | tr '\n' ' ')"
done
dumpsys thermalservice 2>/dev/null | grep -i 'thermal status' | head -n 1
true
"""


def state(remote: Remote, *, emulated: bool = False) -> HostState:
    """Identity and state of a phone. Raises: DeviceError: its shell failed."""
    script = _STATE % " ".join(_PROPERTIES.values())
    done = remote.run(["sh", "-c", script], timeout_s=STATE_TIMEOUT_S)
    return parse_state(done.stdout, machine=remote.machine, emulated=emulated)


def parse_state(text: str, *, machine: str = "", emulated: bool = False) -> HostState:
    """The answer to `_STATE`; what a phone does not let the shell user read is None or empty."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    props = {row[1]: " ".join(row[2:]) for row in rows if row[0] == "prop" and len(row) > 1}
    named = {key: props.get(name) or None for key, name in _PROPERTIES.items()}
    cpus = {int(row[1]): row[2:] for row in rows if row[0] == "cpu" and len(row) > 3 and row[1].isdigit()}
    load = next((row[1:4] for row in rows if row[0] == "load" and len(row) > 3), None)
    memory = next((row for row in rows if row[0] == "memory" and len(row) > 2), None)
    clocks = {f"cpu{n}": int(row[1]) / 1000 for n, row in cpus.items() if row[1].isdigit() and int(row[1])}
    return HostState(
        cpu_model=named["soc"] or named["platform"] or machine or "unknown",
        logical_cpus=len(cpus) or 1,
        usable_cpus=len(cpus) or 1,
        governor=next((row[2] for row in cpus.values() if len(row) > 2), None),
        frequency_mhz=clocks.get("cpu0"),
        frequencies_mhz=clocks,
        load_average=(float(load[0]), float(load[1]), float(load[2])) if load else None,
        temperatures_c=_zones(rows),
        cpu_steal_s=None,
        memory_mib=int(memory[2]) / 1024 if memory and memory[2].isdigit() else None,
        kernel=next((" ".join(row[1:]) for row in rows if row[0] == "kernel"), "unknown"),
        python="",
        versions={},
        boot_id=next((row[1] for row in rows if row[0] == "boot" and len(row) > 1), None),
        device_model=named["device_model"],
        soc=named["soc"] or named["platform"],
        os_build=named["os_build"],
        serial_sha256=hashlib.sha256(named["serial"].encode()).hexdigest()[:16] if named["serial"] else None,
        thermal_status=parse_thermal_status(text),
        thread_mask=big_cores({n: int(row[0]) for n, row in cpus.items() if row[0].isdigit()}),
        emulated=emulated or "1" in (named["qemu"], named["boot_qemu"]),
    )


def _zones(rows: list[list[str]]) -> dict[str, float]:
    found = (row for row in rows if row[0] == "zone" and len(row) > 3 and row[3].lstrip("-").isdigit())
    return {f"{row[2]}/{row[1]}": int(row[3]) / 1000 for row in found}


def big_cores(capacity: Mapping[int, int]) -> tuple[int, ...]:
    """The CPUs of the largest capacity (or clock); all of them where they are alike or unknown.

    >>> big_cores({0: 250, 1: 250, 2: 1024, 3: 1024}), big_cores({})
    ((2, 3), ())
    """
    largest = max(capacity.values(), default=0)
    return tuple(sorted(cpu for cpu, value in capacity.items() if value == largest))


def parse_thermal_status(text: str) -> int | None:
    """`dumpsys thermalservice`; None before Android 10.

    >>> parse_thermal_status("IsStatusOverride: false\\nThermal Status: 2\\nCached temperatures:")
    2
    """
    found = re.search(r"^\s*Thermal Status: (\d+)", text, re.M | re.I)
    return int(found[1]) if found else None


def thermal_status(remote: Remote) -> int | None:
    """How much the phone throttles now: 0 none, 1 light, ... 6 shutdown; None: it does not tell."""
    return parse_thermal_status(remote.run(["dumpsys", "thermalservice"], timeout_s=STATE_TIMEOUT_S).stdout)


class ThermalGuard:
    """Waits until a phone does not throttle. Raises: DeviceError: it still does after 5 min."""

    def __init__(
        self, remote: Remote, *, cap_s: float = COOL_CAP_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._remote, self._cap_s, self._sleep = remote, cap_s, sleep

    def settle(self) -> None:
        """Before each block."""
        waited_s = 0.0
        while (status := thermal_status(self._remote)) is not None and status > COOL:
            if waited_s >= self._cap_s:
                what = f"still throttles after {waited_s:.0f} s (thermal status {status})"
                raise DeviceError(
                    what, where=self._remote.name, fix="let it cool, take it off the charger and out of its case"
                )
            self._sleep(COOL_POLL_S)
            waited_s += COOL_POLL_S


class BenchmarkModelRunner:
    """A `Runner` by Google's tool: every block is a process of its own there and gives one figure, its median or mean.

    files: (tool, model) on the device. The tool tells no CPU time; the wall clock stands in its place, and
    `cpu_clock` says so.
    """

    def __init__(self, remote: Remote, contender: Contender, threads: int, files: tuple[str, str]) -> None:
        self.name, self._remote, self._threads = contender.name, remote, threads
        (self._tool, self._model), self._contender = files, contender
        self._guard = ThermalGuard(remote)
        self._mask, self._memory_mib = benchmark_model.mask_of(contender.affinity), None  # type: str, float | None

    def prepared(self) -> dict[str, Any]:
        """Make the tool executable."""
        done = self._remote.run(["chmod", "700", self._tool], timeout_s=30)
        if done.returncode != 0:
            raise DeviceError(f"benchmark_model stays unexecutable ({done.stderr[:100]})", where=self._remote.name)
        return {"import_ms": 0.0}

    def load(self) -> dict[str, Any]:
        """One run, for load and first inference."""
        run = self._run(runs=1, warm_up_runs=0, expected_s=0)
        source = self._contender.source
        assert isinstance(source, ExportedArtifact)
        note = "benchmark_model tells no single samples and no CPU time: each sample is the median or mean of a block"
        return {
            "load_ms": run.init_us / 1e3,
            "first_inference_ms": run.first_us / 1e3,
            "input_shape": list(source.artifact.inputs[0].shape),
            "input_sha256": "random, by benchmark_model",
            "runtime": "tflite",
            "runtime_version": None,
            "artifact_sha256": source.artifact.sha256,
            "executed": "runtime",
            "note": note,
            "cpu_clock": False,
        }

    def warm_up(self, *, min_runs: int, min_s: float, cap_s: float) -> dict[str, Any]:
        """The tool warms up in every block; this only finds out how long a run takes."""
        run = self._run(runs=min_runs, warm_up_runs=1, expected_s=cap_s)
        return {"wall_ns": [], "converged": True, "recent_ns": 1e3 * (run.median_us or run.average_us)}

    def block(self, *, runs: int, lead_in: int, expected_s: float) -> dict[str, list[int]]:
        """One run of the tool once the phone is cool: one figure."""
        self._guard.settle()
        run = self._run(runs=runs, warm_up_runs=max(1, lead_in), expected_s=expected_s)
        figure = int(1e3 * (run.median_us or run.average_us))
        return {"wall_ns": [figure], "cpu_ns": [figure]}

    def finish(self) -> dict[str, Any]:
        """The tool's own peak."""
        return {"peak_rss_mib": self._memory_mib, "model_rss_mib": self._memory_mib, "pss_mib": None}

    def close(self) -> None:
        """Nothing runs between the blocks."""

    def _run(self, *, runs: int, warm_up_runs: int, expected_s: float) -> benchmark_model.BenchmarkRun:
        command = benchmark_model.arguments(
            self._tool, self._model, threads=self._threads, runs=runs, warm_up_runs=warm_up_runs, mask=self._mask
        )
        done = self._remote.run(command, timeout_s=20 * expected_s + RUN_MARGIN_S)
        text = f"{done.stdout}\n{done.stderr}"
        known = faults.explained(faults.DEVICE, done.stderr, device=self._remote.name, machine=self._remote.machine)
        if done.returncode != 0:
            words = faults.last_words(done.stderr) or faults.last_words(done.stdout)
            what = f"benchmark_model failed with exit code {done.returncode} ({words})"
            raise known or DeviceError(what, where=self._remote.name)
        try:
            found = benchmark_model.parse_text(text)
        except CheckError as error:
            raise DeviceError(error.what, where=self._remote.name, fix=error.fix) from error
        self._memory_mib = max(self._memory_mib or 0, found.peak_mib or 0) or None
        return found
