"""Claims about how the time of a session is spent."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.device_benchmarks.schedule import MODES, abba, plan_blocks

RUN_SECONDS = st.floats(2e-5, 0.15)


@given(st.lists(RUN_SECONDS, min_size=1, max_size=8))
def test_quick_gives_every_contender_a_p90_within_its_ten_seconds(seconds: list[float]) -> None:
    quick = MODES["quick"]
    named = {f"model {i}": s for i, s in enumerate(seconds)}
    plan = plan_blocks(quick, named)
    blocks = 2 * plan.rounds * quick.processes
    for name, run_s in named.items():
        assert blocks * plan.runs[name] >= 64
        assert blocks * plan.runs[name] * run_s <= quick.contender_cap_s + 1e-6


def test_a_very_slow_model_gets_fewer_runs_rather_than_more_time() -> None:
    quick = MODES["quick"]
    plan = plan_blocks(quick, {"slow": 0.5})
    runs = 2 * plan.rounds * quick.processes * plan.runs["slow"]
    assert 8 <= runs < 64
    assert runs * 0.5 <= quick.contender_cap_s


def test_standard_takes_five_processes_a_minute_and_1024_runs() -> None:
    standard = MODES["standard"]
    plan = plan_blocks(standard, {"model": 0.002})
    runs = 2 * plan.rounds * standard.processes * plan.runs["model"]
    assert standard.processes == 5
    assert runs >= 1024
    assert runs * 0.002 == pytest.approx(60, rel=0.05)


def test_eight_usual_models_are_timed_in_about_half_a_minute_by_quick() -> None:
    quick = MODES["quick"]
    seconds = {f"model {i}": s for i, s in enumerate([0.02, 0.005, 0.002, 0.001, 0.001, 0.0005, 0.0005, 0.0001])}
    plan = plan_blocks(quick, seconds)
    blocks = 2 * plan.rounds * quick.processes
    measured_s = sum(blocks * (plan.runs[n] + plan.lead_in[n]) * s for n, s in seconds.items())
    assert measured_s < 35


def test_abba_visits_everyone_twice_and_mirrors_itself() -> None:
    order = abba(["a", "b", "c"], random.Random(1))
    assert sorted(order) == ["a", "a", "b", "b", "c", "c"]
    assert order == order[::-1]


def test_a_linear_drift_falls_on_all_contenders_alike() -> None:
    order = abba(["a", "b", "c"], random.Random(2))
    mean_position = {name: sum(i for i, n in enumerate(order) if n == name) / 2 for name in "abc"}
    assert set(mean_position.values()) == {2.5}
