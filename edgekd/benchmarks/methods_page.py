"""Results of `edgekd bench methods` as a table: for the terminal and for docs/benchmarks/methods.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.benchmarks.catalogue import BASELINE
from edgekd.benchmarks.int8 import int8_table
from edgekd.benchmarks.page import replace_results

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Extra:
    """Rows that stand beside the accuracies: of `measure_costs`, of `quantise_best` and of `tune`."""

    costs: Sequence[Row] = ()
    int8: Sequence[Row] = ()
    tuning: Sequence[Row] = ()


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for each (student, method), best first after the baseline.

    test_top1: share, mean over seeds; sd: of the seeds, None for one; gain: over the baseline, the mean over the seeds
    that both have, with its sd; refused: why there is no result.
    """
    entries: list[dict[str, Any]] = []
    for student in dict.fromkeys(row["student"] for row in rows):
        mine = [row for row in rows if row["student"] == student]
        baseline = _by_seed(mine, BASELINE)
        group = [_entry(mine, student, method, baseline) for method in dict.fromkeys(row["method"] for row in mine)]
        group.sort(key=lambda e: (e["method"] != BASELINE, "refused" in e, -e.get("test_top1", 0.0)))
        entries += group
    return entries


def _by_seed(rows: Sequence[Row], method: str) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if row["method"] == method and "test_top1" in row}


def _entry(rows: Sequence[Row], student: str, method: str, baseline: Mapping[int, Row]) -> dict[str, Any]:
    mine = _by_seed(rows, method)
    if not mine:
        refused = next(row["refused"] for row in rows if row["method"] == method)
        return {"student": student, "method": method, "refused": refused}
    accuracies = [row["test_top1"] for row in mine.values()]
    gains = [row["test_top1"] - baseline[seed]["test_top1"] for seed, row in mine.items() if seed in baseline]
    return {
        "student": student,
        "method": method,
        "n": len(mine),
        "learning_rate": next(iter(mine.values()))["learning_rate"],
        "factor": next(iter(mine.values()))["factor"],
        "test_top1": statistics.fmean(accuracies),
        "sd": _sd(accuracies),
        "gain": statistics.fmean(gains) if gains else None,
        "gain_sd": _sd(gains),
        "nll": statistics.fmean(row["test_nll"] for row in mine.values()),
        "steps": statistics.fmean(row["steps"] * row["students"] for row in mine.values()),
    }


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _percent(value: float | None, sd: float | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    text = f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"
    return text if sd is None else f"{text} ± {100 * sd:.2f}"


def tuning_table(rows: Sequence[Row]) -> str:
    """What `tune` tried, held-out accuracies in percent; the best of each row is what was judged."""
    lines = ["| student | method | peak learning rate, weight x: held-out accuracy, % |", "|---|---|---|"]
    for student, method in dict.fromkeys((row["student"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["student"], row["method"]) == (student, method)]
        best = max(row.get("val_top1", 0.0) for row in mine)
        cells = [f"{_setting(row)}: {_tried(row, best)}" for row in mine]
        lines.append(f"| {student} | {method} | {'; '.join(cells)} |")
    return "\n".join(lines)


def _setting(row: Row) -> str:
    weight = "" if row["method"] == BASELINE else f", x {row['factor']:g}"
    return f"{row['learning_rate']:g}{weight}"


def _tried(row: Row, best: float) -> str:
    if "val_top1" not in row:
        return "refused"
    text = f"{100 * row['val_top1']:.2f}"
    return f"**{text}**" if row["val_top1"] == best else text


def table(entries: Sequence[Mapping[str, Any]], costs: Sequence[Row] = ()) -> str:
    """A Markdown table for each student. costs: rows of `measure_costs`, for the last two columns."""
    known = {(row["student"], row["method"]): row for row in costs}
    parts = []
    for student in dict.fromkeys(entry["student"] for entry in entries):
        lines = [
            f"**{student}**",
            "",
            "| method | peak rate | weight x | test accuracy, % | over no KD, points | seeds | NLL | student steps "
            "| ms a step | MiB a step |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for e in (entry for entry in entries if entry["student"] == student):
            if "refused" in e:
                lines.append(f"| {e['method']} | not run: {e['refused'].replace('|', '/')} | | | | | | | | |")
                continue
            gain = "" if e["method"] == BASELINE else _percent(e["gain"], e["gain_sd"], sign=True)
            accuracy = _percent(e["test_top1"], e["sd"])
            cost = known.get((student, e["method"]))
            two = "|" if cost is None else f"{cost['step_ms']:.0f} | {cost['memory_mib']:.0f}"
            figures = f"{e['n']} | {e['nll']:.2f} | {e['steps']:.0f} | {two}"
            factor = "" if e["method"] == BASELINE else f"{e['factor']:g}"
            lines.append(f"| {e['method']} | {e['learning_rate']:g} | {factor} | {accuracy} | {gain} | {figures} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write_page(path: Path, about: Mapping[str, Any], rows: Sequence[Row], extra: Extra) -> Path:
    """Replace the results section of a page. Raises: InputError: it has none."""
    head = (
        f"Data: {about['data']}, {about['train_images']} training, {about['val_images']} held-out and "
        f"{about['test_images']} test images. Teacher: {about['teacher']}, "
        f"{100 * about['teacher_test_top1']:.2f}% on the same test images. Schedule: {about['epochs']:g} epochs, batch "
        f"{about['batch_size']}, one cycle, {about['views']} views of each image, gradients clipped to "
        f"{about['clip_norm']:g}; SGD, AdamW for nets with layer norms."
    )
    quantised = f"\n\nTest accuracy in int8, %:\n\n{int8_table(extra.int8)}" if extra.int8 else ""
    tried = f"\n\nSettled on the held-out images (one seed, which is not judged):\n\n{tuning_table(extra.tuning)}"
    parts = [head, "\n\n", table(summary(rows), extra.costs), quantised, tried if extra.tuning else ""]
    return replace_results(path, "".join(parts))
