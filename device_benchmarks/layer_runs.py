"""Layers of contenders that were measured on this host, each profiled in a fresh process after the timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekd.device_benchmarks.contender import Contender
from edgekd.device_benchmarks.layers import LayerProfile
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.device_benchmarks.process import Worker

PROFILED_RUNS = 20


def with_layers(
    measured: MeasurementSet,
    contenders: Sequence[Contender],
    *,
    threads: int,
    on_progress: Callable[[str, float], None] | None = None,
) -> MeasurementSet:
    """The set with the layers of every contender that was measured.

    Raises: InputError: a runtime has no profiler here. CheckError: a profiling process died.
    """
    named, rows = {contender.name: contender for contender in contenders}, []
    for row in measured.measurements:
        if on_progress:
            on_progress(f"layers of {row.name}", 1.0)
        rows.append(row.model_copy(update={"layers": _profiled(named[row.name], threads)}))
    return measured.model_copy(update={"measurements": tuple(rows)})


def _profiled(contender: Contender, threads: int) -> LayerProfile:
    with Worker(contender, threads=contender.threads or threads) as worker:
        worker.prepared()
        return LayerProfile.model_validate(worker.ask("layers", doing="profiling its layers", runs=PROFILED_RUNS))
