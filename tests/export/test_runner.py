"""A converter that hangs, crashes, eats memory or lies ends as one error, and never as half an artifact."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgekd.errors import ConversionError, InputError, MissingExtraError
from edgekd.export import ExportRequest, RefusedError, export_all, export_one, runner
from edgekd.export.process import Exit, last_lines, run_watched
from edgekd.profile import load_profile
from edgekd.targets import get_target

# A well-behaved converter without torch: writes one file and the result document for each of its requests.
GOOD = """
import hashlib, json, pathlib, sys
def convert(request_path, result_path):
    request = json.loads(pathlib.Path(request_path).read_text())
    path = pathlib.Path(request["out"]) / "model.pt2"
    path.write_bytes(b"weights")
    tensor = {"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32", "layout": "NCHW"}
    artifact = {"target": request["target"], "precision": request["precision"], "path": str(path), "inputs": [tensor],
                "outputs": [tensor | {"name": "logits", "shape": [1, 4], "layout": "NC"}], "size_bytes": 7,
                "sha256": hashlib.sha256(b"weights").hexdigest()}
    print("noise on stdout", flush=True); print("noise on stderr", file=sys.stderr)
    pathlib.Path(result_path).write_text(json.dumps({"artifact": artifact, "wall_s": 0.5}))
for place in range(1, len(sys.argv), 3):
    if TROUBLE: TROUBLE(sys.argv[place])
    convert(*sys.argv[place:place + 2])
"""
GOOD_ONLY = "TROUBLE = None\n" + GOOD
# Dies whenever it comes to an fp16 request.
CRASHES_AT_FP16 = (
    """
import os
def TROUBLE(path):
    if '"fp16"' in open(path).read().split('program')[0]: os.abort()
"""
    + GOOD
)


@pytest.fixture
def request_null(tmp_path: Path) -> ExportRequest:
    program = tmp_path / "float.pt2"
    program.write_bytes(b"any file: these workers do not read it")
    return ExportRequest(target="null", precision="fp32", program=program, out=tmp_path / "artifacts" / "null-fp32")


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the real runner on a worker whose source is given; limits are the null target's, changed as asked."""

    def install(source: str, **limits: float) -> None:
        script = tmp_path / "fake_worker.py"
        script.write_text(source, encoding="utf-8")
        monkeypatch.setattr(runner, "WORKER_COMMAND", (sys.executable, str(script)))
        target = get_target("null").model_copy(update=limits)
        monkeypatch.setattr(runner, "get_target", lambda _name: target)

    return install


def test_a_good_worker_leaves_the_whole_folder_with_its_manifest(worker, request_null, tmp_path):
    worker(GOOD_ONLY)
    artifact = export_one(request_null, log=tmp_path / "null.log")
    assert artifact.path == request_null.out / "model.pt2"
    assert artifact.path.read_bytes() == b"weights"
    manifest = json.loads((request_null.out / "artifact.json").read_text())
    assert (manifest["path"], manifest["sha256"]) == ("model.pt2", artifact.sha256)
    assert [entry.name for entry in request_null.out.parent.iterdir()] == ["null-fp32"], "staging folders remain"


def test_converters_noise_goes_to_the_log_and_not_to_the_terminal(worker, request_null, tmp_path, capfd):
    worker(GOOD_ONLY)
    export_one(request_null, log=tmp_path / "null.log")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "null.log").read_text().split("\n")[:2] == ["noise on stdout", "noise on stderr"]


