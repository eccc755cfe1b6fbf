"""What the tables of one profile must not say against each other, one line per contradiction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekd.errors import did_you_mean

if TYPE_CHECKING:
    from edgekd.profile.model import HardwareProfile


def disagreements(profile: HardwareProfile) -> Iterator[str]:
    """Each contradiction in a profile whose tables are valid one by one."""
    units = {unit.kind: unit for unit in profile.units}
    if len(units) < len(profile.units):
        yield "two units of the same kind: give each kind (cpu, gpu, npu) once"
    pairs = [(runtime.target, runtime.unit) for runtime in profile.runtimes]
    for target, unit in dict.fromkeys(pair for pair in pairs if pairs.count(pair) > 1):
        yield f"runtime '{target}' is listed twice for unit '{unit}'"
    for runtime in profile.runtimes:
        if runtime.unit not in units:
            yield f"runtime '{runtime.target}' drives unit '{runtime.unit}', which the profile does not have"
        elif "int8" in runtime.precisions and not units[runtime.unit].runs("int8"):
            yield f"runtime '{runtime.target}' lists int8, but unit '{runtime.unit}' has no peak_int8_gops"
    yield from _quantisation_disagreements(profile)
    yield from _mode_disagreements(profile, set(units))
    if profile.budgets.peak_memory_mib > profile.ram_mib:
        yield f"budgets.peak_memory_mib = {profile.budgets.peak_memory_mib:g} is more than ram_mib = {profile.ram_mib}"


def _quantisation_disagreements(profile: HardwareProfile) -> Iterator[str]:
    quantisation, primary = profile.quantisation, profile.runtimes[0]
    preferred = quantisation.preferred_precision
    if preferred not in primary.precisions:
        legal = ", ".join(primary.precisions)
        yield f"preferred_precision '{preferred}' is not legal in the first runtime, '{primary.target}' ({legal})"
    if preferred == "int8" and primary.schemes and quantisation.scheme not in primary.schemes:
        legal = ", ".join(primary.schemes)
        yield f"scheme '{quantisation.scheme}' is not legal in the first runtime, '{primary.target}' ({legal})"


def _mode_disagreements(profile: HardwareProfile, kinds: set[str]) -> Iterator[str]:
    names = [mode.name for mode in profile.power_modes]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"power mode '{name}' is listed twice"
    if names and profile.power_mode not in names:
        fix = did_you_mean(profile.power_mode or "", names)
        yield f"power_mode = '{profile.power_mode}' is none of power_modes; {fix}"
    if profile.power_mode and not names:
        yield f"power_mode = '{profile.power_mode}', but there are no power_modes"
    for mode in profile.power_modes:
        if mode.name == profile.power_mode and mode.units and "@" not in profile.name:
            yield f"power mode '{mode.name}' is what [[units]] say: put its numbers there"
        for unit in mode.units:
            if unit.kind not in kinds:
                yield f"power mode '{mode.name}' changes unit '{unit.kind}', which the profile does not have"
