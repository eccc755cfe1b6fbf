"""Before anything is trained: export untrained candidates and measure them, where the profile's device is attached.

A prediction picks the candidates, the measurement picks among them. What all of them are off by corrects the search.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgekd.artifact import Artifact
from edgekd.errors import InputError
from edgekd.pipeline.attached import Attached, Found, attached
from edgekd.pipeline.choosing import choose, student_module
from edgekd.pipeline.context import Context, calibration_batches
from edgekd.pipeline.exporting import request, run_requests
from edgekd.pipeline.plan import TargetPlan
from edgekd.pipeline.quantising import quant_spec
from edgekd.quant import export_float, ptq, save_program
from edgekd.students import AnySpec, Candidate, Selection, StudentSpec

TRIAL_IMAGES = 64
MEASURED_CANDIDATES, MEASURED_ROUNDS = 3, 3


def diverse(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best of each body (image size, widths and blocks of the stages), best first; then whatever is next."""
    kept: list[Candidate] = []
    seen: set[object] = set()
    for candidate in candidates:
        if (shape := _shape(candidate.spec)) not in seen:
            seen.add(shape)
            kept.append(candidate)
    kept += [candidate for candidate in candidates if candidate not in kept]
    return kept[:count]


def _shape(spec: AnySpec) -> object:
    if not isinstance(spec, StudentSpec):
        return spec
    return spec.image_size, tuple((stage.block, stage.channels) for stage in spec.stages)


def measured(context: Context, candidates: Sequence[Candidate], who: Attached) -> list[dict[str, Any]]:
    """One row per candidate: predicted and measured latency, whether it fits; or why it could not be measured."""
    requests = [_prepared(context, candidate, who.target, number) for number, candidate in enumerate(candidates)]
    outcomes = run_requests(context, requests)
    artifacts: dict[str, Artifact] = {
        f"candidate {number}": outcome.artifact for number, outcome in enumerate(outcomes) if outcome.artifact
    }
    rows = [_row(candidate, outcome.reason) for candidate, outcome in zip(candidates, outcomes, strict=True)]
    if not artifacts:
        return rows
    context.events.note(f"measuring {len(artifacts)} untrained candidates on {who.name}")
    found = who.measure(artifacts)
    for name in artifacts:
        _fill(context, rows[int(name.rpartition(" ")[2])], name, found)
    for line in dict.fromkeys(row["reason"] for row in rows if row["reason"]):
        context.events.note(f"not measured on {who.name}: {line}")
    return rows


def _fill(context: Context, row: dict[str, Any], name: str, found: Found) -> None:
    measurement = next((m for m in found.set.measurements if m.name == name), None) if found.set else None
    if measurement is None:
        row["reason"] = found.reason or (found.set.failures.get(name, "") if found.set else "")
        return
    row["measured_p50_ms"], row["verdict"] = measurement.p50_ms, measurement.verdict
    p90_ms = row["measured_p90_ms"] = decisive_p90_ms(measurement.model_dump(), context.profile.p90_over_p50)
    row["fits"] = p90_ms <= context.plan.budgets.latency_p90_ms


def decisive_p90_ms(measurement: Mapping[str, Any], p90_over_p50: float) -> float:
    """The measured p90; on a contended host, whose tail is the other programs', the CPU p50 times the device's p90/p50.

    >>> row = {"verdict": "noisy", "p50_ms": 1.0, "p90_ms": 9.0, "cpu_p50_ms": 0.8}
    >>> decisive_p90_ms(row, 1.5), decisive_p90_ms({**row, "verdict": "valid"}, 1.5)
    (1.2000000000000002, 9.0)
    """
    wall_ms = measurement["p90_ms"] or p90_over_p50 * measurement["p50_ms"]
    cpu_ms = measurement.get("cpu_p50_ms")
    if measurement["verdict"] == "valid" or not cpu_ms:
        return float(wall_ms)
    return float(min(wall_ms, p90_over_p50 * cpu_ms))


