"""Claims about figures and verdicts, on blocks made for the purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from edgekd.device_benchmarks.host import HostState, host_state
from edgekd.device_benchmarks.measurement import Block, Measurement, ProcessFacts, Provenance
from edgekd.device_benchmarks.summary import compare, summarise

MS = 1_000_000


def facts(*, load_ms: float = 5.0, peak_rss_mib: float | None = 50.0, converged: bool = True) -> ProcessFacts:
    return ProcessFacts(
        import_ms=1.0,
        load_ms=load_ms,
        first_inference_ms=2.0,
        warm_up_ns=(1,),
        warm_up_converged=converged,
        peak_rss_mib=peak_rss_mib,
        model_rss_mib=10.0,
        pss_mib=None,
    )


def measured(
    block_ms: Sequence[Sequence[float]],
    *,
    name: str = "model",
    cpu_share: float = 1.0,
    processes: Sequence[ProcessFacts] = (facts(), facts()),
    mode: str = "quick",
    executed: str = "runtime",
    threads: int = 1,
    clocks_mhz: Sequence[float] = (),
    ends: HostState | None = None,
) -> Measurement:
    """Two blocks make a round; the first half of the rounds is process 0."""
    state = host_state()
    half = len(block_ms) // 2
    blocks = [
        Block(
            process=int(i >= half),
            round=(i % half) // 2,
            wall_ns=tuple(round(ms * MS) for ms in samples),
            cpu_ns=tuple(round(ms * MS * cpu_share) for ms in samples),
            clock_mhz=clocks_mhz[i] if clocks_mhz else None,
        )
        for i, samples in enumerate(block_ms)
    ]
    provenance = Provenance(
        device="local",
        runtime="onnxruntime",
        runtime_version="1",
        executed=executed,
        threads=threads,
        affinity=(),
        input_shape=(1, 1, 28, 28),
        input_sha256="",
        artifact_sha256=None,
        mode=mode,
        seed=0,
        processes=2,
        command="edgekd profile",
        host_start=state,
        host_end=ends or state,
    )
    return summarise(name, blocks, processes, provenance)


def steady(level_ms: float = 1.0, *, blocks: int = 24, runs: int = 5, spread: float = 0.02) -> list[list[float]]:
    rng = np.random.default_rng(0)
    samples: list[list[float]] = (level_ms * (1 + spread * rng.standard_normal((blocks, runs)))).tolist()
    return samples


def test_a_steady_model_is_valid_and_its_interval_holds_its_median() -> None:
    row = measured(steady(2.0))
    assert row.verdict == "valid"
    assert row.warnings == ()
    assert row.ci_lo_ms <= row.p50_ms <= row.ci_hi_ms
    assert row.p50_ms == pytest.approx(2.0, rel=0.01)
    assert row.n == 120
    assert row.kind == "measured"


def test_every_raw_sample_is_kept_in_order() -> None:
    blocks = [[1.0, 9.0], [2.0, 1.5], [1.0, 1.0], [3.0, 1.0]]
    assert measured(blocks).samples_ns == tuple(round(ms * MS) for block in blocks for ms in block)


def test_a_clock_that_falls_is_throttling_and_one_that_wanders_is_not() -> None:
    falling, turbo = np.linspace(1500, 1300, 24).tolist(), [1500.0 + 60 * (-1) ** i for i in range(24)]
    throttled = measured(steady(), clocks_mhz=falling)
    assert (throttled.verdict, throttled.warnings) == ("throttled", ("its clock fell from 1487 to 1313 MHz",))
    assert measured(steady(), clocks_mhz=turbo).verdict == "valid"
    assert measured(steady(), clocks_mhz=falling[::-1]).verdict == "valid"


def test_what_the_board_says_of_itself_counts() -> None:
    hot = host_state().model_copy(update={"throttled": "0x40004"})
    assert measured(steady(), ends=hot).warnings == ("its firmware reports throttled",)
    warm = host_state().model_copy(update={"thermal_status": 2})
    assert measured(steady(), ends=warm).verdict == "throttled"
    fair, serious = (
        host_state().model_copy(update={"thermal_status": level, "kernel": "Darwin 22A"}) for level in (1, 2)
    )
    assert measured(steady(), ends=fair).verdict == "valid"
    assert measured(steady(), ends=serious).warnings == ("iOS's thermal status is 2 at the end",)


def test_p90_is_not_given_below_64_samples() -> None:
    assert measured(steady(blocks=12, runs=5)).p90_ms is None
    assert measured(steady(blocks=16, runs=4)).p90_ms is not None


def test_the_interval_holds_the_medians_of_processes_that_disagree() -> None:
    row = measured(steady(1.0, blocks=12) + steady(1.2, blocks=12))
    assert row.ci_lo_ms <= 1.01
    assert row.ci_hi_ms >= 1.19


def test_a_wide_spread_is_noisy_and_a_middling_one_is_a_caution() -> None:
    noisy, middling = measured(steady(spread=0.15)), measured(steady(spread=0.07))
    assert noisy.verdict == "noisy"
    assert middling.verdict == "valid"
    assert "over 5%" in middling.warnings[0]


def test_a_process_that_waited_for_a_core_is_contended() -> None:
    row = measured(steady(), cpu_share=0.5)
    assert row.verdict == "contended"
    assert "2.00x CPU time" in row.warnings[0]


def test_a_model_that_slows_down_is_drifting_and_in_sustained_mode_throttled() -> None:
    slowing = [[1 + 0.02 * i] * 5 for i in range(24)]
    assert measured(slowing).verdict == "drifting"
    row = measured(slowing, mode="sustained")
    assert row.verdict == "throttled"
    assert row.sustained_p50_ms > 1.3 * row.burst_p50_ms


def test_a_stand_in_runtime_is_a_fallback_however_steady_it_is() -> None:
    assert measured(steady(), executed="interpreted").verdict == "fallback"


def test_load_is_the_median_of_processes_and_memory_the_largest() -> None:
    row = measured(steady(), processes=[facts(load_ms=4.0, peak_rss_mib=70.0), facts(load_ms=6.0), facts(load_ms=50.0)])
    assert (row.load_ms, row.peak_rss_mib) == (6.0, 70.0)


def test_memory_that_the_host_does_not_tell_is_none_and_not_zero() -> None:
    assert measured(steady(), processes=[facts(peak_rss_mib=None)]).peak_rss_mib is None


def test_warm_up_that_did_not_settle_is_said() -> None:
    row = measured(steady(), processes=[facts(converged=False), facts()])
    assert row.warnings == ("warm-up did not settle within 2% in 1 of 2 processes",)


def test_a_faster_contender_has_a_ratio_above_one_with_its_interval_and_pairs() -> None:
    ratio = compare(measured(steady(3.0), name="teacher"), measured(steady(1.0), name="student"))
    assert ratio.significant
    assert ratio.ratio == pytest.approx(3.0, rel=0.02)
    assert ratio.n_blocks == 12
    assert ratio.text.startswith("student is 3.00x as fast as teacher (99% CI ")


def test_a_slower_contender_is_called_slower() -> None:
    ratio = compare(measured(steady(1.0), name="teacher"), measured(steady(2.0), name="student"))
    assert "student is slower: 0.50x the speed of teacher" in ratio.text


def test_equals_are_said_to_show_no_significant_difference() -> None:
    ratio = compare(measured(steady(), name="a"), measured(steady(), name="b"))
    assert not ratio.significant
    assert ratio.text.startswith("no significant difference between b and a (ratio 1.00")


def test_where_the_clocks_disagree_cpu_time_leads_and_wall_time_is_called_biased() -> None:
    ratio = compare(measured(steady(3.0), name="t", cpu_share=0.5), measured(steady(1.0), name="s"))
    assert ratio.clocks_disagree
    assert ratio.ratio == pytest.approx(3.0, rel=0.02)
    assert ratio.cpu_ratio == pytest.approx(1.5, rel=0.02)
    assert ratio.text.startswith("by CPU time, s is 1.50x as fast as t (99% CI")
    assert "by wall clock 3.00x" in ratio.text
    assert ratio.text.endswith("wall time is biased")


def test_cpu_time_leads_where_both_waited_for_a_core_although_the_ratios_agree() -> None:
    """A wall ratio of two that waited alike is right by luck: its noise is the neighbours'."""
    slow, fast = measured(steady(3.0), name="t", cpu_share=0.8), measured(steady(1.0), name="s", cpu_share=0.8)
    assert compare(slow, fast).clocks_disagree
    assert not compare(measured(steady(3.0), cpu_share=0.95), measured(steady(1.0), name="s")).clocks_disagree


def test_cpu_time_of_several_threads_adds_up_and_contradicts_no_ratio() -> None:
    ratio = compare(measured(steady(3.0), cpu_share=2.0, threads=4), measured(steady(1.0), name="s", threads=4))
    assert not ratio.clocks_disagree


def test_a_measurement_survives_json_and_is_not_to_be_taken_for_an_estimate() -> None:
    row = measured(steady())
    assert Measurement.model_validate_json(row.model_dump_json()) == row
    with pytest.raises(ValidationError, match="measured"):
        Measurement.model_validate(row.model_dump() | {"kind": "predicted"})
