"""A contender on a device, as `measure_all` sees it: the runner there, and the checks that this host makes of it."""

from __future__ import annotations

import base64
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import device_runner
from edgekd.device_benchmarks.contender import of_artifact
from edgekd.device_benchmarks.loading import example_image
from edgekd.device_benchmarks.measurement import Parity
from edgekd.device_benchmarks.model_files import description
from edgekd.device_benchmarks.process import Worker
from edgekd.device_benchmarks.resolve import runs_here
from edgekd.device_benchmarks.transports import DeviceError, Remote, faults, scripts
from edgekd.errors import CheckError, EdgekdError

Outputs = list[NDArray[np.float32]]
# Float kernels of two processors differ in the order of their sums; integer ones by a rounding step here and there.
BARS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2, "w8": 5e-2}
CLOCK_SLACK, CLOCK_SLACK_S = 1.2, 1.0
KILLED, TIME_UP = 137, 124
_SIGNALS = {
    132: "SIGILL",
    134: "SIGABRT",
    135: "SIGBUS",
    136: "SIGFPE",
    KILLED: "SIGKILL",
    139: "SIGSEGV",
    143: "SIGTERM",
}


class OnDevice:
    """A `Runner` around a worker whose process is on a device.

    reference: this host's outputs, or None where it cannot run the file. settle: waited for before each block.
    """

    def __init__(
        self,
        worker: Worker,
        artifact: Artifact,
        device: str,
        reference: Callable[[], Outputs | None],
        settle: Callable[[], None] | None = None,
    ) -> None:
        self.name, self._worker, self._artifact, self._device = worker.name, worker, artifact, device
        self._reference, self._settle = reference, settle or (lambda: None)

    def prepared(self) -> dict[str, Any]:
        """Import times; the files are known to have arrived whole."""
        return self._worker.prepared()

    def load(self) -> dict[str, Any]:
        """Load there, and compare outputs. Raises: CheckError: they are not those of this host."""
        loaded, expected = self._worker.load(), self._reference()
        if expected is None:
            return {**loaded, "note": "outputs not compared: this host has not its runtime"}
        return {**loaded, "parity": self._compared(expected)}

    def warm_up(self, *, min_runs: int, min_s: float, cap_s: float) -> dict[str, Any]:
        """As on this host."""
        return self._worker.warm_up(min_runs=min_runs, min_s=min_s, cap_s=cap_s)

    def block(self, *, runs: int, lead_in: int, expected_s: float) -> dict[str, Any]:
        """As on this host, once the device is cool. Raises: CheckError: its clock ran faster than this host's."""
        self._settle()
        start = time.monotonic()
        answer = self._worker.block(runs=runs, lead_in=lead_in, expected_s=expected_s)
        here_s, there_s = time.monotonic() - start, sum(answer["wall_ns"]) / 1e9
        if there_s > CLOCK_SLACK * here_s + CLOCK_SLACK_S:
            what = f"its clock jumped: {there_s:.1f} s there in a block that took {here_s:.1f} s"
            raise CheckError(what, where=self._device, fix="measure again once its clock is set")
        return answer

    def finish(self) -> dict[str, Any]:
        """Memory there."""
        return self._worker.finish()

    def close(self) -> None:
        """End the process here; the end of its input ends it there."""
        self._worker.close()

    def _compared(self, expected: Outputs) -> Parity:
        answer = self._worker.ask("outputs", doing="computing outputs to compare")
        parity = compare_outputs(expected, decoded(answer), self._artifact.precision)
        if not parity.holds:
            what = f"its outputs differ from this host's by {parity.max_relative_error:.2g} (bar {parity.bar:g})"
            raise CheckError(f"'{self.name}': {what}", where=self._device, fix="check the runtime's version there")
        return parity


def compare_outputs(expected: Outputs, found: Outputs, precision: str) -> Parity:
    """The worst output counts. Shapes that differ, or a number that is none, are an infinite error."""
    errors = [0.0]
    for mine, theirs in zip(expected, found, strict=False):
        if mine.shape != theirs.shape or not np.isfinite(theirs).all():
            errors.append(float("1e30"))
            continue
        scale = max(float(np.abs(mine).max()), 1e-12)
        errors.append(float(np.abs(mine.astype(np.float64) - theirs).max()) / scale)
    worst = max(errors) if len(expected) == len(found) else 1e30
    return Parity(max_relative_error=worst, bar=BARS[precision], holds=worst <= BARS[precision], against="this host")


def decoded(answer: dict[str, Any]) -> Outputs:
    """The runner's outputs. Raises: CheckError: they are not what it writes."""
    try:
        return [
            np.frombuffer(base64.b64decode(row["base64"]), dtype=np.float32).reshape(row["shape"])
            for row in answer["outputs"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckError(f"its outputs cannot be read ({error})") from error


def reference_outputs(artifact: Artifact) -> Outputs | None:
    """What this host computes with the very same runner; None where it has not the artifact's runtime.

    Computed once for a file in this process: several devices compare with it.
    """
    if not runs_here(artifact.target):
        return None
    return _computed_here(artifact.model_dump_json())


@lru_cache(maxsize=64)
def _computed_here(document: str) -> Outputs | None:
    artifact = Artifact.model_validate_json(document)
    model = description(artifact, str(artifact.path.resolve()), {})
    with tempfile.NamedTemporaryFile(suffix=".f32") as image:
        Path(image.name).write_bytes(example_image(tuple(model["input_shape"]), artifact.inputs[0].holds).tobytes())
        first = {"model": {**model, "image": image.name}, "affinity": []}
        command = [sys.executable, "-P", device_runner.__file__]
        try:
            with Worker(of_artifact(artifact), threads=1, command=command, first=first, device="this host") as worker:
                worker.prepared()
                worker.load()
                return decoded(worker.ask("outputs", doing="computing outputs to compare"))
        except EdgekdError:
            return None


def runner_failure(remote: Remote, code: int | None, stderr: str) -> DeviceError | None:
    """What the end, or the silence, of a runner on a device means; None: its own words must do."""
    status, said = scripts.ended(stderr)
    if status is None:
        return remote.explain(code, stderr)
    if status == TIME_UP:
        return DeviceError("the runner was ended there: its time was up", where=remote.name)
    if status == KILLED:
        fix = "most often it ran out of memory: see dmesg there, use a smaller model, or close other programs"
        return DeviceError("the runner was killed on the device", where=remote.name, fix=fix)
    if status in _SIGNALS:
        what = f"the runner crashed on the device ({_SIGNALS[status]}): {faults.last_words(said) or 'no words'}"
        return DeviceError(what, where=remote.name, fix="is its runtime built for this processor?")
    if status in (126, 127):
        return DeviceError(f"its Python does not start ({faults.last_words(said)})", where=remote.name)
    return faults.explained(faults.DEVICE, said, device=remote.name, machine=remote.machine)
