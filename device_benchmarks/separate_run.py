"""One more fresh process of each contender once all timing is done: its memory, its energy, and one more cold start.

Apart, because a process that times keeps samples and waits between blocks, and because reading a sensor takes time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.device_benchmarks.measurement import SeparateRun
from edgekd.device_benchmarks.process import Worker

if TYPE_CHECKING:
    from edgekd.device_benchmarks.measure import Runner

RUNS = 3
NO_SENSOR_THERE = "no energy sensor is read on this device"


def separate_run(runner: Runner, *, seconds_per_run: float) -> SeparateRun:
    """Load, a few runs, memory; energy on this host. The caller closes the runner. Raises: as the runner does."""
    imported, loaded = runner.prepared(), runner.load()
    runner.block(runs=RUNS, lead_in=0, expected_s=RUNS * seconds_per_run)
    finished = runner.finish()
    return SeparateRun(
        import_ms=imported["import_ms"],
        load_ms=loaded["load_ms"],
        compile_ms=loaded.get("compile_ms"),
        first_inference_ms=loaded["first_inference_ms"],
        peak_rss_mib=finished["peak_rss_mib"],
        model_rss_mib=finished["model_rss_mib"],
        pss_mib=finished["pss_mib"],
        **_energy(runner),
    )


def _energy(runner: Runner) -> dict[str, Any]:
    """Asked last: it runs the model for seconds."""
    if not isinstance(runner, Worker) or not runner.here:
        return {"energy_mj": None, "energy_note": NO_SENSOR_THERE}
    return runner.ask("energy", doing="measuring energy")
