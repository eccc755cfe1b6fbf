"""Recipes find losses by name, and are told what is wrong with what they ask for."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from edgekd.distill.losses import LOSSES, find_loss, make_loss
from edgekd.distill.losses.dkd import DKD
from edgekd.errors import InputError

TAPS = {"student_tap": "s", "teacher_tap": "t"}


def test_every_loss_is_known_by_its_own_name_and_says_where_it_comes_from() -> None:
    assert len(LOSSES) == 45
    for name, loss in LOSSES.items():
        assert loss.name == name
        assert loss.published_weight > 0
        module = inspect.getmodule(loss)
        assert module is not None
        assert "Source" in (module.__doc__ or "") or name == "cross_entropy", name


def test_a_method_is_a_small_file() -> None:
    for loss in LOSSES.values():
        lines = inspect.getsource(inspect.getmodule(loss)).splitlines()
        assert len(lines) <= 160, loss.name


@pytest.mark.parametrize(
    ("name", "near"), [("ddk", "did you mean 'dkd'"), ("crd_memroy", "did you mean 'crd_memory'"), ("zzz", "known: ")]
)
def test_an_unknown_method_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"unknown method '{name}'; {near}"):
        find_loss(name)


def test_options_are_checked_by_name() -> None:
    assert isinstance(make_loss("dkd", beta=2.0), DKD)
    with pytest.raises(InputError, match="method 'dkd' has no option 'betta'; did you mean 'beta'"):
        make_loss("dkd", betta=2.0)
    with pytest.raises(InputError, match="method 'hint' needs teacher_tap"):
        make_loss("hint", student_tap="a")
    with pytest.raises(InputError, match="method 'hint' needs student_tap and teacher_tap"):
        make_loss("hint")


def test_a_loss_within_a_loss_is_plain_data_too() -> None:
    loss = make_loss("logit_standardisation", inner={"method": "ctkd", "span": 10.0})
    assert loss.inner.span == 10.0
    with pytest.raises(InputError, match="unknown method 'ctk'; did you mean 'ctkd'"):
        make_loss("logit_standardisation", inner={"method": "ctk"})
    with pytest.raises(InputError, match="option 'inner' names no method"):
        make_loss("logit_standardisation", inner={"temperature": 2.0})


OUT_OF_RANGE: list[tuple[str, dict[str, Any], str]] = [
    *[
        (name, {"temperature": bad}, "temperature must be positive")
        for name in ("soft_target_kl", "dkd", "nkd", "dist", "wsld", "reverse_kl", "symmetric_kl", "jensen_shannon")
        for bad in (0.0, -1.0, float("nan"))
    ],
    ("dkd", {"alpha": -1.0}, "alpha must not be negative"),
    ("dkd", {"warmup": 1.5}, r"warmup must be in \[0, 1\]"),
    ("nkd", {"gamma": -0.1}, "gamma must not be negative"),
    ("dist", {"beta": -2.0}, "beta must not be negative"),
    ("ctkd", {"lowest": 0.0}, "lowest must be positive"),
    ("mlkd", {"temperatures": [2.0, 0.0]}, "temperature must be positive"),
    ("soft_target_kl", {"temperature": float("inf")}, "temperature must be positive and finite, got inf"),
    ("mlkd", {"views": 3}, "mlkd takes views 1 or 2"),
    ("mlkd", {"compat": "official"}, "compat 'official' is about two views; give views=2"),
    ("jensen_shannon", {"beta": 1.1}, r"beta must be in \[0, 1\]"),
    ("hard_label", {"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\]"),
    ("cross_entropy", {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
    ("attention_transfer", {**TAPS, "power": 0.0}, "power must be positive"),
    ("vid", {**TAPS, "initial_variance": 0.0}, "initial_variance must be positive"),
    ("factor_transfer", {**TAPS, "rate": 0.0}, "rate must be positive"),
    ("activation_boundaries", {**TAPS, "margin": -1.0}, "margin must be positive"),
    ("review_kd", {**TAPS, "warmup": -0.1}, r"warmup must be in \[0, 1\]"),
    ("srrl", {**TAPS, "beta": -1.0}, "beta must not be negative"),
    ("cat_kd", {**TAPS, "grid": 0}, "grid must be positive"),
    ("mgd", {**TAPS, "masked": 1.1}, r"masked must be in \[0, 1\]"),
    ("mgd", {**TAPS, "mask": "pixels"}, "mask must be channels or positions, got 'pixels'"),
    ("cwd", {**TAPS, "temperature": 0.0}, "temperature must be positive"),
    ("vitkd", {"student_tap": ["a", "b"], "teacher_tap": ["a", "b"], "masked": 0.0}, r"masked must be in \(0, 1\)"),
    ("rkd_angle", {**TAPS, "chunk": 0}, "chunk must be positive"),
    ("correlation_congruence", {**TAPS, "gamma": 0.0}, "gamma must be positive"),
    ("crd", {**TAPS, "bank": -1}, "bank must not be negative"),
    ("crd_memory", {**TAPS, "negatives": 0}, "negatives must be positive"),
    ("crd_memory", {**TAPS, "momentum": 1.5}, r"momentum must be in \[0, 1\]"),
    ("byot", {"student_tap": ["a", "b"], "alpha": 2.0}, r"alpha must be in \[0, 1\]"),
    ("mtkd_rl", {"members": ["a", "b"], "temperature": 0.0}, "temperature must be positive"),
    ("mtkd_rl", {"members": ["a"]}, "fewer than two members"),
    ("mtkd_rl", {"members": ["a", "b"], "student_tap": "s"}, "taps do not fit the members"),
    ("feature_fusion", {"student_tap": "s", "teacher_tap": "t"}, "one teacher tap"),
    ("feature_fusion", {"student_tap": "s", "teacher_tap": ["a", "b"], "match": -1.0}, "match must not be negative"),
    ("uncertainty_weighted", {"inner": {"method": "dkd"}, "start": 0.0}, "start must be positive"),
    ("one", {"student_tap": "s", "branches": 1}, "one got 1 branches; give 2 or more"),
    ("one", {"student_tap": "s", "temperature": 0.0}, "temperature must be positive"),
    ("gradient_balanced", {"terms": [{"method": "dkd"}], "student_tap": "s"}, "got 1 losses; give two or more"),
    ("gradient_balanced", {"terms": [{"method": "dkdd"}], "student_tap": "s"}, "'dkdd'; did you mean 'dkd'"),
    ("gradient_balanced", {"terms": [{"method": "dkd"}, 3], "student_tap": "s"}, "option 'terms' names no method"),
    ("wcord_local", {**TAPS, "epsilon": 0.0}, "epsilon must be positive"),
]


@pytest.mark.parametrize(("name", "options", "message"), OUT_OF_RANGE, ids=str)
def test_a_value_out_of_range_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_loss(name, **options)
