"""What the rows of `edgekd bench timing` say together: figures with spread and bar, and docs/benchmarks/timing.md."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.benchmarks.page import replace_results
from edgekd.benchmarks.peers import peer_of
from edgekd.device_benchmarks import host_state
from edgekd.device_benchmarks.host import installed_versions
from edgekd.device_benchmarks.statistics import paired_ratio

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
BARS = {"peers": 0.03, "repeatability": 0.05, "itself": 0.95, "tenth": 0.90}
PACKAGES = ("ai-edge-litert", "openvino", "onnxruntime", "torch")


def document(rows: Rows, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that was found; a part without rows is left out. holds: whether every bar that could be judged holds."""
    state = host_state()
    found = {
        "peers": _peers(rows["peers"]),
        "repeatability": _repeatability(rows["repeatability"]),
        "aa": _aa(rows["aa"]),
        "simulated": [_counted(row, row["same"], row["tenth"]) for row in rows["simulated"]],
    }
    told = {part: figures for part, figures in found.items() if figures}
    parts = [part if isinstance(part, list) else [part] for part in told.values()]
    return {
        **told,
        "bars": BARS,
        "holds": all(entry["holds"] for part in parts for entry in part),
        "settings": dict(settings),
        "machine": {
            "processor": state.cpu_model,
            "cores": state.logical_cpus,
            "kernel": state.kernel,
            "versions": installed_versions(PACKAGES),
        },
        "rows": {part: list(kept) for part, kept in rows.items() if kept},
    }


def _peers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each file the ratio of the two p50s: a round's figure is the geometric mean of its two visits."""
    return [_peer(model, [row for row in rows if row["model"] == model]) for model in _names(rows, "model")]


def _peer(model: str, rows: Sequence[Row]) -> dict[str, Any]:
    mine, theirs = ([statistics.geometric_mean(row[key]) for row in rows] for key in ("edgekd_ms", "peer_ms"))
    # Every visit is a fresh process already: what processes differ by is in the rounds.
    ratio = paired_ratio([mine], [theirs], confidence=0.95, process_log_sd=0.0)
    return {
        "model": model,
        "tool": rows[0]["tool"],
        "how": peer_of(Path(model)).how,
        "rounds": len(rows),
        "edgekd_ms": statistics.median(mine),
        "peer_ms": statistics.median(theirs),
        "ratio": ratio.ratio,
        "lo": ratio.lo,
        "hi": ratio.hi,
        "round_ratio_cv": cv([a / b for a, b in zip(mine, theirs, strict=True)]),
        "holds": abs(ratio.ratio - 1) <= BARS["peers"],
        **_host(rows),
    }


def _repeatability(rows: Sequence[Row]) -> dict[str, Any] | None:
    if len(rows) < 2:
        return None
    interleaved, sequential = [row["interleaved"]["ratio"] for row in rows], [row["sequential"] for row in rows]
    return {
        "teacher": rows[0]["teacher"],
        "student": rows[0]["student"],
        "repeats": len(rows),
        "interleaved": {"cv": cv(interleaved), "lo": min(interleaved), "hi": max(interleaved)},
        "sequential": {"cv": cv(sequential), "lo": min(sequential), "hi": max(sequential)},
        "wall_only": {"cv": cv([row["interleaved"]["wall"][0] for row in rows])},
        "by_cpu_time": sum(row["interleaved"]["clock"] == "CPU" for row in rows),
        "holds": cv(interleaved) <= BARS["repeatability"],
        **_host(rows),
    }


