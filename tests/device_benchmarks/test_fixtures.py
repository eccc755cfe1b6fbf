"""Claims about the fixtures themselves: one that is missing is a skip with its reason, and under CI a failure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import need

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("ci", ["1", "true"])
def test_under_ci_a_fixture_that_is_missing_fails(ci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    need(True, "sshd")
    with pytest.raises(pytest.fail.Exception, match="CI must have it: needs sshd"):
        need(None, "needs sshd")


def test_elsewhere_it_skips_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs sshd"):
        need(None, "needs sshd")


def test_what_ci_installs_is_what_contributing_names() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    packages = re.search(r'^packages="([^"]+)"', script, re.M)
    assert packages is not None
    assert {"openssh-server", "adb", "qemu-user-static", "mmdebstrap"} <= set(packages[1].split())
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("`adb`", "adb")
    assert [name for name in packages[1].split() if name not in page] == []
