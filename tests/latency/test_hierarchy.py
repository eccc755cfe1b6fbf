"""Costs are recovered from rows; a device with few rows leans on its kind; a wrong row pulls little."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.latency.features import FEATURES, NAMES, UNITS, features, mask
from edgekd.latency.hierarchy import Normal, Rows, Strength, fit_device, fit_kind, log_ms, nominal, spread
from edgekd.latency.trace import trace_cost

SEEN = mask("deployed")


def drawn(rng: np.random.Generator, networks: int, theta: np.ndarray, noise: float = 0.0) -> Rows:
    x = np.exp(rng.normal(0, 1.5, (networks, len(FEATURES)))) * SEEN
    return Rows(x, log_ms(x, theta) + rng.normal(0, noise, networks) if noise else log_ms(x, theta), np.ones(networks))


def devices(rng: np.random.Generator, count: int, networks: int) -> tuple[list[Rows], list[np.ndarray]]:
    thetas = [nominal() + rng.normal(0, 1) + rng.normal(0, 0.2, len(FEATURES)) for _ in range(count)]
    return [drawn(rng, networks, theta, 0.05) for theta in thetas], thetas


def error(rows: Rows, theta: np.ndarray) -> float:
    return float(np.median(np.abs(np.exp(log_ms(rows.features, theta) - rows.log_ms) - 1)))


def test_costs_of_a_device_with_many_rows_are_recovered() -> None:
    rng = np.random.default_rng(0)
    theta = nominal() + rng.normal(0, 0.3, len(FEATURES)) + 2.0
    prior = Normal(nominal(), spread(speed=1.5, group=0.7, single=0.3))
    found = fit_device(drawn(rng, 400, theta, 0.05), prior).mean
    assert error(drawn(rng, 200, theta), found) < 0.05


def test_ten_rows_and_a_kind_beat_ten_rows_alone() -> None:
    rng = np.random.default_rng(1)
    known, _ = devices(rng, 12, 40)
    kind = fit_kind(known, nominal(), Strength(single=0.2))
    (few,), (theta,) = devices(rng, 1, 10)
    fresh = drawn(rng, 300, theta)
    alone = fit_device(few, Normal(np.zeros(len(FEATURES)), 25.0 * np.eye(len(FEATURES)))).mean
    assert error(fresh, fit_device(few, kind.prior).mean) < 0.5 * error(fresh, alone)


def test_a_row_that_is_off_by_twenty_moves_little() -> None:
    rng = np.random.default_rng(2)
    theta = nominal() + 1.0
    rows = drawn(rng, 60, theta, 0.05)
    wrong = rows._replace(log_ms=rows.log_ms + np.where(np.arange(60) == 7, 3.0, 0.0))
    prior = Normal(nominal(), spread(speed=1.5, group=0.7, single=0.2))
    assert error(drawn(rng, 200, theta), fit_device(wrong, prior).mean) < 0.1


def test_more_of_anything_is_never_faster() -> None:
    rng = np.random.default_rng(3)
    rows = drawn(rng, 20, nominal())
    more = rows.features * (1 + rng.random(rows.features.shape))
    assert (log_ms(more, nominal()) >= log_ms(rows.features, nominal())).all()


def test_features_of_a_network_count_its_multiply_adds_and_weights() -> None:
    from torchvision.models import shufflenet_v2_x0_5

    cost = trace_cost(shufflenet_v2_x0_5(), (1, 3, 64, 64))
    found = dict(zip(NAMES, features(cost) / UNITS, strict=True))
    extra = ("conv_small", "conv_narrow", "attention_small", "folded")
    macs = sum(found[f.name] for f in FEATURES if f.group in ("D", "W") and f.name not in extra)
    assert macs + found["vector_weights"] == pytest.approx(cost.macs, rel=0.01)
    assert found["weights"] + found["linear_weights"] + found["vector_weights"] == cost.weight_elements
    assert found["copy_elements"] > 0  # channel shuffles
    assert found["pass"] == 1
