"""Claims about `edgekd distill --on DEVICE`, over a real sshd: candidates and the student are measured there, a board
that turns out too slow gets another student, and one that cannot be used, or goes, loses nothing that was trained.
"""

from __future__ import annotations

import html
import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_files import teacher_file, tiny_npz

from edgekd.artifact import Artifact
from edgekd.cli import run as command_line
from edgekd.data import Dataset
from edgekd.device_benchmarks import schedule
from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.device_benchmarks.transports import parse_device
from edgekd.errors import InputError
from edgekd.pipeline import api, record, trials
from edgekd.pipeline.attached import Attached, reach
from edgekd.pipeline.plan import TargetPlan
from edgekd.pipeline.run import STAGES
from edgekd.pipeline.settings import Settings
from edgekd.profile import load_profile

BUDGET_MS, SLOW_MS = 10.0, 15.0
PROFILE = f"""
name = "made-board"
title = "A board that a test made"
ram_mib = 4096
p90_over_p50 = 1.2
transport = "ssh"
[[units]]
kind = "cpu"
name = "a core"
peak_fp32_gflops = 100.0
dram_gb_per_s = 100.0
kernel_overhead_us = 0.1
efficiency = 1.0
depthwise_efficiency = 1.0
source = "made: multiply-adds alone decide, so that a smaller student is predicted to be faster"
confidence = "recalled"
[[runtimes]]
target = "onnxruntime"
version = "1.20"
unit = "cpu"
precisions = ["fp32"]
why = "a test"
source = "a test"
[quantisation]
preferred_precision = "fp32"
why = "a test"
source = "a test"
[budgets]
latency_p90_ms = {BUDGET_MS}
peak_memory_mib = 2048
artifact_size_mib = 16
teacher_macs_fraction = 0.9
why = "a test"
"""
# What a hot board does: from the moment that the file is there, every inference takes so much CPU time more.
SLOW_BOARD = """
import pathlib
import time
heat = pathlib.Path(__file__).with_name("heat_ms")
if heat.exists():
    import onnxruntime
    class Hot(onnxruntime.InferenceSession):
        more_s = float(heat.read_text()) / 1e3
        def run(self, *words, **options):
            end = time.process_time() + self.more_s
            while time.process_time() < end:
                pass
            return super().run(*words, **options)
    onnxruntime.InferenceSession = Hot
"""


