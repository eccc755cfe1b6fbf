"""Stage `select`: the student that fits the budgets, and every planned export tried on it untrained.

The trial runs in the first minute: an operator that a target cannot take is found before an hour of training is spent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.errors import CheckError, InputError
from edgekd.export import ExportRequest
from edgekd.files import write_json
from edgekd.latency import ProfileCost, estimate_latency, estimate_memory_mib, estimate_size_mib, trace_cost
from edgekd.pipeline.context import Context, Inputs, calibration_batches
from edgekd.pipeline.exporting import request, run_requests
from edgekd.pipeline.plan import Plan
from edgekd.pipeline.quantising import quant_spec
from edgekd.quant import export_float, ptq, save_program
from edgekd.students import Infeasible, Limits, SearchSpace, Selection, build
from edgekd.students import search as search_space

# Macs are bounded by the teacher's; a black box has none to go by.
MACS_WITHOUT_TEACHER = 1_000_000_000
TRIAL_IMAGES = 64


def select(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: the selection and what became of the trial exports."""
    selection = choose(context, context.plan)
    result = document(context, context.plan, selection)
    for line in lines(result):
        context.events.note(line)
    spec_file = write_json(context.folder / "student.json", result["spec"])
    result["trial_exports"] = trial_exports(context, selection)
    return result, [spec_file]


def choose(inputs: Inputs | Context, plan: Plan) -> Selection:
    """Search the space under the plan's budgets.

    Raises: InputError: nothing fits; the cheapest candidate and what it misses are named.
    """
    profile, pre = inputs.profile, inputs.dataset.preprocessing
    runtime = profile.primary
    cost = ProfileCost(profile=profile, unit=runtime.unit, precision=plan.precision, runtime=runtime.target)
    space = SearchSpace(image_size=pre.image_size, in_channels=pre.channels, num_classes=inputs.dataset.num_classes)
    found = search_space(space, cost=cost, limits=limits(inputs, plan))
    if isinstance(found, Infeasible):
        raise InputError(
            found.explain(),
            where=f"budgets of profile '{profile.name}'",
            fix="raise the budget named first (--latency-ms, --memory-mib, --size-mib)",
        )
    return found


def limits(inputs: Inputs | Context, plan: Plan) -> Limits:
    """The plan's budgets, and a share of the teacher's multiply-adds: a student as big as its teacher is none."""
    own, macs = inputs.teacher.preprocessing, MACS_WITHOUT_TEACHER
    if not inputs.teacher.black_box:
        traced = trace_cost(inputs.teacher.module, (1, own.channels, own.image_size, own.image_size)).macs
        macs = max(1, int(plan.budgets.teacher_macs_fraction * traced))
    budgets = plan.budgets
    return Limits(
        latency_p90_ms=budgets.latency_p90_ms,
        peak_memory_mib=budgets.peak_memory_mib,
        artifact_size_mib=budgets.artifact_size_mib,
        macs=macs,
    )


def document(inputs: Inputs | Context, plan: Plan, selection: Selection) -> dict[str, Any]:
    """The selection as plain data."""
    chosen = selection.chosen
    spec, figures = chosen.spec, chosen.figures
    return {
        "spec": spec.model_dump(mode="json"),
        "summary": summary(spec.model_dump()),
        "figures": figures.model_dump(mode="json"),
        "limits": selection.limits.model_dump(mode="json"),
        "considered": selection.considered,
        "fitting": selection.fitting,
        "candidates": [
            {
                "macs": c.figures.macs,
                "parameters": c.figures.parameters,
                "latency_p50_ms": c.figures.latency_p50_ms,
                "chosen": c is chosen,
                "name": summary(c.spec.model_dump()),
            }
            for c in selection.top
        ],
        "predicted": predictions(inputs, plan, build(spec)),
        "reasons": [
            f"student: {summary(spec.model_dump())}; the largest capacity of {selection.fitting} students that fit, "
            f"{selection.considered} considered, at most {plan.budgets.teacher_macs_fraction:.3g} of the teacher's MACs"
        ],
    }


