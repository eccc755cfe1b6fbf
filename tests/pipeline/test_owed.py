"""What a resumed run asks of the attached device again, and that an attempt which fails takes nothing away."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd.artifact import Artifact
from edgekd.files import write_json
from edgekd.pipeline import measuring
from edgekd.pipeline.attached import Found

STUDENT, TEACHER = "student, tflite int8", "teacher, tflite fp32"


def side(*names: str, partial: str | None = None, sha256: str = "aa") -> dict[str, Any]:
    """The attached device's part of the stage's result, with a row for each of these."""
    rows = [{"name": name, "provenance": {"artifact_sha256": sha256}} for name in names]
    return {"set": {"measurements": rows, "partial": partial}, "student": STUDENT}


class Run:
    """What the stage reads of a run with one deployed student, on a device called board."""

    def __init__(self, folder: Path, on: str | None = "board") -> None:
        self.folder, self.on, self.notes = folder, on, list[str]()
        self.record = SimpleNamespace(result=lambda stage: {"device": self.device})
        self.events = SimpleNamespace(note=self.notes.append)
        self.device: Any = None


@pytest.mark.parametrize(
    ("device", "owed"),
    [
        (side(STUDENT, TEACHER), False),
        (side(STUDENT), False),
        ({"set": None, "student": STUDENT}, True),
        (side(STUDENT, TEACHER, partial="the connection broke"), True),
        (side(TEACHER), True),
    ],
)
def test_a_device_owes_the_student_and_every_round(device: dict[str, Any], owed: bool, tmp_path: Path) -> None:
    run: Any = Run(tmp_path)
    run.device = device
    assert measuring.owed(run) == owed
    run.on = None
    assert not measuring.owed(run)


def on_device(run: Any, found: Found, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The attached device's part of the result where measuring there gives this; the student's sha256 is aa."""
    who = SimpleNamespace(
        name="board",
        device=SimpleNamespace(address="ssh://board"),
        target=SimpleNamespace(target="tflite"),
        measure=lambda artifacts, **_: found,
    )
    student = Artifact(
        target="tflite", precision="int8", path=Path("s.tflite"), inputs=(), outputs=(), size_bytes=1, sha256="aa"
    )
    monkeypatch.setattr(measuring, "attached", lambda _: who)
    export = {"artifacts": [{"artifact": student.model_dump(mode="json")}], "comparisons": []}
    told = measuring._on_device(run, export)
    assert told is not None
    return told


@pytest.mark.parametrize(("sha256", "kept"), [("aa", True), ("bb", False)])
def test_a_failed_attempt_keeps_what_an_earlier_one_told_of_the_same_file(
    sha256: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = side(STUDENT, partial="the connection broke", sha256=sha256)
    write_json(tmp_path / "measure.json", {"device": before})
    run: Any = Run(tmp_path)
    told = on_device(run, Found(None, "nothing listens"), monkeypatch)
    assert run.notes == ["not measured on board: nothing listens; --resume tries again"]
    assert told == before if kept else (told["set"], told["reason"]) == (None, "nothing listens")
    run.device = told
    assert measuring.owed(run), "it is still owed"


def test_what_is_cut_short_is_told_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {**side(STUDENT, partial="the connection broke")["set"]}
    cut = SimpleNamespace(measurements=(), ratios=(), failures={}, model_dump=lambda mode: document)
    run: Any = Run(tmp_path)
    told = on_device(run, Found(cut, notes=("board: partial",)), monkeypatch)  # type: ignore[arg-type]
    assert told["set"] == document
    assert run.notes == ["board: partial", "not all was measured on board; --resume tries again"]
