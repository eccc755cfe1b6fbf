"""Files that are whole or absent: write beside the target, flush to disk, rename. A leaf room."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.errors import InputError


def write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    """Run `write(temporary)` in the target's folder, then rename over `path`; a crash leaves the old file or none.

    Raises: InputError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                "no space left on the disk", where=path, fix="free some space, then run again with --resume"
            ) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return path


def write_text(path: Path, text: str) -> Path:
    """`text` as UTF-8, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_whole(path, write)


def write_json(path: Path, document: Any) -> Path:
    """`document` as indented JSON with a final newline, whole or not at all; NaN is refused (it is not JSON)."""
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON. Raises: InputError: the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("no such file", where=path) from error
    except ValueError as error:
        raise InputError(f"not valid JSON ({error})", where=path) from error


def sha256_of(path: Path) -> str:
    """Hex digest of a file, or of a folder's relative names and contents in sorted order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def size_bytes_of(path: Path) -> int:
    """Bytes of a file, or of every file under a folder (an .mlpackage is a folder)."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
