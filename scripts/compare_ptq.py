"""Post-training quantisation side by side: edgekd's int8 against the one that each runtime's own tool makes.

Run: python scripts/compare_ptq.py --program lite0.pt2 --images imagenet-sample.tar --resize 256 --crop 224 \
         --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502 --calibration-sets 3 --out lite0.json

The same float program, the same calibration images and the same evaluated images for every tool: ai-edge-quantizer
(static_wi8_ai8), ONNX Runtime (`quantize_static`, QDQ, u8 activations, per channel, MinMax) and NNCF (its default).
The calibration sets are disjoint; a set is evaluated on images that are not in it. Per set: top-1 agreement with the
float artifact in the same runtime and, where the images have labels, the accuracy. Tests are paired (exact McNemar, all
sets pooled). Latency: one thread, interleaved, fresh processes. `--trained exports/NAME-001`: the int8 files of an
`edgekd export --qat-epochs E` of the same network are evaluated beside the first set.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.stats import binomtest

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import measure_all
from edgekd.device_benchmarks.contender import of_artifact
from edgekd.export import export_one
from edgekd.export.request import ExportRequest
from edgekd.files import write_json
from edgekd.pipeline.model_export.programs import idle_settings
from edgekd.pipeline.model_export.result import ExportDocument
from edgekd.quant import load_program, ptq, save_program
from edgekd.runtimes import logits, open_model_file, open_session
from edgekd.targets import get_target, quant_spec_for

Array = npt.NDArray[np.float32]
RUNTIMES = ("tflite", "onnxruntime", "openvino")
TRAINED = "edgekd, trained"
TOOLS = {"tflite": "ai-edge-quantizer", "onnxruntime": "ORT quantize_static", "openvino": "NNCF"}


def main() -> int:
    """Read the images once, then quantise, run and compare."""
    options = arguments()
    out: Path = options.out
    work = out.with_suffix("")
    work.mkdir(parents=True, exist_ok=True)
    data = images_of(options)
    floats = {name: edgekd_artifact(options.program, name, "fp32", work / f"float-{name}") for name in RUNTIMES}
    expected = {name: outputs_of(artifact, data.images) for name, artifact in floats.items()}
    trained = trained_artifacts(options.trained) if options.trained else {}
    rows, files, failures = [], {}, dict[str, str]()
    for index, (calibration, evaluated) in enumerate(data.sets):
        for runtime in RUNTIMES:
            made = {"edgekd": by_edgekd(options.program, runtime, calibration, work / f"edgekd-{index}")}
            try:
                made[TOOLS[runtime]] = BY_TOOL[runtime](floats[runtime], calibration, work / f"tool-{index}-{runtime}")
            except Exception as error:  # whatever a tool raises where it cannot quantise this network
                failures[TOOLS[runtime]] = f"{type(error).__name__}: {str(error)[:200]}"
            if index == 0 and runtime in trained:
                made[TRAINED] = trained[runtime]
            for tool, artifact in made.items():
                files.setdefault(f"{runtime}, {tool}", artifact)
                answers = outputs_of(artifact, data.images[evaluated]).argmax(1)
                agrees = answers == expected[runtime][evaluated].argmax(1)
                right = None if data.labels is None else answers == data.labels[evaluated]
                rows.append(row_of(tool, runtime, index, agrees=agrees, right=right, size=artifact.size_bytes))
                print(json.dumps(public(rows[-1])), flush=True)
    document = {
        "command": "python " + " ".join(sys.argv),
        "n_evaluated": [len(evaluated) for _, evaluated in data.sets],
        "n_calibration": [len(calibration) for calibration, _ in data.sets],
        "rows": [public(row) for row in rows],
        "float_accuracy": None
        if data.labels is None
        else {r: float((e.argmax(1) == data.labels).mean()) for r, e in expected.items()},
        "failures": failures,
        "paired": [
            paired(rows, runtime, ours)
            for ours, runtimes in (("edgekd", RUNTIMES), (TRAINED, tuple(trained)))
            for runtime in runtimes
            if TOOLS[runtime] not in failures
        ],
        "latency": latency(floats, files) if options.latency else None,
    }
    write_json(out, document)
    print(json.dumps({k: document[k] for k in ("failures", "paired", "float_accuracy")}, indent=1))
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="float program (.pt2, batch 1)")
    parser.add_argument("--images", type=Path, required=True, help=".tar of images, or an .npz that edgekd reads")
    parser.add_argument("--resize", type=int, default=256, help="shorter side, px (images of a .tar)")
    parser.add_argument("--crop", type=int, default=224, help="centre crop, px")
    parser.add_argument("--mean", default="0.485,0.456,0.406")
    parser.add_argument("--std", default="0.229,0.224,0.225")
    parser.add_argument("--calibration-images", type=int, default=300)
    parser.add_argument("--calibration-sets", type=int, default=1)
    parser.add_argument("--evaluated", type=int, default=2000, help="test images of an .npz")
    parser.add_argument("--trained", type=Path, help="folder of an export whose int8 programs were trained on")
    parser.add_argument("--latency", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


class Images(NamedTuple):
    """Normalised images NCHW, their labels where known, and per calibration set its images and whom to evaluate on."""

    images: Array
    labels: npt.NDArray[np.int64] | None
    sets: list[tuple[Array, npt.NDArray[np.int64]]]


def images_of(options: argparse.Namespace) -> Images:
    """Disjoint calibration sets; the images of a .tar that a set leaves are evaluated, of an .npz its test images."""
    mean, std = (np.float32([float(v) for v in text.split(",")])[:, None, None] for text in (options.mean, options.std))
    n, sets = options.calibration_images, options.calibration_sets
    if options.images.suffix == ".npz":
        from edgekd.data import load_data

        data = load_data(str(options.images), image_size=options.crop)
        train = data.sample("train", n * sets, seed=0)
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
        test = data.sample("test", options.evaluated, seed=0)
        images = normalised(data.test.images(test).numpy(), mean, std)
        parts = [normalised(data.train.images(part).numpy(), mean, std) for part in train.split(n)]
        return Images(images, data.test.labels[test].numpy(), [(part, np.arange(len(images))) for part in parts])
    pixels = np.stack(list(of_tar(options.images, options.resize, options.crop)))
    order = np.random.default_rng(0).permutation(len(pixels))
    images = normalised(pixels, mean, std)
    parts = [order[k * n : (k + 1) * n] for k in range(sets)]
    return Images(images, None, [(images[part], np.setdiff1d(order, part)) for part in parts])


def of_tar(path: Path, resize: int, crop: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Centre crops, uint8 CHW, of the images of a .tar in the order of their names; bicubic, as the net was trained."""
    with tarfile.open(path) as archive:
        for member in sorted((m for m in archive.getmembers() if m.isfile()), key=lambda m: m.name):
            stream = archive.extractfile(member)
            if stream is None or Path(member.name).suffix.lower() not in (".jpg", ".jpeg", ".png"):
                continue
            image = Image.open(io.BytesIO(stream.read())).convert("RGB")
            scale = resize / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
            left, top = (image.width - crop) // 2, (image.height - crop) // 2
            yield np.asarray(image.crop((left, top, left + crop, top + crop))).transpose(2, 0, 1)


