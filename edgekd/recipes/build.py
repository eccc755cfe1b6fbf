"""Recipes made real: tables become the stages, sources, players and losses of `edgekd.distill`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import Stage, Term, Training
from edgekd.distill.adversarial import Discriminator, Pass
from edgekd.distill.attack import Attacker, Box
from edgekd.distill.averaging import MeanTeacher
from edgekd.distill.cache import CachedTeacher, fingerprint_of
from edgekd.distill.chain import parameters_of, plan_chain, width_for
from edgekd.distill.collaboration import Collaboration
from edgekd.distill.feature_stages import real_tap
from edgekd.distill.losses import make_loss
from edgekd.distill.own_predictions import PlainView, TemporalEnsemble
from edgekd.distill.players import Player
from edgekd.distill.pool import Pool
from edgekd.distill.pool_taps import LOGITS
from edgekd.distill.precision import choose_bfloat16, choose_device
from edgekd.distill.sources import Live, Source
from edgekd.errors import InputError
from edgekd.recipes.load import ADVERSARIAL
from edgekd.recipes.schema import PlayerTable, Recipe, SourceTable, StageSource, StageTable, StudentTable, TermTable


@dataclass(frozen=True, eq=False)
class Materials:
    """What a run puts into a recipe.

    teachers: by name, `teacher` the main one, on the student's normalised input. new_student: (width factor, number) ->
    an untrained student; equal arguments give equal weights. black_boxes: names of teachers that show only logits.
    fingerprints: by teacher, for the cache; a module's own weights where absent. cache: folder of cached answers.
    """

    dataset: Dataset
    teachers: Mapping[str, nn.Module]
    new_student: Callable[[float, int], nn.Module]
    training: Training
    black_boxes: frozenset[str] = frozenset()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None


def stages_of(recipe: Recipe, materials: Materials) -> list[Stage]:
    """The stages to run in order; what a later one takes from an earlier one is the very model trained there.

    Raises: InputError: a tap names no module, a feature of a black box is asked for, or a teacher is missing.
    """
    missing = {source.teacher for source in _teacher_sources(recipe)} - set(materials.teachers)
    if missing:
        raise InputError(f"the recipe needs a teacher '{min(missing)}'", fix="name it under [teachers]")
    made: dict[str, dict[str, nn.Module]] = {}
    stages = []
    for table in _linked(recipe, materials):
        stage = _Build(table, materials, made).stage()
        made[table.name] = dict(stage.students)
        stages.append(stage)
    return stages


def _teacher_sources(recipe: Recipe) -> list[Any]:
    return [source for stage in recipe.stages for source in stage.sources.values() if source.kind == "teacher"]


def _linked(recipe: Recipe, materials: Materials) -> list[StageTable]:
    """The stages with a chain written out."""
    chain, table = recipe.chain, recipe.stages[0]
    if chain is None:
        return list(recipe.stages)
    widths = _assistants(chain.assistants, materials) if chain.generations is None else [1.0] * (chain.generations - 1)
    word = "assistant" if chain.generations is None else "generation"
    links: list[StageTable] = []
    for number, width in enumerate([*widths, None], start=1):
        changes: dict[str, Any] = {}
        if links:
            previous = StageSource(kind="stage", stage=links[-1].name, student=next(iter(table.students)))
            changes["sources"] = {**table.sources, "teacher": previous}
        if width is not None:
            first = next(iter(table.students))
            changes |= {"name": f"{word}-{number}", "students": {**table.students, first: StudentTable(width=width)}}
        links.append(table.model_copy(update=changes))
    return links


def _assistants(wanted: Any, materials: Materials) -> list[float]:
    def new(width: float) -> nn.Module:
        return materials.new_student(width, 0)

    teacher, student = parameters_of(materials.teachers["teacher"]), parameters_of(new(1.0))
    if teacher <= student and wanted == "auto":  # a black box counts no parameters: nothing is known of the gap
        return []
    count = None if wanted == "auto" else int(wanted)
    return [width_for(size, new) for size in plan_chain(max(teacher, 1), student, assistants=count).assistants]


class _Build:
    """One table in the making: students, then sources and players, then terms."""

    def __init__(self, table: StageTable, materials: Materials, made: Mapping[str, Mapping[str, nn.Module]]) -> None:
        self.table, self.materials, self.made = table, materials, made
        self.where = f"recipe, stage '{table.name}'"
        self.students = {
            name: self._student(name, student, number) for number, (name, student) in enumerate(table.students.items())
        }
        self.sources: dict[str, nn.Module | Source] = {}
        self.training = self._training()
        self.bfloat16 = choose_bfloat16(self.training.mixed_precision, choose_device(self.training.device)).teachers
        preprocessing = materials.dataset.preprocessing
        self.example: Tensor = preprocessing.normalise(materials.dataset.train.images([0, 1]))

    def stage(self) -> Stage:
        """The whole stage."""
        players = {name: self._player(player) for name, player in self.table.players.items()}
        terms = [self._term(term, players) for term in self.table.terms]
        read = {term.source for term in self.table.terms if term.source not in self.students} - {None}
        if any(player.kind == "attacker" and player.against == "teacher" for player in self.table.players.values()):
            read.add("teacher")
        sources = {name: self._source(name) for name in sorted(str(name) for name in read)}
        return Stage(
            self.table.name, self.materials.dataset, self.students, terms, sources, self.training, players=players
        )

    def _student(self, name: str, student: StudentTable, number: int) -> nn.Module:
        if student.from_stage is None:
            return self.materials.new_student(student.width, number)
        earlier = self.made[student.from_stage]
        return earlier.get(name) or next(iter(earlier.values()))

    def _training(self) -> Training:
        changes = self.table.training.model_dump(exclude_none=True)
        run = self.materials.training
        return dataclasses.replace(run, epochs=run.epochs * self.table.epochs, **changes)

    def _source(self, name: str) -> nn.Module | Source:
        if name not in self.sources:
            table = self.table.sources.get(name)
            self.sources[name] = self.materials.teachers["teacher"] if table is None else self._made(name, table)
        return self.sources[name]

    def _made(self, name: str, table: SourceTable) -> nn.Module | Source:
        if table.kind == "teacher":
            return self.materials.teachers[table.teacher]
        if table.kind == "stage":
            earlier = self.made[table.stage]
            return earlier.get(table.student) or next(iter(earlier.values()))
        if table.kind == "mean_teacher":
            return MeanTeacher(self.students[table.student], decay=table.decay, bfloat16=self.bfloat16)
        if table.kind == "temporal_ensemble":
            return TemporalEnsemble(self.materials.dataset, student=table.student, momentum=table.momentum)
        if table.kind == "plain_view":
            return PlainView(self.students[table.student], self.materials.dataset)
        if table.kind == "collaboration":
            return Collaboration({member: self.students[member] for member in table.members}, rule=table.rule)
        if table.kind == "pool":
            members = {member: self._source(member) for member in table.members}
            lives = {
                name: Live(member, bfloat16=self.bfloat16) if isinstance(member, nn.Module) else member
                for name, member in members.items()
            }
            return Pool(lives, weighting=table.weighting, temperature=table.temperature)
        taught = self.materials.teachers["teacher"] if table.of == name else self._source(table.of)
        return self._cached(table.of, taught, table.top_k)

    def _cached(self, of: str, taught: nn.Module | Source, top_k: int | None) -> Source:
        if not isinstance(taught, nn.Module):
            raise InputError(
                f"source '{of}' cannot be cached", where=self.where, fix="cache a teacher that stands still"
            )
        known = next((key for key, module in self.materials.teachers.items() if module is taught), None)
        fingerprint = self.materials.fingerprints.get(known or "") or fingerprint_of(taught)
        folder = self.materials.cache
        if folder is None:
            raise InputError("this recipe caches its teacher's answers", where=self.where, fix="give a cache folder")
        return CachedTeacher(
            taught,
            self.materials.dataset,
            self.training,
            folder=folder,
            fingerprint=fingerprint,
            top_k=top_k,
            bfloat16=self.bfloat16,
        )

    def _player(self, table: PlayerTable) -> Player:
        options = table.model_dump(exclude={"kind"})
        if table.kind == "discriminator":
            return Discriminator(**options)
        box = Box(options.pop("epsilon"), options.pop("step"), options.pop("steps"))
        return Attacker(box, **options)

    def _term(self, term: TermTable, players: Mapping[str, Player]) -> Term:
        options = self._with_paths(term)
        judge = players.get(term.discriminator or "")
        if term.method == ADVERSARIAL and isinstance(judge, Discriminator):
            loss: Any = Pass(judge, **options)
        else:
            loss = make_loss(term.method, **options)
        if self._reads_a_black_box(term.source or "", loss.needs().teacher):
            what = (
                f"method '{term.method}' reads features, but '{term.source}' is an exported file and shows only logits"
            )
            raise InputError(what, where=self.where, fix="use a recipe of logits, such as dkd")
        weight = term.weight if isinstance(term.weight, float) else term.weight.at
        return Term(loss, weight=weight, source=term.source, student=term.student, name=term.label)

    def _reads_a_black_box(self, source: str, taps: tuple[str, ...]) -> bool:
        boxes = self._black_boxes()
        of_members = {tap.partition("/")[0] for tap in taps if not tap.endswith(LOGITS)}
        return (bool(taps) and source in boxes) or (
            isinstance(self.sources.get(source), Pool) and bool(of_members & boxes)
        )

    def _black_boxes(self) -> set[str]:
        boxes = {name for name in self.materials.black_boxes if name not in self.table.sources}
        named = {name: s.teacher for name, s in self.table.sources.items() if s.kind == "teacher"}
        return boxes | {name for name, teacher in named.items() if teacher in self.materials.black_boxes}

    def _with_paths(self, term: TermTable) -> dict[str, Any]:
        """The options with `stage:K` and `head` turned into paths of the models at hand, those of an inner loss too."""
        return self._resolved(term.options, {"student_tap": term.student, "teacher_tap": term.source or term.student})

    def _resolved(self, given: Mapping[str, Any], who: Mapping[str, str]) -> dict[str, Any]:
        options = {key: self._inside(value, who) for key, value in given.items()}
        for option in who.keys() & options.keys():
            taps = options[option]
            found = [self._path(who[option], tap) for tap in ([taps] if isinstance(taps, str) else taps)]
            options[option] = found[0] if isinstance(taps, str) else found
        return options

    def _inside(self, value: Any, who: Mapping[str, str]) -> Any:
        """The taps of the losses that a loss takes."""
        if isinstance(value, Mapping):
            return self._resolved(value, who)
        return [self._inside(entry, who) for entry in value] if isinstance(value, list) else value

    def _path(self, name: str, tap: str) -> str:
        """A tap of a student, a source, or a pool's member (`member/tap`)."""
        model = self.students.get(name) or self._source(name)
        if isinstance(model, Pool):
            member, _, inner = tap.partition("/")
            return f"{member}/{self._path(member, inner)}" if member in model.members else tap
        if isinstance(model, MeanTeacher):
            model = model.student
        return (
            real_tap(model, tap, self.example)
            if isinstance(model, nn.Module) and name not in self._black_boxes()
            else tap
        )
