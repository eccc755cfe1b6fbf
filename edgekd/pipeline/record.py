"""The run directory: which stages are done, from which inputs, and whether what they wrote is still there unchanged.

run.json is the only file that says a stage is done, and it is renamed into place after the stage's own files are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgekd
from edgekd.errors import InputError
from edgekd.files import read_json, sha256_of, write_json
from edgekd.pipeline.settings import Settings

SCHEMA_VERSION = 1


@dataclass
class RunRecord:
    """One run directory. `document` mirrors run.json."""

    folder: Path
    settings: Settings
    document: dict[str, Any]

    @property
    def stages(self) -> dict[str, Any]:
        """Stage name to what is known of it, in the order they finished."""
        stages: dict[str, Any] = self.document["stages"]
        return stages

    @property
    def corrections(self) -> list[float]:
        """Measured over predicted latency, one for each time the student was selected anew."""
        found: list[float] = self.document.get("corrections", [])
        return found

    def correct(self, correction: float) -> None:
        """Keep a correction in run.json."""
        self.document["corrections"] = [*self.corrections, round(correction, 4)]
        write_json(self.folder / "run.json", self.document)

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage found. Raises: InputError: it has not finished."""
        result: dict[str, Any] = read_json(self.folder / f"{stage}.json")
        return result

    def intact(self, stage: str, inputs: str) -> bool:
        """True when the stage finished from the same inputs and every file it wrote still has its sha256."""
        entry = self.stages.get(stage)
        if entry is None or entry["inputs"] != inputs:
            return False
        return all(_unchanged(self.folder / name, digest) for name, digest in entry["outputs"].items())

    def finish(
        self, stage: str, *, inputs: str, result: dict[str, Any], outputs: Sequence[Path], seconds: float
    ) -> None:
        """Write the stage's result, then say in run.json that it is done."""
        path = write_json(self.folder / f"{stage}.json", result)
        names = {str(p.relative_to(self.folder)): sha256_of(p) for p in [path, *outputs]}
        self.stages[stage] = {"inputs": inputs, "outputs": names, "seconds": round(seconds, 2), "finished": _now()}
        write_json(self.folder / "run.json", self.document)

    def next_inputs(self, inputs: str, done: str) -> str:
        """Hash of what the stage after `done` depends on; measured corrections count from the selection on."""
        corrections = self.corrections if done == "plan" else []
        return fingerprint([inputs, self.digest(done), *([corrections] if corrections else [])])

    def digest(self, stage: str) -> str:
        """Hash of a finished stage's outputs: the next stage's inputs contain it."""
        return fingerprint(self.stages[stage]["outputs"])


def _unchanged(path: Path, digest: str) -> bool:
    return path.exists() and sha256_of(path) == digest


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def fingerprint(document: Any) -> str:
    """Hex digest of plain data, independent of key order.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def check_free(folder: Path) -> None:
    """Raises: InputError: the folder already holds a run or other files."""
    if (folder / "run.json").exists():
        raise InputError("holds another run", where=folder, fix="go on with --resume, or choose another --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is not an empty folder", where=folder, fix="choose another --out")


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run directory: a second process on it is refused. The lock goes with the process, also on kill -9.

    Raises: InputError: another process is at work in this run.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another process is working in this run", where=folder, fix="wait for it, or end it"
            ) from error
        yield


def create(folder: Path, settings: Settings, *, command: str) -> RunRecord:
    """A new run directory. Raises: InputError: the folder already holds a run or other files, or cannot be made."""
    check_free(folder)
    document = {
        "schema_version": SCHEMA_VERSION,
        "edgekd": edgekd.__version__,
        "created": _now(),
        "python": platform.python_version(),
        "command": command,
        "settings": settings.model_dump(mode="json"),
        "stages": {},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be created ({error.strerror})", where=folder, fix="choose another --out") from error
    write_json(folder / "run.json", document)
    return RunRecord(folder, settings, document)


def open_record(folder: Path) -> RunRecord:
    """An existing run directory. Raises: InputError: it is not one, or another version of edgekd wrote it."""
    if not (folder / "run.json").is_file():
        raise InputError("is not a run directory (no run.json)", where=folder)
    document = read_json(folder / "run.json")
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"run.json has another schema than {SCHEMA_VERSION}", where=folder, fix="start a new run")
    try:
        settings = Settings.model_validate(document["settings"])
        if not isinstance(document["stages"], dict):
            raise ValueError("stages is not a table")
    except (ValueError, KeyError) as error:
        raise InputError(f"run.json cannot be used ({error})", where=folder, fix="start a new run") from error
    return RunRecord(folder, settings, document)


def resume(folder: Path, settings: Settings) -> RunRecord:
    """An existing run, to go on with. Raises: InputError: it was started with other settings (the first is named)."""
    record = open_record(folder)
    old, new = record.settings.model_dump(), settings.model_dump()
    for key, value in new.items():
        if old[key] != value:
            raise InputError(
                f"was started with {key}={old[key]!r}, not {value!r}",
                where=folder,
                fix="repeat the first command, or choose another --out",
            )
    return record


def next_free(parent: Path, name: str) -> Path:
    """`parent/name-001`, or the first number not yet taken."""
    number = 1
    while (parent / f"{name}-{number:03d}").exists():
        number += 1
    return parent / f"{name}-{number:03d}"


def latest(parent: Path, name: str) -> Path:
    """The last run of a name. Raises: InputError: there is none."""
    runs = sorted(p for p in parent.glob(f"{name}-[0-9][0-9][0-9]") if (p / "run.json").is_file())
    if not runs:
        raise InputError(f"no run of '{name}' to resume", where=parent, fix="start one without --resume")
    return runs[-1]
