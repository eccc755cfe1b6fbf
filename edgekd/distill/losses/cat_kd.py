"""Class attention transfer: match the maps of where each class is seen.

Source: Guo et al. 2023, "Class Attention Transfer Based Knowledge Distillation" (2304.14777).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import positive, same_classes
from edgekd.distill.losses.classifier import classifier_of
from edgekd.distill.losses.features import as_map
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Context, Loss, Needs
from edgekd.errors import InputError


class CATKD(Loss):
    """mean((N(pool(A_s)) - N(pool(A_t)))^2), A the class activation map W F (batch, classes, height, width), N to
    length 1 for each class, pool the mean to `grid` x `grid` positions.

    W is each model's classifier (classifier: its path; None: the last Linear), moved before the pooling, which changes
    no logit. The taps are the maps whose mean it reads. The gradient also reaches the student's classifier.
    Defaults: grid 2, weight 400: the authors' code; they set the weight by pair, 50 to 600, and take 600 and grid 4 for
    ResNet-32x4 to ShuffleNet-V1.
    Raises: ValueError: grid is not positive. InputError: a model has no such classifier.
    """

    name: ClassVar[str] = "cat_kd"
    published_weight: ClassVar[float] = 400.0

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        grid: int = 2,
        student_classifier: str | None = None,
        teacher_classifier: str | None = None,
    ) -> None:
        super().__init__()
        positive(grid=grid)
        self.student_tap, self.teacher_tap, self.grid = student_tap, teacher_tap, grid
        self.student_classifier, self.teacher_classifier = student_classifier, teacher_classifier
        self._layers: tuple[nn.Linear, ...] = ()  # in a tuple, so that they stay their models' modules, not the loss's

    def needs(self) -> Needs:
        """One tap each."""
        return Needs((self.student_tap,), (self.teacher_tap,))

    def prepare(self, context: Context) -> None:
        """Find the classifiers."""
        self._layers = (
            classifier_of(context.student, self.student_classifier, who="cat_kd: the student"),
            classifier_of(context.teacher, self.teacher_classifier, who="cat_kd: the teacher"),
        )

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: other classes, or a tap whose channels the classifier does not read."""
        same_classes(student, teacher)
        taps = (student.taps[self.student_tap], teacher.taps[self.teacher_tap])
        for feature, layer, tap in zip(taps, self._layers, (self.student_tap, self.teacher_tap), strict=True):
            channels = as_map(feature, f"cat_kd: tap '{tap}'").shape[1]
            if channels != layer.in_features:
                raise InputError(
                    f"cat_kd: tap '{tap}' has {channels} channels, its classifier reads {layer.in_features}",
                    fix="tap the last feature map before the pooling",
                )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: (batch, channels, height, width) -> ()."""
        own, foreign = (layer.weight for layer in self._layers)
        mine = self._attention(student.taps[self.student_tap], own)
        theirs = self._attention(teacher.taps[self.teacher_tap], foreign.detach())
        return (mine - theirs).square().mean()

    def _attention(self, feature: Tensor, weight: Tensor) -> Tensor:
        # Pooling commutes with the classifier and comes first: fewer positions to classify.
        pooled = functional.adaptive_avg_pool2d(as_map(feature), self.grid)
        maps = functional.conv2d(pooled, weight[:, :, None, None].to(pooled.dtype))
        return functional.normalize(maps.flatten(2), dim=2)
