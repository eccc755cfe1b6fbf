"""Claims about `edgekd profile`: what names stand for, what is refused, what is printed where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edgekd.artifact import Artifact
from edgekd.commands.profile import profile
from edgekd.device_benchmarks import schedule
from edgekd.device_benchmarks.resolve import ZooOptions, contenders_of, run_baseline, skipped_of_run
from edgekd.errors import InputError

app = typer.Typer()
app.command()(profile)


@pytest.fixture
def run_folder(onnx_artifact: Artifact, tmp_path: Path) -> Path:
    """A run directory: an artifact that runs here, one that does not (Core ML off a Mac), a trained student."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tiny.onnx").write_bytes(onnx_artifact.path.read_bytes())
    here = onnx_artifact.model_copy(update={"path": Path("tiny.onnx")})
    phone = here.model_copy(update={"target": "coreml", "precision": "fp16"})
    artifacts: list[dict[str, Any] | None] = [here.model_dump(mode="json"), phone.model_dump(mode="json"), None]
    documents: dict[str, Any] = {
        "run.json": {"settings": {"teacher": "timm:resnet18", "weights": None}},
        "export.json": {"artifacts": [{"artifact": a} for a in artifacts]},
        "plan.json": {
            "teacher": {"black_box": False},
            "data": {"name": "made", "classes": ["a", "b"]},
            "preprocessing": {"image_size": 28, "channels": 1, "mean": [0.5], "std": [0.5]},
        },
        "student.json": {},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "student.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"processes": 1, "rounds": 2, "block_s": 0.001, "warm_up_s": 0.01, "warm_up_cap_s": 0.1}
    monkeypatch.setitem(schedule.MODES, "quick", schedule.MODES["quick"].model_copy(update=short))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["timm:resnet18", "--on", "pixel"], "--on: no device 'pixel'; local, ssh://user@host, adb:SERIAL"),
        (["timm:resnet18", "--mode", "qick"], "--mode: no mode 'qick'; did you mean 'quick'"),
        (["resnet18"], "no model 'resnet18'; name torchvision:NAME"),
        (["absent.onnx"], "absent.onnx: no such model"),
        (["."], "not a run directory"),
        (["timm:resnet18", "--weights", "absent.pt"], "absent.pt: no such file"),
    ],
)
def test_a_name_that_means_nothing_is_one_line_with_the_cure(arguments: list[str], match: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert match in str(result.exception)


def test_a_zoo_model_is_eager_torch_at_the_size_that_was_asked_for() -> None:
    (contender,) = contenders_of("timm:resnet18", options=ZooOptions(image_size=64))
    assert contender.name == "timm:resnet18, torch fp32 eager"
    assert contender.source.model_dump()["image_size"] == 64


def test_a_run_stands_for_its_student_and_the_artifacts_that_run_here(run_folder: Path) -> None:
    names = [c.name for c in contenders_of(str(run_folder))]
    assert names == ["student, torch fp32 eager", "student, onnxruntime fp32"]
    assert skipped_of_run(run_folder) == ["coreml fp16"]


def test_runtimes_narrow_a_run_and_aliases_are_understood(run_folder: Path) -> None:
    assert [c.name for c in contenders_of(str(run_folder), runtimes=("onnx",))] == ["student, onnxruntime fp32"]
    with pytest.raises(InputError, match="the run has no artifact for 'tflite'"):
        contenders_of(str(run_folder), runtimes=("tflite",))


def test_a_moved_run_finds_its_artifacts_where_they_are_now(run_folder: Path, tmp_path: Path) -> None:
    moved = run_folder.rename(tmp_path / "moved")
    (contender,) = contenders_of(str(moved), runtimes=("onnxruntime",))
    assert contender.source.model_dump()["artifact"]["path"] == moved / "tiny.onnx"


def test_a_run_is_compared_with_its_own_teacher_unless_told(run_folder: Path) -> None:
    (baseline,) = run_baseline(run_folder)
    assert baseline.name == "teacher, torch fp32 eager"
    assert baseline.source.model_dump()["spec"] == "timm:resnet18"


@pytest.mark.usefixtures("brief")
def test_a_file_against_itself_prints_a_table_and_a_ratio_to_stdout(onnx_artifact: Artifact) -> None:
    path = str(onnx_artifact.path)
    result = CliRunner().invoke(app, [path, "--against", path])
    assert result.exit_code == 0, result.output
    assert "measured on this host, batch 1, quick" in result.stdout
    assert "baseline tiny.onnx" in result.stdout
    assert "99% CI" in result.stdout


@pytest.mark.usefixtures("brief")
def test_json_is_one_document_with_raw_samples_and_nothing_else_on_stdout(onnx_artifact: Artifact) -> None:
    result = CliRunner().invoke(app, [str(onnx_artifact.path), "--json"])
    document = json.loads(result.stdout)
    (row,) = document["measurements"]
    assert document["kind"] == row["kind"] == "measured"
    assert sum(len(block["wall_ns"]) for block in row["blocks"]) == row["n"]


def test_the_command_loads_neither_torch_nor_a_runtime_until_it_runs() -> None:
    script = (
        "import sys, edgekd.commands.profile, edgekd.device_benchmarks.worker; "
        "print([m for m in ('torch', 'onnxruntime', 'openvino', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
