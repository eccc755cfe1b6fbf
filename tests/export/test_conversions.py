"""Real conversions of a small network: each artifact is of the precision it says, and gives its program's numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.artifact import Artifact
from edgekd.errors import ConversionError
from edgekd.export import ExportRequest, export_all
from edgekd.export.describe import content_sha256
from edgekd.export.runner import worker_environment
from edgekd.profile import HardwareProfile, load_profile
from edgekd.quant import export_float, load_program, ptq, save_program
from edgekd.runtimes import logits, open_session
from edgekd.targets import quant_spec_for

SHAPE = (3, 32, 32)
CLASSES = 10
SNR_MIN_DB = {"fp32": 90.0, "fp16": 45.0, "int8": 30.0, "w8": 30.0}
Converted = Callable[[str], dict[str, Artifact]]
Case = tuple[str, str, str, HardwareProfile | None]  # name, precision, program, profile

# One process per target, as under the runner, but with all its cases in it: importing takes most of the time.
CONVERT_ALL = """
import json, sys
from pathlib import Path
from edgekd.export.request import ExportRequest
from edgekd.export.worker import convert
requests = [ExportRequest.model_validate_json(json.dumps(d)) for d in json.loads(Path(sys.argv[1]).read_text())]
for request in requests:
    request.out.mkdir(parents=True)
Path(sys.argv[2]).write_text(json.dumps([convert(request) for request in requests]))
"""


class SmallNet(nn.Module):
    """Inverted residual, plain convolution, pooling, linear: what the student space is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(self.down(x), 1).flatten(1))


COMPUTE_LAYERS = 6


def device(name: str, version: str, capability: str, opset_max: int) -> HardwareProfile:
    """The Jetson Nano's profile with the GPU and TensorRT of another device, int8 legal."""
    nano = load_profile("jetson-nano")
    changed = {"version": version, "compute_capability": capability, "onnx_opset_max": opset_max}
    cpu_runtimes = tuple(r for r in nano.runtimes if r.target != "tensorrt")
    limits = {"onnx_ir_version_max": None, "precisions": ("fp32", "fp16", "int8")}
    gpu_runtime = nano.primary.model_copy(update={**changed, **limits})
    units = tuple(u.model_copy(update={"peak_int8_gops": 20_000.0}) if u.kind == "gpu" else u for u in nano.units)
    return nano.model_copy(update={"name": name, "units": units, "runtimes": (gpu_runtime, *cpu_runtimes)})


