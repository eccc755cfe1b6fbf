"""What a device of `--on` that is not the profile's may say of a speedup, and what a bundle says ran there."""

from __future__ import annotations

from typing import Any

import pytest
from example_report import example_report

from edgekd.bundle.texts import model_card
from edgekd.gates import evaluate_gates


def rows(field: str) -> list[dict[str, Any]]:
    return [row.model_dump() for row in getattr(example_report(), field)]


@pytest.mark.parametrize(
    ("lo", "unlike", "state"),
    [
        (1.2, (), "pass"),
        (1.2, ("pi does not look like it",), "unverified"),
        (0.9, (), "fail"),
        (0.9, ("pi does not look like it",), "fail"),
    ],
)
def test_a_speedup_on_another_device_than_the_profiles_proves_nothing(
    lo: float, unlike: tuple[str, ...], state: str
) -> None:
    ratio = next(row for row in rows("ratios") if row["key"] == "teacher-best-to-student")
    there = {**ratio, "device": "pi", "on_profile_device": True, "lo": lo}
    attached = {"name": "pi", "address": "ssh://pi", "unlike": unlike}
    gates = evaluate_gates(example_report(ratios=[*rows("ratios"), there], attached=attached))
    found = {g.name: g for g in gates if g.name.startswith("faster than the teacher's best export")}
    assert found["faster than the teacher's best export on pi"].state == state
    assert found["faster than the teacher's best export"].state == "pass", "this host's own says what it said"
    if state == "unverified":
        assert found["faster than the teacher's best export on pi"].why == unlike[0]


@pytest.mark.parametrize(
    ("there", "who"), [((), "Nothing"), (("teacher",), "The student never"), (("teacher", "student"), None)]
)
def test_the_model_card_says_whether_the_student_itself_ran_there(there: tuple[str, ...], who: str | None) -> None:
    measured = rows("measurements")
    for row in measured:
        row["on_profile_device"] = row["role"] in there
    limits = model_card(example_report(measurements=measured)).split("## Limits")[1]
    said = [line for line in limits.splitlines() if " ran on Raspberry Pi 5" in line]
    assert [line.removeprefix("- ").partition(" ran on")[0] for line in said] == ([] if who is None else [who])
