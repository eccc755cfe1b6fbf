"""Contrastive losses equal their formulas, keep their memory, and draw negatives of other classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.distill import Loss, Signals
from edgekd.distill.losses import make_loss
from edgekd.distill.losses.crd_memory import CRDMemory
from edgekd.distill.losses.wcord import sinkhorn_plan
from edgekd.distill.terms import Context
from edgekd.errors import InputError

TAPS = {"student_tap": "s", "teacher_tap": "t"}


def unit(v: Tensor) -> Tensor:
    return v / (v**2).sum() ** 0.5


def embedded(layer: nn.Linear, f: Tensor) -> list[Tensor]:
    f = f if f.ndim == 2 else f.mean((2, 3))
    return [unit(torch.stack([(row * w).sum() for w in layer.weight]) + layer.bias) for row in f]


def pair(parity: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int = 1) -> tuple[Signals, Signals]:
    s, t = (parity.normal(*shape, seed=seed + i) for i, shape in enumerate(shapes))
    return parity.signals({"s": s}), parity.signals({"t": t})


# ---------------------------------------------------------------------- InfoNCE


@pytest.mark.parametrize("shapes", [((4, 3), (4, 5)), ((5, 2, 2, 2), (5, 3)), ((2, 3), (2, 3))], ids=str)
@pytest.mark.parametrize("other_classes", [True, False])
def test_crd_is_the_cross_entropy_of_finding_ones_own_key(
    parity: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], other_classes: bool
) -> None:
    mine, theirs = pair(parity, shapes)
    loss = make_loss("crd", **TAPS, dimensions=6, temperature=0.2, bank=7, other_classes=other_classes)
    loss = parity.built(loss, mine, theirs)
    labels = [0, 1, 0, 2, 1][: shapes[0][0]]
    before = pair(parity, shapes, seed=5)
    loss(*before, parity.batch_of(labels))  # puts its keys into the bank
    bank = [k.detach() for k in embedded(loss.embed_teacher, before[1].taps["t"])]
    empty = loss.bank.clone(), loss.bank_labels.clone()

    def value() -> Tensor:
        loss.bank, loss.bank_labels = empty
        return loss(mine, theirs, parity.batch_of(labels))

    def expected() -> Tensor:
        anchors, keys = embedded(loss.embed_student, mine.taps["s"]), embedded(loss.embed_teacher, theirs.taps["t"])
        losses = []
        for i, anchor in enumerate(anchors):
            held = [(k, y, j == i) for j, (k, y) in enumerate(zip(keys, labels, strict=True))]
            held += [(k, y, False) for k, y in zip(bank, labels, strict=True)]
            kept = [(k, own) for k, y, own in held if own or not other_classes or y != labels[i]]
            scores = [((anchor * k).sum() / 0.2).exp() for k, _ in kept]
            losses.append(-(scores[[own for _, own in kept].index(True)] / sum(scores)).log())
        return sum(losses) / len(losses)

    leaves = [mine.taps["s"], loss.embed_teacher.weight, loss.embed_student.weight]
    parity.assert_agree(value, expected, leaves)


def test_crds_bank_holds_the_newest_keys_first(parity: Any) -> None:
    loss = None
    for step in range(4):
        mine, theirs = pair(parity, ((2, 3), (2, 3)), seed=10 * step)
        loss = loss or parity.built(make_loss("crd", **TAPS, dimensions=4, bank=5), mine, theirs)
        loss(mine, theirs, parity.batch_of([step, 9]))
    assert loss.bank_labels.tolist() == [3, 9, 2, 9, 1]
    torch.testing.assert_close(loss.bank[:2], torch.stack(embedded(loss.embed_teacher, theirs.taps["t"])).detach())
    assert {"bank", "bank_labels"} <= set(loss.state_dict())


def test_a_batch_of_one_class_has_no_negatives_and_no_loss(parity: Any) -> None:
    mine, theirs = pair(parity, ((3, 4), (3, 4)))
    loss = parity.built(make_loss("crd", **TAPS), mine, theirs)
    assert loss(mine, theirs, parity.batch_of([1, 1, 1])).item() == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------------- memory banks


def memory(parity: Any, mine: Signals, theirs: Signals, labels: list[int], **options: Any) -> CRDMemory:
    loss = make_loss("crd_memory", **TAPS, **{"dimensions": 6, "negatives": 9, "temperature": 0.3, **options})
    loss.prepare(Context(torch.tensor(labels), 5, None, None))
    torch.manual_seed(0)
    built: CRDMemory = parity.built(loss, mine, theirs)
    return built


@pytest.mark.parametrize("negatives", [9, 1])
def test_crd_memory_is_the_published_estimator_over_three_steps(parity: Any, negatives: int) -> None:
    """RepDistiller's ContrastMemory and ContrastLoss, image by image; one negative of 40 images makes a long bank."""
    data = [i % 4 for i in range(40)]
    mine, theirs = pair(parity, ((3, 4), (3, 5)))
    loss = memory(parity, mine, theirs, data, negatives=negatives)
    banks = [loss.banks[0].clone(), loss.banks[1].clone()]
    normalisers: list[float] = []
    for step, index in enumerate([[3, 8, 13], [8, 0, 3], [3, 19, 8]]):
        mine, theirs = pair(parity, ((3, 4), (3, 5)), seed=20 * step)
        batch = parity.batch_of([data[i] for i in index], index=index, step=step)
        drawn = loss.draw(batch)

        def expected(m: Signals = mine, t: Signals = theirs, i: list[int] = index, d: Tensor = drawn) -> Tensor:
            v = [embedded(layer, f) for layer, f in zip(loss.embeddings, (m.taps["s"], t.taps["t"]), strict=True)]
            total = 0
            for side in (0, 1):
                rows = [[i[b], *d[b].tolist()] for b in range(3)]
                e = [[((v[side][b] * banks[1 - side][j]).sum() / 0.3).exp() for j in row] for b, row in enumerate(rows)]
                if len(normalisers) <= side:
                    normalisers.append(float(sum(sum(row) for row in e).detach()) / (3 * (negatives + 1)) * 40)
                for row in e:
                    h = [x / normalisers[side] / (x / normalisers[side] + negatives / 40 + 1e-7) for x in row]
                    total = (
                        total
                        - h[0].log()
                        - sum((negatives / 40 / (x / normalisers[side] + negatives / 40 + 1e-7)).log() for x in row[1:])
                    )
            return total / 3

        state = {name: tensor.clone() for name, tensor in loss.state_dict().items()}

        def value(m: Signals = mine, t: Signals = theirs, b: Any = batch, s: dict[str, Tensor] = state) -> Tensor:
            loss.load_state_dict(s)
            return loss(m, t, b)

        parity.assert_agree(value, expected, [mine.taps["s"], loss.embeddings[0].weight, loss.embeddings[1].weight])
        with torch.no_grad():
            for side, f in enumerate((mine.taps["s"], theirs.taps["t"])):
                for j, v in zip(index, embedded(loss.embeddings[side], f), strict=True):
                    banks[side][j] = unit(0.5 * banks[side][j] + 0.5 * v)
    torch.testing.assert_close(loss.normalisers, torch.tensor(normalisers, dtype=torch.float64), rtol=1e-6, atol=0)


