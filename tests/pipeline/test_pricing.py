"""What prices a run's candidates: a block table first, then rows of the device, then the roofline; each says which."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekd.device_benchmarks.block_build import fit, holds, parts_of_spaces, sample
from edgekd.device_benchmarks.block_campaign import Timing
from edgekd.device_benchmarks.block_table import Bench, BlockTable, Whole, weights_of
from edgekd.errors import InputError
from edgekd.latency import ProfileCost, trace_cost
from edgekd.pipeline.pricing import Pricing
from edgekd.profile import load_profile
from edgekd.students import Part, StudentSpec, ZooSpec, build, parts_of
from edgekd.students.costs import kernels_price
from edgekd.students.spaces import STAGE_SPACES, Task

SPACE = STAGE_SPACES["residual"](Task((32,), 3, 10))
LAPTOP = load_profile("x86-avx512-vnni")
BENCH = Bench(device="a machine", cpus=2, runtime="openvino", version="1", precision="fp32", threads=1)


def laptop_cost() -> ProfileCost:
    return ProfileCost(LAPTOP, unit="cpu", precision="fp32", runtime="openvino", threads=1)


def table_of(law: Callable[[Part], float]) -> BlockTable:
    """A table of a machine on which parts take what the law says."""
    specs = sample([SPACE], 12, seed=0)
    networks = [tuple(parts_of(spec)) for spec in specs]
    parts_ms = {part.key: law(part) for part in parts_of_spaces([SPACE])}
    sums = [sum(parts_ms[part.key] for part in network) for network in networks]
    found = fit(parts_ms, networks, [Timing(least_ms=ms, p50_ms=ms, p90_ms=ms) for ms in sums])
    whole = tuple(Whole(spec=spec, p50_ms=ms) for spec, ms in zip(specs, sums, strict=True))
    return BlockTable(bench=BENCH, parts_ms=parts_ms, fit=found, networks=whole, built="x", build_s=1, rounds=9)


def thrice(part: Part) -> float:
    return 3 * kernels_price(laptop_cost())(part) + 0.001


def estimated(pricing: Pricing, spec: StudentSpec | ZooSpec) -> tuple[float, str]:
    found = pricing.estimate(spec, trace_cost(build(spec), (1, 3, 32, 32)))
    return found.p50_ms, found.provenance


def test_without_a_table_the_calibrated_rows_decide_and_their_interval_is_the_margin() -> None:
    pricing, spec = Pricing(laptop_cost()), sample([SPACE], 1, seed=5)[0]
    p50_ms, said = estimated(pricing, spec)
    assert "networks measured in" in said
    assert p50_ms == pytest.approx(pricing.stages.of(spec).latency_p50_ms, rel=0.02)
    assert pricing.high(of_stages=True) == pricing.cost.interval[1] > 1


def test_a_table_wins_for_students_and_moves_the_prediction_of_everything_else() -> None:
    table = table_of(thrice)
    plain, pricing = Pricing(laptop_cost()), Pricing(laptop_cost(), table)
    spec = sample([SPACE], 1, seed=5)[0]
    p50_ms, said = estimated(pricing, spec)
    assert said == table.provenance
    assert p50_ms == pricing.stages.of(spec).latency_p50_ms == pytest.approx(table.p50_ms(parts_of(spec)))
    assert pricing.high(of_stages=True) == max(1.0, table.fit.high)
    resnet = ZooSpec(name="torchvision:resnet18", image_size=32, in_channels=3, num_classes=10)
    moved, said = estimated(pricing, resnet)
    assert said.startswith("12 networks measured on this device")
    assert moved == pytest.approx(3 * estimated(plain, resnet)[0], rel=0.35)


def test_the_tables_own_spread_makes_the_p90_that_a_budget_is_held_to() -> None:
    """`bench lut` judges verdicts by it, so the search must give them by it."""
    table = table_of(thrice)
    table = table.model_copy(update={"fit": table.fit.model_copy(update={"p90_over_p50": 1.7})})
    figures = Pricing(laptop_cost(), table).stages.of(sample([SPACE], 1, seed=5)[0])
    assert figures.latency_p90_ms == pytest.approx(1.7 * figures.latency_p50_ms)


def test_a_space_whose_parts_cannot_be_timed_alone_is_refused_and_known_for_it() -> None:
    hybrid = STAGE_SPACES["hybrid"](Task((32,), 3, 10))
    assert (holds(hybrid), holds(SPACE)) == (False, True)
    with pytest.raises(InputError, match=r"a block table cannot hold the space 'hybrid': .*; leave it out"):
        sample([hybrid], 2, seed=0)
    assert len(sample([SPACE, hybrid], 3, seed=0)) == 3


def test_weights_beyond_the_caches_are_found_and_priced_in_the_search_as_in_the_table() -> None:
    specs = sample([SPACE], 14, seed=0)
    networks = [tuple(parts_of(spec)) for spec in specs]
    parts_ms = {part.key: thrice(part) for part in parts_of_spaces([SPACE])}
    times = []
    for network in networks:
        ms = sum(parts_ms[part.key] for part in network) + 1e-6 * max(0, sum(map(weights_of, network)) - 1_000_000)
        times.append(Timing(least_ms=ms, p50_ms=ms, p90_ms=ms))
    found = fit(parts_ms, networks, times)
    assert found.cached_weights == 1e6
    assert found.per_weight_ms == pytest.approx(1e-6)
    table = table_of(thrice).model_copy(update={"fit": found, "parts_ms": parts_ms})
    pricing = Pricing(laptop_cost(), table)
    for network, spec, timing in zip(networks, specs, times, strict=True):
        assert table.p50_ms(network) == pytest.approx(timing.p50_ms)
        assert pricing.stages.of(spec).latency_p50_ms == pytest.approx(timing.p50_ms)
