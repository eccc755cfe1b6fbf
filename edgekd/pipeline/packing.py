"""Stage `bundle`: everything the run found as one report, its gates, the HTML page and the deployment bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.bundle import write_bundle
from edgekd.errors import CheckError
from edgekd.gates import evaluate_gates
from edgekd.pipeline import diagnosing, rows
from edgekd.pipeline import rows_there as there
from edgekd.pipeline.context import Context
from edgekd.pipeline.record import RunRecord
from edgekd.pipeline.selecting import summary
from edgekd.report import RunReport, write_report
from edgekd.report import document as documents

BUNDLE_NAME = "bundle.zip"


def pack(context: Context) -> tuple[dict[str, Any], list[Path]]:
    """Result: the report as plain data, which files there are, and what failed. Without a sound artifact: no bundle."""
    report = report_of(context.record)
    paths = [*write_report(context.folder, report)]
    failed = [gate.name for gate in report.gates if gate.state == "fail"]
    try:
        paths.append(write_bundle(context.folder / BUNDLE_NAME, report=report, run=context.folder))
    except CheckError as error:
        failed.append("bundle")
        context.events.note(f"no bundle: {error}")
    return {"report": report.model_dump(mode="json"), "failed": failed, "files": [p.name for p in paths]}, paths


def trials(select: dict[str, Any]) -> Iterator[documents.Trial]:
    """Candidates that were measured untrained, then those that learned for a while."""
    for row in select["measured"]:
        keys = ("score", "predicted_p90_ms", "measured_p50_ms", "measured_p90_ms", "fits", "reason")
        yield documents.Trial(name=summary(row["spec"]), **{key: row[key] for key in keys})
    for row in (select["halving"] or {"rows": []})["rows"]:
        yield documents.Trial(name=summary(row["spec"]), score=row["score"], val_top1=tuple(row["val_top1"]))


def report_of(record: RunRecord) -> RunReport:
    """The report of a run whose earlier stages are done; pure but for reading their results."""
    plan, select, distil = (record.result(name) for name in ("plan", "select", "distil"))
    quantise, export, check, measure = (record.result(name) for name in ("quantise", "export", "check", "measure"))
    profile, decided, data = plan["profile"], plan["plan"], plan["data"]
    here, side = record.settings.on is None and rows.is_profile_device(profile), measure.get("device")
    report = RunReport(
        title=f"{data['name']} on {profile['title']}",
        created=record.document["created"],
        command=record.document["command"],
        seed=record.settings.seed,
        profile=rows.profile_facts(profile, decided),
        teacher=rows.teacher_facts(plan["teacher"]),
        data=documents.DataFacts.model_validate(data),
        student=rows.student_facts(select, record.stages["distil"]["outputs"]),
        preprocessing=select.get("preprocessing", plan["preprocessing"]),
        plan=tuple(decided["reasons"]) + tuple(select["reasons"] + select["teaching"]) + tuple(distil["notes"]),
        recipe=record.settings.training.model_dump(mode="json") | {k: decided[k] for k in ("epochs", "shift_px")},
        candidates=tuple(documents.Candidate.model_validate(c) for c in select["candidates"]),
        trials=tuple(trials(select)),
        trainings=tuple(rows.training(t) for t in [*distil["trainings"], *quantise["trainings"]]),
        accuracies=tuple(rows.accuracies(distil, quantise, check)),
        artifacts=tuple(rows.artifacts(export, check, profile)),
        measurements=(*rows.measurements(measure, export, on_device=here), *there.measurements_there(side, export)),
        ratios=(*rows.ratios(measure, export), *there.ratios_there(side, export)),
        attached=there.attached_facts(side),
        predicted=tuple(documents.Predicted.model_validate(p) for p in select["predicted"]),
        diagnoses=tuple(diagnosing.diagnoses(distil, quantise)),
        assessment=rows.assessment(distil, quantise, data["classes"]),
        teaching=rows.teaching(
            select, export, None if record.settings.recipe is None else record.settings.recipe.model_dump(mode="json")
        ),
        stages=tuple(rows.stages(record.stages)),
        host=rows.host(measure),
        versions=plan["versions"],
        warnings=(*rows.warnings(data, measure), *there.warnings_there(side)),
    )
    return report.model_copy(update={"gates": evaluate_gates(report)})
