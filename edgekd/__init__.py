"""edgekd: distil, quantise, export and measure a PyTorch model for the device it must ship on.

`import edgekd` loads neither torch nor a vendor package; names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "distill": "edgekd.pipeline.api",
    "plan": "edgekd.pipeline.api",
    "export": "edgekd.pipeline.api",
    "Settings": "edgekd.pipeline.settings",
    "estimate_latency": "edgekd.latency",
    "trace_cost": "edgekd.latency",
    "verify": "edgekd.bundle",
    "load_profile": "edgekd.profile",
    "profile_names": "edgekd.profile",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'edgekd' has no attribute '{name}'")


if TYPE_CHECKING:
    from edgekd.bundle import verify as verify
    from edgekd.latency import estimate_latency as estimate_latency
    from edgekd.latency import trace_cost as trace_cost
    from edgekd.pipeline.api import distill as distill
    from edgekd.pipeline.api import export as export
    from edgekd.pipeline.api import plan as plan
    from edgekd.pipeline.settings import Settings as Settings
    from edgekd.profile import load_profile as load_profile
    from edgekd.profile import profile_names as profile_names
