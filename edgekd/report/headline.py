"""The few figures a reader wants first, and the rules of what may be shown there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from edgekd.report.base import Document
from edgekd.report.document import Accuracy, GateState, Predicted, Quantity, RunReport
from edgekd.report.rows import MeasurementRow, RatioRow


class Figure(Document):
    """One headline figure. `kind` decides how it is drawn: predicted figures never look like measured ones."""

    label: str
    value: str
    detail: str
    kind: Literal["measured", "predicted", "missing"]


def deployed_accuracy(report: RunReport) -> Accuracy | None:
    """Top-1 of what will run: the primary artifact in its runtime, else the quantised student, else the float."""
    primary, student = report.primary, report.accuracy("student")
    if primary is not None:
        own = [row for row in report.accuracies if row.artifact == primary.name and row.split == "test"]
        # An interpreted artifact sees fewer images than the teacher did: two figures of other images do not compare.
        if own and (student is None or own[0].n >= student.n):
            return own[0]
        if primary.precision == "int8" and (quantised := report.accuracy("quantised")) is not None:
            return quantised
    return student


class Comparison(Document):
    """One quantity of the deployed student as predicted and as measured on the profile's own device."""

    predicted: Predicted
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted.value


def on_device(report: RunReport) -> MeasurementRow | None:
    """The deployed student measured on the profile's own device: the primary artifact, else another file that ships."""
    rows = [row for row in report.measurements if row.on_profile_device and row.role == "student" and row.artifact]
    primary = report.primary.name if report.primary else ""
    return next((row for row in rows if row.artifact == primary), rows[0] if rows else None)


def predicted(report: RunReport, quantity: Quantity) -> Predicted | None:
    """The student's estimate of a quantity."""
    return next((row for row in report.predicted if row.quantity == quantity and row.what == "student"), None)


def comparisons(report: RunReport) -> tuple[Comparison, ...]:
    """Predicted against measured; empty where the student never ran on the profile's device."""
    row = on_device(report)
    if row is None:
        return ()
    measured: dict[Quantity, float | None] = {
        "latency_p50_ms": row.p50_ms,
        "latency_p90_ms": row.p90_ms,
        "peak_memory_mib": row.peak_memory_mib,
    }
    pairs = [(predicted(report, quantity), value) for quantity, value in measured.items()]
    return tuple(Comparison(predicted=p, measured=value) for p, value in pairs if p is not None and p.value and value)


def speed_counts(report: RunReport, row: RatioRow) -> bool:
    """False when the timed artifact did not pass its check: no speedup is shown without output parity."""
    artifact = report.artifact(row.artifact) if row.artifact else None
    return not row.artifact or (artifact is not None and artifact.state == "exported-and-checked")


def verdict(report: RunReport) -> tuple[GateState, str]:
    """One state and one sentence for the whole run; a failed gate outweighs an unverified one."""
    states: tuple[GateState, ...] = ("pass", "warn", "fail", "unverified")
    count = {state: sum(gate.state == state for gate in report.gates) for state in states}
    parts = [f"{count['pass']} passed", f"{count['fail']} failed", f"{count['unverified']} unverified"]
    parts += [f"{count['warn']} warned"] if count["warn"] else []
    sentence = f"{len(report.gates)} gates: {', '.join(parts)}" if report.gates else "no gate was evaluated"
    if count["fail"]:
        return "fail", sentence
    if count["unverified"] or not report.gates:
        return "unverified", sentence
    return ("warn" if count["warn"] else "pass"), sentence


def figures(report: RunReport) -> tuple[Figure, ...]:
    """Accuracy, speed, size, and the latency on the profile's own device, in this order."""
    return (_accuracy(report), *_speedups(report), _size(report), _device_latency(report))


def _accuracy(report: RunReport) -> Figure:
    student, teacher = deployed_accuracy(report), report.accuracy("teacher")
    if student is None:
        return Figure(label="test top-1", value="—", detail="not measured", kind="missing")
    detail = f"[{student.lo:.2%}, {student.hi:.2%}], n = {student.n:,}, in {student.runtime}"
    if teacher is not None:
        detail = f"{100 * (student.top1 - teacher.top1):+.2f} points against the teacher ({teacher.top1:.2%}); {detail}"
    return Figure(label="test top-1 of the student", value=f"{student.top1:.2%}", detail=detail, kind="measured")


def _speedups(report: RunReport) -> Iterator[Figure]:
    for row in report.ratios:
        if row.key == "student-float-to-int8":
            continue
        what = "teacher as run today" if row.key == "teacher-today-to-student" else "teacher's best export"
        label = f"speedup over the {what}" + (f" on {row.device}" if row.on_profile_device else "")
        if row.ratio is None or row.lo is None or row.hi is None:
            yield Figure(label=label, value="—", detail=row.reason or "not measured", kind="missing")
        elif not speed_counts(report, row):
            yield Figure(
                label=label, value="withheld", detail=f"{row.artifact} has not passed its check", kind="missing"
            )
        else:
            yield Figure(label=label, value=f"{row.ratio:.1f}×", detail=_ratio_detail(row), kind="measured")


def _ratio_detail(row: RatioRow) -> str:
    where = ", ".join(part for part in (row.runtime, row.device) if part)
    interval = f"99% CI [{row.lo:.2f}, {row.hi:.2f}], {row.n_blocks} block pairs"
    return interval + (f", {where}" if where else "") + ("" if row.significant else "; no significant difference")


def _size(report: RunReport) -> Figure:
    primary = report.primary
    if primary is None or primary.size_bytes is None:
        return Figure(label="artifact size", value="—", detail="nothing was exported", kind="missing")
    budget = f"budget {report.profile.budgets.artifact_size_mib:g} MiB"
    return Figure(label=f"size of {primary.name}", value=size_text(primary.size_bytes), detail=budget, kind="measured")


def size_text(size_bytes: int) -> str:
    """Bytes as people read them.

    >>> size_text(98_304), size_text(5 * 2**20)
    ('96.0 KiB', '5.00 MiB')
    """
    return f"{size_bytes / 2**20:.2f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:.1f} KiB"


def _device_latency(report: RunReport) -> Figure:
    label = f"latency p50 on {report.profile.title}"
    budget = f"budget p90 {report.profile.budgets.latency_p90_ms:g} ms"
    row, estimate, attached = on_device(report), predicted(report, "latency_p50_ms"), report.attached
    interval = "" if estimate is None else f"[{estimate.lo:.3g}, {estimate.hi:.3g}]"
    if row is not None:
        where = f"on {attached.name}{', another device by its looks' if attached.unlike else ''}: " if attached else ""
        beside = "" if estimate is None else f"predicted {estimate.value:.3g} {interval}; "
        detail = f"{where}{beside}n = {row.n:,}, {row.runtime}, {row.verdict}; {budget}"
        return Figure(label=label, value=f"{row.p50_ms:.3g} ms", detail=detail, kind="measured")
    never = f"not measured on {attached.name}: {attached.reason}" if attached else "never run there"
    if estimate is None:
        return Figure(label=label, value="—", detail="neither measured nor predicted", kind="missing")
    detail = f"{interval} ms, {never}; {budget}"
    return Figure(label=label, value=f"{estimate.value:.3g} ms", detail=detail, kind="predicted")
