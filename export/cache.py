"""Artifacts kept by what they were made of, so that an unchanged model is not converted twice.

An entry is a copy of the artifact's folder under the digest of everything that decides its content: the program, the
request, the converter's packages, and edgekd's own exporters. It is written beside its place and renamed, checked
against its own digest when it is read, and thrown away where that fails. The oldest go when the cache is too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from edgekd.errors import EdgekdError
from edgekd.export.describe import MANIFEST_NAME
from edgekd.export.request import ExportRequest
from edgekd.files import read_json, sha256_of, size_bytes_of, write_json
from edgekd.targets import get_target

LIMIT_BYTES = 4 << 30
CONTENT, RECORD = "artifact", "entry.json"
# Rooms whose code decides what an artifact holds; reports and checks of it may change freely.
ROOMS = ("export", "targets", "quant")
NOT_CONVERTING = ("check", "bisect", "cache", "runner", "process")
SHARED_PACKAGES = ("torch", "torchao", "numpy", "onnx", "litert_converter")


def default_cache() -> Path:
    """Where exports are kept: $EDGEKD_CACHE, or edgekd under $XDG_CACHE_HOME or ~/.cache; in each the folder `exports`.

    A folder that is not absolute is ignored, as the XDG specification wants it.
    """
    own, shared = (Path(os.environ.get(name, "")) for name in ("EDGEKD_CACHE", "XDG_CACHE_HOME"))
    if own.is_absolute():
        return own / "exports"
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "edgekd" / "exports"


class ExportCache:
    """A folder of earlier artifacts, safe under processes that read and write it at once."""

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def fetch(self, key: str, out: Path) -> Artifact | None:
        """Copy an entry into the empty folder `out`: its artifact, or None where there is none that is whole."""
        entry = self._place(key)
        try:
            recorded = read_json(entry / RECORD)["sha256"]
            shutil.copytree(entry / CONTENT, out, dirs_exist_ok=True)
            if sha256_of(out) != recorded:
                raise ValueError("damaged")
            manifest = Artifact.model_validate(read_json(out / MANIFEST_NAME))
        except (EdgekdError, OSError, ValueError, KeyError, TypeError):
            _empty(out)
            self._drop(entry)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # the age of an entry is when it was last of use
        return manifest.model_copy(update={"path": out / manifest.path})

    def store(self, key: str, folder: Path) -> None:
        """Keep a copy of an artifact's folder; a full disk or a read-only place is no error."""
        with contextlib.suppress(OSError):
            entry = self._place(key)
            entry.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".new.", dir=entry.parent))
            try:
                shutil.copytree(folder, staging / CONTENT)
                write_json(staging / RECORD, {"sha256": sha256_of(staging / CONTENT)})
                staging.chmod(0o755)
                staging.rename(entry)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            self._shrink(keep=entry)

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _drop(self, entry: Path) -> None:
        """Take an entry away as a whole: renamed first, so that nobody reads half of it."""
        with contextlib.suppress(OSError):
            doomed = Path(tempfile.mkdtemp(prefix=".old.", dir=entry.parent))
            try:
                entry.rename(doomed / entry.name)
            finally:
                shutil.rmtree(doomed, ignore_errors=True)

    def _shrink(self, *, keep: Path) -> None:
        entries = []
        for record in self.folder.glob(f"??/*/{RECORD}"):
            with contextlib.suppress(OSError):  # another process may be removing it
                entry = record.parent
                entries.append((entry.stat().st_mtime, size_bytes_of(entry), entry))
        total_bytes = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total_bytes <= self.limit_bytes:
                return
            if entry != keep:
                self._drop(entry)
                total_bytes -= size


def _empty(folder: Path) -> None:
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def key_of(request: ExportRequest) -> str | None:
    """Digest of everything that decides what the conversion writes; None for another package's exporter.

    Raises: InputError: no such target.
    """
    from edgekd.export.worker import BUILT_IN

    if request.target not in BUILT_IN:
        return None
    target = get_target(request.target)
    made_of: Mapping[str, Any] = {
        "request": request.model_dump(mode="json", exclude={"program", "out"}),
        "program": program_digest(request.program),
        "packages": {name: _version(name) for name in (*target.packages, *target.evidence_with, *SHARED_PACKAGES)},
        "sources": _sources_digest(),
        "python": sys.version_info[:2],
        "machine": platform.machine(),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def program_digest(path: Path) -> str:
    """Digest of a program's graph and weights. Two exports of one model give it alike, though their bytes differ.

    What differs is notes on where a node came from (`metadata`) and a random serialization id.
    """
    if not zipfile.is_zipfile(path):
        return sha256_of(path)
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            inner = name.partition("/")[2]
            if inner == ".data/serialization_id" or inner.startswith("data/sample_inputs/"):
                continue
            content = archive.read(name)
            if inner.startswith("models/") and inner.endswith(".json"):
                content = json.dumps(_without_notes(json.loads(content)), sort_keys=True).encode()
            digest.update(f"{inner}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _without_notes(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _without_notes(value) for key, value in document.items() if key != "metadata"}
    return [_without_notes(item) for item in document] if isinstance(document, list) else document


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _version(package: str) -> str:
    """Version of the distribution that brings a package, "" where it is not installed."""
    for name in _distributions().get(package, [package]):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return ""


@cache
def _sources_digest() -> str:
    root = Path(__file__).resolve().parent.parent
    folders = [folder for room in ROOMS for folder in (root / room, root / "edgekd" / room) if folder.is_dir()]
    files = {file.resolve() for folder in folders for file in folder.glob("*.py")}
    kept = sorted(file for file in files if not file.stem.startswith(NOT_CONVERTING))
    return hashlib.sha256("".join(sha256_of(file) for file in kept).encode()).hexdigest()
