"""Two results of `edgekd profile --json`: whether they are alike, and which is faster. Reads files, no clock.

Two runs share neither rounds nor mood of the host, so the interval is wider than that of one interleaved run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from edgekd.artifact import Frozen
from edgekd.device_benchmarks import statistics
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.measurement import Measurement, MeasurementSet
from edgekd.errors import CheckError, InputError

ComparisonVerdict = Literal["faster", "slower", "no significant difference"]
SCHEMA_VERSION = 1
UNPAIRED_NOTE = (
    "two runs, unpaired: the interval is wider than that of one interleaved run (edgekd profile MODEL --against OTHER)"
)


class UnpairedRatio(Frozen):
    """How many times as fast the second is as the first, from two separate runs: above 1, faster.

    lo, hi: 99% interval. cpu_*: the same by CPU time; None where it cannot judge (several threads, or no CPU clock).
    The verdict names a difference only where every clock that can judge finds it.
    """

    name: str
    first_p50_ms: float
    second_p50_ms: float
    ratio: float
    lo: float
    hi: float
    cpu_ratio: float | None
    cpu_lo: float | None
    cpu_hi: float | None
    verdict: ComparisonVerdict
    confidence: float = 0.99


class Comparison(Frozen):
    """unlike: what differs between the two and was forced; a ratio then says as much about that as about the model."""

    schema_version: Literal[1] = 1
    first: str
    second: str
    ratios: tuple[UnpairedRatio, ...]
    unlike: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    note: str = UNPAIRED_NOTE


def load_result(path: Path) -> MeasurementSet:
    """The result file of one device. Raises: InputError: absent, not JSON, another schema, or of several devices."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, fix="edgekd profile MODEL --json > FILE writes one") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"not a JSON document ({error})", where=path) from error
    return parse_result(document, where=path)


def parse_result(document: Any, *, where: object) -> MeasurementSet:
    """A document as a set of measurements. Raises: InputError: as `load_result`."""
    if not isinstance(document, dict) or not ({"measurements", "devices"} & document.keys()):
        raise InputError("not a result of `edgekd profile --json`", where=where)
    if "devices" in document:
        names = ", ".join(document["devices"])
        raise InputError(f"holds several devices ({names})", where=where, fix="measure each with --on its own name")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        fix = f"this edgekd reads {SCHEMA_VERSION}: measure again with one version of edgekd"
        raise InputError(f"schema_version is {version!r}", where=where, fix=fix)
    try:
        return MeasurementSet.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{key}: {first['msg']}", where=where, fix="was it edited?") from error


def compare_files(first: Path, second: Path, *, force: bool = False, seed: int = 0) -> Comparison:
    """Every model that both files hold (or the only one of each).

    Raises: InputError: a file that cannot be read, or nothing to compare. CheckError: unlike things without `force`, or
        emulated times, which no force turns into a latency.
    """
    sets = load_result(first), load_result(second)
    for path, found in zip((first, second), sets, strict=True):
        if found.kind == "emulated":
            raise CheckError("its times were taken in an emulator and are no latency", where=path)
    pairs = list(_pairs(*sets, where=f"{first}, {second}"))
    unlike = tuple(dict.fromkeys(text for a, b in pairs for text in differences(a, b)))
    if unlike and not force:
        fix = "measure both alike, or pass --force to compare anyway"
        raise CheckError(f"not alike: {'; '.join(unlike)}", where=f"{first} and {second}", fix=fix)
    return Comparison(
        first=str(first),
        second=str(second),
        ratios=tuple(unpaired(a, b, seed=seed) for a, b in pairs),
        unlike=unlike,
        cautions=tuple(dict.fromkeys(text for a, b in pairs for text in _cautions(a, b))),
    )


