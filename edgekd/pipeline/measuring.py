"""Stage `measure`: teacher and student side by side on this host, interleaved; three labelled ratios.

The device of the profile is measured only when it is this host; otherwise its figures stay `predicted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from edgekd.device_benchmarks.contender import Contender, StudentModule, TeacherModule, of_artifact
from edgekd.device_benchmarks.measure import measure_all
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.pipeline.context import Context
from edgekd.pipeline.exporting import artifact_of, host_runtime, runs_here

TEACHER_TODAY = "teacher, PyTorch eager fp32"
STUDENT_TODAY = "student, PyTorch eager fp32"


def measure(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: every measurement with its samples, and the ratios by key with the pair they come from."""
    export = context.record.result("export")
    deployed = _named("student", _artifacts(context, export["artifacts"]))
    floats = _named("student", _artifacts(context, (r for r in export["comparisons"] if r["who"] == "student")))
    teachers = _named("teacher", _artifacts(context, (r for r in export["comparisons"] if r["who"] == "teacher")))
    deployed = {name: a for name, a in deployed.items() if runs_here(a.target)}
    contenders = [
        *([_teacher_today(context)] if not context.teacher.black_box else []),
        _student_today(context),
        *(of_artifact(a, name=name) for name, a in {**teachers, **deployed, **floats}.items()),
    ]
    student = _host_student(context, deployed)
    pairs = _pairs(context, student, list(teachers), list(floats), {**deployed, **floats})
    measured = measure_all(
        contenders,
        mode="quick",
        threads=context.settings.threads,
        pairs=list(dict.fromkeys(pair for _, pair in pairs)),
        seed=context.settings.seed,
        keep_going=True,
        on_progress=lambda what, fraction: context.events.progress("measuring", int(100 * fraction), 100, what),
        command=context.record.document["command"],
    )
    _tell(context, measured)
    return {
        "set": measured.model_dump(mode="json"),
        "pairs": [[key, list(pair)] for key, pair in pairs],
        "student": student,
    }, []


def _artifacts(context: Context, rows: Iterable[Mapping[str, Any]]) -> list[Artifact]:
    return [a for row in rows if (a := artifact_of(row, context.folder)) is not None]


def _named(who: str, artifacts: list[Artifact]) -> dict[str, Artifact]:
    return {f"{who}, {a.target} {a.precision}": a for a in artifacts}


def _teacher_today(context: Context) -> Contender:
    source = TeacherModule(
        spec=context.settings.teacher,
        weights=Path(context.settings.weights) if context.settings.weights else None,
        classes=context.dataset.classes,
        preprocessing=context.dataset.preprocessing.to_dict(),
        dataset_name=context.dataset.name,
    )
    return Contender(name=TEACHER_TODAY, source=source)


def _student_today(context: Context) -> Contender:
    source = StudentModule(spec_file=context.folder / "student.json", weights=context.folder / "student.safetensors")
    return Contender(name=STUDENT_TODAY, source=source)


def _host_student(context: Context, deployed: dict[str, Artifact]) -> str | None:
    """The deployed student that stands for it on this host: in the device's own runtime where it runs here."""
    runtime = host_runtime(context)
    return next((name for name, a in deployed.items() if a.target == runtime), next(iter(deployed), None))


def _pairs(
    context: Context, student: str | None, teachers: list[str], floats: list[str], artifacts: dict[str, Artifact]
) -> list[tuple[str, tuple[str, str]]]:
    """(ratio key, (baseline, contender)). A teacher's best export is only known afterwards: every one is paired."""
    if student is None:
        return []
    pairs = [] if context.teacher.black_box else [("teacher-today-to-student", (TEACHER_TODAY, student))]
    pairs += [("teacher-best-to-student", (name, student)) for name in teachers]
    target = artifacts[student].target
    pairs += [("student-float-to-int8", (name, student)) for name in floats if artifacts[name].target == target]
    return pairs


def _tell(context: Context, measured: MeasurementSet) -> None:
    for row in measured.measurements:
        context.events.note(
            f"{row.name}: p50 {row.p50_ms:.3f} ms [{row.ci_lo_ms:.3f}, {row.ci_hi_ms:.3f}], n = {row.n}, {row.verdict}"
        )
    for ratio in measured.ratios:
        context.events.note(ratio.text)
    for name, reason in measured.failures.items():
        context.events.note(f"not measured: {name}: {reason}")
