"""What all methods of a comparison share: data, teacher, students, schedule; and what tuning may change."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from edgekd.data.dataset import Dataset, View, stratified_order
from edgekd.distill import Training
from edgekd.distill.batches import seed_of
from edgekd.errors import InputError
from edgekd.recipes import Materials, Recipe
from edgekd.teachers import Teacher
from edgekd.teachers.architectures import build

IN_TRAINING_VAL_IMAGES = 100  # looked at after each epoch, for the record alone; every held-out image is at the end
Optimiser = Literal["sgd", "adamw"]
LEARNING_RATE: Mapping[Optimiser, float] = {"sgd": 0.1, "adamw": 1e-3}
WEIGHT_DECAY: Mapping[Optimiser, float] = {"sgd": 5e-4, "adamw": 0.05}


@dataclass(frozen=True)
class Settings:
    """What was tuned for one method and student: the learning rate, and what its published term weights are times."""

    learning_rate: float
    factor: float = 1.0


@dataclass(frozen=True)
class Protocol:
    """What is the same for all methods. images: of the training split, by class in their proportions, None: all.

    learning_rate: peak, None: the optimiser's in LEARNING_RATE. views: augmentations of each image that are ever seen;
    the teacher is asked once for each. clip_norm holds for the baseline too: some published weights blow up in the
    first steps of a short schedule.
    """

    epochs: float = 10.0
    images: int | None = None
    batch_size: int = 64
    learning_rate: float | None = None
    shift_px: int = 4
    views: int = 2
    clip_norm: float = 5.0
    device: str = "auto"

    def training(self, seed: int, optimiser: Optimiser, settings: Settings) -> Training:
        """The loop's settings for one seed."""
        return Training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimiser=optimiser,
            learning_rate=settings.learning_rate,
            weight_decay=WEIGHT_DECAY[optimiser],
            shift_px=self.shift_px,
            views=self.views,
            clip_norm=self.clip_norm,
            seed=seed,
            mixed_precision="auto" if self.device == "cuda" else "no",
            device=self.device,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """One teacher and its students on one dataset. students: names that `edgekd.teachers.architectures` builds.

    tuned: by (student, method); the protocol's where absent. built: how to make the students that go by another name.
    """

    dataset: Dataset
    teacher: Teacher
    students: tuple[str, ...]
    protocol: Protocol
    tuned: Mapping[tuple[str, str], Settings] = field(default_factory=dict)
    built: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for student in self.students:
            self.new_student(student, 0)(1.0, 0)

    def new_student(self, name: str, seed: int) -> Callable[[float, int], nn.Module]:
        """(width factor, number) -> an untrained student. Raises: InputError: no such network."""
        own = self.dataset.preprocessing

        def new(width: float, number: int) -> nn.Module:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed_of(seed, "student", number))
                if name in self.built and width == 1:
                    return self.built[name]()
                return build(
                    widened(name, width),
                    num_classes=self.dataset.num_classes,
                    in_channels=own.channels,
                    image_size=own.image_size,
                )

        return new

    def optimiser(self, student: str) -> Optimiser:
        """AdamW for networks with layer norms (transformers, ConvNeXt), SGD for the others."""
        modules = self.new_student(student, 0)(1.0, 0).modules()
        return "adamw" if any(isinstance(module, nn.LayerNorm) for module in modules) else "sgd"

    def settings(self, student: str, method: str) -> Settings:
        """What was tuned, or the protocol's."""
        rate = self.protocol.learning_rate or LEARNING_RATE[self.optimiser(student)]
        return self.tuned.get((student, method), Settings(rate))

    def materials(self, student: str, seed: int, settings: Settings, out: Path) -> Materials:
        """What a recipe is made of. The data's held-out images are a few; `Comparison.dataset` has them all."""
        data = self.dataset
        few = View(data.val, stratified_order(data.val.labels, 0)[:IN_TRAINING_VAL_IMAGES])
        return Materials(
            dataset=dataclasses.replace(data, val=few),
            teachers={"teacher": self.teacher.adapt(data.preprocessing)},
            new_student=self.new_student(student, seed),
            training=self.protocol.training(seed, self.optimiser(student), settings),
            fingerprints={"teacher": self.teacher.fingerprint},
            cache=out / "teachers",
        )


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with the weights of everything but the labels' terms times a factor.

    >>> from edgekd.recipes import load_recipe
    >>> [term.weight for term in scaled(load_recipe("dist"), 0.25).stages[0].terms]
    [1.0, 0.5]
    """
    if factor == 1:
        return recipe
    document = recipe.model_dump(exclude_none=True)
    for stage in document["stages"]:
        for term in (term for term in stage["terms"] if term["method"] != "cross_entropy"):
            term["weight"] = _times(term["weight"], factor)
    return Recipe.model_validate(document)


def _times(weight: float | dict[str, Any], factor: float) -> float | dict[str, Any]:
    if isinstance(weight, dict):
        return {**weight, "first": factor * weight["first"], "last": factor * weight["last"]}
    return factor * weight


def widened(name: str, factor: float) -> str:
    """The name of the same network with other channels. Raises: InputError: its name has no width.

    >>> widened("edgekd:resnet8-8", 2.0), widened("edgekd:vit4-64-4", 1.6), widened("timm:resnet18", 1.0)
    ('edgekd:resnet8-16', 'edgekd:vit4-96-4', 'timm:resnet18')
    """
    if factor == 1:
        return name
    if match := re.fullmatch(r"edgekd:resnet(\d+)(?:-(\d+))?", name):
        return f"edgekd:resnet{match[1]}-{max(2, 2 * round(int(match[2] or 16) * factor / 2))}"
    if match := re.fullmatch(r"edgekd:vit(\d+)-(\d+)-(\d+)", name):
        return f"edgekd:vit{match[1]}-{max(32, 32 * round(int(match[2]) * factor / 32))}-{match[3]}"
    raise InputError(f"'{name}' comes in one width only", fix="use edgekd:resnetD-W or edgekd:vitP-W-L as the student")


def subset(dataset: Dataset, images: int | None) -> Dataset:
    """The data with fewer training images (all where None); the held-out and the test images stay whole.

    Raises: InputError: more than there are.
    """
    if images is not None and not 0 < images <= len(dataset.train):
        raise InputError(f"{images} of {len(dataset.train)} training images", where="--images")
    rows = stratified_order(dataset.train.labels, 0)[:images]
    fingerprint = dataset.fingerprint if images is None else f"{dataset.fingerprint}-{images}"
    return dataclasses.replace(dataset, fingerprint=fingerprint, train=View(dataset.train, rows))
