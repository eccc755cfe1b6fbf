"""The search keeps every limit, is proved against brute force, deterministic, and says what binds when nothing fits."""

from __future__ import annotations

import importlib
import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.latency import ProfileCost, estimate_memory_mib, estimate_size_mib, trace_cost
from edgekd.profile import load_profile
from edgekd.students import (
    Figures,
    Infeasible,
    Limits,
    Part,
    Prices,
    Selection,
    StageSpace,
    StudentSpec,
    build,
    capacity_score,
    figures_of,
    merged,
    search,
    select,
)
from edgekd.students.exact import TOLERANCE
from edgekd.students.spaces import STAGE_SPACES, Task

NANO = load_profile("jetson-nano")
COST = ProfileCost(NANO, unit="gpu", precision="fp16", runtime="tensorrt")
BASE_MIB = COST.memory_mib(0, 0)  # what the runtime takes whatever it runs
SPACE = STAGE_SPACES["inverted-residual"](Task((28,), 1, 10))
TEACHER_MACS = 77_000_000  # WideResNet-16-2 at 28 px
LIMITS = Limits(latency_p90_ms=10, peak_memory_mib=512, artifact_size_mib=16, macs=TEACHER_MACS // 8)


def chosen(limits: Limits = LIMITS, space: StageSpace = SPACE, **more: object) -> Selection:
    found = search(space, cost=COST, limits=limits, **more)  # type: ignore[arg-type]
    assert isinstance(found, Selection)
    return found


def every_fitting_score(limits: Limits, space: StageSpace = SPACE) -> list[float]:
    prices = Prices(COST)
    every = (prices.of(spec) for spec in space.specs())
    return [capacity_score(figures) for figures in every if not figures.overruns(limits)]


def test_the_quickstart_student_keeps_every_limit_and_uses_most_of_the_compute() -> None:
    best = chosen().chosen
    assert best.figures.overruns(LIMITS) == {}
    assert 0.8 * LIMITS.macs < best.figures.macs <= LIMITS.macs
    assert isinstance(best.spec, StudentSpec)
    assert best.spec.final_size == 7
    assert best.spec.stem_stride == 1


@pytest.mark.parametrize("latency_ms", [10.0, 0.6, 0.42])
@pytest.mark.parametrize("method", ["exact", "evolutionary"])
def test_nothing_in_the_space_that_fits_scores_higher(latency_ms: float, method: str) -> None:
    limits = LIMITS.model_copy(update={"latency_p90_ms": latency_ms})
    found = chosen(limits, method=method)
    slack = TOLERANCE if method == "exact" else 0.05
    assert found.chosen.score >= max(every_fitting_score(limits)) - slack
    assert found.considered == SPACE.size


def test_the_programme_alone_finds_what_brute_force_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the evolutionary start taken away: one look at the worst student of each body."""
    room = importlib.import_module("edgekd.students.search")
    monkeypatch.setattr(
        room, "evolve", lambda space, figures, limits, seed: {(n, (0, 0)): figures((n, (0, 0))) for n in range(7)}
    )
    tight = {"latency_p90_ms": 0.6, "artifact_size_mib": 0.2, "peak_memory_mib": BASE_MIB + 0.9}
    limits = LIMITS.model_copy(update=tight)
    assert chosen(limits).chosen.score >= max(every_fitting_score(limits)) - TOLERANCE


def test_figures_of_the_search_equal_plain_ones() -> None:
    for candidate in chosen().top:
        assert isinstance(candidate.spec, StudentSpec)
        assert candidate.figures.model_dump() == pytest.approx(figures_of(candidate.spec, COST).model_dump())


def test_figures_are_the_estimates_of_the_latency_room() -> None:
    best = chosen().chosen
    assert isinstance(best.spec, StudentSpec)
    cost = trace_cost(build(best.spec), (1, 1, 28, 28))
    p50_ms = COST.estimate(cost).p50_ms
    assert COST.provenance.startswith("14 networks measured in TensorRT")
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


def test_each_point_of_the_front_is_slower_and_larger_than_the_one_before() -> None:
    front = chosen().front
    pairs = list(itertools.pairwise(front))
    assert len(pairs) >= 5
    assert all(a.figures.latency_p50_ms < b.figures.latency_p50_ms and a.score < b.score for a, b in pairs)
    assert front[-1] == chosen().chosen


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


@pytest.mark.parametrize("limits", [{"latency_p90_ms": 0.01}, {"latency_p90_ms": 0.01, "artifact_size_mib": 0.01}])
def test_the_cheapest_candidate_misses_by_least(limits: dict[str, float]) -> None:
    tight = LIMITS.model_copy(update=limits)
    found = search(SPACE, cost=COST, limits=tight)
    assert isinstance(found, Infeasible)
    prices = Prices(COST)
    least = min(max(prices.of(spec).overruns(tight).values()) for spec in SPACE.specs())
    assert max(found.overruns.values()) == pytest.approx(least)


@pytest.mark.parametrize("method", ["exact", "evolutionary"])
def test_a_time_margin_is_the_same_as_a_tighter_budget(method: str) -> None:
    wide = LIMITS.model_copy(update={"latency_p90_ms": 1.0, "time_margin": 2.0})
    tight = LIMITS.model_copy(update={"latency_p90_ms": 0.5})
    assert chosen(wide, method=method).top == chosen(tight, method=method).top
    none = search(SPACE, cost=COST, limits=wide.model_copy(update={"latency_p90_ms": 0.01}))
    assert isinstance(none, Infeasible)
    assert " x 2.00 margin > 0.01" in none.explain()


def test_what_weights_cost_beyond_the_caches_is_part_of_the_proof() -> None:
    """The largest of several affine costs: no student that the programme proves may be over the budget."""

    class Dear(ProfileCost):
        tariffs = ((0.1, 0.0), (-0.4, 5e-6))  # type: ignore[assignment]

    dear = Dear(NANO, unit="gpu", precision="fp16", runtime="tensorrt")
    limits = LIMITS.model_copy(update={"latency_p90_ms": 0.9})
    found = search(SPACE, cost=dear, limits=limits)
    assert isinstance(found, Selection)
    prices = Prices(dear)
    every = (prices.of(spec) for spec in SPACE.specs())
    best = max(capacity_score(figures) for figures in every if not figures.overruns(limits))
    assert found.chosen.score >= best - TOLERANCE
    assert found.chosen.figures.overruns(limits) == {}
    assert found.chosen.score < chosen(limits).chosen.score


def test_energy_is_a_limit_where_the_power_is_known() -> None:
    limits = LIMITS.model_copy(update={"energy_mj": 3.0})
    found = search(SPACE, cost=Prices(COST, watts=5.0), limits=limits)
    assert isinstance(found, Selection)
    assert 0 < (found.chosen.figures.energy_mj or 0) <= 3.0
    assert found.chosen.figures.energy_mj == pytest.approx(5.0 * found.chosen.figures.latency_p50_ms)
    assert found.chosen.score < chosen().chosen.score


def test_a_price_of_whole_parts_decides_in_place_of_the_kernels() -> None:
    def price(part: Part) -> float:
        return 1.0 if part.block == "fused" and part.kind == "block" else 0.001

    found = search(SPACE, cost=Prices(COST, price), limits=LIMITS.model_copy(update={"latency_p90_ms": 1.1}))
    assert isinstance(found, Selection)
    assert isinstance(found.chosen.spec, StudentSpec)
    assert {stage.block for stage in found.chosen.spec.stages} == {"inverted"}


@pytest.mark.parametrize("image_size", [28, 32, 64, 224])
@pytest.mark.parametrize("name", STAGE_SPACES)
def test_every_student_of_a_space_is_valid(name: str, image_size: int) -> None:
    space = STAGE_SPACES[name](Task((image_size,), 3, 10))
    rng = random.Random(0)
    for number, body in enumerate(space.bodies):
        spec = space.spec((number, tuple(rng.randrange(len(choices)) for choices in body.choices)))
        assert StudentSpec.model_validate(spec.model_dump()) == spec  # made without validation, for speed
        assert 4 <= spec.final_size <= 7


@pytest.mark.parametrize(("image_size", "stem_stride"), [(28, 1), (32, 1), (64, 2), (96, 2), (224, 2)])
def test_small_images_keep_a_stride_1_stem(image_size: int, stem_stride: int) -> None:
    assert STAGE_SPACES["residual"](Task((image_size,), 3, 10)).bodies[0].stem_stride == stem_stride


def test_the_resolution_is_a_choice_where_there_are_several() -> None:
    space = STAGE_SPACES["inverted-residual"](Task((64, 32), 3, 10))
    tight = LIMITS.model_copy(update={"peak_memory_mib": BASE_MIB + 0.2})
    assert {body.image_size for body in space.bodies} == {32, 64}
    assert chosen(LIMITS, space).chosen.spec.image_size == 64
    assert chosen(tight, space).chosen.spec.image_size == 32


def test_the_fewest_pixels_do_not_win_because_weights_fill_what_they_leave() -> None:
    """Narrower and larger or wider and smaller at the same multiply-adds: MobileNets are about as good either way."""
    narrow = figures(parameters=10**5, activation_elements=2 * 10**5, image_size=64)
    wide = figures(parameters=4 * 10**5, activation_elements=10**5, image_size=32)
    assert capacity_score(narrow) == pytest.approx(capacity_score(wide), abs=TOLERANCE)


def figures(**change: float) -> Figures:
    base = {
        "latency_p50_ms": 1.0,
        "latency_p90_ms": 1.0,
        "peak_memory_mib": 1.0,
        "artifact_size_mib": 1.0,
        "macs": 10**6,
        "parameters": 10**5,
        "activation_elements": 10**5,
        "kernels": 20,
        "image_size": 32,
    }
    return Figures.model_validate({**base, **change})


def test_the_prior_rewards_compute_and_charges_activations() -> None:
    base = capacity_score(figures())
    assert capacity_score(figures(macs=2 * 10**6)) > base
    assert capacity_score(figures(parameters=2 * 10**5)) > base
    assert capacity_score(figures(image_size=64)) > base
    assert capacity_score(figures(activation_elements=2 * 10**5)) < base
    assert capacity_score(figures(kernels=24, gates=1)) > base  # a gate is worth something, its kernels are no depth
    assert capacity_score(figures(kernels=24, gates=1)) < capacity_score(figures(kernels=24))


def test_a_list_is_searched_one_by_one_and_spaces_are_merged_by_the_prior() -> None:
    spec = next(SPACE.specs())
    small, large = figures(), figures(macs=2 * 10**6)
    listed = select([(spec, small), (spec, large)], limits=LIMITS)
    assert isinstance(listed, Selection)
    assert listed.chosen.figures == large
    none = select([(spec, figures(latency_p90_ms=20.0))], limits=LIMITS)
    both = merged([none, listed])
    assert isinstance(both, Selection)
    assert (both.chosen, both.considered) == (listed.chosen, 3)
    assert isinstance(merged([none]), Infeasible)


def test_a_search_takes_seconds_not_minutes() -> None:
    start = time.process_time()
    space = STAGE_SPACES["inverted-residual"](Task((224,), 3, 1000))
    chosen(space=space, limits=LIMITS.model_copy(update={"macs": 10**9}))
    assert time.process_time() - start < 30  # about two seconds alone; the bound is for a loaded machine
