"""Students that teach each other, branches that teach their net, losses that are balanced: against plain formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import Collaboration, CrossEntropy, Hint, Signals, SoftTarget, Stage, Term, Training, run_stage
from edgekd.distill.batches import BatchStream, Share
from edgekd.distill.collaboration import RULES
from edgekd.distill.losses.gradient_balanced import GradientBalanced
from edgekd.distill.losses.one import ONE
from edgekd.distill.terms import Context
from edgekd.errors import InputError

QUICK = Training(epochs=2, batch_size=100, learning_rate=0.05, device="cpu", seed=3, mixed_precision="no")


def softmax(z: Tensor) -> Tensor:
    e = (z - z.max(-1, keepdim=True).values).exp()
    return e / e.sum(-1, keepdim=True)


def kl(z_teacher: Tensor, z: Tensor, temperature: float) -> Tensor:
    p, q = softmax(z_teacher / temperature), softmax(z / temperature)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-softmax(row)[label].log() for row, label in zip(z, y, strict=True)]).mean()


# ---------------------------------------------------------------------- KDCL


def by_hand(rule: str, z: Tensor, y: list[int]) -> Tensor:
    """Image by image and class by class."""
    rows = []
    for i, label in enumerate(y):
        said = [z[k, i] for k in range(len(z))]
        if rule == "min_logit":
            rows.append(torch.stack([min(row[c] - row[label] for row in said) for c in range(z.shape[2])]))
        elif rule == "least_loss":
            rows.append(min(said, key=lambda row: -float(softmax(row)[label].log())))
        else:
            rows.append(sum(said) / len(said))
    return torch.stack(rows)


def test_one_refuses_a_single_image_as_its_gate_normalises_over_the_batch(parity: Any) -> None:
    signals = parity.signals({"t": parity.normal(1, 3, 2, 2)})
    with pytest.raises(InputError, match="one needs a batch of at least 2 images per process; give a larger"):
        ONE("t").build(signals, signals)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("peers", "batch", "classes"), [(2, 5, 4), (3, 1, 7), (4, 3, 1)])
def test_what_peers_say_together_agrees_with_the_formula(
    parity: Any, rule: str, peers: int, batch: int, classes: int
) -> None:
    z = parity.normal(peers, batch, classes, scale=3.0)
    y = [k % classes for k in range(batch)]
    torch.testing.assert_close(RULES[rule](z, torch.tensor(y)), by_hand(rule, z, y))


def test_peers_learn_from_what_they_say_in_the_very_step(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """The gradient is that of cross-entropy and a divergence from a target worked out by hand."""
    nets = {name: linear(seed) for seed, name in enumerate("ab")}
    start = {name: [p.detach().clone() for p in net.parameters()] for name, net in nets.items()}
    terms = [Term(CrossEntropy(), student=name, name=f"ce {name}") for name in nets]
    terms += [Term(SoftTarget(temperature=2.0), source="both", student=name, name=name) for name in nets]
    plain = dataclasses.replace(QUICK, epochs=1 / 6, momentum=0.0, weight_decay=0.0, warmup=0.0)
    stage = Stage("s", tiny_dataset, nets, terms, {"both": Collaboration(nets)}, plain, diagnose=False)
    run_stage(stage, out=tmp_path)
    with BatchStream(tiny_dataset, plain, device=torch.device("cpu"), share=Share()) as stream:
        batch = stream.at(0)
    again = {name: linear(seed) for seed, name in enumerate("ab")}
    said = {name: net(batch.images) for name, net in again.items()}
    together = by_hand("min_logit", torch.stack(list(said.values())).detach(), batch.labels.tolist())
    for name, net in again.items():
        loss = cross_entropy(said[name], batch.labels) + kl(together, said[name], 2.0)
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        for before, slope, after in zip(start[name], slopes, nets[name].parameters(), strict=True):
            torch.testing.assert_close(after, before - 0.05 * slope, rtol=1e-4, atol=1e-6)


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def test_a_collaboration_says_what_is_wrong(tiny_dataset: Dataset, tmp_path: Path) -> None:
    a, b = linear(0), linear(1)
    with pytest.raises(InputError, match="at least two students"):
        Collaboration({"a": a})
    with pytest.raises(InputError, match="no rule 'minlogit'; did you mean 'min_logit'"):
        Collaboration({"a": a, "b": b}, rule="minlogit")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="have no tap 'x'; use a method of logits"):
        Collaboration({"a": a, "b": b}).bind(torch.zeros(2, 1, 28, 28), ["x"])
    terms = [Term(SoftTarget(), source="both", student="a")]
    stage = Stage("s", tiny_dataset, {"a": a, "bb": b}, terms, {"both": Collaboration({"a": a, "b": b})}, QUICK)
    with pytest.raises(InputError, match="stage 's': source 'both': no student 'b'; did you mean 'bb'"):
        run_stage(stage, out=tmp_path)


def test_asked_outside_a_step_the_members_are_run(parity: Any) -> None:
    nets = {name: linear(seed) for seed, name in enumerate("ab")}
    both, batch = Collaboration(nets, rule="mean"), parity.batch_of([1, 2])
    batch = batch.with_images(torch.randn(2, 1, 28, 28))
    both.bind(batch.images, [])
    expected = sum(net(batch.images) for net in nets.values()) / 2
    torch.testing.assert_close(both.signals(batch).logits, expected)


# ---------------------------------------------------------------------- ONE


def one_by_hand(loss: ONE, z: Tensor, f: Tensor, y: Tensor) -> Tensor:
    def norm(x: Tensor, layer: Any) -> Tensor:
        """Batch norm over all but the second dimension."""
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        centred = x - x.mean(dims, keepdim=True)
        scaled = centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()
        return scaled * layer.weight.view(shape) + layer.bias.view(shape)

    said = [z]
    for branch in loss.branches:
        convolution, bn, _, _, _, head = branch  # type: ignore[misc]
        patches = nn.functional.unfold(f, 3, padding=1)
        mapped = (convolution.weight.flatten(1) @ patches).view(len(f), -1, *f.shape[2:])
        said.append(norm(mapped, bn).clamp_min(0).mean((2, 3)) @ head.weight.T + head.bias)
    linear_gate, bn, _, _ = loss.gate  # type: ignore[misc]
    pooled = f.mean((2, 3)) @ linear_gate.weight.T + linear_gate.bias
    share = softmax(norm(pooled, bn).clamp_min(0))
    ensemble = sum(share[:, k : k + 1] * row for k, row in enumerate(said))
    total = cross_entropy(ensemble, y) + sum(cross_entropy(row, y) for row in said[1:])
    return total + sum(kl(ensemble.detach(), row, loss.temperature) for row in said)


@pytest.mark.parametrize(("batch", "classes", "branches"), [(4, 5, 3), (2, 3, 2), (6, 1, 4)])
def test_one_agrees_with_the_formula(parity: Any, batch: int, classes: int, branches: int) -> None:
    z, f = parity.normal(batch, classes, seed=1, scale=2.0), parity.normal(batch, 3, 4, 4, seed=2)
    loss = ONE("f", branches=branches)
    student = parity.signals({"f": f}, z)
    parity.built(loss, student, student)
    labels = [k % classes for k in range(batch)]
    leaves = [z, f, loss.gate[0].weight, loss.branches[0][0].weight]  # type: ignore[index]
    if classes == 1:  # one class: the answer is certain, and nothing pulls
        assert loss(student, student, parity.batch_of(labels)).item() == pytest.approx(0.0, abs=1e-9)
        return
    parity.assert_agree(
        lambda: loss(parity.signals({"f": f}, z), student, parity.batch_of(labels)),
        lambda: one_by_hand(loss, z, f, torch.tensor(labels)),
        leaves,
    )


# ---------------------------------------------------------------------- GradNorm


class Student(nn.Module):
    """A shared layer and two readers of it, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.double()

    def signals(self, x: Tensor) -> Signals:
        f = self.shared(x).tanh()
        return Signals(self.head(f), {"f": f})


