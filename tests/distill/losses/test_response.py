"""Losses between logits equal their papers' formulas, written out sum by sum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgekd.distill import Loss, Signals
from edgekd.distill.losses import divergence, make_loss
from edgekd.distill.losses.ctkd import CTKD
from edgekd.errors import InputError

SHAPES = [(4, 5), (1, 3), (7, 2), (3, 11)]
RESPONSE: dict[str, dict[str, Any]] = {
    "soft_target_kl": {},
    "dkd": {"warmup": 0.0},
    "nkd": {},
    "dist": {},
    "logit_standardisation": {"inner": {"method": "soft_target_kl", "temperature": 2.0}},
    "ctkd": {},
    "mlkd": {},
    "wsld": {},
    "reverse_kl": {},
    "symmetric_kl": {},
    "jensen_shannon": {},
    "hard_label": {},
}


def probabilities(z: Tensor, t: float | Tensor = 1.0) -> list[Tensor]:
    """Softmax of one image, exponential by exponential."""
    e = [((v - z.max().detach()) / t).exp() for v in z]
    return [x / sum(e) for x in e]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return torch.stack([a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)]).sum()


def cross_entropy(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return torch.stack([-a * b.log() for a, b in zip(p, q, strict=True)]).sum()


def mean(per_image: Callable[[Tensor, Tensor, int], Tensor], s: Tensor, t: Tensor, labels: list[int]) -> Tensor:
    return torch.stack([per_image(a, b, y) for a, b, y in zip(s, t, labels, strict=True)]).mean()


def assert_parity(
    parity: Any,
    loss: Loss,
    shape: tuple[int, int],
    reference: Callable[[Tensor, Tensor, list[int]], Tensor],
    *,
    views: int = 1,
) -> None:
    s, t = parity.normal(*shape, seed=1, scale=2), parity.normal(*shape, seed=2, scale=2)
    labels = [i * 2 % shape[1] for i in range(shape[0])]
    loss = parity.built(loss, Signals(s), Signals(t))
    batch = parity.batch_of(labels, index=list(range(len(labels) // views)) * views)
    parity.assert_agree(lambda: loss(Signals(s), Signals(t), batch), lambda: reference(s, t, labels), [s])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_soft_targets_are_kl_at_a_temperature_times_its_square(parity: Any, shape: tuple[int, int]) -> None:
    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        return 9 * kl(probabilities(t, 3.0), probabilities(s, 3.0))

    assert_parity(parity, make_loss("soft_target_kl", temperature=3.0), shape, lambda s, t, y: mean(per_image, s, t, y))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_the_labels(parity: Any, shape: tuple[int, int], smoothing: float) -> None:
    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        truth = [smoothing / len(s) + (1 - smoothing) * (i == y) for i in range(len(s))]
        return cross_entropy(truth, probabilities(s))  # type: ignore[arg-type]

    loss = make_loss("cross_entropy", label_smoothing=smoothing)
    assert_parity(parity, loss, shape, lambda s, t, y: mean(per_image, s, t, y))


def test_cross_entropy_with_mixed_labels(parity: Any) -> None:
    s, targets = parity.normal(3, 4, seed=1), parity.normal(3, 4, seed=2).softmax(1)
    batch = dataclasses.replace(parity.batch_of([0, 1, 2]), targets=targets)
    rows = zip(s, targets, strict=True)
    expected = torch.stack([cross_entropy(list(t), probabilities(z)) for z, t in rows]).mean()
    torch.testing.assert_close(make_loss("cross_entropy")(Signals(s), Signals(s), batch), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dkd_is_the_sum_of_target_and_non_target_parts(parity: Any, shape: tuple[int, int]) -> None:
    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        q, p = probabilities(s, 3.0), probabilities(t, 3.0)
        two_q, two_p = [q[y], 1 - q[y]], [p[y], 1 - p[y]]
        rest_q = [v / (1 - q[y]) for i, v in enumerate(q) if i != y]
        rest_p = [v / (1 - p[y]) for i, v in enumerate(p) if i != y]
        rest = kl(rest_p, rest_q) if len(rest_p) > 1 else 0 * s.sum()
        return 9 * (0.7 * kl(two_p, two_q) + 5 * rest)

    loss = make_loss("dkd", alpha=0.7, beta=5.0, temperature=3.0, warmup=0.0)
    assert_parity(parity, loss, shape, lambda s, t, y: mean(per_image, s, t, y))


def test_dkd_with_alpha_1_and_the_teachers_own_beta_is_plain_kl(parity: Any) -> None:
    """Section 3.2: KL = TCKD + (1 - p_label) NCKD, so for one image beta = 1 - p_label gives KL back."""
    s, t = parity.normal(1, 6, seed=1), parity.normal(1, 6, seed=2)
    beta = 1 - float(probabilities(t[0])[4])
    dkd = make_loss("dkd", beta=beta, temperature=1.0, warmup=0.0)
    plain = make_loss("soft_target_kl", temperature=1.0)
    batch = parity.batch_of([4])
    torch.testing.assert_close(dkd(Signals(s), Signals(t), batch), plain(Signals(s), Signals(t), batch))


def test_dkd_warms_up_linearly_over_its_share_of_the_stage(parity: Any) -> None:
    s, t = Signals(parity.normal(3, 4, seed=1)), Signals(parity.normal(3, 4, seed=2))
    loss = make_loss("dkd", warmup=0.2)
    at = [float(loss(s, t, parity.batch_of([0, 1, 2], progress=p))) for p in (0.0, 0.1, 0.2, 0.9)]
    assert at[0] == 0
    assert at[1] == pytest.approx(at[3] / 2)
    assert at[2] == at[3] > 0


@pytest.mark.parametrize("shape", [(4, 5), (1, 3), (3, 11)], ids=str)
def test_nkd_normalises_the_non_target_classes(parity: Any, shape: tuple[int, int]) -> None:
    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        q, p = probabilities(s), probabilities(t)
        others = [i for i in range(len(s)) if i != y]
        n_q, n_p = probabilities(s[others], 2.0), probabilities(t[others], 2.0)
        return -p[y] * q[y].log() + 1.5 * 4 * cross_entropy(n_p, n_q)

    assert_parity(parity, make_loss("nkd", temperature=2.0), shape, lambda s, t, y: mean(per_image, s, t, y))


@pytest.mark.parametrize("shape", [(4, 5), (7, 3), (3, 11)], ids=str)
def test_dist_is_one_minus_pearson_over_rows_and_columns(parity: Any, shape: tuple[int, int]) -> None:
    def pearson(a: list[Tensor], b: list[Tensor]) -> Tensor:
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        spread = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
        return covariance / spread**0.5

    def reference(s: Tensor, t: Tensor, labels: list[int]) -> Tensor:
        q, p = [probabilities(z, 4.0) for z in s], [probabilities(z, 4.0) for z in t]
        rows = [1 - pearson(a, b) for a, b in zip(q, p, strict=True)]
        columns = [1 - pearson(list(a), list(b)) for a, b in zip(zip(*q), zip(*p), strict=True)]  # noqa: B905
        return 16 * (2 * sum(rows) / len(rows) + 3 * sum(columns) / len(columns))

    assert_parity(parity, make_loss("dist", beta=2.0, gamma=3.0, temperature=4.0), shape, reference)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logit_standardisation_takes_z_scores_of_both(parity: Any, shape: tuple[int, int]) -> None:
    def z_scores(z: Tensor) -> Tensor:
        centre = sum(z) / len(z)
        deviation = (sum((v - centre) ** 2 for v in z) / (len(z) - 1)) ** 0.5
        return torch.stack([(v - centre) / (deviation + 1e-7) for v in z])

    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        return 4 * kl(probabilities(z_scores(t), 2.0), probabilities(z_scores(s), 2.0))

    loss = make_loss("logit_standardisation", **RESPONSE["logit_standardisation"])
    assert_parity(parity, loss, shape, lambda s, t, y: mean(per_image, s, t, y))


def test_logit_standardisation_does_not_see_scale_and_shift(parity: Any) -> None:
    loss = make_loss("logit_standardisation", inner={"method": "dist"})
    s, t, batch = parity.normal(4, 6, seed=1), parity.normal(4, 6, seed=2), parity.batch_of([0, 1, 2, 3])
    plain = loss(Signals(s), Signals(t), batch)
    torch.testing.assert_close(loss(Signals(7 * s + 3), Signals(0.2 * t - 1), batch), plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ctkd_is_kl_at_its_learned_temperature(parity: Any, shape: tuple[int, int]) -> None:
    loss = CTKD()
    temperature = 1 + 20 / (1 + math.exp(-(1 + float(parity.normal(seed=100, scale=0.1)))))
    assert_parity(
        parity,
        loss,
        shape,
        lambda s, t, y: mean(
            lambda a, b, _: temperature**2 * kl(probabilities(b, temperature), probabilities(a, temperature)), s, t, y
        ),
    )


@pytest.mark.parametrize(("progress", "size"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.7, 1.0)])
def test_ctkd_reverses_the_gradient_of_its_temperature_along_a_cosine(
    parity: Any, progress: float, size: float
) -> None:
    s, t = Signals(parity.normal(4, 6, seed=1)), Signals(parity.normal(4, 6, seed=2))
    loss = CTKD(ramp=0.2).double()
    loss(s, t, parity.batch_of([0] * 4, progress=progress)).backward()
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    temperature = 1 + 20 * w.sigmoid()
    (temperature**2 * (kl_rows(s.logits, t.logits, temperature))).backward()
    torch.testing.assert_close(loss.w.grad, -size * w.grad, atol=1e-12, rtol=1e-9)


def kl_rows(s: Tensor, t: Tensor, temperature: Tensor) -> Tensor:
    return torch.stack(
        [kl(probabilities(b, temperature), probabilities(a, temperature)) for a, b in zip(s, t, strict=True)]
    ).mean()


def levels(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """MLKD's three levels at one temperature, entry by entry."""
    q, p = [probabilities(z, temperature) for z in s], [probabilities(z, temperature) for z in t]
    size, classes = s.shape

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return sum(x * y for x, y in zip(a, b, strict=True))

    images = sum((dot(q[i], q[j]) - dot(p[i], p[j])) ** 2 for i in range(size) for j in range(size)) / size
    q_t, p_t = [list(c) for c in zip(*q, strict=True)], [list(c) for c in zip(*p, strict=True)]
    alike = sum((dot(q_t[i], q_t[j]) - dot(p_t[i], p_t[j])) ** 2 for i in range(classes) for j in range(classes))
    plain = sum(kl(b, a) for a, b in zip(q, p, strict=True)) / size * temperature**2
    return plain, images, alike / classes


