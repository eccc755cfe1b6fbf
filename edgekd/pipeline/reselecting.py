"""After the measurement: a student over its latency budget on the device itself is selected anew, with the correction.

What was measured over what was predicted is kept in run.json, so a resumed run goes the same way. The rounds are
bounded: each one trains again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from edgekd.pipeline.attached import attached
from edgekd.pipeline.context import Context
from edgekd.pipeline.measuring import side_of_device
from edgekd.pipeline.trials import decisive_p90_ms


def needed(context: Context) -> float | None:
    """What the next search multiplies its predictions by (measured over predicted p90); None: it fits, or no more."""
    corrections = context.record.corrections
    if attached(context) is None or len(corrections) >= context.settings.reselections:
        return None
    side = side_of_device(context.record.result("measure"), context.settings)
    p90_ms = measured_p90_ms(side, context.profile.p90_over_p50)
    if p90_ms is None or p90_ms <= context.plan.budgets.latency_p90_ms:
        return None
    predicted: float = context.record.result("select")["figures"]["latency_p90_ms"]
    return max(p90_ms / predicted, 1.05 * context.tighten)


def measured_p90_ms(side: Mapping[str, Any], p90_over_p50: float) -> float | None:
    """Of the deployed student on the device, as `decisive_p90_ms` reads it; None: it was not measured there."""
    measured = side["set"]["measurements"] if side["set"] else []
    found = [row for row in measured if row["name"] == side["student"]]
    return None if not found else decisive_p90_ms(found[0], p90_over_p50)


def start_again(context: Context, correction: float) -> None:
    """Forget the trainings of the student that was too slow; note the correction, from which `select` goes on.

    The trainings go first: killed in between, the run finds its measurement again and comes back here.
    """
    shutil.rmtree(context.folder / "training", ignore_errors=True)
    context.record.correct(correction)
    context.events.note(
        f"over the latency budget when measured: selecting again with {correction:.2f} x the predicted latency"
    )
