"""Learned teacher weights, fused features, learned term weights: value and gradient against plain float64 formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import CrossEntropy, Hint, Pool, SoftTarget, Stage, Term, Training, run_stage
from edgekd.distill.losses.feature_fusion import FeatureFusion
from edgekd.distill.losses.mtkd_rl import MTKDRL
from edgekd.distill.losses.uncertainty import UncertaintyWeighted
from edgekd.errors import InputError


def softmax(z: Tensor) -> Tensor:
    e = (z - z.max(-1, keepdim=True).values).exp()
    return e / e.sum(-1, keepdim=True)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-softmax(row)[label].log() for row, label in zip(z, y, strict=True)])


def members(parity: Any, batch: int, classes: int, width: int) -> dict[str, Tensor]:
    return {
        "a/@logits": parity.normal(batch, classes, seed=1, scale=2.0),
        "b/@logits": parity.normal(batch, classes, seed=2, scale=2.0),
        "a/f": parity.normal(batch, width, seed=3),
        "b/f": parity.normal(batch, width + 1, seed=4),
    }


def mtkd_by_hand(loss: MTKDRL, z: Tensor, f: Tensor, taps: dict[str, Tensor], y: Tensor, progress: float) -> Tensor:
    """Image by image, teacher by teacher."""
    t, total = loss.temperature, torch.zeros((), dtype=z.dtype)
    for i in range(len(z)):
        kls, far, cos, wrong = [], [], [], []
        for k, name in enumerate("ab"):
            p, q = softmax(taps[f"{name}/@logits"][i] / t), softmax(z[i] / t)
            kls.append(t * t * (p * (p.log() - q.log())).sum())
            mapped = loss.projectors[k].weight @ f[i] + loss.projectors[k].bias  # type: ignore[operator]
            theirs = taps[f"{name}/f"][i]
            far.append(((mapped - theirs) ** 2).mean())
            cos.append((mapped @ theirs / (mapped.norm() * theirs.norm())).detach())
            wrong.append(-softmax(taps[f"{name}/@logits"][i])[y[i]].log())
        apart, wrongs, cosines = torch.stack(kls), torch.stack(wrong), torch.stack(cos)
        state = [taps["a/@logits"][i], taps["b/@logits"][i], taps["a/f"][i], taps["b/f"][i], wrongs, cosines]
        hidden = (loss.stem[0].weight @ torch.cat([*state, apart.detach()])).clamp_min(0)  # type: ignore[index,operator,union-attr]
        pi, mu = (softmax(head.weight @ hidden + head.bias) for head in loss.heads)  # type: ignore[operator]
        right = 1 - softmax(wrongs)
        w = (pi.detach() + right + softmax(apart.detach())) / 3
        v = (mu.detach() + right + softmax(cosines)) / 3
        if progress < loss.warmup:
            w = v = torch.full_like(w, 0.5)
        own = -softmax(z[i].detach())[y[i]].log()
        reward = -(own + apart.detach() + loss.feature_weight * torch.stack(far).detach())
        reward = (reward - reward.mean()) / reward.std(correction=0)
        total = total + (w * apart).sum() + loss.feature_weight * (v * torch.stack(far)).sum()
        total = total - (reward * (pi.log() + mu.log())).sum()
    return total / len(z)


@pytest.mark.parametrize(("batch", "classes", "progress"), [(5, 4, 0.5), (3, 7, 0.0), (1, 2, 0.9)])
def test_mtkd_rl_agrees_with_the_formula(parity: Any, batch: int, classes: int, progress: float) -> None:
    taps = members(parity, batch, classes, 3)
    z, f = parity.normal(batch, classes, seed=9, scale=2.0), parity.normal(batch, 5, seed=8)
    labels = [k % classes for k in range(batch)]
    loss = MTKDRL(["a", "b"], student_tap="s", teacher_tap=["a/f", "b/f"], hidden=6)
    student, teacher = parity.signals({"s": f}, z), parity.signals(taps, taps["a/@logits"])
    parity.built(loss, student, teacher)
    data = parity.batch_of(labels, progress=progress)
    leaves = [z, f, loss.stem[0].weight, loss.heads[0].bias, loss.projectors[1].weight]  # type: ignore[index]
    parity.assert_agree(
        lambda: loss(parity.signals({"s": f}, z), teacher, data),
        lambda: mtkd_by_hand(loss, z, f, taps, torch.tensor(labels), progress),
        leaves,
    )


def test_the_agent_learns_to_trust_the_teacher_that_rewards(parity: Any) -> None:
    """One teacher says what the student says, the other something far off: the reward favours the first."""
    z = parity.normal(32, 4, seed=0, scale=2.0)
    taps = {"a/@logits": z + 0.1, "b/@logits": z.roll(1, 1) * 3}
    loss = MTKDRL(["a", "b"])
    student, teacher = parity.signals(z), parity.signals(taps, z)
    parity.built(loss, student, teacher)
    data = parity.batch_of([k % 4 for k in range(32)])
    optimiser = torch.optim.SGD(loss.parameters(), 0.05)
    heard: list[Tensor] = []
    loss.heads[0].register_forward_hook(lambda _m, _i, out: heard.append(out.softmax(1).mean(0).detach()))
    for _ in range(30):
        optimiser.zero_grad()
        loss(student, teacher, data).backward()
        optimiser.step()
    assert heard[-1][0] > max(0.8, float(heard[0][0]))


def fused_by_hand(loss: FeatureFusion, z: Tensor, f: Tensor, taps: dict[str, Tensor], y: Tensor) -> Tensor:
    def norm(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()

    share = softmax(loss.importance)
    total = torch.zeros((), dtype=z.dtype)
    for i in range(len(z)):
        h = sum(
            share[k] * (loss.maps[k].weight @ norm(taps[tap][i]) + loss.maps[k].bias)  # type: ignore[operator]
            for k, tap in enumerate(("a/f", "b/f"))
        )
        answer = loss.classifier.weight @ h + loss.classifier.bias  # type: ignore[operator]
        p, q = softmax(answer.detach() / loss.temperature), softmax(z[i] / loss.temperature)
        near = loss.projector.weight @ norm(f[i]) + loss.projector.bias - h.detach()  # type: ignore[operator,union-attr]
        total = total - softmax(answer)[y[i]].log()
        total = total + loss.temperature**2 * (p * (p.log() - q.log())).sum() + loss.match * (near**2).mean()
    return total / len(z)


@pytest.mark.parametrize(("batch", "classes"), [(4, 3), (1, 5)])
def test_feature_fusion_agrees_with_the_formula(parity: Any, batch: int, classes: int) -> None:
    taps = members(parity, batch, classes, 4)
    z, f = parity.normal(batch, classes, seed=9), parity.normal(batch, 6, seed=8)
    loss = FeatureFusion("s", ["a/f", "b/f"], dimensions=5)
    teacher = parity.signals(taps, taps["a/@logits"])
    parity.built(loss, parity.signals({"s": f}, z), teacher)
    labels = [k % classes for k in range(batch)]
    leaves = [z, f, loss.importance, loss.maps[0].weight, loss.classifier.bias]  # type: ignore[list-item]
    parity.assert_agree(
        lambda: loss(parity.signals({"s": f}, z), teacher, parity.batch_of(labels)),
        lambda: fused_by_hand(loss, z, f, taps, torch.tensor(labels)),
        leaves,
    )


def test_a_learned_weight_agrees_with_the_formula_and_ends_at_one_over_the_loss(parity: Any) -> None:
    mine, theirs = parity.normal(4, 3, seed=1), parity.normal(4, 3, seed=2)
    loss = UncertaintyWeighted(SoftTarget(temperature=2.0), start=0.5).double()

    def by_hand() -> Tensor:
        p, q = softmax(theirs / 2), softmax(mine / 2)
        value = 4 * (p * (p.log() - q.log())).sum(1).mean()
        return torch.exp(-loss.log_variance) * value + loss.log_variance

    student, teacher, batch = parity.signals(mine), parity.signals(theirs), parity.batch_of([0, 1, 2, 0])
    parity.assert_agree(lambda: loss(student, teacher, batch), by_hand, [mine, loss.log_variance])
    inner = float(loss.inner(student, teacher, batch).detach())
    optimiser = torch.optim.SGD([loss.log_variance], 0.1)
    for _ in range(400):
        optimiser.zero_grad()
        loss(student, teacher, batch).backward()
        optimiser.step()
    assert loss.weight == pytest.approx(1 / inner, rel=1e-3)


def test_extreme_and_equal_logits_stay_finite(parity: Any) -> None:
    z = torch.tensor([[300.0, -300.0, 0.0]] * 3, requires_grad=True)
    taps = {"a/@logits": torch.tensor([[-300.0, 300.0, 0.0]] * 3).bfloat16().float(), "b/@logits": z.detach()}
    loss = MTKDRL(["a", "b"])
    student, teacher = parity.signals(z), parity.signals(taps, z.detach())
    loss.build(student, teacher)
    value = loss(student, teacher, parity.batch_of([0, 1, 2]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()  # type: ignore[arg-type]
    same = {"a/@logits": torch.zeros(2, 3), "b/@logits": torch.zeros(2, 3)}
    loss = MTKDRL(["a", "b"])
    student, teacher = parity.signals(torch.zeros(2, 3)), parity.signals(same, torch.zeros(2, 3))
    loss.build(student, teacher)
    assert loss(student, teacher, parity.batch_of([0, 1])).item() == pytest.approx(0.0, abs=1e-6)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 5, stride=4), nn.ReLU())
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def test_they_train_on_a_pool_and_resume_to_the_bit(tiny_dataset: Dataset, tmp_path: Path) -> None:
    def stage() -> Stage:
        torch.manual_seed(0)
        teachers = {"a": Net(12), "b": Net(8)}
        taps = {"teacher_tap": ["a/features", "b/features"]}
        terms = [
            Term(UncertaintyWeighted(CrossEntropy())),
            Term(MTKDRL(["a", "b"], student_tap="features", **taps), 0.1, source="pool"),
            Term(FeatureFusion("features", taps["teacher_tap"]), 0.1, source="pool"),
            Term(Hint("features", "a/features"), 0.1, source="pool"),
        ]
        training = Training(epochs=2, batch_size=100, learning_rate=0.05, device="cpu", mixed_precision="no")
        return Stage("distil", tiny_dataset, {"student": Net(4)}, terms, {"pool": Pool(teachers)}, training)

    whole, parts = stage(), stage()
    run_stage(whole, out=tmp_path / "whole")
    half = dataclasses.replace(parts, training=dataclasses.replace(parts.training))

    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step == 6 and progress.epoch_record is not None:
            raise Stop

    with pytest.raises(Stop):
        run_stage(half, out=tmp_path / "parts", on_progress=stop)
    resumed = stage()
    run_stage(resumed, out=tmp_path / "parts", resume=True)
    first, second = (s.students["student"].state_dict() for s in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_pool_tells_a_members_own_logits_and_refuses_strangers(tiny_dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    terms = [Term(MTKDRL(["a", "c"]), source="pool")]
    training = Training(epochs=1, batch_size=100, device="cpu", mixed_precision="no")
    stage = Stage(
        "distil", tiny_dataset, {"student": Net(4)}, terms, {"pool": Pool({"a": Net(4), "b": Net(4)})}, training
    )
    with pytest.raises(InputError, match="tap 'c/@logits' names no member of the pool"):
        run_stage(stage, out=tmp_path)
