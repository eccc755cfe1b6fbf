"""The child process of one parity check: `python -m edgekd.bundle.replay REQUEST.json RESULT.json`.

A bundle may come from anywhere, so a model is only ever loaded here, where a crash or a hang costs one check.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bundle.manifest import BundledArtifact
from edgekd.bundle.vectors import FOLDER, INPUTS, compare, load_array
from edgekd.errors import EdgekdError, InputError, MissingExtraError
from edgekd.files import read_json, write_json


def replay(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run every parity input through one artifact and compare with its golden logits.

    Raises: MissingExtraError: its runtime is not installed. InputError: it cannot be loaded, or does not fit.
    """
    from edgekd.runtimes import logits, open_session

    root, entry = Path(request["root"]), BundledArtifact.model_validate(request["artifact"])
    inputs, golden = load_array(root / FOLDER / f"{INPUTS}.npy"), load_array(root / str(entry.golden))
    session = open_session(entry.located(root), threads=1)
    outputs = logits(session, inputs.astype(np.float32, copy=False))
    if outputs.shape != golden.shape or not np.isfinite(outputs).all():
        raise InputError(f"outputs of shape {list(outputs.shape)}, expected {list(golden.shape)} finite logits")
    snr_db, differ = compare(golden, outputs)
    return {
        "snr_db": snr_db,
        "differ": differ,
        "n_images": len(inputs),
        "executed": session.executed,
        "note": session.note,
    }


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, or why there are none: {"missing": why} without its runtime, else {"broken": why}."""
    try:
        return replay(request)
    except MissingExtraError as error:
        return {"missing": str(error)}
    except EdgekdError as error:
        return {"broken": error.what}
    except Exception as error:  # a runtime may raise anything on a hostile file; the caller shows one line
        return {"broken": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), answer(read_json(Path(sys.argv[1]))))
    os._exit(0)  # vendor libraries crash while they are torn down; the result is written