def summary(spec: dict[str, Any]) -> str:
    """A student in one line.

    >>> stage = {"block": "fused", "channels": 32, "depth": 2, "kernel": 3, "expansion": 1}
    >>> summary({"stem_channels": 16, "stages": [stage], "head_channels": 64, "image_size": 28})
    '28 px, stem 16, fused 3x3 e1 32x2, head 64'
    """
    stages = ", ".join(
        f"{s['block']} {s['kernel']}x{s['kernel']} e{s['expansion']} {s['channels']}x{s['depth']}"
        for s in spec["stages"]
    )
    return f"{spec['image_size']} px, stem {spec['stem_channels']}, {stages}, head {spec['head_channels']}"


def predictions(inputs: Inputs | Context, plan: Plan, student: nn.Module) -> list[dict[str, Any]]:
    """Latency, memory and size of the student, and latency of the teacher, on the profile's device: never measured."""
    profile, pre = inputs.profile, inputs.dataset.preprocessing
    runtime = profile.primary
    cost = trace_cost(student.eval(), (1, pre.channels, pre.image_size, pre.image_size))
    latency = estimate_latency(cost, profile, unit=runtime.unit, precision=plan.precision)
    rows = [_row("student", "latency_p50_ms", latency.p50_ms, latency.lo_ms, latency.hi_ms, latency.provenance)]
    p90 = profile.p90_over_p50
    rows.append(
        _row(
            "student",
            "latency_p90_ms",
            p90 * latency.p50_ms,
            p90 * latency.lo_ms,
            p90 * latency.hi_ms,
            f"{latency.provenance}, p90 = {p90:g} p50",
        )
    )
    memory = estimate_memory_mib(cost, plan.precision, runtime.target)
    rows.append(
        _row(
            "student",
            "peak_memory_mib",
            memory,
            0.5 * memory,
            2 * memory,
            "base + factor x (weights + activations), docs/latency.md",
        )
    )
    size = estimate_size_mib(cost, plan.precision)
    rows.append(_row("student", "artifact_size_mib", size, 0.8 * size, 1.5 * size, "weights + 2 KiB per kernel"))
    if not inputs.teacher.black_box:
        own = inputs.teacher.preprocessing
        teacher = trace_cost(inputs.teacher.module, (1, own.channels, own.image_size, own.image_size))
        today = estimate_latency(teacher, profile, unit=runtime.unit, precision=plan.precision)
        rows.append(_row("teacher", "latency_p50_ms", today.p50_ms, today.lo_ms, today.hi_ms, today.provenance))
    return rows


def _row(what: str, quantity: str, value: float, lo: float, hi: float, provenance: str) -> dict[str, Any]:
    return {"what": what, "quantity": quantity, "value": value, "lo": lo, "hi": hi, "provenance": provenance}


def lines(result: dict[str, Any]) -> list[str]:
    """The selection as sentences for people."""
    found: list[str] = result["reasons"] + [
        f"{result['figures']['macs'] / 1e6:.2f} M MACs, {result['figures']['parameters'] / 1e3:.0f} k parameters"
    ]
    for row in result["predicted"]:
        found.append(
            f"predicted {row['quantity']} of the {row['what']}: {row['value']:.3g} [{row['lo']:.3g}, {row['hi']:.3g}] "
            f"({row['provenance']})"
        )
    return found


def trial_exports(context: Context, selection: Selection) -> list[dict[str, Any]]:
    """Every planned target on the untrained student.

    Raises: CheckError: not one target can be exported, so training would be for nothing.
    """
    torch.manual_seed(context.settings.seed)
    student = build(selection.chosen.spec).eval()
    save_program(export_float(student, context.image_shape), context.program("trial-float"))
    if context.plan.precision == "int8":
        batches = calibration_batches(context.dataset, TRIAL_IMAGES, seed=context.settings.seed)
        save_program(ptq(student, batches, quant_spec(context)), context.program("trial-int8"))
    requests = [_trial(request(context, t, folder="trial")) for t in context.plan.exports]
    outcomes = run_requests(context, requests)
    failed = [o for o in outcomes if o.state == "failed"]
    if failed and len(failed) == len(outcomes):
        raise CheckError(f"no target can be exported; the first: {failed[0].reason}", where="trial export")
    return [
        {"target": o.target, "precision": o.precision, "state": o.state, "reason": o.reason, "wall_s": o.wall_s}
        for o in outcomes
    ]


def _trial(asked: ExportRequest) -> ExportRequest:
    return asked.model_copy(update={"program": asked.program.with_name(f"trial-{asked.program.name}")})
