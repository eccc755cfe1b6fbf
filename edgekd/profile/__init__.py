"""Hardware profiles: what a device can do, in numbers with units and sources. One TOML file per device in `profiles/`.

Strings become types here, once: unknown keys are refused with the nearest known key named, and the file is named too.
"""

from edgekd.profile.facts import Fact, facts_of
from edgekd.profile.load import (
    check_profile,
    family_names,
    load_profile,
    parse_profile,
    profile_file,
    profile_names,
    read_document,
)
from edgekd.profile.model import (
    Budgets,
    ComputeUnit,
    Confidence,
    Evidence,
    Fallback,
    HardwareProfile,
    Power,
    PowerMode,
    Quantisation,
    RuntimeSupport,
    Transport,
    UnitInMode,
)

__all__ = [
    "Budgets",
    "ComputeUnit",
    "Confidence",
    "Evidence",
    "Fact",
    "Fallback",
    "HardwareProfile",
    "Power",
    "PowerMode",
    "Quantisation",
    "RuntimeSupport",
    "Transport",
    "UnitInMode",
    "check_profile",
    "facts_of",
    "family_names",
    "load_profile",
    "parse_profile",
    "profile_file",
    "profile_names",
    "read_document",
]
