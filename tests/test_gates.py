"""The truth table of the gates: what passes, what fails, and what may only be called unverified."""

from __future__ import annotations

from typing import Any

import pytest
from example_report import example_report

from edgekd.gates import evaluate_gates
from edgekd.report.document import Gate, RunReport


def gate(report: RunReport, name: str) -> Gate:
    found = [g for g in evaluate_gates(report) if g.name.startswith(name)]
    assert len(found) == 1, [g.name for g in evaluate_gates(report)]
    return found[0]


def rows(report: RunReport, field: str) -> list[dict[str, Any]]:
    return [row.model_dump() for row in getattr(report, field)]


def with_top1(role: str, top1: float, **more: Any) -> RunReport:
    """The example with one accuracy replaced, and no accuracy of an artifact to overrule it."""
    accuracies = [row for row in rows(example_report(), "accuracies") if row["role"] not in ("artifact", "quantised")]
    for row in accuracies:
        if row["role"] == role:
            row.update(top1=top1, lo=top1 - 0.005, hi=top1 + 0.005)
    return example_report(accuracies=accuracies, **more)


def with_data_note(note: str) -> dict[str, Any]:
    return {**example_report().data.model_dump(), "note": note}


@pytest.mark.parametrize(
    ("student_top1", "state"), [(0.95 * 0.9412 + 1e-4, "pass"), (0.95 * 0.9412 - 1e-4, "fail"), (0.99, "pass")]
)
def test_a_student_must_reach_95_percent_of_its_teacher(student_top1: float, state: str) -> None:
    assert gate(with_top1("student", student_top1), "accuracy").state == state


@pytest.mark.parametrize(("baseline_top1", "state"), [(0.70, "pass"), (0.80, "fail")])
def test_a_student_far_from_its_teacher_may_still_win_over_its_own_baseline(baseline_top1: float, state: str) -> None:
    accuracies = rows(with_top1("student", 0.80), "accuracies")
    for row in accuracies:
        if row["role"] == "baseline":
            row.update(top1=baseline_top1, lo=baseline_top1, hi=baseline_top1)
    assert gate(example_report(accuracies=accuracies), "accuracy").state == state


def test_the_accuracy_that_counts_is_the_deployed_artifacts_own() -> None:
    accuracies = rows(example_report(), "accuracies")
    for row in accuracies:
        if row["artifact"] == "tflite-int8":
            row.update(top1=0.5, lo=0.49, hi=0.51)
    assert gate(example_report(accuracies=accuracies), "accuracy").state == "fail"


def test_a_validation_accuracy_does_not_count_as_the_test_set() -> None:
    accuracies = [{**row, "split": "val"} for row in rows(example_report(), "accuracies")]
    assert gate(example_report(accuracies=accuracies), "accuracy").state == "unverified"


def test_a_subset_leaves_every_accuracy_gate_unverified_and_says_smoke_numbers() -> None:
    report = example_report(data=with_data_note("subset: smoke numbers only"))
    for name in ("accuracy", "distillation does no harm", "int8 accuracy loss"):
        assert gate(report, name).state == "unverified"
        assert "smoke numbers only" in gate(report, name).why


def test_a_student_two_points_under_its_own_baseline_has_collapsed() -> None:
    assert gate(with_top1("student", 0.9174 - 0.021), "distillation").state == "fail"
    assert gate(with_top1("student", 0.9174 - 0.019), "distillation").state == "pass"


def changed_artifact(name: str, check: dict[str, Any] | None = None, **fields: Any) -> RunReport:
    artifacts = rows(example_report(), "artifacts")
    for row in artifacts:
        if f"{row['target']}-{row['precision']}" == name:
            row.update(fields)
            if check is not None:
                row["check"].update(check)
    return example_report(artifacts=artifacts)


@pytest.mark.parametrize(
    ("check", "state"),
    [
        ({}, "pass"),
        ({"snr_db": 29.9}, "fail"),
        ({"agreement": 0.989}, "fail"),
        ({"snr_db": None, "executed": False}, "unverified"),
        ({"executed": False, "executed_in": "MIL interpreter"}, "unverified"),
        ({"snr_db": 20.0, "min_snr_db": 18.0}, "pass"),
    ],
)
def test_parity_passes_only_in_the_runtime_itself_and_over_the_bars(check: dict[str, Any], state: str) -> None:
    assert gate(changed_artifact("tflite-int8", check), "parity: tflite-int8").state == state


def test_an_artifact_whose_check_failed_fails_even_with_good_figures() -> None:
    report = changed_artifact("tflite-int8", state="exported-check-failed", reason="3 of 9 convolutions are float")
    assert gate(report, "parity: tflite-int8").state == "fail"
    assert gate(report, "parity: tflite-int8").why == "3 of 9 convolutions are float"


