"""Files are whole or absent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.files import read_json, sha256_of, size_bytes_of, write_json, write_text, write_whole


def test_a_full_disk_is_one_clear_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"a\.txt: no space left on the disk; free some space"):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_with_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_broken_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.json: not valid JSON"):
        read_json(write_text(tmp_path / "b.json", "{"))


def test_a_folders_hash_covers_names_and_contents(tmp_path: Path) -> None:
    write_text(tmp_path / "one" / "a", "x")
    write_text(tmp_path / "two" / "b", "x")
    assert sha256_of(tmp_path / "one") != sha256_of(tmp_path / "two")
    assert size_bytes_of(tmp_path / "one") == 1
