"""One file per way to be wrong; its first line is the message that a user must see, all of it and on one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.files import write_text
from edgekd.profile import check_profile, load_profile

FOLDER = Path(__file__).resolve().parents[1] / "bad_profiles"
BAD = sorted(FOLDER.rglob("*.toml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_the_message_is_the_one_in_the_first_line(path: Path) -> None:
    # FOLDER: where the file lies, for messages that name a second file.
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").replace("FOLDER", str(path.parent))
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    assert str(caught.value) == f"{path}: {expected}"
    assert caught.value.exit_code == 2


def test_a_file_with_five_mistakes_gets_five_lines() -> None:
    profile, mistakes = check_profile(str(FOLDER / "extended" / "five_mistakes.toml"))
    assert profile is None
    named = ["efficency", "ram_mb", "transport = 'usb'", "confidence = 'guess'", "latency_p90_ms = -1.0"]
    assert [name for name, mistake in zip(named, mistakes, strict=True) if name in str(mistake)] == named


def test_one_slip_of_a_key_is_one_line_and_hides_nothing(tmp_path: Path) -> None:
    text = (FOLDER / "keys" / "two_mistakes.toml").read_text(encoding="utf-8")
    file = write_text(tmp_path / "x.toml", text.replace('transport = "ssh"', 'transport = "usb"'))
    assert [mistake.what.split(":")[0] for mistake in check_profile(str(file))[1]] == [
        "unknown key 'units[gpu].dram_gbps'",
        "unknown key 'ram_mb'",
        "transport = 'usb'",
    ]


def test_there_is_a_file_for_each_family_of_mistakes() -> None:
    assert {path.parent.name for path in BAD} == {"extended", "keys", "structure", "values"}
    assert len(BAD) >= 50
