"""When a bar is missed: which layer breaks or hurts, what staying float there costs, and whether it helps.

Two kinds. conversion: an artifact differs from its own program, and bisection names the first layer that breaks.
quantisation: the int8 program itself is far from the float model, and the sensitivity of each layer says where.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from edgekd.artifact import Frozen
from edgekd.errors import CheckError, EdgekdError
from edgekd.export.bisect import BISECTION_IMAGES, Bisection, bisect
from edgekd.export.check_report import CHANCE
from edgekd.pipeline.context import sample_images
from edgekd.pipeline.model_export.checking import check
from edgekd.pipeline.model_export.converting import convert, request_for
from edgekd.pipeline.model_export.measuring import Latency, Ratio, Timing, measure
from edgekd.pipeline.model_export.planning import Planned
from edgekd.pipeline.model_export.programs import FLOAT, add_int8, batches_of, loss_points
from edgekd.pipeline.model_export.work import Candidate, Work
from edgekd.targets.spec import QuantSpec

# Where there are no labels to count: an int8 program with less signal than this is of no use (5% noise in amplitude
# is 26 dB; nets under 10 dB were seen to lose most of their accuracy).
PROGRAM_BAR_DB = 15.0
# Images of the sensitivity figures: it runs the whole net once per layer.
SENSITIVITY_IMAGES = 64
LAYERS_SHOWN = 8
VARIANT = "mixed"
NEAR_TIES = "the signal holds, so no layer breaks: what changes are images whose two best classes nearly tie"


class LayerFacts(Frozen):
    """One layer quantised alone: signal to noise of the outputs, and its part of the multiply-adds."""

    name: str
    snr_db: float
    macs_share: float


class Trial(Frozen):
    """One artifact made again with the proposed layers in float. slowdown: against int8 in the same runtime."""

    label: str
    state: str
    loss_points_before: float | None = None
    loss_points: float | None = None
    snr_db_before: float | None = None
    snr_db: float | None = None
    latency: Latency | None = None
    slowdown: Ratio | None = None


class Diagnosis(Frozen):
    """Why a bar was missed and what can be done. label: the artifact's, or the int8 program's.

    layers: worst first. proposed: what should stay float. trials: measured with that, kept where `applied`.
    """

    label: str
    kind: Literal["conversion", "quantisation"]
    what: str
    bisection: Bisection | None = None
    layers: tuple[LayerFacts, ...] = ()
    proposed: tuple[str, ...] = ()
    applied: bool = False
    trials: tuple[Trial, ...] = ()
    text: tuple[str, ...] = ()


def prove(work: Work) -> tuple[list[Diagnosis], Timing]:
    """Diagnose every missed bar and try what is proposed; with `fix`, what was tried joins the candidates."""
    diagnoses = [*_conversions(work), *_quantisations(work)]
    timing = Timing(latencies={})
    for index, diagnosis in enumerate(diagnoses):
        for line in diagnosis.text:
            work.events.note(f"{diagnosis.label}: {line}")
        if diagnosis.proposed:
            diagnoses[index], more = _try(work, diagnosis)
            timing = Timing(latencies={**timing.latencies, **more.latencies}, text=timing.text + more.text)
    return diagnoses, timing


def _conversions(work: Work) -> list[Diagnosis]:
    return [
        _bisected(work, c)
        for c in work.candidates
        if c.check is not None and c.check.under_parity and c.check.executed != "not-executed"
        if c.planned.precision != "w8"  # compared with the float program: nothing was lost in the conversion
    ]


def _bisected(work: Work, candidate: Candidate) -> Diagnosis:
    what = "; ".join(candidate.check.failures) if candidate.check is not None else ""
    if candidate.check is not None and candidate.check.holds_signal:
        return Diagnosis(label=candidate.label, kind="conversion", what=what, text=(NEAR_TIES,))
    images, _ = sample_images(work.inputs.dataset, BISECTION_IMAGES, seed=work.settings.seed)
    work.events.note(f"{candidate.label}: {what}: looking for the layer")
    request = request_for(work, candidate.planned)
    try:
        found = bisect(request, images, work.inputs.preprocessing, log_dir=work.folder / "logs")
    except EdgekdError as error:
        return Diagnosis(label=candidate.label, kind="conversion", what=what, text=(f"no bisection: {error}",))
    proposed = (found.layer,) if found.layer and candidate.planned.spec is not None else ()
    return Diagnosis(
        label=candidate.label,
        kind="conversion",
        what=what,
        bisection=found,
        proposed=proposed,
        text=(found.text, *_proposal(proposed)),
    )


def _quantisations(work: Work) -> list[Diagnosis]:
    """Every int8 program that is too far from the float one."""
    found = []
    for name in work.programs.facts:
        if name != FLOAT and (what := too_far(work, name)):
            found.append(_sensitive(work, name, what))
    return found


def too_far(work: Work, program: str) -> str:
    """Which bar the int8 program itself misses: accuracy where it was counted, else signal to noise. "" for none."""
    reports = [c.check for c in work.candidates if c.planned.program == program and c.check is not None]
    for report in reports:
        if report.paired is not None and report.reference_accuracy_top1 is not None:
            if report.n_accuracy_images < report.paired.n:
                continue
            loss = 100 * (report.paired.baseline_top1 - report.reference_accuracy_top1)
            limit = work.settings.max_loss_points
            clear = loss > limit and report.paired.p_value < CHANCE
            return f"int8 loses {loss:.2f} points, more than {limit:g}, before any conversion" if clear else ""
    snr_db = work.programs.facts[program].snr_db
    if not work.inputs.labelled and snr_db is not None and snr_db < PROGRAM_BAR_DB:
        return f"int8 is {snr_db:.1f} dB from float, under {PROGRAM_BAR_DB:g} dB, before any conversion"
    return ""


def _sensitive(work: Work, program: str, what: str) -> Diagnosis:
    from edgekd.quant import sensitivity

    spec = work.programs.facts[program].spec
    batches = batches_of(work.inputs, work.programs.indices[:SENSITIVITY_IMAGES])
    work.events.note(f"{program}: {what}: looking for the layers")
    try:
        assert spec is not None
        errors = sensitivity(work.inputs.module, batches, spec, outputs=work.inputs.outputs)
        proposed, promise = _fewest(work, program, spec, batches, [error.layer for error in errors])
    except EdgekdError as error:
        return Diagnosis(label=program, kind="quantisation", what=what, text=(f"no sensitivity: {error}",))
    layers = tuple(LayerFacts(name=e.layer, snr_db=e.snr_db, macs_share=e.macs_share) for e in errors[:LAYERS_SHOWN])
    worst = ", ".join(f"{layer.name} ({layer.snr_db:.1f} dB)" for layer in layers[:3])
    return Diagnosis(
        label=program,
        kind="quantisation",
        what=what,
        layers=layers,
        proposed=proposed,
        text=(what, f"the layers that hurt most: {worst}", *promise, *_proposal(proposed)),
    )


def _fewest(
    work: Work, program: str, spec: QuantSpec, batches: list[Tensor], worst_first: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A short list that brings the program over its bar, and what it brings; nothing where no list helps."""
    from edgekd.quant import propose_float_layers

    if work.inputs.labelled:
        return _fewest_by_accuracy(work, program, spec, worst_first)
    outputs = work.inputs.outputs
    try:
        few = propose_float_layers(work.inputs.module, batches, spec, snr_db=PROGRAM_BAR_DB, outputs=outputs)
    except CheckError:  # not even all of them: what hurts lies between the layers
        return (), ()
    return tuple(few), (f"{len(few)} layers in float bring the outputs to {PROGRAM_BAR_DB:.0f} dB",) if few else ()


