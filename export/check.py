"""Is an artifact what it says? Parity with its program, accuracy in the runtime, and evidence of int8, in a subprocess.

The reference is the torch.export program that was converted: the float one for fp32 and fp16, the converted int8 one
for int8 (fake-quantised training graphs differ from it by rounding flips, 29-32 dB). It runs once per program and set
of images and is kept as a .npy file in `reference/` beside the program, so that five targets share it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgekd.artifact import Artifact, Frozen, Precision
from edgekd.errors import CheckError, InputError
from edgekd.export.process import Exit, last_lines, run_watched
from edgekd.export.runner import worker_environment
from edgekd.files import read_json, sha256_of, write_text
from edgekd.runtimes.session import Executed, OpReport

if TYPE_CHECKING:
    from edgekd.data.preprocessing import Preprocessing

# -P: the working directory must not be importable, or a user's `onnx.py` beside the model would shadow the package.
WORKER_COMMAND = (sys.executable, "-P", "-m", "edgekd.export.check_worker")
PARITY_IMAGES = 512
NAMES_SHOWN = 5
MEMORY_LIMIT_GIB = 8.0
TIMEOUT_S = 600.0


class CheckBars(Frozen):
    """What an artifact must reach. int8_convs: all convolutions run in int8 (matrix products, where it has none)."""

    snr_db: float
    top1_agreement: float = Field(default=0.99, ge=0, le=1)
    int8_convs: bool = False


def bars_for(precision: Precision, *, fp16_compute: bool = False) -> CheckBars:
    """The bars of a precision.

    fp32: 60 dB (runtimes reorder sums; 100 dB and more is usual). fp16: 50 dB where only weights are fp16, 40 dB where
    the operators' values are too (63 dB was measured for both on a small net; deep nets lose more to rounding).
    int8: 30 dB against the converted program (36-47 dB measured; rounding flips at the borders of the grid).

    >>> bars_for("fp16", fp16_compute=True).snr_db, bars_for("int8").int8_convs
    (40.0, True)
    """
    if precision == "int8":
        return CheckBars(snr_db=30.0, int8_convs=True)
    if precision == "fp16":
        return CheckBars(snr_db=40.0 if fp16_compute else 50.0)
    return CheckBars(snr_db=60.0)


class CheckReport(Frozen):
    """What was found. A number is None where the artifact gave no outputs to compute it from.

    n_images: images of the parity figures: snr_db (signal to noise of the logits, 200 = identical), max_abs_error (of
    logits) and top1_agreement (part of the images where artifact and reference name the same class).
    n_accuracy_images: images of accuracy_top1 (the artifact), its Wilson interval and reference_accuracy_top1.
    executed, note: what stood for the runtime. evidence: what the graph is made of; int8_share: part of the
    convolutions and matrix products in int8. load_ms: opening the artifact, second time in a fresh process.
    wall_s: the whole check.
    """

    target: str
    precision: Precision
    passed: bool
    failures: tuple[str, ...] = ()
    executed: Executed = "not-executed"
    note: str = ""
    n_images: int = 0
    snr_db: float | None = None
    max_abs_error: float | None = None
    top1_agreement: float | None = None
    n_accuracy_images: int = 0
    accuracy_top1: float | None = None
    accuracy_ci95: tuple[float, float] | None = None
    reference_accuracy_top1: float | None = None
    evidence: OpReport | None = None
    int8_share: float | None = None
    load_ms: float | None = None
    size_bytes: int = 0
    wall_s: float = 0.0


def check(
    artifact: Artifact,
    program: Path,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    log: Path,
    parity_images: int = PARITY_IMAGES,
    bars: CheckBars | None = None,
    threads: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> CheckReport:
    """Check one artifact. Whatever is wrong with it is in `failures`, crash and timeout of its runtime included.

    images: uint8 [N, C, H, W]; labels: int64 [N]. Parity is on the first `parity_images`, accuracy on all of them,
    except where the artifact is interpreted (slow): there on the parity images. bars: None takes `bars_for` the
    precision. log: where the runtime's own output goes. timeout_s: of each child process.
    Raises: InputError: images and labels do not fit together, or there is no program.
        CheckError: the program itself cannot be run.
    """
    with _images_on_disk(images, labels, preprocessing) as exchange:
        job = _Job(exchange, parity_images=parity_images, bars=bars, threads=threads, timeout_s=timeout_s)
        return _check_one(artifact, program, job, log=log)


def check_all(
    artifacts: Sequence[tuple[Artifact, Path]],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    log_dir: Path,
    on_done: Callable[[CheckReport], None] | None = None,
    parity_images: int = PARITY_IMAGES,
    threads: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> list[CheckReport]:
    """Check (artifact, program) pairs one after another, so that load times are not disturbed; see `check`."""
    reports = []
    with _images_on_disk(images, labels, preprocessing) as exchange:
        job = _Job(exchange, parity_images=parity_images, bars=None, threads=threads, timeout_s=timeout_s)
        for artifact, program in artifacts:
            log = log_dir / f"check-{artifact.target}-{artifact.precision}.log"
            reports.append(_check_one(artifact, program, job, log=log))
            if on_done is not None:
                on_done(reports[-1])
    return reports


class _Job:
    """What stays the same from artifact to artifact."""

    def __init__(
        self, exchange: Path, *, parity_images: int, bars: CheckBars | None, threads: int, timeout_s: float
    ) -> None:
        self.exchange, self.bars, self.threads, self.timeout_s = exchange, bars, threads, timeout_s
        self.parity_images = parity_images
        self.images_sha256 = sha256_of(exchange)


@contextmanager
def _images_on_disk(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], preprocessing: Preprocessing
) -> Iterator[Path]:
    """A temporary folder that the child reads; its hash names the reference logits."""
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0:
        raise InputError(f"check takes uint8 images [N, C, H, W], got {images.dtype} {list(images.shape)}")
    if labels.shape != (len(images),):
        raise InputError(f"{len(images)} images but labels of shape {list(labels.shape)}")
    with tempfile.TemporaryDirectory(prefix="edgekd-check-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        np.save(data / "images.npy", images, allow_pickle=False)
        np.save(data / "labels.npy", labels.astype(np.int64), allow_pickle=False)
        np.save(data / "table.npy", _pixel_table(preprocessing), allow_pickle=False)
        yield data


def _pixel_table(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """What each pixel value becomes, float32 [C, 256]: exact, and the child that has no torch needs nothing else."""
    import torch

    pixels = torch.arange(256, dtype=torch.uint8).expand(preprocessing.channels, 256)
    table: npt.NDArray[np.float32] = preprocessing.normalise(pixels[None, :, None, :])[0, :, 0, :].numpy()
    return table


def _json_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True) + "\n"


def _check_one(artifact: Artifact, program: Path, job: _Job, *, log: Path) -> CheckReport:
    reference = _reference(program, job, log=log)
    request = {
        "artifact": artifact.model_dump(mode="json") | {"path": str(artifact.path.resolve())},
        "data": str(job.exchange),
        "reference": str(reference),
        "parity_images": job.parity_images,
        "threads": job.threads,
    }
    end, findings = _run("check", request, job, log=log)
    document = {"target": artifact.target, "precision": artifact.precision, "size_bytes": artifact.size_bytes}
    broken = findings.pop("broken", None) or _what_happened(end, findings, log)
    if broken:
        return CheckReport.model_validate({**document, "passed": False, "failures": (broken,), "wall_s": end.wall_s})
    report = CheckReport.model_validate({**document, **findings, "passed": True, "wall_s": end.wall_s})
    failures = report.failures + failures_of(report, job.bars)
    return report.model_copy(update={"failures": failures, "passed": not failures})


def failures_of(report: CheckReport, bars: CheckBars | None = None) -> tuple[str, ...]:
    """What of a report is under the bars, one sentence each."""
    evidence = report.evidence
    fp16_compute = evidence is not None and evidence.fp16_compute
    limits = bars or bars_for(report.precision, fp16_compute=fp16_compute)
    failures = []
    if report.snr_db is not None and report.snr_db < limits.snr_db:
        failures.append(f"parity {report.snr_db:.1f} dB is under {limits.snr_db:g} dB (on {report.n_images} images)")
    if report.top1_agreement is not None and report.top1_agreement < limits.top1_agreement:
        agreement = f"top-1 agreement {report.top1_agreement:.4f} is under {limits.top1_agreement:g}"
        failures.append(f"{agreement} (on {report.n_images} images)")
    if limits.int8_convs and evidence is not None and (not_int8 := why_not_int8(evidence)):
        failures.append(not_int8)
    return tuple(failures)


def why_not_int8(evidence: OpReport) -> str | None:
    """Which convolutions are not int8, or None when all are; matrix products where there is no convolution.

    >>> why_not_int8(OpReport(ops={}, compute_ops=0, int8_compute_ops=0))
    'no convolution or matrix product was found, so nothing proves int8'
    """
    if evidence.compute_ops == 0:
        return "no convolution or matrix product was found, so nothing proves int8"
    kind = "convolutions" if evidence.convs else "matrix products"
    total = evidence.convs or evidence.compute_ops
    missing = total - (evidence.int8_convs if evidence.convs else evidence.int8_compute_ops)
    if missing == 0:
        return None
    names = evidence.float_convs if evidence.convs else evidence.float_linears
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return f"{missing} of {total} {kind} are not int8: {', '.join(names[:NAMES_SHOWN])}{more} ({evidence.source})"


def wilson_interval(correct: int, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a proportion. Source: Wilson 1927. Raises: InputError: total is not positive.

    >>> [round(v, 4) for v in wilson_interval(90, 100)]
    [0.8256, 0.9448]
    """
    if total <= 0 or not 0 <= correct <= total:
        raise InputError(f"no proportion of {correct} in {total}")
    p, spread = correct / total, z * z / total
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # at 0 and 1 the sums may miss by rounding


