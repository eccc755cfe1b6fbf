"""One run as a document: typed data, the headline figures, and a self-contained HTML page with SVG charts."""

from __future__ import annotations

from edgekd.report.document import Gate, RunReport, load, parse, save
from edgekd.report.page import render, write_report

__all__ = ["Gate", "RunReport", "load", "parse", "render", "save", "write_report"]
