"""The child process of one check: `python -m edgekd.export.check_worker MODE REQUEST.json RESULT.json`.

MODE is `reference` (run the program in torch, keep its outputs), `references` (of several programs) or `check` (run the
artifact, compare). A result of {"broken": text} says why there are no numbers; the parent judges the numbers.
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
from edgekd.export.check_images import Deadline, Images, all_outputs, classify
from edgekd.export.worker import end_with_parent
from edgekd.files import read_json, write_json
from edgekd.runtimes import FloatArray, Session, logits, op_report, open_session
from edgekd.runtimes.session import first_line
from edgekd.statistics import mcnemar_exact, wilson_interval

IDENTICAL_DB = 200.0
# Below this part of their power, what changes from image to image cannot be told from rounding.
TELLING_DB = -60.0


def reference(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the program on every image and keep its outputs."""
    from edgekd.export.check_reference import write_reference

    return write_reference(request)


def references(request: Mapping[str, Any]) -> dict[str, Any]:
    """The references of several programs; what is wrong with one does not stop the others."""
    return {"each": [answer("reference", one) for one in request["each"]]}


def check(request: Mapping[str, Any]) -> dict[str, Any]:
    """Open the artifact, run it, compare with the reference; fields of a CheckReport."""
    artifact = Artifact.model_validate(request["artifact"])
    kept = np.load(request["reference"], allow_pickle=False)
    expected = {name.removeprefix("output:"): kept[name] for name in kept.files if name.startswith("output:")}
    images, deadline = Images(Path(request["data"])), Deadline(request["time_budget_s"])
    session, load_ms = _opened(artifact, request["threads"])
    count = len(next(iter(expected.values())))
    found = all_outputs(session, images, count, holds=artifact.inputs[0].holds, deadline=deadline)
    if broken := _unusable(found, expected):
        return {"broken": broken}
    pairs = list(zip(expected, expected.values(), found.values(), strict=True))
    evidence = op_report(artifact)
    return {
        "executed": session.executed,
        "note": session.note,
        "load_ms": load_ms,
        "evidence": evidence.model_dump(mode="json"),
        "int8_share": evidence.int8_share,
        "int8_macs_share": evidence.int8_macs_share if evidence.macs else None,
        **parity_of(pairs),
        "float32_snr_db": _float32_snr_db(kept, expected),
        "from_float": _from_float(request["baseline"], pairs) if artifact.precision == "int8" else None,
        **_accuracy_of(kept, request["baseline"], session, artifact, images, pairs[0][2], deadline),
    }


def _opened(artifact: Artifact, threads: int) -> tuple[Session, float]:
    """A session and the milliseconds that opening it took, the runtime's own import paid before."""
    open_session(artifact, threads=threads).close()
    started_ns = time.perf_counter_ns()
    session = open_session(artifact, threads=threads)
    return session, (time.perf_counter_ns() - started_ns) / 1e6


