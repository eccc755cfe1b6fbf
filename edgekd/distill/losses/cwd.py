"""Channel-wise distillation: each channel's map as a distribution over positions.

Source: Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction" (2011.13256).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from edgekd.distill.losses.checks import positive
from edgekd.distill.losses.divergence import kl
from edgekd.distill.losses.pairs import ComparedPairs, Taps
from edgekd.distill.sources import Signals


class CWD(ComparedPairs):
    """Sum over pairs of T^2 KL(softmax over positions of F_t / T || of F_s / T), mean over channels and batch.

    A 1x1 convolution brings the student's channels to the teacher's where they differ.
    Defaults: T 4, weight 50 on features and 3 on logits of dense tasks: the authors' and mmrazor's code.
    Raises: ValueError: temperature is not positive.
    """

    name: ClassVar[str] = "cwd"
    published_weight: ClassVar[float] = 50.0

    def __init__(self, student_tap: Taps, teacher_tap: Taps, *, temperature: float = 4.0) -> None:
        super().__init__(student_tap, teacher_tap)
        positive(temperature=temperature)
        self.temperature = temperature
        self.projectors = nn.ModuleList()

    def build(self, student: Signals, teacher: Signals) -> None:
        """A projector per pair of different widths."""
        widths = [(mine.shape[1], theirs.shape[1]) for mine, theirs in self.pairs(student, teacher)]
        self.projectors = nn.ModuleList([nn.Identity() if a == b else nn.Conv2d(a, b, 1) for a, b in widths])

    def compare(self, mine: Tensor, theirs: Tensor, pair: int) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        features = (theirs, self.projectors[pair](mine))
        log_p, log_q = ((f.flatten(2) / self.temperature).log_softmax(2) for f in features)
        return kl(log_p, log_q).mean() * self.temperature**2