def test_an_artifact_that_was_not_exported_fails_with_its_reason() -> None:
    assert "pip install" in gate(example_report(), "parity: openvino-fp16").why


@pytest.mark.parametrize(
    ("check", "state"),
    [
        ({"int8_ops": 23, "compute_ops": 23}, "pass"),
        ({"int8_ops": 22, "compute_ops": 23}, "fail"),
        ({"int8_ops": None}, "unverified"),
        ({"int8_ops": 0, "compute_ops": 0}, "unverified"),
        ({"int8_ops": 22, "compute_ops": 23, "convs": 22, "int8_convs": 22}, "pass"),
        ({"int8_ops": 22, "compute_ops": 23, "convs": 22, "int8_convs": 21}, "fail"),
    ],
)
def test_int8_must_be_int8_in_every_convolution(check: dict[str, Any], state: str) -> None:
    assert gate(changed_artifact("tflite-int8", check), "int8 is int8: tflite").state == state


@pytest.mark.parametrize(("int8_top1", "state"), [(0.9268, "pass"), (0.9267, "fail")])
def test_int8_may_lose_half_a_point(int8_top1: float, state: str) -> None:
    accuracies = rows(example_report(), "accuracies")
    for row in accuracies:
        if row["artifact"] == "openvino-int8":  # the worst int8 form decides, not the primary one
            row.update(top1=int8_top1, lo=int8_top1, hi=int8_top1)
    assert gate(example_report(accuracies=accuracies), "int8 accuracy loss").state == state


def test_a_post_training_result_beside_the_shipped_one_decides_nothing() -> None:
    beside = {**rows(example_report(), "accuracies")[4], "name": "int8 by PTQ", "artifact": "", "top1": 0.5, "lo": 0.4}
    report = example_report(accuracies=[*rows(example_report(), "accuracies"), beside])
    assert gate(report, "int8 accuracy loss").state == "pass"


def test_a_float_run_has_no_int8_gates() -> None:
    artifacts = [row for row in rows(example_report(), "artifacts") if row["precision"] != "int8"]
    accuracies = [row for row in rows(example_report(), "accuracies") if row["precision"] != "int8"]
    report = example_report(artifacts=artifacts, accuracies=accuracies)
    assert not [g.name for g in evaluate_gates(report) if "int8" in g.name]


def predicted(quantity: str, value: float, lo: float, hi: float) -> list[dict[str, Any]]:
    return [{"what": "student", "quantity": quantity, "value": value, "lo": lo, "hi": hi, "provenance": "test"}]


BUDGETS = (("latency p90", "latency_p90_ms", 4.0), ("peak memory", "peak_memory_mib", 64.0))


@pytest.mark.parametrize(("name", "quantity", "budget"), BUDGETS)
@pytest.mark.parametrize("fraction", [1e-6, 0.1, 0.5, 0.99, 1.0, 1.2, 3.0])
def test_a_prediction_never_passes_a_budget_gate(name: str, quantity: str, budget: float, fraction: float) -> None:
    value = fraction * budget
    report = example_report(predicted=predicted(quantity, value, 0.9 * value, 1.1 * value))
    found = gate(report, name)
    assert found.state == ("fail" if 0.9 * value > budget else "unverified")
    assert "predicted" in found.figure


def test_only_the_optimistic_bound_can_make_a_prediction_fail() -> None:
    report = example_report(predicted=predicted("latency_p90_ms", 9.0, 3.9, 20.0))
    assert gate(report, "latency p90").state == "unverified"
    assert "probably misses" in gate(report, "latency p90").why


def test_a_predicted_median_over_the_p90_budget_fails_too() -> None:
    report = example_report(predicted=predicted("latency_p50_ms", 5.0, 4.1, 6.0))
    assert gate(report, "latency p90").state == "fail"


def test_neither_measured_nor_predicted_is_unverified() -> None:
    report = example_report(predicted=[])
    assert gate(report, "latency p90").state == gate(report, "peak memory").state == "unverified"


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"p90_ms": 3.9}, "pass"),
        ({"p90_ms": 4.1}, "fail"),
        ({"p90_ms": None}, "unverified"),
        ({"p90_ms": 3.9, "verdict": "noisy"}, "unverified"),
        ({"p90_ms": 4.1, "verdict": "noisy"}, "fail"),
        ({"p90_ms": 3.9, "verdict": "fallback"}, "unverified"),
        ({"p90_ms": 3.9, "on_profile_device": False}, "unverified"),
    ],
)
def test_a_measurement_on_the_profiles_device_decides_its_latency_budget(fields: dict[str, Any], state: str) -> None:
    measurements = rows(example_report(), "measurements")
    for row in measurements:
        if row["artifact"] == "tflite-int8":
            row.update({"on_profile_device": True, **fields})
    assert gate(example_report(measurements=measurements), "latency p90").state == state


