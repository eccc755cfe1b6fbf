"""`edgekd export RUN`: more targets from a trained run, checked like the first ones and merged into its results."""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import InputError
from edgekd.pipeline import checking, exporting, packing, record
from edgekd.pipeline.api_result import RunResult
from edgekd.pipeline.context import Context, context_of, load_inputs
from edgekd.pipeline.events import Events
from edgekd.pipeline.plan import TargetPlan, make_plan
from edgekd.targets import load_targets


def export(folder: Path, *, targets: tuple[str, ...], bundle: bool, events: Events) -> RunResult:
    """Export, check, merge. Raises: InputError: not a run, or it is not trained yet."""
    folder = folder.resolve()
    run_record = record.open_record(folder)
    for stage in ("distil", "quantise", "export", "check", "measure"):
        if stage not in run_record.stages:
            raise InputError(
                f"stage '{stage}' is not done", where=folder, fix="finish it with: edgekd distill ... --resume"
            )
    with record.exclusive(folder):
        context = context_of(run_record, load_inputs(run_record.settings), events)
        planned = planned_targets(context, targets)
        merge(context, planned)
        if bundle:
            result, outputs = packing.pack(context)
            run_record.finish(
                "bundle", inputs=run_record.stages["bundle"]["inputs"], result=result, outputs=outputs, seconds=0.0
            )
    report = packing.report_of(run_record)
    failed = [
        a for a in report.artifacts if a.target in {t.target for t in planned} and a.state != "exported-and-checked"
    ]
    return RunResult(folder, report.model_dump(mode="json"), bool(failed))


def planned_targets(context: Context, targets: tuple[str, ...]) -> list[TargetPlan]:
    """What to export: the asked targets, or all of the run's plan."""
    settings = context.settings.model_copy(update={"targets": targets or context.settings.targets})
    plan = make_plan(
        context.profile,
        settings,
        targets=load_targets(),
        train_images=len(context.dataset.train),
        image_size=context.dataset.preprocessing.image_size,
    )
    return [t for t in plan.targets if t.precision is not None]


def merge(context: Context, planned: list[TargetPlan]) -> None:
    """Convert and check the targets, and replace their rows in export.json and check.json."""
    outcomes = exporting.run_requests(context, [exporting.request(context, t) for t in planned])
    reports = checking.check_artifacts(context, [o.artifact for o in outcomes if o.artifact is not None])
    exported, checked = context.record.result("export"), context.record.result("check")
    new = {o.target: exporting.row_of(context, o) for o in outcomes}
    exported["artifacts"] = [r for r in exported["artifacts"] if r["target"] not in new] + list(new.values())
    checked["reports"] |= {f"{r.target}-{r.precision}": r.model_dump(mode="json") for r in reports}
    for stage, result, paths in (
        ("export", exported, [o.artifact.path.parent for o in outcomes if o.artifact is not None]),
        ("check", checked, []),
    ):
        entry = context.record.stages[stage]
        kept = [context.folder / name for name in entry["outputs"] if name != f"{stage}.json"]
        outputs = list(dict.fromkeys([*kept, *paths]))
        context.record.finish(stage, inputs=entry["inputs"], result=result, outputs=outputs, seconds=entry["seconds"])
