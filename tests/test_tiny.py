"""The whole product on the null target: every stage, every file, in seconds, with nothing replaced."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from tiny_files import teacher_file, tiny_npz
from torch.nn import functional

from edgekd import bundle
from edgekd.data import Dataset
from edgekd.distill import evaluate
from edgekd.errors import InputError
from edgekd.pipeline import api, record, run
from edgekd.pipeline.context import context_of, load_inputs
from edgekd.pipeline.settings import BudgetOverrides, Settings
from edgekd.teachers.wide_resnet import WideResNet

STAGES = [stage.name for stage in run.STAGES]


class Heard:
    """Events that only remember."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.ran: list[str] = []
        self.kept: list[str] = []
        self.notes: list[str] = []
        self.stop_in = stop_in

    def stage(self, number: int, total: int, title: str) -> None:
        self.ran.append(STAGES[number - 1])
        if self.stop_in == STAGES[number - 1]:
            raise KeyboardInterrupt

    def skipped(self, number: int, total: int, title: str) -> None:
        self.kept.append(STAGES[number - 1])

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        pass


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Callable[..., Settings]:
    """Settings for a run on a small file and a small teacher that has learned it."""
    folder = tmp_path_factory.mktemp("inputs")
    data, teacher = tiny_npz(folder, tiny_dataset), _trained_teacher(folder, tiny_dataset)

    def make(**changes: Any) -> Settings:
        document: dict[str, Any] = {
            "profile": "jetson-nano",
            "data": str(data),
            "teacher": str(teacher),
            "targets": ("null",),
            "training": {"epochs": 6, "qat_epochs": 1, "batch_size": 32},
        }
        return Settings.model_validate({**document, **changes})

    return make


def _trained_teacher(folder: Path, dataset: Dataset) -> Path:
    torch.manual_seed(0)
    model = WideResNet(10, 1, in_channels=1)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pre = dataset.preprocessing
    for step in range(60):
        index = torch.arange(step * 32, step * 32 + 32) % len(dataset.train)
        logits = model(pre.normalise(dataset.train.images(index)))
        functional.cross_entropy(logits, dataset.train.labels[index]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return teacher_file(folder, dataset, model=model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., Settings]) -> api.RunResult:
    """One complete int8 run: x86 with VNNI trains int8 and the null target takes it."""
    chosen = settings(profile="x86-avx512-vnni", baseline=True)
    return api.distill(chosen, out=tmp_path_factory.mktemp("whole") / "run", events=Heard())


def test_a_whole_run_leaves_every_file_it_promises(whole: api.RunResult) -> None:
    names = {p.name for p in whole.folder.iterdir()}
    assert {"run.json", "student.json", "student.safetensors", "report.html", "report.json", "bundle.zip"} <= names
    assert {f"{stage}.json" for stage in STAGES} <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_the_report_tells_measured_from_predicted(whole: api.RunResult) -> None:
    document = json.loads((whole.folder / "report.json").read_text())
    assert {row["kind"] for row in document["measurements"]} == {"measured"}
    assert {row["kind"] for row in document["predicted"]} == {"predicted"}
    latency = next(gate for gate in document["gates"] if gate["name"].startswith("latency"))
    here = any(row["on_profile_device"] for row in document["measurements"])  # where this host is such a machine
    assert latency["state"] != "pass" or here, "a prediction must not pass a budget gate"
    assert latency["figure"].startswith("measured" if here else "predicted")


def test_int8_really_is_int8_and_beside_it_stands_ptq(whole: api.RunResult) -> None:
    document = json.loads((whole.folder / "report.json").read_text())
    artifact = next(row for row in document["artifacts"] if row["target"] == "null")
    assert artifact["state"] == "exported-and-checked"
    assert artifact["check"]["int8_convs"] == artifact["check"]["convs"] > 0
    assert {"student, int8 after QAT", "student, int8 by PTQ"} <= {row["name"] for row in document["accuracies"]}


def test_the_student_and_its_baseline_learn(whole: api.RunResult) -> None:
    accuracy = json.loads((whole.folder / "distil.json").read_text())["accuracy"]
    assert accuracy["student"]["top1"] > 0.5, "chance is 0.1"
    assert accuracy["baseline"]["top1"] > 0.5
    assert accuracy["student"]["n"] == 200


def test_the_three_ratios_are_there_with_intervals(whole: api.RunResult) -> None:
    document = json.loads((whole.folder / "report.json").read_text())
    assert [row["key"] for row in document["ratios"]] == [
        "teacher-today-to-student",
        "teacher-best-to-student",
        "student-float-to-int8",
    ]
    for row in document["ratios"]:
        assert row["lo"] <= row["ratio"] <= row["hi"], row


def test_the_bundle_verifies_and_a_changed_byte_does_not(whole: api.RunResult, tmp_path: Path) -> None:
    path = whole.folder / "bundle.zip"
    assert bundle.verify(path).ok
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in contents if n.endswith("labels.txt"))
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(broken, "w") as archive:
        for key, value in contents.items():
            archive.writestr(key, value + b"x" if key == name else value)
    assert not bundle.verify(broken).ok


def test_a_finished_run_resumes_to_itself(whole: api.RunResult, settings: Callable[..., Settings]) -> None:
    heard = Heard()
    again = api.distill(settings(profile="x86-avx512-vnni", baseline=True), out=whole.folder, resume=True, events=heard)
    assert heard.ran == []
    assert heard.kept == STAGES
    assert again.document == whole.document


