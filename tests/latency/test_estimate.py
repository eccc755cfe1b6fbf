"""The roofline is physical: more work or less bandwidth is never faster; and it says that it is a prediction."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgekd.errors import InputError
from edgekd.latency import (
    GraphCost,
    OpCost,
    ProfileCost,
    estimate_latency,
    estimate_memory_mib,
    estimate_size_mib,
)
from edgekd.latency.estimate import INTERVAL_FACTORS, kernel_seconds
from edgekd.latency.networks import build_named
from edgekd.profile import ComputeUnit, HardwareProfile, load_profile, profile_names

NANO = load_profile("jetson-nano")
COUNTS = st.integers(min_value=0, max_value=10**10)
KINDS = st.sampled_from(["conv", "depthwise", "linear", "pool", "add", "other"])
PROFILES = st.sampled_from(profile_names()).map(load_profile)


def graph(*ops: OpCost) -> GraphCost:
    return GraphCost(ops=ops, parameters=0, peak_activation_elements=0)


def seconds(kind: str, macs: int, moved: int, unit: ComputeUnit) -> float:
    return kernel_seconds(kind, macs, moved, unit=unit, precision="fp16")


@given(profile=PROFILES, kind=KINDS, macs=COUNTS, more=COUNTS, moved=COUNTS)
@settings(deadline=None)
def test_more_multiply_adds_are_never_faster(
    profile: HardwareProfile, kind: str, macs: int, more: int, moved: int
) -> None:
    unit = profile.units[0]
    assert seconds(kind, macs + more, moved, unit) >= seconds(kind, macs, moved, unit)


@given(profile=PROFILES, kind=KINDS, macs=COUNTS, moved=COUNTS, more=COUNTS)
@settings(deadline=None)
def test_more_bytes_are_never_faster(profile: HardwareProfile, kind: str, macs: int, moved: int, more: int) -> None:
    unit = profile.units[0]
    assert seconds(kind, macs, moved + more, unit) >= seconds(kind, macs, moved, unit)


@given(profile=PROFILES, kind=KINDS, macs=COUNTS, moved=COUNTS, share=st.floats(0.01, 1.0))
@settings(deadline=None)
def test_less_bandwidth_is_never_faster(
    profile: HardwareProfile, kind: str, macs: int, moved: int, share: float
) -> None:
    unit = profile.units[0]
    assume(unit.dram_gb_per_s is not None)  # a microcontroller's is not stated
    slower = unit.model_copy(update={"dram_gb_per_s": (unit.dram_gb_per_s or 0.0) * share})
    assert seconds(kind, macs, moved, slower) >= seconds(kind, macs, moved, unit)


@given(kind=KINDS, macs=COUNTS, moved=COUNTS)
@settings(deadline=None)
def test_a_kernel_never_beats_the_physical_peak(kind: str, macs: int, moved: int) -> None:
    unit = NANO.unit("gpu")
    floor = max(2 * macs / (471.9e9), 2 * moved / 25.6e9)
    assert seconds(kind, macs, moved, unit) >= floor


def test_known_answer() -> None:
    unit = NANO.unit("gpu").model_copy(
        update={"efficiency": 0.5, "depthwise_efficiency": 0.1, "kernel_overhead_us": 10.0}
    )
    assert seconds("conv", 471_900_000, 0, unit) == pytest.approx(4e-3 + 10e-6)
    assert seconds("depthwise", 471_900_000, 0, unit) == pytest.approx(20e-3 + 10e-6)
    assert seconds("add", 0, 25_600_000, unit) == pytest.approx(2e-3 + 10e-6)


def test_a_graph_is_the_sum_of_its_kernels() -> None:
    ops = [OpCost(kind="conv", name="a", macs=10**8), OpCost(kind="add", name="b", read_elements=10**6)]
    parts = [estimate_latency(graph(op), NANO, unit="gpu", precision="fp16").p50_ms for op in ops]
    whole = estimate_latency(graph(*ops), NANO, unit="gpu", precision="fp16")
    assert whole.p50_ms == pytest.approx(sum(parts))


def test_an_estimate_is_labelled_predicted_and_carries_its_interval() -> None:
    estimate = estimate_latency(graph(OpCost(kind="conv", name="c", macs=10**9)), NANO, unit="gpu", precision="fp16")
    low, high = INTERVAL_FACTORS["fitted"]
    assert estimate.model_dump()["kind"] == "predicted"
    assert estimate.provenance == "roofline, uncalibrated"
    assert (estimate.lo_ms, estimate.hi_ms) == pytest.approx((estimate.p50_ms * low, estimate.p50_ms * high))


def test_a_device_without_rows_gets_the_wider_interval() -> None:
    fitted, assumed = INTERVAL_FACTORS["fitted"], INTERVAL_FACTORS["assumed"]
    assert assumed[0] < fitted[0] < 1 < fitted[1] < assumed[1]
    assert not load_profile("rtx-4060-laptop").unit("gpu").fitted_rows


def test_fp16_without_fp16_arithmetic_costs_what_fp32_costs() -> None:
    cost = graph(OpCost(kind="conv", name="c", macs=10**8, read_elements=10**7))
    half, full = (estimate_latency(cost, NANO, unit="cpu", precision=p).p50_ms for p in ("fp16", "fp32"))
    assert half == full


def test_int8_without_an_int8_path_is_an_error_that_names_what_runs() -> None:
    with pytest.raises(InputError, match=r"unit 'gpu' .*: no int8 path; it runs: fp32, fp16"):
        estimate_latency(graph(OpCost(kind="conv", name="c")), NANO, unit="gpu", precision="int8")
    with pytest.raises(InputError, match="no int8 path"):
        ProfileCost(NANO, unit="gpu", precision="int8", runtime="tensorrt")


def test_a_unit_that_the_device_lacks_is_an_error() -> None:
    with pytest.raises(InputError, match="no compute unit 'npu'"):
        estimate_latency(graph(), NANO, unit="npu", precision="fp16")


def test_size_and_memory_shrink_with_the_precision_and_memory_exceeds_size() -> None:
    op = OpCost(kind="conv", name="c", weight_elements=2**20)
    cost = GraphCost(ops=(op,), parameters=2**20, peak_activation_elements=2**18)
    sizes = [estimate_size_mib(cost, p) for p in ("fp32", "fp16", "int8")]
    assert sizes == pytest.approx([4, 2, 1], rel=0.01)
    for runtime in ("onnxruntime", "tflite", "tensorrt"):  # int8 of OpenVINO has a larger base (docs/latency.md)
        memory = [estimate_memory_mib(cost, p, runtime) for p in ("fp32", "fp16", "int8")]
        assert memory == sorted(memory, reverse=True)
        assert memory[0] > sizes[0]


def test_the_searchs_cost_model_agrees_with_the_estimate() -> None:
    op = OpCost(kind="conv", name="c", macs=10**7, read_elements=100, write_elements=50, weight_elements=25)
    bare = NANO.unit("gpu").model_copy(update={"calibration_devices": (), "relative_devices": ()})
    unknown = NANO.model_copy(update={"units": (bare,)})
    model = ProfileCost(unknown, unit="gpu", precision="fp16", runtime="tensorrt")
    estimate = estimate_latency(graph(op), NANO, unit="gpu", precision="fp16")
    assert model.provenance == estimate.provenance == "roofline, uncalibrated"
    assert model.work_ms(graph(op)) == pytest.approx(estimate.p50_ms)
    assert model.interval == INTERVAL_FACTORS["fitted"]
    assert model.p90_over_p50 == NANO.p90_over_p50


def test_where_the_unit_has_rows_they_price_the_search_in_place_of_the_roofline() -> None:
    op = OpCost(kind="conv", name="c", op="convolution", macs=10**7, write_elements=50, weight_elements=25)
    model = ProfileCost(NANO, unit="gpu", precision="fp16", runtime="tensorrt")
    fixed, per_weight = model.tariffs[0]
    assert model.provenance == model.estimate(graph(op)).provenance != "roofline, uncalibrated"
    assert per_weight == 0 < fixed
    assert model.graph_ms(graph(op)) + fixed == pytest.approx(model.estimate(graph(op)).p50_ms)
    large = op.model_copy(update={"weight_elements": 10**7})
    beyond = [ms + slope * 10**7 for ms, slope in model.tariffs]
    assert model.graph_ms(graph(large)) + max(beyond) == pytest.approx(model.estimate(graph(large)).p50_ms)


def test_a_width_of_a_network_is_estimated() -> None:
    half, whole = (build_named(f"torchvision:mobilenet_v2{width}", num_classes=10) for width in ("@0.5", ""))
    assert sum(p.numel() for p in half.parameters()) < 0.4 * sum(p.numel() for p in whole.parameters())