def test_a_hang_is_ended_at_the_targets_timeout_with_its_children(worker, request_null, tmp_path):
    pid_file = tmp_path / "grandchild.pid"
    worker(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "print('stage 3 of 9', flush=True)\n"
        "time.sleep(60)\n",
        timeout_s=2.0,
    )
    with pytest.raises(
        ConversionError, match=r"did not finish and was stopped after \d+ s; its last lines: stage 3 of 9"
    ):
        export_one(request_null, log=tmp_path / "null.log")
    assert _gone(int(pid_file.read_text())), "the converter's own child outlived it"


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_segfault_names_the_signal_the_target_and_the_log(worker, request_null, tmp_path):
    worker("import os, signal\nprint('lowering conv_7', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    expected = r"target 'null' \(fp32\): the converter crashed with SIGSEGV .*lowering conv_7.*see null\.log"
    with pytest.raises(ConversionError, match=expected) as caught:
        export_one(request_null, log=tmp_path / "null.log")
    assert "\n" not in str(caught.value)
    assert "Current thread" not in str(caught.value), "the fault handler's stack is for the log, not for the message"


def test_a_memory_hog_is_stopped_at_the_targets_limit(worker, request_null, tmp_path):
    worker("import time\nhoard = bytearray(600 << 20)\ntime.sleep(60)\n", memory_limit_gib=0.3)
    with pytest.raises(ConversionError, match=r"was stopped at 0\.\d GiB of memory; it printed nothing"):
        export_one(request_null, log=tmp_path / "null.log")


def test_a_failing_exit_shows_the_tools_last_three_lines_shortened(worker, request_null, tmp_path):
    worker("import sys\nfor i in range(6): print(f'line {i}'); print()\nprint('x' * 900)\nsys.exit(3)\n")
    with pytest.raises(ConversionError, match=r"exited with status 3; its last lines: line 4 \| line 5 \| x{159}…;"):
        export_one(request_null, log=tmp_path / "null.log")


def test_success_without_a_result_is_a_failure(worker, request_null, tmp_path):
    worker("print('done')\n")
    with pytest.raises(ConversionError, match="exited with status 0 without a result"):
        export_one(request_null, log=tmp_path / "null.log")


def test_a_failed_conversion_leaves_the_earlier_artifact_alone(worker, request_null, tmp_path):
    worker(GOOD_ONLY)
    export_one(request_null, log=tmp_path / "null.log")
    worker(
        "import json, pathlib, sys\n"
        "out = pathlib.Path(json.loads(pathlib.Path(sys.argv[1]).read_text())['out'])\n"
        "(out / 'model.pt2').write_bytes(b'half')\nsys.exit(1)\n"
    )
    with pytest.raises(ConversionError):
        export_one(request_null, log=tmp_path / "null.log")
    assert (request_null.out / "model.pt2").read_bytes() == b"weights"
    assert [entry.name for entry in request_null.out.parent.iterdir()] == ["null-fp32"]


def test_a_new_artifact_replaces_the_old_folder_as_a_whole(worker, request_null, tmp_path):
    worker(GOOD_ONLY)
    export_one(request_null, log=tmp_path / "null.log")
    (request_null.out / "stale.bin").write_bytes(b"from an older version")
    export_one(request_null, log=tmp_path / "null.log")
    assert sorted(entry.name for entry in request_null.out.iterdir()) == ["artifact.json", "model.pt2"]


def test_a_folder_that_is_not_an_artifact_is_never_replaced(worker, request_null, tmp_path):
    worker(GOOD_ONLY)
    request_null.out.mkdir(parents=True)
    (request_null.out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not an artifact folder"):
        export_one(request_null, log=tmp_path / "null.log")
    assert (request_null.out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_crash_does_not_stop_the_other_conversions(worker, request_null, tmp_path, jobs):
    worker(CRASHES_AT_FP16)
    second = request_null.model_copy(update={"precision": "fp16", "out": tmp_path / "artifacts" / "null-fp16"})
    third = request_null.model_copy(update={"out": tmp_path / "artifacts" / "again"})
    seen: list[str] = []
    outcomes = export_all(
        [request_null, second, third], tmp_path / "logs", jobs=jobs, on_done=lambda o: seen.append(o.state)
    )
    assert [outcome.state for outcome in outcomes] == ["exported", "failed", "exported"]
    assert sorted(seen) == ["exported", "exported", "failed"]
    assert [outcome.log for outcome in outcomes] == [
        "export-null-fp32.log",
        "export-null-fp16.log",
        "export-null-fp32-2.log",
    ]
    assert "SIGABRT" in outcomes[1].reason
    assert outcomes[1].artifact is None


def variants(request: ExportRequest, count: int) -> list[ExportRequest]:
    return [request.model_copy(update={"out": request.out.with_name(f"null-{index}")}) for index in range(count)]


def test_conversions_of_one_target_share_a_process(worker, request_null, tmp_path):
    pids = tmp_path / "pids"
    worker(f"import os\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\n" + GOOD_ONLY)
    outcomes = export_all(variants(request_null, 3), tmp_path / "logs", jobs=1)
    assert [outcome.state for outcome in outcomes] == ["exported"] * 3
    assert len(pids.read_text().split()) == 1
    export_all(variants(request_null, 3), tmp_path / "logs", jobs=3)
    assert len(pids.read_text().split()) == 4, "three jobs want three processes"


def test_what_fails_after_another_is_tried_again_alone(worker, request_null, tmp_path):
    """A converter that fails whenever it is not the first of its process: state left behind by the one before."""
    worker(
        "import json, pathlib, sys\ndef TROUBLE(path):\n    if path != sys.argv[1]:\n"
        "        pathlib.Path(path.replace('request', 'result')).write_text('{\"what\": \"stale state\"}')\n"
        "        raise SystemExit(1)\n" + GOOD
    )
    outcomes = export_all(variants(request_null, 3), tmp_path / "logs", jobs=1)
    assert [outcome.state for outcome in outcomes] == ["exported"] * 3


def test_the_timeout_is_each_conversions_own(worker, request_null, tmp_path):
    worker("import time\ndef TROUBLE(path): time.sleep(1.5)\n" + GOOD, timeout_s=3.0)
    outcomes = export_all(variants(request_null, 3), tmp_path / "logs", jobs=1)
    assert [outcome.state for outcome in outcomes] == ["exported"] * 3


def test_a_missing_package_is_a_refusal_that_names_the_extra(monkeypatch, request_null, tmp_path):
    target = get_target("coreml").model_copy(update={"packages": ("no_such_package_at_all",)})
    monkeypatch.setattr(runner, "get_target", lambda _name: target)
    request = request_null.model_copy(update={"target": "coreml"})
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'edgekd[coreml]'")):
        export_one(request, log=tmp_path / "x.log")
    (outcome,) = export_all([request], tmp_path / "logs")
    assert (outcome.state, outcome.artifact, outcome.log) == ("refused", None, "")
    assert "target 'coreml' needs no_such_package_at_all (not installed)" in outcome.reason


def test_int8_on_a_jetson_nano_is_refused_with_the_profiles_reason(request_null, tmp_path):
    nano = load_profile("jetson-nano")
    request = request_null.model_copy(update={"target": "tensorrt", "precision": "int8", "profile": nano})
    with pytest.raises(RefusedError, match=r"TensorRT 8\.2\.1 on jetson-nano takes fp32, fp16, not int8: sm_53"):
        export_one(request, log=tmp_path / "x.log")
    assert export_all([request], tmp_path / "logs")[0].state == "refused"


def test_a_missing_program_is_the_users_mistake(request_null, tmp_path):
    with pytest.raises(InputError, match=r"gone\.pt2: no such program"):
        export_one(request_null.model_copy(update={"program": tmp_path / "gone.pt2"}), log=tmp_path / "x.log")


def test_the_workers_refusal_stays_a_refusal(worker, request_null, tmp_path):
    worker(
        "import pathlib, sys\npathlib.Path(sys.argv[2]).write_text("
        '\'{"kind": "RefusedError", "what": "affine activations", "fix": "use symmetric"}\')\nsys.exit(1)\n'
    )
    (outcome,) = export_all([request_null], tmp_path / "logs")
    assert outcome.state == "refused"
    assert outcome.reason == "target 'null' (fp32): affine activations; use symmetric"


def test_cancelling_ends_a_running_converter(tmp_path):
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    end = run_watched(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        log=tmp_path / "x.log",
        environment=os.environ,
        timeout_s=50,
        memory_limit_gib=1,
        cancelled=cancelled,
    )
    assert end.ending == "cancelled"
    assert end.wall_s < 30


def test_ctrl_c_in_the_parent_ends_the_converter_and_leaves_no_staging_folder(tmp_path):
    """The command line under test is a process of its own, so that the signal does not hit the test run."""
    program, pid_file = tmp_path / "float.pt2", tmp_path / "worker.pid"
    program.write_bytes(b"x")
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    (tmp_path / "main.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom edgekd.export import ExportRequest, export_all, runner\n"
        f"runner.WORKER_COMMAND = (sys.executable, {str(tmp_path / 'slow.py')!r})\n"
        f"out = Path({str(tmp_path / 'artifacts' / 'null')!r})\n"
        f"request = ExportRequest(target='null', precision='fp32', program=Path({str(program)!r}), out=out)\n"
        f"export_all([request], Path({str(tmp_path / 'logs')!r}))\n"
    )
    parent = psutil.Popen([sys.executable, str(tmp_path / "main.py")], stderr=open(os.devnull, "wb"))  # noqa: SIM115
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker_pid = int(pid_file.read_text())
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=30) != 0
    assert _gone(worker_pid)
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_last_lines_drop_colour_codes_and_stop_at_a_fault_dump(tmp_path):
    log = tmp_path / "tool.log"
    log.write_text(
        "\x1b[31mbad op\x1b[0m\n\n  Fatal Python error: Segmentation fault  \nThread 0x1:\nExtension modules: numpy\n"
    )
    assert last_lines(log) == ("bad op", "Fatal Python error: Segmentation fault")


def test_every_ending_is_described_in_words():
    def described(ending: str, code: int) -> str:
        return Exit(ending=ending, code=code, wall_s=2.0, peak_rss_gib=9.1).describe()

    assert described("signal", signal.SIGKILL) == "crashed with SIGKILL after 2.0 s"
    assert described("memory", 9) == "was stopped at 9.1 GiB of memory"
    assert described("signal", 64) in ("crashed with SIGRTMAX after 2.0 s", "crashed with signal 64 after 2.0 s")