def test_a_damaged_output_is_made_again(whole: api.RunResult, settings: Callable[..., Settings]) -> None:
    before = (whole.folder / "report.html").read_bytes()
    (whole.folder / "report.html").write_bytes(b"broken")
    heard = Heard()
    api.distill(settings(profile="x86-avx512-vnni", baseline=True), out=whole.folder, resume=True, events=heard)
    assert heard.ran == ["bundle"]
    assert (whole.folder / "report.html").read_bytes() == before


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    with pytest.raises(KeyboardInterrupt):
        api.distill(settings(), out=tmp_path / "run", events=Heard(stop_in="export"))
    weights = (tmp_path / "run" / "student.safetensors").read_bytes()
    heard = Heard(stop_in="check")
    with pytest.raises(KeyboardInterrupt):
        api.distill(settings(), out=tmp_path / "run", resume=True, events=heard)
    assert heard.kept == ["plan", "select", "distil", "quantise"]
    assert heard.ran == ["export", "check"]
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == weights
    (tmp_path / "run" / "programs" / "float.pt2").write_bytes(b"broken")
    heard = Heard(stop_in="check")
    with pytest.raises(KeyboardInterrupt):
        api.distill(settings(), out=tmp_path / "run", resume=True, events=heard)
    assert heard.ran == ["export", "check"], "a damaged output is made again, with all that follows"


def test_a_dry_run_trains_nothing_and_can_be_gone_on_with(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    result = api.distill(settings(), out=tmp_path / "run", dry_run=True, events=Heard())
    assert not (result.folder / "student.safetensors").exists()
    assert [row["state"] for row in result.document["select"]["trial_exports"]] == ["exported"]
    assert list(record.open_record(result.folder).stages) == ["plan", "select"]


def test_an_impossible_budget_names_the_cheapest_and_by_how_much_it_misses(
    tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    tight = settings(budgets={"latency_p90_ms": 1e-6})
    with pytest.raises(InputError, match=r"latency_p90_ms .* \(x\d"):
        api.distill(tight, out=tmp_path / "run", events=Heard())


def test_plan_needs_no_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., Settings]
) -> None:
    monkeypatch.chdir(tmp_path)
    document = api.plan(settings())
    assert document["plan"]["plan"]["precision"] == "fp16"
    assert document["select"]["figures"]["macs"] > 0
    assert list(tmp_path.iterdir()) == []


def test_more_targets_can_be_exported_from_a_finished_run(whole: api.RunResult) -> None:
    result = api.export(whole.folder, targets=("null",), bundle=True, events=Heard())
    assert not result.failed
    assert bundle.verify(whole.folder / "bundle.zip").ok


def test_a_student_of_fewer_pixels_than_its_teacher_is_taught_exported_and_judged_at_its_own(
    tmp_path: Path, settings: Callable[..., Settings], tiny_dataset: Dataset
) -> None:
    """The smallest student at 28 px has 0.7 M multiply-adds, so a budget of 0.6 M leaves 14 px."""
    chosen = settings(profile="x86-avx512-vnni", targets=("null", "onnxruntime"), image_sizes=(28, 14))
    fraction = 0.6e6 / api.plan(chosen)["plan"]["teacher"]["macs"]
    chosen = chosen.model_copy(update={"budgets": BudgetOverrides(teacher_macs_fraction=fraction)})
    folder = api.distill(chosen, out=tmp_path / "run", events=Heard()).folder
    context = context_of(record.open_record(folder), load_inputs(chosen), Heard())
    accuracy = json.loads((folder / "distil.json").read_text())["accuracy"]
    for who, model, data in (
        ("student", context.student(), tiny_dataset.at(14)),
        ("teacher", context.teacher_module, tiny_dataset),
    ):
        assert accuracy[who]["top1"] == evaluate(model, data.test, data.preprocessing).top1
    assert accuracy["student"]["top1"] > 0.5, "chance is 0.1"
    artifact = next((folder / "artifacts" / "onnxruntime-int8").glob("*.onnx"))
    assert onnx.load(artifact).graph.input[0].type.tensor_type.shape.dim[2].dim_value == 14
    with zipfile.ZipFile(folder / "bundle.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("preprocessing.json"))
        assert json.loads(archive.read(name)) == context.student_dataset.preprocessing.to_dict()
    report = json.loads((folder / "report.json").read_text())
    deployed = [row for row in report["accuracies"] if row["role"] == "artifact"]
    assert {row["name"] for row in deployed} == {"student, int8 by PTQ", "null-int8", "onnxruntime-int8"}
    assert all(row["top1"] > 0.5 for row in deployed), deployed
    assert bundle.verify(folder / "bundle.zip").ok


def test_a_size_that_the_images_do_not_have_is_refused(settings: Callable[..., Settings]) -> None:
    with pytest.raises(InputError, match=r"40 px is larger than the images, which are read at 28 px"):
        api.plan(settings(image_sizes=(28, 40)))


@pytest.mark.slow
def test_torchrun_trains_on_two_processes_and_only_the_first_writes(
    tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    chosen = settings(training={"epochs": 1, "batch_size": 32})
    (tmp_path / "settings.json").write_text(chosen.model_dump_json())
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from edgekd.pipeline import api\nfrom edgekd.pipeline.settings import Settings\n"
        "chosen = Settings.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "result = api.distill(chosen, out=Path(sys.argv[2]))\n"
        "print('DONE', bool(result.document))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29577"]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path / "settings.json"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(line for line in done.stdout.splitlines() if "DONE" in line) == ["DONE False", "DONE True"]
    training = json.loads((tmp_path / "run" / "distil.json").read_text())["trainings"][0]
    assert training["processes"] == 2
    assert bundle.verify(tmp_path / "run" / "bundle.zip").ok
