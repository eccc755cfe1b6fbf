"""What a run hands back to its caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunResult:
    """A run as it stands.

    document: report.json, or the plan and selection of a dry run. failed: a gate or check failed.
    """

    folder: Path
    document: dict[str, Any]
    failed: bool
