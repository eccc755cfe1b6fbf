"""The report's rows about the transfer itself: beyond accuracy, failure modes, who taught."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.report.base import Document


class CorruptionRow(Document):
    """Accuracies on the same test images, corrupted. severity: 1 to 5, as ImageNet-C has them."""

    corruption: str
    severity: int = Field(ge=1, le=5)
    student: float = Field(ge=0, le=1)
    teacher: float = Field(ge=0, le=1)


class ClassRow(Document):
    """Recall of one class on n test images."""

    name: str
    n: int = Field(ge=0)
    teacher: float = Field(ge=0, le=1)
    student: float = Field(ge=0, le=1)
    baseline: float | None = Field(default=None, ge=0, le=1)


class Attacked(Document):
    """Accuracies on n test images under attack: sup norm epsilon in pixels of [0, 1], projected gradient ascent of
    cross-entropy and of the margin, `steps` steps each. None: it has no gradient, or was not trained."""

    n: int = Field(ge=1)
    epsilon: float = Field(gt=0, le=1)
    step: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    student: float = Field(ge=0, le=1)
    teacher: float | None = Field(default=None, ge=0, le=1)
    baseline: float | None = Field(default=None, ge=0, le=1)


class Assessment(Document):
    """What was found beside accuracy, on test images. Corrupted and attacked are the float student, others what
    ships (the int8 student of an int8 run).

    duplicates: test images that are among the training images, None: not counted. teacher_wrong: images the teacher
    gets wrong; student_right, student_same of them: the student is right, or gives the teacher's answer. ece_*:
    calibration error over 15 bins.
    """

    kind: Literal["measured"] = "measured"
    n_test: int = Field(ge=1)
    duplicates: int | None = Field(default=None, ge=0)
    duplicates_note: str = ""
    corruptions: tuple[CorruptionRow, ...] = ()
    n_corrupted: int = Field(default=0, ge=0)
    student_clean: float | None = Field(default=None, ge=0, le=1)
    teacher_clean: float | None = Field(default=None, ge=0, le=1)
    attacked: Attacked | None = None
    classes: tuple[ClassRow, ...] = ()
    teacher_wrong: int = Field(default=0, ge=0)
    student_right: int = Field(default=0, ge=0)
    student_same: int = Field(default=0, ge=0)
    baseline_same: int | None = Field(default=None, ge=0)
    ece_student: float | None = Field(default=None, ge=0, le=1)
    ece_teacher: float | None = Field(default=None, ge=0, le=1)


DiagnosisState = Literal["ok", "warning", "unchecked"]


class DiagnosisRow(Document):
    """A failure mode that was looked for, and where. cause and fix: of a warning, or why it is unchecked."""

    name: str
    where: str
    state: DiagnosisState
    figure: str
    cause: str = ""
    fix: str = ""


class Teaching(Document):
    """What taught, what the advisor would have said ("": not to distil), and the sizes it went by."""

    taught: str
    advised: str
    asked: bool
    why: str = ""
    teacher_bytes: int | None = Field(default=None, ge=0)
