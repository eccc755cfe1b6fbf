"""A killed run goes on bit for bit; two processes learn what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from edgekd.distill.losses import LOSSES

LEARNER = Path(__file__).with_name("learner.py")
# What they remember, or draw negatives from, is of all processes; and what they compare the images of a batch with.
BANKS = ("crd", "crd_memory", "wcord_global")
RELATIONS = ("dist", "mlkd", *(name for name, loss in LOSSES.items() if getattr(loss, "between_images", False)))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "KMP_AFFINITY": "disabled"}


def with_methods(names: tuple[str, ...]) -> tuple[str, ...]:
    """Options of the learner."""
    return tuple(word for name in names for word in ("--method", name))


def learn(out: Path, *options: str) -> None:
    command = [sys.executable, str(LEARNER), str(out), *options]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=240, stdout=subprocess.DEVNULL)


def steps_saved(out: Path) -> int:
    path = out / "checkpoints" / "last.pt"
    return int(torch.load(path, weights_only=True)["step"]) if path.exists() else 0


def kill_once_saved(out: Path, step: int, *options: str) -> None:
    """Start a run and SIGKILL it, at whatever it then does, once a checkpoint of `step` or later is there."""
    process = subprocess.Popen(
        [sys.executable, str(LEARNER), str(out), *options], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while steps_saved(out) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9, "the run ended before it was killed"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--players",)], ids=["teacher", "players"])
def test_a_run_killed_with_sigkill_and_resumed_ends_bit_for_bit_the_same(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    learn(tmp_path / "whole", *options)
    kill_once_saved(tmp_path / "killed", 7, *options)
    assert 7 <= steps_saved(tmp_path / "killed") < 108
    learn(tmp_path / "killed", "--resume", *options)
    whole, killed = (torch.load(tmp_path / run / "final.pt", weights_only=True) for run in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert (tmp_path / "whole/history.json").read_text() == (tmp_path / "killed/history.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [with_methods(BANKS), ("--players",), with_methods(RELATIONS)],
    ids=["banks", "players", "relations"],
)
def test_two_processes_follow_the_loss_curve_of_one(options: tuple[str, ...], tmp_path: Path) -> None:
    learn(tmp_path / "one", "--plain", *options)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(LEARNER), str(tmp_path / "two"), "--plain", *options]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=240, capture_output=True)
    one, two = (json.loads((tmp_path / run / "history.json").read_text()) for run in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for a, b in zip(one["history"], two["history"], strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    weights = [torch.load(tmp_path / run / "final.pt", weights_only=True) for run in ("one", "two")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)
