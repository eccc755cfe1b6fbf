"""Gates on what ships: accuracy, parity, int8, budgets, speed. All of them are hard.

Three states. `pass` needs a measurement; `fail` needs a measurement, or an estimate whose optimistic bound misses;
everything else is `unverified`, which says what to do to know. An estimate can never make a budget gate pass.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekd.report.document import Accuracy, Gate, GateState, Predicted, RunReport
from edgekd.report.headline import deployed_accuracy, on_device, predicted, speed_counts
from edgekd.report.rows import ArtifactRow, RatioRow

TEACHER_FRACTION_MIN = 0.95  # decision guide, gate 1
BASELINE_FRACTION_MIN = 1.05  # decision guide, gate 1
COLLAPSE_POINTS_MAX = 2.0  # decision guide, failure mode "capacity mismatch collapse"
INT8_LOSS_POINTS_MAX = 0.5
PARITY_SNR_DB_MIN = 30.0
PARITY_AGREEMENT_MIN = 0.99
SUBSET_WHY = "subset: smoke numbers only; run on the full data set"


def deployment_gates(report: RunReport) -> tuple[Gate, ...]:
    """Accuracy, artifacts, int8, budgets, speed, in this order."""
    return (
        _accuracy_gate(report),
        *_collapse_gate(report),
        *(_parity_gate(row) for row in report.artifacts),
        *(_int8_gate(row) for row in report.artifacts if row.precision == "int8" and row.state != "not-exported"),
        *_int8_loss_gate(report),
        _latency_gate(report),
        _memory_gate(report),
        _size_gate(report),
        *_speedup_gates(report),
    )


def _accuracy_gate(report: RunReport) -> Gate:
    """Decision guide gates 1 and 2: near the teacher, or better than training alone, on images never trained on."""
    name = "accuracy on the held-out test set"
    threshold = (
        f">= {TEACHER_FRACTION_MIN:.0%} of the teacher or >= {BASELINE_FRACTION_MIN:.0%} of the no-teacher baseline"
    )
    student, teacher, baseline = deployed_accuracy(report), report.accuracy("teacher"), report.accuracy("baseline")
    if student is None or (teacher is None and baseline is None):
        return Gate(
            name=name, state="unverified", figure="not measured", threshold=threshold, why="run the check stage"
        )
    parts = [f"{student.top1:.2%} [{student.lo:.2%}, {student.hi:.2%}], n = {student.n:,}"]
    met = False
    for other, least in ((teacher, TEACHER_FRACTION_MIN), (baseline, BASELINE_FRACTION_MIN)):
        if other is not None:
            parts.append(f"{_fraction(student.top1, other.top1)} of {other.role} ({other.top1:.2%})")
            met = met or student.top1 >= least * other.top1
    if report.data.is_subset:
        return Gate(name=name, state="unverified", figure="; ".join(parts), threshold=threshold, why=SUBSET_WHY)
    why = "" if met else "a larger student, more epochs, or a teacher assistant between the two"
    return Gate(name=name, state=_passed(met), figure="; ".join(parts), threshold=threshold, why=why)


def _fraction(value: float, of: float) -> str:
    return f"{value / of:.1%}" if of > 0 else "n/a"


def _passed(met: bool) -> GateState:
    return "pass" if met else "fail"


def _collapse_gate(report: RunReport) -> Iterator[Gate]:
    """Capacity-mismatch collapse: the distilled student clearly under the same student trained alone, both float."""
    student, baseline = report.accuracy("student"), report.accuracy("baseline")
    if student is None or baseline is None:
        return
    gain_points = 100 * (student.top1 - baseline.top1)
    met = gain_points >= -COLLAPSE_POINTS_MAX
    yield Gate(
        name="distillation does no harm",
        state="unverified" if report.data.is_subset else _passed(met),
        figure=f"{gain_points:+.2f} points against the baseline without teacher ({baseline.top1:.2%})",
        threshold=f"not more than {COLLAPSE_POINTS_MAX:g} points under the baseline",
        why=SUBSET_WHY if report.data.is_subset else "" if met else "an assistant of middle size, or a smaller teacher",
    )


def _parity_gate(row: ArtifactRow) -> Gate:
    """The artifact computes what the student computes, in the runtime it is for."""
    name = f"parity: {row.name}"
    check = row.check
    snr_min = PARITY_SNR_DB_MIN if check is None or check.min_snr_db is None else check.min_snr_db
    agreement_min = PARITY_AGREEMENT_MIN if check is None or check.min_agreement is None else check.min_agreement
    threshold = f"SNR >= {snr_min:g} dB and top-1 agreement >= {agreement_min:.0%}"
    if row.state == "not-exported":
        return Gate(name=name, state="fail", figure="not exported", threshold=threshold, why=row.reason)
    if check is None or check.snr_db is None or check.agreement is None:
        failed = row.state == "exported-check-failed"
        why = row.reason or "its runtime does not execute on this host: run the bundle's script on the device"
        return Gate(
            name=name, state="fail" if failed else "unverified", figure="never executed", threshold=threshold, why=why
        )
    figure = f"{check.snr_db:.1f} dB, agreement {check.agreement:.2%}, n = {check.n_images}"
    if row.state == "exported-check-failed" or check.snr_db < snr_min or check.agreement < agreement_min:
        why = "; ".join(check.failures) or row.reason or "output differs from the student's"
        return Gate(name=name, state="fail", figure=figure, threshold=threshold, why=why)
    if not check.executed:
        where = check.executed_in or "a stand-in"
        why = f"figures come from {where}, not from the runtime itself: run the bundle's script on the device"
        return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=why)
    return Gate(name=name, state="pass", figure=f"{figure}, in {check.executed_in or row.target}", threshold=threshold)


def _int8_gate(row: ArtifactRow) -> Gate:
    """An artifact called int8 computes every convolution in int8 (every matrix product where it has none)."""
    name, threshold = f"int8 is int8: {row.name}", "every convolution in int8"
    check = row.check
    if check is None or check.int8_ops is None or not check.compute_ops:
        why = "no evidence from this runtime: profile it on the device"
        return Gate(name=name, state="unverified", figure="no evidence", threshold=threshold, why=why)
    figure = f"{check.int8_ops} of {check.compute_ops} compute ops"
    missing = check.compute_ops - check.int8_ops
    if check.convs and check.int8_convs is not None:
        figure = f"{check.int8_convs} of {check.convs} convolutions, {figure}"
        missing = check.convs - check.int8_convs
    figure += f" ({check.evidence})" if check.evidence else ""
    why = f"{missing} layers fell back to float" if missing else ""
    return Gate(name=name, state=_passed(missing == 0), figure=figure, threshold=threshold, why=why)


def _int8_loss_gate(report: RunReport) -> Iterator[Gate]:
    """Points lost by quantising, on the same images."""
    name, threshold = "int8 accuracy loss", f"<= {INT8_LOSS_POINTS_MAX:g} points under the float student"
    wanted = any(row.precision == "int8" for row in report.artifacts)
    student, quantised = report.accuracy("student"), _worst_int8(report)
    if student is None or quantised is None:
        if wanted:
            yield Gate(
                name=name, state="unverified", figure="not measured", threshold=threshold, why="run the check stage"
            )
        return
    lost_points = 100 * (student.top1 - quantised.top1)
    change = f"{student.top1:.2%} → {quantised.top1:.2%}, {quantised.name}, n = {quantised.n:,}"
    figure = f"{lost_points:.2f} points lost ({change})"
    if report.data.is_subset or student.n != quantised.n:
        why = (
            SUBSET_WHY
            if report.data.is_subset
            else f"float was tested on {student.n:,} images, int8 on {quantised.n:,}"
        )
        yield Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=why)
        return
    met = lost_points <= INT8_LOSS_POINTS_MAX + 1e-9
    why = "" if met else "more quantisation-aware epochs, or keep the layers that hurt in float"
    yield Gate(name=name, state=_passed(met), figure=figure, threshold=threshold, why=why)


def _worst_int8(report: RunReport) -> Accuracy | None:
    """The least accurate int8 form of the student, on the most test images: the gate is about everything that ships."""
    rows = [
        row
        for row in report.accuracies
        if row.split == "test" and (row.role == "quantised" or (row.artifact and row.precision == "int8"))
    ]
    most = max((row.n for row in rows), default=0)
    return min((row for row in rows if row.n == most), key=lambda row: row.top1, default=None)


def _latency_gate(report: RunReport) -> Gate:
    budget = report.profile.budgets.latency_p90_ms
    name, threshold = f"latency p90 on {report.profile.name}", f"<= {budget:g} ms"
    row = on_device(report)
    if row is not None and row.p90_ms is not None and row.verdict in ("valid", "noisy"):
        figure = f"measured {row.p90_ms:.3g} ms{_there(report)}, n = {row.n}"
        doubt = "noisy: measure again" if row.verdict == "noisy" else _unlike(report)
        return _budget_gate(name, figure, threshold, met=row.p90_ms <= budget, doubt=doubt)
    estimate = predicted(report, "latency_p90_ms") or predicted(report, "latency_p50_ms")
    return _predicted_gate(report, name, threshold, estimate, budget=budget, unit="ms")


def _memory_gate(report: RunReport) -> Gate:
    budget = report.profile.budgets.peak_memory_mib
    name, threshold = f"peak memory on {report.profile.name}", f"<= {budget:g} MiB"
    row = on_device(report)
    if row is not None and row.peak_memory_mib is not None:
        figure = f"measured {row.peak_memory_mib:.3g} MiB{_there(report)}"
        return _budget_gate(name, figure, threshold, met=row.peak_memory_mib <= budget, doubt=_unlike(report))
    return _predicted_gate(report, name, threshold, predicted(report, "peak_memory_mib"), budget=budget, unit="MiB")


def _there(report: RunReport) -> str:
    return f" on {report.attached.name}" if report.attached else ""


def _unlike(report: RunReport) -> str:
    """Why a measurement on the attached device may say nothing about the profile's."""
    return "; ".join(report.attached.unlike) if report.attached else ""


