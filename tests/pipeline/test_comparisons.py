"""What the speedups are measured against: a file for this host is held to nothing that the device's profile says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd.data import Dataset
from edgekd.export.runner import why_refused
from edgekd.pipeline import exporting
from edgekd.pipeline.plan import TargetPlan
from edgekd.profile import load_profile


@pytest.fixture
def context(tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What these requests read of a run whose device takes OpenVINO in int8 only; LiteRT runs on the device alone."""
    monkeypatch.setattr(exporting, "teacher_runtimes", lambda _: ["openvino", "onnxruntime"])
    monkeypatch.setattr(exporting, "host_runtime", lambda _: "openvino")
    board = load_profile("raspberry-pi-5")
    runtimes = tuple(
        r.model_copy(update={"precisions": ("int8",)}) if r.target == "openvino" else r for r in board.runtimes
    )
    targets = tuple(TargetPlan(target=name, precision="int8", why="") for name in ("tflite", "openvino"))
    return SimpleNamespace(
        on="board",
        profile=board.model_copy(update={"runtimes": runtimes}),
        plan=SimpleNamespace(exports=targets),
        folder=Path("run"),
        program=lambda name: Path(f"{name}.pt2"),
        dataset=tiny_dataset,
        student_dataset=tiny_dataset,
    )


def test_only_what_the_attached_device_runs_is_held_to_its_profile(context: Any) -> None:
    found = exporting.comparison_requests(context, teacher=True)
    assert [(who, r.target, r.profile is not None) for who, r in found] == [
        ("student", "openvino", False),
        ("student", "tflite", True),
        ("teacher", "openvino", False),
        ("teacher", "onnxruntime", False),
        ("teacher", "tflite", True),
    ]
    assert [why for _, r in found if (why := why_refused(r))] == []
    held = found[0][1].model_copy(update={"profile": context.profile})
    assert "takes int8, not fp32" in (why_refused(held) or ""), "as the device's, this host would go without"


def test_without_a_device_nothing_is_held_to_the_profile(context: Any) -> None:
    context.on = None
    assert [r.profile for _, r in exporting.comparison_requests(context, teacher=True)] == [None] * 3