class Watched:
    """Events that remember, and act when a stage begins."""

    def __init__(self, act: Callable[[str, int], None] = lambda name, times: None) -> None:
        self.ran: list[str] = []
        self.notes: list[str] = []
        self.act = act

    def stage(self, number: int, total: int, title: str) -> None:
        self.ran.append(STAGES[number - 1].name)
        self.act(self.ran[-1], self.ran.count(self.ran[-1]))

    def skipped(self, number: int, total: int, title: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        pass


def devices_file(path: Path, *devices: Device) -> Path:
    """A devices file with these, and `off`, where nothing listens."""
    rows = ['off = { address = "ssh://board:1" }\n']
    for device in devices:
        table = {"address": str(device.address), "python": device.python, "folder": device.folder}
        rows.append(f"[{device.name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()))
        rows += ["env = { " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in device.env.items()) + " }\n"]
    path.write_text("".join(rows))
    return path


def text_of(page: Path) -> str:
    """What a reader of a page sees, but for its charts."""
    shown = re.sub(r"<(svg|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


def inputs(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Settings for a profile, data and an untrained teacher, written there."""
    (folder / "board.toml").write_text(PROFILE)
    return {
        "profile": str(folder / "board.toml"),
        "data": str(tiny_npz(folder, dataset)),
        "teacher": str(teacher_file(folder, dataset)),
        "targets": ("onnxruntime",),
        "training": {"epochs": 1, "batch_size": 32},
        "recipe": None,
        "on": "board",
    }


@pytest.fixture
def profile(tmp_path: Path) -> Any:
    """The made board's."""
    (tmp_path / "board.toml").write_text(PROFILE)
    return load_profile(str(tmp_path / "board.toml"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, brief: Schedule) -> None:
    """Fewer rounds than a real `quick`, and enough for a p90."""
    monkeypatch.setitem(schedule.MODES, "quick", brief.model_copy(update={"rounds": 8}))
    monkeypatch.setattr(trials, "MEASURED_CANDIDATES", 2)


def attached_to(device: Device, profile: Any, **settings: Any) -> Attached:
    document = {"profile": "board", "on": device.name, **settings}
    target = TargetPlan(target="onnxruntime", precision="fp32", why="")
    return Attached(target, profile, Settings.model_validate(document), "a test", device)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("quick")
def test_a_board_that_gets_hot_is_given_another_student_and_one_that_goes_loses_nothing(
    board: Device, sshd: Any, tmp_path: Path, tiny_dataset: Dataset, nothing_left: Callable[[Path], bool]
) -> None:
    """One run, since each costs minutes: selected on the cool board, trained, over the budget on the hot one, selected
    anew on the cool one. Then the stage is lost while the board is off, and made again once it is back.
    """
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW_BOARD)
    board = board.model_copy(update={"env": {"PYTHONPATH": str(site)}})
    file = devices_file(tmp_path / "devices.toml", board)
    asked = Settings.model_validate({**inputs(tmp_path, tiny_dataset), "devices_file": str(file)})

    def heat(stage: str, times: int) -> None:
        if (stage, times) == ("measure", 1):
            (site / "heat_ms").write_text(str(SLOW_MS))
        if (stage, times) == ("select", 2):
            (site / "heat_ms").unlink()

    watched = Watched(heat)
    folder = api.distill(asked, out=tmp_path / "run", events=watched).folder
    assert watched.ran == [stage.name for stage in STAGES[:-1]] + [stage.name for stage in STAGES[1:]]
    assert any(note.startswith("attached: board (") for note in watched.notes)

    run = record.open_record(folder)
    select, side = run.result("select"), run.result("measure")["device"]
    assert len(run.corrections) == 1
    assert run.corrections[0] * select["figures"]["latency_p90_ms"] <= BUDGET_MS
    assert all(row["fits"] and row["measured_p90_ms"] for row in select["measured"])
    assert any(re.fullmatch(r"2 candidates measured untrained on board: .* x the .*", r) for r in select["reasons"])
    row = next(row for row in side["set"]["measurements"] if row["name"] == side["student"])
    assert (side["student"], row["provenance"]["device"]) == ("student, onnxruntime fp32", "board")
    assert row["p50_ms"] < SLOW_MS, "it is cool again"
    assert {"teacher, onnxruntime fp32", "teacher, openvino fp32"} <= {r["name"] for r in side["set"]["measurements"]}

    report = json.loads((folder / "report.json").read_text())
    there = [row for row in report["measurements"] if row["on_profile_device"]]
    assert {row["device"].partition(" ")[0] for row in there} == {"board"}
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert re.match(r"measured .* ms on board, n = \d+", gates["latency p90 on made-board"]["figure"])
    assert gates["faster than the teacher's best export on board"]["figure"] != "not measured"
    page = text_of(folder / "report.html")
    assert "Predicted against measured on board (ssh://" in page
    assert "speedup over the teacher's best export on board" in page

    weights = (folder / "student.safetensors").read_bytes()
    (folder / "measure.json").write_text("{}")
    sshd.stop()
    try:
        watched = Watched()
        api.distill(asked, out=folder, resume=True, events=watched)
    finally:
        sshd.start()
    assert watched.ran == ["measure", "bundle"]
    assert any(n.startswith("cannot be measured on now, the run goes on: board: nothing") for n in watched.notes)
    assert "The student was not measured on board" in text_of(folder / "report.html")
    report = json.loads((folder / "report.json").read_text())
    assert report["attached"]["reason"].startswith("nothing listens on its ssh port")
    assert any(re.fullmatch(r"not measured on board: nothing .*; --resume tries again", n) for n in watched.notes)
    assert not any(row["on_profile_device"] for row in report["measurements"])

    watched = Watched()
    api.distill(asked, out=folder, resume=True, events=watched)
    assert watched.ran == ["measure", "bundle"], "what is owed is tried again"
    assert run.result("measure")["device"]["reason"] == ""
    watched = Watched()
    api.distill(asked, out=folder, resume=True, events=watched)
    assert watched.ran == []
    assert (folder / "student.safetensors").read_bytes() == weights
    with pytest.raises(InputError, match="was started with on='board', not None"):
        api.distill(asked.model_copy(update={"on": None}), out=folder, resume=True)
    assert nothing_left(Path(board.folder))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--on", "bord"], "--on: no device 'bord'; did you mean 'board'?"),
        (["--on", "board,off"], "--on: no device 'board,off'"),
        (["--on", "off"], "off: nothing listens on its ssh port"),
        (["--on", "bare"], "--on bare: ONNX Runtime is not on the device"),
        (["--on", "board", "--target", "tflite"], "'onnxruntime', the first runtime of 'made-board', is not exported"),
    ],
)
def test_a_device_that_cannot_be_used_ends_a_run_before_it_begins(
    words: list[str],
    expected: str,
    board: Device,
    tmp_path: Path,
    tiny_dataset: Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    for package in ("onnxruntime", "ai_edge_litert"):
        (empty / package).mkdir(parents=True)
        (empty / package / "__init__.py").write_text(f"raise ImportError('no {package} here')")
    bare = board.model_copy(update={"name": "bare", "env": {"PYTHONPATH": str(empty)}})
    asked = inputs(tmp_path, tiny_dataset)
    file = devices_file(tmp_path / "devices.toml", board, bare)
    options = ["--profile", asked["profile"], "--data", asked["data"], "--teacher", asked["teacher"]]
    out = tmp_path / "run"
    code = command_line(["distill", *options, "--devices", str(file), "--out", str(out), *words])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert expected in errors[0]
    assert not out.exists()


def test_local_is_this_host_as_without_the_option() -> None:
    assert Settings(profile="jetson-nano", on="local") == Settings(profile="jetson-nano")


def test_what_a_device_can_run_is_asked_of_the_device(board: Device) -> None:
    with DeviceSession(board) as session:
        assert session.why_not("onnxruntime") == ""
        assert session.why_not("tensorrt") == "no /usr/src/tensorrt/bin/trtexec there; name it in the devices file"
        assert session.why_not("coreml").startswith("files of 'coreml' are not measured on a device")
        assert session.cpu_flags()


def test_googles_tool_runs_one_kind_of_file_and_has_to_be_there(tmp_path: Path) -> None:
    tool = tmp_path / "benchmark_model"
    phone = DeviceSession(Device(name="phone", address=parse_device("adb:R58M"), benchmark_model=tool))
    assert phone.why_not("onnxruntime") == "benchmark_model runs .tflite files only"
    assert phone.why_not("tflite") == f"no benchmark_model at {tool}; download or build it"
    tool.touch()
    assert phone.why_not("tflite") == ""


def test_what_a_runtime_prints_when_imported_is_no_refusal(board: Device, tmp_path: Path) -> None:
    package = tmp_path / "talk" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('Welcome!')")
    talking = board.model_copy(update={"env": {"PYTHONPATH": str(package.parent)}})
    with DeviceSession(talking) as session:
        assert session.why_not("onnxruntime") == ""
    (package / "__init__.py").write_text("print('Welcome!'); raise ImportError('no libgomp')")
    with DeviceSession(talking) as session:
        assert session.why_not("onnxruntime").startswith("ONNX Runtime is not on the device (no libgomp); pip install")


@pytest.mark.usefixtures("quick")
def test_files_that_cannot_run_there_are_named_beside_those_that_do(
    board: Device, profile: Any, onnx_artifact: Artifact
) -> None:
    phone = onnx_artifact.model_copy(update={"target": "coreml"})
    who = attached_to(board, profile, threads=2)
    found = who.measure({"one": onnx_artifact, "two": phone}, pairs=[("one", "two")])
    assert found.set is not None
    (row,) = found.set.measurements
    assert (row.name, row.provenance.device, row.provenance.threads) == ("one", "board", 2)
    assert found.set.failures["two"].startswith("files of 'coreml'")
    assert who.measure({"two": phone}).reason == found.set.failures["two"]


def test_a_device_that_is_gone_is_a_reason_and_no_error(board: Device, profile: Any, onnx_artifact: Artifact) -> None:
    gone = board.model_copy(update={"address": board.address.model_copy(update={"port": 1})})
    started = time.monotonic()
    found = attached_to(gone, profile).measure({"one": onnx_artifact})
    assert found.set is None
    assert found.reason.startswith("nothing listens on its ssh port")
    assert time.monotonic() - started < 60


@pytest.mark.usefixtures("quick")
def test_an_emulator_is_refused_at_the_start_and_its_times_are_never_taken(
    board: Device, profile: Any, onnx_artifact: Artifact, tmp_path: Path
) -> None:
    emulated = board.model_copy(update={"emulated": True})
    found = attached_to(emulated, profile).measure({"one": onnx_artifact})
    assert (found.set, found.reason) == (None, "an emulator: its times are no latency")
    file = tmp_path / "devices.toml"
    file.write_text(devices_file(file, board).read_text() + "emulated = true\n")
    asked = Settings(profile="board", on="board", devices_file=str(file))
    with pytest.raises(InputError, match="--on board: an emulator: its times are no latency"):
        reach(asked, profile)


@pytest.mark.runtime
@pytest.mark.skipif(
    platform.machine() in ("aarch64", "arm64"), reason="the board of this test is this host, and no ARM"
)
def test_another_board_than_the_profiles_is_told_at_once(board: Device, tmp_path: Path) -> None:
    file = devices_file(tmp_path / "devices.toml", board)
    asked = Settings(profile="raspberry-pi-5", on="board", devices_file=str(file))
    lines = reach(asked, load_profile("raspberry-pi-5"))
    assert lines[0].startswith("attached: board (")
    assert [line for line in lines if line.startswith("board does not look like raspberry-pi-5: its kernel runs on")]