def _aa(rows: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    figures = {key: [row[key]["ratio"] for row in rows] for key in ("same", "tenth")}
    ranges = {key: [min(values), statistics.median(values), max(values)] for key, values in figures.items()}
    found = ([row[key]["found"] for row in rows] for key in ("same", "tenth"))
    by_cpu = sum(row["same"]["clock"] == "CPU" for row in rows)
    return {**_counted({}, *found), "ratios": ranges, "by_cpu_time": by_cpu, **_host(rows)}


def _counted(row: Row, same: Sequence[str], tenth: Sequence[str]) -> dict[str, Any]:
    """Verdicts counted. A difference in the wrong direction is not found."""
    alarms, found = len(same) - Counter(same)["no difference"], Counter(tenth)["faster"]
    enough = len(same) - alarms >= BARS["itself"] * len(same) and found >= BARS["tenth"] * len(tenth)
    mood = {"mood": row["mood"]} if row else {}
    return {**mood, "sessions": len(same), "no_difference": len(same) - alarms, "found": found, "holds": enough}


def _host(rows: Sequence[Row]) -> dict[str, Any]:
    """Load while they were taken, and the time that the hypervisor gave to others."""
    loads = [load for row in rows for load in row["load"] if load is not None]
    stolen = [row["stolen_s"] for row in rows if row["stolen_s"] is not None]
    return {
        "load": [min(loads), statistics.median(loads), max(loads)] if loads else None,
        "stolen_s": math.fsum(stolen) if stolen else None,
        "from": min(row["at"] for row in rows),
        "to": max(row["at"] for row in rows),
    }


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def cv(values: Sequence[float]) -> float:
    """Standard deviation over mean; 0 of one value.

    >>> cv([1.0, 1.0]), cv([2.0])
    (0.0, 0.0)
    """
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else 0.0


def text(found: Mapping[str, Any]) -> str:
    """Markdown tables of the parts that were measured."""
    written: dict[str, Callable[[Any], str]] = {
        "peers": _peers_text,
        "repeatability": _repeatability_text,
        "aa": _aa_text,
        "simulated": _simulated_text,
    }
    parts = [write(found[part]) for part, write in written.items() if part in found]
    return "\n\n".join(parts)


def _peers_text(peers: Sequence[Row]) -> str:
    lines = [
        "| file | its own tool | tool p50 | edgekd p50 | edgekd / tool | 95% CI | rounds | CV of rounds | within 3% |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p['model']} | {p['tool']} | {p['peer_ms']:.3f} ms | {p['edgekd_ms']:.3f} ms | {p['ratio']:.3f} "
        f"| {p['lo']:.3f} to {p['hi']:.3f} | {p['rounds']} | {p['round_ratio_cv']:.1%} | {_yes(p)} |"
        for p in peers
    ]
    tools = dict.fromkeys(f"{p['tool']}: `{p['how']}`" for p in peers)
    return "\n".join([*lines, "", f"{'. '.join(tools)}. {_host_text(peers)}"])


def _repeatability_text(found: Row) -> str:
    lines = [
        f"| speedup of {found['student']} over {found['teacher']} | CV | least to most | repeats | within 5% |",
        "|---|---|---|---|---|",
    ]
    for key, label, verdict in (
        ("interleaved", "as `edgekd profile --against` tells it", _yes(found)),
        ("sequential", "median of one, then of the other", ""),
    ):
        one = found[key]
        figures = f"{one['cv']:.1%} | {one['lo']:.2f}x to {one['hi']:.2f}x"
        lines.append(f"| {label} | {figures} | {found['repeats']} | {verdict} |")
    clocks = f"By CPU time, because the clocks disagreed: {found['by_cpu_time']} of {found['repeats']}"
    wall = f"CV of the interleaved ratios by wall clock alone: {found['wall_only']['cv']:.1%}"
    return "\n".join([*lines, "", f"{clocks}. {wall}. {_host_text([found])}"])


def _aa_text(found: Row) -> str:
    n = found["sessions"]
    least, middle, most = ({key: values[k] for key, values in found["ratios"].items()} for k in range(3))
    lines = [
        "| a real pair, quick sessions | verdict | of sessions | ratios, least, median, most |",
        "|---|---|---|---|",
    ]
    for key, label, verdict, count in (
        ("same", "against itself", "no significant difference", found["no_difference"]),
        ("tenth", "against one with 10% more multiply-adds", "faster", found["found"]),
    ):
        lines.append(f"| {label} | {verdict} | {count} of {n} | {least[key]:.3f}, {middle[key]:.3f}, {most[key]:.3f} |")
    return "\n".join([*lines, "", f"By CPU time: {found['by_cpu_time']} of {n}. {_host_text([found])}"])


def _simulated_text(moods: Sequence[Row]) -> str:
    lines = ["| simulated host | no difference from itself | a true 10% found | bars hold |", "|---|---|---|---|"]
    for row in moods:
        n = row["sessions"]
        lines.append(f"| {row['mood']} | {row['no_difference']} of {n} | {row['found']} of {n} | {_yes(row)} |")
    return "\n".join(lines)


def _host_text(entries: Sequence[Row]) -> str:
    loads = [load for entry in entries if entry["load"] for load in entry["load"]]
    stolen = [entry["stolen_s"] for entry in entries if entry["stolen_s"] is not None]
    load = f"Load {min(loads):.1f} to {max(loads):.1f}" if loads else "Load not told"
    other = f", {math.fsum(stolen):.1f} s stolen by the hypervisor" if stolen else ""
    return f"{load}{other}; {min(e['from'] for e in entries)} to {max(e['to'] for e in entries)}."


def _yes(entry: Row) -> str:
    return "yes" if entry["holds"] else "NO"


def write_page(path: Path, found: Mapping[str, Any]) -> Path:
    """Replace the results section of a page. Raises: InputError: it has none."""
    machine, settings = found["machine"], found["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = (
        f"`edgekd bench timing` on {machine['processor']}, {machine['cores']} cores, kernel {machine['kernel']}; "
        f"{versions}; {settings['threads']} thread, mode {settings['mode']}, seed {settings['seed']}."
    )
    return replace_results(path, f"{head}\n\n{text(found)}")
