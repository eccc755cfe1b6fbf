"""What losses between logits share: a temperature, and the check that both models have the same classes."""

from __future__ import annotations

from edgekd.distill.losses.checks import positive, same_classes
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss


class LogitLoss(Loss):
    """A loss between logits softened by `temperature`. Raises: ValueError: temperature is not positive."""

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        positive(temperature=temperature)
        self.temperature = temperature

    def build(self, student: Signals, teacher: Signals) -> None:
        """Raises: InputError: the two have different classes."""
        same_classes(student, teacher)
