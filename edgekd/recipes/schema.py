"""What a recipe may say: pydantic models without torch. Nothing in them is executed; unknown keys are refused.

To add a kind of source or player: a table here with its `kind`, and a line in `edgekd/recipes/build.py`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekd.errors import did_you_mean


class Table(BaseModel):
    """A table of a recipe; an unknown key is answered with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, data: Any) -> Any:
        unknown = [key for key in data if key not in cls.model_fields] if isinstance(data, dict) else []
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}'; {did_you_mean(str(unknown[0]), cls.model_fields)}")
        return data


class Ramp(Table):
    """A weight that moves from `first` to `last` between two points of the stage (shares of its steps).

    linear; cosine; gaussian: last * exp(-5 (1 - t)^2), the ramp-up of temporal ensembling.

    >>> ramp = Ramp(first=0.0, last=2.0, until=0.5)
    >>> [ramp.at(progress) for progress in (0.0, 0.25, 0.9)]
    [0.0, 1.0, 2.0]
    """

    first: float = Field(default=0.0, ge=0)
    last: float = Field(default=1.0, ge=0)
    begin: float = Field(default=0.0, ge=0, le=1)
    until: float = Field(default=1.0, gt=0, le=1)
    shape: Literal["linear", "cosine", "gaussian"] = "linear"

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Ramp:
        if self.begin >= self.until:
            raise ValueError(f"begin {self.begin} is not before until {self.until}")
        return self

    def at(self, progress: float) -> float:
        """The weight at a point of the stage."""
        t = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        share = {"linear": t, "cosine": (1 - math.cos(math.pi * t)) / 2, "gaussian": math.exp(-5 * (1 - t) ** 2)}
        return self.first + (self.last - self.first) * share[self.shape]


class TermTable(Table):
    """A weighted loss. method: a name of LOSSES, or `adversarial` with a `discriminator`; options: its arguments.

    A tap in the options is a module path, `stage:K` (the K-th resolution, -1 the last) or `head` (the last Linear's
    input). source: a source of the stage, or a student; none: the labels alone.
    """

    method: str
    options: dict[str, Any] = {}
    weight: Annotated[float, Field(ge=0)] | Ramp = 1.0
    source: str | None = None
    student: str = "student"
    discriminator: str | None = None

    @property
    def label(self) -> str:
        """Method (with the one inside it), and who learns from whom where that is not the student from the teacher."""
        plain = self.student == "student" and self.source in (None, "teacher")
        inner = self.options.get("inner")
        name = f"{self.method} of {inner['method']}" if isinstance(inner, dict) and "method" in inner else self.method
        return name if plain else f"{name}: {self.student} <- {self.source or 'labels'}"


class TeacherSource(Table):
    """A teacher of the run (`teacher`), or one that the recipe names under [teachers]."""

    kind: Literal["teacher"]
    teacher: str = "teacher"


class StageSource(Table):
    """The student of an earlier stage, frozen."""

    kind: Literal["stage"]
    stage: str
    student: str = "student"


class MeanTeacherSource(Table):
    """The moving average of a student's weights."""

    kind: Literal["mean_teacher"]
    student: str = "student"
    decay: float = Field(default=0.999, ge=0, lt=1)


class TemporalEnsembleSource(Table):
    """The moving average of a student's predictions for each image; momentum 0: the last epoch's."""

    kind: Literal["temporal_ensemble"]
    student: str = "student"
    momentum: float = Field(default=0.6, ge=0, lt=1)


class PlainViewSource(Table):
    """A student's answer to the image before augmentation."""

    kind: Literal["plain_view"]
    student: str = "student"


class PoolSource(Table):
    """Several sources of the stage, mixed. temperature: that of the loss that reads the pool."""

    kind: Literal["pool"]
    members: tuple[str, ...] = Field(min_length=2)
    weighting: Literal["mean", "confidence", "labels"] = "mean"
    temperature: float = Field(default=4.0, gt=0)


