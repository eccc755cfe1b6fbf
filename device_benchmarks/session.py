"""One device held for one measurement: connected, runner and models pushed, contenders started, left as it was."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import android, device_runner, device_state, jetson
from edgekd.device_benchmarks.contender import Contender
from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.host import HostState, flags_in
from edgekd.device_benchmarks.loading import example_image, image_shape
from edgekd.device_benchmarks.measure import Runner
from edgekd.device_benchmarks.model_files import description, exported, files_of
from edgekd.device_benchmarks.on_device import OnDevice, reference_outputs, runner_failure
from edgekd.device_benchmarks.process import Worker
from edgekd.device_benchmarks.transports import DeviceError, DeviceLostError, Link, Remote
from edgekd.device_benchmarks.transports.adb import AdbLink
from edgekd.device_benchmarks.transports.local import LocalLink
from edgekd.device_benchmarks.transports.scripts import PYTHONS
from edgekd.device_benchmarks.transports.ssh import SshLink
from edgekd.device_benchmarks.wheels import push_wheels
from edgekd.errors import InputError
from edgekd.files import sha256_of

RUNNER, STATE = Path(device_runner.__file__), Path(device_state.__file__)
# The end of the runner's input ends it; this is for a device whose link hangs without ending.
RUNNER_LIMIT_S = 4 * 3600
STATE_TIMEOUT_S = 120.0
RECONNECT_S = 60.0
RECOVERIES_MAX = 3
RUNTIME_TIMEOUT_S = 120.0  # an old board imports TensorFlow for most of a minute
# By the runner's own list and words: the folder that it lies in, the target.
_IMPORTS_IT = """import sys
sys.path.insert(0, sys.argv[1])
import device_runner
try:
    device_runner.runtime_module(sys.argv[2])
except ImportError as error:
    sys.stdout.write("\\n" + str(device_runner.absent(sys.argv[2], error)))
    sys.exit(3)
