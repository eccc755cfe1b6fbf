"""One file per way to be wrong; its first line is the message that a user must see, all of it and on one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.profile import load_profile

FOLDER = Path(__file__).resolve().parents[1] / "bad_profiles"
BAD = sorted(FOLDER.rglob("*.toml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_the_message_is_the_one_in_the_first_line(path: Path) -> None:
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    assert str(caught.value) == f"{path}: {expected}"
    assert caught.value.exit_code == 2


def test_there_is_a_file_for_each_family_of_mistakes() -> None:
    assert {path.parent.name for path in BAD} == {"keys", "values", "structure"}
    assert len(BAD) >= 30
