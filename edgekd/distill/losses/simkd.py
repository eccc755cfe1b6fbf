"""SimKD: the student takes over the teacher's classifier, and only has to give it the feature it knows.

Source: Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier" (2203.14001).

Two pieces: `ReusedClassifier` is the student that is trained and shipped, `SimKD` its only loss. The projector stays at
inference: for a student of c and a teacher of C channels it adds about c C/2 + 9 C^2/4 + C^2/2 weights (factor 2), and
as many multiplications per position of the map. On a small device that is often more than the student's last stage.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.losses.classifier import classifier_of
from edgekd.distill.losses.features import as_map
from edgekd.distill.losses.pairs import ComparedPairs
from edgekd.distill.taps import forward_with_taps


class ReusedClassifier(nn.Module):
    """A student whose map at `tap` goes through a projector into a frozen copy of the teacher's classifier.

    example: images (batch, channels, height, width), run once to learn the map's channels. factor: how much narrower
    than the teacher the projector's middle is. The student's own classifier is frozen, and unused.
    Raises: InputError: no such tap, or a model without a Linear classifier.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, tap: str, example: Tensor, *, factor: int = 2) -> None:
        super().__init__()
        self.student, self.tap = student, tap
        training = student.training
        with torch.no_grad():
            channels = self.feature(example, student.eval()).shape[1]
        student.train(training)
        classifier_of(student, who="simkd: the student").requires_grad_(False)
        self.classifier = copy.deepcopy(classifier_of(teacher, who="simkd: the teacher")).requires_grad_(False)
        self.projector = _bottleneck(channels, self.classifier.in_features, factor)

    def feature(self, images: Tensor, student: nn.Module) -> Tensor:
        """The student's map."""
        return as_map(forward_with_taps(student, images, [self.tap])[1][self.tap], f"student tap '{self.tap}'")

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> logits (batch, the teacher's classes)."""
        logits: Tensor = self.classifier(self.projector(self.feature(images, self.student)).mean((2, 3)))
        return logits


def _bottleneck(inputs: int, outputs: int, factor: int) -> nn.Sequential:
    """1x1, 3x3, 1x1 convolutions, each with batch norm and ReLU."""
    middle = max(1, outputs // factor)
    sizes = [(inputs, middle, 1), (middle, middle, 3), (middle, outputs, 1)]
    parts: list[nn.Module] = []
    for a, b, kernel in sizes:
        parts += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts)


class SimKD(ComparedPairs):
    """Mean squared error between maps of the same channels, on the coarser grid.

    student_tap is `projector` of a `ReusedClassifier`, teacher_tap the map whose mean the teacher's classifier reads.
    Weight 1 and no other term, not even cross-entropy: the authors' code.
    """

    name: ClassVar[str] = "simkd"
    equal_channels = True

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, channels, height, width) -> ()."""
        loss: Tensor = functional.mse_loss(mine, theirs)
        return loss
