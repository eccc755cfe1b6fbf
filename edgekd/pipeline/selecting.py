"""Stage `select`: the student that fits the budgets, and every planned export tried on it untrained.

The trial runs in the first minute: an operator that a target cannot take is found before an hour of training is spent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgekd.advisor import Advice, advise
from edgekd.errors import CheckError, InputError
from edgekd.export import ExportRequest
from edgekd.files import write_json
from edgekd.latency import Estimate, GraphCost, estimate_memory_mib, estimate_size_mib, trace_cost
from edgekd.pipeline import advising, following
from edgekd.pipeline.choosing import student_module
from edgekd.pipeline.context import Context, Inputs, calibration_batches
from edgekd.pipeline.exporting import request, run_requests
from edgekd.pipeline.halving import halve
from edgekd.pipeline.plan import Plan
from edgekd.pipeline.pricing import Pricing, pricing_for
from edgekd.pipeline.quantising import quant_spec
from edgekd.pipeline.screening import chosen_reasons, screening_reasons
from edgekd.pipeline.settings import Settings
from edgekd.pipeline.trials import TRIAL_IMAGES, diverse, measured_selection, trial_reasons
from edgekd.quant import export_float, ptq, save_program
from edgekd.students import AnySpec, Candidate, Selection
from edgekd.targets.legality import misfits


def select(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: the selection, what its candidates took and learned, and what became of the trial exports."""
    selection, measured = measured_selection(context)
    halving = None
    some = diverse(selection.top, context.plan.candidates)
    if len(some) > 1 and following.world() == 1:  # processes that follow take no part in this stage
        best, halving = halve(context, some)
        rest = tuple(candidate for candidate in selection.top if candidate != best)
        selection = selection.model_copy(update={"top": (best, *rest)})
    result = document(context, context.plan, selection, context.settings)
    result |= {"measured": measured, "halving": halving, "corrections": context.record.corrections}
    result["reasons"] += trial_reasons(measured, halving, on=context.on or "this device")
    for line in lines(result):
        context.events.note(line)
    _refuse_to_distil(result["advice"], context.settings)
    spec_file = write_json(context.folder / "student.json", result["spec"])
    result["trial_exports"] = trial_exports(context, selection.chosen)
    return result, [spec_file]


def _refuse_to_distil(advice: dict[str, Any], settings: Settings) -> None:
    """Raises: InputError: the advisor says no, and no recipe was asked for."""
    if advice["recipe"] is None and settings.recipe is None:
        why = Advice.model_validate(advice).reason("distil at all").why
        raise InputError(f"not to be distilled: {why}", where="advice", fix="--recipe NAME teaches all the same")


def document(inputs: Inputs | Context, plan: Plan, selection: Selection, settings: Settings) -> dict[str, Any]:
    """The selection and the advice how to teach it, as plain data."""
    chosen = selection.chosen
    spec, figures = chosen.spec, chosen.figures
    runtime, cost = inputs.profile.primary, student_cost(inputs, spec)
    moved = misfits(cost.operators, runtime, plan.precision)
    advice = advise(advising.situation_of(inputs, settings, spec)).model_dump(mode="json")
    return {
        "spec": spec.model_dump(mode="json"),
        "summary": summary(spec.model_dump()),
        "preprocessing": inputs.dataset.at(spec.image_size).preprocessing.to_dict(),
        "figures": figures.model_dump(mode="json"),
        "limits": selection.limits.model_dump(mode="json"),
        "considered": selection.considered,
        "fitting": selection.fitting,
        "method": selection.method,
        "candidates": [
            {**_candidate(c), "chosen": c is chosen, "on_front": c in selection.front}
            for c in dict.fromkeys([*selection.top, *(c for c in selection.front if c not in selection.top)])
        ],
        "front": [_candidate(c) for c in selection.front],
        "left_out": [one.model_dump(mode="json") for one in selection.left_out],
        "operators_elsewhere": [one.model_dump(mode="json") for one in moved],
        "predicted": predictions(inputs, plan, spec, cost),
        "reasons": [
            f"student: {summary(spec.model_dump())}; the largest capacity among {selection.considered} students of "
            f"{', '.join(plan.spaces)}, {selection.method}, at most {plan.budgets.teacher_macs_fraction:.3g} of the "
            "teacher's MACs",
            *_resolution(inputs, spec),
            *_margin(selection),
            *screening_reasons(selection.left_out, runtime),
            *chosen_reasons(moved, runtime),
        ],
        "advice": advice,
        "teaching": advising.lines(advice, settings),
    }


def _resolution(inputs: Inputs | Context, spec: AnySpec) -> list[str]:
    read, sizes = inputs.dataset.preprocessing.image_size, inputs.image_sizes
    if sizes == (read,):
        return []
    said = f"student's input: {spec.image_size} px, of {', '.join(map(str, sizes))}"
    return [f"{said}; its teacher sees the same images at {read} px"]