def _row(candidate: Candidate, reason: str) -> dict[str, Any]:
    return {
        "spec": candidate.spec.model_dump(mode="json"),
        "score": candidate.score,
        "predicted_p50_ms": candidate.figures.latency_p50_ms,
        "predicted_p90_ms": candidate.figures.latency_p90_ms,
        "measured_p50_ms": None,
        "measured_p90_ms": None,
        "fits": None,
        "reason": reason,
    }


def _prepared(context: Context, candidate: Candidate, target: TargetPlan, number: int) -> Any:
    """Its program saved; the request to convert it."""
    torch.manual_seed(context.settings.seed)
    student = student_module(context, candidate.spec).eval()
    dataset, name = context.dataset.at(candidate.spec.image_size), f"candidate-{number}"
    if target.precision == "int8":
        batches = calibration_batches(dataset, TRIAL_IMAGES, seed=context.settings.seed)
        program = ptq(student, batches, quant_spec(context))
    else:
        program = export_float(student, dataset.preprocessing.shape)
    save_program(program, context.program(name))
    return request(context, target, program=name, folder=f"trial/{name}", dataset=dataset)


def correction_of(rows: Sequence[dict[str, Any]]) -> float | None:
    """Median of measured over predicted p90; None where nothing was measured.

    >>> correction_of([{"predicted_p90_ms": 2.0, "measured_p90_ms": 3.0}])
    1.5
    """
    ratios = [row["measured_p90_ms"] / row["predicted_p90_ms"] for row in rows if row["measured_p90_ms"]]
    return float(statistics.median(ratios)) if ratios else None


def trial_reasons(measured: list[dict[str, Any]], halving: dict[str, Any] | None, *, on: str) -> list[str]:
    """What measuring (on the device of that name) and short training said, for the plan's list."""
    found = []
    timed = [row for row in measured if row["measured_p90_ms"]]
    if timed:
        ratio = correction_of(timed)
        found.append(f"{len(timed)} candidates measured untrained on {on}: {ratio:.2f} x the predicted p90")
    if halving is not None:
        pairs = (("prior", "first round", "prior_to_proxy"), ("first round", "longer training", "proxy_to_longer"))
        said = [f"{a} to {b} {halving[key]:.2f}" for a, b, key in pairs if halving[key] is not None]
        what = f"{len(halving['rows'])} candidates learned for a while"
        found.append(f"{what}; rank correlation {', '.join(said) or 'none'}")
    return found


def measured_selection(context: Context) -> tuple[Selection, list[dict[str, Any]]]:
    """Search; with the device attached measure the top candidates untrained, and search again if none of them fits.

    What is measured to be too slow leaves the selection. Raises: InputError: in no round did any of them fit.
    """
    tighten, rows = context.tighten, list[dict[str, Any]]()
    who = attached(context)
    if who is None:
        return choose(context, context.plan, tighten=tighten), rows
    for number in range(MEASURED_ROUNDS):
        if number:
            told = f"every candidate measured is over the budget: searching with {tighten:.2f} x the latency"
            context.events.note(told)
        selection = choose(context, context.plan, tighten=tighten)
        some = diverse(selection.top, MEASURED_CANDIDATES)
        new = measured(context, some, who)
        rows += new
        slow = [candidate for candidate, row in zip(some, new, strict=True) if row["fits"] is False]
        kept = [c for c, row in zip(some, new, strict=True) if row["fits"]]
        if kept or not slow:
            rest = tuple(c for c in selection.top if c not in slow and c not in kept)
            return selection.model_copy(update={"top": (*kept, *rest)}), rows
        tighten = max(tighten * 1.02, correction_of(new) or tighten)
    times = [row["measured_p90_ms"] for row in rows if row["measured_p90_ms"]]
    raise InputError(
        f"none of {len(times)} candidates measured on {who.name} fits: the fastest takes {min(times):.3g} ms (p90)",
        where=f"latency budget {context.plan.budgets.latency_p90_ms:.3g} ms",
        fix="give a larger --latency-ms",
    )
