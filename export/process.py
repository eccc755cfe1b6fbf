"""Run one child process that may hang, crash or eat all memory, and come back with a plain answer.

The child leads its own process group, so that a converter's own children die with it. Memory is capped by watching the
resident size of the child and its descendants: RLIMIT_AS and RLIMIT_DATA count address space, of which torch, jax and
CUDA libraries reserve tens of GiB without touching it, and reaching them shows as an unrelated bad_alloc or SIGSEGV.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil

from edgekd.artifact import Frozen

POLL_S = 0.1
LAST_LINES = 3
LINE_CHARACTERS = 160

Ending = Literal["exit", "signal", "timeout", "memory", "cancelled"]


class Exit(Frozen):
    """How a child ended. code: exit status, or the signal's number when `ending` is "signal"."""

    ending: Ending
    code: int
    wall_s: float
    peak_rss_gib: float

    def describe(self) -> str:
        """One phrase for an error message.

        >>> Exit(ending="signal", code=11, wall_s=1.0, peak_rss_gib=0.5).describe()
        'crashed with SIGSEGV after 1.0 s'
        """
        if self.ending == "timeout":
            return f"did not finish and was stopped after {self.wall_s:.0f} s"
        if self.ending == "memory":
            return f"was stopped at {self.peak_rss_gib:.1f} GiB of memory"
        if self.ending == "cancelled":
            return "was cancelled"
        if self.ending == "signal":
            return f"crashed with {_signal_name(self.code)} after {self.wall_s:.1f} s"
        return f"exited with status {self.code}"


def run_watched(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    memory_limit_gib: float,
    cancelled: threading.Event | None = None,
    progress: Callable[[], object] | None = None,
) -> Exit:
    """Run `command` with both output streams in `log`; kill its whole group on timeout, memory, cancel or Ctrl-C.

    progress: asked several times a second; when its answer changes, the clock of `timeout_s` starts anew.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        clock = _Clock(timeout_s, progress)
        ending, peak_gib = _watch(child, clock, memory_limit_gib, cancelled or threading.Event())
    finally:
        _kill_group(child)
    code = child.returncode
    if ending == "exit" and code < 0:
        ending, code = "signal", -code
    return Exit(ending=ending, code=code, wall_s=time.monotonic() - started, peak_rss_gib=peak_gib)


class _Clock:
    """Runs out `timeout_s` after the last sign of progress."""

    def __init__(self, timeout_s: float, progress: Callable[[], object] | None) -> None:
        self.timeout_s, self.progress = timeout_s, progress
        self.seen: object = None
        self.deadline = time.monotonic() + timeout_s

    def has_run_out(self) -> bool:
        seen = self.progress() if self.progress is not None else None
        if seen != self.seen:
            self.seen, self.deadline = seen, time.monotonic() + self.timeout_s
        return time.monotonic() > self.deadline


def _watch(
    child: subprocess.Popen[bytes], clock: _Clock, memory_limit_gib: float, cancelled: threading.Event
) -> tuple[Ending, float]:
    peak_gib = 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=POLL_S)
            return "exit", peak_gib
        peak_gib = max(peak_gib, resident_gib(child.pid))
        if peak_gib > memory_limit_gib:
            return "memory", peak_gib
        if clock.has_run_out():
            return "timeout", peak_gib
        if cancelled.is_set():
            return "cancelled", peak_gib


def resident_gib(pid: int) -> float:
    """Resident GiB of a process and its descendants; shared pages count once per process. 0 when it is gone."""
    total_bytes = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total_bytes += process.memory_info().rss
    return total_bytes / 2**30


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End every process of the group the child leads; its id stays the group's while any member lives."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_lines(log: Path) -> tuple[str, ...]:
    """The last non-empty lines of a tool's output: at most 3, colour codes dropped, each shortened to 160 characters.

    Python's fault handler ends a crash with stacks and a list of modules; the last line is then its first.
    """
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - (1 << 16)))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(_shorten(text.splitlines()))


def _until_fault(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line.startswith("Fatal Python error:"):
            return


def _shorten(lines: Iterable[str]) -> list[str]:
    clean = (" ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).split()) for line in lines)
    kept = list(_until_fault(line for line in clean if line))[-LAST_LINES:]
    return [line if len(line) <= LINE_CHARACTERS else line[: LINE_CHARACTERS - 1] + "…" for line in kept]
