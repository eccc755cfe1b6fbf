"""Legality comes before prices: refused operators never enter a search, and a switch of units is the last resort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_files import teacher_file, tiny_npz

from edgekd.data import Dataset
from edgekd.errors import InputError
from edgekd.pipeline import choosing
from edgekd.pipeline.context import Inputs, load_inputs, plan_of
from edgekd.pipeline.plan import make_plan
from edgekd.pipeline.screening import Listed, Pool, screen
from edgekd.pipeline.selecting import document
from edgekd.pipeline.settings import Settings
from edgekd.profile import Fallback, HardwareProfile, load_profile, profile_names
from edgekd.students import Figures, PrunedSpec, StudentSpec, ZooSpec, build, student_operators
from edgekd.students.spaces import zoo
from edgekd.targets import load_targets

PI = """
extends = "raspberry-pi-5"
name = "my-pi"
title = "A Raspberry Pi 5 whose LiteRT lacks an operator"
[[runtimes]]
target = "tflite"
unit = "cpu"
fallbacks = [{ ops = ["HARD_SWISH"], to = "refused", why = "not in this build" }]
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Callable[..., Settings]:
    """For a Raspberry Pi that refuses a hard swish, with an untrained teacher."""
    folder = tmp_path_factory.mktemp("legality")
    data, teacher = tiny_npz(folder, tiny_dataset), teacher_file(folder, tiny_dataset, depth=16, width=2)
    (folder / "my-pi.toml").write_text(PI)

    def make(**changes: Any) -> Settings:
        base = {"profile": str(folder / "my-pi.toml"), "data": str(data), "targets": ("null",)}
        base |= {"teacher": str(teacher), "precision": "fp32"}
        return Settings.model_validate({**base, **changes})

    return make


def selected(settings: Settings, profile: HardwareProfile | None = None) -> tuple[Any, dict[str, Any]]:
    inputs = load_inputs(settings)
    if profile is not None:
        inputs = Inputs(profile, inputs.dataset, inputs.teacher)
    plan = plan_of(settings, inputs.profile, inputs.dataset, inputs.teacher)
    found = choosing.choose(inputs, plan)
    return found, document(inputs, plan, found, settings)


def test_no_candidate_has_an_operator_that_the_runtime_refuses(settings: Callable[..., Settings]) -> None:
    found, told = selected(settings(spaces=("gated", "inverted-residual")))
    candidates = [*found.top, *found.front]
    assert len(candidates) > 20
    assert not any("hardswish" in student_operators(candidate.spec) for candidate in candidates)
    (left_out,) = found.left_out
    assert (left_out.space, left_out.misfit.operator) == ("gated", "HARD_SWISH")
    line = f"left out: {left_out.students:,} students of gated, since HARD_SWISH (of hardswish) is refused by tflite"
    assert any(reason.startswith(line) and "not in this build" in reason for reason in told["reasons"])
    assert told["left_out"][0]["misfit"]["to"] == "refused"
    assert told["operators_elsewhere"] == []


def test_int8_files_have_no_such_operator_so_nobody_is_left_out(settings: Callable[..., Settings]) -> None:
    found, told = selected(settings(spaces=("gated",), precision="int8"))
    assert found.left_out == ()
    assert not any("left out" in reason for reason in told["reasons"])


def test_where_every_candidate_is_refused_one_line_names_the_operator(settings: Callable[..., Settings]) -> None:
    with pytest.raises(
        InputError, match=r"no student of \d+ can run: HARD_SWISH .* is refused by tflite .*--space"
    ) as e:
        selected(settings(spaces=("hybrid",)))
    assert e.value.exit_code == 2
    assert "\n" not in str(e.value)