def _size_gate(report: RunReport) -> Gate:
    """Size needs no device: the file is here, so this gate is decided by measurement whenever there is a file."""
    budget, primary = report.profile.budgets.artifact_size_mib, report.primary
    name, threshold = "artifact size", f"<= {budget:g} MiB"
    if primary is None or primary.size_bytes is None:
        return _predicted_gate(
            report, name, threshold, predicted(report, "artifact_size_mib"), budget=budget, unit="MiB"
        )
    size_mib = primary.size_bytes / 2**20
    return _budget_gate(name, f"measured {size_mib:.2f} MiB ({primary.name})", threshold, met=size_mib <= budget)


def _budget_gate(name: str, figure: str, threshold: str, *, met: bool, doubt: str = "") -> Gate:
    """A measurement's verdict. doubt: why one that fits does not prove it."""
    if met and doubt:
        return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=doubt)
    why = "" if met else "a smaller student: lower the budget given to the search by what is missing"
    return Gate(name=name, state=_passed(met), figure=figure, threshold=threshold, why=why)


def _predicted_gate(
    report: RunReport, name: str, threshold: str, estimate: Predicted | None, *, budget: float, unit: str
) -> Gate:
    """An estimate's verdict: `fail` when even its optimistic bound misses, else `unverified`; never `pass`."""
    device = report.profile.title
    if report.attached and report.attached.reason:
        device += f" (not measured on {report.attached.name}: {report.attached.reason})"
    if estimate is None:
        why = f"neither measured nor predicted: measure on {device}"
        return Gate(name=name, state="unverified", figure="unknown", threshold=threshold, why=why)
    figure = f"predicted {estimate.value:.3g} {unit} [{estimate.lo:.3g}, {estimate.hi:.3g}]"
    if estimate.lo > budget:
        why = "even the optimistic bound of the estimate misses: a smaller student, or a larger budget"
        return Gate(name=name, state="fail", figure=figure, threshold=threshold, why=why)
    fits = "fits" if estimate.hi <= budget else "may fit" if estimate.value <= budget else "probably misses"
    why = f"the estimate {fits}, but an estimate is not a measurement: measure on {device}"
    return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=why)


