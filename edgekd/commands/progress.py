"""A run as it is seen in a terminal: stage headings, notes and progress bars on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekd.commands import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class TerminalEvents:
    """`edgekd.pipeline.events.Events` for people. Bars appear only on a terminal; a log gets one line per tenth."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = console.talk()
        self.quiet = quiet
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.label = ""
        self.logged_tenth = -1

    def __enter__(self) -> TerminalEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def stage(self, number: int, total: int, title: str) -> None:
        """A heading."""
        self._end_bar()
        self._print(f"[bold]\\[{number}/{total}][/] {_plain(title)}")

    def skipped(self, number: int, total: int, title: str) -> None:
        """A heading in grey."""
        self._end_bar()
        self._print(f"[dim]\\[{number}/{total}] {_plain(title)}: done before, intact[/]")

    def note(self, text: str) -> None:
        """An indented line."""
        self._print(f"      {_plain(text)}")

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        """A bar on a terminal, a line per tenth elsewhere."""
        if self.quiet:
            return
        if not self.console.is_terminal:
            self._log_tenth(label, done, total, detail)
            return
        if self.bar is None or self.label != label:
            self._end_bar()
            self._start_bar(label, total)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, detail=detail)

    def _log_tenth(self, label: str, done: int, total: int, detail: str) -> None:
        tenth = 10 * done // max(1, total)
        if label != self.label:
            self.label, self.logged_tenth = label, -1
        if tenth > self.logged_tenth:
            self.logged_tenth = tenth
            self._print(f"      {_plain(label)} {100 * done // max(1, total):3d}%  {_plain(detail)}")

    def _start_bar(self, label: str, total: int) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns: list[Any] = [
            TextColumn("      {task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
        ]
        self.bar = Progress(*columns, console=self.console, transient=False)
        self.bar.start()
        self.label, self.task = label, self.bar.add_task(label, total=total, detail="")

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.task, self.label = None, None, ""

    def _print(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, soft_wrap=True)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
