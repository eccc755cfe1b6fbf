"""Is an artifact what it says? Parity with its program, accuracy in the runtime, and evidence of int8, in a subprocess.

The reference is the torch.export program that was converted: the float one for fp32 and fp16, the converted int8 one
for int8 (fake-quantised training graphs differ from it by rounding flips, 29-32 dB). It runs once per program and set
of images and is kept in `reference/` beside the program, so that five targets share it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact
from edgekd.errors import CheckError, InputError
from edgekd.export.check_report import (
    CheckBars,
    CheckReport,
    OutputParity,
    PairedAccuracy,
    applied_bars,
    bars_for,
    failures_of,
    warnings_of,
    why_not_int8,
)
from edgekd.export.process import Exit, last_lines, run_watched
from edgekd.export.runner import parallel_jobs, worker_environment
from edgekd.files import read_json, sha256_of, write_text

if TYPE_CHECKING:
    from edgekd.data.preprocessing import Preprocessing

__all__ = [
    "CheckBars",
    "CheckReport",
    "OutputParity",
    "PairedAccuracy",
    "applied_bars",
    "bars_for",
    "check",
    "check_all",
    "failures_of",
    "why_not_int8",
]

# -P: the working directory must not be importable, or a user's `onnx.py` beside the model would shadow the package.
WORKER_COMMAND = (sys.executable, "-P", "-m", "edgekd.export.check_worker")
PARITY_IMAGES = 512
# Operators of one image are too small for more threads, which spin against other work on a busy machine.
THREADS = 1
MEMORY_LIMIT_GIB = 8.0
TIMEOUT_S = 600.0


def check(
    artifact: Artifact,
    program: Path,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64] | None,
    preprocessing: Preprocessing,
    *,
    log: Path,
    parity_images: int = PARITY_IMAGES,
    bars: CheckBars | None = None,
    baseline: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> CheckReport:
    """Check one artifact. Whatever is wrong with it is in `failures`, crash and timeout of its runtime included.

    images: uint8 [N, C, H, W]; labels: int64 [N], or None where the model is no classifier of them. Parity is on the
    first `parity_images` and on every output, accuracy on all images and on the first output where it is [1, classes];
    a slow runtime takes fewer, down to those that half of `timeout_s` allows. bars: None takes `bars_for` the
    precision. baseline: the float program that accuracy is compared with, image by image, and that an int8 file which
    computes in fp16 may be as near to as its program. log: where the runtime's own output goes. timeout_s: of each
    child process.
    Raises: InputError: images and labels do not fit together, or there is no program.
        CheckError: a program itself cannot be run.
    """
    with _images_on_disk(images, labels, preprocessing) as exchange:
        job = _Job(exchange, parity_images=parity_images, baseline=baseline, timeout_s=timeout_s)
        return _check_one(artifact, program, job, bars=bars, log=log)


def check_all(
    artifacts: Sequence[tuple[Artifact, Path]],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64] | None,
    preprocessing: Preprocessing,
    *,
    log_dir: Path,
    on_done: Callable[[CheckReport], None] | None = None,
    parity_images: int = PARITY_IMAGES,
    bars: Sequence[CheckBars | None] | None = None,
    baseline: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[CheckReport]:
    """Check (artifact, program) pairs, as many at once as cores and memory allow; see `check`.

    bars: one per pair, None for the precision's own. on_done: called as each ends, from its thread. Ctrl-C ends every
    child, then propagates.
    """
    with _images_on_disk(images, labels, preprocessing) as exchange:
        job = _Job(exchange, parity_images=parity_images, baseline=baseline, timeout_s=timeout_s)
        _references([program for _, program in artifacts], job, log=log_dir / "check-references.log")

        def one(artifact: Artifact, program: Path, limits: CheckBars | None) -> CheckReport:
            log = log_dir / f"check-{artifact.path.parent.name}.log"
            report = _check_one(artifact, program, job, bars=limits, log=log)
            if on_done is not None and not job.cancelled.is_set():
                on_done(report)
            return report

        with ThreadPoolExecutor(max_workers=parallel_jobs(len(artifacts))) as pool:
            try:
                limits = bars or [None] * len(artifacts)
                futures = [pool.submit(one, *pair, bar) for pair, bar in zip(artifacts, limits, strict=True)]
                return [future.result() for future in futures]
            except BaseException:
                job.cancelled.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise


class _Job:
    """What stays the same from artifact to artifact."""

    def __init__(self, exchange: Path, *, parity_images: int, baseline: Path | None, timeout_s: float) -> None:
        self.exchange, self.baseline, self.timeout_s = exchange, baseline, timeout_s
        self.parity_images = parity_images
        self.images_sha256 = sha256_of(exchange)
        self.cancelled = threading.Event()


@contextmanager
def _images_on_disk(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64] | None, preprocessing: Preprocessing
) -> Iterator[Path]:
    """A temporary folder that the child reads; its hash names the reference outputs."""
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0:
        raise InputError(f"check takes uint8 images [N, C, H, W], got {images.dtype} {list(images.shape)}")
    if labels is not None and labels.shape != (len(images),):
        raise InputError(f"{len(images)} images but labels of shape {list(labels.shape)}")
    with tempfile.TemporaryDirectory(prefix="edgekd-check-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        np.save(data / "images.npy", images, allow_pickle=False)
        np.save(data / "table.npy", _pixel_table(preprocessing), allow_pickle=False)
        if labels is not None:
            np.save(data / "labels.npy", labels.astype(np.int64), allow_pickle=False)
        yield data


def _pixel_table(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """What each pixel value becomes, float32 [C, 256]: exact, and the child that has no torch needs nothing else."""
    import torch

    pixels = torch.arange(256, dtype=torch.uint8).expand(preprocessing.channels, 256)
    table: npt.NDArray[np.float32] = preprocessing.normalise(pixels[None, :, None, :])[0, :, 0, :].numpy()
    return table


def _json_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True) + "\n"


def _check_one(artifact: Artifact, program: Path, job: _Job, *, bars: CheckBars | None, log: Path) -> CheckReport:
    reference = _reference(program, job, log=log)
    baseline = _reference(job.baseline, job, log=log) if job.baseline is not None else None
    request = {
        "artifact": artifact.model_dump(mode="json") | {"path": str(artifact.path.resolve())},
        "data": str(job.exchange),
        "reference": str(reference),
        "baseline": str(baseline) if baseline else None,
        "parity_images": job.parity_images,
        "threads": THREADS,
        "time_budget_s": job.timeout_s / 2,
    }
    end, findings = _run("check", request, job, log=log)
    document = {"target": artifact.target, "precision": artifact.precision, "size_bytes": artifact.size_bytes}
    broken = findings.pop("broken", None) or _what_happened(end, findings, log)
    if broken:
        return CheckReport.model_validate({**document, "passed": False, "failures": (broken,), "wall_s": end.wall_s})
    report = CheckReport.model_validate({**document, **findings, "passed": True, "wall_s": end.wall_s})
    failures, warnings = report.failures + failures_of(report, bars), report.warnings + warnings_of(report, bars)
    return report.model_copy(update={"failures": failures, "warnings": warnings, "passed": not failures})


def _reference(program: Path, job: _Job, *, log: Path) -> Path:
    """The file with the program's outputs on the images, computed when it is not there yet."""
    if not program.is_file():
        raise InputError("no such program", where=program)
    path = _reference_file(program, job)
    if path.is_file():
        return path.resolve()
    request = _reference_request(program, path, job)
    reference_log = log.with_name(f"{log.stem}-reference{log.suffix}")
    end, findings = _run("reference", request, job, log=reference_log)
    broken = findings.get("broken") or _what_happened(end, findings, reference_log)
    if broken:
        raise CheckError(f"the program cannot be run: {broken}", where=program, fix=f"see {reference_log.name}")
    return path.resolve()


