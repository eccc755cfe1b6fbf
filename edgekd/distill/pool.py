"""Several teachers as one source: their softened distributions, mixed by equal or per-sample weights.

Sources: You et al. 2017, "Learning from multiple teacher networks" (mean); Zhang, Chen & Wang 2022, "Confidence-Aware
Multi-Teacher Knowledge Distillation" (arXiv 2201.00007; labels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.divergence import entropy
from edgekd.distill.pool_taps import LOGITS
from edgekd.distill.sources import Live, Signals, Source
from edgekd.errors import InputError, did_you_mean

Weighting = Literal["mean", "confidence", "labels"]


def mean_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """The same weight for every teacher. Shapes: (teachers, batch, classes), (batch,) -> (teachers, batch)."""
    return torch.full_like(logits[..., 0], 1 / len(logits))


def confidence_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """softmax over the teachers of minus the entropy of what each says: who is sure counts more; labels are not read.

    Shapes: (teachers, batch, classes), (batch,) -> (teachers, batch).
    """
    return (-entropy(logits.log_softmax(-1))).softmax(0)


def label_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """(1 - softmax_k(CE_k)) / (K - 1): who is right about this image counts more.

    Shapes: (teachers, batch, classes), (batch,) -> (teachers, batch). Source: CA-MKD.

    >>> z = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]])
    >>> [round(w, 3) for w in label_weights(z, torch.tensor([0])).flatten().tolist()]
    [1.0, 0.0]
    """
    count = len(logits)
    wrong = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(count), reduction="none").view(
        count, len(labels)
    )
    return (1 - wrong.softmax(0)) / (count - 1)


WEIGHTINGS = {"mean": mean_weights, "confidence": confidence_weights, "labels": label_weights}


class Pool:
    """A source that mixes teachers. Its logits are T log(sum_k w_k softmax(z_k / T)).

    A soft-target loss at the same temperature T so sees exactly the weighted mean of the softened distributions, whose
    gradient is that of the weighted sum of divergences from each teacher (they differ by a constant). A tap of a
    member is written `member/tap`, and `member/@logits` is what that member alone says.
    Raises: InputError: fewer than two teachers, or no such weighting.
    """

    def __init__(
        self, members: Mapping[str, nn.Module | Source], *, weighting: Weighting = "mean", temperature: float = 4.0
    ) -> None:
        if len(members) < 2:
            raise InputError("a pool needs at least two teachers", fix="name the one teacher as the source itself")
        if weighting not in WEIGHTINGS:
            raise InputError(f"pool: no weighting '{weighting}'", fix=did_you_mean(weighting, WEIGHTINGS))
        if not temperature > 0:
            raise InputError(f"pool: temperature must be positive, got {temperature}")
        self.members: dict[str, Source] = {
            name: Live(member) if isinstance(member, nn.Module) else member for name, member in members.items()
        }
        self.weigh, self.temperature = WEIGHTINGS[weighting], temperature
        self._logits_wanted = False

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """Bind every member with its own taps. Raises: InputError: an unknown member, or their classes differ."""
        by_member: dict[str, list[str]] = {name: [] for name in self.members}
        for tap in taps:
            name, _, inner = tap.partition("/")
            if name not in by_member or not inner:
                fix = f"write MEMBER/TAP; {did_you_mean(name, by_member)}"
                raise InputError(f"tap '{tap}' names no member of the pool", fix=fix)
            if inner != LOGITS:
                by_member[name].append(inner)
        self._logits_wanted = f"/{LOGITS}" in "".join(taps)
        said = {name: member.bind(images, by_member[name]) for name, member in self.members.items()}
        if len({signals.logits.shape for signals in said.values()}) > 1:
            classes = ", ".join(f"{name} {signals.logits.shape[-1]}" for name, signals in said.items())
            raise InputError(f"the teachers of a pool differ in classes: {classes}")
        # The labels are not known here; any stand in, since only shapes are read from this answer.
        return self._mixed(said, torch.zeros(len(images), dtype=torch.int64, device=images.device))

    def signals(self, batch: Batch) -> Signals:
        """The mixture, and the members' taps."""
        return self._mixed({name: member.signals(batch) for name, member in self.members.items()}, batch.labels)

    def close(self) -> None:
        """Close every member."""
        for member in self.members.values():
            member.close()

    def _mixed(self, said: Mapping[str, Signals], labels: Tensor) -> Signals:
        taps = {f"{name}/{tap}": tensor for name, signals in said.items() for tap, tensor in signals.taps.items()}
        if self._logits_wanted:
            taps |= {f"{name}/{LOGITS}": signals.logits for name, signals in said.items()}
        logits = torch.stack([signals.logits.float() for signals in said.values()])
        softened = (logits / self.temperature).log_softmax(-1) + self.weigh(logits, labels).log().unsqueeze(-1)
        return Signals(self.temperature * softened.logsumexp(0), taps)
