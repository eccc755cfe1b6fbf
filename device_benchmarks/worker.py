"""The process that holds one contender: `python -m edgekd.device_benchmarks.worker`, one JSON command a line on stdin.

What it is: an importer, a loader and two clocks around `invoke`. What it is not: a judge; statistics are the parent's.
Commands: prepare (import the runtime), load, warm_up, block, finish, energy; or layers. End of input ends it.
Answers go to the original stdout; file descriptor 1 is then pointed at stderr, since vendor libraries print to it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edgekd.device_benchmarks import device_state, loading
from edgekd.device_benchmarks.contender import Contender
from edgekd.device_benchmarks.energy import energy_per_run
from edgekd.device_benchmarks.statistics import is_stable, median
from edgekd.errors import EdgekdError

_CONVERSION_RUNS = 30


class Bench:
    """The loaded contender and its input; one method per command, each taking and giving plain JSON values."""

    def __init__(self, contender: Contender, *, threads: int) -> None:
        self._contender, self._threads = contender, threads
        self._baseline_mib = 0.0
        self._loaded: loading.Loaded | None = None

    def prepare(self) -> dict[str, Any]:
        """Pin, import the runtime, and note the memory that it takes before any model."""
        if self._contender.affinity and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._contender.affinity)
        start = time.perf_counter_ns()
        loading.import_runtime(self._contender.source)
        self._baseline_mib = _status_mib("VmRSS") or 0.0
        return {"import_ms": _ms_since(start)}

    def load(self) -> dict[str, Any]:
        """Load (and compile, where the runtime does) and run once, both timed."""
        start = time.perf_counter_ns()
        self._loaded = loading.load(self._contender, threads=self._threads)
        load_ms = _ms_since(start)
        image = loading.example_image(self._loaded.input_shape, self._loaded.holds)
        self._image, session = image, self._loaded.session
        self._fed, self._invoke = session.feed(image), session.invoke
        start = time.perf_counter_ns()
        self._invoke(self._fed)
        first_inference_ms = _ms_since(start)
        gc.freeze()  # torch's hundred thousands of objects would make each collection between blocks take 0.1 s
        return {
            "load_ms": load_ms,
            "compile_ms": self._loaded.compile_ms,
            "first_inference_ms": first_inference_ms,
            "input_shape": list(self._loaded.input_shape),
            "input_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
            "runtime": self._loaded.runtime,
            "artifact_sha256": self._loaded.sha256,
            "executed": session.executed,
            "note": session.note,
        }

    def warm_up(self, *, min_runs: int, min_s: float, cap_s: float) -> dict[str, Any]:
        """Run until the last two tens agree within 2%, or until the cap; these samples stay apart."""
        samples: list[int] = []
        start = time.perf_counter()
        while (spent_s := time.perf_counter() - start) < cap_s:
            if len(samples) >= min_runs and spent_s >= min_s and is_stable(samples):
                break
            samples.append(_timed(self._invoke, self._fed)[0])
        recent = samples[-10:] or [1]
        return {"wall_ns": samples, "converged": is_stable(samples), "recent_ns": median(recent)}

    def block(self, *, runs: int, lead_in: int) -> dict[str, Any]:
        """`lead_in` runs that are not counted, then `runs` that are. The garbage collector waits meanwhile."""
        gc.collect()
        gc.disable()
        try:
            for _ in range(lead_in):
                self._invoke(self._fed)
            pairs = [_timed(self._invoke, self._fed) for _ in range(runs)]
            clock_mhz = device_state.clock_mhz()
        finally:
            gc.enable()
        return {"wall_ns": [wall for wall, _ in pairs], "cpu_ns": [cpu for _, cpu in pairs], "clock_mhz": clock_mhz}

    def layers(self, *, runs: int) -> dict[str, Any]:
        """The runtime's own profile, as a `LayerProfile`; this process times nothing else."""
        from edgekd.device_benchmarks.layer_profilers import profile_layers

        return profile_layers(self._contender, threads=self._threads, runs=runs).model_dump(mode="json")

    def energy(self) -> dict[str, Any]:
        """Of one inference above idle, where this host has a sensor."""
        found = energy_per_run(lambda: self._invoke(self._fed))
        return {"energy_mj": found.mj, "energy_note": found.note}

    def finish(self) -> dict[str, Any]:
        """Memory at its peak and now, and what converting input and output costs, after all timing is done."""
        memory = {
            "peak_rss_mib": _status_mib("VmHWM"),
            "model_rss_mib": _difference(_status_mib("VmHWM"), self._baseline_mib),
            "pss_mib": _pss_mib(),
        }
        session = self._loaded.session if self._loaded else None
        if session is None:
            return memory
        raw = self._invoke(self._fed)
        feed = [_timed(session.feed, self._image)[0] for _ in range(_CONVERSION_RUNS)]
        read = [_timed(session.read, raw)[0] for _ in range(_CONVERSION_RUNS)]
        return {**memory, "feed_p50_ms": median(feed) / 1e6, "read_p50_ms": median(read) / 1e6}


def _timed(call: Callable[[Any], Any], argument: Any) -> tuple[int, int]:
    # CPU time of the process, not of this thread: OpenVINO runs its one thread beside the calling one.
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    call(argument)
    return time.perf_counter_ns() - wall, time.process_time_ns() - cpu


def _ms_since(start_ns: int) -> float:
    return (time.perf_counter_ns() - start_ns) / 1e6


def _status_mib(field: str) -> float | None:
    return _kib_field(Path("/proc/self/status"), field)


def _pss_mib() -> float | None:
    return _kib_field(Path("/proc/self/smaps_rollup"), "Pss")


def _kib_field(path: Path, field: str) -> float | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), None)


def _difference(peak: float | None, baseline: float) -> float | None:
    return None if peak is None else max(0.0, peak - baseline)


def serve(commands: TextIO, answers: TextIO) -> None:
    """Answer each command until the input ends. The first is `prepare` and carries the contender and its threads."""
    bench: Bench | None = None
    for line in commands:
        command = json.loads(line)
        name = command.pop("do")
        try:
            if name == "prepare":
                contender = Contender.model_validate(command.pop("contender"))
                bench = Bench(contender, threads=command.pop("threads"))
            answer = getattr(bench, name)(**command) if name in _COMMANDS else {"error": f"unknown command {name!r}"}
        except EdgekdError as error:
            answer = {"error": str(error), "input": True}
        except Exception as error:  # a vendor library may raise anything; the parent names the contender
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


_COMMANDS = ("prepare", "load", "warm_up", "block", "energy", "layers", "finish")


def main() -> None:
    """Take stdout for the answers and serve stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    np.seterr(all="ignore")
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin, answers)
    os._exit(0)  # the vendors' own teardown takes time and has been seen to crash; nothing here is left to flush


if __name__ == "__main__":
    main()
