"""`edgekd export MODEL`: bad input is one clear line, and what comes out is one document that says what was proven."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.cli import run
from edgekd.data.dataset import Dataset
from edgekd.pipeline.model_export import ExportDocument

CLASSES = 10


class Net(nn.Module):
    """Two convolutions and a linear layer; no batch norm unless asked."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.body = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.stem(image)).relu()
        return self.head(self.body(x).relu().mean((2, 3)))


class TwoInputs(Net):
    def forward(self, image: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image + other)


class TiedWeights(Net):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__(norm=False)
        self.tied = nn.Conv2d(8, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        x = self.tied(self.tied(x).relu()).relu()
        return self.head(self.body(x).relu().mean((2, 3)))


class Branches(Net):
    """A branch that depends on the data, in the one form that torch.export takes."""

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        return torch.cond(logits.sum() > 0, lambda x: x + 1, lambda x: x * 2, (logits,))


class OddOperator(Net):
    """An operator that no converter knows."""

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        return torch.linalg.eigvalsh(logits.T @ logits).real[None] + logits


def trained(net: nn.Module, data: Dataset, steps: int = 60) -> nn.Module:
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    images, labels = data.preprocessing.normalise(data.train.images(range(600))), data.train.labels
    for step in range(steps):
        rows = torch.arange(step * 64, step * 64 + 64) % 600
        nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return net.eval()


def save(net: nn.Module, path: Path, *inputs: Tensor, free_batch: bool = False, **options: object) -> Path:
    example = inputs or (torch.zeros(2 if free_batch else 1, 1, 28, 28),)
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if free_batch else options
    with torch.no_grad():
        torch.export.save(torch.export.export(net.eval(), example, **shapes), path)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def folder(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.npz, few.npz (120 training images) and net.pt2."""
    folder = tmp_path_factory.mktemp("models")
    train, test = tiny_dataset.train, tiny_dataset.test
    x, xt = (split.images(range(len(split)))[:, 0].numpy() for split in (train, test))
    y, yt = train.labels.numpy(), test.labels.numpy()
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=xt, y_test=yt)
    np.savez(folder / "few.npz", x_train=x[:120], y_train=y[:120], x_test=xt, y_test=yt)
    np.savez(folder / "none.npz", x_train=x[:0], y_train=y[:0], x_test=xt, y_test=yt)
    torch.manual_seed(0)  # what ran earlier in this process must not decide how well the net learns
    save(trained(Net(), tiny_dataset), folder / "net.pt2", free_batch=True)
    return folder


@pytest.fixture
def export(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process; (exit code, stdout, stderr)."""
    monkeypatch.setenv("EDGEKD_CACHE", str(folder / "cache"))
    monkeypatch.chdir(tmp_path)

    def command(model: str, *options: str) -> tuple[int, str, str]:
        data = [] if "--data" in options else ["--data", str(folder / "data.npz")]
        code = run(["export", str(folder / model), *data, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def error_of(result: tuple[int, str, str]) -> str:
    """The last line, which is the error; bad input leaves nothing behind and no traceback."""
    _, out, err = result
    assert out == ""
    assert "Traceback" not in err
    assert not Path("exports").exists(), "bad input must leave nothing behind"
    return err.strip().splitlines()[-1].removeprefix("error: ")


NULL = ("--target", "null", "--no-measure")


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportDocument, str]:
    """The net in fp32 and int8 for the null target, through the Python API behind the command."""
    from edgekd.pipeline.model_export import ModelExportSettings, export_model

    out = tmp_path_factory.mktemp("out") / "net"
    settings = ModelExportSettings(
        model=str(folder / "net.pt2"),
        data=str(folder / "data.npz"),
        targets=("null",),
        precisions=("fp32", "int8"),
        measure=False,
        cache=False,
        test_images=128,
        check_images=64,
    )
    result = export_model(settings, out=out)
    return out, result.document, (out / "export.json").read_text()


def test_the_document_on_disk_is_the_one_returned_and_is_typed(exported: tuple[Path, ExportDocument, str]) -> None:
    _, document, text = exported
    assert ExportDocument.model_validate_json(text) == document
    assert not document.failed
    assert [row.label for row in document.rows] == ["null-fp32", "null-int8"]
    assert {row.state for row in document.rows} == {"exported-and-checked"}


def test_every_artifact_is_where_its_row_says(exported: tuple[Path, ExportDocument, str]) -> None:
    out, document, _ = exported
    for row in document.rows:
        assert row.artifact is not None
        assert (out / row.artifact.path).is_file()
    assert all((out / facts.file).is_file() for facts in document.programs)


def test_accuracy_is_compared_image_by_image_with_the_float_model(exported: tuple[Path, ExportDocument, str]) -> None:
    _, document, _ = exported
    check = document.rows[1].check
    assert check is not None
    assert check.paired is not None
    assert check.paired.n == check.n_accuracy_images == 128
    assert check.paired.baseline_top1 > 0.8
    assert check.accuracy_top1 == pytest.approx(check.paired.baseline_top1 - check.paired.loss_points / 100)
    assert check.int8_macs_share == 1.0


def test_calibration_is_a_sample_of_the_training_split_hashed_into_every_int8_row(
    exported: tuple[Path, ExportDocument, str],
) -> None:
    out, document, _ = exported
    kept = json.loads((out / "programs" / "calibration.json").read_text())
    assert kept["split"] == "train"
    assert len(set(kept["indices"])) == kept["n"] == 512
    assert document.rows[0].calibration_sha256 == ""
    assert document.rows[1].calibration_sha256 == kept["sha256"]


def test_json_is_the_only_thing_on_stdout_and_a_second_export_comes_from_the_cache(export) -> None:
    options = (*NULL, "--precision", "fp32", "--test-images", "64", "--check-images", "32", "--json")
    documents = []
    for name in ("one", "two"):
        code, out, err = export("net.pt2", *options, "--out", name)
        assert code == 0, err
        documents.append(ExportDocument.model_validate_json(out))
    assert [d.rows[0].cached for d in documents] == [False, True]


def test_an_export_of_which_everything_is_refused_ends_with_1(export) -> None:
    options = ("--target", "tensorrt", "--precision", "w8", "--no-measure", "--test-images", "64", "--json")
    code, out, err = export("net.pt2", *options)
    assert code == 1, err
    assert "TensorRT takes fp32, fp16, int8, not w8" in ExportDocument.model_validate_json(out).rows[0].reason


def test_a_table_fits_100_columns(exported: tuple[Path, ExportDocument, str]) -> None:
    from rich.console import Console

    from edgekd.commands.export_table import table_of

    row = exported[1].rows[1].model_copy(update={"label": "onnxruntime-int8-mixed"})
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table_of(exported[1].model_copy(update={"rows": (row,)})))
    lines = capture.get().splitlines()
    assert any("onnxruntime-int8-mixed" in line and "checked" in line for line in lines), "no cell is folded"


def test_ctrl_c_is_one_line_and_leaves_no_artifact_half_written(folder: Path, tmp_path: Path) -> None:
    options = ["--data", str(folder / "data.npz"), *NULL, "--no-cache", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "edgekd", "export", str(folder / "net.pt2"), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[3/6]"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in rest
    assert not list((tmp_path / "out").rglob("model.pt2"))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith(".tmp")]


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--mean", "127", "--std", "64"),
            "--mean 127 is in pixel units; edgekd's are parts of 255; did you mean --mean 0.498",
        ),
        (("--std", "64"), "did you mean --std 0.251?"),
        (("--mean", "0.1,0.2,0.3"), "--mean has 3 values for 1 channels"),
        (("--mean", "grey"), "--mean: 'grey' is not numbers"),
        (("--precision", "int4"), "--precision: no precision 'int4'; did you mean 'int8'?"),
        (("--precision", ","), "--precision: no precision given"),
        (("--target", "tflit"), "no target 'tflit'; did you mean 'tflite'"),
        (("--profile", "jetson-nanno"), "did you mean 'jetson-nano'"),
        (("--observer", "max"), "--observer: 'max'"),
        (("--io", "int4"), "--io: 'int4'"),
        (("--image-size", "32"), "net.pt2: is fixed to 28 px, not 32"),
        (("--weights", "w.safetensors"), "a .pt2 program brings its own weights"),
        (("--calibration-images", "5000"), "int8 needs 5000 calibration images, the training split has"),
        (("--float-layers", "hed"), "--float-layers: no layer 'hed' in this model; did you mean 'head'?"),
        (("--bundle",), "--bundle: it is for a run directory"),
    ],
)
def test_an_option_that_cannot_be_is_one_line_with_the_cure(export, options: tuple[str, ...], said: str) -> None:
    result = export("net.pt2", *options, *([] if "--target" in options else NULL))
    assert said in error_of(result)
    assert result[0] == 2


