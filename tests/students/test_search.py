"""The search keeps every limit, is exhaustive and deterministic, and says what binds when nothing fits."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.latency import GraphCost, OpCost, ProfileCost, estimate_latency, estimate_memory_mib, estimate_size_mib
from edgekd.profile import load_profile
from edgekd.students import (
    Figures,
    Infeasible,
    Limits,
    SearchSpace,
    Selection,
    StudentSpec,
    capacity_score,
    figures_of,
    layers_of,
    search,
)

NANO = load_profile("jetson-nano")
COST = ProfileCost(NANO, unit="gpu", precision="fp16", runtime="tensorrt")
SPACE = SearchSpace(image_size=28, in_channels=1, num_classes=10)
TEACHER_MACS = 77_000_000  # WideResNet-16-2 at 28 px
LIMITS = Limits(latency_p90_ms=10, peak_memory_mib=512, artifact_size_mib=16, macs=TEACHER_MACS // 8)


def chosen(limits: Limits = LIMITS, space: SearchSpace = SPACE) -> Selection:
    found = search(space, cost=COST, limits=limits)
    assert isinstance(found, Selection)
    return found


def test_the_quickstart_student_keeps_every_limit_and_uses_most_of_the_compute() -> None:
    best = chosen().chosen
    assert best.figures.overruns(LIMITS) == {}
    assert 0.8 * LIMITS.macs < best.figures.macs <= LIMITS.macs
    assert best.spec.final_size == 7
    assert best.spec.stem_stride == 1


def test_nothing_in_the_space_that_fits_scores_higher() -> None:
    limits = LIMITS.model_copy(update={"latency_p90_ms": 0.2})
    every = [figures_of(spec, COST) for spec in SPACE.specs()]
    fitting = [figures for figures in every if not figures.overruns(limits)]
    found = chosen(limits)
    assert found.chosen.score == pytest.approx(max(map(capacity_score, fitting)))
    assert (found.considered, found.fitting) == (len(every), len(fitting))


def test_memoised_costs_equal_plain_ones() -> None:
    for candidate in chosen().top:
        plain = figures_of(candidate.spec, COST)
        assert candidate.figures.model_dump() == pytest.approx(plain.model_dump())


def test_figures_are_the_estimates_of_the_latency_room() -> None:
    best = chosen().chosen
    ops = tuple(
        OpCost.model_validate(
            {
                "kind": layer.kind,
                "name": "",
                "macs": layer.macs,
                "read_elements": layer.read_elements,
                "write_elements": layer.write_elements,
                "weight_elements": layer.weight_elements,
            }
        )
        for layer in layers_of(best.spec)
    )
    peak = max(layer.live_elements for layer in layers_of(best.spec))
    cost = GraphCost(ops=ops, parameters=0, peak_activation_elements=peak)
    p50_ms = estimate_latency(cost, NANO, unit="gpu", precision="fp16").p50_ms
    assert best.figures.latency_p50_ms == pytest.approx(p50_ms)
    assert best.figures.latency_p90_ms == pytest.approx(p50_ms * NANO.p90_over_p50)
    assert best.figures.peak_memory_mib == pytest.approx(estimate_memory_mib(cost, "fp16", "tensorrt"))
    assert best.figures.artifact_size_mib == pytest.approx(estimate_size_mib(cost, "fp16"))


def test_the_same_question_has_the_same_answer() -> None:
    assert chosen() == chosen()


def test_candidates_come_best_first_without_repetition() -> None:
    top = chosen().top
    scores = [candidate.score for candidate in top]
    assert scores == sorted(scores, reverse=True)
    assert len({candidate.spec for candidate in top}) == len(top) == 20


@given(
    latency_p90_ms=st.floats(0.001, 20),
    peak_memory_mib=st.floats(1, 600),
    artifact_size_mib=st.floats(0.01, 20),
    macs=st.integers(10**4, 10**8),
)
@settings(max_examples=12, deadline=None)
def test_whatever_the_limits_the_answer_keeps_them_or_says_which_it_misses(
    latency_p90_ms: float, peak_memory_mib: float, artifact_size_mib: float, macs: int
) -> None:
    limits = Limits(
        latency_p90_ms=latency_p90_ms,
        peak_memory_mib=peak_memory_mib,
        artifact_size_mib=artifact_size_mib,
        macs=macs,
    )
    found = search(SPACE, cost=COST, limits=limits)
    if isinstance(found, Selection):
        assert all(candidate.figures.overruns(limits) == {} for candidate in found.top)
    else:
        assert found.overruns
        assert found.binding in found.explain()


@pytest.mark.parametrize(
    ("limit", "value"),
    [("latency_p90_ms", 0.01), ("peak_memory_mib", 5.0), ("artifact_size_mib", 0.01), ("macs", 50_000)],
)
def test_an_infeasible_budget_names_the_binding_limit_and_by_how_much(limit: str, value: float) -> None:
    found = search(SPACE, cost=COST, limits=LIMITS.model_copy(update={limit: value}))
    assert isinstance(found, Infeasible)
    assert found.binding == limit
    needed = getattr(found.cheapest.figures, limit)
    assert found.overruns[limit] == pytest.approx(needed / value)
    assert f"{limit} {needed:.4g} > {value:.4g}" in found.explain()


def test_the_cheapest_candidate_misses_by_least() -> None:
    limits = LIMITS.model_copy(update={"latency_p90_ms": 0.01})
    found = search(SPACE, cost=COST, limits=limits)
    assert isinstance(found, Infeasible)
    least = min(max(figures_of(spec, COST).overruns(limits).values()) for spec in SPACE.specs())
    assert max(found.overruns.values()) == pytest.approx(least)


@pytest.mark.parametrize("image_size", [28, 32, 64, 224])
def test_every_student_of_a_space_is_valid(image_size: int) -> None:
    space = SearchSpace(image_size=image_size, in_channels=3, num_classes=10)
    specs = list(space.specs())
    assert len(specs) == len(set(specs)) > 1000
    for spec in specs[::97]:  # specs are made without validation, for speed
        assert StudentSpec.model_validate(spec.model_dump()) == spec
        assert 4 <= spec.final_size <= 7


@pytest.mark.parametrize(("image_size", "stem_stride"), [(28, 1), (32, 1), (64, 2), (96, 2), (224, 2)])
def test_small_images_keep_a_stride_1_stem(image_size: int, stem_stride: int) -> None:
    assert SearchSpace(image_size=image_size, in_channels=3, num_classes=10).strides[0] == stem_stride


def test_the_prior_rewards_compute_and_charges_activations() -> None:
    base = {
        "latency_p50_ms": 1.0,
        "latency_p90_ms": 1.0,
        "peak_memory_mib": 1.0,
        "artifact_size_mib": 1.0,
        "macs": 10**6,
        "parameters": 10**5,
        "activation_elements": 10**5,
        "kernels": 20,
    }

    def score(**change: int) -> float:
        return capacity_score(Figures.model_validate({**base, **change}))

    assert score(macs=2 * 10**6) > score()
    assert score(parameters=2 * 10**5) > score()
    assert score(activation_elements=2 * 10**5) < score()


def test_a_search_takes_seconds_not_minutes() -> None:
    start = time.process_time()
    chosen(
        space=SearchSpace(image_size=224, in_channels=3, num_classes=1000),
        limits=LIMITS.model_copy(update={"macs": 10**9}),
    )
    assert time.process_time() - start < 30  # about one second alone; the bound is for a loaded machine