def _speedup_gates(report: RunReport) -> Iterator[Gate]:
    rows = {row.key: row for row in report.ratios if not row.on_profile_device}
    yield _speedup_gate(report, rows.get("teacher-today-to-student"), "faster than the teacher as run today")
    if "teacher-best-to-student" in rows:
        yield _speedup_gate(report, rows["teacher-best-to-student"], "faster than the teacher's best export")
    for row in report.ratios:
        if row.on_profile_device and row.key == "teacher-best-to-student":
            yield _speedup_gate(report, row, f"faster than the teacher's best export on {row.device}")


def _speedup_gate(report: RunReport, row: RatioRow | None, name: str) -> Gate:
    threshold = "ratio > 1, 99% CI excluding 1"
    if row is None or row.ratio is None or row.lo is None or row.hi is None:
        why = (row.reason if row else "") or "run the measure stage"
        return Gate(name=name, state="unverified", figure="not measured", threshold=threshold, why=why)
    figure = f"{row.ratio:.2f}x [{row.lo:.2f}, {row.hi:.2f}], {row.n_blocks} block pairs"
    if not speed_counts(report, row):
        why = f"{row.artifact} has not passed its check; a wrong answer's speed does not count"
        return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=why)
    met = row.significant and row.lo > 1
    if met and row.on_profile_device and (doubt := _unlike(report)):
        return Gate(name=name, state="unverified", figure=figure, threshold=threshold, why=doubt)
    why = (
        f"measured on {row.device}" if met and row.device else "" if met else "no significant speedup over the teacher"
    )
    return Gate(name=name, state=_passed(met), figure=figure, threshold=threshold, why=why)