def test_too_few_training_images_say_how_many_are_needed_and_there(export, folder: Path) -> None:
    said = error_of(export("net.pt2", *NULL, "--data", str(folder / "few.npz")))
    assert "int8 needs 300 calibration images, the training split has 108" in said
    assert said.endswith("add training images, or pass --calibration-images 108")


def test_data_without_training_images_are_refused(export, folder: Path) -> None:
    assert "none.npz: only 0 class" in error_of(export("net.pt2", *NULL, "--data", str(folder / "none.npz")))


def test_a_folder_that_is_not_an_exports_is_left_alone(export, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    assert "mine: holds other files than an export's" in error_of(export("net.pt2", *NULL, "--out", str(mine)))
    (mine / "export.json").write_text(json.dumps({"artifacts": []}))  # a run directory has one too
    assert "holds other files" in error_of(export("net.pt2", *NULL, "--out", str(mine)))
    assert (mine / "thesis.txt").read_text() == "years"


def test_two_inputs_are_refused_by_name(export, folder: Path) -> None:
    image = torch.zeros(1, 1, 28, 28)
    save(TwoInputs(), folder / "two.pt2", image, image)
    assert "the program has 2 inputs (image, other)" in error_of(export("two.pt2", *NULL))


def test_free_image_sizes_are_refused(export, folder: Path) -> None:
    sizes = {2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    save(Net(), folder / "free.pt2", torch.zeros(1, 1, 28, 28), dynamic_shapes=(sizes,))
    assert "has free sizes" in error_of(export("free.pt2", *NULL))


def test_nan_weights_are_refused_by_name(export, folder: Path) -> None:
    net = Net()
    nn.init.constant_(net.body.weight, float("nan"))
    save(net, folder / "nan.pt2")
    said = error_of(export("nan.pt2", *NULL))
    assert "body.weight' holds NaN or infinity" in said


def test_another_number_of_channels_is_refused(export, folder: Path) -> None:
    net = Net()
    net.stem = nn.Conv2d(3, 8, 3)
    save(net, folder / "rgb.pt2", torch.zeros(1, 3, 28, 28))
    assert "takes 3 channels, the data 'data' have 1" in error_of(export("rgb.pt2", *NULL))


def test_an_exported_file_is_not_exported_again(export, folder: Path, exported) -> None:
    program = exported[0] / "programs" / "int8-affine.pt2"
    assert "is an int8 program already" in error_of(export(str(program), *NULL))


def test_a_run_directory_takes_no_options_of_a_models(export, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    said = error_of(export(str(tmp_path / "run"), "--precision", "int8"))
    assert said.startswith("--data: a run directory brings its own")


@pytest.mark.parametrize("net", [Net(norm=False), TiedWeights()], ids=["no batch norm", "shared weights"])
def test_odd_but_sound_nets_come_out_right(net: nn.Module, export, folder: Path, tiny_dataset: Dataset) -> None:
    save(trained(net, tiny_dataset), folder / "odd.pt2", free_batch=True)
    code, out, err = export("odd.pt2", *NULL, "--precision", "int8", "--test-images", "64", "--json")
    assert code == 0, err
    check = ExportDocument.model_validate_json(out).rows[0].check
    assert check is not None
    assert check.passed
    assert check.int8_macs_share == 1.0


def test_an_input_range_far_from_a_nets_is_warned_of(export) -> None:
    options = ("--mean", "0", "--std", "0.00392", "--precision", "fp32", "--test-images", "64", "--json")
    _, out, _ = export("net.pt2", *NULL, *options)
    notes = ExportDocument.model_validate_json(out).notes
    assert any(note.startswith("WRONG INPUT RANGE?") for note in notes)


# --- a bar that is missed ---


def with_an_outlier(net: nn.Module, factor: float = 300.0) -> nn.Module:
    """The same function with one channel of the stem's output `factor` times as large: its neighbours fall below the
    step of the one int8 grid that they share with it."""
    with torch.no_grad():
        net.stem.weight[0] *= factor
        net.stem.bias[0] *= factor
        net.body.weight[:, 0] /= factor
    return net


@pytest.fixture(scope="module")
def hard(folder: Path, tiny_dataset: Dataset) -> Path:
    torch.manual_seed(0)
    return save(with_an_outlier(trained(Net(norm=False), tiny_dataset, 120)), folder / "hard.pt2", free_batch=True)


def test_layers_that_hurt_are_named_and_fix_keeps_them_in_float(hard: Path, export, tmp_path: Path) -> None:
    options = (*NULL, "--precision", "int8", "--observer", "minmax", "--json", "--out", "fixed")
    code, out, err = export("hard.pt2", *options, "--fix")
    assert code == 0, err
    document = ExportDocument.model_validate_json(out)
    (diagnosis,) = document.diagnoses
    assert diagnosis.kind == "quantisation"
    assert diagnosis.applied
    assert set(diagnosis.proposed) & {"stem", "body"}, diagnosis
    before, after = document.rows
    assert (before.label, after.label) == ("null-int8", "null-int8-mixed"), "both are shown"
    assert after.float_layers == diagnosis.proposed
    assert before.check is not None
    assert after.check is not None
    assert before.check.paired is not None
    assert after.check.paired is not None
    assert before.check.paired.loss_points > 1 >= after.check.paired.loss_points
    assert (tmp_path / "fixed" / "artifacts" / "null-int8-mixed" / "model.pt2").is_file()


def test_without_fix_the_proposal_is_tried_and_leaves_nothing_behind(hard: Path, export, tmp_path: Path) -> None:
    options = (*NULL, "--precision", "int8", "--observer", "minmax", "--json", "--out", "told")
    _, out, _ = export("hard.pt2", *options)
    document = ExportDocument.model_validate_json(out)
    (diagnosis,) = document.diagnoses
    assert not diagnosis.applied
    assert diagnosis.trials[0].loss_points is not None
    assert any(text.startswith("keep in float: --float-layers ") for text in diagnosis.text)
    assert [path.name for path in (tmp_path / "told" / "artifacts").iterdir()] == ["null-int8"]
    assert sorted(p.stem for p in (tmp_path / "told" / "programs").glob("*.pt2")) == ["float", "int8-affine"]


@pytest.mark.runtime
def test_an_operator_that_a_converter_does_not_know_is_a_row_with_its_name(
    export, folder: Path, tiny_dataset: Dataset
) -> None:
    save(trained(OddOperator(), tiny_dataset, steps=1), folder / "odd_operator.pt2")
    options = ("--target", "onnxruntime", "--precision", "fp32", "--no-measure", "--json")
    code, out, err = export("odd_operator.pt2", *options)
    assert code == 1, err
    (row,) = ExportDocument.model_validate_json(out).rows
    assert (row.state, row.refused) == ("not-exported", False)
    assert "eigvalsh" in row.reason or "linalg" in row.reason
    assert row.log in row.reason


@pytest.mark.runtime
def test_a_branch_on_the_data_is_exported_right_or_not_at_all(export, folder: Path, tiny_dataset: Dataset) -> None:
    save(trained(Branches(), tiny_dataset, steps=1), folder / "branches.pt2")
    options = ("--target", "openvino,onnx", "--precision", "fp32", "--no-measure", "--json")
    _, out, err = export("branches.pt2", *options)
    assert "Traceback" not in err
    for row in ExportDocument.model_validate_json(out).rows:
        assert row.reason or (row.check is not None and row.check.snr_db is not None and row.check.snr_db >= 60)


# --- quantisation-aware training ---


@pytest.fixture(scope="module")
def uneven(folder: Path, tiny_dataset: Dataset) -> str:
    """A small trained net whose last activations have one channel 300 times as large as its neighbours."""
    from edgekd.teachers import save_teacher
    from edgekd.teachers.architectures import build

    torch.manual_seed(0)
    net: Any = build("edgekd:wrn10-1", num_classes=CLASSES, in_channels=1, image_size=28)
    trained(net.train(), tiny_dataset, 60)
    with torch.no_grad():
        net.bn.weight[0] *= 300
        net.bn.bias[0] *= 300
        net.fc.weight[:, 0] /= 300
    facts = {"architecture": "edgekd:wrn10-1", "num_classes": CLASSES, "in_channels": 1, "data": tiny_dataset.name}
    save_teacher(net, folder / "uneven.safetensors", facts={**facts, **tiny_dataset.preprocessing.to_dict()})
    return "uneven.safetensors"


def test_int8_learns_what_it_lost_from_its_float_self(export, uneven: str) -> None:
    options = (*NULL, "--precision", "int8", "--observer", "minmax", "--no-explain", "--test-images", "64", "--json")
    code, out, err = export(uneven, *options, "--qat-epochs", "4", "--qat-learning-rate", "0.003")
    assert code == 0, err
    facts = ExportDocument.model_validate_json(out).programs[-1]
    assert (facts.qat_epochs, facts.coverage) == (4, (14, 14))
    losses = [sum(row["losses"].values()) for row in facts.qat_history]
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 2


def test_a_program_that_cannot_train_says_so(export) -> None:
    said = error_of(export("net.pt2", *NULL, "--precision", "int8", "--qat-epochs", "1"))
    assert said.startswith("--qat-epochs: a .pt2 program is in eval mode for good")
