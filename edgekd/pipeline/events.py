"""What a run tells whoever watches: a protocol of four verbs, and a silent listener. The library never prints."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    """A listener. Texts are plain sentences without markup."""

    def stage(self, number: int, total: int, title: str) -> None:
        """A stage begins."""

    def skipped(self, number: int, total: int, title: str) -> None:
        """A stage was already done and intact."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        """Work inside a stage: `done` of `total` units; `detail` carries throughput and time left."""


class Silent:
    """Listens and says nothing."""

    def stage(self, number: int, total: int, title: str) -> None:
        """Nothing."""

    def skipped(self, number: int, total: int, title: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        """Nothing."""
