"""The parent's side of a worker: start, ask, always reap. A failure names the contender and quotes its stderr."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from edgekd.device_benchmarks.contender import Contender
from edgekd.errors import CheckError, EdgekdError, InputError

WORKER = (sys.executable, "-P", "-m", "edgekd.device_benchmarks.worker")
ANSWER_TIMEOUT_S = 180.0
_TAIL_LINES = 4
Explain = Callable[[int | None, str], EdgekdError | None]


class Worker:
    """One contender in its own process, as a `Runner`; whoever starts it must `close` it (or use a `with`).

    command: what to start (a device's runner, a test's faulty worker). first: what to ask it first, instead of the
    contender itself. timeout_s: how long an answer may take beyond its own work. device: where it runs, for errors.
    explain: (exit status, stderr) of a process that died or fell silent -> what that means, or None.
    here: whether it runs on this host.
    """

    def __init__(
        self,
        contender: Contender,
        *,
        threads: int,
        command: Sequence[str] = WORKER,
        timeout_s: float = ANSWER_TIMEOUT_S,
        first: Mapping[str, Any] | None = None,
        device: str = "",
        explain: Explain | None = None,
    ) -> None:
        self.name, self._timeout_s, self.here = contender.name, timeout_s, not device
        self._where = f"{device + ', ' if device else ''}contender '{contender.name}'"
        self._explain = explain or (lambda code, said: None)
        # A file, since a pipe that nobody reads would block a chatty library.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        self._buffer = b""
        # Its own session: Ctrl-C reaches the parent alone, and the whole group can be killed, grandchildren too.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads),
            start_new_session=True,
        )
        self._send({"do": "prepare", **(first or {"contender": contender.model_dump(mode="json")}), "threads": threads})

    @property
    def pid(self) -> int:
        """Of the process, which leads its own group."""
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepared(self) -> dict[str, Any]:
        """Wait for the runtime's import, which started with the process (so that several import at once)."""
        return self._answer("importing its runtime", self._timeout_s)

    def load(self) -> dict[str, Any]:
        """Load and first inference, in ms."""
        return self._ask("loading", 0, do="load")

    def warm_up(self, *, min_runs: int, min_s: float, cap_s: float) -> dict[str, Any]:
        """Samples (ns) kept apart, whether they settled, and the median of the last ten."""
        return self._ask("warming up", cap_s, do="warm_up", min_runs=min_runs, min_s=min_s, cap_s=cap_s)

    def block(self, *, runs: int, lead_in: int, expected_s: float) -> dict[str, Any]:
        """`runs` samples of wall and CPU time in ns, and the clock after them in MHz where the kernel tells it.

        expected_s: what they should take, for the timeout.
        """
        answer = self._ask("a block of runs", 20 * expected_s, do="block", runs=runs, lead_in=lead_in)
        if not _is_samples(answer.get("wall_ns"), runs) or not _is_samples(answer.get("cpu_ns"), runs):
            raise self._failure(f"answered a block of {runs} runs with {str(answer)[:80]}")
        return answer

    def finish(self) -> dict[str, Any]:
        """Memory and the cost of converting input and output, once all timing is done."""
        return self._ask("reading its memory", 0, do="finish")

    def close(self) -> None:
        """End the process group: by end of input, then by force. Safe to call twice."""
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        # The group outlives its leader when a library forked; after the leader is reaped it may be gone.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stderr.close()

    def ask(self, do: str, *, doing: str, **arguments: Any) -> dict[str, Any]:
        """Any other command that the process knows."""
        return self._ask(doing, 0, do=do, **arguments)

    def _ask(self, doing: str, extra_s: float, **command: Any) -> dict[str, Any]:
        self._send(command)
        return self._answer(doing, self._timeout_s + extra_s)

    def _send(self, command: dict[str, Any]) -> None:
        stream = self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its death shows, with its last words, when the answer is awaited
            if stream is not None:
                stream.write(json.dumps(command).encode() + b"\n")
                stream.flush()

    def _answer(self, doing: str, timeout_s: float) -> dict[str, Any]:
        line = self._read_line(doing, timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._failure(f"answered with something that is no JSON object while {doing}: {line[:80]!r}")
        if "error" in answer and answer.get("input"):
            raise InputError(str(answer["error"]), where=self._where)
        if "error" in answer:
            raise self._failure(f"failed while {doing}: {answer['error']}")
        return answer

    def _read_line(self, doing: str, timeout_s: float) -> bytes:
        stream, deadline = self._process.stdout, time.monotonic() + timeout_s
        if stream is None:
            raise self._failure("has no output")
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            # A runner on a device sends an empty line now and then, so that a dead link is noticed there.
            while b"\n" not in (said := self._buffer.lstrip(b"\r\n")):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    silent = self._failure(f"gave no answer within {timeout_s:.0f} s while {doing}")
                    raise self._explain(None, self._stderr_end()) or silent
                chunk = os.read(stream.fileno(), 1 << 16)
                if not chunk:
                    dead = self._failure(f"died while {doing} ({self._exit_text()})")
                    raise self._explain(self._process.poll(), self._stderr_end()) or dead
                self._buffer += chunk
        line, _, self._buffer = said.partition(b"\n")
        return line

    def _exit_text(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def _failure(self, what: str) -> EdgekdError:
        said = self._last_words()
        return CheckError(f"its process {what}{f'; it said: {said}' if said else ''}", where=self._where)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._stderr_end().splitlines()]
        return " | ".join([line for line in lines if line][-_TAIL_LINES:])

    def _stderr_end(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            size = os.fstat(self._stderr.fileno()).st_size
            return os.pread(self._stderr.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
        return ""


def _is_samples(values: Any, runs: int) -> bool:
    return isinstance(values, list) and len(values) == runs and all(isinstance(v, int) and v >= 0 for v in values)


def _environment(threads: int) -> dict[str, str]:
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    return {**os.environ, **dict.fromkeys(counts, str(threads)), "PYTHONUNBUFFERED": "1"}
