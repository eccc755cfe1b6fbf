"""NVIDIA Jetson: a build kit run by the board's own trtexec, and what nvpmodel, jetson_clocks and tegrastats say.

Parsers are written from NVIDIA's documentation and logs quoted in it; no Jetson was at hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekd.artifact import Artifact, Frozen
from edgekd.device_benchmarks.contender import Contender
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.loading import image_shape
from edgekd.device_benchmarks.transports import DeviceError, Remote, faults
from edgekd.errors import CheckError, InputError

KIT = ("model.onnx", "build.sh")
BUILD_TIMEOUT_S = 3600.0
RUN_MARGIN_S = 180.0
WARM_UP_MS = 200
TEGRASTATS_S = 1.5
_PASSED, _UNSTABLE = "&&&& PASSED", ("GPU compute time is unstable", "Throughput may be bound by Enqueue Time")


class Tegrastats(Frozen):
    """One line of tegrastats. rails_mw: power now by rail."""

    ram_mib: int | None
    cpu_percent: tuple[int, ...]
    gpu_percent: int | None
    temperatures_c: dict[str, float]
    rails_mw: dict[str, int]


def with_state(remote: Remote, found: HostState) -> HostState:
    """A Jetson's temperatures and clocks beside its state; any other board's state as it is."""
    if found.power_mode is None or "NV Power Mode" not in found.power_mode:
        return found
    try:
        said = remote.run(["tegrastats", "--interval", "500"], timeout_s=TEGRASTATS_S).stdout
        stats = parse_tegrastats(said.strip().splitlines()[-1])
    except (IndexError, CheckError):
        return found
    return found.model_copy(update={"temperatures_c": {**found.temperatures_c, **stats.temperatures_c}})


def parse_tegrastats(line: str) -> Tegrastats:
    """JetPack 4 to 6. A core that is off counts as 0%.

    Raises: CheckError: the line is none of tegrastats.
    """
    cpus = re.search(r"CPU \[([^\]]*)\]", line)
    if cpus is None:
        raise CheckError(f"not a line of tegrastats: {line[:80]}")
    ram, gpu = re.search(r"RAM (\d+)/", line), re.search(r"GR3D_FREQ (\d+)%", line)
    shares = [re.match(r"(\d+)%", core) for core in cpus[1].split(",")]
    rails = re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?= |$)", line)
    return Tegrastats(
        ram_mib=int(ram[1]) if ram else None,
        cpu_percent=tuple(int(share[1]) if share else 0 for share in shares),
        gpu_percent=int(gpu[1]) if gpu else None,
        temperatures_c={name: float(value) for name, value in re.findall(r"\b([A-Za-z0-9_]+)@(-?[\d.]+)C", line)},
        rails_mw={name: int(now) for name, now, _ in rails if name not in ("RAM", "SWAP", "IRAM", "EMC_FREQ")},
    )


def parse_nvpmodel(text: str) -> str | None:
    """The power mode of `nvpmodel -q`, as "NAME (number)".

    >>> parse_nvpmodel("NVPM WARN: fan mode is not set!\\nNV Power Mode: MAXN\\n0\\n")
    'MAXN (0)'
    """
    found = re.search(r"NV Power Mode: *(\S+)\s*(\d+)?", text)
    return (f"{found[1]} ({found[2]})" if found[2] else found[1]) if found else None


def parse_times(text: str, *, warm_up_ms: float) -> list[int]:
    """Latency of each run in ns from `--exportTimes`; the rows of the warm-up, which it includes, are left out.

    Raises: CheckError: not that JSON, or nothing but warm-up.

    >>> rows = [{"startComputeMs": t, "computeMs": 1.0, "latencyMs": 1.25} for t in (10.0, 250.0)]
    >>> parse_times(json.dumps(rows), warm_up_ms=200)
    [1250000]
    """
    try:
        rows: list[Mapping[str, float]] = json.loads(text)
        kept = [row for row in rows if row["startComputeMs"] >= warm_up_ms]
        latencies = [int(1e6 * row["latencyMs"]) for row in kept]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckError(f"trtexec's times cannot be read ({type(error).__name__}: {error})") from error
    if not latencies:
        raise CheckError(f"trtexec's {len(rows)} times are all of its warm-up")
    return latencies


def check_log(text: str) -> tuple[str, ...]:
    """trtexec's own warnings about its figures. Raises: CheckError: it did not pass; with its last error."""
    if _PASSED not in text:
        errors = [line for line in text.splitlines() if "[E]" in line or "&&&& FAILED" in line]
        last = (errors or [line for line in text.splitlines() if line.strip()] or ["nothing"])[-1]
        raise CheckError(f"trtexec did not pass: {last.strip()[:200]}")
    return tuple(words for words in _UNSTABLE if words in text)


