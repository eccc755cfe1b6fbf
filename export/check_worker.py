"""The child process of one check: `python -m edgekd.export.check_worker MODE REQUEST.json RESULT.json`.

MODE is `reference` (run the program in torch, keep its logits) or `check` (run the artifact, compare). A result of
{"broken": text} says why the artifact gave no numbers; the parent judges the numbers.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact
from edgekd.errors import EdgekdError
from edgekd.export.check import wilson_interval
from edgekd.export.worker import end_with_parent
from edgekd.files import read_json, write_json, write_whole
from edgekd.runtimes import FloatArray, Session, logits, op_report, open_session
from edgekd.runtimes.session import first_line

CHUNK = 256
IDENTICAL_DB = 200.0


class Images:
    """The parent's images, normalised a chunk at a time."""

    def __init__(self, folder: Path) -> None:
        self.pixels: npt.NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        self.labels: npt.NDArray[np.int64] = np.load(folder / "labels.npy", allow_pickle=False)
        self._table: FloatArray = np.load(folder / "table.npy", allow_pickle=False)

    def normalised(self, start: int, stop: int) -> FloatArray:
        """float32 [stop - start, C, H, W]."""
        pixels = self.pixels[start:stop]
        return np.stack([row[pixels[:, channel]] for channel, row in enumerate(self._table)], axis=1)

    def logits(self, session: Session, count: int) -> FloatArray:
        """The session's logits on the first `count` images."""
        starts = range(0, count, CHUNK)
        return np.concatenate([logits(session, self.normalised(k, min(k + CHUNK, count))) for k in starts])


def reference(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the program on every image and keep its logits [N, classes] as .npy."""
    from edgekd.runtimes.torch_program import open_program

    session = open_program(Path(request["program"]), threads=request["threads"])
    images = Images(Path(request["data"]))
    outputs = images.logits(session, len(images.labels))
    if not np.isfinite(outputs).all():
        return {"broken": "its logits are NaN or infinite"}

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, outputs, allow_pickle=False)

    write_whole(Path(request["out"]), write)
    return {"n_images": len(outputs)}


def check(request: Mapping[str, Any]) -> dict[str, Any]:
    """Open the artifact, run it, compare with the reference; fields of a CheckReport."""
    artifact = Artifact.model_validate(request["artifact"])
    expected: FloatArray = np.load(request["reference"], allow_pickle=False)
    images = Images(Path(request["data"]))
    session, load_ms = _opened(artifact, request["threads"])
    count = min(len(expected), request["parity_images"])
    if session.executed != "interpreted":
        count = len(expected)
    outputs = images.logits(session, count)
    if broken := _unusable(outputs, expected[:count]):
        return {"broken": broken}
    evidence = op_report(artifact)
    return {
        "executed": session.executed,
        "note": session.note,
        "load_ms": load_ms,
        "evidence": evidence.model_dump(mode="json"),
        "int8_share": evidence.int8_share,
        **parity(expected[: request["parity_images"]], outputs[: request["parity_images"]]),
        **accuracy(expected[:count], outputs, images.labels[:count]),
    }


def _opened(artifact: Artifact, threads: int) -> tuple[Session, float]:
    """A session and the milliseconds that opening it took, the runtime's own import paid before."""
    open_session(artifact, threads=threads).close()
    started_ns = time.perf_counter_ns()
    session = open_session(artifact, threads=threads)
    return session, (time.perf_counter_ns() - started_ns) / 1e6


def _unusable(outputs: FloatArray, expected: FloatArray) -> str | None:
    if outputs.shape != expected.shape:
        return f"it gives {outputs.shape[1]} outputs per image, its program {expected.shape[1]}"
    bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    return f"its outputs are NaN or infinite for {bad} of {len(outputs)} images" if bad else None


def parity(expected: FloatArray, outputs: FloatArray) -> dict[str, Any]:
    """Signal to noise of the logits in dB (at most 200), largest difference, and top-1 agreement. [N, classes] each.

    >>> parity(np.float32([[3.0, 4.0]]), np.float32([[3.0, 4.5]]))["snr_db"]
    20.0
    """
    wanted, got = expected.astype(np.float64), outputs.astype(np.float64)
    noise = float(((wanted - got) ** 2).sum())
    signal = float((wanted**2).sum())
    snr_db = 10 * np.log10(signal / noise) if signal and noise else (0.0 if noise else IDENTICAL_DB)
    return {
        "n_images": len(expected),
        "snr_db": min(float(snr_db), IDENTICAL_DB),
        "max_abs_error": float(np.abs(wanted - got).max()),
        "top1_agreement": float((wanted.argmax(axis=1) == got.argmax(axis=1)).mean()),
    }


def accuracy(expected: FloatArray, outputs: FloatArray, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Top-1 accuracy of the artifact with its 95% Wilson interval, and of the reference, on the same images."""
    correct = int((outputs.argmax(axis=1) == labels).sum())
    return {
        "n_accuracy_images": len(labels),
        "accuracy_top1": correct / len(labels),
        "accuracy_ci95": wilson_interval(correct, len(labels)),
        "reference_accuracy_top1": float((expected.argmax(axis=1) == labels).mean()),
    }


def answer(mode: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The result document of a mode; whatever a runtime raises becomes one line, its traceback is in the log."""
    try:
        return reference(request) if mode == "reference" else check(request)
    except EdgekdError as error:
        traceback.print_exc()
        return {"broken": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"broken": f"the runtime raised {type(error).__name__}: {first_line(error)}"}


def main(arguments: list[str]) -> int:
    """Answer a request; 0 when it has a result, else 1."""
    mode, request_path, result_path = arguments[0], Path(arguments[1]), Path(arguments[2])
    end_with_parent()
    document = answer(mode, read_json(request_path))
    write_json(result_path, document)
    return 1 if "broken" in document else 0


if __name__ == "__main__":
    STATUS = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Vendor libraries crash while they are torn down; the result is written.
    os._exit(STATUS)
