"""The texts of a bundle: README, model card, licences, Core ML usage. Markdown, made from the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekd.report.document import RunReport
from edgekd.report.headline import deployed_accuracy, figures, on_device, size_text, speed_counts, verdict
from edgekd.report.page import flat
from edgekd.report.rows import ArtifactRow

LICENSES = """# Licences
- `run.py` and the build scripts are part of edgekd (Apache-2.0) and may be used and changed under its terms.
- The weights were learned from the data set and the teacher named in MODEL_CARD.md: their licences decide what the
  model may be used for. edgekd adds no restriction and gives no warranty.
- The runtimes (LiteRT, ONNX Runtime, OpenVINO, Core ML, TensorRT) are not in this bundle; each has its own licence.
"""


def plain(text: object) -> str:
    """Text for one Markdown table cell or line: no line breaks, and nothing that Markdown or HTML would act on.

    >>> plain("a|b <script> [x](y)\\nc")
    'a\\\\|b &lt;script&gt; \\\\[x\\\\](y) c'
    """
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_[]|":
        flat = flat.replace(character, f"\\{character}")
    return flat


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; cells are escaped."""
    lines = [head, ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def readme(report: RunReport, shipped: Sequence[ArtifactRow]) -> str:
    """What this is and the commands that use it."""
    jetson = [row for row in shipped if row.target == "tensorrt" and not str(row.path).endswith((".engine", ".plan"))]
    rows = [
        (row.name, row.path, size_text(row.size_bytes or 0), _where_checked(row), "yes" if row.primary else "")
        for row in shipped
    ]
    parts = [
        f"# {plain(report.title)}\n",
        f"For {plain(report.profile.title)}, made by edgekd on {plain(report.created)}. {verdict(report)[1]}.\n",
        _subset(report),
        "## Three commands\n"
        "```sh\n"
        "edgekd verify bundle.zip      # whole, unchanged, and still computing what it should (before unpacking)\n"
        "python3 run.py                # on the device: parity, then p50 and p90 of one inference\n"
        f"{_third_command(jetson)}\n"
        "```\n"
        "`run.py` needs numpy and the artifact's runtime; `--help` lists its options, `--image FILE` classifies.\n",
        *(_jetson(row) for row in jetson),
        "## Artifacts\n" + table(("artifact", "file", "size", "checked in", "for the budgets"), rows),
        "Input: one image, RGB or grey as `preprocessing.json` says, `(pixel / 255 - mean) / std`, batch 1.\n"
        "Output: logits in the order of `labels.txt`.\n"
        "`parity/` holds images, normalised inputs and golden logits as .npy and raw .bin.\n",
        "`manifest.json` has the sha256 of every file and every figure, each marked measured or predicted;\n"
        "MODEL_CARD.md says where the model comes from and what was never run.\n",
    ]
    return "\n".join(part for part in parts if part)


def _third_command(jetson: Sequence[ArtifactRow]) -> str:
    if jetson:
        return f"cd artifacts/{jetson[0].name} && sh build.sh && sh bench.sh    # on the Jetson: engine, then latency"
    return "python3 run.py --json > measured.json    # the same as data"


def _jetson(row: ArtifactRow) -> str:
    return (
        f"On a Jetson, `artifacts/{row.name}/build.sh` builds the engine with the device's own trtexec (an engine\n"
        "fits only the GPU and TensorRT that built it, so none is shipped), and `bench.sh` times it.\n"
    )


def _where_checked(row: ArtifactRow) -> str:
    if row.check is None:
        return "nowhere"
    if row.check.executed:
        return row.check.executed_in or row.target
    return f"{row.check.executed_in} (not the runtime itself)" if row.check.executed_in else "nowhere"


def _subset(report: RunReport) -> str:
    return f"**{plain(report.data.note)}**\n" if report.data.note else ""


def model_card(report: RunReport) -> str:
    """Data, teacher, recipe, figures, limits."""
    data, student = report.data, report.student
    parts = [
        f"# Model card: {plain(report.title)}\n",
        _subset(report),
        "## Model\n"
        f"- Student: {plain(student.space)}, {plain(student.summary)}; {student.macs:,} multiply-adds, "
        f"{student.parameters:,} parameters.\n"
        f"- Made for: {plain(report.profile.title)}, {plain(report.profile.runtime)}, {report.profile.precision} "
        f"({plain(report.profile.precision_why)}).\n"
        f"- Weights sha256: `{student.weights_sha256 or 'not recorded'}`\n",
        "## Data and teacher\n"
        f"- Data: {plain(data.name)}, {data.n_train:,} training, {data.n_val:,} validation, {data.n_test:,} test "
        f"images, {len(data.classes)} classes. Fingerprint `{plain(data.fingerprint)}`.\n"
        f"- Teacher: {plain(report.teacher.name)}{_teacher_size(report)}. "
        f"Fingerprint `{plain(report.teacher.fingerprint)}`.\n",
        "## Recipe\n" + "".join(_recipe(report)),
        "## Figures\n" + table(("figure", "value", "detail", "kind"), _figures(report)),
        "### Accuracy\n"
        + table(("model", "executed in", "precision", "top-1", "95% interval", "n", "split"), _accuracies(report)),
        "### Latency\n"
        + table(("model", "runtime", "device", "p50 ms", "p90 ms", "n", "kind", "verdict"), _latencies(report)),
        "### Gates\n"
        + table(("gate", "state", "found", "asked"), [(g.name, g.state, g.figure, g.threshold) for g in report.gates]),
        "## Limits\n" + "".join(f"- {limit}\n" for limit in _limits(report)),
    ]
    return "\n".join(part for part in parts if part)


def _teacher_size(report: RunReport) -> str:
    teacher = report.teacher
    return f", {teacher.parameters:,} parameters" if teacher.parameters is not None else ""


def _recipe(report: RunReport) -> Iterator[str]:
    yield f"- Command: `{' '.join(report.command.split()).replace('`', '')}`, seed {report.seed}.\n"
    for training in report.trainings:
        steps = f", {training.steps:,} steps" if training.steps else ""
        yield f"- {training.name}: {len(training.epochs)} epochs{steps}.\n"
    for key, value in report.recipe.items():
        yield f"- {plain(key)}: {plain(flat(value))}\n"
    yield f"- Preprocessing: {plain(flat(report.preprocessing))}\n"


def _figures(report: RunReport) -> list[tuple[str, ...]]:
    return [(figure.label, figure.value, figure.detail, figure.kind) for figure in figures(report)]


def _accuracies(report: RunReport) -> list[tuple[str, ...]]:
    return [
        (a.name, a.runtime, a.precision, f"{a.top1:.2%}", f"{a.lo:.2%} to {a.hi:.2%}", f"{a.n:,}", a.split)
        for a in report.accuracies
    ]


def _latencies(report: RunReport) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (m.name, m.runtime, m.device, f"{m.p50_ms:.3g}", _number(m.p90_ms), f"{m.n:,}", m.kind, m.verdict)
        for m in report.measurements
    ]
    found = {row.quantity: row for row in report.predicted if row.what == "student"}
    if p50 := found.get("latency_p50_ms"):
        p90 = found.get("latency_p90_ms")
        device, runtime = report.profile.title, report.profile.runtime
        interval = f"interval {p50.lo:.3g} to {p50.hi:.3g}"
        rows.append(
            (
                "student",
                runtime,
                device,
                f"{p50.value:.3g}",
                _number(p90.value if p90 else None),
                "none",
                p50.kind,
                interval,
            )
        )
    return rows


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _limits(report: RunReport) -> Iterator[str]:
    """What nobody should conclude from this bundle."""
    if report.data.is_subset:
        yield "Trained and tested on a subset: the accuracies are smoke numbers and say nothing of the full data set."
    for row in report.artifacts:
        if row.state == "not-exported":
            yield f"{row.name} was not exported: {plain(row.reason)}"
        elif row.state == "exported-check-failed":
            yield f"{row.name} failed its check and is not in this bundle: {plain(row.reason)}"
        elif row.check is None or not row.check.executed:
            figures_from = (
                f"; its figures come from {row.check.executed_in}" if row.check and row.check.executed_in else ""
            )
            yield f"{row.name} never ran in its own runtime or on its hardware{plain(figures_from)}."
    if on_device(report) is None:
        yield _never_there(report)
    for ratio in report.ratios:
        if ratio.ratio is not None and not speed_counts(report, ratio):
            yield f"The speedup of {ratio.artifact} is withheld, because its check did not pass."
    if deployed_accuracy(report) is None:
        yield "No test accuracy was measured."
    yield "Tested on one data set's own test split; other distributions, corruptions and calibration were not tested."
    yield from (plain(warning) for warning in report.warnings)


