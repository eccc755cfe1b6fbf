"""The checkup of a stage: asks the models about held-out images before the first step, after epochs and at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from edgekd.distill import diagnosis
from edgekd.distill.diagnosis import Check
from edgekd.distill.figures import Answers, StageFigures, ask, commonest_share, compare
from edgekd.distill.players import Player
from edgekd.distill.pool import Pool
from edgekd.distill.sources import Live, Source, evaluating
from edgekd.distill.stage import Stage

PROBE_IMAGES = 512
EVERY_STEPS = 200  # an epoch shorter than this is looked at less often


class Checkup:
    """Belongs to one run of a stage; the main process alone has one."""

    def __init__(
        self, stage: Stage, students: Mapping[str, Live], sources: Mapping[str, Source], device: torch.device
    ) -> None:
        index = stage.dataset.sample("val", PROBE_IMAGES)
        self.stage, self.students = stage, students
        self.labels = stage.dataset.val.labels[index]
        images = stage.dataset.val.images(index).to(device)
        self.images: Tensor = stage.dataset.preprocessing.normalise(images)
        # A player may hand teachers other images than the students', and a memory knows training images only.
        changes = any(type(player).before is not Player.before for player in stage.players.values())
        self.teachers = {} if changes else {name: s for name, s in sources.items() if _can_be_asked(s)}
        self.heard: dict[str, Answers] = {}
        self.checks: tuple[Check, ...] = ()
        self.figures: StageFigures | None = None
        self.last_step = 0
        self.warned: set[str] = set()

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to look after this step, which ends an epoch."""
        return last or step - self.last_step >= EVERY_STEPS

    def look(self, step: int, first: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> None:
        """Take the figures and check them: before the first step for what shows then already, later for everything.

        first: the terms' values in the first step; history: their means, an epoch each.
        """
        self.last_step = step
        self.figures = self._figures(step, first, history[-1] if history else {})
        steady = [term.label for term in self.stage.terms if not callable(term.weight) and not term.loss.may_rise]
        later = diagnosis.of_stage(self.figures, history, steady=steady) if step else diagnosis.early(self.figures)
        self.checks = tuple(later)

    def new_warnings(self) -> tuple[Check, ...]:
        """The warnings that were not given before. Before the end only those that more training will not heal."""
        shown = [check for check in self.checks if check.state == "warning" and check.name not in self.warned]
        if self.last_step < self.stage.total_steps:
            shown = [check for check in shown if check.name in diagnosis.LASTING]
        self.warned |= {check.name for check in shown}
        return tuple(shown)

    def _figures(self, step: int, first: Mapping[str, float], last: Mapping[str, float]) -> StageFigures:
        name, student = next(iter(self.students.items()))
        with evaluating(student.model):
            mine = ask(student, self.images, self.labels.to(self.images.device))
        for who, teacher in self.teachers.items():
            if who not in self.heard or not isinstance(teacher, Live):
                with _evaluating(teacher):
                    self.heard[who] = ask(teacher, self.images, self.labels.to(self.images.device))
        taught = [
            term.label
            for term in self.stage.terms
            if term.student == name and term.source is not None and term.source not in self.students
        ]
        return StageFigures(
            step=step,
            n=len(self.labels),
            classes=len(self.stage.dataset.classes),
            chance=commonest_share(self.labels),
            student=mine.figures(self.labels),
            teachers={who: heard.figures(self.labels) for who, heard in self.heard.items()},
            against={
                who: compare(mine, heard)
                for who, heard in self.heard.items()
                if heard.logits.shape == mine.logits.shape
            },
            losses={label: (first[label], last[label]) for label in taught if label in first and label in last},
        )

    def state_dict(self) -> dict[str, Any]:
        """What was found, and what of it was said, so that a resumed run does not say it again."""
        figures = None if self.figures is None else asdict(self.figures)
        checks = [check.to_dict() for check in self.checks]
        return {"last_step": self.last_step, "warned": sorted(self.warned), "checks": checks, "figures": figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.last_step, self.warned = int(state["last_step"]), set(state["warned"])
        self.checks = tuple(Check(**check) for check in state["checks"])
        self.figures = None if state["figures"] is None else StageFigures.from_dict(state["figures"])


def _can_be_asked(source: Source) -> bool:
    """Whether it answers about any image: a model, or a pool of models."""
    if isinstance(source, Pool):
        return all(_can_be_asked(member) for member in source.members.values())
    return isinstance(source, Live)


@contextmanager
def _evaluating(source: Source) -> Iterator[None]:
    with ExitStack() as stack:
        for one in source.members.values() if isinstance(source, Pool) else (source,):
            if isinstance(one, Live):
                stack.enter_context(evaluating(one.model))
        yield
