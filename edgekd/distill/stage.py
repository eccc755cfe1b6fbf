"""Stages: who learns from whom, on what data, how long. A stage without a teacher's terms is the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from edgekd.data.dataset import Dataset
from edgekd.distill.players import Player
from edgekd.distill.sources import Source
from edgekd.distill.terms import Term
from edgekd.distill.training import Training
from edgekd.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Milestone:
    """`act()` runs before the first step at or past `at` (share of the steps, in [0, 1)).

    It must do the same when done twice: it is repeated on resume and whenever a student comes back from eval mode,
    since a quantised graph forgets there that its batch norms were frozen.
    """

    at: float
    act: Callable[[], None]

    def step(self, total_steps: int) -> int:
        """The step before which it runs."""
        return round(self.at * total_steps)


@dataclass(frozen=True, eq=False)
class Stage:
    """One training run as data. `run_stage` carries it out.

    students: models that learn, by name; the first one is validated. Their taps are read by hooks, or returned by the
    model itself. sources: teachers by name; a bare module is run frozen (`Live`). Both take `dataset.preprocessing`'s
    normalised images. A term may name a student as its source. players: who else learns, by name; a source that is a
    `Player` too takes part by itself. diagnose: look for failure modes on a few hundred held-out images (`checkup.py`).
    """

    name: str
    dataset: Dataset
    students: Mapping[str, nn.Module]
    terms: Sequence[Term]
    sources: Mapping[str, nn.Module | Source] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    milestones: Sequence[Milestone] = ()
    players: Mapping[str, Player] = field(default_factory=dict)
    diagnose: bool = True

    @property
    def everyone(self) -> dict[str, Player]:
        """The players, and the sources that are players."""
        sources = {f"source {name}": source for name, source in self.sources.items() if isinstance(source, Player)}
        return {**self.players, **sources}

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        return self.training.steps_for(len(self.dataset.train))

    def check(self) -> None:
        """What can be seen wrong without running a model. Raises: InputError."""
        if not self.students or not self.terms:
            raise self.error("nothing to learn", "give at least one student and one term")
        if len(self.dataset.train) == 0 or len(self.dataset.val) == 0:
            raise self.error("the training or the validation split is empty", "give more images")
        labels = [term.label for term in self.terms]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise self.error(f"two terms are named '{twice[0]}'", "give Term(..., name=...)")
        if all(not callable(term.weight) and term.weight == 0 for term in self.terms):
            raise self.error("every term has weight 0", "give one of them a weight")
        known = {*self.students, *self.sources}
        for term in self.terms:
            if not callable(term.weight) and not term.weight >= 0:
                raise self.error(f"term '{term.label}': weight {term.weight} is negative", "give 0 or more")
            if term.student not in self.students:
                advice = did_you_mean(term.student, self.students)
                raise self.error(f"term '{term.label}': unknown student '{term.student}'", advice)
            if term.source is not None and term.source not in known:
                raise self.error(
                    f"term '{term.label}': unknown source '{term.source}'", did_you_mean(term.source, known)
                )
        if outside := [m.at for m in self.milestones if not 0 <= m.at < 1]:
            raise self.error(f"a milestone at {outside[0]}", "give a share of the steps in [0, 1)")

    def taps_of(self, name: str) -> tuple[str, ...]:
        """Taps that the terms read from a student or source, in either role."""
        taps = [tap for term in self.terms if term.student == name for tap in term.loss.needs().student]
        taps += [tap for term in self.terms if term.source == name for tap in term.loss.needs().teacher]
        return tuple(dict.fromkeys(taps))

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be resumed: plain values."""
        free = {"device", "mixed_precision", "checkpoint_every_s"}
        settings = asdict(self.training)
        return {
            "stage": self.name,
            "data": self.dataset.fingerprint,
            "terms": ", ".join(term.label for term in self.terms),
            **{f"term {number} ({term.label})": term.settings() for number, term in enumerate(self.terms, start=1)},
            "players": ", ".join(self.everyone),
            **{f.name: settings[f.name] for f in fields(self.training) if f.name not in free},
        }

    def error(self, what: str, fix: str) -> InputError:
        """An error that names this stage."""
        return InputError(what, where=f"stage '{self.name}'", fix=fix)
