"""bfloat16 is used where it is faster, and nowhere against the user's word."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.distill.precision import choose_bfloat16

DENSE, DEPTHWISE = nn.Conv2d(4, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4))


@pytest.mark.parametrize(
    ("capabilities", "student", "expected"),
    [
        ({"amx_bf16": True}, DENSE, (True, True)),
        ({"avx512_bf16": True}, DEPTHWISE, (True, False)),
        ({"avx2": True}, DENSE, (False, False)),
    ],
)
def test_on_a_cpu_the_units_and_the_kind_of_student_decide(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], student: nn.Module, expected: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_bfloat16("auto", "cpu", [student]) == expected


@pytest.mark.parametrize(("wanted", "expected"), [("bf16", (True, True)), ("no", (False, False))])
def test_an_explicit_choice_is_obeyed(wanted: str, expected: tuple[bool, bool]) -> None:
    assert choose_bfloat16(wanted, "cpu", [DEPTHWISE]) == expected  # type: ignore[arg-type]
