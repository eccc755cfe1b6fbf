"""Claims about naming devices: addresses, the devices file, several at once, and folders that never stay."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgekd.artifact import Artifact
from edgekd.cli import app
from edgekd.device_benchmarks import Contender, measure_all, schedule
from edgekd.device_benchmarks.devices import Device, device_of, load_devices
from edgekd.device_benchmarks.fleet import chosen, measure_on
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.device_benchmarks.transports import DeviceError, Remote, parse_device, scripts
from edgekd.device_benchmarks.transports.local import LocalLink
from edgekd.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "local",
        "ssh://board",
        "ssh://pi@192.168.1.7:2222",
        "ssh://me@[fe80::1%eth0]:22",
        "adb:R58M",
        "adb:10.0.0.2:5555",
    ],
)
def test_an_address_is_read_and_written_back(text: str) -> None:
    assert str(parse_device(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "ssh://-oProxyCommand=touch%20pwned",
        "ssh://-l@board",
        "ssh://pi@-oProxyCommand=x",
        "ssh://board;reboot",
        "ssh://board:0",
        "ssh://board:99999",
        "ssh://$(id)@board",
        "ssh://",
        "adb:-s",
        "adb:x y",
        "adb:",
        "telnet://board",
        "serial",
    ],
)
def test_what_could_be_taken_for_an_option_or_a_command_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match=r"--on: (no device|not an ssh address)"):
        parse_device(text)


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\0"), max_size=20))
def test_any_word_reaches_a_program_as_it_is(word: str) -> None:
    script = scripts.command("/tmp", ["printf", "%s", word], {}, timeout_s=10, has_timeout=True)
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == word
    assert scripts.ended(done.stderr.decode())[0] == 0


def test_a_program_that_takes_too_long_is_ended_there(tmp_path: Path) -> None:
    with Remote(LocalLink(str(tmp_path))) as remote:
        start = time.monotonic()
        assert remote.run(["sleep", "60"], timeout_s=0.5).returncode == 124
        assert time.monotonic() - start < 20
    assert list(tmp_path.iterdir()) == []


def test_what_still_runs_is_killed_and_the_folder_removed(tmp_path: Path) -> None:
    with Remote(LocalLink(str(tmp_path))) as remote:
        command = remote.command(["sh", "-c", f"sleep 600 # {remote.folder}"], timeout_s=600)
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not list(Path(remote.folder).glob("*.pid")) and time.monotonic() < deadline:
            time.sleep(0.05)
    running.wait(timeout=10)
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_belongs_to_another_program_is_spared(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    with Remote(LocalLink(str(tmp_path))) as remote:
        (Path(remote.folder) / "stale.pid").write_text(f"{stranger.pid}\n")
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_the_death_of_this_host_removes_the_folder(tmp_path: Path) -> None:
    code = (
        "import time; from edgekd.device_benchmarks.transports import Remote; "
        "from edgekd.device_benchmarks.transports.local import LocalLink; "
        f"r = Remote(LocalLink({str(tmp_path)!r})); r.connect(); print(r.folder, flush=True); time.sleep(60)"
    )
    held = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None
    folder = Path(held.stdout.readline().strip())
    assert folder.is_dir()
    os.kill(held.pid, signal.SIGKILL)
    held.wait()
    held.stdout.close()
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
def test_no_file_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with Remote(LocalLink(str(tmp_path))) as remote, pytest.raises(InputError, match="is not a name inside a folder"):
        remote.push(Path(__file__), name)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    return path


def test_a_devices_file_names_devices_with_their_settings(tmp_path: Path) -> None:
    text = """
[pi]
address = "ssh://pi@raspberrypi.local"
python = "/opt/edge/bin/python"
cpus = [2, 3]
env = { LD_LIBRARY_PATH = "/opt/lib" }

