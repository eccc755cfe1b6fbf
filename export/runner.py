"""Run conversions in subprocesses: one artifact or one clear error each; a converter that dies takes nothing along.

Those of one target share a process, for importing a converter takes 5 to 10 s of CPU; what fails in the wake of
another is tried again in a process of its own.
"""

from __future__ import annotations

import math
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
    ended: list[_Ended] = []
    _convert([(request, log)], run, lambda _, end: ended.append(end))
    if isinstance(ended[0].found, EdgekdError):
        raise ended[0].found
    return ended[0].found


def export_all(
    requests: Sequence[ExportRequest],
    log_dir: Path,
    jobs: int | None = None,
    *,
    on_done: Callable[[ExportOutcome], None] | None = None,
    cache: Path | None = None,
) -> list[ExportOutcome]:
    """Convert every request, `jobs` at a time, and report each in the order asked; a failure does not stop the others.

    Requests for one target share a process, whose converter is imported once, as far as that keeps `jobs` busy.
    jobs: None takes as many as cores and free memory allow. on_done: called as each ends of itself, from its thread.
    cache: folder of earlier exports (`default_cache()`), None for none. Ctrl-C ends every running converter, then
    propagates.
    """
    cancelled = threading.Event()
    at_once = max(1, jobs if jobs is not None else parallel_jobs(len(requests)))
    run = _Run(max(1, _cores() // at_once), cancelled, ExportCache(cache) if cache else None)
    pairs = list(zip(requests, _log_names(requests, log_dir), strict=True))
    outcomes: dict[int, ExportOutcome] = {}

    def one(group: list[int]) -> None:
        def done(place: int, end: _Ended) -> None:
            outcomes[group[place]] = outcome = _outcome(*pairs[group[place]], end)
            if on_done is not None and not cancelled.is_set():
                on_done(outcome)

        _convert([pairs[index] for index in group], run, done)

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        try:
            for future in [pool.submit(one, group) for group in _groups(requests, at_once)]:
                future.result()
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [outcomes[index] for index in range(len(requests))]


def parallel_jobs(n_requests: int) -> int:
    """Conversions to run at once: one per core, as long as each has the memory a converter takes."""
    by_memory = int(psutil.virtual_memory().available / 2**30 / CONVERSION_GIB)
    return max(1, min(n_requests, _cores(), by_memory))


def _groups(requests: Sequence[ExportRequest], at_once: int) -> list[list[int]]:
    """Positions that share a process: of one target, in enough groups to keep `at_once` busy.

    The slowest converters come first: the last group to start decides when all are done.
    """
    rank = {target: position for position, target in enumerate(SLOWEST)}
    by_target: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        by_target.setdefault(request.target, []).append(index)
    parts = math.ceil(at_once / max(len(by_target), 1))
    slowest_first = sorted(by_target, key=lambda target: rank.get(target, len(rank)))
    split = [by_target[target][part::parts] for target in slowest_first for part in range(parts)]
    return [group for group in split if group]


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


@dataclass(frozen=True)
class _Ended:
    """What became of one request. cached: the artifact came from the cache."""

    found: Artifact | EdgekdError
    wall_s: float
    cached: bool = False


@dataclass(frozen=True)
class _Conversion:
    """A request on its way. place: among those of its call. staging: where its worker writes. key: in the cache."""

    place: int
    request: ExportRequest
    log: Path
    target: Target
    staging: Path
    key: str | None


def _outcome(request: ExportRequest, log: Path, end: _Ended) -> ExportOutcome:
    found = end.found
    refused = isinstance(found, RefusedError | MissingExtraError)
    return ExportOutcome(
        target=request.target,
        precision=request.precision,
        state="exported" if isinstance(found, Artifact) else "refused" if refused else "failed",
        artifact=found if isinstance(found, Artifact) else None,
        reason="" if isinstance(found, Artifact) else str(found),
        log=log.name if log.exists() and not end.cached else "",
        wall_s=end.wall_s,
        cached=end.cached,
    )


def _convert(pairs: Sequence[tuple[ExportRequest, Path]], run: _Run, done: Callable[[int, _Ended], None]) -> None:
    """Requests for one target with their logs: from the cache, or one after another in as few processes as it takes."""
    waiting: list[_Conversion] = []
    try:
        for place, (request, log) in enumerate(pairs):
            started = time.monotonic()
            try:
                waiting.append(_prepared(place, request, log, run))
            except EdgekdError as error:
                done(place, _Ended(error, time.monotonic() - started))
                continue
            if (kept := _from_cache(waiting[-1], run)) is not None:
                done(place, _Ended(kept, time.monotonic() - started, cached=True))
                shutil.rmtree(waiting.pop().staging, ignore_errors=True)
        remaining = waiting
        while remaining:
            remaining = _in_one_process(remaining, run, done)
    finally:
        for conversion in waiting:
            shutil.rmtree(conversion.staging, ignore_errors=True)


def _prepared(place: int, request: ExportRequest, log: Path, run: _Run) -> _Conversion:
    target = _accept(request)
    key = key_of(request) if run.cache is not None else None
    parent = request.out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{request.out.name}.", suffix=".tmp", dir=parent))
    return _Conversion(place, request, log, target, staging, key)


def _from_cache(conversion: _Conversion, run: _Run) -> Artifact | None:
    if run.cache is None or conversion.key is None:
        return None
    kept = run.cache.fetch(conversion.key, conversion.staging)
    return None if kept is None else _publish(kept, conversion.staging, conversion.request.out)


def _in_one_process(
    waiting: Sequence[_Conversion], run: _Run, done: Callable[[int, _Ended], None]
) -> list[_Conversion]:
    """Run them; what is to be tried again, in a process of its own.

    A failure is only believed of the first of a process: the others may have died of what came before them.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-export-") as folder:
        results = [Path(folder) / f"{conversion.place}.result.json" for conversion in waiting]
        end = _worker(waiting, results, run)
        again = []
        for conversion, result in zip(waiting, results, strict=True):
            document: Mapping[str, Any] = read_json(result) if result.is_file() else {}
            try:
                artifact = _artifact_from(conversion, end, document)
                found: Artifact | EdgekdError = _publish(artifact, conversion.staging, conversion.request.out)
            except EdgekdError as error:
                if conversion is not waiting[0] and not isinstance(error, RefusedError) and end.ending != "cancelled":
                    again.append(_emptied(conversion))
                    continue
                found = error
            if isinstance(found, Artifact) and run.cache is not None and conversion.key is not None:
                run.cache.store(conversion.key, conversion.request.out)
            done(conversion.place, _Ended(found, document.get("wall_s", end.wall_s)))
    return again


def _emptied(conversion: _Conversion) -> _Conversion:
    """Ready to be tried again: nothing is left of the first try."""
    shutil.rmtree(conversion.staging, ignore_errors=True)
    conversion.staging.mkdir()
    return conversion


def _worker(waiting: Sequence[_Conversion], results: Sequence[Path], run: _Run) -> Exit:
    """The process that converts them; the target's timeout holds for each of them."""
    arguments: list[str] = []
    for conversion, result in zip(waiting, results, strict=True):
        conversion.log.parent.mkdir(parents=True, exist_ok=True)
        conversion.log.write_bytes(b"")
        request = _write_request(conversion, result.with_name(f"{conversion.place}.request.json"))
        arguments += [str(request), str(result), str(conversion.log.resolve())]
    target = waiting[0].target
    return run_watched(
        [*WORKER_COMMAND, *arguments],
        log=waiting[0].log,
        environment=worker_environment(os.environ, run.threads),
        timeout_s=target.timeout_s,
        memory_limit_gib=target.memory_limit_gib,
        cancelled=run.cancelled,
        progress=lambda: sum(result.is_file() for result in results),
    )


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


def _write_request(conversion: _Conversion, path: Path) -> Path:
    request = conversion.request
    absolute = request.model_copy(update={"program": request.program.resolve(), "out": conversion.staging})
    return write_text(path, absolute.model_dump_json(indent=1) + "\n")


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


def _artifact_from(conversion: _Conversion, end: Exit, document: Mapping[str, Any]) -> Artifact:
    """What the worker left behind, as an artifact or as the error it stands for. document: {} where it left none."""
    if "artifact" in document:
        return Artifact.model_validate(document["artifact"])
    where = f"target '{conversion.request.target}' ({conversion.request.precision})"
    if document.get("kind") in ("RefusedError", "MissingExtraError"):
        raise RefusedError(document["what"], where=where, fix=document["fix"])
    log = conversion.log
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
