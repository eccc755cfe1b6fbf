"""Plans are pure: the same profile and settings give the same decisions, with reasons."""

from __future__ import annotations

import pytest

from edgekd.errors import InputError, MissingExtraError
from edgekd.pipeline.plan import default_epochs, effective_budgets, make_plan
from edgekd.pipeline.settings import BudgetOverrides, Settings
from edgekd.profile import load_profile, profile_names
from edgekd.targets import load_targets


def plan_for(profile: str, **settings: object):  # type: ignore[no-untyped-def]
    chosen = Settings.model_validate({"profile": profile, **settings})
    return make_plan(
        load_profile(profile), chosen, targets=load_targets(), train_images=54_000, image_size=28, teacher="t"
    )


def test_jetson_nano_gets_fp16_with_the_reason() -> None:
    plan = plan_for("jetson-nano")
    assert plan.precision == "fp16"
    assert plan.scheme is None
    assert plan.qat_epochs == 0
    assert "no int8 path" in plan.reasons[0]


def test_headroom_for_heat_is_shown_with_its_source_and_only_where_there_is_any() -> None:
    assert any(r.startswith("18% of the latency budget kept free") for r in plan_for("galaxy-s24").reasons)
    assert any("third-party: CPU throttling test" in r for r in plan_for("pixel-7").reasons)
    assert not any("kept free" in r for r in plan_for("raspberry-pi-5").reasons)


def test_int8_on_jetson_nano_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"int8 is not legal in tensorrt .*no int8 path"):
        plan_for("jetson-nano", precision="int8")


def test_orin_trains_symmetric_int8_and_sends_the_others_what_they_can_run() -> None:
    plan = plan_for("jetson-orin-nano")
    by_target = {t.target: t for t in plan.targets}
    assert (plan.precision, plan.scheme) == ("int8", "symmetric")
    assert by_target["tensorrt"].precision == "int8"
    assert by_target["onnxruntime"].precision == "fp16"
    assert "symmetric" in by_target["onnxruntime"].why


def test_x86_without_vnni_trains_seven_bit_weights() -> None:
    assert plan_for("x86-avx2").weight_bits == 7
    assert plan_for("x86-avx512-vnni").weight_bits == 8


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_plans_something_legal_for_its_own_runtime(name: str) -> None:
    profile = load_profile(name)
    plan = plan_for(name)
    primary = next(t for t in plan.targets if t.target == profile.primary.target)
    assert primary.precision in profile.primary.precisions


def test_a_missing_default_target_is_refused_but_a_missing_asked_one_is_an_error() -> None:
    targets = load_targets()
    targets["coreml"] = targets["coreml"].model_copy(update={"packages": ("no_such_package",)})
    profile = load_profile("jetson-nano")
    plan = make_plan(profile, Settings(profile="jetson-nano"), targets=targets, train_images=10, image_size=28)
    refused = next(t for t in plan.targets if t.target == "coreml")
    assert refused.precision is None
    assert "pip install 'edgekd[coreml]'" in refused.why
    with pytest.raises(MissingExtraError, match="needs no_such_package"):
        make_plan(
            profile,
            Settings(profile="jetson-nano", targets=("coreml",)),
            targets=targets,
            train_images=10,
            image_size=28,
        )


def test_budgets_from_the_command_line_are_named() -> None:
    budgets = effective_budgets(load_profile("jetson-nano").budgets, BudgetOverrides(latency_p90_ms=3.0))
    assert budgets.latency_p90_ms == 3.0
    assert "set on the command line: latency_p90_ms" in budgets.why


def test_small_data_get_more_epochs_than_large() -> None:
    assert default_epochs(1_000) > default_epochs(50_000) > default_epochs(1_000_000)
