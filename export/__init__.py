"""One file per target: lower a torch.export program to an Artifact, each conversion in its own subprocess."""

from __future__ import annotations

from edgekd.export.cache import default_cache
from edgekd.export.request import ExportOutcome, ExportRequest, RefusedError
from edgekd.export.runner import export_all, export_one, why_refused

__all__ = ["ExportOutcome", "ExportRequest", "RefusedError", "default_cache", "export_all", "export_one", "why_refused"]