NANO = load_profile("jetson-nano")
ORIN = device("orin", "8.5.2", "8.7", 17)
RTX = device("rtx", "1.7", "8.6", 21)
CASES: dict[str, list[Case]] = {
    "null": [("fp32", "fp32", "float", None)],
    "tflite": [
        ("fp16", "fp16", "float", None),
        ("int8", "int8", "affine", None),
        ("w8", "w8", "float", None),
    ],
    "onnxruntime": [
        ("fp32", "fp32", "float", None),
        ("fp16", "fp16", "float", None),
        ("int8", "int8", "affine", None),
        ("int8-nano", "int8", "affine", NANO),
        ("fp16-nano", "fp16", "float", NANO),
    ],
    "openvino": [
        ("fp32", "fp32", "float", None),
        ("fp16", "fp16", "float", None),
        ("int8", "int8", "affine", None),
        ("int8-symmetric", "int8", "symmetric", None),
        ("w8", "w8", "float", None),
    ],
    "coreml": [
        ("fp16", "fp16", "float", None),
        ("int8", "int8", "affine", None),
        ("w8", "w8", "float", None),
    ],
    "tensorrt": [
        ("fp16-nano", "fp16", "float", NANO),
        ("int8-orin", "int8", "symmetric", ORIN),
        ("int8-rtx", "int8", "symmetric", RTX),
        ("fp16-rtx", "fp16", "float", RTX),
    ],
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with float.pt2, affine.pt2 and symmetric.pt2 of one network; random weights, real statistics."""
    torch.manual_seed(0)
    net = SmallNet().train()
    batches = [torch.randn(16, *SHAPE) for _ in range(4)]
    with torch.no_grad():
        for batch in batches * 8:
            net(batch)
    folder = tmp_path_factory.mktemp("programs")
    save_program(export_float(net, SHAPE), folder / "float.pt2")
    save_program(ptq(net.eval(), batches, quant_spec_for("tflite")), folder / "affine.pt2")
    save_program(ptq(net.eval(), batches, quant_spec_for("tensorrt")), folder / "symmetric.pt2")
    return folder


@pytest.fixture(scope="module")
def converted(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Every case of a target as an artifact, converted once."""

    @cache
    def convert(target: str) -> dict[str, Artifact]:
        folder = tmp_path_factory.mktemp(target)
        requests = [
            ExportRequest(
                target=target,
                precision=precision,
                program=programs / f"{program}.pt2",
                out=folder / name,
                profile=profile,
                labels=tuple(f"class {i}" for i in range(CLASSES)),
            )
            for name, precision, program, profile in CASES[target]
        ]
        (folder / "requests.json").write_text(json.dumps([r.model_dump(mode="json") for r in requests]))
        with (folder / "log").open("wb") as log:
            command = [
                sys.executable,
                "-P",
                "-c",
                CONVERT_ALL,
                str(folder / "requests.json"),
                str(folder / "results.json"),
            ]
            status = subprocess.call(
                command, stdout=log, stderr=log, env=worker_environment(os.environ, 1), timeout=400
            )
        assert status == 0, (folder / "log").read_text()[-2000:]
        documents = json.loads((folder / "results.json").read_text())
        names = [case[0] for case in CASES[target]]
        problems = {n: d for n, d in zip(names, documents, strict=True) if "artifact" not in d}
        assert not problems
        return {n: Artifact.model_validate(d["artifact"]) for n, d in zip(names, documents, strict=True)}

    return convert


def program_logits(path: Path, images: Tensor) -> np.ndarray:
    module = load_program(path).module(check_guards=False)
    with torch.no_grad():
        return np.concatenate([module(image[None]).numpy() for image in images])


def signal_to_noise_db(reference: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / max(((reference - found) ** 2).sum(), 1e-30)))


PARITY = [
    pytest.param(target, name, precision, program, id=f"{target}-{name}", marks=pytest.mark.runtime)
    for target, cases in CASES.items()
    for name, precision, program, _ in cases
]


@pytest.mark.parametrize(("target", "name", "precision", "program"), PARITY)
def test_an_artifact_gives_its_programs_logits(converted, programs, target, name, precision, program):
    artifact = converted(target)[name]
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    found = logits(open_session(artifact), images.numpy())
    snr_db = signal_to_noise_db(program_logits(programs / f"{program}.pt2", images), found)
    assert snr_db > SNR_MIN_DB[precision]


@pytest.mark.runtime
@pytest.mark.parametrize("target", list(CASES))
def test_the_record_of_an_artifact_is_true(converted, target):
    for artifact in converted(target).values():
        (image,), (output,) = artifact.inputs, artifact.outputs
        channel_last = (1, *SHAPE[1:], SHAPE[0])
        assert image.shape == (channel_last if image.layout == "NHWC" else (1, *SHAPE))
        assert (output.shape, output.layout) == ((1, CLASSES), "NC")
        assert artifact.sha256 == content_sha256(artifact.path)
        for tensor in (image, output):
            assert (tensor.scale is not None) == (tensor.zero_point is not None) == (tensor.dtype in ("int8", "uint8"))


