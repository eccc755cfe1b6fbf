"""Candidates meet the attached device and the teacher before the training; a student that is too slow is replaced."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_files import teacher_file, tiny_npz

from edgekd.data import Dataset
from edgekd.device_benchmarks.host import cpu_flags
from edgekd.errors import InputError
from edgekd.files import write_json
from edgekd.pipeline import api, record, reselecting, trials
from edgekd.pipeline.context import context_of, load_inputs
from edgekd.pipeline.events import Silent
from edgekd.pipeline.halving import correlations
from edgekd.pipeline.settings import Settings
from edgekd.pipeline.trials import diverse
from edgekd.profile import load_profile
from edgekd.students import Limits, Selection, search
from edgekd.students.spaces import STAGE_SPACES, Task

PROFILE = """
name = "here"
title = "This host"
ram_mib = 4096
p90_over_p50 = 1.2
transport = "local"
cpu_flags = ["{flag}"]
[[units]]
kind = "cpu"
name = "a core"
peak_fp32_gflops = 1e6
dram_gb_per_s = 2e4
kernel_overhead_us = 0.001
efficiency = 1.0
depthwise_efficiency = 1.0
source = "far faster than any host, so that every prediction is too low"
confidence = "recalled"
[[runtimes]]
target = "null"
version = "1"
unit = "cpu"
precisions = ["fp32"]
why = "a test"
source = "a test"
[quantisation]
preferred_precision = "fp32"
why = "a test"
source = "a test"
[budgets]
latency_p90_ms = {budget_ms}
peak_memory_mib = 512
artifact_size_mib = 16
why = "a test"
"""

pytestmark = pytest.mark.skipif(not cpu_flags(), reason="this host does not tell its CPU's features")


@pytest.fixture
def settings(tmp_path: Path, tiny_dataset: Dataset) -> Callable[..., Settings]:
    """Settings for the device that is this host, with an untrained teacher."""
    data, teacher = tiny_npz(tmp_path, tiny_dataset), teacher_file(tmp_path, tiny_dataset)

    def make(budget_ms: float, **changes: Any) -> Settings:
        profile = tmp_path / "here.toml"
        profile.write_text(PROFILE.format(flag=min(cpu_flags()), budget_ms=budget_ms))
        document = {
            "profile": str(profile),
            "data": str(data),
            "teacher": str(teacher),
            "targets": ("null",),
            "training": {"epochs": 2, "batch_size": 32},
            "recipe": None,
        }
        return Settings.model_validate({**document, **changes})

    return make


@pytest.mark.slow
def test_no_student_is_trained_where_every_candidate_was_measured_to_be_too_slow(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "MEASURED_ROUNDS", 1)  # later rounds search for faster ones, and may find them
    with pytest.raises(
        InputError, match=r"none of 3 candidates measured on this device fits: the fastest takes 0\.\d+ ms"
    ):
        api.distill(settings(0.0005), out=tmp_path / "run", dry_run=True)


@pytest.mark.slow
def test_candidates_are_measured_and_learn_before_one_is_chosen(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    asked = settings(10_000.0, candidates=2, search_epochs=1.0)
    found = api.distill(asked, out=tmp_path / "run", dry_run=True).document["select"]
    assert len(found["measured"]) == 3
    assert all(row["fits"] and row["measured_p90_ms"] > row["predicted_p90_ms"] for row in found["measured"])
    assert [len(row["val_top1"]) for row in found["halving"]["rows"]] == [1, 1]
    assert found["spec"] == found["halving"]["rows"][found["halving"]["chosen"]]["spec"]


@pytest.mark.slow
def test_when_every_candidate_is_too_slow_the_correction_decides(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """A microsecond is predicted to be enough and never is."""
    with pytest.raises(InputError, match=r"no student of \d+ fits; the cheapest misses latency_p90_ms"):
        api.distill(settings(0.001), out=tmp_path / "run", dry_run=True)


@pytest.mark.parametrize(("p90_ms", "again"), [(0.5, None), (3.0, 1.5)])
def test_a_trained_student_over_budget_is_selected_anew_with_what_was_measured(
    settings: Callable[..., Settings], tmp_path: Path, p90_ms: float, again: float | None
) -> None:
    asked = settings(1.0)
    run = record.create(tmp_path / "run", asked, command="")
    write_json(run.folder / "select.json", {"figures": {"latency_p90_ms": 2.0}})
    measurement = {"name": "student, null fp32", "p50_ms": 0.4, "p90_ms": p90_ms, "verdict": "valid"}
    write_json(run.folder / "measure.json", {"set": {"measurements": [measurement]}, "student": measurement["name"]})
    context = context_of(run, load_inputs(asked), Silent())
    assert reselecting.needed(context) == again
    if again is not None:
        reselecting.start_again(context, again)
        assert context.tighten == 1.5
        assert reselecting.needed(context) is None  # one round, as --reselect says
        assert record.resume(run.folder, asked).corrections == [1.5]


@pytest.mark.parametrize(("p90_ms", "again"), [(0.5, None), (3.0, 1.5), (None, None)])
def test_with_a_device_attached_its_measurement_decides_and_not_this_hosts(
    settings: Callable[..., Settings], tmp_path: Path, p90_ms: float | None, again: float | None
) -> None:
    """This host says the opposite; a device that could not be measured asks for nothing."""
    asked = settings(1.0, on="ssh://board")
    run = record.create(tmp_path / "run", asked, command="")
    write_json(run.folder / "select.json", {"figures": {"latency_p90_ms": 2.0}})
    name = "student, null fp32"

    def side(value: float) -> dict[str, Any]:
        row = {"name": name, "p50_ms": 0.4, "p90_ms": value, "verdict": "valid"}
        return {"set": {"measurements": [row]}, "student": name}

    here = side(3.0 if again is None else 0.5)
    there = {"set": None, "student": name} if p90_ms is None else side(p90_ms)
    write_json(run.folder / "measure.json", {**here, "device": there})
    assert reselecting.needed(context_of(run, load_inputs(asked), Silent())) == again


def test_a_correction_sends_the_selection_back_and_leaves_the_plan(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    run = record.create(tmp_path / "run", settings(1.0), command="")
    run.finish("plan", inputs="a", result={}, outputs=[], seconds=0)
    run.finish("select", inputs="b", result={}, outputs=[], seconds=0)
    before = [run.next_inputs("x", stage) for stage in ("plan", "select")]
    run.correct(1.5)
    after = [run.next_inputs("x", stage) for stage in ("plan", "select")]
    assert before[0] != after[0]
    assert before[1] == after[1]  # it depends on what select then writes


def test_the_candidates_differ_in_their_bodies() -> None:
    from edgekd.latency import ProfileCost

    cost = ProfileCost(load_profile("jetson-nano"), unit="gpu", precision="fp16", runtime="tensorrt")
    limits = Limits(latency_p90_ms=10, peak_memory_mib=512, artifact_size_mib=16, macs=10**7)
    found = search(STAGE_SPACES["inverted-residual"](Task((28,), 1, 10)), cost=cost, limits=limits)
    assert isinstance(found, Selection)
    some = diverse(found.top, 3)
    assert some[0] == found.chosen
    shapes = [[(stage.block, stage.channels) for stage in c.spec.stages] for c in some]  # type: ignore[union-attr]
    assert all(a != b for a, b in itertools.combinations(shapes, 2))


def test_rank_correlations_are_those_of_the_rounds() -> None:
    reached = [[0.3, 0.5], [0.2, 0.6], [0.4, 0.7], [0.1]]
    rows = [{"score": float(number), "val_top1": values} for number, values in enumerate(reached)]
    found = correlations(rows)
    assert found["prior_to_proxy"] == pytest.approx(-0.4)
    assert found["proxy_to_longer"] == pytest.approx(0.5)
    assert correlations(rows[:2])["prior_to_proxy"] is None
    assert correlations([{"score": 1.0, "val_top1": [value]} for value in (0.1, 0.2, 0.3)])["proxy_to_longer"] is None
    further = [[0.3, 0.5, 0.9], [0.2, 0.6, 0.8], [0.4, 0.7, 0.7], [0.1, 0.4], [0.0]]  # the third round, of three
    rows = [{"score": float(number), "val_top1": values} for number, values in enumerate(further)]
    assert correlations(rows)["proxy_to_longer"] == pytest.approx(-0.5)