@pytest.mark.parametrize("shape", [(4, 5), (6, 3)], ids=str)
@pytest.mark.parametrize("views", [1, 2])
def test_mlkd_is_the_papers_three_levels_at_each_temperature(parity: Any, shape: tuple[int, int], views: int) -> None:
    def reference(s: Tensor, t: Tensor, labels: list[int]) -> Tensor:
        parts = zip(s.split(len(s) // views), t.split(len(s) // views), strict=True)
        return sum(sum(levels(a, b, temperature)) for a, b in parts for temperature in (2.0, 5.0))

    assert_parity(parity, make_loss("mlkd", temperatures=[2.0, 5.0], views=views), shape, reference, views=views)


def test_mlkd_official_repeats_the_published_code(parity: Any) -> None:
    """Masks scale whole terms; the strong view has KL at 3, 4 and 5 only, and the weak one's KL at 2 and 6 again."""

    def reference(s: Tensor, t: Tensor, labels: list[int]) -> Tensor:
        (weak, strong), (t_weak, t_strong) = s.split(5), t.split(5)
        p = torch.stack([torch.stack(probabilities(z)) for z in t_weak])
        confidence, by_class = p.max(1).values, p.sum(0)
        unsure = float((confidence <= confidence.sort().values[2]).double().mean())  # the median of 5
        median = (by_class.sort().values[1] + by_class.sort().values[2]) / 2  # of 4 classes
        rare = float((by_class <= median).double().mean())
        total = 0
        for temperature in (2.0, 3.0, 4.0, 5.0, 6.0):
            plain, images, classes = levels(weak, t_weak, temperature)
            total = total + unsure * plain + unsure * images + rare * classes
            total = total + (plain if temperature in (2.0, 6.0) else levels(strong, t_strong, temperature)[0])
        return total

    assert_parity(parity, make_loss("mlkd", views=2, compat="official"), (10, 4), reference, views=2)


def test_mlkd_of_two_views_refuses_a_batch_of_other_images(parity: Any) -> None:
    s = Signals(parity.normal(4, 3))
    with pytest.raises(InputError, match="does not hold two views of each image; give views=1"):
        make_loss("mlkd", views=2)(s, s, parity.batch_of([0, 1, 2, 0]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wsld_weighs_images_by_how_far_the_student_is_behind(parity: Any, shape: tuple[int, int]) -> None:
    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        behind = -probabilities(s.detach())[y].log() / (-probabilities(t)[y].log() + 1e-7)
        return 16 * (1 - math.exp(-behind)) * cross_entropy(probabilities(t, 4.0), probabilities(s, 4.0))

    assert_parity(parity, make_loss("wsld"), shape, lambda s, t, y: mean(per_image, s, t, y))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reverse_and_symmetric_kl_swap_the_two_models(parity: Any, shape: tuple[int, int]) -> None:
    def reverse(s: Tensor, t: Tensor, y: int) -> Tensor:
        return 4 * kl(probabilities(s, 2.0), probabilities(t, 2.0))

    def both(s: Tensor, t: Tensor, y: int) -> Tensor:
        return (reverse(s, t, y) + reverse(t, s, y)) / 2

    assert_parity(parity, make_loss("reverse_kl", temperature=2.0), shape, lambda s, t, y: mean(reverse, s, t, y))
    assert_parity(parity, make_loss("symmetric_kl", temperature=2.0), shape, lambda s, t, y: mean(both, s, t, y))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_generalised_jensen_shannon_runs_from_kl_to_reverse_kl(
    parity: Any, shape: tuple[int, int], beta: float
) -> None:
    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        p, q = probabilities(t, 3.0), probabilities(s, 3.0)
        if beta in (0, 1):
            return 9 * (kl(p, q) if beta == 0 else kl(q, p))
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        return 9 * (beta * kl(p, m) + (1 - beta) * kl(q, m))

    loss = make_loss("jensen_shannon", beta=beta, temperature=3.0)
    assert_parity(parity, loss, shape, lambda s, t, y: mean(per_image, s, t, y))


def test_jensen_shannon_over_beta_tends_to_kl(parity: Any) -> None:
    s, t, batch = Signals(parity.normal(3, 4, seed=1)), Signals(parity.normal(3, 4, seed=2)), parity.batch_of([0] * 3)
    near = make_loss("jensen_shannon", beta=1e-6)(s, t, batch) / 1e-6
    torch.testing.assert_close(near, make_loss("jensen_shannon", beta=0.0)(s, t, batch), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hard_label_is_cross_entropy_with_the_teachers_choice(parity: Any, shape: tuple[int, int]) -> None:
    def per_image(s: Tensor, t: Tensor, y: int) -> Tensor:
        return -probabilities(s)[max(range(len(t)), key=lambda i: float(t[i]))].log()

    assert_parity(parity, make_loss("hard_label"), shape, lambda s, t, y: mean(per_image, s, t, y))


def test_hard_label_may_read_the_head_of_a_distillation_token(parity: Any) -> None:
    loss = make_loss("hard_label", student_tap="head_dist")
    head = parity.normal(2, 4, seed=3)
    mine, theirs = Signals(parity.normal(2, 4), {"head_dist": head}), Signals(parity.normal(2, 4, seed=2))
    loss.build(mine, theirs)
    plain = make_loss("hard_label")(Signals(head), theirs, parity.batch_of([0, 0]))
    assert loss(mine, theirs, parity.batch_of([0, 0])) == plain
    assert loss.needs().student == ("head_dist",)


def test_a_class_the_teacher_masks_is_no_broken_teacher(parity: Any) -> None:
    masked = Signals(torch.tensor([[1.0, 2.0, -math.inf]]))
    assert make_loss("hard_label")(Signals(torch.zeros(1, 3)), masked, parity.batch_of([0])).isfinite()


# ---------------------------------------------------------------------- edges, for every one of them


@pytest.mark.parametrize("name", [n for n in RESPONSE if n not in ("nkd", "wsld", "hard_label")])
def test_equal_logits_cost_nothing_and_pull_nowhere(parity: Any, name: str) -> None:
    s = parity.normal(5, 6, seed=4).requires_grad_()
    value = make_loss(name, **RESPONSE[name])(Signals(s), Signals(s.detach()), parity.batch_of([0, 1, 2, 3, 4]))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert s.grad.abs().max() < 1e-7


def test_wsld_a_cross_entropy_pulls_nowhere_at_the_teachers_own_logits(parity: Any) -> None:
    s = parity.normal(5, 6, seed=4).requires_grad_()
    value = make_loss("wsld")(Signals(s), Signals(s.detach()), parity.batch_of([0, 1, 2, 3, 4]))
    value.backward()
    assert value > 0
    assert s.grad.abs().max() < 1e-7


def test_nkd_pulls_the_label_alone_at_the_teachers_own_logits(parity: Any) -> None:
    s = parity.normal(2, 4, seed=4).requires_grad_()
    make_loss("nkd")(Signals(s), Signals(s.detach()), parity.batch_of([0, 3])).backward()
    p, label = s.detach().softmax(1), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(s.grad, (p * label).sum(1, keepdim=True) * (p - label) / 2)


@pytest.mark.parametrize("name", RESPONSE)
@pytest.mark.parametrize(("size", "classes"), [(1, 1), (3, 1), (1, 4), (2, 2)])
def test_one_image_and_one_class_give_finite_values_and_gradients(
    parity: Any, name: str, size: int, classes: int
) -> None:
    s = parity.normal(size, classes, seed=5).requires_grad_()
    loss = make_loss(name, **RESPONSE[name]).double()
    loss.build(Signals(s), Signals(s))
    value = loss(Signals(s), Signals(parity.normal(size, classes, seed=6)), parity.batch_of([0] * size))
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()
    if classes == 1 and name != "dist":
        assert value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", RESPONSE)
def test_a_shift_of_either_models_logits_changes_nothing(parity: Any, name: str) -> None:
    s, t, batch = parity.normal(4, 6, seed=1), parity.normal(4, 6, seed=2), parity.batch_of([0, 1, 2, 5])
    shift = parity.normal(4, 1, seed=3, scale=20)
    loss = make_loss(name, **RESPONSE[name]).double()
    plain = loss(Signals(s), Signals(t), batch)
    assert plain.item() > 0
    torch.testing.assert_close(loss(Signals(s + shift), Signals(t - 2 * shift), batch), plain)


@pytest.mark.parametrize("name", RESPONSE)
@pytest.mark.parametrize("great", [3e4, 1e18])  # float16 holds the first, only bfloat16 the second
def test_extreme_bfloat16_logits_overflow_nothing(parity: Any, name: str, great: float) -> None:
    rows = [[great, -great, 0.0, 1.0], [-great, great, great, 0.0], [0.0, 0.0, 0.0, 0.0]]
    extreme = torch.tensor(rows, dtype=torch.bfloat16)
    loss = make_loss(name, **RESPONSE[name])
    for mine, theirs in ((extreme, extreme.roll(1, 1)), (extreme.roll(1, 0), extreme), (extreme, extreme)):
        s = mine.float().requires_grad_()  # as the loop hands them over
        value = loss(Signals(s), Signals(theirs.float()), parity.batch_of([0, 1, 2]))
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()


@pytest.mark.parametrize("name", ["jensen_shannon", "hard_label"])
def test_the_greatest_bfloat16_logits_have_a_finite_gradient(parity: Any, name: str) -> None:
    """The probability of a class underflows to 0 and its logarithm overflows to -inf: it adds nothing, and no nan."""
    great = torch.finfo(torch.bfloat16).max
    s = torch.tensor([[great, -great]]).requires_grad_()
    value = make_loss(name)(Signals(s), Signals(torch.tensor([[great, 0.0]])), parity.batch_of([0]))
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()


def test_kl_has_a_gradient_where_both_say_never() -> None:
    log_p = torch.tensor([0.0, -math.inf], requires_grad=True)
    log_q = torch.tensor([0.0, -math.inf], requires_grad=True)
    (divergence.kl(log_p, log_q) + divergence.entropy(log_p)).backward()
    assert log_p.grad.isfinite().all()
    assert log_q.grad.isfinite().all()


@pytest.mark.parametrize(
    "name", ["soft_target_kl", "dkd", "reverse_kl", "symmetric_kl", "jensen_shannon", "nkd", "dist"]
)
def test_at_a_great_temperature_the_value_settles(parity: Any, name: str) -> None:
    """T^2 keeps it of one size: for KL, half the mean squared difference of centred logits (Hinton, section 2.1)."""
    s, t, batch = parity.normal(3, 5, seed=1), parity.normal(3, 5, seed=2), parity.batch_of([0, 1, 2])
    options = dict(RESPONSE[name])
    entropy = 1.5 * math.log(4) if name == "nkd" else 0.0  # the part of a cross-entropy that grows as T^2
    at = []
    for temperature in (1e3, 2e3):
        loss = make_loss(name, **{**options, "temperature": temperature})
        at.append(float(loss(Signals(s), Signals(t), batch)) - entropy * temperature**2)
    if name == "dist":  # correlations, not differences: they settle, and T^2 multiplies them
        at[1] /= 4
    assert at[1] == pytest.approx(at[0], rel=5e-3)
    if name in ("soft_target_kl", "reverse_kl", "symmetric_kl"):
        centred = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
        assert at[1] == pytest.approx(float(centred.square().mean(1).mean()) / 2, rel=5e-3)


@pytest.mark.parametrize("name", RESPONSE)
def test_other_classes_are_refused_in_one_line(parity: Any, name: str) -> None:
    with pytest.raises(InputError, match="the student has 10 classes, the teacher 100; use a teacher of the data's"):
        make_loss(name, **RESPONSE[name]).build(Signals(torch.zeros(2, 10)), Signals(torch.zeros(2, 100)))