def _never_there(report: RunReport) -> str:
    """The teacher's row is no figure of what is in the bundle."""
    device = plain(report.profile.title)
    if any(row.on_profile_device for row in report.measurements):
        return (
            f"The student never ran on {device}, though others did: every figure of the student there is a prediction."
        )
    return f"Nothing ran on {device}: every figure for it is a prediction."


def coreml(report: RunReport, row: ArtifactRow) -> str:
    """How an app uses the .mlpackage, and what was never run."""
    name = str(row.path).rsplit("/", 1)[-1].removesuffix(".mlpackage")
    entry, result = (row.inputs[0].name if row.inputs else "image"), (row.outputs[0].name if row.outputs else "logits")
    shape = ", ".join(str(size) for size in (row.inputs[0].shape if row.inputs else ()))
    return f"""# Using `{row.path}`
Drag the package into Xcode; it generates a class with the file's name. The input is a Float32 MLMultiArray of shape
[{shape}], already normalised as `preprocessing.json` says.

```swift
import CoreML

let configuration = MLModelConfiguration()
configuration.computeUnits = .all
let url = Bundle.main.url(forResource: "{name}", withExtension: "mlmodelc")!
let model = try MLModel(contentsOf: url, configuration: configuration)

let pixels = try MLMultiArray(shape: [{shape}], dataType: .float32)  // fill with (pixel / 255 - mean) / std
let input = try MLDictionaryFeatureProvider(dictionary: ["{entry}": MLFeatureValue(multiArray: pixels)])
let logits = try model.prediction(from: input).featureValue(for: "{result}")!.multiArrayValue!
let best = (0..<logits.count).max {{ logits[$0].floatValue < logits[$1].floatValue }}!   // line of labels.txt
```

Check on the phone: `parity/inputs.bin` (Float32) must give the logits of `parity/golden-*.bin` within {_bar(row)}.
Checked in: {plain(_where_checked(row))}. What was timed, and where, is in MODEL_CARD.md.
"""


def _bar(row: ArtifactRow) -> str:
    return f"{row.check.min_snr_db:g} dB SNR" if row.check and row.check.min_snr_db is not None else "30 dB SNR"
