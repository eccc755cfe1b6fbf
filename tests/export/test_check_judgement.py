"""What a check's figures mean: the bars, int8 by multiply-adds, several outputs; no artifact runs here."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.export.check import CheckReport, applied_bars, bars_for, failures_of, warnings_of, why_not_int8
from edgekd.export.check_report import FromFloat
from edgekd.export.check_worker import agreement, parity, parity_of
from edgekd.runtimes import OpReport


def test_parity_is_the_signal_to_noise_ratio_of_the_logits():
    exact = np.float32([[3.0, 4.0], [0.0, 5.0]])
    found = parity(exact, exact + np.float32([[0.5, 0.0], [0.0, 0.5]]))
    assert found["snr_db"] == pytest.approx(20.0)
    assert found["max_abs_error"] == 0.5
    assert parity(exact, exact)["snr_db"] == 200.0
    assert agreement(exact, exact[::-1]) == 1.0
    assert agreement(exact, exact[:, ::-1]) == 0.0


def report_of(precision: str, snr_db: float, evidence: OpReport | None = None) -> CheckReport:
    return CheckReport(
        target="t", precision=precision, passed=True, n_images=1, snr_db=snr_db, top1_agreement=1.0, evidence=evidence
    )


def test_fp16_compute_is_allowed_more_noise_than_fp16_weights():
    evidence = OpReport(ops={}, compute_ops=1, int8_compute_ops=0, fp16_compute=True)
    assert failures_of(report_of("fp16", 45.0, evidence)) == ()
    assert failures_of(report_of("fp16", 45.0)) == ("parity 45.0 dB is under 50 dB (on 1 images)",)
    assert bars_for("fp32").snr_db == 60


def test_a_missed_agreement_with_a_good_signal_is_told_from_a_broken_layer():
    near_ties = report_of("int8", 36.0).model_copy(update={"top1_agreement": 0.97})
    assert near_ties.under_parity
    assert near_ties.holds_signal
    assert not report_of("int8", 29.0).holds_signal


HALF = OpReport(ops={}, compute_ops=1, int8_compute_ops=1, macs=10, int8_macs=10, fp16_compute=True)
AS_NEAR = FromFloat(snr_db=24.0, program_snr_db=24.6, top1_agreement=0.95, program_top1_agreement=0.96)


def test_int8_in_fp16_may_be_as_near_to_the_float_model_as_its_program():
    report = report_of("int8", 26.5, HALF).model_copy(update={"top1_agreement": 0.94, "from_float": AS_NEAR})
    assert failures_of(report) == ()
    assert not report.under_parity
    (warning,) = warnings_of(report)
    assert "parity 26.5 dB is under 30 dB" in warning
    assert "24.0 dB of the float model where its program keeps 24.6" in warning
    again = applied_bars(report)  # what a bundle asks of the device
    assert (again.snr_db, again.top1_agreement) == (25.5, pytest.approx(0.92))


def test_fewer_of_the_float_models_answers_count_where_chance_does_not_explain_them():
    few = AS_NEAR.model_copy(update={"top1_agreement": 0.92, "p_value": 0.2})
    report = report_of("int8", 26.5, HALF).model_copy(update={"top1_agreement": 0.94, "from_float": few})
    assert failures_of(report) == ()
    assert "92.00% of its answers where that keeps 96.00% (p 0.2)" in warnings_of(report)[0]
    clear = few.model_copy(update={"p_value": 0.04})
    assert len(failures_of(report.model_copy(update={"from_float": clear}))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"from_float": None},
        {"from_float": AS_NEAR.model_copy(update={"snr_db": 23.5})},
        {"from_float": AS_NEAR.model_copy(update={"top1_agreement": 0.93})},
        {"evidence": HALF.model_copy(update={"fp16_compute": False})},
    ],
    ids=["no float model", "further from it", "fewer answers", "integer arithmetic"],
)
def test_any_other_int8_file_follows_its_program(change):
    report = report_of("int8", 26.5, HALF).model_copy(update={"top1_agreement": 0.94, "from_float": AS_NEAR} | change)
    assert len(failures_of(report)) == 2
    assert applied_bars(report) == bars_for("int8")
    assert warnings_of(report) == ()


def test_int8_is_judged_by_multiply_adds_and_names_what_is_float():
    nearly = OpReport(ops={}, compute_ops=2, int8_compute_ops=1, macs=1000, int8_macs=951, float_linears=("Gemm h",))
    assert why_not_int8(nearly) is None
    short = nearly.model_copy(update={"int8_macs": 949, "source": "s"})
    assert why_not_int8(short) == "94.9% of the multiply-adds run in int8, under 95%; in float: Gemm h (s)"
    assert why_not_int8(short, least_share=0.5) is None


def test_without_shapes_int8_is_judged_by_convolutions_first_and_many_names_are_cut():
    names = tuple(f"Conv c{k}" for k in range(7))
    evidence = OpReport(ops={}, compute_ops=9, int8_compute_ops=2, convs=9, int8_convs=2, float_convs=names, source="s")
    assert (
        why_not_int8(evidence)
        == "7 of 9 convolutions are not int8: Conv c0, Conv c1, Conv c2, Conv c3, Conv c4, ... (s)"
    )
    float_head = OpReport(ops={}, compute_ops=3, int8_compute_ops=2, convs=2, int8_convs=2, float_linears=("Gemm h",))
    assert why_not_int8(float_head) is None
    transformer = OpReport(ops={}, compute_ops=2, int8_compute_ops=1, float_linears=("MatMul qk",), source="s")
    assert why_not_int8(transformer) == "1 of 2 matrix products are not int8: MatMul qk (s)"


def test_several_outputs_are_judged_by_the_worst_which_is_named():
    rng = np.random.default_rng(0)
    boxes, scores = (rng.standard_normal((4, *shape)).astype(np.float32) for shape in ((6, 4), (3, 5, 5)))
    found = parity_of([("boxes", boxes, boxes), ("scores", scores, scores * np.float32(1.01))])
    assert (found["worst_output"], found["snr_db"]) == ("scores", pytest.approx(40, abs=0.1))
    assert [row["name"] for row in found["outputs"]] == ["boxes", "scores"]
    assert found["top1_agreement"] is None, "boxes are no classes"
    assert found["warnings"] == []


def test_an_output_that_is_the_same_for_every_image_is_no_proof():
    constant = np.ones((4, 10), np.float32)
    assert "parity proves little" in parity_of([("logits", constant, constant)])["warnings"][0]


def test_a_segmentation_is_compared_pixel_by_pixel():
    maps = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    other = maps.copy()
    other[0, :, 0, 0] = maps[0, ::-1, 0, 0]
    found = parity_of([("out", maps, other)])
    assert found["agreement_over"] == "pixels"
    assert found["top1_agreement"] == pytest.approx(31 / 32)


def test_a_parity_that_float32_itself_cannot_keep_says_so():
    report = CheckReport(
        target="tflite",
        precision="int8",
        passed=True,
        n_images=64,
        snr_db=27.4,
        float32_snr_db=23.5,
        top1_agreement=1.0,
    )
    assert failures_of(report) == ("parity 27.4 dB is under 30 dB (on 64 images; torch's own float32 keeps 23.5 dB)",)
    assert failures_of(report.model_copy(update={"float32_snr_db": 60.0})) == (
        "parity 27.4 dB is under 30 dB (on 64 images)",
    )
