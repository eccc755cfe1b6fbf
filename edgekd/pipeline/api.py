"""The Python API behind the commands: the same functions, data in and data out, nothing printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edgekd.pipeline import again, attached, choosing, following, planning, record, run, selecting
from edgekd.pipeline.advice_for import AdviceRequest, advice_for
from edgekd.pipeline.api_result import RunResult
from edgekd.pipeline.context import context_of, load_inputs, plan_of
from edgekd.pipeline.events import Events, Silent
from edgekd.pipeline.settings import Settings
from edgekd.profile import load_profile

RUNS = Path("runs")


def distill(
    settings: Settings,
    *,
    out: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    events: Events | None = None,
) -> RunResult:
    """The whole job, or up to the plan, selection and trial exports with `dry_run`.

    Raises: InputError and others of edgekd.errors; what was finished before stays, and `resume` goes on from there.
    """
    profile = load_profile(settings.profile)
    following.shared_folder(out)
    folder = out or (record.latest(RUNS, profile.name) if resume else record.next_free(RUNS, profile.name))
    folder = folder.resolve()
    if following.rank() > 0:
        return _follow(settings, folder, dry_run=dry_run)
    existing = record.resume(folder, settings) if resume else None
    if existing is None:
        record.check_free(folder)
    heard = events or Silent()
    attached.reach_or_note(settings, profile, heard, required=existing is None or "select" not in existing.stages)
    # Inputs load before the directory is made: bad input leaves nothing behind.
    inputs = load_inputs(settings)
    attached.require_export(settings, inputs, plan_of(settings, inputs.profile, inputs.dataset, inputs.teacher))
    run_record = existing or record.create(folder, settings, command=" ".join(["edgekd", *sys.argv[1:]]))
    context = context_of(run_record, inputs, heard)
    with record.exclusive(folder):
        run.run_stages(context, last="select" if dry_run else "bundle")
    return _result(run_record, dry_run=dry_run)


def _follow(settings: Settings, folder: Path, *, dry_run: bool) -> RunResult:
    if not dry_run:
        inputs = load_inputs(settings)
        base = run.base_inputs(settings, inputs)
        following.follow(folder, settings, inputs, base, [stage.name for stage in run.STAGES[:4]])
    return RunResult(folder, {}, failed=False)


def _result(run_record: record.RunRecord, *, dry_run: bool) -> RunResult:
    if dry_run:
        document = {"plan": run_record.result("plan"), "select": run_record.result("select")}
        failed = any(row["state"] == "failed" for row in document["select"]["trial_exports"])
        return RunResult(run_record.folder, document, failed)
    bundle = run_record.result("bundle")
    return RunResult(run_record.folder, bundle["report"], bool(bundle["failed"]))


def plan(settings: Settings) -> dict[str, Any]:
    """Plan and selection without a run directory; nothing is exported, trained or written."""
    inputs = load_inputs(settings)
    decided = plan_of(settings, inputs.profile, inputs.dataset, inputs.teacher)
    selection = choosing.choose(inputs, decided)
    return {
        "plan": planning.document(inputs, decided),
        "select": selecting.document(inputs, decided, selection, settings),
    }


def advise(request: AdviceRequest) -> dict[str, Any]:
    """How to teach a student, why, and what would change that: {"advice": ..., "recipe": ...}. Nothing is trained."""
    return advice_for(request)


def export(
    folder: Path, *, targets: tuple[str, ...] = (), bundle: bool = False, events: Events | None = None
) -> RunResult:
    """Export a trained student to more targets, check each, and with `bundle` write bundle and report again."""
    return again.export(folder, targets=targets, bundle=bundle, events=events or Silent())
