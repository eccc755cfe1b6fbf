"""Under torchrun the first process does the run; the others follow: they take part in the trainings, write nothing.

What is to be trained is read from the run directory as the first process makes it, so all build the same stages.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edgekd.errors import InputError
from edgekd.pipeline import distilling, quantising, record
from edgekd.pipeline.context import Context, Inputs, context_of
from edgekd.pipeline.events import Silent
from edgekd.pipeline.record import RunRecord
from edgekd.pipeline.settings import Settings

POLL_S = 0.5
TRAININGS: dict[str, Callable[[Context], object]] = {"distil": distilling.train_all, "quantise": quantising.train_again}


def rank() -> int:
    """This process's number among those that torchrun started; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def shared_folder(out: Path | None) -> None:
    """Raises: InputError: several processes would each choose a run directory of their own."""
    if world() > 1 and out is None:
        raise InputError("several processes need one run directory", where="--out", fix="give --out DIR under torchrun")


def follow(folder: Path, settings: Settings, inputs: Inputs, base: str, names: list[str]) -> None:
    """Take part in the trainings among the stages called `names`, in their order, then return."""
    context = context_of(_opened(folder, settings), inputs, Silent())
    digest = base
    for name in names:
        if name in TRAININGS and not context.record.intact(name, digest):
            TRAININGS[name](context)
        _wait_for(context, name, digest)
        digest = context.record.next_inputs(digest, name)


def _opened(folder: Path, settings: Settings) -> RunRecord:
    """The record, once the first process has made it. A crash there ends this process too: torchrun sees to it."""
    while not (folder / "run.json").is_file():
        time.sleep(POLL_S)
    return record.resume(folder, settings)


def _wait_for(context: Context, name: str, inputs: str) -> None:
    while not context.record.intact(name, inputs):
        time.sleep(POLL_S)
        context.record = record.open_record(context.folder)
