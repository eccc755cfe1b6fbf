"""A converted network costs what its module costs: the files' readers agree with the tracer."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.latency import cost_of_file

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("target", "suffix"), [("onnxruntime", ".onnx"), ("tflite", ".tflite"), ("null", ".pt2")])
def test_a_file_has_the_multiply_adds_and_weights_of_its_module(exported, multiply_adds, target, suffix, precision):
    artifact = exported(target, precision)
    path = Path(artifact.path)
    file = path if path.suffix == suffix else next(path.glob(f"*{suffix}"))
    cost = cost_of_file(file)
    assert not cost.unknown
    assert cost.macs == multiply_adds
    assert [op.kind for op in cost.ops if op.macs] == ["conv", "depthwise", "conv", "conv", "linear"]
    float_cost = cost_of_file(Path(exported("null", "fp32").path))
    assert sum(op.weight_elements for op in cost.ops if op.macs) == pytest.approx(float_cost.weight_elements, rel=0.05)