def _reference(program: Path, job: _Job, *, log: Path) -> Path:
    """The file with the program's logits on the images, computed when it is not there yet."""
    if not program.is_file():
        raise InputError("no such program", where=program)
    path = program.parent / "reference" / f"{sha256_of(program)[:16]}-{job.images_sha256[:16]}.npy"
    if path.is_file():
        return path.resolve()
    request = {"program": str(program.resolve()), "data": str(job.exchange), "out": str(path.resolve())}
    reference_log = log.with_name(f"{log.stem}-reference{log.suffix}")
    # One thread: batch-1 operators are too small for more, which spin against other work on a busy machine.
    end, findings = _run("reference", {**request, "threads": 1}, job, log=reference_log)
    broken = findings.get("broken") or _what_happened(end, findings, reference_log)
    if broken:
        raise CheckError(f"the program cannot be run: {broken}", where=program, fix=f"see {reference_log.name}")
    return path.resolve()


def _run(mode: str, request: Mapping[str, Any], job: _Job, *, log: Path) -> tuple[Exit, dict[str, Any]]:
    """One child process and its result document, {} when it left none."""
    with tempfile.TemporaryDirectory(prefix="edgekd-check-") as folder:
        asked, result = Path(folder) / "request.json", Path(folder) / "result.json"
        write_text(asked, _json_text(request))
        end = run_watched(
            [*WORKER_COMMAND, mode, str(asked), str(result)],
            log=log,
            environment=worker_environment(os.environ, int(request["threads"])),
            timeout_s=job.timeout_s,
            memory_limit_gib=MEMORY_LIMIT_GIB,
        )
        return end, dict(read_json(result)) if end.ending == "exit" and result.is_file() else {}


def _what_happened(end: Exit, findings: Mapping[str, Any], log: Path) -> str:
    """Why there is no result, "" when there is one."""
    if findings:
        return ""
    lines = last_lines(log)
    said = f"; its last lines: {' | '.join(lines)}" if lines else "; it printed nothing"
    return f"the runtime {end.describe()} without a result{said}; see {log.name}"
