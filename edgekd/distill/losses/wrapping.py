"""A loss around another: it needs, prepares and builds what the inner one does."""

from __future__ import annotations

from edgekd.distill.sources import Signals
from edgekd.distill.terms import Context, Loss, Needs


class Wrapping(Loss):
    """`inner`, changed by `forward`. In a recipe the inner loss is {method = NAME, ...}."""

    def __init__(self, inner: Loss) -> None:
        super().__init__()
        self.inner = inner

    def needs(self) -> Needs:
        """The inner loss's."""
        return self.inner.needs()

    def prepare(self, context: Context) -> None:
        """Handed on."""
        self.inner.prepare(context)

    def build(self, student: Signals, teacher: Signals) -> None:
        """Handed on."""
        self.inner.build(student, teacher)
