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
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact
from edgekd.errors import ConversionError, EdgekdError, InputError, MissingExtraError
from edgekd.export.describe import MANIFEST_NAME
from edgekd.export.process import Exit, last_lines, run_watched
from edgekd.export.request import ExportOutcome, ExportRequest, RefusedError
from edgekd.files import read_json, write_json, write_text
from edgekd.targets import Target, get_target

# -P: the working directory must not be importable, or a user's `onnx.py` beside the model would shadow the package.
WORKER_COMMAND = (sys.executable, "-P", "-m", "edgekd.export.worker")
Lowering = Callable[[ExportRequest], Artifact]


def export_one(request: ExportRequest, *, log: Path) -> Artifact:
    """Convert one program in a subprocess; the converter's output goes to `log`, never to the terminal.

    Raises:
        RefusedError: the target or the profile does not take the precision; nothing was started.
        MissingExtraError: a package is not installed.
        InputError: no such target or program, or `request.out` holds something else.
        ConversionError: the converter failed, crashed, hung or ran out of memory; its last lines and the log are named.
    """
    return _export(request, log=log, command=WORKER_COMMAND, threads=_cores(), cancelled=None)


def export_all(
    requests: Sequence[ExportRequest],
    log_dir: Path,
    jobs: int = 1,
    *,
    on_done: Callable[[ExportOutcome], None] | None = None,
) -> list[ExportOutcome]:
    """Convert every request, `jobs` at a time, and report each in the order asked; a failure does not stop the others.

    on_done: called as each ends of itself, from its thread. Ctrl-C ends every running converter, then propagates.
    """
    cancelled = threading.Event()
    threads = max(1, _cores() // max(1, jobs))

    def one(pair: tuple[ExportRequest, Path]) -> ExportOutcome:
        outcome = _outcome(pair[0], log=pair[1], threads=threads, cancelled=cancelled)
        if on_done is not None and not cancelled.is_set():
            on_done(outcome)
        return outcome

    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        try:
            return list(pool.map(one, zip(requests, _log_names(requests, log_dir), strict=True)))
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def why_refused(request: ExportRequest) -> str | None:
    """Why a conversion will not be tried, from the target's and the profile's data alone, or None."""
    target = get_target(request.target)
    if reason := target.why_not(request.precision):
        return reason
    runtime = request.runtime
    if runtime is not None and request.precision not in runtime.precisions:
        device = request.profile.name if request.profile is not None else ""
        legal = ", ".join(runtime.precisions)
        return f"{target.title} {runtime.version} on {device} takes {legal}, not {request.precision}: {runtime.why}"
    return None


def _outcome(request: ExportRequest, *, log: Path, threads: int, cancelled: threading.Event) -> ExportOutcome:
    started = time.monotonic()
    state, artifact, reason = "exported", None, ""
    try:
        artifact = _export(request, log=log, command=WORKER_COMMAND, threads=threads, cancelled=cancelled)
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
            log=log.name if log.exists() else "",
            wall_s=time.monotonic() - started,
        )
    )


def _export(
    request: ExportRequest,
    *,
    log: Path,
    command: Sequence[str],
    threads: int,
    cancelled: threading.Event | None,
) -> Artifact:
    target = _accept(request)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{request.out.name}.", suffix=".tmp", dir=request.out.resolve().parent))
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-export-") as exchange:
            result = Path(exchange) / "result.json"
            end = run_watched(
                [*command, str(_write_request(request, staging, Path(exchange))), str(result)],
                log=log,
                environment=worker_environment(os.environ, threads),
                timeout_s=target.timeout_s,
                memory_limit_gib=target.memory_limit_gib,
                cancelled=cancelled,
            )
            artifact = _artifact_from(request, end, result, log)
        return _publish(artifact, staging, request.out)
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
