"""`edgekd export MODEL`: any model to every runtime, with the proof of what came out."""

from __future__ import annotations

from edgekd.pipeline.model_export.request import ModelExportSettings
from edgekd.pipeline.model_export.result import ExportDocument, ExportRow
from edgekd.pipeline.model_export.run import ModelExportResult, export_model

__all__ = ["ExportDocument", "ExportRow", "ModelExportResult", "ModelExportSettings", "export_model"]
