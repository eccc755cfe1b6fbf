"""The matrix of docs/export.md: every net at every precision in every runtime, from real runs of `edgekd export`.

Run: python scripts/export_matrix.py run --data cifar10-jpegq75.npz --out matrix zoo/*.safetensors
     python scripts/export_matrix.py measure matrix
     python scripts/export_matrix.py table matrix > table.md
     python scripts/export_matrix.py check matrix/NET ...

`run` calls the command once per net and keeps its export.json (what is there is not run again); `measure` times what an
export with --no-measure left out, as the command would, once the machine is quiet; `table` reads both; `check` checks
the int8 files of exports anew, after the check itself has changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgekd.device_benchmarks import measure_all
from edgekd.export import ExportOutcome
from edgekd.export.check import CheckReport, check_all
from edgekd.files import write_json
from edgekd.pipeline.context import sample_images
from edgekd.pipeline.model_export.checking import sentence
from edgekd.pipeline.model_export.inputs import load_inputs
from edgekd.pipeline.model_export.measuring import BRIEF, THREADS, contenders_of, latency_of, measurable, pairs_of
from edgekd.pipeline.model_export.planning import Planned
from edgekd.pipeline.model_export.result import ExportDocument, ExportRow
from edgekd.pipeline.model_export.work import Candidate

LATENCY = "latency.json"
SAME_DB = 200.0
TITLES = {
    "tflite": "LiteRT",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "coreml": "Core ML",
    "tensorrt": "TensorRT",
}
HEADER = (
    "| net | runtime | fp32 dB | fp16 dB | int8 dB | int8 agreement | int8 MACs | float top-1 | int8 top-1 "
    "| int8 size | int8 speed | fp16 speed |"
)


def main() -> int:
    """`run`, `measure` or `table`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("models", nargs="+", type=Path)
    runner.add_argument("--data", required=True)
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--options", default="", help="further options of `edgekd export`, as one string")
    for name in ("measure", "table"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.add_parser("check").add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    if options.command == "check":
        for folder in options.folders:
            check_anew(folder)
        return 0
    if options.command == "run":
        return max(run(model, options) for model in options.models)
    if options.command == "measure":
        for path in filter(finished, sorted(options.folder.glob("*/export.json"))):
            measure(path.parent)
        return 0
    print("\n".join(lines_of(options.folder)))
    return 0


def run(model: Path, options: argparse.Namespace) -> int:
    """One net; 0 when everything passed, 1 when the document says that something did not."""
    out = options.out / model.stem
    if finished(out / "export.json"):
        return 0
    command = [sys.executable, "-m", "edgekd", "export", str(model), "--data", options.data, "--out", str(out)]
    with (options.out / f"{model.stem}.log").open("w") as log:
        code = subprocess.run([*command, *options.options.split()], stdout=log, stderr=log, check=False).returncode
    print(f"{model.stem}: exit {code}", flush=True)
    return code


def finished(path: Path) -> bool:
    """Whether an export ended and left its whole document."""
    return path.is_file() and "rows" in json.loads(path.read_text(encoding="utf-8"))


def check_anew(folder: Path) -> None:
    """The int8 rows of one export with reports by today's check; the files and their programs are what they were."""
    file = folder / "export.json"
    document = ExportDocument.model_validate_json(file.read_text(encoding="utf-8"))
    settings, inputs = document.settings, load_inputs(document.settings)
    count = max(settings.test_images, settings.check_images)
    images, labels = sample_images(inputs.dataset, count, seed=settings.seed)
    programs = {facts.name: folder / facts.file for facts in document.programs}
    rows = [row for row in document.rows if row.precision == "int8" and row.artifact is not None]
    files = [row.artifact.model_copy(update={"path": folder / row.artifact.path}) for row in rows if row.artifact]
    reports = check_all(
        [(artifact, programs[row.program]) for artifact, row in zip(files, rows, strict=True)],
        images,
        labels,
        inputs.preprocessing,
        log_dir=folder / "logs",
        parity_images=settings.check_images,
        baseline=programs["float"],
    )
    found = dict(zip((row.label for row in rows), reports, strict=True))
    print(*(f"{folder.name} {sentence(report)}" for report in reports), sep="\n", flush=True)
    anew = tuple(with_report(row, found[row.label]) if row.label in found else row for row in document.rows)
    write_json(file, document.model_copy(update={"rows": anew}).model_dump(mode="json"))


def with_report(row: ExportRow, report: CheckReport) -> ExportRow:
    """The row as this report would have made it."""
    state = "exported-and-checked" if report.passed else "check-failed"
    return row.model_copy(update={"check": report, "state": state, "reason": "; ".join(report.failures)})


def measure(folder: Path) -> None:
    """Time an export's artifacts side by side and write `latency.json` beside its document."""
    out = folder / LATENCY
    if out.is_file():
        return
    document = ExportDocument.model_validate_json((folder / "export.json").read_text(encoding="utf-8"))
    candidates = [c for row in document.rows if (c := candidate_of(row, folder)) and measurable(c)]
    measured = measure_all(
        contenders_of(candidates), mode=BRIEF, threads=THREADS, pairs=pairs_of(candidates), keep_going=True
    )
    for ratio in measured.ratios:
        print(f"{folder.name}: {ratio.text}", flush=True)
    write_json(out, {c.label: latency_of(measured, c.label).model_dump(mode="json") for c in candidates})


def candidate_of(row: ExportRow, folder: Path) -> Candidate | None:
    """A row's artifact, ready to be timed; None where there is none."""
    if row.artifact is None:
        return None
    variant = row.label.removeprefix(f"{row.target}-{row.precision}").removeprefix("-")
    artifact = row.artifact.model_copy(update={"path": folder / row.artifact.path})
    outcome = ExportOutcome(target=row.target, precision=row.precision, state="exported", artifact=artifact)
    return Candidate(Planned(target=row.target, precision=row.precision, variant=variant), outcome, row.check)


def lines_of(folder: Path) -> list[str]:
    """The table, a row per net and runtime, and the reasons of what failed or was refused."""
    lines, reasons = [HEADER, "|" + "---|" * 12], []
    for path in filter(finished, sorted(folder.glob("*/export.json"))):
        document = json.loads(path.read_text(encoding="utf-8"))
        timed = path.with_name(LATENCY)
        later = json.loads(timed.read_text(encoding="utf-8")) if timed.is_file() else {}
        for row in document["rows"]:
            row["latency"] = row["latency"] or later.get(row["label"])
        name = path.parent.name
        for target in TITLES:
            rows = {row["precision"]: row for row in document["rows"] if row["target"] == target}
            if rows:
                lines.append(line_of(name, target, rows))
                reasons += [f"- {name}, {TITLES[target]} {p}: {why(row)}" for p, row in rows.items() if why(row)]
    return [*lines, "", *dict.fromkeys(reasons)]


def line_of(name: str, target: str, rows: dict[str, dict[str, Any]]) -> str:
    """One net in one runtime."""
    checks = {precision: row["check"] or {} for precision, row in rows.items()}
    int8, fp32, fp16 = (rows.get(p, {}) for p in ("int8", "fp32", "fp16"))
    cells = [
        name,
        TITLES[target],
        *(decibels(checks.get(p, {}).get("snr_db"), ".0f") for p in ("fp32", "fp16")),
        decibels(checks.get("int8", {}).get("snr_db"), ".1f"),
        number(checks.get("int8", {}).get("top1_agreement"), ".1%"),
        number(checks.get("int8", {}).get("int8_macs_share"), ".1%"),
        number(checks.get("fp32", {}).get("accuracy_top1"), ".2%"),
        number(checks.get("int8", {}).get("accuracy_top1"), ".2%"),
        size_ratio(int8, fp32),
        speed(int8),
        speed(fp16),
    ]
    return "| " + " | ".join(cells) + " |"


def decibels(value: float | None, spec: str) -> str:
    """A parity; the check says 200 dB where every output is the same."""
    return "same" if value is not None and value >= SAME_DB else number(value, spec)


def number(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def size_ratio(row: dict[str, Any], baseline: dict[str, Any]) -> str:
    """Size of the artifact against the fp32 one's."""
    if not row.get("artifact") or not baseline.get("artifact"):
        return "-"
    return f"{row['artifact']['size_bytes'] / baseline['artifact']['size_bytes']:.2f}"


def speed(row: dict[str, Any]) -> str:
    """How many times as fast as fp32 in the same runtime, with its 99% interval."""
    found = [r for r in (row.get("latency") or {}).get("ratios", []) if r["baseline"].endswith("-fp32")]
    return f"{found[0]['ratio']:.2f} [{found[0]['lo']:.2f}, {found[0]['hi']:.2f}]" if found else "-"


def why(row: dict[str, Any]) -> str:
    """Why a row is no pass, or what its pass rests on; "" for one that simply passes."""
    check = row["check"] or {}
    if row["state"] == "exported-and-checked":
        return "; ".join(text for text in check.get("warnings", ()) if "fp16 arithmetic" in text)
    return f"{row['state']}: {row['reason'] or '; '.join(check.get('failures', ()))}"


if __name__ == "__main__":
    sys.exit(main())
