"""Claims about workers: what they answer, and what their parent says when they die, hang or talk nonsense."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import Contender, of_artifact
from edgekd.device_benchmarks.process import Worker
from edgekd.errors import CheckError, InputError

ANSWER_PREPARE = "import sys; sys.stdin.readline(); print('{}', flush=True); "


def gone(pid: int) -> bool:
    """Whether no process of this id is left, not even a zombie of ours."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def worker(onnx_contender: Contender) -> Iterator[Worker]:
    with Worker(onnx_contender, threads=1, timeout_s=120) as started:
        yield started


def faulty(contender: Contender, script: str, *, timeout_s: float = 60) -> Worker:
    return Worker(contender, threads=1, command=[sys.executable, "-c", script], timeout_s=timeout_s)


def test_a_worker_loads_warms_up_times_and_tells_its_memory(worker: Worker) -> None:
    worker.prepared()
    loaded = worker.load()
    warm = worker.warm_up(min_runs=10, min_s=0.01, cap_s=1)
    block = worker.block(runs=7, lead_in=2, expected_s=1)
    finished = worker.finish()
    assert loaded["input_shape"] == [1, 1, 28, 28]
    assert loaded["runtime"] == "onnxruntime"
    assert loaded["load_ms"] > 0
    assert len(warm["wall_ns"]) >= 10
    assert len(block["wall_ns"]) == len(block["cpu_ns"]) == 7
    assert finished["peak_rss_mib"] > finished["model_rss_mib"] >= 0


def test_leaving_a_worker_reaps_its_process(worker: Worker) -> None:
    worker.prepared()
    worker.close()
    assert gone(worker.pid)


def test_threads_and_affinity_reach_the_process(onnx_contender: Contender) -> None:
    cpu = min(os.sched_getaffinity(0))
    pinned = onnx_contender.model_copy(update={"affinity": (cpu,)})
    with Worker(pinned, threads=3, timeout_s=120) as worker:
        worker.prepared()
        environment = Path(f"/proc/{worker.pid}/environ").read_text().split("\0")
        assert os.sched_getaffinity(worker.pid) == {cpu}
        assert "OMP_NUM_THREADS=3" in environment


def test_a_killed_worker_is_named_with_its_signal(worker: Worker) -> None:
    worker.prepared()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(CheckError, match=r"contender 'tiny': its process died while loading \(killed by SIGKILL\)"):
        worker.load()


def test_a_crash_quotes_the_last_lines_of_stderr(onnx_contender: Contender) -> None:
    script = ANSWER_PREPARE + "sys.exit('first line\\nterminate called: bad_alloc')"
    with faulty(onnx_contender, script) as worker:
        worker.prepared()
        with pytest.raises(CheckError, match=r"exit code 1\); it said: first line \| terminate called: bad_alloc"):
            worker.load()


def test_what_a_vendor_library_prints_to_stdout_is_kept_out_of_the_answers(onnx_contender: Contender) -> None:
    script = (
        "import os; from edgekd.device_benchmarks import loading, worker; load = loading.load; "
        "loading.load = lambda *a, **k: (os.write(1, b'INFO: delegate created\\n'), load(*a, **k))[1]; worker.main()"
    )
    with faulty(onnx_contender, script, timeout_s=120) as worker:
        worker.prepared()
        assert worker.load()["runtime"] == "onnxruntime"


def test_garbage_instead_of_an_answer_is_shown_for_what_it_is(onnx_contender: Contender) -> None:
    script = ANSWER_PREPARE + "print('INFO: Created TensorFlow Lite delegate', flush=True); sys.stdin.read()"
    with faulty(onnx_contender, script) as worker:
        worker.prepared()
        with pytest.raises(
            CheckError, match=r"'tiny': its process answered with something that is no JSON.*INFO: Created"
        ):
            worker.load()


@pytest.mark.parametrize(
    "answer", ['{"wall_ns": [1], "cpu_ns": [1, 2]}', '{"wall_ns": [1, -5], "cpu_ns": [1, 2]}', "{}"]
)
def test_a_block_with_missing_or_impossible_samples_is_refused(onnx_contender: Contender, answer: str) -> None:
    script = ANSWER_PREPARE + f"print('{answer}', flush=True); sys.stdin.read()"
    with faulty(onnx_contender, script) as worker:
        worker.prepared()
        with pytest.raises(CheckError, match="answered a block of 2 runs with"):
            worker.block(runs=2, lead_in=0, expected_s=0.1)


def test_a_hanging_worker_is_given_up_and_killed_with_its_children(onnx_contender: Contender, tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = ANSWER_PREPARE + (
        "import subprocess, time; p = subprocess.Popen(['sleep', '600']); "
        f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    with faulty(onnx_contender, script, timeout_s=30) as worker:
        worker.prepared()
        deadline = time.monotonic() + 30
        while not (child.exists() and child.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        worker._timeout_s = 0.2
        with pytest.raises(CheckError, match="'tiny': its process gave no answer within 0 s while loading"):
            worker.load()
    assert gone(worker.pid)
    grandchild = int(child.read_text())
    deadline = time.monotonic() + 10
    while not gone(grandchild) and time.monotonic() < deadline:  # init reaps it, not we
        if "Z" in Path(f"/proc/{grandchild}/stat").read_text().split(")")[1][:3]:
            break
        time.sleep(0.05)
    else:
        assert gone(grandchild)


def test_a_corrupt_model_is_an_input_error_naming_contender_and_file(onnx_artifact: Artifact, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_artifact.path.read_bytes()[:100])
    contender = of_artifact(onnx_artifact.model_copy(update={"path": broken}), name="bad")
    with Worker(contender, threads=1, timeout_s=120) as worker:
        worker.prepared()
        with pytest.raises(InputError, match=r"contender 'bad': .*broken\.onnx"):
            worker.load()
