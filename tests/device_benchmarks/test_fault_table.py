"""The fault table of docs/devices.md names tests that exist, and says of each what the user and the device get."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "devices.md"
TESTS = {
    name: body
    for file in sorted(HERE.glob("test_*.py"))
    for name, body in re.findall(r"^def (test_\w+)(.*?)(?=^\S|\Z)", file.read_text(encoding="utf-8"), re.M | re.S)
}


def rows() -> list[list[str]]:
    table = PAGE.read_text(encoding="utf-8").partition("<!-- faults begin -->")[2].partition("<!-- faults end -->")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if "| test_" in line]


def test_every_fault_has_its_line_exit_code_remains_and_test() -> None:
    found = rows()
    assert len(found) >= 25
    for row in found:
        fault, said, exit_code, left, test = row
        assert fault
        assert said
        assert left
        assert exit_code in ("0", "1", "2", "-"), row
        assert test.strip(" |") in TESTS, f"{fault}: no {test}"


def test_what_is_said_to_leave_nothing_over_a_link_is_looked_for() -> None:
    # The runner's own tests end a process, which is all that there is; the others look on the device.
    of_a_device = {file: file.read_text(encoding="utf-8") for file in (HERE / "test_ssh.py", HERE / "test_adb.py")}
    for fault, _, _, left, test in rows():
        name = test.strip(" |")
        body = next(
            (
                t.partition(f"def {name}(")[2].partition("\ndef ")[0]
                for t in of_a_device.values()
                if f"def {name}(" in t
            ),
            None,
        )
        if body is not None and left.startswith("nothing") and name != "test_two_phones_are_told_apart_and_listed":
            assert "nothing_left(" in body or "leftovers" in body, fault
