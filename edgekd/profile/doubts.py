"""What a profile should not say, though edgekd can work with it: `edgekd profiles check` reports it, loading does not.

Read from the document, so that they are found beside mistakes that keep the document from becoming a profile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from edgekd.profile.documents import Document, is_number, tables
from edgekd.profile.evidence import Finding, runtime_path

# ONNX, docs/Versioning.md: from this opset on, a file has at least this IR version.
_IR_VERSION_FROM_OPSET = ((28, 14), (25, 13), (24, 12), (23, 11), (21, 10), (19, 9), (15, 8), (12, 7), (11, 6), (10, 5))
_PEAKS = {"fp32": "peak_fp32_gflops", "fp16": "peak_fp16_gflops", "int8": "peak_int8_gops"}
_SPEEDS = (*_PEAKS.values(), "dram_gb_per_s", "cores")


def doubts(document: Document) -> Iterator[Finding]:
    """Each of a document merged with what it extends."""
    for runtime in tables(document, "runtimes"):
        yield from _of_opsets(runtime)
    yield from _of_precisions(document)
    yield from _of_power(document)
    for mode in tables(document, "power_modes"):
        yield from _of_a_mode(document, mode)


def ir_version_of(opset: int) -> int:
    """The lowest IR version of an ONNX file at an opset from 7 on.

    >>> ir_version_of(13), ir_version_of(17)
    (7, 8)
    """
    return next((ir for first, ir in _IR_VERSION_FROM_OPSET if opset >= first), 4 if opset == 9 else 3)


def _number(table: object, key: str) -> float | None:
    value = table.get(key) if isinstance(table, dict) else None
    return float(value) if is_number(value) and math.isfinite(value) else None


def _of_opsets(runtime: Document) -> Iterator[Finding]:
    low, high, ir = (_number(runtime, f"onnx_{key}") for key in ("opset_min", "opset_max", "ir_version_max"))
    path = runtime_path(runtime)
    if low is not None and high is not None and low > high:
        what = f"{path}.onnx_opset_min = {low:g} is above onnx_opset_max = {high:g}, so no file fits"
        yield Finding(f"{path}.onnx_opset_min", what, "give the lowest and the highest opset that the parser reads")
    if high is not None and ir is not None and ir < (needed := ir_version_of(int(high))):
        what = f"{path}.onnx_ir_version_max = {ir:g} is too low for onnx_opset_max = {high:g}"
        fix = f"files of that opset have IR version {needed}: raise the one or lower the other"
        yield Finding(f"{path}.onnx_ir_version_max", what, fix)


def _of_precisions(document: Document) -> Iterator[Finding]:
    units = {str(unit.get("kind")): unit for unit in tables(document, "units")}
    for kind, unit in units.items():
        yield from _of_fp16(kind, unit)
        listing = [r for r in tables(document, "runtimes") if r.get("unit") == kind and "fp16" in _listed(r)]
        if listing and not _runs(unit, "fp16") and not unit.get("fp16_runs_as_fp32"):
            names = ", ".join(runtime_path(runtime) for runtime in listing)
            what = f"units[{kind}] has no peak_fp16_gflops, but {names} list fp16 for it"
            fix = "take fp16 out there, or say what happens here: fp16_runs_as_fp32 = true, or fp16 in precisions"
            yield Finding(f"units[{kind}].fp16_runs_as_fp32", what, fix)


def _of_fp16(kind: str, unit: Document) -> Iterator[Finding]:
    if unit.get("fp16_runs_as_fp32") is not True:
        return
    key = f"units[{kind}].fp16_runs_as_fp32"
    if _runs(unit, "fp16"):
        fix = "take out what is not so (a child says false where its parent says true)"
        yield Finding(key, f"{key} = true, but the unit has fp16 arithmetic by its peak or precisions", fix)
    elif not _runs(unit, "fp32"):
        what = f"{key} = true, but the unit has no fp32 path"
        yield Finding(key, what, "give peak_fp32_gflops, or fp32 in its precisions")


def _listed(table: Document) -> list[object]:
    listed = table.get("precisions", [])
    return listed if isinstance(listed, list) else []


def _runs(unit: Document, precision: str) -> bool:
    return _number(unit, _PEAKS[precision]) is not None or precision in _listed(unit)


def _of_power(document: Document) -> Iterator[Finding]:
    power, modes = document.get("power"), tables(document, "power_modes")
    idle, limit = _number(power, "idle_w"), _number(power, "limit_w")
    caps = [("power.limit_w", limit)]
    caps += [(f"power_modes[{mode.get('name')}].limit_w", _number(mode, "limit_w")) for mode in modes]
    for key, cap in caps:
        if idle is not None and cap is not None and idle >= cap:
            what = f"power.idle_w = {idle:g} is not below {key} = {cap:g}"
            fix = "idle is what the device draws doing nothing, the limit what it may draw at most"
            yield Finding("power.idle_w", what, fix)
    for mode in (mode for mode in modes if mode.get("name") == document.get("power_mode")):
        cap = _number(mode, "limit_w")
        if limit is not None and cap is not None and cap != limit:
            what = f"power.limit_w = {limit:g}, but power mode '{mode.get('name')}', which it is for, has {cap:g}"
            yield Finding("power.limit_w", what, "both are the cap of the mode that power_mode names: make them equal")


def _of_a_mode(document: Document, mode: Document) -> Iterator[Finding]:
    name, cap = str(mode.get("name")), _number(mode, "limit_w")
    said = re.fullmatch(r"(\d+(?:\.\d+)?)w", name)
    if said and cap is not None and cap != float(said[1]):
        what = f"power mode '{name}' has limit_w = {cap:g}"
        yield Finding(f"power_modes[{name}].limit_w", what, "its name says another power: correct one of them")
    default = _number(document.get("power"), "limit_w")
    units = {str(unit.get("kind")): unit for unit in tables(document, "units")}
    for unit in tables(mode, "units"):
        yield from _of_a_unit_in_a_mode(name, unit, units.get(str(unit.get("kind")), {}), capped=_at_most(cap, default))
    if cap is not None and default is not None and cap > default and not _faster(mode, units):
        what = (
            f"power mode '{name}' draws up to {cap:g} W, above power.limit_w = {default:g}, and no unit is faster in it"
        )
        yield Finding(f"power_modes[{name}].limit_w", what, "lower it, or give the units what they reach at that power")


def _of_a_unit_in_a_mode(name: str, unit: Document, whole: Document, *, capped: bool) -> Iterator[Finding]:
    path = f"power_modes[{name}].units[{unit.get('kind')}]"
    for key in (key for key in _SPEEDS if _number(unit, key) is not None):
        value, most = float(unit[key]), _number(whole, key)
        if most is None and whole and key in _PEAKS.values():
            what = f"{path}.{key} = {value:g}, but the unit itself has no {key}"
            yield Finding(f"{path}.{key}", what, "a mode changes what the unit can do, it adds nothing: take it out")
        elif most is not None and capped and value > most:
            what = f"{path}.{key} = {value:g} is above the unit's own {most:g}"
            yield Finding(f"{path}.{key}", what, "a mode that may not draw more is not faster: correct one of them")


def _at_most(cap: float | None, default: float | None) -> bool:
    return cap is not None and default is not None and cap <= default


def _faster(mode: Document, units: dict[str, Document]) -> bool:
    pairs = [(unit, units.get(str(unit.get("kind")), {})) for unit in tables(mode, "units")]
    return any((_number(unit, key) or 0) > (_number(whole, key) or 0) for unit, whole in pairs for key in _SPEEDS)