@pytest.mark.runtime
def test_litert_int8_has_int8_input_and_output_and_no_transpose(converted):
    from ai_edge_litert.interpreter import Interpreter

    artifact = converted("tflite")["int8"]
    assert (artifact.inputs[0].dtype, artifact.outputs[0].dtype) == ("int8", "int8")
    interpreter = Interpreter(model_path=str(artifact.path))
    assert artifact.inputs[0].scale == pytest.approx(interpreter.get_input_details()[0]["quantization"][0])
    operators = Counter(operator["op_name"] for operator in interpreter._get_ops_details())
    assert operators["TRANSPOSE"] == 0
    assert operators["CONV_2D"] + operators["DEPTHWISE_CONV_2D"] + operators["FULLY_CONNECTED"] == COMPUTE_LAYERS
    assert {np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()} <= {"int8", "int32"}


@pytest.mark.runtime
def test_litert_fp16_stores_weights_in_half_the_bytes(converted):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(converted("tflite")["fp16"].path))
    large = [t for t in interpreter.get_tensor_details() if np.prod(t["shape"]) >= 24 * 16 * 9 and len(t["shape"]) == 4]
    assert any(t["dtype"] == np.float16 for t in large)


@pytest.mark.runtime
def test_onnx_is_at_the_opset_and_ir_version_the_profile_allows(converted):
    import onnx

    def versions(target: str, name: str) -> tuple[int, int]:
        path = converted(target)[name].path
        model = onnx.load(path / "model.onnx" if path.is_dir() else path)
        assert len(model.opset_import) == 1
        return model.opset_import[0].version, model.ir_version

    assert versions("onnxruntime", "fp32") == (18, 8)
    assert versions("onnxruntime", "int8-nano") == (13, 7)
    assert versions("tensorrt", "fp16-nano") == (13, 7)
    assert versions("tensorrt", "int8-orin") == (17, 8)


