"""What each runtime accepts, as data, and how names become targets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgekd import targets
from edgekd.errors import InputError
from edgekd.targets import QuantSpec, Target, get_target, load_targets, quant_spec_for

NAMES = ["tflite", "coreml", "openvino", "onnxruntime", "tensorrt", "null"]


def test_all_six_targets_load() -> None:
    assert list(load_targets())[:6] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_name_matches_file_and_quant_matches_schemes(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert tuple(spec.scheme for spec in target.quant) == target.schemes


@pytest.mark.parametrize(("alias", "name"), [("onnx", "onnxruntime"), ("litert", "tflite"), ("TRT", "tensorrt")])
def test_usual_aliases_are_taken_at_the_door(alias: str, name: str) -> None:
    assert get_target(alias).name == name


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no target 'openvinno'; did you mean 'openvino'"):
        get_target("openvinno")


def test_tensorrt_takes_symmetric_activations_only() -> None:
    assert quant_spec_for("tensorrt").scheme == "symmetric"
    with pytest.raises(InputError, match="TensorRT runs int8 with symmetric activations, not affine; use symmetric"):
        quant_spec_for("tensorrt", "affine")


def test_onnx_runtime_refuses_the_scheme_that_it_would_run_in_float() -> None:
    with pytest.raises(InputError, match="ONNX Runtime runs int8 with affine activations"):
        quant_spec_for("onnxruntime", "symmetric")


@pytest.mark.parametrize("name", ["tflite", "openvino", "onnxruntime", "coreml"])
def test_the_others_prefer_a_zero_point(name: str) -> None:
    assert quant_spec_for(name).scheme == "affine"


def test_weight_bits_reach_the_specification() -> None:
    assert quant_spec_for("openvino", "affine", 7).weight_max == 63
    assert quant_spec_for("openvino", "affine").weight_max == 127


def test_a_target_without_int8_says_what_to_use() -> None:
    floats = Target(name="f", title="F", suffix=".f", extra="f", packages=(), precisions=("fp32",))
    with pytest.raises(InputError, match="F takes fp32, not int8; use fp16 or fp32"):
        quant_spec_for(floats)


def test_a_third_party_target_joins_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Target(name="mine", title="Mine", suffix=".m", extra="", packages=(), precisions=("fp32",))

    class Entry:
        name = "mine"

        def load(self) -> Target:
            return mine

    monkeypatch.setattr(targets, "entry_points", lambda group: [Entry()])
    targets._targets.cache_clear()
    try:
        assert get_target("mine") is mine
        assert list(load_targets()) == [*NAMES, "mine"]
    finally:
        targets._targets.cache_clear()


def test_targets_come_from_a_clone_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "entry_points", lambda group: [])
    targets._targets.cache_clear()
    try:
        assert list(load_targets()) == NAMES
    finally:
        targets._targets.cache_clear()


def test_a_target_that_is_not_a_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "odd"

        def load(self) -> object:
            return "TARGET"

    monkeypatch.setattr(targets, "entry_points", lambda group: [Entry()])
    targets._targets.cache_clear()
    try:
        with pytest.raises(InputError, match="entry point 'odd' is a str, not a Target"):
            load_targets()
    finally:
        targets._targets.cache_clear()


def test_loading_targets_imports_neither_torch_nor_a_vendor_package() -> None:
    code = (
        "import sys, edgekd.targets as t; t.load_targets(); "
        "heavy = {'torch', 'openvino', 'coremltools', 'onnxruntime', 'litert_torch', 'tensorrt_rtx', 'onnx'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_without_importing_it() -> None:
    gone = Target(
        name="g", title="G", suffix=".g", extra="g", packages=("json", "no_such_package"), precisions=("fp32",)
    )
    assert gone.missing() == "no_such_package"


@pytest.mark.parametrize("bits", [7, 8])
def test_weight_codes_are_symmetric(bits: int) -> None:
    spec = QuantSpec.model_validate({"scheme": "affine", "weight_bits": bits})
    assert spec.weight_max == 2 ** (bits - 1) - 1