def _pairs(first: MeasurementSet, second: MeasurementSet, *, where: str) -> Iterator[tuple[Measurement, Measurement]]:
    theirs = {row.name: row for row in second.measurements}
    shared = [(row, theirs[row.name]) for row in first.measurements if row.name in theirs]
    if shared:
        yield from shared
    elif len(first.measurements) == len(second.measurements) == 1:
        yield first.measurements[0], second.measurements[0]
    else:
        names = " | ".join(", ".join(row.name for row in found.measurements) or "nothing" for found in (first, second))
        raise InputError(f"no model is in both ({names})", where=where, fix="give files of one model each")


def differences(first: Measurement, second: Measurement) -> Iterator[str]:
    """What makes a ratio of the two a ratio of something else, as `threads 1 against 4`."""
    facts = (_facts(first), _facts(second))
    for key, mine in facts[0].items():
        theirs = facts[1][key]
        if mine != theirs:
            yield f"{key} {_shown(mine)} against {_shown(theirs)}"


def _facts(row: Measurement) -> dict[str, Any]:
    made, host = row.provenance, row.provenance.host_start
    return {
        **_device(host),
        "kind": row.kind,
        "runtime": f"{made.runtime} {made.runtime_version or 'of unknown version'}",
        "executed": made.executed,
        "threads": made.threads,
        "affinity": made.affinity,
        "precision": made.precision,
        "input shape": made.input_shape,
        "mode": made.mode,
    }


def _device(host: HostState) -> dict[str, Any]:
    return {
        "device": host.device_model or host.soc or host.kernel.split()[-1],
        "serial": host.serial_sha256,
        "CPU": host.cpu_model,
        "usable CPUs": host.usable_cpus,
        "governor": host.governor,
        "power mode": host.power_mode,
    }


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _cautions(first: Measurement, second: Measurement) -> Iterator[str]:
    hosts = first.provenance.host_start, second.provenance.host_start
    for what in ("kernel", "os_build"):
        mine, theirs = (getattr(host, what) for host in hosts)
        if mine != theirs:
            yield f"{what.replace('_', ' ')} differs: {mine} against {theirs}"
    if first.provenance.artifact_sha256 == second.provenance.artifact_sha256 is not None:
        yield f"{first.name}: the same file in both"
    for row, which in ((first, "first"), (second, "second")):
        if row.verdict != "valid":
            yield f"{row.name}: the {which} is {row.verdict}: {row.warnings[0] if row.warnings else row.note}"


def unpaired(first: Measurement, second: Measurement, *, seed: int = 0) -> UnpairedRatio:
    """first / second by wall clock and, on one thread, by CPU time."""
    wall = _ratio(first, second, "wall_ns", seed)
    by_cpu = all(row.provenance.threads == 1 and row.provenance.cpu_clock for row in (first, second))
    cpu = _ratio(first, second, "cpu_ns", seed) if by_cpu else None
    same = wall.significant and (cpu is None or (cpu.significant and (cpu.ratio > 1) == (wall.ratio > 1)))
    verdict: ComparisonVerdict = "no significant difference"
    if same:
        verdict = "faster" if wall.ratio > 1 else "slower"
    return UnpairedRatio(
        name=first.name if first.name == second.name else f"{first.name} -> {second.name}",
        first_p50_ms=first.p50_ms,
        second_p50_ms=second.p50_ms,
        ratio=wall.ratio,
        lo=wall.lo,
        hi=wall.hi,
        cpu_ratio=cpu.ratio if cpu else None,
        cpu_lo=cpu.lo if cpu else None,
        cpu_hi=cpu.hi if cpu else None,
        verdict=verdict,
    )


def _ratio(first: Measurement, second: Measurement, clock: str, seed: int) -> statistics.RatioInterval:
    return statistics.unpaired_ratio(_block_medians(first, clock), _block_medians(second, clock), seed=seed)


def _block_medians(row: Measurement, clock: str) -> list[list[float]]:
    """By fresh process, in the order taken."""
    found: dict[int, list[float]] = {}
    for block in row.blocks:
        found.setdefault(block.process, []).append(max(1.0, statistics.median(getattr(block, clock))))
    return list(found.values())
