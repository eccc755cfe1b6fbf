"""Stage `export`: the student for every planned target, and the files that its speedups are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact, Precision
from edgekd.data import Dataset
from edgekd.errors import EdgekdError
from edgekd.export import ExportOutcome, ExportRequest, default_cache, export_all
from edgekd.pipeline.context import Context
from edgekd.pipeline.plan import TargetPlan
from edgekd.quant import export_float, save_program
from edgekd.targets import get_target, load_targets

# Runtimes in which a teacher is tried as "its best export" on this host.
TEACHER_RUNTIMES = ("openvino", "onnxruntime")


def export(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Convert everything. Results: `artifacts` (planned targets), `comparisons` (student float, teacher)."""
    save_float_program(context)
    planned = [request(context, t) for t in context.plan.exports]
    teacher_note = save_teacher_program(context)
    compared = comparison_requests(context, teacher=not teacher_note)
    requests = [*planned, *(r for _, r in compared)]
    outcomes = run_requests(context, requests)
    exported, rest = outcomes[: len(planned)], outcomes[len(planned) :]
    document = {
        "artifacts": [row_of(context, o) for o in exported]
        + [_refused(t) for t in context.plan.targets if t.precision is None],
        "comparisons": [{"who": who, **row_of(context, o)} for (who, _), o in zip(compared, rest, strict=True)],
        "teacher_note": teacher_note,
    }
    # Whole folders: an OpenVINO artifact is two files.
    folders = [r.out for r, o in zip(requests, outcomes, strict=True) if o.artifact is not None]
    return document, [*folders, context.program("float")]


def save_float_program(context: Context) -> Path:
    """The trained float student as a program."""
    return save_program(
        export_float(context.student(), context.student_dataset.preprocessing.shape), context.program("float")
    )


def save_teacher_program(context: Context) -> str:
    """The teacher as a program, or the reason why there is none."""
    if context.teacher.black_box:
        return f"the teacher is already an exported file ({context.teacher.name})"
    own = context.teacher.preprocessing
    try:
        program = export_float(context.teacher.module, own.shape)
        save_program(program, context.program("teacher"))
    except EdgekdError as error:
        return f"the teacher cannot be exported: {error}"
    return ""


def request(
    context: Context,
    target: TargetPlan,
    *,
    program: str | None = None,
    folder: str = "artifacts",
    dataset: Dataset | None = None,
) -> ExportRequest:
    """One planned conversion of the student. dataset: the data as it gets them, where none is selected yet."""
    precision: Precision = target.precision or "fp32"
    name = program or ("int8" if precision == "int8" else "float")
    return ExportRequest(
        target=target.target,
        precision=precision,
        program=context.program(name),
        out=context.folder / folder / f"{target.target}-{precision}",
        profile=context.profile,
        labels=context.dataset.classes,
        preprocessing=(dataset or context.student_dataset).preprocessing.to_dict(),
    )


def comparison_requests(context: Context, *, teacher: bool) -> list[tuple[str, ExportRequest]]:
    """What the speedups need beyond the planned artifacts: student fp32 in the runtime it is timed in, here and on the
    attached device, teacher in its best.
    """
    host, there = host_runtime(context), device_runtime(context)
    students = [name for name in dict.fromkeys((host, there)) if name and "fp32" not in _precisions(context, name)]
    teachers = [name for name in dict.fromkeys((*teacher_runtimes(context), there)) if name] if teacher else []
    return [
        *(
            ("student", _float_request(context, name, program="float", folder="comparisons/student"))
            for name in students
        ),
        *(
            ("teacher", _float_request(context, name, program="teacher", folder="comparisons/teacher"))
            for name in teachers
        ),
    ]


def _precisions(context: Context, target: str) -> set[str | None]:
    return {t.precision for t in context.plan.exports if t.target == target}


def _float_request(context: Context, target: str, *, program: str, folder: str) -> ExportRequest:
    plan = TargetPlan(target=target, precision="fp32", why="comparison")
    asked = request(context, plan, program=program, folder=folder)
    # No profile where the file is for the host, not for the device: what the device takes does not apply to it.
    return asked if target == device_runtime(context) else asked.model_copy(update={"profile": None})


def host_runtime(context: Context) -> str | None:
    """The planned target in which this host times the student: the device's own where it runs here, else by habit."""
    runnable = [t.target for t in context.plan.exports if runs_here(t.target)]
    order = [context.profile.primary.target, "openvino", "tflite", "onnxruntime", "null"]
    return next((name for name in order if name in runnable), None)


def device_runtime(context: Context) -> str | None:
    """The planned target that is timed on a device attached by ssh or adb; None: there is no such device."""
    primary = context.profile.primary.target
    return primary if context.on is not None and any(t.target == primary for t in context.plan.exports) else None


def teacher_runtimes(context: Context) -> list[str]:
    """Where the teacher's best export is looked for; the null target alone keeps to itself."""
    planned = {t.target for t in context.plan.exports}
    if planned == {"null"}:
        return ["null"]
    return [name for name in TEACHER_RUNTIMES if load_targets()[name].missing() is None and runs_here(name)]


def runs_here(target: str) -> bool:
    """Whether this host can execute the target's artifacts."""
    import importlib.util

    needed = get_target(target).runs_here_with
    return bool(needed) and all(importlib.util.find_spec(p) is not None for p in needed)


def run_requests(context: Context, requests: list[ExportRequest]) -> list[ExportOutcome]:
    """Convert in parallel, telling each end as it comes."""

    def tell(outcome: ExportOutcome) -> None:
        size = f"{outcome.artifact.size_bytes / 1024:.0f} KiB" if outcome.artifact else outcome.reason
        context.events.note(f"{outcome.target} {outcome.precision}: {outcome.state}, {size} ({outcome.wall_s:.0f} s)")

    return export_all(requests, context.folder / "logs", on_done=tell, cache=default_cache())


def row_of(context: Context, outcome: ExportOutcome) -> dict[str, Any]:
    """An outcome as plain data, its path relative to the run directory: a run may be moved."""
    row = outcome.model_dump(mode="json")
    if outcome.artifact is not None:
        row["artifact"]["path"] = outcome.artifact.path.relative_to(context.folder).as_posix()
    return row


def _refused(target: TargetPlan) -> dict[str, Any]:
    return {
        "target": target.target,
        "precision": "fp32",
        "state": "refused",
        "artifact": None,
        "reason": target.why,
        "log": "",
        "wall_s": 0.0,
    }


def artifact_of(row: Mapping[str, Any], folder: Path) -> Artifact | None:
    """The artifact of an outcome row in a run directory, or None."""
    if not row["artifact"]:
        return None
    artifact = Artifact.model_validate(row["artifact"])
    return artifact.model_copy(update={"path": folder / artifact.path})
