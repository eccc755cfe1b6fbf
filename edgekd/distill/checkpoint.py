"""Checkpoints: whole or absent, readable with `weights_only=True`, enough to go on bit for bit.

Batches, augmentation, dropout and the learning rate are functions of the step (batches.py, loop.py, optimiser.py), so
the step is also the data position and the state of every random generator.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekd.errors import InputError
from edgekd.files import write_whole

FORMAT = 1


def last_path(out: Path) -> Path:
    """Where a run folder keeps the newest checkpoint."""
    return out / "checkpoints" / "last.pt"


def best_path(out: Path) -> Path:
    """Where a run folder keeps the checkpoint of the best validation accuracy."""
    return out / "checkpoints" / "best.pt"


def save(path: Path, document: Mapping[str, Any]) -> Path:
    """Write tensors and plain values. Raises: InputError: the disk is full; the old checkpoint stays."""
    # Through memory: torch's own file writer reports a full disk as a RuntimeError without an errno.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **document}, buffer)
    return write_whole(path, lambda temporary: _write_bytes(temporary, buffer))


def _write_bytes(path: Path, buffer: io.BytesIO) -> None:
    path.write_bytes(buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """The document of a checkpoint, on the CPU. Raises: InputError: no such file, or it is no whole checkpoint."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError("no such checkpoint", where=path) from error
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise InputError("not a whole checkpoint", where=path, fix="delete it and start the stage again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"not a checkpoint of format {FORMAT}", where=path, fix="delete it and start the stage again")
    return document


def student_weights(path: Path, student: str = "student") -> dict[str, Tensor]:
    """A student's state from a checkpoint, for `model.load_state_dict`: its moving average where one was kept.

    Raises: InputError: it has no such student.
    """
    document = load(path)
    students = document.get("average") or document["students"]
    if student not in students:
        raise InputError(f"no student '{student}' in this checkpoint", where=path, fix="has: " + ", ".join(students))
    state: dict[str, Tensor] = students[student]
    return state


def same_identity(document: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """Raises: InputError: the checkpoint was written with other settings; the first that differs is named."""
    saved = document["identity"]
    for key in identity:
        if saved.get(key) != identity[key]:
            raise InputError(
                f"the checkpoint was written with {key} {saved.get(key)}, now {identity[key]}",
                where=path,
                fix="resume with the same settings, or start without --resume",
            )
