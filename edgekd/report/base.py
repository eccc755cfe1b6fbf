"""What every part of a report is: immutable, closed and finite plain data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """Immutable, closed (unknown keys refused) and finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
