"""How far off the predictor is on what it has not seen, as a table beside two simple fits to the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from edgekd.latency.learn import Judged, covered

# What a line of the table is about, where it is not a kind: rows that issue targets name. Prefixes of device names.
BOARDS_AND_PHONES = (
    "Raspberry Pi", "NVIDIA Jetson", "Qualcomm", "Google Pixel", "Samsung", "Snapdragon", "Rockchip", "OrangePi",
    "Khadas", "Radxa", "Station-M2", "Avaota", "Xiaomi", "HUAWEI Mate", "Redmi", "Huawei", "Amlogic", "RDK", "Odroid",
)  # fmt: skip


class Score(NamedTuple):
    """Errors of one way to predict. mape, median: of |predicted/measured - 1|; within_*: shares. Spearman: pooled."""

    mape: float
    median: float
    within_10: float
    within_20: float
    spearman: float


class Line(NamedTuple):
    """One group of held-out rows. coverage: share of rows inside their 80 % intervals."""

    scope: str
    group: str
    rows: int
    devices: int
    families: int
    predictor: Score
    coverage: float
    macs: Score
    log_linear: Score


def score(measured: Sequence[float], predicted: Sequence[float]) -> Score:
    """Errors of predictions, pairwise.

    >>> score([1.0, 2.0], [1.1, 2.0]).mape
    0.05
    """
    y, p = np.asarray(measured), np.asarray(predicted)
    error = np.abs(p / y - 1)
    rank = float(spearmanr(y, p)[0]) if len(set(measured)) > 1 and len(set(predicted)) > 1 else float("nan")
    within_10, within_20 = (float(np.mean(error <= bound)) for bound in (0.1, 0.2))
    return Score(round(float(error.mean()), 4), round(float(np.median(error)), 4), within_10, within_20, rank)


def lines(scope: str, judged: Iterable[Judged]) -> list[Line]:
    """One line per kind of device, for every device of many rows, and for the boards and phones among the CPUs."""
    groups: dict[str, list[tuple[Judged, bool]]] = defaultdict(list)
    for row, inside in covered(judged):
        for name in _groups(row):
            groups[name].append((row, inside))
    return [_line(scope, name, rows) for name, rows in sorted(groups.items())]


def _groups(row: Judged) -> list[str]:
    device = row.device
    if device.kind == "cpu.compiled":
        return [f"cpu.compiled: {device.name}, {device.version}"]
    found = [device.kind]
    if device.kind in ("cpu.ncnn.float", "cpu.mobile.float") and device.name.startswith(BOARDS_AND_PHONES):
        found.append("cpu.*.float: phones and boards")
    if device.kind in ("gpu.cuda",) and "Jetson" in device.name:
        found.append("gpu.cuda: Jetson")
    if device.kind.startswith("npu.qnn") and device.runtime == "TFLite (QNN delegate)":
        found.append(f"{device.kind}: TFLite (QNN delegate)")
    return found


def _line(scope: str, group: str, rows: Sequence[tuple[Judged, bool]]) -> Line:
    judged = [row for row, _ in rows]
    measured = [row.measured_ms for row in judged]
    return Line(
        scope=scope,
        group=group,
        rows=len(rows),
        devices=len({row.device.name for row in judged}),
        families=len({row.family for row in judged}),
        predictor=score(measured, [row.predicted_ms for row in judged]),
        coverage=float(np.mean([inside for _, inside in rows])),
        macs=score(measured, [row.macs_ms for row in judged]),
        log_linear=score(measured, [row.log_linear_ms for row in judged]),
    )


def document(found: Iterable[Line]) -> list[dict[str, Any]]:
    """Lines as plain data; a rank correlation of too few rows is null."""
    return [
        {
            key: {k: None if v != v else v for k, v in value._asdict().items()} if isinstance(value, Score) else value
            for key, value in line._asdict().items()
        }
        for line in found
    ]


_HEAD = (
    "rows | n | devices | families | MAPE | median | within 10 % | within 20 % | Spearman | 80 % interval covers | "
    "MAPE of multiply-adds alone | MAPE of log-linear"
)


def markdown(found: Sequence[Line]) -> str:
    """One table per scope."""
    parts = []
    for scope in dict.fromkeys(line.scope for line in found):
        head = [f"### {scope}", "", f"| {_HEAD} |", "|" + "---|" * len(_HEAD.split("|"))]
        parts.append("\n".join([*head, *(_row(line) for line in found if line.scope == scope)]))
    return "\n\n".join(parts) + "\n"


def _row(line: Line) -> str:
    own = line.predictor
    cells = [line.group, line.rows, line.devices, line.families, f"{own.mape:.1%}", f"{own.median:.1%}"]
    cells += [f"{own.within_10:.0%}", f"{own.within_20:.0%}", f"{own.spearman:.3f}", f"{line.coverage:.0%}"]
    cells += [f"{line.macs.mape:.1%}", f"{line.log_linear.mape:.1%}"]
    return "| " + " | ".join(map(str, cells)) + " |"
