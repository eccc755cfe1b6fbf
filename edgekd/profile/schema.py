"""The JSON Schema of a profile file, for editors that complete and check TOML (Taplo, Even Better TOML)."""

from __future__ import annotations

import copy
from typing import Any

from edgekd.profile.model import HardwareProfile

_IDENTITIES = {"ComputeUnit": ["kind"], "RuntimeSupport": ["target"], "PowerMode": ["name"], "UnitInMode": ["kind"]}
# The roofline's constants have defaults that the file need not state.
_DEFAULTED = {"kernel_overhead_us", "efficiency", "depthwise_efficiency"}


def profile_schema() -> dict[str, Any]:
    """JSON Schema (2020-12). Whole tables are required only of a file that stands alone: a child inherits the rest."""
    schema = HardwareProfile.model_json_schema()
    required = [*schema.pop("required"), "evidence"]
    whole = {"required": required, "properties": _whole_tables(schema["$defs"])}
    for name, table in schema["$defs"].items():
        if name in _IDENTITIES:
            table["required"] = _IDENTITIES[name]
        elif name != "Evidence":
            table.pop("required", None)
    schema["properties"] = {
        "extends": {"type": "string", "description": "A shipped profile or family, or a .toml file beside this one."},
        "abstract": {"type": "boolean", "description": "true: a family that other profiles extend; no device."},
        **schema["properties"],
    }
    inherits = [{"required": ["extends"]}, {"required": ["abstract"], "properties": {"abstract": {"const": True}}}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "if": {"not": {"anyOf": inherits}},
        "then": whole,
    }


def _whole_tables(tables: dict[str, Any]) -> dict[str, Any]:
    def required(name: str) -> dict[str, Any]:
        keys = copy.copy(tables[name].get("required", []))
        return {"required": [key for key in keys if key not in _DEFAULTED]}

    return {
        "units": {"items": required("ComputeUnit")},
        "runtimes": {"items": required("RuntimeSupport")},
        "quantisation": required("Quantisation"),
        "budgets": required("Budgets"),
        "evidence": {"required": ["ram_mib", "p90_over_p50"]},  # as `edgekd profiles check` wants it
    }
