"""Run the stages in order; one that is already there, whole and from the same inputs, is skipped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgekd
from edgekd.pipeline import (
    checking,
    distilling,
    exporting,
    following,
    measuring,
    packing,
    planning,
    quantising,
    reselecting,
    selecting,
)
from edgekd.pipeline.context import Context, Inputs
from edgekd.pipeline.record import fingerprint
from edgekd.pipeline.settings import Settings

Work = Callable[[Context], tuple[dict[str, Any], list[Path]]]


@dataclass(frozen=True)
class Stage:
    """A named piece of work: result document and the files it wrote."""

    name: str
    title: str
    work: Work


STAGES = (
    Stage("plan", "plan: what will be done and why", planning.plan),
    Stage("select", "select the student, and try every export on it untrained", selecting.select),
    Stage("distil", "distil: teacher -> student", distilling.distil),
    Stage("quantise", "quantise while distilling", quantising.quantise),
    Stage("export", "export", exporting.export),
    Stage("check", "check every artifact on real images", checking.check),
    Stage("measure", "measure teacher and student, interleaved", measuring.measure),
    Stage("bundle", "report and deployment bundle", packing.pack),
)


def run_stages(context: Context, *, last: str = "bundle") -> None:
    """Do what is not yet done, up to the stage called `last`; a student found too slow is replaced on the way."""
    while not _round(context, last):
        pass


def _round(context: Context, last: str) -> bool:
    """The stages in order; False where the measurement sent the run back to the selection."""
    inputs = base_inputs(context.settings, context)
    for number, stage in enumerate(STAGES, start=1):
        if context.record.intact(stage.name, inputs) and not (stage.name == "measure" and measuring.owed(context)):
            context.events.skipped(number, len(STAGES), stage.title)
        else:
            context.events.stage(number, len(STAGES), stage.title)
            started = time.monotonic()
            result, outputs = stage.work(context)
            seconds = time.monotonic() - started
            context.record.finish(stage.name, inputs=inputs, result=result, outputs=outputs, seconds=seconds)
        if stage.name == last:
            return True
        if stage.name == "measure" and following.world() == 1 and (correction := reselecting.needed(context)):
            reselecting.start_again(context, correction)
            return False
        inputs = context.record.next_inputs(inputs, stage.name)
    return True


def base_inputs(settings: Settings, inputs: Inputs | Context) -> str:
    """Hash of everything the first stage depends on: settings, profile, data, teacher, version."""
    return fingerprint(
        [
            edgekd.__version__,
            settings.model_dump(mode="json"),
            inputs.profile.model_dump(mode="json"),
            inputs.dataset.fingerprint,
            inputs.teacher.fingerprint,
        ]
    )