def balanced(student: Student, alpha: float = 1.5) -> GradientBalanced:
    loss = GradientBalanced(
        [CrossEntropy(), SoftTarget(temperature=2.0), Hint("f", "f")], student_tap="shared", alpha=alpha
    )
    loss.prepare(Context(torch.tensor([0, 1]), 0, student, None))
    return loss


@pytest.mark.parametrize(("batch", "alpha", "step"), [(5, 1.5, 1), (1, 0.5, 1), (8, 0.0, 0)])
def test_gradient_balanced_agrees_with_the_formula(parity: Any, batch: int, alpha: float, step: int) -> None:
    student, labels = Student(), [k % 4 for k in range(batch)]
    x, data = parity.normal(batch, 6, seed=4), parity.batch_of(labels)
    teacher = Signals(parity.normal(batch, 4, seed=5, scale=3.0), {"f": parity.normal(batch, 5, seed=6)})
    loss = balanced(student, alpha)
    parity.built(loss, student.signals(x), teacher)
    if step:  # the first losses are those of other images
        loss(student.signals(x.flip(1) * 2), teacher, data)
    first = loss.first.clone()
    projector = loss.losses[2].projectors[0]  # type: ignore[index]

    def expected() -> Tensor:
        said = student.signals(x)
        values = [
            cross_entropy(said.logits, torch.tensor(labels)),
            kl(teacher.logits, said.logits, 2.0),
            ((projector(said.taps["f"]) - teacher.taps["f"]) ** 2).mean(),
        ]
        begun = first if step else torch.stack(values).detach()
        w = 3 * softmax(loss.scores)
        slopes = [torch.autograd.grad(v, student.shared.weight, retain_graph=True)[0].norm() for v in values]
        force = [w[i] * slopes[i] for i in range(3)]
        mean = sum(g.item() for g in force) / 3
        rates = [(v / b).item() for v, b in zip(values, begun, strict=True)]
        wanted = [mean * (rate / (sum(rates) / 3)) ** alpha for rate in rates]
        learn = sum((force[i] - wanted[i]).abs() for i in range(3)) / mean
        return sum(w[i].item() * values[i] for i in range(3)) + learn - learn.detach()

    parity.assert_agree(
        lambda: loss(student.signals(x), teacher, data),
        expected,
        [student.shared.weight, student.head.weight, loss.scores],
    )