"""
RUNTIME_ABSENT = 3


def link_of(device: Device) -> Link:
    """The way to a device. Raises: InputError: its tool is not on this host."""
    address = device.address
    if address.kind == "ssh":
        return SshLink(address, name=device.name, options=device.ssh_options)
    return AdbLink(address.serial, name=device.name) if address.kind == "adb" else LocalLink()


@dataclass
class DeviceSession:
    """A `Place` for `measure_all`, used in a `with`: nothing of ours is on the device afterwards.

    reconnect_s: how long to try to reach it again after its link was lost, at most 3 times in all.
    left_behind: after the end, the folder that could not be seen to be removed, or "".
    """

    device: Device
    reconnect_s: float = RECONNECT_S
    left_behind: str = ""
    _remote: Remote = field(init=False)
    _pushed: dict[str, str] = field(default_factory=dict)
    _recoveries: int = 0
    _boot_id: str | None = None

    def __enter__(self) -> DeviceSession:
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    @property
    def name(self) -> str:
        """As the user named it."""
        return self.device.name

    @property
    def remote(self) -> Remote:
        """The device's folder and programs."""
        return self._remote

    def state(self) -> HostState:
        """Identity and state of the device. Raises: DeviceError: it tells nothing that can be read."""
        if self.by_benchmark_model:
            return android.state(self._remote, emulated=self.device.emulated)
        done = self._remote.run(
            [self._remote.require_python(), self._runner(), "state"], timeout_s=STATE_TIMEOUT_S, env=self._env()
        )
        try:
            facts = json.loads(done.stdout.strip().splitlines()[-1])
            facts["emulated"] = facts["emulated"] or self.device.emulated
            facts["thread_mask"] = list(self.device.cpus) or facts["thread_mask"]
            found = HostState(**facts)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            said = runner_failure(self._remote, done.returncode, done.stderr)
            raise said or DeviceError(f"told no state, but: {done.stdout[:80]!r}", where=self.name) from error
        self._boot_id = self._boot_id or found.boot_id
        return self._with_android(jetson.with_state(self._remote, found))

    def identity(self) -> HostState:
        """As `state`; a phone is asked through its own shell where it has no Python.

        Raises: DeviceError: an ssh device without Python.
        """
        if self.device.address.kind == "adb" and self._remote.python is None:
            return android.state(self._remote, emulated=self.device.emulated)
        return self.state()

    def why_not(self, target: str) -> str:
        """Why no file of a target can run there, with the cure; "" where it can. Raises: DeviceError: it failed."""
        if target == "tensorrt":
            found = self._remote.run(["sh", "-c", 'command -v "$0"', self.device.trtexec], timeout_s=STATE_TIMEOUT_S)
            return "" if found.returncode == 0 else f"no {self.device.trtexec} there; name it in the devices file"
        if self.by_benchmark_model:
            return self._benchmark_why_not(target)
        if target not in device_runner.RUNTIMES:
            known = ", ".join((*device_runner.RUNTIMES, "tensorrt"))
            return f"files of '{target}' are not measured on a device (those of {known} are)"
        done = self._remote.run(
            [self._remote.require_python(), "-c", _IMPORTS_IT, str(PurePosixPath(self._runner()).parent), target],
            timeout_s=RUNTIME_TIMEOUT_S,
            env=self._env(),
        )
        if done.returncode == RUNTIME_ABSENT:
            return done.stdout.strip().splitlines()[-1]
        if done.returncode != 0:
            said = runner_failure(self._remote, done.returncode, done.stderr)
            raise said or DeviceError(f"its Python failed ({done.stderr[-200:]!r})", where=self.name)
        return ""

    def cpu_flags(self) -> frozenset[str]:
        """As `host.cpu_flags`, of the device; empty where it does not tell."""
        return flags_in(self._remote.run(["cat", "/proc/cpuinfo"], timeout_s=STATE_TIMEOUT_S).stdout)

    def launch(self, contender: Contender, threads: int, process: int, /) -> Runner:
        """Push what the contender needs, once, and start it in a fresh process there.

        Raises: InputError: it cannot run there. DeviceError: the device failed.
        """
        artifact = exported(contender, self.name)
        pinned = contender.model_copy(update={"affinity": contender.affinity or self.device.cpus})
        if artifact.target == "tensorrt":
            return jetson.TrtexecRunner(
                self._remote, pinned, artifact, trtexec=self.device.trtexec, env=self.device.env
            )
        if self.by_benchmark_model:
            return android.BenchmarkModelRunner(self._remote, pinned, threads, self._benchmark_files(artifact))
        env = {**device_env(threads), **self._env()}
        worker = Worker(
            contender,
            threads=threads,
            command=self._remote.command(
                [self._remote.require_python(), self._runner()], timeout_s=RUNNER_LIMIT_S, env=env
            ),
            first={"model": self._model(artifact), "affinity": list(pinned.affinity)},
            device=self.name,
            explain=self._explain,
        )
        return OnDevice(worker, artifact, self.name, lambda: reference_outputs(artifact), self._settle())

    def recover(self, error: DeviceLostError, /) -> None:
        """Connect again, with waits, and push anew. Raises: DeviceLostError: it does not come back."""
        self._recoveries += 1
        if self._recoveries > RECOVERIES_MAX:
            raise DeviceLostError(f"lost {self._recoveries} times ({error.what})", where=self.name, fix=error.fix)
        old = self._remote.folder
        self._leave()
        deadline, wait_s, last = time.monotonic() + self.reconnect_s, 0.5, error.what
        while time.monotonic() < deadline:
            try:
                self._connect()
                self._remote.remove_other(old)
                self.left_behind = ""
                return
            except DeviceError as refused:
                last = refused.what
            time.sleep(min(wait_s, max(0.0, deadline - time.monotonic())))
            wait_s = min(2 * wait_s, 10)
        what = f"{error.what}; not back within {self.reconnect_s:.0f} s ({last})"
        raise DeviceLostError(what, where=self.name, fix=error.fix)

    @property
    def by_benchmark_model(self) -> bool:
        """Whether Google's tool runs the models, because it was named or because there is no Python."""
        return self.device.address.kind == "adb" and self.device.benchmark_model is not None

    def _env(self) -> dict[str, str]:
        """Of Python there: the user's, and the way to the wheels, which are pushed once."""
        env, folder = self.device.env, self.device.wheels
        if folder is None:
            return env
        if "wheels" not in self._pushed:
            self._pushed["wheels"] = push_wheels(self._remote, folder)
        return {**env, "PYTHONPATH": ":".join(filter(None, (self._pushed["wheels"], env.get("PYTHONPATH"))))}

    def _connect(self) -> None:
        pythons = (self.device.python,) if self.device.python else PYTHONS
        self._remote = Remote(link_of(self.device), parent=self.device.folder, pythons=pythons)
        self._pushed = {}
        self._remote.connect()

    def _leave(self) -> None:
        folder = self._remote.folder
        if not self._remote.close():
            self.left_behind = folder

    def _runner(self) -> str:
        self._push_once(STATE, STATE.name)
        return self._push_once(RUNNER, RUNNER.name)

    def _push_once(self, source: Path, name: str) -> str:
        if name not in self._pushed:
            self._pushed[name] = self._remote.push(source, name)
        return self._pushed[name]

    def _model(self, artifact: Artifact) -> dict[str, Any]:
        """What the runner needs to know; file names there are ours, whatever they are called here."""
        sources = files_of(artifact)
        stem = f"model-{artifact.sha256[:16]}"
        paths = [self._push_once(source, f"{stem}{suffix}") for suffix, source in sources.items()]
        described = description(artifact, paths[0], dict(zip(paths, map(sha256_of, sources.values()), strict=True)))
        return {**described, "image": self._image(artifact)}

    def _image(self, artifact: Artifact) -> str:
        spec = artifact.inputs[0]
        shape = image_shape(spec)
        name = f"image-{'x'.join(map(str, shape))}-{spec.holds}.f32"
        if name not in self._pushed:
            self._pushed[name] = self._remote.push_bytes(example_image(shape, spec.holds).tobytes(), name)
        return self._pushed[name]

    def _benchmark_why_not(self, target: str) -> str:
        tool = self.device.benchmark_model
        if target != "tflite":
            return "benchmark_model runs .tflite files only"
        return "" if tool is not None and tool.is_file() else f"no benchmark_model at {tool}; download or build it"

    def _benchmark_files(self, artifact: Artifact) -> tuple[str, str]:
        tool = self.device.benchmark_model
        assert tool is not None
        if artifact.target != "tflite":
            raise InputError("benchmark_model runs .tflite files only", where=artifact.path)
        if not tool.is_file():
            raise InputError(
                "no benchmark_model there", where=tool, fix="download or build Google's tool for the device"
            )
        model = self._push_once(artifact.path, f"model-{artifact.sha256[:16]}.tflite")
        return self._push_once(tool, "benchmark_model"), model

    def _explain(self, code: int | None, stderr: str) -> DeviceError | None:
        return runner_failure(self._remote, code, stderr)

    def _settle(self) -> Any:
        return android.ThermalGuard(self._remote).settle if self.device.address.kind == "adb" else None

    def _with_android(self, found: HostState) -> HostState:
        if self.device.address.kind != "adb":
            return found
        return found.model_copy(update={"thermal_status": android.thermal_status(self._remote)})


def device_env(threads: int) -> dict[str, str]:
    """Thread counts for the libraries that read them from the environment."""
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