def normalised(pixels: npt.NDArray[np.uint8], mean: Array, std: Array) -> Array:
    """uint8 NCHW to the model's input."""
    return ((pixels / np.float32(255) - mean) / std).astype(np.float32)


def edgekd_artifact(program: Path, target: str, precision: Any, out: Path) -> Artifact:
    """A program through edgekd's own exporter."""
    request = ExportRequest(target=target, precision=precision, program=program, out=out)
    return export_one(request, log=out.with_suffix(".log"))


def trained_artifacts(folder: Path) -> dict[str, Artifact]:
    """int8 files of an export by runtime."""
    document = ExportDocument.model_validate_json((folder / "export.json").read_text(encoding="utf-8"))
    files = {row.target: row.artifact for row in document.rows if row.precision == "int8" and row.artifact is not None}
    return {target: file.model_copy(update={"path": folder / file.path}) for target, file in files.items()}


def by_edgekd(program: Path, runtime: str, calibration: Array, folder: Path) -> Artifact:
    """PTQ and export; an int8 program that suits several runtimes is made once."""
    float_program = load_program(program)
    spec = quant_spec_for(get_target(runtime), "affine")
    spec = spec.model_copy(update=idle_settings(float_program))
    path = folder / f"int8-{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:8]}.pt2"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        module = float_program.module(check_guards=False)
        save_program(ptq(module, list(torch.from_numpy(calibration).split(1)), spec), path)
    return edgekd_artifact(path, runtime, "int8", folder / runtime)


