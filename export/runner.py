"""Run conversions in subprocesses: one artifact or one clear error each; a converter that dies takes nothing along."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgekd.artifact import Artifact
from edgekd.errors import ConversionError, EdgekdError, InputError, MissingExtraError
from edgekd.export.cache import ExportCache, key_of
from edgekd.export.describe import MANIFEST_NAME
from edgekd.export.io_forms import why_not_io
from edgekd.export.process import Exit, last_lines, run_watched
from edgekd.export.request import ExportOutcome, ExportRequest, RefusedError
from edgekd.files import read_json, write_json, write_text
from edgekd.targets import Target, get_target

# -P: the working directory must not be importable, or a user's `onnx.py` beside the model would shadow the package.
WORKER_COMMAND = (sys.executable, "-P", "-m", "edgekd.export.worker")
# What a converter takes at its peak (1.28 GiB were measured for LiteRT), and which converters take longest.
CONVERSION_GIB = 1.3
SLOWEST = ("tflite", "coreml", "openvino", "onnxruntime", "tensorrt")


def export_one(request: ExportRequest, *, log: Path, cache: Path | None = None) -> Artifact:
    """Convert one program in a subprocess; the converter's output goes to `log`, never to the terminal.

    cache: folder of earlier exports (`default_cache()`); an unchanged conversion is copied from there.

    Raises:
        RefusedError: the target or the profile does not take the precision; nothing was started.
        MissingExtraError: a package is not installed.
        InputError: no such target or program, or `request.out` holds something else.
        ConversionError: the converter failed, crashed, hung or ran out of memory; its last lines and the log are named.
    """
    run = _Run(threads=_cores(), cancelled=None, cache=ExportCache(cache) if cache else None)
    return _export(request, log=log, run=run)[0]


def export_all(
    requests: Sequence[ExportRequest],
    log_dir: Path,
    jobs: int | None = None,
    *,
    on_done: Callable[[ExportOutcome], None] | None = None,
    cache: Path | None = None,
) -> list[ExportOutcome]:
    """Convert every request, `jobs` at a time, and report each in the order asked; a failure does not stop the others.

    jobs: None takes as many as cores and free memory allow. on_done: called as each ends of itself, from its thread.
    cache: folder of earlier exports (`default_cache()`), None for none. Ctrl-C ends every running converter, then
    propagates.
    """
    cancelled = threading.Event()
    at_once = max(1, jobs if jobs is not None else parallel_jobs(len(requests)))
    run = _Run(max(1, _cores() // at_once), cancelled, ExportCache(cache) if cache else None)

    def one(request: ExportRequest, log: Path) -> ExportOutcome:
        outcome = _outcome(request, log=log, run=run)
        if on_done is not None and not cancelled.is_set():
            on_done(outcome)
        return outcome

    pairs = list(zip(requests, _log_names(requests, log_dir), strict=True))
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        try:
            futures = {index: pool.submit(one, *pairs[index]) for index in _longest_first(requests)}
            return [futures[index].result() for index in range(len(requests))]
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def parallel_jobs(n_requests: int) -> int:
    """Conversions to run at once: one per core, as long as each has the memory a converter takes."""
    by_memory = int(psutil.virtual_memory().available / 2**30 / CONVERSION_GIB)
    return max(1, min(n_requests, _cores(), by_memory))


def _longest_first(requests: Sequence[ExportRequest]) -> list[int]:
    """Positions with the slowest converters in front: the last one to start decides when all are done."""
    rank = {target: position for position, target in enumerate(SLOWEST)}
    return sorted(range(len(requests)), key=lambda index: rank.get(requests[index].target, len(rank)))


def why_refused(request: ExportRequest) -> str | None:
    """Why a conversion will not be tried, from the target's and the profile's data alone, or None."""
    target = get_target(request.target)
    if reason := target.why_not(request.precision):
        return reason
    runtime = request.runtime
    if runtime is not None and not runtime.takes(request.precision):
        device = request.profile.name if request.profile is not None else ""
        legal = ", ".join(runtime.precisions)
        return f"{target.title} {runtime.version} on {device} takes {legal}, not {request.precision}: {runtime.why}"
    return why_not_io(request)


@dataclass(frozen=True)
class _Run:
    """What the conversions of one call share. threads: per converter."""

    threads: int
    cancelled: threading.Event | None
    cache: ExportCache | None


def _outcome(request: ExportRequest, *, log: Path, run: _Run) -> ExportOutcome:
    started = time.monotonic()
    state, artifact, reason, cached = "exported", None, "", False
    try:
        artifact, cached = _export(request, log=log, run=run)
    except (RefusedError, MissingExtraError) as error:
        state, reason = "refused", str(error)
    except EdgekdError as error:
        state, reason = "failed", str(error)
    return ExportOutcome.model_validate(
        dict(
            target=request.target,
            precision=request.precision,
            state=state,
            artifact=artifact,
            reason=reason,
            log=log.name if log.exists() and not cached else "",
            wall_s=time.monotonic() - started,
            cached=cached,
        )
    )


def _export(request: ExportRequest, *, log: Path, run: _Run) -> tuple[Artifact, bool]:
    """The artifact, and whether it came from the cache."""
    target = _accept(request)
    key = key_of(request) if run.cache is not None else None
    request.out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{request.out.name}.", suffix=".tmp", dir=request.out.resolve().parent))
    try:
        if run.cache is not None and key is not None and (kept := run.cache.fetch(key, staging)) is not None:
            return _publish(kept, staging, request.out), True
        with tempfile.TemporaryDirectory(prefix="edgekd-export-") as exchange:
            result = Path(exchange) / "result.json"
            end = run_watched(
                [*WORKER_COMMAND, str(_write_request(request, staging, Path(exchange))), str(result)],
                log=log,
                environment=worker_environment(os.environ, run.threads),
                timeout_s=target.timeout_s,
                memory_limit_gib=target.memory_limit_gib,
                cancelled=run.cancelled,
            )
            artifact = _publish(_artifact_from(request, end, result, log), staging, request.out)
        if run.cache is not None and key is not None:
            run.cache.store(key, request.out)
        return artifact, False
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _accept(request: ExportRequest) -> Target:
    """The target, after everything that can be refused without starting a process."""
    target = get_target(request.target)
    where = f"target '{request.target}' ({request.precision})"
    if reason := why_refused(request):
        raise RefusedError(reason, where=where)
    if package := target.missing():
        raise MissingExtraError(target.name, package, target.extra)
    if not request.program.is_file():
        raise InputError("no such program", where=request.program)
    out = request.out
    if out.exists() and not (out.is_dir() and ((out / MANIFEST_NAME).is_file() or not any(out.iterdir()))):
        raise InputError("exists and is not an artifact folder", where=out, fix="choose another folder")
    return target


def _write_request(request: ExportRequest, staging: Path, exchange: Path) -> Path:
    absolute = request.model_copy(update={"program": request.program.resolve(), "out": staging})
    return write_text(exchange / "request.json", absolute.model_dump_json(indent=1) + "\n")


def worker_environment(base: Mapping[str, str], threads: int) -> dict[str, str]:
    """The caller's environment with converters' chatter, telemetry and thread pools turned down. GPUs stay as they are.

    >>> worker_environment({"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "1"}, 4)["OMP_NUM_THREADS"]
    '1'
    """
    defaults = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    fixed = {
        "JAX_PLATFORMS": "cpu",  # litert-torch traces through jax, which would otherwise take most of a GPU's memory
        "HF_HUB_OFFLINE": "1",  # litert-torch imports transformers; a conversion never needs a hub
        "NNCF_EXTENSION_LOAD_TIMEOUT": "0",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return {**defaults, **base, **fixed}


def _artifact_from(request: ExportRequest, end: Exit, result: Path, log: Path) -> Artifact:
    """What the worker left behind, as an artifact or as the error it stands for."""
    document: Mapping[str, Any] = read_json(result) if end.ending == "exit" and result.is_file() else {}
    if end.ending == "exit" and end.code == 0 and "artifact" in document:
        return Artifact.model_validate(document["artifact"])
    where = f"target '{request.target}' ({request.precision})"
    if document.get("kind") in ("RefusedError", "MissingExtraError"):
        raise RefusedError(document["what"], where=where, fix=document["fix"])
    what = document.get("what") or _what_happened(end, log)
    fix = "; ".join(text for text in (document.get("fix", ""), f"see {log.name}") if text)
    raise ConversionError(what, where=where, fix=fix)


def _what_happened(end: Exit, log: Path) -> str:
    missing = " without a result" if end.ending == "exit" and end.code == 0 else ""
    lines = last_lines(log)
    said = f"; its last lines: {' | '.join(lines)}" if lines else "; it printed nothing"
    return f"the converter {end.describe()}{missing}{said}"


def _publish(artifact: Artifact, staging: Path, out: Path) -> Artifact:
    """Put the finished folder in the place of the old one and point the artifact at it."""
    if not artifact.path.is_relative_to(staging):
        raise ConversionError(
            f"the exporter wrote outside its folder: {artifact.path}", where=f"target '{artifact.target}'"
        )
    path = out / artifact.path.relative_to(staging)
    write_json(
        staging / MANIFEST_NAME, artifact.model_copy(update={"path": path.relative_to(out)}).model_dump(mode="json")
    )
    staging.chmod(0o755)
    retired = staging.with_name(staging.name + ".old")
    if out.exists():
        out.rename(retired)
    staging.rename(out)
    shutil.rmtree(retired, ignore_errors=True)
    return artifact.model_copy(update={"path": path})


def _log_names(requests: Sequence[ExportRequest], log_dir: Path) -> list[Path]:
    """One log per request; a label that repeats gets a number."""
    seen: Counter[str] = Counter()
    names = []
    for request in requests:
        seen[request.label] += 1
        again = f"-{seen[request.label]}" if seen[request.label] > 1 else ""
        names.append(log_dir / f"export-{request.label}{again}.log")
    return names


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