class CollaborationSource(Table):
    """Students of the stage as one teacher of them all, from what they say in the same step (KDCL)."""

    kind: Literal["collaboration"]
    members: tuple[str, ...] = Field(min_length=2)
    rule: Literal["min_logit", "least_loss", "mean"] = "min_logit"


class CachedSource(Table):
    """Another source's logits, kept on disk by image and augmentation; needs `views` in the stage's training.

    top_k: how many classes are kept (the rest shares the remaining mass), none: all, as float16.
    """

    kind: Literal["cached"]
    of: str = "teacher"
    top_k: int | None = Field(default=None, ge=1)


SourceTable = Annotated[
    TeacherSource
    | StageSource
    | MeanTeacherSource
    | TemporalEnsembleSource
    | PlainViewSource
    | PoolSource
    | CollaborationSource
    | CachedSource,
    Field(discriminator="kind"),
]


class DiscriminatorPlayer(Table):
    """Tells student from teacher; read by terms of method `adversarial`."""

    kind: Literal["discriminator"]
    hidden: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    gradient_penalty: float = Field(default=1.0, ge=0)


class AttackerPlayer(Table):
    """Moves the student's images by projected gradient ascent; epsilon and step in pixels of [0, 1]."""

    kind: Literal["attacker"]
    epsilon: float = Field(default=8 / 255, gt=0, le=1)
    step: float = Field(default=2 / 255, gt=0, le=1)
    steps: int = Field(default=10, ge=1)
    student: str = "student"
    against: Literal["labels", "teacher"] = "labels"


PlayerTable = Annotated[DiscriminatorPlayer | AttackerPlayer, Field(discriminator="kind")]


class StudentTable(Table):
    """Who learns. width: of the run's student, 1 being the student itself. from_stage: go on with that stage's."""

    width: float = Field(default=1.0, gt=0, le=16)
    from_stage: str | None = None


class TrainingTable(Table):
    """Settings of `edgekd.distill.Training` that a method brings along; the rest is the run's."""

    optimiser: Literal["sgd", "adamw"] | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    schedule: Literal["one_cycle", "cosine"] | None = None
    warmup: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    shift_px: int | None = Field(default=None, ge=0)
    accumulate: int | None = Field(default=None, ge=1)
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    mixup: float | None = Field(default=None, ge=0)
    cutmix: float | None = Field(default=None, ge=0)
    views: int | None = Field(default=None, ge=1)
    compile: bool | None = None
    patience: int | None = Field(default=None, ge=1)


class StageTable(Table):
    """One training. epochs: times the run's epochs. The first student is validated and handed on."""

    name: str = Field(default="distil", pattern=r"^[a-z0-9][a-z0-9-]*$")
    epochs: float = Field(default=1.0, gt=0)
    students: dict[str, StudentTable] = Field(default={"student": StudentTable()}, min_length=1)
    sources: dict[str, SourceTable] = {}
    players: dict[str, PlayerTable] = {}
    terms: tuple[TermTable, ...] = Field(min_length=1)
    training: TrainingTable = TrainingTable()


class ChainTable(Table):
    """The recipe's one stage, repeated; each link's source `teacher` is the student of the link before.

    assistants: how many nets of sizes between teacher and student come first, `auto`: by the gap (`plan_chain`).
    generations: how many students of the same size, one after another.
    """

    assistants: Literal["auto"] | Annotated[int, Field(ge=0, le=8)] | None = None
    generations: int | None = Field(default=None, ge=1, le=8)

    @model_validator(mode="after")
    def _one_of_both(self) -> ChainTable:
        if (self.assistants is None) == (self.generations is None):
            raise ValueError("give either assistants or generations")
        return self


class TeacherTable(Table):
    """A further teacher, in the words of --teacher and --weights."""

    model: str
    weights: str | None = None


class Recipe(Table):
    """How a student is taught. title and source are for people; the last stage's first student is the result."""

    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    note: str = ""
    teachers: dict[str, TeacherTable] = {}
    chain: ChainTable | None = None
    stages: tuple[StageTable, ...] = Field(min_length=1)