def by_ai_edge_quantizer(float_artifact: Artifact, calibration: Array, folder: Path) -> Artifact:
    """ai-edge-quantizer, static int8 weights and activations."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    model = str(float_artifact.path)
    tool = quantizer.Quantizer(model)
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    signature, facts = next(iter(Interpreter(model_path=model).get_signature_list().items()))
    feeds = [{facts["inputs"][0]: np.ascontiguousarray(x[None].transpose(0, 2, 3, 1))} for x in calibration]
    return written(folder, "model.tflite", tool.quantize(tool.calibrate({signature: feeds})).export_model)


def by_onnxruntime(float_artifact: Artifact, calibration: Array, folder: Path) -> Artifact:
    """onnxruntime.quantization.quantize_static after its own preprocessing."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = float_artifact.inputs[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter([{name: x[None]} for x in calibration])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.images, None)

    def write(path: str) -> None:
        prepared = str(Path(path).with_name("prepared.onnx"))
        quant_pre_process(str(float_artifact.path), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )

    return written(folder, "model.onnx", write)


def by_nncf(float_artifact: Artifact, calibration: Array, folder: Path) -> Artifact:
    """nncf.quantize with its defaults and all calibration images."""
    import nncf
    import openvino

    nncf.set_log_level(40)
    model = openvino.Core().read_model(str(float_artifact.path))
    made = nncf.quantize(model, nncf.Dataset([x[None] for x in calibration]), subset_size=len(calibration))
    return written(folder, "model.xml", lambda path: openvino.save_model(made, path))


BY_TOOL = {"tflite": by_ai_edge_quantizer, "onnxruntime": by_onnxruntime, "openvino": by_nncf}


def written(folder: Path, name: str, write: Callable[[str], object]) -> Artifact:
    """What a tool wrote, opened as a user's file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.unlink(missing_ok=True)
    write(str(path))
    return open_model_file(path)


def outputs_of(artifact: Artifact, images: Array) -> Array:
    """Logits of the artifact in its runtime, one thread, float32 compute where it is a float file."""
    session = open_session(artifact, threads=1)
    found = logits(session, images)
    session.close()
    return found


def public(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its image-by-image answers."""
    return {k: v for k, v in row.items() if k not in ("agrees", "right")}


def row_of(tool: str, runtime: str, index: int, **found: Any) -> dict[str, Any]:
    """One tool on one calibration set."""
    agrees, right = found["agrees"], found["right"]
    return {
        "tool": tool,
        "runtime": runtime,
        "calibration_set": index,
        "agreement": float(agrees.mean()),
        "accuracy": None if right is None else float(right.mean()),
        "size_mb": found["size"] / 1e6,
        "agrees": agrees,
        "right": right,
    }


def paired(rows: list[dict[str, Any]], runtime: str, ours_is: str) -> dict[str, Any]:
    """edgekd against the runtime's tool, image by image, all calibration sets that both have pooled."""
    key = "right" if rows[0]["right"] is not None else "agrees"
    of_runtime = [row for row in rows if row["runtime"] == runtime]
    sets = {row["calibration_set"] for row in of_runtime if row["tool"] == ours_is}
    ours, theirs = (
        np.concatenate([row[key] for row in of_runtime if row["tool"] == tool and row["calibration_set"] in sets])
        for tool in (ours_is, TOOLS[runtime])
    )
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    means = {ours_is: float(ours.mean()), TOOLS[runtime]: float(theirs.mean())}
    return {"runtime": runtime, "of": key, **means, "wins": wins, "losses": losses, "p": float(p)}


def latency(floats: dict[str, Artifact], files: dict[str, Artifact]) -> list[dict[str, Any]]:
    """int8 of edgekd against the float file and against the tool's, one thread, interleaved."""
    named = {f"{r}, fp32": a for r, a in floats.items()} | files
    pairs = [(f"{r}, {other}", f"{r}, edgekd") for r in RUNTIMES for other in ("fp32", TOOLS[r])]
    pairs = [(baseline, ours) for baseline, ours in pairs if baseline in named]
    contenders = [of_artifact(artifact, name=name) for name, artifact in named.items()]
    default = of_artifact(floats["openvino"], name="openvino, default", options={"inference_precision": "default"})
    pairs.append(("openvino, default", "openvino, edgekd"))
    measured = measure_all([*contenders, default], mode="quick", threads=1, pairs=pairs)
    for ratio in measured.ratios:
        print(ratio.text, flush=True)
    return [
        {k: getattr(r, k) for k in ("baseline", "contender", "ratio", "lo", "hi", "cpu_ratio", "cpu_lo", "cpu_hi")}
        for r in measured.ratios
    ]


if __name__ == "__main__":
    sys.exit(main())
