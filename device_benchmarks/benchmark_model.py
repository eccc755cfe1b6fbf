"""Google's `benchmark_model`: its command line, its text and its op profile. Pure: text in, figures out.

It prints statistics and no single samples, so a block of runs gives one figure here. Written from the tool's source
(tensorflow/lite/tools/benchmark, profiling/profile_summary_formatter) and never run here: no package carries it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from edgekd.artifact import Frozen
from edgekd.errors import CheckError

_TIMINGS = re.compile(
    r"Inference timings in us: Init: ([\d.e+]+), First inference: ([\d.e+]+),"
    r" Warmup \(avg\): ([\d.e+]+), Inference \(avg\): ([\d.e+]+)"
)
_COUNT = re.compile(r"count=(\d+).*?(?:curr=(\d+)|avg=([\d.e+]+))")
_MEMORY = re.compile(r"Overall peak memory footprint \(MB\) via periodic monitoring: ([\d.]+)")
_FOOTPRINT = re.compile(r"Memory footprint delta from the start of the tool \(MB\): init=([\d.]+) overall=([\d.]+)")


class BenchmarkRun(Frozen):
    """One run of the tool, in the unit of the names. median_us: None in builds that print no percentiles."""

    runs: int
    init_us: float
    first_us: float
    warm_up_us: float
    average_us: float
    median_us: float | None = None
    p95_us: float | None = None
    peak_mib: float | None = None


class OpTime(Frozen):
    """One operator of the op profile: its average per run and how often it was called in one."""

    kind: str
    name: str
    average_ms: float
    calls: int


def arguments(tool: str, model: str, *, threads: int, runs: int, warm_up_runs: int, mask: str = "") -> list[str]:
    """The command for exactly `runs` inferences on XNNPACK's CPU kernels. mask: of `taskset`, hexadecimal."""
    return [
        *(["taskset", mask] if mask else []),
        tool,
        f"--graph={model}",
        f"--num_threads={threads}",
        f"--num_runs={runs}",
        f"--warmup_runs={warm_up_runs}",
        "--min_secs=0",
        "--warmup_min_secs=0",
        "--max_secs=3600",
        "--use_xnnpack=true",
        "--report_peak_memory_footprint=true",
    ]


def parse_text(text: str) -> BenchmarkRun:
    """stdout and stderr of a run, in any order; lines may begin with `INFO: `. Times are in us.

    Raises: CheckError: there is no end to it (a pulled cable cuts it), with its last line.
    """
    timings = _TIMINGS.search(text)
    counts = [line for line in text.splitlines() if _COUNT.search(line)]
    if timings is None or not counts:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing")
        raise CheckError(f"benchmark_model printed no result, but ended with: {last[:200]}")
    init, first, warm, average = map(float, timings.groups())
    measured = counts[-1]  # the warm-up prints such a line before
    memory, footprint = _MEMORY.search(text), _FOOTPRINT.search(text)
    return BenchmarkRun(
        runs=int(_field(measured, "count") or 0),
        init_us=init,
        first_us=first,
        warm_up_us=warm,
        average_us=average,
        median_us=_field(measured, "median"),
        p95_us=_field(measured, "p95"),
        peak_mib=float(memory[1]) if memory else float(footprint[2]) if footprint else None,
    )


def parse_profile_csv(text: str) -> list[OpTime]:
    """The run-order table of `--op_profiling_output_mode=csv`, in execution order; summaries after it are passed over.

    Raises: CheckError: it has no such table.
    """
    rows: list[OpTime] = []
    columns: list[str] = []
    for cells in csv.reader(io.StringIO(text), skipinitialspace=True):
        names = [cell.strip().strip("[]").lower() for cell in cells]
        if "node type" in names:
            if columns:
                break
            columns = names
        elif columns and len(cells) >= len(columns):
            rows.append(_op(dict(zip(columns, cells, strict=False))))
    if not rows:
        raise CheckError("the op profile holds no operators", fix="benchmark_model needs --enable_op_profiling=true")
    return rows


def mask_of(cpus: Sequence[int]) -> str:
    """taskset's mask.

    >>> mask_of((4, 5, 6, 7)), mask_of(())
    ('f0', '')
    """
    return f"{sum(1 << cpu for cpu in cpus):x}" if cpus else ""


def _op(row: dict[str, str]) -> OpTime:
    average = row.get("avg_ms") or row.get("avg ms") or "0"
    return OpTime(
        kind=row["node type"].strip(),
        name=row.get("name", "").strip(),
        average_ms=float(average),
        calls=int(float(row.get("times called", "1") or 1)),
    )


def _field(line: str, name: str) -> float | None:
    found = re.search(rf"\b{name}=([\d.e+]+)", line)
    return float(found[1]) if found else None
