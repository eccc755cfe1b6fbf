"""kill -9 in the middle of a run's training, then --resume: the same weights to the bit as a run left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_files import teacher_file, tiny_npz

from edgekd.data import Dataset

SCRIPT = """
import sys
from pathlib import Path
import torch
from edgekd.pipeline import record, run
from edgekd.pipeline.context import context_of, load_inputs
from edgekd.pipeline.events import Silent
from edgekd.pipeline.settings import Settings

torch.set_num_threads(1)
folder, data, teacher = map(Path, sys.argv[1:4])
training = {"epochs": 6, "batch_size": 32}
settings = Settings(profile="jetson-nano", data=str(data), teacher=str(teacher), targets=("null",), training=training)
again = (folder / "run.json").exists()
made = record.resume(folder, settings) if again else record.create(folder, settings, command="test")
run.run_stages(context_of(made, load_inputs(settings), Silent()), last="distil")
"""


def start(folder: Path, inputs: tuple[Path, Path]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), *map(str, inputs)])


@pytest.fixture
def inputs(tmp_path: Path, tiny_dataset: Dataset) -> tuple[Path, Path]:
    """Data as .npz and an untrained teacher: what is compared is weights, not accuracy."""
    return tiny_npz(tmp_path, tiny_dataset), teacher_file(tmp_path, tiny_dataset)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert start(alone, inputs).wait(timeout=300) == 0
    process = start(killed, inputs)
    checkpoint = killed / "training" / "distil" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 200
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert checkpoint.exists()
    assert not (killed / "student.safetensors").exists(), "it was killed too late to prove anything"
    assert start(killed, inputs).wait(timeout=300) == 0
    assert (killed / "student.safetensors").read_bytes() == (alone / "student.safetensors").read_bytes()
