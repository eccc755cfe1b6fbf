"""Open an artifact in the runtime that executes it on this host: outputs and evidence. Vendors load on use."""

from __future__ import annotations

from edgekd.runtimes.model_file import open_model_file
from edgekd.runtimes.opening import op_report, open_session
from edgekd.runtimes.session import Executed, FloatArray, OpReport, Session, logits

__all__ = ["Executed", "FloatArray", "OpReport", "Session", "logits", "op_report", "open_model_file", "open_session"]
