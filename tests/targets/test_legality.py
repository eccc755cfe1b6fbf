"""What a runtime refuses or moves, by the names of its own vocabulary, for real networks on shipped profiles."""

from __future__ import annotations

import importlib
from functools import cache

import pytest
from torch import nn

from edgekd.latency import GraphCost, trace_cost
from edgekd.latency.networks import build_named
from edgekd.profile import Fallback, RuntimeSupport, load_profile, profile_names
from edgekd.profile.operators import aten_names, is_operator, vocabulary_of
from edgekd.targets.legality import explain, misfits, written


@cache
def traced(name: str) -> GraphCost:
    return trace_cost(build_named(name, image_size=224), (1, 3, 224, 224))


def moved(name: str, runtime: RuntimeSupport, precision: str) -> set[tuple[str, str]]:
    return {(found.operator, found.to) for found in misfits(traced(name).operators, runtime, precision)}  # type: ignore[arg-type]


def test_mobilenet_v3_leaves_the_dla_for_its_gates_and_mobilenet_v2_only_for_its_pool() -> None:
    dla = load_profile("jetson-orin-nx").runtime("tensorrt", "npu")
    v2, v3 = (moved(f"torchvision:{name}", dla, "fp16") for name in ("mobilenet_v2", "mobilenet_v3_small"))
    assert ("HardSigmoid", "gpu") in v3 - v2
    assert ("GlobalAveragePool", "gpu") in v2 & v3


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:swin_t", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("profile", ["jetson-nano", "jetson-xavier-nx", "rtx-4060-laptop"])
def test_nothing_is_refused_that_the_exporter_writes_as_primitives(name: str, profile: str) -> None:
    runtime = load_profile(profile).primary
    assert any(fallback.to == "refused" for fallback in runtime.fallbacks)
    assert moved(name, runtime, "fp16") == set()


def test_a_shifted_window_leaves_the_neural_engine_because_core_ml_has_it_gathered() -> None:
    engine = load_profile("iphone-12").primary
    (found,) = misfits(traced("torchvision:swin_t").operators, engine, "fp16")
    assert (found.operator, found.kinds, found.to) == ("gather", ("roll",), "cpu")
    assert explain(found, engine).startswith(
        "gather (of roll) leaves the npu for the cpu in coreml 9 (known not to run"
    )


def test_only_a_convolution_with_gaps_is_moved_by_what_a_profile_says_of_dilation() -> None:
    engine = load_profile("iphone-12").primary
    costs = [trace_cost(nn.Conv2d(3, 8, 3, dilation=gap), (1, 3, 16, 16)) for gap in (1, 2)]
    assert [len(misfits(cost.operators, engine, "fp16")) for cost in costs] == [0, 1]


def test_a_bicubic_enlargement_leaves_the_gpu_delegate() -> None:
    delegate = load_profile("pixel-8").runtime("tflite", "gpu")
    cost = trace_cost(nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 16, 16))
    assert [found.operator for found in misfits(cost.operators, delegate, "fp16")] == ["GATHER_ND"]


def test_a_hard_swish_is_no_operator_of_an_int8_file_for_litert() -> None:
    cpu = load_profile("raspberry-pi-5").primary
    refusing = cpu.model_copy(update={"fallbacks": (Fallback(ops=("HARD_SWISH",), to="refused", why="a test"),)})
    assert moved("torchvision:mobilenet_v3_small", refusing, "fp32") == {("HARD_SWISH", "refused")}
    assert moved("torchvision:mobilenet_v3_small", refusing, "int8") == set()


def test_a_file_is_read_in_its_own_words_and_translated_for_another_runtime() -> None:
    nano = load_profile("jetson-nano")
    assert [found.operator for found in misfits(["HardSwish"], nano.primary, "fp16", vocabulary="onnx")] == [
        "HardSwish"
    ]
    assert misfits(["HARD_SWISH"], nano.primary, "fp16", vocabulary="tflite") == ()  # exported anew, as primitives
    dla = load_profile("jetson-orin-nx").runtime("tensorrt", "npu")
    assert misfits(["HARD_SWISH"], dla, "fp16", vocabulary="tflite")[0].operator == "HardSigmoid"


@pytest.mark.parametrize("target", ["tflite", "coreml", "openvino", "onnxruntime", "tensorrt"])
def test_whatever_is_written_is_a_name_of_the_targets_vocabulary(target: str) -> None:
    cpu = load_profile("raspberry-pi-5").primary.model_copy(update={"target": target, "version": "10.3"})
    kinds = {kind for name in ("onnx", "tflite", "mil", "openvino") for kind in aten_names(name).values()}  # type: ignore[arg-type]
    kinds |= {"depthwise_convolution", "transposed_convolution", "native_layer_norm", "adaptive_avg_pool2d"}
    names = {name for kind in kinds for precision in ("fp32", "int8") for name in written(kind, cpu, precision)}  # type: ignore[arg-type]
    assert len(names) > 60
    assert [name for name in names if not is_operator(name, target)] == []


@pytest.mark.parametrize("name", profile_names())
def test_every_fallback_of_a_shipped_profile_names_operators_of_its_runtime(name: str) -> None:
    for runtime in load_profile(name).runtimes:
        assert vocabulary_of(runtime.target) != "aten"
        assert all(is_operator(op, runtime.target) for fallback in runtime.fallbacks for op in fallback.ops)


def installed(vocabulary: str) -> set[str]:
    """What the vendor's own package lists."""
    if vocabulary == "onnx":
        return {schema.name for schema in pytest.importorskip("onnx").defs.get_all_schemas() if schema.domain == ""}
    if vocabulary == "mil":
        pytest.importorskip("coremltools")
        registry = importlib.import_module("coremltools.converters.mil.mil.ops.registry")
        return {name for name in registry.SSAOpRegistry.core_ops if not name.startswith("_")}
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    listed = {name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    return {name for name in listed if not name.startswith("PLACEHOLDER")}


@pytest.mark.runtime
@pytest.mark.parametrize(("vocabulary", "target"), [("onnx", "tensorrt"), ("tflite", "tflite"), ("mil", "coreml")])
def test_every_operator_of_the_vendors_package_may_be_named(vocabulary: str, target: str) -> None:
    names = installed(vocabulary)
    assert len(names) > 100
    assert sorted(name for name in names if not is_operator(name, target)) == []