def attached(p90_ms: float, **fields: Any) -> RunReport:
    """The example, its int8 file also measured on a device that `--on` named, as its teacher was."""
    there = {"on_profile_device": True, "device": "pi", "p90_ms": p90_ms, "peak_memory_mib": 63.0}
    base = example_report()
    measured = next(row for row in rows(base, "measurements") if row["artifact"] == "tflite-int8")
    ratio = next(row for row in rows(base, "ratios") if row["key"] == "teacher-best-to-student")
    return example_report(
        measurements=[*rows(base, "measurements"), {**measured, **there}],
        ratios=[*rows(base, "ratios"), {**ratio, "device": "pi", "on_profile_device": True, "lo": 0.9}],
        attached={"name": "pi", "address": "ssh://pi", **fields},
    )


@pytest.mark.parametrize(
    ("p90_ms", "unlike", "state"),
    [
        (3.9, (), "pass"),
        (4.1, (), "fail"),
        (3.9, ("pi does not look like it",), "unverified"),
        (4.1, ("pi does not look like it",), "fail"),
    ],
)
def test_the_attached_device_decides_unless_it_looks_like_another(
    p90_ms: float, unlike: tuple[str, ...], state: str
) -> None:
    report = attached(p90_ms, unlike=unlike)
    found, memory = gate(report, "latency p90"), gate(report, "peak memory")
    assert found.state == state
    assert found.figure.startswith(f"measured {p90_ms} ms on pi")
    assert memory.state == ("unverified" if unlike else "pass")
    assert found.why == (unlike[0] if state == "unverified" else found.why)


def test_a_speedup_on_the_attached_device_has_a_gate_of_its_own() -> None:
    found = [g for g in evaluate_gates(attached(3.9)) if g.name.startswith("faster than the teacher's best export")]
    assert [(g.name.partition("export")[2], g.state) for g in found] == [("", "pass"), (" on pi", "fail")]


def test_a_device_that_could_not_be_measured_leaves_its_budget_unverified_with_the_reason() -> None:
    found = gate(example_report(attached={"name": "pi", "address": "ssh://pi", "reason": "it went"}), "latency p90")
    assert found.state == "unverified"
    assert "(not measured on pi: it went)" in found.why


@pytest.mark.parametrize(("size_bytes", "state"), [(4 * 2**20, "pass"), (4 * 2**20 + 1, "fail")])
def test_size_is_decided_by_the_file(size_bytes: int, state: str) -> None:
    assert gate(changed_artifact("tflite-int8", size_bytes=size_bytes), "artifact size").state == state


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "pass"),
        ({"lo": 0.99, "significant": False}, "fail"),
        ({"ratio": 0.5, "lo": 0.4, "hi": 0.6}, "fail"),
        ({"ratio": None}, "unverified"),
        ({"artifact": "openvino-fp16"}, "unverified"),
    ],
)
def test_a_speedup_counts_when_its_interval_excludes_one_and_its_output_is_right(
    fields: dict[str, Any], state: str
) -> None:
    ratios = rows(example_report(), "ratios")
    ratios[0].update(fields)
    assert gate(example_report(ratios=ratios), "faster than the teacher as run today").state == state


def assessment(**changes: Any) -> dict[str, Any]:
    """What a good student's tests say."""
    classes = [{"name": f"c{k}", "n": 1000, "teacher": 0.94, "student": 0.93, "baseline": 0.91} for k in range(10)]
    rows = [
        {"corruption": name, "severity": severity, "student": 0.80 - 0.02 * severity, "teacher": 0.82 - 0.02 * severity}
        for name in ("jpeg", "gaussian noise")
        for severity in (1, 3, 5)
    ]
    document = {
        "n_test": 10_000,
        "duplicates": 3,
        "corruptions": rows,
        "n_corrupted": 512,
        "student_clean": 0.93,
        "teacher_clean": 0.94,
        "classes": classes,
        "teacher_wrong": 600,
        "student_right": 200,
        "student_same": 300,
        "baseline_same": 250,
        "ece_student": 0.03,
        "ece_teacher": 0.02,
    }
    return {**document, **changes}


TEACHING = {"taught": "dkd", "advised": "dkd", "asked": True, "teacher_bytes": 2_800_000}


def transfer_gate(name: str, *, teaching: dict[str, Any] | None = None, **changes: Any) -> Gate:
    return gate(example_report(assessment=assessment(**changes), teaching={**TEACHING, **(teaching or {})}), name)