def _unusable(found: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> str | None:
    """Why outputs cannot be compared. They are matched by position: converters rename them."""
    if len(found) != len(expected):
        return f"it has {len(found)} outputs, its program {len(expected)}"
    for (name, wanted), got in zip(expected.items(), found.values(), strict=True):
        if got.shape[1:] != wanted.shape[1:]:
            if got.ndim == wanted.ndim == 2:
                return f"it gives {got.shape[1]} outputs per image, its program {wanted.shape[1]}"
            return f"its output '{name}' has shape {list(got.shape[1:])}, its program's {list(wanted.shape[1:])}"
        bad = int((~np.isfinite(got.reshape(len(got), -1))).any(axis=1).sum())
        if bad:
            return f"its outputs are NaN or infinite for {bad} of {len(got)} images"
    return None


def parity_of(pairs: list[tuple[str, FloatArray, FloatArray]]) -> dict[str, Any]:
    """Parity of every (name, expected, found), [N, ...] each; the report's figures are the worst output's."""
    rows: list[dict[str, Any]] = []
    for name, wanted, got in pairs:
        figures = parity(wanted[: len(got)], got)
        rows.append({"name": name, "shape": got.shape[1:], **{k: figures[k] for k in ("snr_db", "max_abs_error")}})
    worst = min(rows, key=lambda row: row["snr_db"])
    _, wanted, got = pairs[0]
    return {
        "n_images": len(got),
        "outputs": rows,
        "worst_output": worst["name"],
        "snr_db": worst["snr_db"],
        "max_abs_error": worst["max_abs_error"],
        "top1_agreement": agreement(wanted[: len(got)], got),
        "agreement_over": "pixels" if got.ndim == 4 else "images",
        "warnings": [text for name, wanted, _ in pairs if (text := _tells_nothing(name, wanted))],
    }


def _float32_snr_db(kept: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> float | None:
    """What float32 keeps of the worst output; None for a float program."""
    read = {name: kept[f"float32:{name}"] for name in expected if f"float32:{name}" in kept}
    return min((parity(expected[name][: len(got)], got)["snr_db"] for name, got in read.items()), default=None)


def _from_float(baseline: str | None, pairs: list[tuple[str, FloatArray, FloatArray]]) -> dict[str, Any] | None:
    """Fields of FromFloat; None where there is no float program, or its outputs are others."""
    if baseline is None:
        return None
    kept = np.load(baseline, allow_pickle=False)
    floats = [kept[name] for name in kept.files if name.startswith("output:")]
    n = min(len(got) for got in (*floats, *(found for _, _, found in pairs)))
    if [one.shape[1:] for one in floats] != [found.shape[1:] for _, _, found in pairs]:
        return None
    both = [
        tuple(parity(exact[:n], outputs[:n])["snr_db"] for outputs in (found, wanted))
        for exact, (_, wanted, found) in zip(floats, pairs, strict=True)
    ]
    snr_db, program_snr_db = min(both, key=lambda figures: figures[0] - figures[1])
    (_, wanted, found), exact = pairs[0], floats[0][:n]
    return {
        "snr_db": snr_db,
        "program_snr_db": program_snr_db,
        "top1_agreement": agreement(exact, found[:n]),
        "program_top1_agreement": agreement(exact, wanted[:n]),
        "p_value": paired(wanted[:n], found, exact.argmax(axis=1))["p_value"] if exact.ndim == 2 else None,
    }


def parity(expected: FloatArray, outputs: FloatArray) -> dict[str, float]:
    """Signal to noise of an output in dB (at most 200) and its largest difference. [N, ...] each.

    >>> parity(np.float32([[3.0, 4.0]]), np.float32([[3.0, 4.5]]))["snr_db"]
    20.0
    """
    wanted, got = expected.astype(np.float64), outputs.astype(np.float64)
    noise = float(((wanted - got) ** 2).sum())
    signal = float((wanted**2).sum())
    snr_db = 10 * np.log10(signal / noise) if signal and noise else (0.0 if noise else IDENTICAL_DB)
    return {"snr_db": min(float(snr_db), IDENTICAL_DB), "max_abs_error": float(np.abs(wanted - got).max(initial=0.0))}


def agreement(expected: FloatArray, outputs: FloatArray) -> float | None:
    """Part of the images where both name the same class; of the pixels for [N, classes, H, W]; None for other shapes.

    >>> agreement(np.float32([[0, 1], [1, 0]]), np.float32([[0, 2], [0, 2]]))
    0.5
    """
    if expected.ndim not in (2, 4) or expected.shape[1] < 2:
        return None
    return float((expected.argmax(axis=1) == outputs.argmax(axis=1)).mean())


def _tells_nothing(name: str, wanted: FloatArray) -> str | None:
    """A warning where an output hardly changes from image to image, as with random weights."""
    values = wanted.astype(np.float64)
    power = float((values**2).sum())
    changing = float(((values - values.mean(axis=0)) ** 2).sum())
    if len(values) < 2 or (power and changing > power * 10 ** (TELLING_DB / 10)):
        return None
    same = f"output '{name}' of the program is the same for every image"
    return f"{same}, so parity proves little: are the weights trained?"


def _accuracy_of(
    kept: Mapping[str, FloatArray],
    baseline: str | None,
    session: Session,
    artifact: Artifact,
    images: Images,
    answered: FloatArray,
    deadline: Deadline,
) -> dict[str, Any]:
    """Accuracy on all images, or on the parity images where the artifact is interpreted; {} without labels."""
    if images.labels is None or "logits" not in kept:
        return {}
    holds, total = artifact.inputs[0].holds, len(kept["logits"])

    def answer(start: int, stop: int) -> FloatArray:
        return logits(session, images.for_input(holds, start, stop))

    if session.executed != "interpreted":
        more = classify(answer, len(answered), total, deadline=deadline)
        answered = np.concatenate([answered, more]) if len(more) else answered
    n = len(answered)
    if not np.isfinite(answered).all():
        return {"failures": ["its outputs are NaN or infinite for some of the images"]}
    found = accuracy(kept["logits"][:n], answered, images.labels[:n])
    if baseline is not None:
        float_logits = np.load(baseline, allow_pickle=False)["logits"]
        found["paired"] = paired(float_logits, answered, images.labels)
    return found


def accuracy(expected: FloatArray, outputs: FloatArray, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Top-1 accuracy of the artifact with its 95% Wilson interval, and of the reference, on the same images."""
    correct = int((outputs.argmax(axis=1) == labels).sum())
    return {
        "n_accuracy_images": len(labels),
        "accuracy_top1": correct / len(labels),
        "accuracy_ci95": wilson_interval(correct, len(labels)),
        "reference_accuracy_top1": float((expected.argmax(axis=1) == labels).mean()),
    }


def paired(baseline: FloatArray, outputs: FloatArray, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Fields of PairedAccuracy, on the images that both answered.

    >>> paired(np.eye(2), np.eye(2)[[1, 1]], np.array([0, 1]))["loss_points"]
    50.0
    """
    n = min(len(baseline), len(outputs))
    before = baseline[:n].argmax(axis=1) == labels[:n]
    after = outputs[:n].argmax(axis=1) == labels[:n]
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    return {
        "n": n,
        "baseline_top1": float(before.mean()),
        "loss_points": 100 * (lost - gained) / n,
        "lost": lost,
        "gained": gained,
        "p_value": mcnemar_exact(lost, gained),
    }


def answer(mode: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The result document of a mode; whatever a runtime raises becomes one line, its traceback is in the log."""
    try:
        return _MODES[mode](request)
    except EdgekdError as error:
        traceback.print_exc()
        return {"broken": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"broken": f"the runtime raised {type(error).__name__}: {first_line(error)}"}


_MODES = {"reference": reference, "references": references, "check": check}


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