def test_the_weights_move_until_all_losses_pull_alike(parity: Any) -> None:
    """With alpha 0 the forces are made equal, from a hundredfold difference."""
    student, data = Student(), parity.batch_of([0, 1, 2, 3])
    x, teacher = parity.normal(4, 6), Signals(parity.normal(4, 4), {"f": parity.normal(4, 5, scale=100.0)})
    loss = balanced(student, alpha=0.0)
    loss.build(student.signals(x).map(Tensor.float), teacher.map(Tensor.float))
    loss.double()
    forces: list[Tensor] = []
    for _ in range(600):
        loss.scores.grad = None
        loss(student.signals(x), teacher, data).backward()
        values = [inner(student.signals(x), teacher, data) for inner in loss.losses]
        slopes = [torch.autograd.grad(value, student.shared.weight)[0].norm() for value in values]
        forces.append(loss.weights().detach() * torch.stack(slopes))
        with torch.no_grad():
            loss.scores -= 0.02 * loss.scores.grad / loss.scores.grad.norm()  # type: ignore[operator,union-attr]
    assert float(forces[0].max() / forces[0].min()) > 10
    assert float(forces[-1].max() / forces[-1].min()) < 1.2
    assert loss.weights().sum().item() == pytest.approx(3.0)


def test_a_loss_that_cannot_be_balanced_there_is_named(parity: Any) -> None:
    student, data = Student(), parity.batch_of([0, 1])
    loss = GradientBalanced([CrossEntropy(), Hint("f", "f")], student_tap="head")
    loss.prepare(Context(torch.tensor([0, 1]), 0, student, None))
    x, teacher = parity.normal(2, 6), Signals(parity.normal(2, 4), {"f": parity.normal(2, 5)})
    parity.built(loss, student.signals(x), teacher)
    with pytest.raises(
        InputError, match="hint does not depend on the weights of 'head'; name a layer that lies before"
    ):
        loss(student.signals(x), teacher, data)
    loss = GradientBalanced([CrossEntropy(), SoftTarget()], student_tap="act")
    with pytest.raises(InputError, match="'act' has no weights; name a block"):
        loss.prepare(Context(torch.tensor([0, 1]), 0, Named(), None))


class Named(nn.Module):
    """A layer without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
