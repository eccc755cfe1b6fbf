"""The report's rows about the device that is attached by ssh or adb: as `rows`, which are about this host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgekd.pipeline.rows import Plain, measurements, ratio_of
from edgekd.report import document as d
from edgekd.report import rows as r


def measurements_there(side: Plain | None, export: Plain) -> Iterator[r.MeasurementRow]:
    """What was timed there."""
    if side is not None and side["set"] is not None:
        yield from measurements(side, export, on_device=True, place=side["name"])


def ratios_there(side: Plain | None, export: Plain) -> Iterator[r.RatioRow]:
    """One row per labelled ratio of exported files: the device runs no PyTorch."""
    if side is None:
        return
    keys: tuple[r.RatioKey, ...] = ("teacher-best-to-student", "student-float-to-int8")
    where: dict[str, Any] = {"device": side["name"], "on_profile_device": True}
    for key in keys:
        found = None if side["set"] is None else ratio_of(key, side, export, **where)
        yield found or r.RatioRow(key=key, reason=_why_no_ratio(key, side, export), **where)


def _why_no_ratio(key: str, side: Plain, export: Plain) -> str:
    if side["set"] is None:
        return str(side["reason"])
    if key == "student-float-to-int8":
        return "the deployed file is fp32 already, or its fp32 file was not exported for this runtime or did not run"
    failed = (reason for name, reason in side["set"]["failures"].items() if name.startswith("teacher"))
    return export["teacher_note"] or "; ".join(failed) or "the teacher was not exported for a runtime there"


def attached_facts(side: Plain | None) -> d.Attached | None:
    """The device that `--on` named, and what became of measuring on it."""
    if side is None:
        return None
    rows = side["set"]["measurements"] if side["set"] is not None else []
    state = rows[0]["provenance"]["host_end"] if rows else {}
    return d.Attached(
        name=side["name"],
        address=side["address"],
        state={key: str(value) for key, value in state.items() if value not in (None, [], {})},
        reason=side["reason"] or dict(_failures(side)).get(side["student"], ""),
        unlike=tuple(side["unlike"]),
    )


def warnings_there(side: Plain | None) -> Iterator[str]:
    """What speaks against the device being the profile's, and what was not measured there."""
    if side is None:
        return
    yield from (*side["unlike"], *side["notes"])
    if side["reason"]:
        yield f"nothing was measured on {side['name']}: {side['reason']}; distill --resume tries again"
    for name, reason in _failures(side):
        yield f"not measured on {side['name']}: {name}: {reason}"


def _failures(side: Plain) -> Iterator[tuple[str, str]]:
    if side["set"] is not None:
        yield from side["set"]["failures"].items()
