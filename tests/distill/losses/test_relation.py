"""Losses between the relations of a batch equal their papers' formulas, written out pair by pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.distill import Loss
from edgekd.distill.losses import make_loss
from edgekd.distill.losses import rkd as rkd_room

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
VECTORS = [((4, 3), (4, 5)), ((3, 4, 2, 2), (3, 6)), ((2, 3), (2, 2)), ((3, 5, 4), (3, 2, 4, 4))]


def vector(f: Tensor) -> Tensor:
    return f if f.ndim == 2 else f.mean((2, 3)) if f.ndim == 4 else f.mean(1)


def huber(x: Tensor) -> Tensor:
    return x**2 / 2 if abs(x) < 1 else abs(x) - 0.5


def assert_parity(parity: Any, loss: Loss, shapes: Shapes, reference: Callable[[Loss, Tensor, Tensor], Tensor]) -> None:
    s, t = (parity.normal(*shape, seed=i, scale=2) for i, shape in enumerate(shapes, 1))
    mine, theirs = parity.signals({"s": s}), parity.signals({"t": t})
    loss = parity.built(loss, mine, theirs)
    batch = parity.batch_of([0] * len(s))
    parity.assert_agree(lambda: loss(mine, theirs, batch), lambda: reference(loss, s, t), [s])


@pytest.mark.parametrize("shapes", [VECTORS[i] for i in (0, 1, 3)], ids=str)
def test_rkd_distance_compares_distances_over_their_mean(parity: Any, shapes: Shapes) -> None:
    def distances(f: Tensor) -> dict[tuple[int, int], Tensor]:
        pairs = [(i, j) for i, j in itertools.product(range(len(f)), repeat=2) if i != j]
        found = {(i, j): ((f[i] - f[j]) ** 2).sum() ** 0.5 for i, j in pairs}
        mean = sum(found.values()) / len(found)
        return {pair: d / mean for pair, d in found.items()}

    def reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
        a, b = distances(vector(s)), distances(vector(t))
        return sum(huber(a[pair] - b[pair]) for pair in a) / len(s) ** 2

    assert_parity(parity, make_loss("rkd_distance", student_tap="s", teacher_tap="t"), shapes, reference)


def angle_reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
    def cosine(f: Tensor, i: int, j: int, k: int) -> Tensor:
        a, b = f[j] - f[i], f[k] - f[i]
        return (a @ b) / ((a @ a) ** 0.5 * (b @ b) ** 0.5)

    s, t = vector(s), vector(t)
    triples = [(i, j, k) for i, j, k in itertools.product(range(len(s)), repeat=3) if i not in (j, k)]
    return sum(huber(cosine(s, *triple) - cosine(t, *triple)) for triple in triples) / len(s) ** 3


@pytest.mark.parametrize("shapes", [VECTORS[i] for i in (0, 1, 3)], ids=str)
def test_rkd_angle_compares_the_cosines_at_each_image(parity: Any, shapes: Shapes) -> None:
    assert_parity(parity, make_loss("rkd_angle", student_tap="s", teacher_tap="t"), shapes, angle_reference)


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_rkd_angle_in_chunks_is_rkd_angle(parity: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd_room, "_WHOLE", 1)
    loss = make_loss("rkd_angle", student_tap="s", teacher_tap="t", chunk=chunk)
    assert_parity(parity, loss, ((5, 3), (5, 4)), angle_reference)


@pytest.mark.parametrize("shapes", [((4, 3, 2, 2), (4, 5, 4, 4)), ((3, 4), (3, 2, 2, 2)), ((2, 6), (2, 3))], ids=str)
def test_similarity_preserving_compares_unit_rows_of_the_gram_matrix(parity: Any, shapes: Shapes) -> None:
    def rows(f: Tensor) -> list[Tensor]:
        f = f.reshape(len(f), -1)
        gram = [torch.stack([(a * b).sum() for b in f]) for a in f]
        return [row / (row**2).sum() ** 0.5 for row in gram]

    def reference(_: Loss, s: Tensor, t: Tensor) -> Tensor:
        return sum(((a - b) ** 2).sum() for a, b in zip(rows(s), rows(t), strict=True)) / len(s) ** 2

    assert_parity(parity, make_loss("similarity_preserving", student_tap="s", teacher_tap="t"), shapes, reference)


@pytest.mark.parametrize("embed", [None, 6])
@pytest.mark.parametrize("shapes", VECTORS, ids=str)
def test_correlation_congruence_is_a_taylor_series_of_a_gaussian(
    parity: Any, shapes: Shapes, embed: int | None
) -> None:
    def kernel(f: Tensor, layer: nn.Module) -> list[Tensor]:
        f = f if embed is None else f @ layer.weight.T + layer.bias
        unit = [v / (v**2).sum() ** 0.5 for v in f]
        # exp(-gamma |a - b|^2) of unit vectors is exp(-2 gamma) exp(2 gamma a.b); its series is cut after order 3
        series = [math.exp(-0.8) * 0.8**p / math.factorial(p) for p in range(4)]
        return [sum(c * (a @ b) ** p for p, c in enumerate(series)) for a in unit for b in unit]

    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        own, foreign = loss.embeddings[0]
        a, b = kernel(vector(s), own), kernel(vector(t), foreign)
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)

    loss = make_loss("correlation_congruence", student_tap="s", teacher_tap="t", order=3, embed=embed)
    assert_parity(parity, loss, shapes, reference)


@pytest.mark.parametrize("shapes", [((3, 4, 3, 3), (3, 5, 3, 3)), ((2, 3, 4, 4), (2, 6, 2, 2))], ids=str)
def test_ickd_compares_which_channels_speak_together(parity: Any, shapes: Shapes) -> None:
    def rows(f: Tensor) -> Tensor:
        gram = torch.einsum("chw,dhw->cd", f, f)
        return torch.stack([row / (row**2).sum() ** 0.5 for row in gram])

    def reference(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
        convolution, norm = loss.embeddings[0]
        s = torch.einsum("oc,bchw->bohw", convolution.weight.flatten(1), s)
        mean, variance = s.mean((0, 2, 3), keepdim=True), s.var((0, 2, 3), keepdim=True, correction=0)
        s = (s - mean) / (variance + norm.eps) ** 0.5
        s = s * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        parts = [((rows(a) - rows(b)) ** 2).sum() / t.shape[1] for a, b in zip(s, t, strict=True)]
        return sum(parts) / len(parts)

    assert_parity(parity, make_loss("ickd", student_tap="s", teacher_tap="t"), shapes, reference)