[phone]
address = "adb:R58M123"
benchmark_model = "tools/benchmark_model"
"""
    known = load_devices(written(tmp_path, text))
    assert known["pi"].cpus == (2, 3)
    assert known["phone"].benchmark_model == tmp_path / "tools/benchmark_model"
    assert device_of("ssh://pi@raspberrypi.local", known).name == "pi", "an address has its settings too"
    assert [d.name for d in chosen("pi,adb:X", known)] == ["pi", "adb:X"]
    with pytest.raises(InputError, match="no device 'pie'; did you mean 'pi'"):
        device_of("pie", known)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[a]\n", r"devices.toml: \[a\]: a device needs an address; address = "),
        ("a = 1\n", r"\[a\]: a device needs an address"),
        ('[a]\naddress = "ssh://x y"\n', r"\[a\]: not an ssh address"),
        ('[a]\naddress = "local"\npythn = "x"\n', r"\[a\]: unknown key 'pythn'; did you mean 'python'"),
        ('[a]\naddress = "local"\ncpus = "two"\n', r"\[a\]: cpus: "),
        ('[all]\naddress = "ssh://x"\n', r"\[all\]: that name means something else"),
        ("[a\n", "devices.toml: not a TOML file"),
    ],
)
def test_a_wrong_devices_file_is_one_line(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_devices(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_devices_file_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEKD_DEVICES", raising=False)
    assert load_devices() == {}
    monkeypatch.setenv("EDGEKD_DEVICES", str(tmp_path / "absent.toml"))
    with pytest.raises(InputError, match=r"absent.toml: no such devices file"):
        load_devices()


def test_several_devices_measure_at_once_and_a_dead_one_disturbs_none(
    board: Device, onnx_contender: Contender, brief: Schedule
) -> None:
    dead = Device(name="dead", address=parse_device("ssh://board:1"))
    here = Device(name="here", address=parse_device("local"), python=sys.executable, folder=board.folder)
    found = measure_on([board, dead, here], lambda s: measure_all([onnx_contender], mode=brief, place=s))
    assert set(found.devices) == {"board", "here"}
    assert found.devices["board"].measurement("tiny").provenance.device == "board"
    assert found.errors == {"dead": "dead: nothing listens on its ssh port; start sshd there, or give its port"}
    assert found.left_behind == {}
    assert list(Path(board.folder).iterdir()) == []


def test_one_device_cannot_be_measured_twice_at_once(board: Device) -> None:
    with pytest.raises(InputError, match="a device is named twice"):
        measure_on([board, board.model_copy(update={"name": "again"})], lambda session: measure_all([], place=session))


def toml_of(device: Device) -> str:
    rows = {"address": str(device.address), "python": device.python, "folder": device.folder}
    return f"[{device.name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in rows.items())


def test_the_command_measures_on_a_device_and_compares(
    board: Device, onnx_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief: Schedule
) -> None:
    monkeypatch.setitem(schedule.MODES, "quick", brief)
    file, model = str(written(tmp_path, toml_of(board))), str(onnx_artifact.path)
    result = CliRunner().invoke(app, ["profile", model, "--on", "board", "--against", model, "--devices", file])
    assert result.exit_code == 0, result.output
    assert "measured on board, batch 1" in result.stdout
    assert "outputs equal this host's within" in result.stdout
    assert "99% CI" in result.stdout


def test_on_all_measures_every_device_with_a_line_each_and_names_the_one_that_failed(
    board: Device, onnx_artifact: Artifact, brief: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.device_benchmarks.fleet.attached", list)
    monkeypatch.setitem(schedule.MODES, "quick", brief)
    file = written(tmp_path, 'off = { address = "ssh://board:1" }\n' + toml_of(board))
    words = ["profile", str(onnx_artifact.path), "--on", "all", "--devices", str(file), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, "one of the two failed"
    document = json.loads(result.stdout)
    assert (document["kind"], list(document["devices"])) == ("fleet", ["board"])
    assert document["devices"]["board"]["measurements"][0]["p50_ms"] > 0
    assert re.search(r"^board: \d+%, process 1 of 1: ", result.stderr, re.M)
    assert "failed: off: nothing listens on its ssh port" in result.stderr


def test_the_command_lists_devices_and_their_state(
    board: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.device_benchmarks.fleet.attached", list)
    off = 'off = { address = "ssh://board:1" }\n'
    file = written(tmp_path, off + toml_of(board))
    result = CliRunner().invoke(app, ["devices", "--devices", str(file), "--json"])
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["local"]["state"] == rows["board"]["state"] == "ready"
    assert rows["board"]["identity"]["versions"]["onnxruntime"]
    assert rows["off"]["state"].startswith("off: nothing listens on its ssh port")
    assert "board" in CliRunner().invoke(app, ["devices", "--devices", str(file)]).stdout


def test_a_module_without_a_file_is_not_sent_to_a_device(board: Device) -> None:
    from edgekd.device_benchmarks.contender import ZooModule

    contender = Contender(name="net", source=ZooModule(library="timm", name="resnet18"))
    with (
        pytest.raises(InputError, match="'net' has no file that board could run; give an exported file"),
        DeviceSession(board) as session,
    ):
        session.launch(contender, 1, 0)


def test_a_login_shell_that_prints_much_is_passed_over(board: Device, tmp_path: Path) -> None:
    shell = shlex.quote(str(tmp_path / "x"))
    assert "ready" in scripts.READY
    link = LocalLink(str(tmp_path))
    noisy = LocalLink(str(tmp_path))
    noisy.argv = lambda script, keeper=False: link.argv(f"echo Welcome; echo 'edgekd?' {shell}; {script}")  # type: ignore[method-assign]
    with Remote(noisy) as remote:
        assert remote.run(["echo", "hello"], timeout_s=5).stdout.endswith("hello\n")
    mute = LocalLink(str(tmp_path))
    mute.argv = lambda script, keeper=False: ["/bin/sh", "-c", "echo This account is not available."]  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"answered a shell script with something else \(This account is not availa"):
        Remote(mute).connect()