@pytest.mark.runtime
def test_onnxruntime_runs_every_convolution_of_the_int8_file_in_int8(converted, tmp_path):
    import onnx
    import onnxruntime

    for name in ("int8", "int8-nano"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        onnxruntime.InferenceSession(
            str(converted("onnxruntime")[name].path), options, providers=["CPUExecutionProvider"]
        )
        kinds = Counter(node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node)
        assert (kinds["QLinearConv"], kinds["Conv"]) == (COMPUTE_LAYERS - 1, 0), name


@pytest.mark.runtime
def test_onnx_fp16_keeps_float32_input_and_half_weights(converted):
    import onnx

    model = onnx.load(converted("onnxruntime")["fp16"].path)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    weights = [t for t in model.graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}


@pytest.mark.runtime
def test_openvino_int8_holds_one_byte_per_weight(converted):
    artifacts = converted("openvino")
    float_bytes, int8_bytes = (artifacts[n].path.with_suffix(".bin").stat().st_size for n in ("fp32", "int8"))
    assert int8_bytes < 0.5 * float_bytes  # 0.25 for the weights; biases and scales stay float
    assert artifacts["int8"].size_bytes > int8_bytes, "the .xml counts too"


@pytest.mark.runtime
def test_coreml_carries_labels_and_author_and_is_an_ml_program(converted):
    from coremltools.models.utils import load_spec

    spec = load_spec(str(converted("coreml")["int8"].path))
    assert spec.WhichOneof("Type") == "mlProgram"
    assert spec.description.metadata.author == "edgekd"
    assert spec.description.metadata.userDefined["edgekd.labels"].splitlines()[:2] == ["class 0", "class 1"]
    assert (spec.description.input[0].name, spec.description.output[0].name) == ("image", "logits")


@pytest.mark.runtime
def test_a_jetson_gets_a_kit_that_builds_on_the_device_and_never_an_engine(converted):
    kit = converted("tensorrt")["fp16-nano"].path
    assert sorted(p.name for p in kit.iterdir()) == ["bench.sh", "build.sh", "model.onnx", "op_report.json"]
    script = (kit / "build.sh").read_text()
    assert all(option in script for option in ("--fp16", "--workspace=991", "--buildOnly"))
    assert "--memPoolSize" not in script, "TensorRT 8.2 does not know it"
    assert subprocess.run(["sh", "-n", str(kit / "build.sh")], check=False).returncode == 0
    assert "accepts every operator" in json.loads((kit / "op_report.json").read_text())["summary"]


@pytest.mark.runtime
def test_the_kits_scripts_run_trtexec_in_their_own_folder(converted, tmp_path):
    trtexec = tmp_path / "trtexec"
    trtexec.write_text('#!/bin/sh\npwd\nfor a in "$@"; do echo "$a"; done\n')
    trtexec.chmod(0o755)
    kit = converted("tensorrt")["int8-orin"].path
    environment = {**os.environ, "TRTEXEC": str(trtexec)}
    said = subprocess.run(
        [kit / "build.sh"], cwd="/", env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines()[0] == str(kit)
    assert {"--int8", "--fp16", "--memPoolSize=workspace:991", "--buildOnly"} <= set(said.splitlines())
    assert "--best" not in said


@pytest.mark.runtime
def test_the_rtx_builder_itself_says_that_every_layer_with_weights_reads_int8(converted):
    pytest.importorskip("tensorrt_rtx_bindings")
    artifact = converted("tensorrt")["int8-rtx"]
    assert artifact.path.name == "model.engine"
    evidence = json.loads((artifact.path.parent / "evidence.json").read_text())
    with_weights = [layer for layer in evidence["layers"] if layer["kind"] in ("correlation", "gemm", "conv")]
    assert len(with_weights) == COMPUTE_LAYERS
    assert {layer["input_datatype"] for layer in with_weights} == {"Int8"}
    halves = json.loads((converted("tensorrt")["fp16-rtx"].path.parent / "evidence.json").read_text())
    assert halves["int8_layers"] == 0
    assert any(layer["input_datatype"] == "Half" for layer in halves["layers"])


@pytest.mark.runtime
def test_what_a_target_cannot_run_is_refused_while_the_others_are_exported(programs, tmp_path):
    def request(target: str, precision: str, program: str, profile: HardwareProfile | None = None) -> ExportRequest:
        out = tmp_path / f"{target}-{program}"
        path = programs / f"{program}.pt2"
        return ExportRequest(target=target, precision=precision, program=path, out=out, profile=profile)

    requests = [
        request("tensorrt", "int8", "affine", ORIN),
        request("null", "fp32", "float"),
        request("null", "int8", "float"),
    ]
    refused, exported, failed = export_all(requests, tmp_path / "logs", jobs=2)
    assert (refused.state, exported.state, failed.state) == ("refused", "exported", "failed")
    assert "symmetric activations, not affine" in refused.reason
    assert "float.pt2: a float program cannot become int8" in failed.reason
    assert exported.artifact is not None
    assert exported.artifact.path.is_file()


def test_an_exporter_that_changes_the_opset_is_caught():
    from onnx import TensorProto, helper

    from edgekd.export.onnx_file import finished, require_ir

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("unused.domain", 1)]
    )
    assert finished(model, 18).ir_version == 8
    with pytest.raises(ConversionError, match="wrote opset 18 where 13 was asked for"):
        finished(model, 13)
    with pytest.raises(ConversionError, match="ONNX IR version 8, the device reads at most 7"):
        require_ir(model, 7)


def test_a_crash_of_the_vendors_parser_becomes_text(tmp_path):
    from edgekd.export.tensorrt_probe import report

    crash = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    findings = report(tmp_path / "any.onnx", command=crash)
    assert findings["supported"] is None
    assert "TensorRT-RTX's parser crashed with SIGSEGV" in findings["summary"]


def test_a_profile_whose_trtexec_is_new_gets_the_new_options(tmp_path):
    from edgekd.export.tensorrt_kit import build_options

    request = ExportRequest(target="tensorrt", precision="int8", program=tmp_path, out=tmp_path)
    options = build_options(request, (10, 3))
    assert {"--memPoolSize=workspace:1024", "--skipInference"} <= set(options)
    assert not {"--int8", "--fp16"} & set(build_options(request, (11, 0))), "TensorRT 11 is strongly typed only"