def test_negatives_are_of_other_classes_and_reach_every_such_image(parity: Any) -> None:
    data = [0, 2, 2, 0, 1, 2, 1, 0, 2]
    mine, theirs = pair(parity, ((3, 4), (3, 5)))
    loss = memory(parity, mine, theirs, data, negatives=400)
    drawn = loss.draw(parity.batch_of([0, 1, 2], step=1))
    for label, row in enumerate(drawn.tolist()):
        assert set(row) == {i for i, y in enumerate(data) if y != label}
        counts = torch.tensor(row).bincount(minlength=9)
        assert counts[counts > 0].min() > 0.5 * 400 / int((counts > 0).sum()), "all alike likely"
    assert torch.equal(drawn, loss.draw(parity.batch_of([0, 1, 2], step=1))), "a function of the step"
    assert not torch.equal(drawn, loss.draw(parity.batch_of([0, 1, 2], step=2)))


def test_reading_the_bank_by_one_product_or_row_by_row_is_the_same(parity: Any) -> None:
    mine, theirs = pair(parity, ((3, 4), (3, 5)))
    loss = memory(parity, mine, theirs, [i % 3 for i in range(50)])
    v = parity.normal(3, 6, seed=9).requires_grad_()
    index = torch.randint(0, 50, (3, 40))
    whole = loss._similarity(v, 0, index)
    rows = torch.cat([loss._similarity(v, 0, column) for column in index.split(1, 1)], 1)  # 50 > 16 x 1
    torch.testing.assert_close(whole, rows)
    a, b = (torch.autograd.grad(out.square().sum(), v)[0] for out in (whole, rows))
    torch.testing.assert_close(a, b)


def test_a_single_class_has_no_negatives(parity: Any) -> None:
    with pytest.raises(InputError, match="crd_memory: the training images are all of one class"):
        make_loss("crd_memory", **TAPS).prepare(Context(torch.zeros(6, dtype=torch.long), 0, None, None))


# ---------------------------------------------------------------------- Wasserstein


