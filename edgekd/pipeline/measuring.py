"""Stage `measure`: teacher and student side by side on this host, and on the device that is attached by ssh or adb.

The device of the profile is measured where it is this host or attached; otherwise its figures stay `predicted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from edgekd.device_benchmarks.contender import Contender, StudentModule, TeacherModule, of_artifact
from edgekd.device_benchmarks.measure import measure_all
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.files import read_json
from edgekd.pipeline.attached import attached
from edgekd.pipeline.context import Context
from edgekd.pipeline.exporting import artifact_of, host_runtime, runs_here, teacher_runtimes
from edgekd.pipeline.settings import Settings

TEACHER_TODAY = "teacher, PyTorch eager fp32"
STUDENT_TODAY = "student, PyTorch eager fp32"
Plain = Mapping[str, Any]


def measure(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: every measurement with its samples, and the ratios by key with the pair they come from; the same of the
    attached device under `device`, None without one.
    """
    export = context.record.result("export")
    return {**_on_host(context, export), "device": _on_device(context, export)}, []


def side_of_device(measure: Plain, settings: Settings) -> Plain:
    """Of the stage's result what was measured on the profile's device: what is attached, else this host."""
    side: Plain = measure if settings.on is None else measure["device"]
    return side


def owed(context: Context) -> bool:
    """Whether all that the stage lacks is the attached device's, or the rest of it: a resumed run tries again."""
    return context.on is not None and _incomplete(context.record.result("measure")["device"])


def _incomplete(side: Plain) -> bool:
    """Whether the device told nothing of the student, or went before the last round."""
    return not _tells_of_student(side) or side["set"]["partial"] is not None


def _tells_of_student(side: Plain) -> bool:
    return side["set"] is not None and side["student"] in [row["name"] for row in side["set"]["measurements"]]


def _earlier(context: Context, student: Artifact) -> dict[str, Any] | None:
    """What an earlier try, cut short on the device, told of this very file: a try that fails takes nothing away."""
    file = context.folder / "measure.json"
    side: dict[str, Any] | None = read_json(file).get("device") if file.exists() else None
    if side is None or not _tells_of_student(side):
        return None
    row = next(row for row in side["set"]["measurements"] if row["name"] == side["student"])
    return side if row["provenance"]["artifact_sha256"] == student.sha256 else None


def _on_host(context: Context, export: Plain) -> dict[str, Any]:
    deployed, teachers, floats = _files(context, export)
    deployed = {name: a for name, a in deployed.items() if runs_here(a.target)}
    teachers = {name: a for name, a in teachers.items() if a.target in teacher_runtimes(context)}
    floats = {name: a for name, a in floats.items() if a.target == host_runtime(context)}
    contenders = [
        *([_teacher_today(context)] if not context.teacher.black_box else []),
        _student_today(context),
        *(of_artifact(a, name=name) for name, a in {**teachers, **deployed, **floats}.items()),
    ]
    student = _host_student(context, deployed)
    today = [] if context.teacher.black_box else [TEACHER_TODAY]
    pairs = _pairs(student, today, list(teachers), floats, {**deployed, **floats})
    measured = measure_all(
        contenders,
        mode="quick",
        threads=context.settings.threads,
        pairs=list(dict.fromkeys(pair for _, pair in pairs)),
        seed=context.settings.seed,
        keep_going=True,
        on_progress=_progress(context, "measuring"),
        command=context.record.document["command"],
    )
    _tell(context, measured, "")
    return {
        "set": measured.model_dump(mode="json"),
        "pairs": [[key, list(pair)] for key, pair in pairs],
        "student": student,
    }


def _on_device(context: Context, export: Plain) -> dict[str, Any] | None:
    """Student, its float self and the teacher's exports on the attached device; `set` None: not measured, and why."""
    who = attached(context)
    if who is None or who.device is None:
        return None
    target = who.target.target
    deployed, teachers, floats = _files(context, export)
    deployed = {name: a for name, a in deployed.items() if a.target == target}
    floats = {name: a for name, a in floats.items() if a.target == target}
    student = next(iter(deployed), None)
    pairs = _pairs(student, [], list(teachers), floats, {**deployed, **floats})
    artifacts = {**deployed, **floats, **teachers} if student else {}
    found = who.measure(
        artifacts, pairs=[pair for _, pair in pairs], on_progress=_progress(context, f"measuring on {who.name}")
    )
    failed = [f"not measured on {who.name}: {found.reason}; --resume tries again"] if found.reason else []
    for line in (*found.unlike, *found.notes, *failed):
        context.events.note(line)
    if found.set is not None:
        _tell(context, found.set, f" on {who.name}")
    side = {
        "name": who.name,
        "address": str(who.device.address),
        "set": None if found.set is None else found.set.model_dump(mode="json"),
        "pairs": [[key, list(pair)] for key, pair in pairs],
        "student": student,
        "reason": found.reason,
        "unlike": list(found.unlike),
        "notes": list(found.notes),
    }
    if _incomplete(side) and not failed:
        context.events.note(f"not all was measured on {who.name}; --resume tries again")
    if _tells_of_student(side) or student is None:
        return side
    return _earlier(context, artifacts[student]) or side


def _files(context: Context, export: Plain) -> tuple[dict[str, Artifact], dict[str, Artifact], dict[str, Artifact]]:
    """What was exported, by the contenders' names: the deployed student, the teacher, the student's float self."""
    compared = {who: [r for r in export["comparisons"] if r["who"] == who] for who in ("teacher", "student")}
    return (
        _named("student", _artifacts(context, export["artifacts"])),
        _named("teacher", _artifacts(context, compared["teacher"])),
        _named("student", _artifacts(context, compared["student"])),
    )


def _artifacts(context: Context, rows: Iterable[Plain]) -> list[Artifact]:
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
    student: str | None,
    today: list[str],
    teachers: list[str],
    floats: Iterable[str],
    artifacts: Mapping[str, Artifact],
) -> list[tuple[str, tuple[str, str]]]:
    """(ratio key, (baseline, contender)). A teacher's best export is only known afterwards: every one is paired."""
    if student is None:
        return []
    target = artifacts[student].target
    return [
        *(("teacher-today-to-student", (name, student)) for name in today),
        *(("teacher-best-to-student", (name, student)) for name in teachers),
        *(("student-float-to-int8", (name, student)) for name in floats if artifacts[name].target == target),
    ]


def _progress(context: Context, label: str) -> Callable[[str, float], None]:
    return lambda what, fraction: context.events.progress(label, int(100 * fraction), 100, what)


def _tell(context: Context, measured: MeasurementSet, where: str) -> None:
    for row in measured.measurements:
        context.events.note(
            f"{row.name}{where}: p50 {row.p50_ms:.3f} ms [{row.ci_lo_ms:.3f}, {row.ci_hi_ms:.3f}], n = {row.n}, "
            f"{row.verdict}"
        )
    for ratio in measured.ratios:
        context.events.note(f"{where.strip()}: {ratio.text}" if where else ratio.text)
    for name, reason in measured.failures.items():
        context.events.note(f"not measured{where}: {name}: {reason}")