def bench_arguments(trtexec: str, folder: str, runs: int) -> list[str]:
    """One block: `runs` inferences of the engine at least, without transfers overlapping them."""
    return [
        trtexec,
        f"--loadEngine={folder}/model.plan",
        f"--warmUp={WARM_UP_MS}",
        "--duration=0",
        f"--iterations={runs}",
        "--avgRuns=1",
        "--useSpinWait",
        f"--exportTimes={folder}/times.json",
    ]


class TrtexecRunner:
    """A `Runner` by trtexec: the kit's engine is built there once, every block is a process with single samples."""

    def __init__(
        self, remote: Remote, contender: Contender, artifact: Artifact, *, trtexec: str, env: Mapping[str, str]
    ) -> None:
        self.name, self._remote, self._artifact, self._trtexec = contender.name, remote, artifact, trtexec
        self._env = {**env, "TRTEXEC": trtexec}
        self._warnings: set[str] = set()
        self._loaded: dict[str, Any] = {}
        for name in KIT:
            if not (artifact.path / name).is_file():
                what = f"no {name}: only a Jetson build kit (.trtkit) can be measured by trtexec"
                raise InputError(what, where=artifact.path, fix="edgekd export --profile jetson-nano")

    def prepared(self) -> dict[str, Any]:
        """Copy the kit."""
        for name in KIT:
            self._remote.push(self._artifact.path / name, name)
        return {"import_ms": 0.0}

    def load(self) -> dict[str, Any]:
        """Build the engine with the kit's own script, and run it once."""
        folder = self._remote.folder
        command = ["sh", f"{folder}/build.sh"]
        done = self._remote.run(command, timeout_s=BUILD_TIMEOUT_S, env=self._env)
        log = f"{done.stdout}\n{done.stderr}"
        if done.returncode != 0:
            known = faults.explained(faults.DEVICE, done.stderr, device=self._remote.name)
            words = faults.last_words(log)
            raise known or DeviceError(f"trtexec did not build the engine ({words})", where=self._remote.name)
        version = re.search(r"TensorRT version: *([\d.]+)|\[TensorRT v(\d+)\]", log)
        samples = self._times(1, 0)
        self._loaded = {
            "load_ms": 0.0,
            "first_inference_ms": samples[0] / 1e6,
            "input_shape": list(image_shape(self._artifact.inputs[0])),
            "input_sha256": "random, by trtexec",
            "runtime": "tensorrt",
            "runtime_version": next(filter(None, version.groups()), None) if version else None,
            "artifact_sha256": self._artifact.sha256,
            "executed": "runtime",
            "note": "trtexec tells no CPU time and no load time; latency is host to device, compute, and back",
            "cpu_clock": False,
        }
        return self._loaded

    def warm_up(self, *, min_runs: int, min_s: float, cap_s: float) -> dict[str, Any]:
        """trtexec warms up in every block; this finds out how long a run takes."""
        samples = self._times(min_runs, cap_s)
        return {"wall_ns": samples, "converged": True, "recent_ns": float(sorted(samples)[len(samples) // 2])}

    def block(self, *, runs: int, lead_in: int, expected_s: float) -> dict[str, list[int]]:
        """Single samples of one process of trtexec."""
        samples = self._times(runs, expected_s)
        return {"wall_ns": samples, "cpu_ns": samples}

    def finish(self) -> dict[str, Any]:
        """No memory: trtexec tells it in another way in every version. Its warnings join the note."""
        self._loaded["note"] = "; ".join([self._loaded["note"], *sorted(self._warnings)])
        self._warnings.clear()
        return {"peak_rss_mib": None, "model_rss_mib": None, "pss_mib": None}

    def close(self) -> None:
        """Nothing runs between the blocks."""

    def _times(self, runs: int, expected_s: float) -> list[int]:
        command = bench_arguments(self._trtexec, self._remote.folder, runs)
        done = self._remote.run(command, timeout_s=20 * expected_s + RUN_MARGIN_S, env=self._env)
        try:
            self._warnings |= set(check_log(f"{done.stdout}\n{done.stderr}"))
            with TemporaryDirectory(prefix="edgekd-") as folder:
                times = Path(folder) / "times.json"
                self._remote.pull("times.json", times)
                return parse_times(times.read_text(encoding="utf-8", errors="replace"), warm_up_ms=WARM_UP_MS)
        except DeviceError:
            raise
        except CheckError as error:
            raise DeviceError(error.what, where=self._remote.name, fix=error.fix) from error
