"""Every profile that ships is valid and says where its numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.profile import HardwareProfile, check_profile, facts_of, family_names, load_profile, profile_names
from edgekd.targets import get_target, quant_spec_for

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "profiles").glob("*.toml"))
FAMILIES = sorted((ROOT / "profiles" / "families").glob("*.toml"))
# What the issue names, by the names that users type.
ASKED_FOR = [
    "jetson-nano",
    "jetson-tx2",
    "jetson-xavier-nx",
    "jetson-agx-xavier",
    "jetson-orin-nano",
    "jetson-orin-nano@15w",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-agx-thor",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2w",
    "pixel-6",
    "pixel-7",
    "pixel-8",
    "galaxy-s21",
    "galaxy-s22",
    "galaxy-s23",
    "galaxy-s24",
    "galaxy-s25",
    "galaxy-a54",
    "android-snapdragon-680",
    "iphone-12",
    "iphone-13",
    "iphone-14",
    "iphone-15",
    "iphone-16",
    "x86-avx2",
    "x86-n100",
    "xeon-avx512-vnni",
    "xeon-amx",
    "core-ultra-npu",
    "cortex-m7-stm32h743",
]


COUNTS_AND_RATIOS = (
    "efficiency",
    "p90_over_p50",
    "headroom",
    "_opset_min",
    "_opset_max",
    "_version_max",
    "weight_bits",
)
ALL = {path.stem: load_profile(path.stem) for path in SHIPPED}


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def shipped(request: pytest.FixtureRequest) -> HardwareProfile:
    path: Path = request.param
    return ALL[path.stem]


def test_every_file_in_the_folder_is_offered_by_name() -> None:
    assert profile_names() == sorted(path.stem for path in SHIPPED)
    assert len(SHIPPED) >= 30
    assert {load_profile(name).name for name in ASKED_FOR} == set(ASKED_FOR)


def test_families_are_right_and_are_no_devices() -> None:
    assert family_names() == sorted(path.stem for path in FAMILIES)
    for path in FAMILIES:
        assert check_profile(str(path)) == (None, [])
    with pytest.raises(InputError, match="no profile 'jetson-orin'; it is a family that profiles extend"):
        load_profile("jetson-orin")


def test_what_ships_passes_its_own_check(shipped: HardwareProfile) -> None:
    assert check_profile(shipped.name) == (shipped, [])


def test_numbers_of_runtimes_and_of_the_quantisation_are_facts_with_a_source() -> None:
    facts = {(fact.table, fact.key): fact for fact in facts_of(load_profile("x86-avx2"))}
    assert facts["runtimes[onnxruntime on cpu]", "onnx_opset_max"].value == 21
    assert facts["quantisation", "weight_bits"].source.startswith("OpenVINO documentation")
    assert ("quantisation", "weight_bits") not in {(f.table, f.key) for f in facts_of(load_profile("xeon-amx"))}


def test_a_cpu_without_fp16_says_that_fp16_files_run_as_fp32_there() -> None:
    for name in ("raspberry-pi-4", "x86-avx2", "jetson-nano", "core-ultra-npu"):
        assert load_profile(name).unit("cpu").fp16_runs_as_fp32, name
    assert not load_profile("raspberry-pi-5").unit("cpu").fp16_runs_as_fp32  # Cortex-A76 has fp16 arithmetic


def test_file_name_is_profile_name(shipped: HardwareProfile) -> None:
    assert (ROOT / "profiles" / f"{shipped.name}.toml").is_file()


def test_every_runtime_is_a_target_that_takes_what_the_profile_lists(shipped: HardwareProfile) -> None:
    for runtime in shipped.runtimes:
        target = get_target(runtime.target)
        assert [target.why_not(precision) for precision in runtime.precisions] == [None] * len(runtime.precisions)


def test_every_number_has_a_source_and_a_confidence(shipped: HardwareProfile) -> None:
    for mode in (None, *(mode.name for mode in shipped.power_modes)):
        for fact in facts_of(shipped if mode is None else shipped.in_mode(mode)):
            assert fact.source != "not stated", fact
            assert fact.unit or fact.key.endswith(COUNTS_AND_RATIOS), fact


def test_a_power_mode_is_never_faster_than_the_default_and_draws_no_more(shipped: HardwareProfile) -> None:
    for mode in (shipped.in_mode(mode.name) for mode in shipped.power_modes):
        for unit in mode.units:
            whole = shipped.unit(unit.kind)
            for key in ("cores", "peak_fp32_gflops", "peak_fp16_gflops", "peak_int8_gops", "dram_gb_per_s"):
                assert (getattr(unit, key) or 0) <= (getattr(whole, key) or 0), (mode.name, key)
        assert load_profile(mode.name) in (mode, shipped)


def test_units_name_their_design_and_silicon_to_borrow_from(shipped: HardwareProfile) -> None:
    for unit in shipped.units:
        assert unit.architecture
        assert not set(unit.calibration_devices) & set(unit.relative_devices)
    if shipped.kind in ("jetson", "android", "iphone", "raspberry-pi"):
        assert all(unit.calibration_devices or unit.relative_devices for unit in shipped.units if unit.kind != "gpu")


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


def test_the_documents_table_is_what_ships() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    table = page.partition("<!-- devices begin -->")[2].partition("<!-- devices end -->")[0]
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    assert sorted(rows) == profile_names()
    for name, line in rows.items():
        profile = load_profile(name)
        units = ", ".join(
            f"{unit.kind} ({'rows' if unit.calibration_devices else 'relatives' if unit.relative_devices else 'none'})"
            for unit in profile.units
        )
        modes = ", ".join(f"`@{mode.name}`" for mode in profile.power_modes if mode.name != profile.power_mode)
        title = f"{profile.title} (experiment)" if profile.experimental else profile.title
        cells = [f"`{name}`", title, units, profile.primary.target]
        assert line.strip("| ").startswith(" | ".join(cells)), line
        assert line.split(" | ")[-1].strip("| ") == modes, line
