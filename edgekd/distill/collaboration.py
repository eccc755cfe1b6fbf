"""Peers as one teacher: what the students of a stage say together in this very step (collaborative online learning).

Source: Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning" (CVPR 2020), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.sources import Live, Signals
from edgekd.errors import InputError, did_you_mean

Rule = Literal["min_logit", "least_loss", "mean"]


def min_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """For every class the least of the peers' logits, each less its label's.

    Shapes: (peers, batch, classes), (batch,) -> (batch, classes).

    Nobody's doubt about the label survives: the target is the surest that the peers can agree on.

    >>> min_logit(torch.tensor([[[3.0, 1.0]], [[1.0, 2.0]]]), torch.tensor([0])).tolist()
    [[0.0, -2.0]]
    """
    own = logits.gather(2, labels.expand(len(logits), -1).unsqueeze(2))
    return (logits - own).amin(0)


def least_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """For every image what the peer of the least cross-entropy says ("naive" in the paper): as `min_logit`.

    >>> least_loss(torch.tensor([[[3.0, 1.0]], [[1.0, 2.0]]]), torch.tensor([1])).tolist()
    [[1.0, 2.0]]
    """
    wrong = torch.stack([functional.cross_entropy(said, labels, reduction="none") for said in logits])
    return logits[wrong.argmin(0), torch.arange(len(labels), device=labels.device)]


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of the peers' logits: as `min_logit`; labels are not read."""
    return logits.mean(0)


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"min_logit": min_logit, "least_loss": least_loss, "mean": mean}


class Collaboration:
    """A source: the students named as members, their logits made one by `rule`. It has no taps.

    In a training step nobody is run a second time: the loop hands over what the students just said (`together`).
    Raises: InputError: fewer than two members, or no such rule.
    """

    def __init__(self, members: Mapping[str, nn.Module], *, rule: Rule = "min_logit") -> None:
        if len(members) < 2:
            raise InputError("a collaboration needs at least two students", fix="name two or more as members")
        if rule not in RULES:
            raise InputError(f"collaboration: no rule '{rule}'", fix=did_you_mean(rule, RULES))
        self.members = {name: Live(model, frozen=False) for name, model in members.items()}
        self.rule = RULES[rule]

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """Raises: InputError: a tap is asked for, or the students' classes differ."""
        if taps:
            raise InputError(f"students together have no tap '{taps[0]}'", fix="use a method of logits")
        said = {name: live.bind(images, ()) for name, live in self.members.items()}
        if len({signals.logits.shape for signals in said.values()}) > 1:
            classes = ", ".join(f"{name} {signals.logits.shape[-1]}" for name, signals in said.items())
            raise InputError(f"the students of a collaboration differ in classes: {classes}")
        return self.together(said, torch.zeros(len(images), dtype=torch.int64, device=images.device))

    def together(self, said: Mapping[str, Signals], labels: Tensor) -> Signals:
        """Their target, from what every member said about the batch; without gradient."""
        logits = torch.stack([said[name].logits.detach().float() for name in self.members])
        return Signals(self.rule(logits, labels))

    def signals(self, batch: Batch) -> Signals:
        """The same with the members run, as they are now."""
        with torch.no_grad():
            return self.together({name: live.signals(batch) for name, live in self.members.items()}, batch.labels)

    def close(self) -> None:
        """Nothing: the students are the stage's."""