@pytest.mark.parametrize("shapes", [((4, 3), (4, 5)), ((3, 2, 2, 2), (3, 3)), ((2, 6), (2, 3))], ids=str)
def test_wcord_global_is_the_gap_of_the_critic_between_like_and_unlike(
    parity: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    mine, theirs = pair(parity, shapes)
    loss = parity.built(make_loss("wcord_global", **TAPS, dimensions=4), mine, theirs).eval()

    def expected() -> Tensor:
        a, b = (half.weight.detach() for half in loss.critics[0])
        f = mine.taps["s"]
        s = [a @ unit(v) for v in (f if f.ndim == 2 else f.mean((2, 3)))]
        t = [b @ unit(v) for v in theirs.taps["t"]]
        like = [s[i] @ t[i] for i in range(len(s))]
        unlike = [s[i] @ t[j] for i in range(len(s)) for j in range(len(s)) if i != j]
        return sum(unlike) / len(unlike) - sum(like) / len(like)

    parity.assert_agree(lambda: loss(mine, theirs, parity.batch_of([0] * shapes[0][0])), expected, [mine.taps["s"]])


def test_wcords_critic_keeps_spectral_norm_1_while_it_learns(parity: Any) -> None:
    mine, theirs = pair(parity, ((8, 5), (8, 6)))
    loss = parity.built(make_loss("wcord_global", **TAPS, dimensions=4), mine, theirs)
    optimiser = torch.optim.SGD(loss.parameters(), lr=1.0)
    first = None
    for _ in range(30):
        optimiser.zero_grad()
        value = loss(mine, theirs, parity.batch_of([0] * 8))
        first = value.item() if first is None else first
        value.backward()
        optimiser.step()
    for half in loss.eval().critics[0]:
        assert torch.linalg.matrix_norm(half.weight, 2).item() == pytest.approx(1, abs=0.05)
    assert -2 <= value.item() < first, "the critic finds a gap"


@pytest.mark.parametrize("shapes", [((4, 3), (4, 5)), ((5, 2, 2, 2), (5, 3)), ((1, 3), (1, 2))], ids=str)
def test_wcord_local_is_the_cost_of_the_sinkhorn_plan(
    parity: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    mine, theirs = pair(parity, shapes)
    loss = parity.built(make_loss("wcord_local", **TAPS, epsilon=0.3, iterations=40), mine, theirs)

    def expected() -> Tensor:
        layer = loss.projectors[0]
        s, t = embedded(layer, mine.taps["s"]), [unit(v) for v in theirs.taps["t"]]
        cost = torch.stack([torch.stack([1 - a @ b for b in t]) for a in s])
        kernel = (-cost.detach() / 0.3).exp()  # plain scaling, as Cuturi writes it
        v = torch.ones(len(t), dtype=torch.float64)
        for _ in range(40):
            u = 1 / len(s) / (kernel @ v)
            v = 1 / len(t) / (kernel.T @ u)
        return (u[:, None] * kernel * v * cost).sum()

    parity.assert_agree(lambda: loss(mine, theirs, parity.batch_of([0] * shapes[0][0])), expected, [mine.taps["s"]])


def test_the_plan_has_uniform_margins_and_finds_the_cheapest_matching(parity: Any) -> None:
    order = torch.tensor([2, 0, 3, 1])
    cost = 1 - torch.eye(4, dtype=torch.float64)[order] + 0.1 * parity.normal(4, 4).abs()
    plan = sinkhorn_plan(cost, epsilon=0.01, iterations=100)
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-3, atol=0)
    assert torch.equal(plan.argmax(1), order)


def test_a_tiny_epsilon_underflows_nothing() -> None:
    plan = sinkhorn_plan(torch.tensor([[0.0, 2.0], [2.0, 1.0]]), epsilon=1e-4, iterations=20)
    assert plan.isfinite().all()
    assert plan.sum().item() == pytest.approx(1, abs=1e-3)


def test_wcord_local_gradient_is_that_of_the_entropic_distance(parity: Any) -> None:
    """The envelope theorem: d/dC of min <P, C> - epsilon H(P) is the plan; by central differences."""
    cost = parity.normal(3, 3).abs()

    def distance(c: Tensor) -> float:
        p = sinkhorn_plan(c, epsilon=0.2, iterations=500)
        return float((p * c).sum() + 0.2 * (p * p.log()).sum())

    bump = torch.zeros_like(cost)
    bump[1, 2] = 1e-5
    slope = (distance(cost + bump) - distance(cost - bump)) / 2e-5
    assert slope == pytest.approx(float(sinkhorn_plan(cost, epsilon=0.2, iterations=500)[1, 2]), rel=1e-5)


# ---------------------------------------------------------------------- edges


@pytest.mark.parametrize("name", ["crd", "wcord_local"])
def test_one_image_gives_a_finite_loss(parity: Any, name: str) -> None:
    mine, theirs = pair(parity, ((1, 3), (1, 4)))
    loss: Loss = parity.built(make_loss(name, **TAPS), mine, theirs)
    assert loss(mine, theirs, parity.batch_of([0])).isfinite()


@pytest.mark.parametrize("name", ["wcord_global", "srrl"])
def test_a_method_that_needs_two_images_says_so(parity: Any, name: str) -> None:
    mine, theirs = pair(parity, ((1, 3), (1, 4)))
    loss = make_loss(name, **TAPS)
    loss.prepare(Context(torch.zeros(2), 0, None, nn.Linear(4, 3)))
    with pytest.raises(InputError, match=f"{name} needs a batch of at least 2 images"):
        loss.build(mine, theirs)


def test_infonce_of_unrelated_features_starts_near_log_of_the_keys(parity: Any) -> None:
    """Chance level, by which a dead tap shows: -log(1 / keys) at a high temperature."""
    mine, theirs = pair(parity, ((16, 8), (16, 8)))
    loss = parity.built(make_loss("crd", **TAPS, temperature=100.0, other_classes=False), mine, theirs)
    assert loss(mine, theirs, parity.batch_of([0] * 16)).item() == pytest.approx(math.log(16), rel=1e-2)
