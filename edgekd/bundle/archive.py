"""Reading a zip that nobody vouches for: names that stay inside, sizes that stay bounded, honest bytes."""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgekd.errors import CheckError, InputError

ENTRIES_MAX = 10_000
TOTAL_BYTES_MAX = 4 * 2**30
INFLATION_MAX = 200  # real weights and tables inflate 1.1 to 20-fold; deflate can reach 1,032
INFLATION_FREE_BYTES = 16 * 2**20
CHUNK_BYTES = 1 << 20


def open_zip(path: Path) -> zipfile.ZipFile:
    """Raises: InputError: missing, a folder, not a zip, or a zip whose end (its directory) is missing."""
    if path.is_dir():
        raise InputError("is a folder, not a bundle", where=path, fix="give the .zip that edgekd wrote")
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise InputError("no such file", where=path) from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        if head[:2] == b"PK":
            fix = "copy or download it again"
            raise InputError(
                "a truncated or damaged zip (its directory cannot be read)", where=path, fix=fix
            ) from error
        raise InputError("not a bundle (not a zip file)", where=path, fix="give the .zip that edgekd wrote") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=path) from error


def unsafe_names(archive: zipfile.ZipFile) -> Iterator[str]:
    """What is wrong with the names and kinds of the entries, one sentence each."""
    seen: dict[str, str] = {}
    for entry in archive.infolist():
        if why := _why_unsafe(entry):
            yield f"{entry.filename!r}: {why}"
        other = seen.setdefault(entry.filename.casefold(), entry.filename)
        if seen.get(f"\0{other}") is not None:
            yield f"{entry.filename!r}: appears twice (as {other!r})"
        seen[f"\0{other}"] = other


def _why_unsafe(entry: zipfile.ZipInfo) -> str | None:
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    if entry.orig_filename != name:
        return "its name holds a zero byte or a foreign separator"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "an absolute path, a drive or a backslash"
    if not name or name.endswith("/") or any(ord(c) < 32 for c in name):
        return "not a file's name"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "a path that leaves its folder"
    if kind not in (0, stat.S_IFREG):
        return "a link or a special file"
    if entry.flag_bits & 0x1:
        return "encrypted"
    return None


def excessive_sizes(archive: zipfile.ZipFile) -> Iterator[str]:
    """Signs of a zip bomb, one sentence each; nothing is inflated to find them."""
    entries = archive.infolist()
    if len(entries) > ENTRIES_MAX:
        yield f"{len(entries):,} entries, more than {ENTRIES_MAX:,}"
    total = sum(entry.file_size for entry in entries)
    if total > TOTAL_BYTES_MAX:
        yield f"{total / 2**30:.1f} GiB unpacked, more than {TOTAL_BYTES_MAX / 2**30:g} GiB"
    for entry in entries:
        if entry.file_size > max(INFLATION_FREE_BYTES, INFLATION_MAX * max(entry.compress_size, 1)):
            times = entry.file_size / max(entry.compress_size, 1)
            yield f"{entry.filename!r} inflates {times:,.0f}-fold to {entry.file_size / 2**20:,.0f} MiB"


def chunks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    """An entry's bytes, never more than its directory entry declares (zipfile stops there, then compares the CRC).

    Raises: CheckError: the entry is damaged.
    """
    try:
        with archive.open(name) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise CheckError(f"'{name}' is damaged ({error})") from error


def digest(archive: zipfile.ZipFile, name: str) -> tuple[str, int]:
    """sha256 and size of an entry. Raises: CheckError: the entry is damaged."""
    sha, size_bytes = hashlib.sha256(), 0
    for chunk in chunks(archive, name):
        sha.update(chunk)
        size_bytes += len(chunk)
    return sha.hexdigest(), size_bytes


def unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Every entry below `folder`; only for an archive without unsafe names or excessive sizes."""
    for entry in archive.infolist():
        target = folder / PurePosixPath(entry.filename)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            for chunk in chunks(archive, entry.filename):
                stream.write(chunk)
