"""Losses for transformers: attention maps, tokens, generation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill import Signals
from edgekd.distill.losses import make_loss
from edgekd.distill.losses.vitkd import ViTKD
from edgekd.distill.taps import forward_with_taps
from edgekd.errors import InputError


@pytest.mark.parametrize("heads", [(2, 2), (2, 3), (1, 4)], ids=str)
def test_attention_maps_are_compared_row_by_row_and_by_their_mean_over_heads(
    parity: Any, heads: tuple[int, int]
) -> None:
    raw_s, raw_t = (parity.normal(3, h, 5, 5, seed=i) for i, h in enumerate(heads))
    theirs = parity.signals({"t": raw_t.softmax(3)})
    loss = make_loss("attention_maps", student_tap="s", teacher_tap="t")

    def expected() -> Tensor:
        s, t = raw_s.softmax(3), raw_t.softmax(3)
        if heads[0] != heads[1]:
            s, t = s.sum(1, keepdim=True) / heads[0], t.sum(1, keepdim=True) / heads[1]
        rows = list(itertools.product(*(range(n) for n in s.shape[:3])))
        return sum((t[r] * (t[r].log() - s[r].log())).sum() for r in rows) / len(rows)

    def value() -> Tensor:
        mine = parity.signals({"s": raw_s.softmax(3)})
        loss.build(mine, theirs)
        return loss(mine, theirs, parity.batch_of([0] * 3))

    parity.assert_agree(value, expected, [raw_s])


def test_attention_that_underflowed_to_zero_is_finite(parity: Any) -> None:
    s = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2).requires_grad_()
    loss = make_loss("attention_maps", student_tap="a", teacher_tap="a")
    value = loss(parity.signals({"a": s}), parity.signals({"a": s.detach().flip(3)}), parity.batch_of([0]))
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 5, 5), (2, 3, 7, 7)), "the student has 5 tokens, the teacher 7; use models of the same patch size"),
        (((2, 5, 8), (2, 3, 5, 5)), r"the student's tap gives \(2, 5, 8\); tap \(batch, heads, tokens, tokens\)"),
    ],
    ids=["tokens", "no map"],
)
def test_attention_of_other_tokens_is_refused(
    parity: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], message: str
) -> None:
    loss = make_loss("attention_maps", student_tap="a", teacher_tap="a")
    with pytest.raises(InputError, match=message):
        loss.build(*(parity.signals({"a": torch.zeros(shape)}) for shape in shapes))


@pytest.mark.parametrize("widths", [(4, 6), (6, 6)], ids=str)
@pytest.mark.parametrize("class_token", [0, 1])
def test_vitkd_mimics_shallow_layers_and_generates_the_deep_one(
    parity: Any, widths: tuple[int, int], class_token: int
) -> None:
    s = [parity.normal(2, 9 + class_token, widths[0], seed=i) for i in range(3)]
    t = [parity.normal(2, 9 + class_token, widths[1], seed=5 + i) for i in range(3)]
    mine, theirs = (parity.signals(dict(zip("abc", f, strict=True))) for f in (s, t))
    loss = make_loss("vitkd", student_tap=list("abc"), teacher_tap=list("abc"), alpha=0.3, beta=0.2, masked=0.4)
    loss = parity.built(loss, mine, theirs)

    def value() -> Tensor:
        torch.manual_seed(7)
        return loss(mine, theirs, parity.batch_of([0, 0]))

    def expected() -> Tensor:
        torch.manual_seed(7)
        holes = loss._holes(torch.zeros(2, 1, 3, 3)).flatten(1)
        total = 0
        tokens_s, tokens_t = ([f[:, class_token:] for f in fs] for fs in (s, t))
        for layer, a, b in zip(loss.aligners, tokens_s, tokens_t, strict=True):
            linear = isinstance(layer, nn.Conv2d)
            a = a @ layer.weight.flatten(1).T + layer.bias if linear else a
            if b is not tokens_t[2]:
                total = total + 0.3 * ((a - b) ** 2).sum()
        a = torch.stack([torch.stack([loss.hole.flatten() if h else v for h, v in zip(*p)]) for p in zip(holes, a)])  # noqa: B905
        grid = a.transpose(1, 2).reshape(2, -1, 3, 3)
        first, second = loss.generator[0], loss.generator[2]
        made = functional.conv2d(grid, first.weight, first.bias, padding=1).clamp_min(0)
        made = functional.conv2d(made, second.weight, second.bias, padding=1).flatten(2).transpose(1, 2)
        missed = sum(((made[b, n] - tokens_t[2][b, n]) ** 2).sum() for b in (0, 1) for n in range(9) if holes[b, n])
        return (total + 0.2 / 0.4 * missed) / 2

    parity.assert_agree(value, expected, [*s, loss.hole])


def test_vitkd_makes_the_same_number_of_holes_in_every_image() -> None:
    loss = ViTKD(["a", "b"], ["a", "b"], masked=0.5)
    torch.manual_seed(0)
    holes = loss._holes(torch.zeros(5, 1, 14, 14))
    assert holes.sum((1, 2, 3)).tolist() == [98] * 5
    assert not torch.equal(holes[0], holes[1])


def test_vitkd_takes_a_cnn_for_a_teacher(parity: Any) -> None:
    s = {n: torch.randn(2, 17, 6, requires_grad=True) for n in "ab"}
    mine = parity.signals(s)
    theirs = parity.signals({"a": torch.randn(2, 8, 8, 8), "b": torch.randn(2, 12, 4, 4)})
    loss = make_loss("vitkd", student_tap=["a", "b"], teacher_tap=["a", "b"])
    loss.build(mine, theirs)
    loss(mine, theirs, parity.batch_of([0, 0])).backward()
    assert all(f.grad.isfinite().all() and f.grad.abs().max() > 0 for f in s.values())


def vit(width: int, heads: int, **options: Any) -> nn.Module:
    """A real transformer of timm, small; its attention unfused so that the map exists."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(width)
    name = "deit_tiny_distilled_patch16_224" if options.pop("distilled", False) else "vit_tiny_patch16_224"
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 3, "num_heads": heads, "num_classes": 5}
    model: nn.Module = timm.create_model(name, **sizes)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "attention_maps",
            {"student_tap": "blocks.-1.attn.attn_drop@in", "teacher_tap": "blocks.-1.attn.attn_drop@in"},
        ),
        (
            "vitkd",
            {"student_tap": [f"blocks.{i}" for i in (0, 1, 2)], "teacher_tap": [f"blocks.{i}" for i in (0, 1, 2)]},
        ),
        ("hint", {"student_tap": "blocks.-1", "teacher_tap": "blocks.-1"}),
        ("attention_transfer", {"student_tap": ["blocks.0", "blocks.1"], "teacher_tap": ["blocks.0", "blocks.1"]}),
        ("crd", {"student_tap": "norm", "teacher_tap": "norm"}),
    ],
    ids=str,
)
def test_a_real_vision_transformer_teaches_another(parity: Any, name: str, options: dict[str, Any]) -> None:
    student, teacher, images = vit(16, 2), vit(24, 3), torch.randn(2, 3, 32, 32)
    loss = make_loss(name, **options)
    mine = Signals(*forward_with_taps(student, images, loss.needs().student))
    with torch.no_grad():
        theirs = Signals(*forward_with_taps(teacher, images, loss.needs().teacher))
    loss.build(mine, theirs)
    loss(mine, theirs, parity.batch_of([0, 1])).backward()
    grads = [p.grad.abs().max() for p in student.blocks[0].parameters() if p.grad is not None]
    assert grads
    assert max(grads) > 0
    assert all(g.isfinite() for g in grads)
    if name == "attention_maps":
        (tap,) = loss.needs().student
        torch.testing.assert_close(mine.taps[tap].sum(3), torch.ones(2, 2, 17))


def test_the_distillation_token_of_deit_learns_the_teachers_choice(parity: Any) -> None:
    student, images = vit(16, 2, distilled=True), torch.randn(2, 3, 32, 32)
    loss = make_loss("hard_label", student_tap="head_dist")
    mine = Signals(*forward_with_taps(student, images, loss.needs().student))
    theirs = Signals(torch.randn(2, 5))
    loss.build(mine, theirs)
    loss(mine, theirs, parity.batch_of([0, 1])).backward()
    assert student.head_dist.weight.grad.abs().max() > 0
    assert student.head.weight.grad is None
