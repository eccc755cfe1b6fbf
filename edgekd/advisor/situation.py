"""What is known when a way to teach is chosen: sizes, families, measured accuracies, data, needs. Plain data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.artifact import Frozen

Need = Literal[
    "accuracy",
    "features",
    "structure",
    "robustness",
    "calibration",
    "latency",
    "training-time",
    "interpretability",
]
Family = Literal["cnn", "transformer", "other"]
Labels = Literal["clean", "corrupted", "none"]
Modality = Literal["same", "paired", "unpaired"]


class Situation(Frozen):
    """Who shall teach whom, on what. Accuracies are shares in [0, 1] on held-out images; None: not measured.

    teachers: how many there are, 0: the student has only itself. black_box: only logits can be had. alone_accuracy: the
    same student trained without a teacher. teacher_robust: the teacher's accuracy under attack. labels `corrupted`: a
    known share of them is wrong. original_data False: not one image is at hand. modality: whether the teacher reads the
    same images, paired samples of another kind (depth and colour of one scene), or unpaired ones.

    >>> Situation(teacher_parameters=700_000, student_parameters=140_000, classes=10, train_images=55_000).gap
    5.0
    """

    teachers: int = Field(default=1, ge=0)
    black_box: bool = False
    teacher_family: Family = "cnn"
    student_family: Family = "cnn"
    teacher_parameters: int | None = Field(default=None, ge=1)
    student_parameters: int = Field(ge=1)
    teacher_accuracy: float | None = Field(default=None, ge=0, le=1)
    alone_accuracy: float | None = Field(default=None, gt=0, le=1)
    teacher_robust: float | None = Field(default=None, ge=0, le=1)
    classes: int = Field(ge=1)
    train_images: int = Field(ge=0)
    labels: Labels = "clean"
    original_data: bool = True
    modality: Modality = "same"
    needs: tuple[Need, ...] = ("accuracy",)

    @property
    def gap(self) -> float | None:
        """The teacher's parameters over the student's, or None."""
        return None if self.teacher_parameters is None else self.teacher_parameters / self.student_parameters

    @property
    def shortfall(self) -> float | None:
        """The teacher's accuracy over that of the student alone, where both were measured."""
        if self.teacher_accuracy is None or self.alone_accuracy is None:
            return None
        return self.teacher_accuracy / self.alone_accuracy

    @property
    def images_per_class(self) -> float:
        """Training images for one class, on average."""
        return self.train_images / self.classes

    @property
    def same_family(self) -> bool:
        """Whether features of the two nets have positions and channels that correspond."""
        return self.teacher_family == self.student_family != "other"