def _margin(selection: Selection) -> list[str]:
    margin = selection.limits.time_margin
    if margin == 1:
        return []
    return [f"latency held against the budget times {margin:.3g}: measured over predicted may be that high"]


def _candidate(candidate: Candidate) -> dict[str, Any]:
    figures = candidate.figures
    return {
        "macs": figures.macs,
        "parameters": figures.parameters,
        "latency_p50_ms": figures.latency_p50_ms,
        "score": candidate.score,
        "name": summary(candidate.spec.model_dump()),
    }


def summary(spec: dict[str, Any]) -> str:
    """A student in one line.

    >>> summary({"kind": "zoo", "name": "timm:lcnet_050", "image_size": 32, "weights": None})
    '32 px, timm:lcnet_050'

    >>> stage = {"block": "fused", "channels": 32, "depth": 2, "kernel": 3, "expansion": 1}
    >>> summary({"stem_channels": 16, "stages": [stage], "head_channels": 64, "image_size": 28})
    '28 px, stem 16, fused 3x3 e1 32x2, head 64'
    """
    if spec.get("kind") == "zoo":
        return f"{spec['image_size']} px, {spec['name']}{', pretrained' if spec['weights'] else ''}"
    if spec.get("kind") == "pruned":
        return f"{spec['image_size']} px, {spec['architecture']} without {spec['ratio']:.0%} of its channels"
    stages = ", ".join(_stage(stage) for stage in spec["stages"])
    return f"{spec['image_size']} px, stem {spec['stem_channels']}, {stages}, head {spec['head_channels']}"


def _stage(stage: dict[str, Any]) -> str:
    size, gate = stage["kernel"], " se" if stage.get("squeeze_excite") else ""
    return f"{stage['block']} {size}x{size} e{stage['expansion']}{gate} {stage['channels']}x{stage['depth']}"


def student_cost(inputs: Inputs | Context, spec: AnySpec) -> GraphCost:
    """The traced cost of a student at the size of its input."""
    shape = inputs.dataset.at(spec.image_size).preprocessing.shape
    return trace_cost(student_module(inputs, spec).eval(), (1, *shape))


def predictions(inputs: Inputs | Context, plan: Plan, spec: AnySpec, cost: GraphCost) -> list[dict[str, Any]]:
    """Latency, memory and size of the student, and latency of the teacher, on the profile's device: never measured."""
    profile = inputs.profile
    pricing = pricing_for(inputs, plan)
    latency, p90 = pricing.estimate(spec, cost), pricing.cost.p90_over_p50
    memory = estimate_memory_mib(cost, plan.precision, profile.primary.target)
    size = estimate_size_mib(cost, plan.precision)
    said = "base + factor x (weights + activations), docs/latency.md"
    rows = [
        _latency_row("student", "latency_p50_ms", latency, 1.0, ""),
        _latency_row("student", "latency_p90_ms", latency, p90, f", p90 = {p90:g} p50"),
        _row("student", "peak_memory_mib", memory, 0.5 * memory, 2 * memory, said),
        _row("student", "artifact_size_mib", size, 0.8 * size, 1.5 * size, "weights + 2 KiB per kernel"),
    ]
    if profile.power is not None:
        watts = profile.power.limit_w
        rows.append(_latency_row("student", "energy_mj", latency, watts, f", at the power limit of {watts:g} W"))
    if not inputs.teacher.black_box:
        own = inputs.teacher.preprocessing
        teacher = trace_cost(inputs.teacher.module, (1, *own.shape))
        rows += _teacher_rows(pricing, teacher)
    return rows


def _teacher_rows(pricing: Pricing, teacher: GraphCost) -> list[dict[str, Any]]:
    """None for a teacher with an operator whose cost nobody stated: it still teaches."""
    try:
        return [_latency_row("teacher", "latency_p50_ms", pricing.estimate(None, teacher), 1.0, "")]
    except InputError:
        return []


def _latency_row(what: str, quantity: str, latency: Estimate, factor: float, more: str) -> dict[str, Any]:
    bounds = factor * latency.p50_ms, factor * latency.lo_ms, factor * latency.hi_ms
    return _row(what, quantity, *bounds, f"{latency.provenance}{more}")


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
    return [*found, *result["teaching"]]


def trial_exports(context: Context, chosen: Candidate) -> list[dict[str, Any]]:
    """Every planned target on the untrained student.

    Raises: CheckError: not one target can be exported, so training would be for nothing.
    """
    torch.manual_seed(context.settings.seed)
    student = student_module(context, chosen.spec).eval()
    dataset = context.dataset.at(chosen.spec.image_size)
    save_program(export_float(student, dataset.preprocessing.shape), context.program("trial-float"))
    if context.plan.precision == "int8":
        batches = calibration_batches(dataset, TRIAL_IMAGES, seed=context.settings.seed)
        save_program(ptq(student, batches, quant_spec(context)), context.program("trial-int8"))
    requests = [_trial(request(context, t, folder="trial", dataset=dataset)) for t in context.plan.exports]
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
