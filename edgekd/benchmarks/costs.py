"""What a step of each method costs beside the others: time with the teacher run in it, and memory on top."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgekd.benchmarks.catalogue import BASELINE
from edgekd.benchmarks.memory import MIB
from edgekd.benchmarks.protocol import Comparison, scaled
from edgekd.distill import Stage
from edgekd.distill.running import opened
from edgekd.errors import EdgekdError
from edgekd.recipes import Recipe, stages_of

STEPS, WARMUP = 8, 2


def measure_costs(comparison: Comparison, methods: Mapping[str, Recipe], out: Path) -> list[dict[str, Any]]:
    """Rows by (student, method), also in `costs.jsonl`; those in it already are kept. A method that refuses has none.

    step_ms: CPU time of a step on a CPU (the least of STEPS), which a busy machine leaves alone; wall time on a GPU.
    memory_mib: the peak of those steps over what was held before them. Of several stages the last one is measured.
    """
    path = out / "costs.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    done = {(row["student"], row["method"]) for row in rows}
    for student in comparison.students:
        for method in [BASELINE, *(name for name in methods if name != BASELINE)]:
            if (student, method) in done:
                continue
            try:
                settings = comparison.settings(student, method)
                made = comparison.materials(student, 0, settings, out)
                stage = stages_of(scaled(methods[method], settings.factor), made)[-1]
                rows.append({"student": student, "method": method, **_cost(stage)})
            except EdgekdError:
                continue
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
    return rows


def _cost(stage: Stage) -> dict[str, float]:
    stage = dataclasses.replace(stage, diagnose=False)
    with TemporaryDirectory() as folder, opened(stage, out=Path(folder)) as run:
        device = run.device
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        run.go(_silent, steps=WARMUP)
        before = _begin(device)
        took = []
        for _ in range(STEPS):
            began = clock()
            run.go(_silent, steps=1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(clock() - began)
        return {"step_ms": 1000 * min(took), "memory_mib": (_peak(device) - before) / MIB}


def _silent(_progress: object) -> None:
    """Nobody watches."""


def _begin(device: torch.device) -> int:
    """Bytes held now; the peak starts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)  # what other methods freed would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") if sys.platform == "linux" else 0


def _status(key: str) -> int:
    """A size of this process in bytes, from Linux."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