def _references(programs: Sequence[Path], job: _Job, *, log: Path) -> None:
    """Compute what is missing once, before several checks want it; what cannot be had is told when it is needed."""
    wanted = dict.fromkeys([*programs, *([job.baseline] if job.baseline is not None else [])])
    missing = [p for p in wanted if p.is_file() and not _reference_file(p, job).is_file()]
    if missing:
        each = [_reference_request(p, _reference_file(p, job), job) for p in missing]
        _run("references", {"each": each, "threads": THREADS}, job, log=log, timeout_s=job.timeout_s * len(missing))


def _reference_file(program: Path, job: _Job) -> Path:
    name = f"{sha256_of(program)[:16]}-{job.images_sha256[:16]}-{job.parity_images}-exact.npz"
    return program.parent / "reference" / name


def _reference_request(program: Path, path: Path, job: _Job) -> dict[str, Any]:
    return {
        "program": str(program.resolve()),
        "data": str(job.exchange),
        "out": str(path.resolve()),
        "parity_images": job.parity_images,
        "time_budget_s": job.timeout_s / 2,
        "threads": THREADS,
    }


def keep_reference(program: Path, images: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> None:
    """Compute a program's outputs in this process, where torch is loaded already, for checks without labels to find."""
    from edgekd.export.check_reference import write_reference

    with _images_on_disk(images, None, preprocessing) as exchange:
        job = _Job(exchange, parity_images=PARITY_IMAGES, baseline=None, timeout_s=TIMEOUT_S)
        path = _reference_file(program, job)
        write_reference(_reference_request(program, path, job))


def _run(
    mode: str, request: Mapping[str, Any], job: _Job, *, log: Path, timeout_s: float | None = None
) -> tuple[Exit, dict[str, Any]]:
    """One child process and its result document, {} when it left none."""
    with tempfile.TemporaryDirectory(prefix="edgekd-check-") as folder:
        asked, result = Path(folder) / "request.json", Path(folder) / "result.json"
        write_text(asked, _json_text(request))
        end = run_watched(
            [*WORKER_COMMAND, mode, str(asked), str(result)],
            log=log,
            environment=worker_environment(os.environ, int(request["threads"])),
            timeout_s=timeout_s or job.timeout_s,
            memory_limit_gib=MEMORY_LIMIT_GIB,
            cancelled=job.cancelled,
        )
        return end, dict(read_json(result)) if end.ending == "exit" and result.is_file() else {}


def _what_happened(end: Exit, findings: Mapping[str, Any], log: Path) -> str:
    """Why there is no result, "" when there is one."""
    if findings:
        return ""
    lines = last_lines(log)
    said = f"; its last lines: {' | '.join(lines)}" if lines else "; it printed nothing"
    return f"the runtime {end.describe()} without a result{said}; see {log.name}"