def test_a_good_transfer_passes_every_gate_of_it() -> None:
    report = example_report(assessment=assessment(), teaching=TEACHING)
    names = {
        "test images are held out",
        "other distribution (corruptions)",
        "calibration (ECE)",
        "no class left behind",
        "negative transfer",
        "compression and speedup measured",
        "method chosen for a reason",
    }
    found = {gate.name: gate for gate in evaluate_gates(report) if gate.name in names}
    assert set(found) == names
    assert {name: (g.state, g.why) for name, g in found.items() if g.state != "pass"} == {}
    assert "x smaller" in found["compression and speedup measured"].figure


def test_a_test_set_that_was_trained_on_is_a_hard_failure() -> None:
    assert transfer_gate("test images are held out", duplicates=101).state == "fail"
    assert transfer_gate("test images are held out", duplicates=100).state == "pass"
    assert transfer_gate("test images are held out", duplicates=None).state == "unverified"


@pytest.mark.parametrize(
    ("student", "teacher", "baseline", "state", "says"),
    [
        (0.44, 0.45, None, "pass", "44.0% still right within 8/255 (20 steps, cross-entropy and margin, n = 64)"),
        (0.30, 0.45, 0.0, "pass", "baseline 0.0%"),
        (0.30, 0.45, None, "warn", "more epochs or a larger student"),
        (0.02, 0.01, 0.0, "warn", "the teacher itself falls to 1.0%: take one trained on attacked images"),
        (0.30, None, None, "unverified", "run with --baseline"),
    ],
)
def test_robustness_is_asked_for_where_it_was_measured(
    student: float, teacher: float | None, baseline: float | None, state: str, says: str
) -> None:
    box = {"n": 64, "epsilon": 8 / 255, "step": 2 / 255, "steps": 20}
    found = transfer_gate(
        "robust accuracy", attacked={**box, "student": student, "teacher": teacher, "baseline": baseline}
    )
    assert found.state == state
    assert says in found.figure + found.why
    names = {gate.name for gate in evaluate_gates(example_report(assessment=assessment(), teaching=TEACHING))}
    assert "robust accuracy" not in names


def test_what_only_advises_warns_and_says_what_helps() -> None:
    collapsed = [{"corruption": "jpeg", "severity": 5, "student": 0.3, "teacher": 0.8}]
    assert transfer_gate("other distribution (corruptions)", corruptions=collapsed).state == "warn"
    assert transfer_gate("calibration (ECE)", ece_student=0.08).state == "warn"
    assert transfer_gate("calibration (ECE)", ece_student=0.08, ece_teacher=0.07).state == "pass"
    lost = assessment()["classes"]
    lost[4] = {**lost[4], "student": 0.70}
    behind = transfer_gate("no class left behind", classes=lost)
    assert behind.state == "warn"
    assert "c4 70.0% against 94.0%" in behind.figure
    negative = transfer_gate("negative transfer", classes=lost)
    assert negative.state == "warn"
    assert "repeats the answer on 50% (baseline 42%)" in negative.figure
    for warned in (behind, negative):
        assert warned.why


def test_a_small_class_is_not_blamed_for_chance() -> None:
    rows = assessment()["classes"]
    rows[0] = {**rows[0], "n": 12, "teacher": 0.92, "student": 0.75}
    assert transfer_gate("no class left behind", classes=rows).state == "pass"


def test_without_a_baseline_negative_transfer_is_unverified() -> None:
    found = transfer_gate("negative transfer", baseline_same=None)
    assert found.state == "unverified"
    assert "--baseline" in found.why


def test_compression_that_nobody_measured_is_unverified() -> None:
    found = transfer_gate("compression and speedup measured", teaching={"teacher_bytes": None})
    assert found.state == "unverified"


def test_another_recipe_than_the_advised_one_must_help() -> None:
    assert transfer_gate("method chosen for a reason", teaching={"advised": "dist"}).state == "pass"
    rows = [row for row in example_report().accuracies if row.role != "baseline"]
    report = example_report(
        assessment=assessment(), teaching={**TEACHING, "advised": "dist"}, accuracies=[r.model_dump() for r in rows]
    )
    assert gate(report, "method chosen for a reason").state == "warn"


def test_a_failure_mode_is_a_warning_of_the_run_and_fails_nothing() -> None:
    row = {"name": "overconfidence", "where": "distil", "figure": "0.1 nats", "cause": "c", "fix": "raise T"}
    report = example_report(diagnoses=[{**row, "state": "warning"}])
    found = gate(report, "no failure mode")
    assert (found.state, found.why) == ("warn", "raise T")
    assert gate(example_report(diagnoses=[{**row, "state": "ok"}]), "no failure mode").state == "pass"


def test_on_a_subset_advice_is_unverified() -> None:
    data = {**example_report().data.model_dump(), "note": "subset: smoke numbers only"}
    report = example_report(data=data, assessment=assessment(ece_student=0.5))
    assert gate(report, "calibration (ECE)").state == "unverified"
