"""Ctrl-C and SIGTERM as a wish that the loop grants between two steps, where its state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from edgekd.errors import EdgekdError


class Interrupted(EdgekdError):
    """The user stopped a stage; its newest checkpoint is on disk."""

    exit_code = 130


class Interrupts:
    """Context manager: `wanted` turns true at the first SIGINT or SIGTERM; a second SIGINT raises KeyboardInterrupt.

    Elsewhere than in the main thread of one process nothing is caught: the processes of a distributed run would stop at
    different steps, so there the periodic checkpoint is what a resumed run goes on from.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.wanted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if self.enabled:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