def _fewest_by_accuracy(
    work: Work, program: str, spec: QuantSpec, worst_first: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The worst layer, or the two, four, eight worst, until accuracy holds on training images.

    Signal to noise does not tell (mobilenetv4_conv_small: two layers end a loss of 2.4 points and bring 0.5 dB).
    Training images may lose less than test images did: at least half of their loss has to go as well.
    """
    built = work.programs.built
    start = least = loss_points(work.inputs, work.settings, built[FLOAT], built[program])
    bar, best = min(work.settings.max_loss_points, start / 2), tuple[str, ...]()
    for doubling in range(math.ceil(math.log2(max(len(worst_first), 1))) + 1):
        layers = tuple(worst_first[: 2**doubling])
        loss = _loss_with(work, spec, layers)
        if loss < least:
            least, best = loss, layers
        if loss <= bar:
            break
    said = f"{len(best)} layers in float: {least:.2f} points lost on training images instead of {start:.2f}, in torch"
    return best, (said,) if best else ()


def _loss_with(work: Work, spec: QuantSpec, layers: tuple[str, ...]) -> float:
    """Accuracy lost with some more layers in float, before any conversion."""
    name = f"{FLOAT}-trial"
    mixed = spec.model_copy(update={"float_layers": (*spec.float_layers, *layers)})
    untrained = work.settings.model_copy(update={"qat_epochs": 0.0})  # a training for every list would take hours
    add_int8(work.programs, work.inputs, untrained, {name: mixed}, events=work.events)
    program = work.programs.built.pop(name)
    del work.programs.facts[name]
    return loss_points(work.inputs, work.settings, work.programs.built[FLOAT], program)


def _proposal(layers: tuple[str, ...]) -> tuple[str, ...]:
    return (f"keep in float: --float-layers {','.join(layers)}",) if layers else ()


def _try(work: Work, diagnosis: Diagnosis) -> tuple[Diagnosis, Timing]:
    """Quantise, export, check and time again with the proposed layers in float."""
    concerned = [
        c
        for c in work.candidates
        if diagnosis.label in (c.label, c.planned.program) and c.planned.spec is not None and not c.planned.variant
    ]
    mixed = [Candidate(p) for p in _mixed(work, concerned, diagnosis.proposed)]
    convert(work, mixed)
    check(work, mixed)
    timing = _time(work, concerned, mixed) if work.settings.measure else Timing(latencies={})
    trials = tuple(_trial(a, b, timing) for a, b in zip(concerned, mixed, strict=True))
    lines = tuple(_line(trial) for trial in trials)
    for line in lines:
        work.events.note(line)
    if work.settings.fix:
        work.candidates.extend(mixed)
    else:
        _remove(work, mixed)
    update = {"trials": trials, "applied": work.settings.fix, "text": diagnosis.text + lines}
    return diagnosis.model_copy(update=update), timing if work.settings.fix else Timing(latencies={})


def _mixed(work: Work, concerned: Sequence[Candidate], layers: tuple[str, ...]) -> list[Planned]:
    """The same artifacts from a new program, quantised once per program they came from."""
    planned = []
    for candidate in concerned:
        before = candidate.planned
        assert before.spec is not None
        spec = before.spec.model_copy(
            update={"float_layers": tuple(dict.fromkeys((*before.spec.float_layers, *layers)))}
        )
        name = next((n for n, f in work.programs.facts.items() if f.spec == spec), None)
        if name is None:
            taken = sum(n.startswith(f"{before.program}-{VARIANT}") for n in work.programs.facts)
            name = f"{before.program}-{VARIANT}{taken + 1 if taken else ''}"
            add_int8(work.programs, work.inputs, work.settings, {name: spec}, events=work.events)
            work.programs.save(work.folder)
        used = sum(c.planned.label.startswith(f"{before.label}-{VARIANT}") for c in work.candidates)
        variant = f"{VARIANT}{used + 1 if used else ''}"
        planned.append(before.model_copy(update={"program": name, "spec": spec, "variant": variant}))
    return planned


def _time(work: Work, concerned: Sequence[Candidate], mixed: Sequence[Candidate]) -> Timing:
    targets = {c.planned.target for c in concerned}
    floats = [c for c in work.candidates if c.planned.target in targets and c.planned.precision == "fp32"]
    return measure(work, [*floats, *concerned, *mixed], file=f"measurements-{mixed[0].label}.json")


def _trial(before: Candidate, after: Candidate, timing: Timing) -> Trial:
    latency = timing.latencies.get(after.label)
    slowdown = next((r for r in latency.ratios if r.baseline == before.label), None) if latency is not None else None
    old, new = before.check, after.check
    passed = new is not None and new.passed
    return Trial(
        label=after.label,
        state="exported-and-checked" if passed else "check-failed" if new is not None else "not-exported",
        loss_points_before=old.paired.loss_points if old is not None and old.paired is not None else None,
        loss_points=new.paired.loss_points if new is not None and new.paired is not None else None,
        snr_db_before=old.snr_db if old is not None else None,
        snr_db=new.snr_db if new is not None else None,
        latency=latency,
        slowdown=slowdown,
    )


def _line(trial: Trial) -> str:
    parts = []
    if trial.loss_points is not None and trial.loss_points_before is not None:
        parts.append(f"loses {trial.loss_points:.2f} points instead of {trial.loss_points_before:.2f}")
    if trial.snr_db is not None and trial.snr_db_before is not None:
        parts.append(f"parity {trial.snr_db:.1f} dB instead of {trial.snr_db_before:.1f}")
    if trial.slowdown is not None:
        cost = trial.slowdown
        parts.append(f"{1 / cost.ratio:.2f}x the time of int8 [{1 / cost.hi:.2f}, {1 / cost.lo:.2f}]")
    return f"{trial.label}: {', '.join(parts) or trial.state}"


def _remove(work: Work, mixed: Sequence[Candidate]) -> None:
    """What was only tried leaves nothing behind but its measurements."""
    for candidate in mixed:
        shutil.rmtree(work.folder / "artifacts" / candidate.label, ignore_errors=True)
        name = candidate.planned.program
        if name in work.programs.facts:
            work.program_path(name).unlink(missing_ok=True)
            del work.programs.facts[name], work.programs.built[name]
            work.programs.saved.discard(name)
