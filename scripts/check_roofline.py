"""How far is the roofline from published on-device latencies? Fits each compute unit's constants and reports the error.

Input: a folder with `visible_map.csv.gz`: one published measurement per row, with a torchvision or timm name, pixels,
device, runtime, precision, milliseconds and source. Output: a table of groups, one JSON line, and with --markdown the
page docs/latency.md. Nothing in edgekd reads its result at run time: the constants are copied into profiles by hand.

    python scripts/check_roofline.py ../shared/data/latency --costs build/costs.json --markdown docs/latency.md
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.optimize import minimize

from edgekd.artifact import Precision
from edgekd.files import write_json, write_text
from edgekd.latency.estimate import arithmetic
from edgekd.profile import ComputeUnit, load_profile

ROWS_PER_GROUP = 80  # the two large CPU tables hold over a thousand networks each
CONSTANTS = ("efficiency", "depthwise_efficiency", "kernel_overhead_us")


class Group(NamedTuple):
    """Rows that one compute unit of one profile is compared with.

    relative: peak numbers of the silicon that was measured, where it is a relative of the profile's, not the same.
    """

    profile: str
    unit: str
    precision: Precision
    rows: dict[str, str]
    relative: dict[str, float] | None = None


def _group(
    profile: str, unit: str, precision: Precision, relative: dict[str, float] | None = None, /, **rows: str
) -> Group:
    return Group(profile, unit, precision, rows, relative)


ORIN_CPU = {"profile": "jetson-orin-nano", "compute_unit": "cpu", "runtime": "ncnn", "threads": "6"}
PI5 = {"device": "Raspberry Pi 5 Broadcom BCM2712", "compute_unit": "cpu", "runtime": "ncnn", "threads": "4"}
NANO_CPU = {"profile": "jetson-nano", "compute_unit": "cpu", "runtime": "ncnn", "threads": "4"}
S24_NPU = {"profile": "galaxy-s24", "compute_unit": "npu"}
SD8G2 = {"device": "Qualcomm SM8550-AB Snapdragon 8 Gen 2", "compute_unit": "cpu", "threads": "4"}
# Relatives: all-core clock x FLOP per cycle, and memory channels, both recalled.
SD8G2_PEAKS = {"peak_fp32_gflops": 329.6, "peak_fp16_gflops": 659.2, "peak_int8_gops": 1318.4, "dram_gb_per_s": 67.2}
R5700G_PEAKS = {"peak_fp32_gflops": 1075.0, "peak_int8_gops": 1430.0, "dram_gb_per_s": 51.2}
I7_12700H_PEAKS = {"peak_fp32_gflops": 1100.0, "dram_gb_per_s": 76.8}
I9_10940X_PEAKS = {"peak_fp32_gflops": 2867.0, "dram_gb_per_s": 94.0}
D64S_PEAKS = {"peak_fp32_gflops": 716.8, "peak_int8_gops": 2867.0, "dram_gb_per_s": 80.0}
PIXEL6_PEAKS = {"peak_fp32_gflops": 89.6, "peak_fp16_gflops": 179.2, "peak_int8_gops": 358.4, "dram_gb_per_s": 51.2}
ULTRA = {"runtime": "PyTorch torch.compile", "precision": "fp32"}

GROUPS = [
    _group("jetson-nano", "gpu", "fp16", profile="jetson-nano", runtime="TensorRT"),
    _group("jetson-nano", "cpu", "fp32", **NANO_CPU, precision="fp32"),
    _group("jetson-nano", "cpu", "int8", **NANO_CPU, precision="int8"),
    _group("jetson-orin-nano", "cpu", "fp32", **ORIN_CPU, precision="fp32"),
    _group("jetson-orin-nano", "cpu", "int8", **ORIN_CPU, precision="int8"),
    _group("raspberry-pi-5", "cpu", "fp16", **PI5, precision="fp16"),
    _group("raspberry-pi-5", "cpu", "int8", **PI5, precision="int8"),
    _group("pixel-8", "cpu", "int8", PIXEL6_PEAKS, profile="pixel-6", compute_unit="cpu", precision="int8"),
    _group("pixel-8", "npu", "int8", profile="pixel-8", compute_unit="npu"),
    _group("galaxy-s24", "npu", "fp16", **S24_NPU, precision="fp16", runtime="TFLite (QNN delegate)"),
    _group("galaxy-s24", "npu", "int8", **S24_NPU, precision="w8a8", runtime="TFLite (QNN delegate)"),
    _group("galaxy-s24", "cpu", "fp16", SD8G2_PEAKS, **SD8G2, precision="fp16"),
    _group("galaxy-s24", "cpu", "int8", SD8G2_PEAKS, **SD8G2, precision="int8"),
    _group("iphone-15", "npu", "fp16", device="Apple iPhone 14 Pro", precision="fp16"),
    _group("x86-avx2", "cpu", "fp32", I7_12700H_PEAKS, device="Intel Core i7-12700H laptop", **ULTRA),
    _group("x86-avx2", "cpu", "int8", R5700G_PEAKS, device="AMD Ryzen 5700g", precision="int8", threads="16"),
    _group("x86-avx512-vnni", "cpu", "fp32", I9_10940X_PEAKS, device="Intel Core i9-10940X desktop", **ULTRA),
    _group(
        "x86-avx512-vnni",
        "cpu",
        "int8",
        D64S_PEAKS,
        device="Microsoft Azure Standard D64s v6 Instance",
        precision="int8",
        threads="4",
    ),
]


class Row(NamedTuple):
    """One published measurement with the kernels of its network, one array element each."""

    model: str
    milliseconds: float
    depthwise: np.ndarray
    macs: np.ndarray
    moved: np.ndarray


def make_row(model: str, milliseconds: float, kernels: list[tuple[str, int, int]]) -> Row:
    """A row from (kind, macs, moved elements) per kernel."""
    kinds, macs, moved = zip(*kernels, strict=True)
    return Row(model, milliseconds, np.array([k == "depthwise" for k in kinds]), np.array(macs), np.array(moved))


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Rows at batch 1 whose network is known exactly or nearly."""
    with gzip.open(folder / "visible_map.csv.gz", "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    kept = [r for r in rows if r["map_quality"] in ("exact", "near") and float(r["batch"] or 1) == 1]
    return [r for r in kept if r["resolution"] and "sparse" not in r["note"]]


def rows_of(group: Group, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The group's rows; the largest tables are sampled with a fixed seed, one torch version kept."""
    mine = [r for r in rows if all(r[key] == value for key, value in group.rows.items())]
    unique = {(r["mapped"], r["resolution"], r["runtime"]): r for r in mine}  # last wins: the newer runtime
    chosen = [unique[key] for key in sorted(unique)]
    if len(chosen) > ROWS_PER_GROUP:
        chosen = random.Random(0).sample(chosen, ROWS_PER_GROUP)
    return chosen


def kernels_of(name: str, resolution: int, costs: dict[str, Any]) -> list[tuple[str, int, int]] | None:
    """Kernels of a network, from the cache or by tracing; None when it cannot be built or traced."""
    key = f"{name}@{resolution}"
    if key not in costs:
        costs[key] = _trace(name, resolution)
    return cast("list[tuple[str, int, int]] | None", costs[key])


def _trace(name: str, resolution: int) -> list[tuple[str, int, int]] | None:
    from edgekd.errors import EdgekdError
    from edgekd.latency import trace_cost
    from edgekd.latency.networks import build_named

    try:
        module = build_named(name, image_size=resolution)
        cost = trace_cost(module, (1, 3, resolution, resolution))
    except EdgekdError as error:
        print(f"skipped {name}@{resolution}: {error}", file=sys.stderr)
        return None
    return [(op.kind, op.macs, op.moved_elements) for op in cost.ops]


def predict_ms(row: Row, unit: ComputeUnit, precision: Precision) -> float:
    """The estimate that edgekd would give: `kernel_seconds` over all kernels, as one array expression."""
    peak_gops, bytes_per_element = arithmetic(unit, precision)
    efficiency = np.where(row.depthwise, unit.depthwise_efficiency, unit.efficiency)
    compute_s = 2 * row.macs / (peak_gops * 1e9 * efficiency)
    memory_s = row.moved * bytes_per_element / (unit.dram_gb_per_s * 1e9)
    return float(np.maximum(compute_s, memory_s).sum() + len(row.macs) * unit.kernel_overhead_us * 1e-6) * 1e3


class Part(NamedTuple):
    """Rows of one group with the silicon they were measured on; a unit's parts share its three constants."""

    group: Group
    silicon: ComputeUnit
    rows: list[Row]

    def ratios(self, constants: dict[str, float]) -> np.ndarray:
        """Measured over predicted."""
        unit = self.silicon.model_copy(update=constants)
        return np.array([row.milliseconds / predict_ms(row, unit, self.group.precision) for row in self.rows])


def fit(parts: list[Part]) -> dict[str, float]:
    """The constants of a unit that minimise the mean absolute log ratio over its parts, within physical bounds."""

    def constants_at(x: np.ndarray) -> dict[str, float]:
        efficiency, depthwise = np.clip(np.exp(x[:2]), 0.003, 1.0)
        overhead_us = np.clip(np.exp(x[2]), 0.05, 200.0)
        return dict(zip(CONSTANTS, (float(efficiency), float(depthwise), float(overhead_us)), strict=True))

    def loss(x: np.ndarray) -> float:
        logs = np.concatenate([np.log(part.ratios(constants_at(x))) for part in parts if part.rows])
        # A weak pull to usual values keeps a constant that no row constrains from running away.
        return float(np.mean(np.abs(logs)) + 0.01 * np.sum((x - _USUAL) ** 2))

    starts = [np.log([e, e / 3, o]) for e in (0.15, 0.5) for o in (2.0, 15.0)]
    found = (minimize(loss, x0, method="Nelder-Mead", options={"maxiter": 150}) for x0 in starts)
    return constants_at(min(found, key=lambda result: result.fun).x)


_USUAL = np.log([0.3, 0.1, 5.0])


def held_out(parts: list[Part], folds: int = 5) -> list[np.ndarray]:
    """Per part, measured over predicted for networks that the fit has not seen (networks split into folds)."""
    names = sorted({row.model for part in parts for row in part.rows})
    found: list[list[float]] = [[] for _ in parts]
    for fold in range(min(folds, len(names))):
        held = set(names[fold::folds])
        constants = fit([part._replace(rows=[r for r in part.rows if r.model not in held]) for part in parts])
        for index, part in enumerate(parts):
            unseen = part._replace(rows=[r for r in part.rows if r.model in held])
            found[index] += unseen.ratios(constants).tolist()
    return [np.array(values) for values in found]


def measure(parts: list[Part]) -> list[dict[str, Any]]:
    """Lines of the table for one unit: constants fitted, and ratios with shipped and held-out constants."""
    fitted, unseen = fit(parts), held_out(parts)
    return [
        {
            "profile": part.group.profile,
            "unit": part.group.unit,
            "precision": part.group.precision,
            "relative": part.group.relative is not None,
            "rows": len(part.rows),
            "measured_on": _where(part.group),
            "constants": {key: round(value, 3) for key, value in fitted.items()},
            "shipped": part.ratios({}).tolist(),
            "held_out": ratios.tolist(),
        }
        for part, ratios in zip(parts, unseen, strict=True)
    ]


def _where(group: Group) -> str:
    rows = group.rows
    return " ".join(part for part in (rows.get("device") or rows["profile"], rows.get("runtime", "")) if part)


def borrow(results: list[dict[str, Any]], parts: list[Part]) -> None:
    """Ratios with the median constants of all *other* devices: what a device without rows can expect."""
    for result, part in zip(results, parts, strict=True):
        others = [r["constants"] for r in results if r["profile"] != result["profile"] and r["unit"] == result["unit"]]
        others = others or [r["constants"] for r in results if r["profile"] != result["profile"]]
        constants = {key: float(np.median([other[key] for other in others])) for key in CONSTANTS}
        result["borrowed"] = part.ratios(constants).tolist()


def quantiles(groups: list[list[float]]) -> tuple[float, float, float]:
    """10th, 50th and 90th percentile of ratios when every group counts alike (two CPU tables have most of the rows)."""
    values = np.concatenate([np.asarray(g) for g in groups])
    weights = np.concatenate([np.full(len(g), 1 / len(g)) for g in groups])
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    low, median, high = (float(values[order][np.searchsorted(share, q)]) for q in (0.1, 0.5, 0.9))
    return round(low, 2), round(median, 2), round(high, 2)


def coverage(groups: list[list[float]], factors: tuple[float, float]) -> tuple[float, float]:
    """Fraction of ratios inside an interval: of rows, and as the mean over groups."""
    inside = [[factors[0] <= v <= factors[1] for v in g] for g in groups]
    rows = [hit for g in inside for hit in g]
    return sum(rows) / len(rows), sum(sum(g) / len(g) for g in inside) / len(inside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--costs", type=Path, default=Path("build/costs.json"), help="cache of traced networks")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_args()
    costs = json.loads(args.costs.read_text()) if args.costs.is_file() else {}
    published = read_rows(args.folder)
    rows: dict[int, list[Row]] = {}
    for index, group in enumerate(GROUPS):
        rows[index] = []
        for row in rows_of(group, published):
            kernels = kernels_of(row["mapped"], int(float(row["resolution"])), costs)
            if kernels:
                rows[index].append(make_row(row["mapped"], float(row["latency_ms"]), kernels))
        args.costs.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.costs, costs)
        print(f"{group.profile} {group.unit} {group.precision}: {len(rows[index])} rows", file=sys.stderr)
    parts = [_part(group, rows[index]) for index, group in enumerate(GROUPS)]
    results: list[dict[str, Any]] = []
    for unit in dict.fromkeys((group.profile, group.unit) for group in GROUPS):
        results += measure([part for part in parts if (part.group.profile, part.group.unit) == unit])
    borrow(results, parts)
    table = render(results)
    print(table)
    if args.markdown:
        _replace_table(args.markdown, table)
    print(json.dumps({"groups": [{k: v for k, v in r.items() if not isinstance(v, list)} for r in results]}))


def _part(group: Group, rows: list[Row]) -> Part:
    silicon = load_profile(group.profile).unit(group.unit).model_copy(update=group.relative or {})
    return Part(group, silicon, rows)


def render(results: list[dict[str, Any]]) -> str:
    """The table and the pooled lines, as Markdown."""
    from edgekd.latency.estimate import INTERVAL_FACTORS

    lines = [
        "| profile, unit, precision | rows from | n | fitted efficiency / depthwise / overhead us "
        "| shipped p10 / median / p90 | held out | borrowed |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = [_three(r[key]) for key in ("shipped", "held_out", "borrowed")]
        constants = " / ".join(f"{r['constants'][key]:.2g}" for key in CONSTANTS)
        head = f"{r['profile']}, {r['unit']}, {r['precision']}"
        lines.append(f"| {head} | {r['measured_on']} | {r['rows']} | {constants} | {' | '.join(cells)} |")
    devices, rows = len({r["measured_on"] for r in results}), sum(r["rows"] for r in results)
    own = [r for r in results if not r["relative"]]
    lines += [
        "",
        f"{rows} rows, {len(results)} groups, {devices} pairs of device and runtime. Every group counts alike:",
        "",
    ]
    for label, chosen, key, kind in (
        ("shipped constants, groups on the profile's own silicon", own, "shipped", "fitted"),
        ("held out, the same groups", own, "held_out", "fitted"),
        ("borrowed constants, all groups", results, "borrowed", "assumed"),
        ("shipped constants, all groups", results, "shipped", "assumed"),
    ):
        groups = [r[key] for r in chosen]
        low, median, high = quantiles(groups)
        factors = INTERVAL_FACTORS[kind]  # type: ignore[index]
        of_rows, of_groups = coverage(groups, factors)
        lines.append(
            f"- {label}: median {median}, 10 to 90 % from {low} to {high}; the {kind} interval {list(factors)} holds "
            f"{of_rows:.0%} of {sum(map(len, groups))} rows, {of_groups:.0%} as the mean over {len(groups)} groups"
        )
    return "\n".join(lines)


def _three(values: list[float]) -> str:
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return f"{low:.2f} / {median:.2f} / {high:.2f}"


def _replace_table(page: Path, table: str) -> None:
    begin, end = "<!-- check_roofline begin -->", "<!-- check_roofline end -->"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    write_text(page, f"{head}{begin}\n{table}\n{end}{tail}")


if __name__ == "__main__":
    main()
