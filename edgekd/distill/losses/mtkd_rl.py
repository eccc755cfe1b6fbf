"""MTKD-RL: an agent learns, by reinforcement, how much each teacher counts for each image.

Source: Yang et al. 2025, "Multi-Teacher Knowledge Distillation with Reinforcement Learning for Visual Recognition"
(2502.18510), and the authors' code for the agent, the state and the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, positive, same_classes, share
from edgekd.distill.losses.divergence import kl
from edgekd.distill.losses.features import align, as_vector
from edgekd.distill.pool_taps import LOGITS
from edgekd.distill.sources import Signals
from edgekd.distill.terms import Loss, Needs
from edgekd.errors import InputError


class MTKDRL(Loss):
    """mean_i sum_k w_ik T^2 KL(p_k || p_s) + feature_weight mean_i sum_k v_ik |r_k(f_s) - f_k|^2 + the agent's loss.

    members: the names of the pool's teachers; the source is that pool. student_tap, teacher_tap: a feature of the
    student, and of each member (written `member/tap`); none: logits alone. The agent reads, for each image, every
    teacher's pooled feature and logits, its cross-entropy, the cosine of r_k(f_s) and f_k, and the divergence; one
    hidden layer of 128 without bias, a softmax head for w and one for v. A weight is the mean of the agent's, of
    (1 - softmax_k(CE_k)) / (K - 1) and of softmax_k of the divergence (of the cosine for v); 1 / K in the first
    `warmup` of the stage. Reward: minus (CE_s + KL_k + feature_weight feature_k), standardised over the teachers; the
    agent climbs sum_k reward_k log of its heads (REINFORCE). It learns with the student's optimiser at every step,
    where the authors' learns in a second pass; no gradient goes from one to the other.
    Defaults: T 4, feature_weight 5, weight 1: the authors' code on CIFAR-100, whose first epoch is 1/240 of the stage.
    Raises: InputError: fewer than two members, or the taps do not fit. ValueError: a value out of its range.
    """

    name: ClassVar[str] = "mtkd_rl"
    may_rise: ClassVar[bool] = True

    def __init__(
        self,
        members: Sequence[str],
        *,
        student_tap: str | None = None,
        teacher_tap: Sequence[str] | None = None,
        temperature: float = 4.0,
        feature_weight: float = 5.0,
        hidden: int = 128,
        warmup: float = 1 / 240,
    ) -> None:
        super().__init__()
        positive(temperature=temperature, hidden=hidden)
        not_negative(feature_weight=feature_weight)
        share(warmup=warmup)
        self.members, self.temperature, self.feature_weight = tuple(members), temperature, feature_weight
        if len(self.members) < 2:
            raise InputError("mtkd_rl got fewer than two members", fix="name the teachers of the pool")
        if (student_tap is None) != (teacher_tap is None) or (teacher_tap and len(teacher_tap) != len(self.members)):
            raise InputError("mtkd_rl: taps do not fit the members", fix="a student_tap, and one teacher_tap a member")
        self.student_tap, self.teacher_taps = student_tap, tuple(teacher_tap or ())
        self.hidden, self.warmup = hidden, warmup
        self.projectors = nn.ModuleList()
        self.stem: nn.Module = nn.Identity()
        self.heads = nn.ModuleList()

    def needs(self) -> Needs:
        """Every member's logits, and the features where they are compared."""
        logits = tuple(f"{member}/{LOGITS}" for member in self.members)
        return Needs((self.student_tap,) if self.student_tap else (), logits + self.teacher_taps)

    def build(self, student: Signals, teacher: Signals) -> None:
        """Projectors to the teachers' widths, and the agent."""
        width = 0
        for k, member in enumerate(self.members):
            logits = teacher.taps[f"{member}/{LOGITS}"]
            same_classes(student, Signals(logits))
            width += logits.shape[1] + 3
            if self.student_tap:
                mine, theirs = align(student.taps[self.student_tap], teacher.taps[self.teacher_taps[k]])
                self.projectors.append(nn.Linear(mine.shape[2], theirs.shape[2]))
                width += as_vector(teacher.taps[self.teacher_taps[k]]).shape[1]
        self.stem = nn.Sequential(nn.Linear(width, self.hidden, bias=False), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(self.hidden, len(self.members)) for _ in range(2)])

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: logits (batch, classes), any features -> ()."""
        said = [teacher.taps[f"{member}/{LOGITS}"] for member in self.members]
        log_s = (student.logits / self.temperature).log_softmax(1)
        apart = torch.stack([kl((z / self.temperature).log_softmax(1), log_s) for z in said], 1)
        apart = self.temperature**2 * apart
        far, cosine, pooled = self._features(student, teacher, len(said))
        wrong = torch.stack([functional.cross_entropy(z, batch.labels, reduction="none") for z in said], 1)
        state = [*said, *pooled, wrong, cosine, apart.detach()]
        logit_policy, feature_policy = (head(self.stem(torch.cat(state, 1))).log_softmax(1) for head in self.heads)
        w, v = self._weights(logit_policy, feature_policy, wrong, apart.detach(), cosine, batch.progress)
        loss = (w * apart).sum(1).mean() + self.feature_weight * (v * far).sum(1).mean()
        own = functional.cross_entropy(student.logits.detach(), batch.labels, reduction="none").unsqueeze(1)
        reward = standardised(-(own + apart.detach() + self.feature_weight * far.detach()))
        agent: Tensor = -(reward * (logit_policy + feature_policy)).sum(1).mean()
        return loss + agent

    def _features(self, student: Signals, teacher: Signals, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Squared distances (batch, teachers), cosines without gradient, and the teachers' pooled features."""
        if not self.student_tap:
            none = student.logits.new_zeros(len(student.logits), count)
            return none, none, []
        far, cosine, pooled = [], [], []
        for tap, projector in zip(self.teacher_taps, self.projectors, strict=True):
            mine, theirs = align(student.taps[self.student_tap], teacher.taps[tap])
            mine = projector(mine)
            far.append((mine - theirs).square().mean((1, 2)))
            cosine.append(functional.cosine_similarity(mine.detach().mean(1), theirs.mean(1), dim=1))
            pooled.append(as_vector(teacher.taps[tap]))
        return torch.stack(far, 1), torch.stack(cosine, 1), pooled

    def _weights(
        self,
        logit_policy: Tensor,
        feature_policy: Tensor,
        wrong: Tensor,
        apart: Tensor,
        cosine: Tensor,
        progress: float,
    ) -> tuple[Tensor, Tensor]:
        """w and v, (batch, teachers) each, without gradient; rows sum to 1."""
        count = wrong.shape[1]
        if progress < self.warmup:
            equal = torch.full_like(wrong, 1 / count)
            return equal, equal
        right = (1 - wrong.softmax(1)) / (count - 1)
        w = (logit_policy.detach().exp() + right + apart.softmax(1)) / 3
        v = (feature_policy.detach().exp() + right + cosine.softmax(1)) / 3
        return w, v


def standardised(reward: Tensor) -> Tensor:
    """Each row at mean 0 and deviation 1; a row without differences at 0.

    >>> import torch
    >>> standardised(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = reward - reward.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