def test_a_zoo_keeps_the_networks_without_the_operator(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small", "timm:lcnet_035", "torchvision:mnasnet0_5")
    monkeypatch.setattr(zoo, "NETWORKS", names)
    found, _ = selected(settings(spaces=("zoo",), budgets={"teacher_macs_fraction": 1.0, "latency_p90_ms": 500}))
    assert {spec.name for spec in (candidate.spec for candidate in found.top) if isinstance(spec, ZooSpec)} <= {
        "torchvision:squeezenet1_1",
        "torchvision:mnasnet0_5",
    }
    (left_out,) = found.left_out
    assert (left_out.space, left_out.students) == ("zoo", 2)


def test_a_pruned_teacher_with_the_operator_never_enters(settings: Callable[..., Settings]) -> None:
    inputs = load_inputs(settings())
    plan = plan_of(settings(), inputs.profile, inputs.dataset, inputs.teacher)
    pools = []
    for name in ("timm:mobilenetv3_small_050", "edgekd:wrn16-2"):
        spec = PrunedSpec(architecture=name, ratio=0.5, image_size=32, in_channels=3, num_classes=10)
        cost = choosing.trace_cost(build(spec), (1, 3, 32, 32))
        pools.append(Pool(name, None, (Listed(spec, Figures.model_construct(), cost.operators),)))
    screened = screen(pools, inputs, plan)
    assert [pool.size for pool in screened.legal] == [0, 1]
    assert [one.students for one in screened.refused] == [1]


def dla_first() -> HardwareProfile:
    """The Orin NX with its DLA in front. Made, not real: the peak, which nobody publishes; none of it is compared."""
    orin = load_profile("jetson-orin-nx")
    dla = orin.runtime("tensorrt", "npu")
    units = tuple(
        unit.model_copy(update={"peak_fp16_gflops": 5_000.0}) if unit.kind == "npu" else unit for unit in orin.units
    )
    quantisation = orin.quantisation.model_copy(update={"preferred_precision": "fp16"})
    rest = tuple(runtime for runtime in orin.runtimes if runtime != dla)
    return orin.model_copy(update={"units": units, "runtimes": (dla, *rest), "quantisation": quantisation})


def test_students_that_stay_on_the_unit_come_first(settings: Callable[..., Settings]) -> None:
    found, told = selected(settings(spaces=("gated",), precision="fp16"), dla_first())
    assert not any(student_operators(one.spec) & {"hardswish", "hardsigmoid"} for one in found.top)
    assert {one.misfit.to for one in found.left_out} == {"gpu"}
    assert any(
        reason.startswith("set aside: ") and "leaves the npu for the gpu" in reason for reason in told["reasons"]
    )
    assert told["operators_elsewhere"] == []


def test_a_student_that_switches_is_chosen_only_where_no_other_is_there_and_its_latency_is_said_to_lack_the_switch(
    settings: Callable[..., Settings],
) -> None:
    found, told = selected(settings(spaces=("hybrid",), precision="fp16"), dla_first())
    assert isinstance(found.chosen.spec, StudentSpec)
    assert {one["operator"] for one in told["operators_elsewhere"]} >= {"HardSigmoid", "Transpose", "Reshape"}
    (said,) = [reason for reason in told["reasons"] if reason.startswith("the student's ")]
    assert "HardSigmoid (of hardswish) leaves the npu for the gpu" in said
    assert said.endswith("the latency is predicted without the switch, whose cost nobody states")


def test_an_impossible_budget_is_still_the_answer_where_operators_move(settings: Callable[..., Settings]) -> None:
    with pytest.raises(InputError, match=r"no student of \d+ fits; the cheapest misses latency_p90_ms"):
        selected(settings(spaces=("gated",), precision="fp16", budgets={"latency_p90_ms": 1e-4}), dla_first())


def made_plan(profile: HardwareProfile, **settings: Any) -> Any:
    chosen = Settings.model_validate({"profile": profile.name, **settings})
    return make_plan(profile, chosen, targets=load_targets(), train_images=54_000, image_size=28)


@pytest.mark.parametrize("name", profile_names())
def test_a_precision_or_scheme_that_the_first_runtime_does_not_take_is_never_planned(name: str) -> None:
    profile = load_profile(name)
    target = load_targets()[profile.primary.target]
    for precision in ("fp32", "fp16", "int8"):
        if precision not in profile.primary.precisions:
            with pytest.raises(InputError, match=f"{precision} is not legal in {profile.primary.target}"):
                made_plan(profile, precision=precision)
            continue
        plan = made_plan(profile, precision=precision)
        assert plan.precision == precision
        assert target.why_not(plan.precision, plan.scheme) is None
        assert plan.scheme is None or plan.scheme in (profile.primary.schemes or target.schemes)
        for planned in plan.exports:
            runtime = next((r for r in profile.runtimes if r.target == planned.target), None)
            assert runtime is None or runtime.takes(planned.precision)


def test_int8_that_was_asked_for_has_the_scheme_of_the_runtime_not_of_a_habit() -> None:
    """A profile that prefers fp16 need not name a scheme; TensorRT takes symmetric activations alone."""
    rtx = load_profile("rtx-4060-laptop")
    silent = rtx.model_copy(update={"quantisation": rtx.quantisation.model_copy(update={"scheme": None})})
    assert made_plan(silent, precision="int8").scheme == "symmetric"
    wrong = rtx.model_copy(update={"quantisation": rtx.quantisation.model_copy(update={"scheme": "affine"})})
    with pytest.raises(InputError, match="TensorRT takes int8 with symmetric activations on this device, not affine"):
        made_plan(wrong, precision="int8")


def test_a_fallback_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="why"):
        Fallback.model_validate_json('{"ops": ["HARD_SWISH"], "to": "cpu"}')
