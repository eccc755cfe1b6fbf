"""Every profile that ships is valid and says where its numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.profile import HardwareProfile, load_profile, parse_profile, profile_names
from edgekd.targets import get_target, quant_spec_for

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "profiles").rglob("*.toml"))


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def shipped(request: pytest.FixtureRequest) -> HardwareProfile:
    path: Path = request.param
    return parse_profile(path.read_text(encoding="utf-8"), where=path.name)


def test_every_file_in_the_folder_is_offered_by_name() -> None:
    assert profile_names() == [path.stem for path in SHIPPED]
    assert len(SHIPPED) >= 9


def test_file_name_is_profile_name(shipped: HardwareProfile) -> None:
    assert (ROOT / "profiles" / f"{shipped.name}.toml").is_file()


def test_every_runtime_is_a_target_that_takes_what_the_profile_lists(shipped: HardwareProfile) -> None:
    for runtime in shipped.runtimes:
        target = get_target(runtime.target)
        assert [target.why_not(precision) for precision in runtime.precisions] == [None] * len(runtime.precisions)


def test_its_quantisation_scheme_is_one_that_the_first_runtime_runs_as_int8(shipped: HardwareProfile) -> None:
    if shipped.quantisation.preferred_precision == "int8":
        spec = quant_spec_for(shipped.primary.target, shipped.quantisation.scheme, shipped.quantisation.weight_bits)
        assert spec.weight_bits == shipped.quantisation.weight_bits


def test_reasons_and_sources_are_sentences_not_placeholders(shipped: HardwareProfile) -> None:
    texts = [unit.source for unit in shipped.units] + [shipped.quantisation.why, shipped.budgets.why]
    assert all(len(text.split()) >= 5 for text in texts), texts


def test_recalled_numbers_are_marked_as_such(shipped: HardwareProfile) -> None:
    for unit in shipped.units:
        if "assumed at" in unit.source or unit.source.startswith("recalled"):
            assert unit.confidence == "recalled"


def test_fitted_units_say_so_in_their_source(shipped: HardwareProfile) -> None:
    for unit in shipped.units:
        assert bool(unit.fitted_rows) == ("fitted to" in unit.source), unit.name


def test_lower_precision_is_never_a_lower_peak(shipped: HardwareProfile) -> None:
    for unit in shipped.units:
        peaks = [p for p in (unit.peak_fp32_gflops, unit.peak_fp16_gflops, unit.peak_int8_gops) if p is not None]
        assert peaks == sorted(peaks)


@pytest.mark.parametrize(
    ("name", "precision", "scheme"),
    [
        ("jetson-nano", "fp16", None),
        ("jetson-orin-nano", "int8", "symmetric"),
        ("raspberry-pi-5", "int8", "affine"),
        ("pixel-8", "int8", "affine"),
        ("galaxy-s24", "int8", "affine"),
        ("iphone-15", "fp16", "affine"),
        ("x86-avx512-vnni", "int8", "affine"),
    ],
)
def test_precision_follows_the_silicon(name: str, precision: str, scheme: str | None) -> None:
    quantisation = load_profile(name).quantisation
    assert (quantisation.preferred_precision, quantisation.scheme) == (precision, scheme)


def test_seven_bit_weights_exactly_where_accumulation_saturates() -> None:
    seven = [name for name in profile_names() if load_profile(name).quantisation.weight_bits == 7]
    assert seven == ["x86-avx2"]
    assert "saturates" in load_profile("x86-avx2").quantisation.why


def test_jetson_nano_says_why_it_gets_no_int8() -> None:
    nano = load_profile("jetson-nano")
    assert "FP16, not INT8" in nano.quantisation.why
    assert "int8" not in nano.primary.precisions
    assert nano.primary.onnx_opset_max == 13


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no profile 'jetson-nanno'; did you mean 'jetson-nano'"):
        load_profile("jetson-nanno")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.toml: no such profile file"):
        load_profile(str(tmp_path / "mine.toml"))


def test_a_file_of_ones_own_loads_by_path(tmp_path: Path) -> None:
    text = (ROOT / "profiles" / "jetson-nano.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace('"jetson-nano"', '"mine"'), encoding="utf-8")
    assert load_profile(str(tmp_path / "mine.toml")).name == "mine"


def test_asking_for_a_unit_or_runtime_that_is_not_there_names_those_that_are() -> None:
    nano = load_profile("jetson-nano")
    with pytest.raises(InputError, match="no compute unit 'npu'; it has: gpu, cpu"):
        nano.unit("npu")
    with pytest.raises(InputError, match="no runtime 'coreml'; it has: tensorrt, onnxruntime, tflite"):
        nano.runtime("coreml")


def test_int8_weights_are_legal_exactly_where_float_is() -> None:
    nano = load_profile("jetson-nano").primary
    assert nano.takes("w8")
    assert not nano.takes("int8")
    assert not nano.model_copy(update={"precisions": ("int8",)}).takes("w8")
