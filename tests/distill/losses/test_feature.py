"""Losses between features equal their papers' formulas, written out position by position."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill import Loss
from edgekd.distill.losses import ReusedClassifier, make_loss
from edgekd.distill.losses.ofd import negative_mean
from edgekd.distill.terms import Context
from edgekd.errors import InputError

MAPS = [
    ((3, 4, 2, 2), (3, 5, 2, 2)),
    ((2, 3, 4, 4), (2, 6, 2, 2)),
    ((2, 3, 3, 3), (2, 2, 5, 5)),
    ((1, 2, 1, 1), (1, 3, 2, 2)),
]
Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def pooled(f: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling, window by window."""
    rows = [(i * f.shape[2] // height, -(-(i + 1) * f.shape[2] // height)) for i in range(height)]
    columns = [(i * f.shape[3] // width, -(-(i + 1) * f.shape[3] // width)) for i in range(width)]
    cells = [[f[:, :, a:b, c:d].mean((2, 3)) for c, d in columns] for a, b in rows]
    return torch.stack([torch.stack(row, 2) for row in cells], 2)


def on_one_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return pooled(a, height, width), pooled(b, height, width)


def one_by_one(weight: Tensor, f: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution as a sum over channels."""
    out = torch.einsum("oc,bchw->bohw", weight.flatten(1), f)
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def batch_norm(layer: nn.BatchNorm2d, f: Tensor) -> Tensor:
    """Training mode: by the batch's own mean and (biased) variance."""
    dims = [d for d in range(f.ndim) if d != 1]
    view = [1, -1] + [1] * (f.ndim - 2)
    mean = f.mean(dims, keepdim=True)
    variance = ((f - mean) ** 2).mean(dims, keepdim=True)
    return (f - mean) / (variance + layer.eps) ** 0.5 * layer.weight.view(view) + layer.bias.view(view)


def assert_parity(
    parity: Any,
    loss: Loss,
    shapes: Shapes,
    reference: Callable[[Loss, Tensor, Tensor], Tensor],
    *,
    positive: bool = False,
    tolerance: float = 1e-6,
) -> Loss:
    s, t = (parity.normal(*shape, seed=i, scale=1.5) for i, shape in enumerate(shapes, 1))
    if positive:
        s, t = s.abs(), t.abs()
    mine, theirs = parity.signals({"s": s}), parity.signals({"t": t})
    loss = parity.built(loss, mine, theirs)
    batch = parity.batch_of([0] * len(s))
    parity.assert_agree(lambda: loss(mine, theirs, batch), lambda: reference(loss, s, t), [s], tolerance)
    return loss


@pytest.mark.parametrize("shapes", [*MAPS, ((3, 4), (3, 6)), ((2, 9, 4), (2, 9, 6))], ids=str)
def test_hint_is_the_mean_squared_error_behind_a_projector(parity: Any, shapes: Shapes) -> None:
    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        layer = loss.projector
        if s.ndim == 4:
            a, b = on_one_grid(s, t)
            return ((one_by_one(layer.weight, a, layer.bias) - b) ** 2).sum() / b.numel()
        return ((torch.einsum("...c,oc->...o", s, layer.weight) + layer.bias - t) ** 2).sum() / t.numel()

    assert_parity(parity, make_loss("hint", student_tap="s", teacher_tap="t"), shapes, reference)


@pytest.mark.parametrize("shapes", MAPS[:3], ids=str)
def test_attention_transfer_compares_unit_maps_of_squared_activity(parity: Any, shapes: Shapes) -> None:
    def reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        total = 0
        for a, b in zip(s, t, strict=True):
            q_s = [sum(c**2 for c in a[:, i, j]) / len(a) for i in range(a.shape[1]) for j in range(a.shape[2])]
            q_t = [sum(c**2 for c in b[:, i, j]) / len(b) for i in range(a.shape[1]) for j in range(a.shape[2])]
            norm_s, norm_t = sum(q**2 for q in q_s) ** 0.5, sum(q**2 for q in q_t) ** 0.5
            total = total + sum((x / norm_s - y / norm_t) ** 2 for x, y in zip(q_s, q_t, strict=True)) / len(q_s)
        return total / len(s)

    assert_parity(parity, make_loss("attention_transfer", student_tap="s", teacher_tap="t"), shapes, reference)


@pytest.mark.parametrize("shapes", MAPS[:3], ids=str)
def test_nst_is_the_squared_mmd_of_channels(parity: Any, shapes: Shapes) -> None:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        pairs = [(x / (x @ x) ** 0.5) @ (y / (y @ y) ** 0.5) for x in a.flatten(1) for y in b.flatten(1)]
        return sum(v**2 for v in pairs) / len(pairs)

    def reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        return sum(kernel(b, b) + kernel(a, a) - 2 * kernel(a, b) for a, b in zip(s, t, strict=True)) / len(s)

    assert_parity(parity, make_loss("nst", student_tap="s", teacher_tap="t"), shapes, reference)


def test_fsp_compares_the_flow_between_neighbouring_layers(parity: Any) -> None:
    s = [parity.normal(2, c, n, n, seed=i) for i, (c, n) in enumerate([(2, 4), (3, 4), (4, 2)])]
    t = [parity.normal(2, c, n, n, seed=9 + i) for i, (c, n) in enumerate([(2, 8), (3, 4), (4, 4)])]
    mine, theirs = (parity.signals(dict(zip("abc", f, strict=True))) for f in (s, t))
    loss = parity.built(make_loss("fsp", student_tap=["a", "b", "c"], teacher_tap=["a", "b", "c"]), mine, theirs)

    def flow(a: Tensor, b: Tensor) -> Tensor:
        a, b = on_one_grid(a, b)
        cells = itertools.product(range(a.shape[2]), range(a.shape[3]))
        products = [a[:, :, None, i, j] * b[:, None, :, i, j] for i, j in cells]
        return sum(products) / len(products)

    def expected() -> Tensor:
        parts = [(flow(s[i], s[i + 1]) - flow(t[i], t[i + 1])) ** 2 for i in (0, 1)]
        return sum(p.sum() / p.numel() for p in parts)

    parity.assert_agree(lambda: loss(mine, theirs, parity.batch_of([0, 0])), expected, s)


@pytest.mark.parametrize("shapes", MAPS[:3], ids=str)
def test_vid_is_a_gaussian_likelihood_with_a_variance_per_channel(parity: Any, shapes: Shapes) -> None:
    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        for layer in (loss.regressors[0][0], loss.regressors[0][2], loss.regressors[0][4]):
            s = one_by_one(layer.weight, s.clamp_min(0) if layer is not loss.regressors[0][0] else s)
        total = 0
        for c in range(t.shape[1]):
            variance = (1 + loss.scales[0].flatten()[c].exp()).log() + 1e-5
            total = total + (0.5 * ((s[:, c] - t[:, c]) ** 2 / variance + variance.log())).sum()
        return total / t.numel()

    assert_parity(parity, make_loss("vid", student_tap="s", teacher_tap="t"), shapes, reference)


def test_vid_starts_at_its_variance_and_learns_the_true_one(parity: Any) -> None:
    t = parity.normal(64, 1, 4, 4, seed=1, scale=3)
    mine, theirs = parity.signals({"s": torch.zeros(64, 1, 4, 4).double()}), parity.signals({"t": t})
    loss = make_loss("vid", student_tap="s", teacher_tap="t").double()
    loss.build(mine, theirs)
    loss.double()
    assert functional.softplus(loss.scales[0]).item() == pytest.approx(5.0)
    optimiser = torch.optim.Adam(loss.scales.parameters(), lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        loss(mine, theirs, parity.batch_of([0] * 64)).backward()
        optimiser.step()
    assert functional.softplus(loss.scales[0]).item() == pytest.approx(t.square().mean().item(), rel=0.02)


@pytest.mark.parametrize("shapes", [((3, 4, 4, 4), (3, 6, 4, 4)), ((2, 3, 4, 4), (2, 6, 2, 2))], ids=str)
def test_factor_transfer_is_the_l1_distance_of_unit_codes_and_a_reconstruction(parity: Any, shapes: Shapes) -> None:
    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        code = t
        for layer in loss.encoder[::2]:
            code = functional.leaky_relu(functional.conv2d(code, layer.weight, layer.bias, padding=1), 0.1)
        made = code
        for layer in loss.decoder[::2]:
            # a transposed convolution is a convolution with the kernel turned over
            weight = layer.weight.flip(2, 3).transpose(0, 1)
            made = functional.leaky_relu(functional.conv2d(made, weight, layer.bias, padding=1), 0.1)
        mine = s
        for layer, norm in zip(loss.translator[::3], loss.translator[1::3], strict=True):
            convolved = functional.conv2d(mine, layer.weight, layer.bias, padding=1)
            mine = functional.leaky_relu(batch_norm(norm, convolved), 0.1)
        a, b = code.detach().flatten(1), mine.flatten(1)
        a, b = a / (a**2).sum(1, keepdim=True) ** 0.5, b / (b**2).sum(1, keepdim=True) ** 0.5
        return 2.0 * ((made - t) ** 2).sum() / t.numel() + (a - b).abs().sum() / a.numel()

    loss = make_loss("factor_transfer", student_tap="s", teacher_tap="t", reconstruction=2.0)
    assert_parity(parity, loss, shapes, reference)


def test_factor_transfer_first_trains_only_the_paraphraser_and_never_by_the_student(parity: Any) -> None:
    s, t = parity.normal(2, 3, 2, 2, seed=1).requires_grad_(), parity.normal(2, 4, 2, 2, seed=2)
    mine, theirs = parity.signals({"s": s}), parity.signals({"t": t})
    loss = parity.built(make_loss("factor_transfer", student_tap="s", teacher_tap="t", first_stage=0.5), mine, theirs)
    loss(mine, theirs, parity.batch_of([0, 0], progress=0.4)).backward()
    assert s.grad.abs().max() == 0
    paraphraser = [p.grad.clone() for p in loss.encoder.parameters()]
    loss.zero_grad()
    loss(mine, theirs, parity.batch_of([0, 0], progress=0.5)).backward()
    assert s.grad.abs().max() > 0
    for before, parameter in zip(paraphraser, loss.encoder.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before)


@pytest.mark.parametrize("shapes", MAPS[:3], ids=str)
def test_activation_boundaries_are_a_hinge_on_each_side(parity: Any, shapes: Shapes) -> None:
    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        convolution, norm = loss.connectors[0]
        s = batch_norm(norm, one_by_one(convolution.weight, s))
        off = (s + 1.5) ** 2 * ((s > -1.5) & (t <= 0))
        on = (s - 1.5) ** 2 * ((s <= 1.5) & (t > 0))
        return 0.003 * (off + on).sum() / len(s)

    loss = make_loss("activation_boundaries", student_tap="s", teacher_tap="t", margin=1.5)
    assert_parity(parity, loss, shapes, reference)


class Normed(nn.Module):
    """A teacher whose layers end in a batch norm of known weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        with torch.no_grad():
            self.layer[1].weight.copy_(torch.linspace(-1.5, 2.0, channels))
            self.layer[1].bias.copy_(torch.linspace(1.0, -0.5, channels))


@pytest.mark.parametrize("shapes", MAPS[:3], ids=str)
def test_ofd_is_a_partial_distance_above_the_margin(parity: Any, shapes: Shapes) -> None:
    channels = shapes[1][1]
    teacher = Normed(channels)
    loss = make_loss("ofd", student_tap="s", teacher_tap="t", teacher_norms="layer")
    loss.prepare(Context(torch.zeros(4), 0, None, teacher))
    margin = negative_mean(teacher.layer[1].weight, teacher.layer[1].bias).double().view(1, -1, 1, 1)

    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        convolution, norm = loss.connectors[0]
        s = batch_norm(norm, one_by_one(convolution.weight, s))
        m = margin.expand_as(t)
        out = (s - m) ** 2 * ((s > m) & (t <= m)) + (s - t) ** 2 * ((s > t) & (t > m) & (t <= 0))
        return (out + (s - t) ** 2 * (t > 0)).sum() / len(s)

    assert_parity(parity, loss, shapes, reference)


def test_ofds_margin_is_the_mean_of_the_negative_values_of_a_normal(parity: Any) -> None:
    weight, bias = torch.tensor([1.0, -2.0, 0.5, 0.1]), torch.tensor([0.0, 0.7, -1.0, 1.0])
    found = negative_mean(weight, bias)
    for i in range(3):
        x = parity.normal(400_000, seed=i) * float(weight[i].abs()) + float(bias[i])
        assert found[i].item() == pytest.approx(x[x < 0].mean().item(), rel=0.01)
    assert found[3].item() == pytest.approx(-0.3), "a channel that is hardly ever negative"


def test_ofd_names_a_teacher_without_batch_norm_and_one_of_other_channels(parity: Any) -> None:
    loss = make_loss("ofd", student_tap="s", teacher_tap="0")
    with pytest.raises(InputError, match="ofd: the teacher has no batch norm in '0'; name it with teacher_norms"):
        loss.prepare(Context(torch.zeros(4), 0, None, nn.Sequential(nn.Conv2d(1, 2, 1))))
    loss = make_loss("ofd", student_tap="s", teacher_tap="layer")
    loss.prepare(Context(torch.zeros(4), 0, None, Normed(3)))
    signals = parity.signals({"s": torch.zeros(2, 4, 2, 2), "layer": torch.zeros(2, 4, 2, 2)})
    with pytest.raises(InputError, match="batch norm 'layer' is not of the 4 channels"):
        loss.build(signals, signals)


def test_review_kd_fuses_from_deep_to_shallow(parity: Any) -> None:
    s = [parity.normal(*shape, seed=i) for i, shape in enumerate([(2, 2, 8, 8), (2, 3, 4, 4), (2, 5)])]
    t = [parity.normal(*shape, seed=9 + i) for i, shape in enumerate([(2, 3, 8, 8), (2, 4, 8, 8), (2, 6)])]
    mine, theirs = (parity.signals(dict(zip("abc", f, strict=True))) for f in (s, t))
    loss = parity.built(
        make_loss("review_kd", student_tap=list("abc"), teacher_tap=list("abc"), warmup=0.0), mine, theirs
    )

    def nearest(f: Tensor, size: int) -> Tensor:
        rows = [i * f.shape[2] // size for i in range(size)]
        return f[:, :, rows][:, :, :, rows]

    def hcl(a: Tensor, b: Tensor) -> Tensor:
        sizes = [a.shape[2], *(n for n in (4, 2, 1) if n < a.shape[2])]
        errors = [((pooled(a, n, n) - pooled(b, n, n)) ** 2).sum() / pooled(b, n, n).numel() for n in sizes]
        return sum(e / 2**i for i, e in enumerate(errors)) / sum(1 / 2**i for i in range(len(errors)))

    def expected() -> Tensor:
        maps = [s[0], s[1], s[2].view(2, 5, 1, 1)]
        targets = [t[0], t[1], t[2].view(2, 6, 1, 1)]
        handed_on, total = None, 0
        for i in (2, 1, 0):
            fusion = loss.fusions[i]
            x = batch_norm(fusion.reduce[1], one_by_one(fusion.reduce[0].weight, maps[i]))
            if handed_on is not None:
                y = nearest(handed_on, x.shape[2])
                gate = fusion.attention[0]
                z = one_by_one(gate.weight, torch.cat([x, y], 1), gate.bias)
                z = 1 / (1 + (-z).exp())
                x = torch.stack([x[b] * z[b, 0] + y[b] * z[b, 1] for b in range(len(x))])
            handed_on = nearest(x, targets[i].shape[2])
            out = functional.conv2d(handed_on, fusion.expand[0].weight, padding=1)
            total = total + hcl(batch_norm(fusion.expand[1], out), targets[i])
        return total

    parity.assert_agree(lambda: loss(mine, theirs, parity.batch_of([0, 0])), expected, s, 1e-5)


@pytest.mark.parametrize("shapes", [((3, 4, 2, 2), (3, 4, 2, 2)), ((2, 3, 4, 4), (2, 3, 2, 2))], ids=str)
def test_simkd_is_the_plain_mean_squared_error(parity: Any, shapes: Shapes) -> None:
    def reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        return ((s - t) ** 2).sum() / t.numel()

    assert_parity(parity, make_loss("simkd", student_tap="s", teacher_tap="t"), shapes, reference)


class Small(nn.Module):
    def __init__(self, width: int, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def test_simkds_student_ends_in_the_teachers_frozen_classifier() -> None:
    torch.manual_seed(0)
    student, teacher, images = Small(4), Small(6), torch.randn(5, 1, 8, 8)
    reused = ReusedClassifier(student, teacher, "features", images).eval()
    feature = reused.projector(student.features(images))
    torch.testing.assert_close(reused(images), teacher.fc(feature.mean((2, 3))))
    assert feature.shape == (5, 6, 6, 6)
    reused.train()(images).sum().backward()
    trained = {name for name, p in reused.named_parameters() if p.grad is not None}
    assert {"student.features.0.weight", "projector.0.weight"} <= trained
    assert not any(name.startswith(("classifier", "student.fc")) for name in trained)
    assert teacher.fc.weight.requires_grad, "the teacher's own classifier is left alone"


def test_simkds_student_is_exported_without_its_own_classifier() -> None:
    reused = ReusedClassifier(Small(4), Small(6), "features", torch.randn(2, 1, 8, 8)).eval()
    graph = torch.export.export(reused, (torch.randn(2, 1, 8, 8),), strict=False)
    linears = [node for node in graph.run_decompositions({}).graph.nodes if "linear" in str(node.target)]
    assert len(linears) == 1


@pytest.mark.parametrize("shapes", [((4, 3), (4, 5)), ((3, 2, 2, 2), (3, 5))], ids=str)
def test_srrl_is_a_mimic_and_a_regression_through_the_teachers_classifier(parity: Any, shapes: Shapes) -> None:
    s, t = (parity.normal(*shape, seed=i) for i, shape in enumerate(shapes, 1))
    logits = parity.normal(len(t), 7, seed=3)
    teacher = Small(5, classes=7)
    loss = make_loss("srrl", student_tap="s", teacher_tap="t", alpha=0.5, beta=3.0)
    loss.prepare(Context(torch.zeros(4), 0, None, teacher))
    mine, theirs = parity.signals({"s": s}, logits), parity.signals({"t": t}, logits)
    loss = parity.built(loss, mine, theirs)

    def expected() -> Tensor:
        f = s if s.ndim == 2 else s.sum((2, 3)) / 4
        linear, norm = loss.transfer[0], loss.transfer[1]
        f = torch.stack([torch.stack([(row * w).sum() for w in linear.weight]) for row in f])
        f = batch_norm(norm, f).clamp_min(0)
        z = torch.stack([torch.stack([(row * w).sum() for w in teacher.fc.weight.detach().double()]) for row in f])
        z = z + teacher.fc.bias.detach().double()
        return 0.5 * ((f - t) ** 2).sum() / t.numel() + 3.0 * ((z - logits) ** 2).sum() / z.numel()

    parity.assert_agree(lambda: loss(mine, theirs, parity.batch_of([0] * len(s))), expected, [s])


def test_srrl_names_a_teacher_it_cannot_look_into(parity: Any) -> None:
    loss = make_loss("srrl", student_tap="s", teacher_tap="t")
    with pytest.raises(InputError, match="srrl: the teacher has no Linear classifier to look into; name its path"):
        loss.prepare(Context(torch.zeros(4), 0, None, None))
    loss.prepare(Context(torch.zeros(4), 0, None, Small(5, classes=7)))
    mine, theirs = parity.signals({"s": torch.zeros(2, 4)}), parity.signals({"t": torch.zeros(2, 4)}, torch.zeros(2, 7))
    with pytest.raises(InputError, match="teacher tap 't' gives 4 features, its classifier maps 5 features to 7"):
        loss.build(mine, theirs)


@pytest.mark.parametrize("shapes", [((2, 4, 4, 4), (2, 5, 4, 4)), ((3, 4, 2, 2), (3, 5, 7, 7))], ids=str)
def test_cat_kd_compares_unit_maps_of_each_class(parity: Any, shapes: Shapes) -> None:
    student, teacher = Small(4).double(), Small(5).double()
    loss = make_loss("cat_kd", student_tap="s", teacher_tap="t")
    loss.prepare(Context(torch.zeros(4), 0, student, teacher))

    def maps(model: Small, f: Tensor) -> Tensor:
        a = pooled(one_by_one(model.fc.weight, f), 2, 2)
        return a / (a**2).sum((2, 3), keepdim=True) ** 0.5

    def reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
        return ((maps(student, s) - maps(teacher, t)) ** 2).sum() / (len(s) * 3 * 4)

    assert_parity(parity, loss, shapes, reference)
    assert not list(loss.parameters()), "the classifier stays the student's"


def test_cat_kd_teaches_the_students_classifier_too(parity: Any) -> None:
    student, teacher = Small(4), Small(5)
    loss = make_loss("cat_kd", student_tap="s", teacher_tap="t")
    loss.prepare(Context(torch.zeros(4), 0, student, teacher))
    mine, theirs = parity.signals({"s": torch.randn(2, 4, 2, 2)}), parity.signals({"t": torch.randn(2, 5, 2, 2)})
    loss(mine, theirs, parity.batch_of([0, 0])).backward()
    assert student.fc.weight.grad.abs().max() > 0
    assert teacher.fc.weight.grad is None


@pytest.mark.parametrize("shapes", [((4, 3), (4, 6)), ((3, 4, 2, 2), (3, 5)), ((2, 9, 4), (2, 5, 3, 3))], ids=str)
def test_pkt_compares_the_rows_of_shifted_cosines(parity: Any, shapes: Shapes) -> None:
    def rows(f: Tensor) -> list[list[Tensor]]:
        f = f if f.ndim == 2 else f.mean((2, 3)) if f.ndim == 4 else f.mean(1)
        unit = [v / ((v**2).sum() ** 0.5 + 1e-7) for v in f]
        near = [[((a * b).sum() + 1) / 2 for b in unit] for a in unit]
        return [[x / sum(row) for x in row] for row in near]

    def reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
        q, p = rows(s), rows(t)
        cells = itertools.product(range(len(q)), repeat=2)
        terms = [p[i][j] * ((p[i][j] + 1e-7) / (q[i][j] + 1e-7)).log() for i, j in cells]
        return sum(terms) / len(terms)

    assert_parity(parity, make_loss("pkt", student_tap="s", teacher_tap="t"), shapes, reference)


@pytest.mark.parametrize("mask", ["channels", "positions"])
@pytest.mark.parametrize("shapes", [((3, 4, 3, 3), (3, 5, 3, 3)), ((2, 5, 4, 4), (2, 5, 2, 2))], ids=str)
def test_mgd_generates_the_teacher_from_a_masked_student(parity: Any, shapes: Shapes, mask: str) -> None:
    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        s, t = on_one_grid(s, t)
        align, generate = loss.aligners[0], loss.generators[0]
        s = s if isinstance(align, nn.Identity) else one_by_one(align.weight, s, align.bias)
        torch.manual_seed(5)
        shape = (*s.shape[:2], 1, 1) if mask == "channels" else (len(s), 1, *s.shape[2:])
        s = torch.where(torch.rand(shape, dtype=torch.float64) < 0.4, torch.zeros(()).double(), s)
        hidden = functional.conv2d(s, generate[0].weight, generate[0].bias, padding=1).clamp_min(0)
        made = functional.conv2d(hidden, generate[2].weight, generate[2].bias, padding=1)
        return sum(((a - b) ** 2).sum() for a, b in zip(made, t, strict=True)) / len(t)

    class Seeded(nn.Module):
        """The loss, drawing from a known generator."""

        def __init__(self, loss: Loss) -> None:
            super().__init__()
            self.loss = loss
            self.build = loss.build

        def forward(self, *said: Any) -> Tensor:
            torch.manual_seed(5)
            return self.loss(*said)

    inner = make_loss("mgd", student_tap="s", teacher_tap="t", masked=0.4, mask=mask)
    assert_parity(parity, Seeded(inner), shapes, lambda seeded, s, t: reference(seeded.loss, s, t))


@pytest.mark.parametrize(
    "shapes", [((3, 4, 2, 2), (3, 5, 2, 2)), ((2, 3, 4, 4), (2, 3, 2, 2)), ((2, 3, 3, 3), (2, 10, 4))], ids=str
)
def test_cwd_compares_channels_as_distributions_over_positions(parity: Any, shapes: Shapes) -> None:
    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        if t.ndim == 3:  # a class token and a grid of 3 x 3
            t = t[:, 1:].transpose(1, 2).reshape(len(t), -1, 3, 3)
        s, t = on_one_grid(s, t)
        layer = loss.projectors[0]
        s = s if isinstance(layer, nn.Identity) else one_by_one(layer.weight, s, layer.bias)
        total = 0
        for b, c in itertools.product(range(len(t)), range(t.shape[1])):
            p, q = ((f[b, c].flatten() / 4).exp() for f in (t, s))
            p, q = p / p.sum(), q / q.sum()
            total = total + sum(x * (x / y).log() for x, y in zip(p, q, strict=True))
        return 16 * total / (len(t) * t.shape[1])

    assert_parity(parity, make_loss("cwd", student_tap="s", teacher_tap="t"), shapes, reference)


@pytest.mark.parametrize("name", ["activation_boundaries", "ofd"])
def test_deeper_pairs_of_ab_and_ofd_weigh_more(parity: Any, name: str) -> None:
    """1, 1/2, 1/4 from the deepest up; a loss of several pairs is the weighted sum of its single ones."""
    s = {n: parity.normal(2, 3, 2, 2, seed=i) for i, n in enumerate("abc")}
    t = {n: parity.normal(2, 3, 2, 2, seed=5 + i) for i, n in enumerate("abc")}
    mine, theirs, batch = parity.signals(s), parity.signals(t), parity.batch_of([0, 0])

    def made(taps: str) -> Any:
        loss = make_loss(name, student_tap=list(taps), teacher_tap=list(taps))
        for i, _ in enumerate(taps):  # as `prepare` finds them in the teacher's batch norms
            loss.register_buffer(f"margin{i}", torch.full((1, 3, 1, 1), -0.5))
        return loss

    several = parity.built(made("abc"), mine, theirs)
    expected = 0
    for i, tap in enumerate("abc"):
        single = parity.built(made(tap), mine, theirs)
        single.connectors = nn.ModuleList([several.connectors[i]])
        expected = expected + single(mine, theirs, batch) / 2 ** (2 - i)
    torch.testing.assert_close(several(mine, theirs, batch), expected)


@pytest.mark.parametrize(
    "name",
    [
        "attention_transfer",
        "nst",
        "pkt",
        "simkd",
        "similarity_preserving",
        "rkd_distance",
        "rkd_angle",
        "correlation_congruence",
        "cwd",
    ],
)
def test_equal_features_cost_nothing_and_pull_nowhere(parity: Any, name: str) -> None:
    f = parity.normal(4, 3, 2, 2, seed=1).requires_grad_()
    mine, theirs = parity.signals({"t": f}), parity.signals({"t": f.detach()})
    loss = make_loss(name, student_tap="t", teacher_tap="t").double()
    loss.build(mine, theirs)
    value = loss(mine, theirs, parity.batch_of([0] * 4))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert f.grad.abs().max() < 1e-8  # the 1e-7 in PKT leaves 2e-9


PROJECTED = [
    "hint",
    "vid",
    "factor_transfer",
    "activation_boundaries",
    "mgd",
    "cwd",
    "ickd",
    "attention_transfer",
    "nst",
]


@pytest.mark.parametrize("name", PROJECTED)
def test_tokens_of_a_transformer_may_teach_the_map_of_a_cnn(parity: Any, name: str) -> None:
    """197 tokens are a class token and a grid of 14 x 14; a CNN's map of 7 x 7 is the coarser of the two."""
    s = torch.randn(2, 6, 7, 7, requires_grad=True)
    mine, theirs = parity.signals({"s": s}), parity.signals({"t": torch.randn(2, 197, 8)})
    loss = make_loss(name, student_tap="s", teacher_tap="t")
    loss.build(mine, theirs)
    loss(mine, theirs, parity.batch_of([0, 0])).backward()
    assert s.grad.isfinite().all()
    assert s.grad.abs().max() > 0


@pytest.mark.parametrize(
    "name",
    [
        "attention_transfer",
        "nst",
        "pkt",
        "rkd_distance",
        "rkd_angle",
        "similarity_preserving",
        "correlation_congruence",
        "cwd",
        "hint",
        "ickd",
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_dead_features_and_a_single_image_give_finite_gradients(parity: Any, name: str, size: int) -> None:
    """All zero, as behind a dead ReLU; every image alike, as at a collapse."""
    for value in (0.0, 1.0):
        s = torch.full((size, 3, 2, 2), value, requires_grad=True)
        mine, theirs = parity.signals({"t": s}), parity.signals({"t": torch.randn(size, 3, 2, 2)})
        loss = make_loss(name, student_tap="t", teacher_tap="t")
        loss.build(mine, theirs)
        found = loss(mine, theirs, parity.batch_of([0] * size))
        found.backward()
        assert found.isfinite()
        assert s.grad.isfinite().all()


def test_taps_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(InputError, match="hint got 2 student taps and 1 teacher taps; give one teacher tap for each"):
        make_loss("hint", student_tap=["a", "b"], teacher_tap="c")
    with pytest.raises(InputError, match="fsp got one tap of each network"):
        make_loss("fsp", student_tap="a", teacher_tap="b")


@pytest.mark.parametrize(
    "name", ["attention_transfer", "nst", "vid", "mgd", "cwd", "review_kd", "pkt", "rkd_angle", "ickd"]
)
def test_a_tap_of_no_known_shape_is_named(parity: Any, name: str) -> None:
    signals = parity.signals({"block": torch.zeros(2, 3, 4, 5, 6)})
    with pytest.raises(InputError, match=r"student tap 'block' gives \(2, 3, 4, 5, 6\); tap a map"):
        make_loss(name, student_tap="block", teacher_tap="block").build(signals, signals)


@pytest.mark.parametrize("name", ["simkd", "fsp"])
def test_other_widths_are_refused_where_there_is_no_projector(parity: Any, name: str) -> None:
    mine = parity.signals({"a": torch.zeros(2, 3, 4, 4), "b": torch.zeros(2, 3, 4, 4)})
    theirs = parity.signals({"a": torch.zeros(2, 5, 4, 4), "b": torch.zeros(2, 3, 4, 4)})
    with pytest.raises(InputError, match=f"{name}: student tap 'a' has 3 channels, the teacher's 5; tap layers of"):
        make_loss(name, student_tap=["a", "b"], teacher_tap=["a", "b"]).build(mine, theirs)


@pytest.mark.parametrize("name", ["activation_boundaries", "factor_transfer", "ickd", "review_kd", "ofd"])
def test_a_batch_norm_of_one_value_is_refused(parity: Any, name: str) -> None:
    signals = parity.signals({"layer": torch.zeros(1, 3, 1, 1)})
    loss = make_loss(name, student_tap="layer", teacher_tap="layer")
    loss.prepare(Context(torch.zeros(4), 0, None, Normed(3)))
    with pytest.raises(InputError, match=rf"{name} normalises over the batch, but gets one image of \(3, 1, 1\)"):
        loss.build(signals, signals)
