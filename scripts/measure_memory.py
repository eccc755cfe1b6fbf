"""What a process grows by when a runtime loads and runs a network: measured, and the prediction's constants fitted.

    nice -n 5 python scripts/measure_memory.py run build/memory
    python scripts/measure_memory.py fit build/memory/rows.json --markdown docs/latency.md

`run` exports every network (random weights: memory does not know what they are) at every precision to every runtime and
measures each file in three fresh processes: peak of the resident set after loading and six runs, less what the imported
runtime took before; this is what a run of edgekd reports as `model_rss_mib`. What is there already is not made again.
`fit` fits MiB = base + per weight byte x weights + per activation byte x peak live activations, without negative
constants, to the least absolute relative errors; weights and activations are those of `trace_cost`, as the prediction
has them. Errors in the table are of networks whose family the fit did not see. The constants are copied into
edgekd/latency/footprint.py by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linprog

from edgekd.artifact import Artifact, Precision
from edgekd.device_benchmarks.contender import of_artifact
from edgekd.device_benchmarks.process import Worker
from edgekd.export import export_all
from edgekd.export.request import ExportRequest
from edgekd.files import write_json, write_text
from edgekd.latency import trace_cost
from edgekd.latency.networks import build_named
from edgekd.quant import export_float, ptq, save_program
from edgekd.targets import get_target, quant_spec_for

RUNTIMES = ("tflite", "onnxruntime", "openvino")
PACKAGES = {"tflite": "ai-edge-litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}
TITLES = {"tflite": "LiteRT", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
PROCESSES, RUNS, CALIBRATION_IMAGES, JOBS = 3, 5, 2, 2
MARKS = ("<!-- memory begin -->", "<!-- memory end -->")
Matrix = npt.NDArray[np.float64]


class Net(NamedTuple):
    """A network by name, its family (left out together when the error is measured), and the side of its input."""

    family: str
    name: str
    px: int

    @property
    def label(self) -> str:
        """For folders and rows."""
        return f"{self.name.partition(':')[2]}-{self.px}"


NETS = (
    Net("mobilenet_v2", "torchvision:mobilenet_v2@0.35", 96),
    Net("efficientnet", "torchvision:efficientnet_b0", 224),
    Net("resnet", "torchvision:resnet18", 224),
    Net("squeezenet", "torchvision:squeezenet1_1", 224),
    Net("mobilenet_v3", "torchvision:mobilenet_v3_small", 224),
    Net("vit", "timm:deit_tiny_patch16_224", 224),
    Net("mnasnet", "torchvision:mnasnet0_5", 160),
    Net("convnext", "timm:convnext_atto", 160),
    Net("mobilenet_v4", "timm:mobilenetv4_conv_small", 256),
    Net("shufflenet", "torchvision:shufflenet_v2_x0_5", 128),
    Net("squeezenet", "torchvision:squeezenet1_1", 384),
    Net("resnet", "torchvision:resnet50", 160),
    Net("regnet", "torchvision:regnet_y_400mf", 160),
    Net("mobilenet_v2", "torchvision:mobilenet_v2", 224),
    Net("resnet", "torchvision:resnet18", 96),
    Net("densenet", "torchvision:densenet121", 128),
)


def main() -> int:
    """`run` or `fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("out", type=Path)
    fitter = commands.add_parser("fit")
    fitter.add_argument("rows", type=Path)
    fitter.add_argument("--markdown", type=Path, help="page whose table between the memory marks is replaced")
    options = parser.parse_args()
    if options.command == "run":
        run(options.out)
        return 0
    document = json.loads(options.rows.read_text(encoding="utf-8"))
    fits = fitted(document["rows"])
    lines = table_of(fits, document)
    if options.markdown:
        before, _, rest = options.markdown.read_text(encoding="utf-8").partition(MARKS[0])
        text = "\n".join(lines)
        write_text(options.markdown, f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print("\n".join(lines))
    print(json.dumps(fits))
    return 0


def run(out: Path) -> None:
    """Network by network: programs, artifacts, processes; every step keeps what it has made."""
    out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(out / "rows.json")
    for net in NETS:
        done = {(row["runtime"], row["precision"]) for row in rows if row["net"] == net.label}
        if len(done) == len(RUNTIMES) * len(PRECISIONS):
            continue
        cost = cost_of(net)
        for outcome in export_all(requests_of(net, out / net.label), out / net.label, JOBS, cache=out / "cache"):
            if outcome.artifact is None:
                why = f"{net.label}: {outcome.target} {outcome.precision}: {outcome.reason}"
                print(why, file=sys.stderr, flush=True)
            elif (outcome.target, outcome.precision) not in done:
                about = {"net": net.label, "family": net.family, **cost}
                file = {"runtime": outcome.target, "precision": outcome.precision}
                rows.append({**about, **file, "grown_mib": grown_mib(outcome.artifact)})
                print(json.dumps(rows[-1]), flush=True)
                write_json(out / "rows.json", {"host": host(), "rows": rows})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of an earlier run."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return rows


def host() -> dict[str, str]:
    """What the numbers depend on besides the networks."""
    return {"machine": platform.machine(), **{name: version(package) for name, package in PACKAGES.items()}}


def cost_of(net: Net) -> dict[str, int]:
    """What the prediction knows of a network."""
    cost = trace_cost(build_named(net.name, image_size=net.px), (1, 3, net.px, net.px))
    return {"weight_elements": cost.weight_elements, "peak_activation_elements": cost.peak_activation_elements}


def requests_of(net: Net, folder: Path) -> list[ExportRequest]:
    """Conversions of one network; its float program, and one int8 program per specification, are made where missing."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model, shape = build_named(net.name, image_size=net.px), (1, 3, net.px, net.px)
    plain = folder / "float.pt2"
    if not plain.is_file():
        save_program(export_float(model, shape), plain)
    programs = {(runtime, precision): plain for runtime in RUNTIMES for precision in PRECISIONS}
    for runtime in RUNTIMES:
        quick = {"observer": "minmax", "rounding": "nearest", "bias_correction": False}
        spec = quant_spec_for(get_target(runtime), "affine").model_copy(update=quick)
        path = folder / f"int8-{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:8]}.pt2"
        if not path.is_file():
            save_program(ptq(model, [torch.randn(shape) for _ in range(CALIBRATION_IMAGES)], spec), path)
        programs[runtime, "int8"] = path
    print(f"{net.label}: programs", file=sys.stderr, flush=True)
    return [
        ExportRequest(target=runtime, precision=precision, program=path, out=folder / f"{runtime}-{precision}")
        for (runtime, precision), path in programs.items()
    ]


def grown_mib(artifact: Artifact) -> list[float]:
    """Of fresh processes, one after the other."""
    found = []
    for _ in range(PROCESSES):
        with Worker(of_artifact(artifact), threads=1) as worker:
            worker.prepared()
            worker.load()
            worker.block(runs=RUNS, lead_in=0, expected_s=60.0)
            found.append(float(worker.finish()["model_rss_mib"]))
    return found


def fitted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Constants and held-out errors of every runtime and precision."""
    return [fit_of(runtime, precision, rows) for runtime in RUNTIMES for precision in PRECISIONS]


def fit_of(runtime: str, precision: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one runtime at one precision: all rows give the constants, the other families the errors."""
    chosen = [row for row in rows if (row["runtime"], row["precision"]) == (runtime, precision)]
    mib = 2.0**20 / BYTES[precision]
    work = np.array([[1.0, r["weight_elements"] / mib, r["peak_activation_elements"] / mib] for r in chosen])
    grown = np.array([float(np.median(row["grown_mib"])) for row in chosen])
    families = np.array([row["family"] for row in chosen])
    predicted = np.empty(len(chosen))
    for family in sorted(set(families)):
        away = families == family
        predicted[away] = work[away] @ constants(work[~away], grown[~away])
    ratios = grown / predicted
    base, per_weight, per_activation = constants(work, grown)
    return {
        "runtime": runtime,
        "precision": precision,
        "n": len(chosen),
        "families": len(set(families)),
        "base_mib": round(float(base), 2),
        "per_weight": round(float(per_weight), 2),
        "per_activation": round(float(per_activation), 2),
        "error_p50": round(float(np.median(np.abs(1 / ratios - 1))), 3),
        "error_max": round(float(np.max(np.abs(1 / ratios - 1))), 3),
        "ratio_p90": round(float(np.quantile(ratios, 0.9)), 3),
        "spread": round(
            float(np.median([np.ptp(row["grown_mib"]) / np.median(row["grown_mib"]) for row in chosen])), 4
        ),
    }


def constants(work: Matrix, grown: Matrix) -> Matrix:
    """Non-negative, with the least sum of absolute relative errors: no network and no odd family bends the rest."""
    count, terms = work.shape
    shares = work / grown[:, None]
    above, below = np.hstack([shares, -np.eye(count)]), np.hstack([-shares, -np.eye(count)])
    prices, bounds = (
        np.concatenate([np.zeros(terms), np.ones(count)]),
        np.concatenate([np.ones(count), -np.ones(count)]),
    )
    return np.asarray(linprog(prices, A_ub=np.vstack([above, below]), b_ub=bounds, bounds=(0, None)).x[:terms])


def table_of(fits: list[dict[str, Any]], document: dict[str, Any]) -> list[str]:
    """The page's lines."""
    host = document["host"]
    versions = ", ".join(f"{TITLES[name]} {host[name]}" for name in RUNTIMES)
    lines = [
        f"{versions}, {host['machine']}, one thread, {PROCESSES} fresh processes of each; errors of families held out.",
        "",
        "| runtime | precision | n (families) | base MiB | per weight byte | per activation byte | error p50 | largest "
        "| measured / predicted, p90 | spread of processes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fit in fits:
        cells = (
            TITLES[fit["runtime"]],
            fit["precision"],
            f"{fit['n']} ({fit['families']})",
            *(f"{fit[key]:.2f}" for key in ("base_mib", "per_weight", "per_activation")),
            f"{fit['error_p50']:.0%}",
            f"{fit['error_max']:.0%}",
            f"{fit['ratio_p90']:.2f}",
            f"{fit['spread']:.1%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
