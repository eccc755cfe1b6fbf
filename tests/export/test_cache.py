"""An unchanged conversion comes from the cache, a changed or damaged one is made anew, several at once do no harm."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.export import ExportRequest, default_cache, export_all, export_one, runner
from edgekd.export import cache as cache_module
from edgekd.export.cache import ExportCache, key_of, program_digest
from edgekd.quant import export_float, save_program

# A converter that counts its runs and writes what the request's preprocessing says: no torch, a tenth of a second.
COUNTING = """
import json, pathlib, sys
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
path = pathlib.Path(request["out"]) / "model.pt2"
path.write_text(json.dumps(request["preprocessing"]) + "x" * 1000)
with open({runs!r}, "a") as runs:
    runs.write("run\\n")
tensor = {{"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32", "layout": "NCHW"}}
artifact = {{"target": request["target"], "precision": request["precision"], "path": str(path), "inputs": [tensor],
            "outputs": [tensor], "size_bytes": path.stat().st_size, "sha256": "0" * 64}}
pathlib.Path(sys.argv[2]).write_text(json.dumps({{"artifact": artifact}}))
"""


@pytest.fixture
def request_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExportRequest:
    (tmp_path / "worker.py").write_text(COUNTING.format(runs=str(tmp_path / "runs")))
    monkeypatch.setattr(runner, "WORKER_COMMAND", (sys.executable, str(tmp_path / "worker.py")))
    program = tmp_path / "float.pt2"
    program.write_bytes(b"weights")
    return ExportRequest(target="null", precision="fp32", program=program, out=tmp_path / "out" / "first")


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_an_unchanged_model_is_converted_once_and_the_second_outcome_says_so(request_null, tmp_path):
    again = request_null.model_copy(update={"out": tmp_path / "out" / "second"})
    first, second = (export_all([r], tmp_path / "logs", cache=tmp_path / "cache")[0] for r in (request_null, again))
    assert (first.state, first.cached, second.state, second.cached) == ("exported", False, "exported", True)
    assert runs(tmp_path) == 1
    assert first.artifact is not None
    assert second.artifact is not None
    assert second.artifact.path == again.out / "model.pt2"
    assert second.artifact.path.read_bytes() == first.artifact.path.read_bytes()
    assert second.log == "", "nothing was converted, so there is no log to read"


def test_a_changed_program_request_package_or_exporter_is_converted_again(request_null, tmp_path, monkeypatch):
    export_one(request_null, log=tmp_path / "log", cache=tmp_path / "cache")
    keys = {key_of(request_null), key_of(request_null.model_copy(update={"preprocessing": {"mean": [0.5]}}))}
    monkeypatch.setattr(cache_module, "_version", lambda package: f"another {package}")
    keys.add(key_of(request_null))
    monkeypatch.setattr(cache_module, "_sources_digest", lambda: "another exporter")
    keys.add(key_of(request_null))
    request_null.program.write_bytes(b"other weights")
    keys.add(key_of(request_null))
    assert len(keys) == 5
    export_one(request_null, log=tmp_path / "log", cache=tmp_path / "cache")
    assert runs(tmp_path) == 2


def test_where_the_program_and_the_artifact_lie_does_not_matter(request_null, tmp_path):
    moved = tmp_path / "moved.pt2"
    moved.write_bytes(request_null.program.read_bytes())
    elsewhere = request_null.model_copy(update={"program": moved, "out": tmp_path / "x"})
    assert key_of(elsewhere) == key_of(request_null)


@pytest.mark.parametrize("harm", ["model.pt2", "artifact.json", "entry.json", "gone"])
def test_a_damaged_entry_is_converted_again_and_replaced(request_null, tmp_path, harm):
    folder = tmp_path / "cache"
    export_one(request_null, log=tmp_path / "log", cache=folder)
    victim = next(folder.rglob("model.pt2" if harm == "gone" else harm))
    victim.unlink() if harm == "gone" else victim.write_bytes(b"damaged")
    artifact = export_one(request_null, log=tmp_path / "log", cache=folder)
    assert runs(tmp_path) == 2
    assert artifact.path.read_text().endswith("x" * 1000)
    export_one(request_null, log=tmp_path / "log", cache=folder)
    assert runs(tmp_path) == 2, "the new entry is whole"
    assert not [p for p in folder.rglob(".*")], "leftovers"


def test_without_a_cache_every_export_converts(request_null, tmp_path):
    export_one(request_null, log=tmp_path / "log")
    export_one(request_null, log=tmp_path / "log")
    assert runs(tmp_path) == 2


def test_the_entries_that_were_of_no_use_longest_go_first(tmp_path):
    cache, made = ExportCache(tmp_path / "cache", limit_bytes=2500), tmp_path / "made"
    made.mkdir()
    (made / "model.bin").write_bytes(b"x" * 1000)
    for age_s, key in ((300, "aa1"), (200, "bb2"), (0, "cc3")):
        cache.store(key, made)
        if age_s:
            entry = tmp_path / "cache" / key[:2] / key
            os.utime(entry, (entry.stat().st_mtime - age_s,) * 2)
    assert sorted(p.parent.name for p in (tmp_path / "cache").rglob("entry.json")) == ["bb2", "cc3"]


def test_many_that_store_and_fetch_one_entry_at_once_never_see_half_of_it(request_null, tmp_path):
    made, cache = tmp_path / "made", ExportCache(tmp_path / "cache")
    export_one(request_null.model_copy(update={"out": made}), log=tmp_path / "log")
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(6):
            cache.store("abcd", made)
            out = tmp_path / f"out-{number}-{turn}"
            out.mkdir()
            found = cache.fetch("abcd", out)
            if found is not None and found.path.read_bytes() != (made / "model.pt2").read_bytes():
                wrong.append(str(out))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.fetch("abcd", tmp_path / "last") is not None


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(request_null, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    artifact = export_one(request_null, log=tmp_path / "log", cache=tmp_path / "file")
    assert artifact.path.is_file()


def test_two_exports_of_one_model_have_one_digest_and_other_weights_another(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    first, second, third = (tmp_path / f"{name}.pt2" for name in "abc")
    for path in (first, second):
        save_program(export_float(net, (3, 8, 8)), path)
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1
    save_program(export_float(net, (3, 8, 8)), third)
    assert first.read_bytes() != second.read_bytes(), "torch writes an id and its notes on sources anew each time"
    assert program_digest(first) == program_digest(second) != program_digest(third)


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "own" / "exports"
    monkeypatch.delenv("EDGEKD_CACHE")
    assert default_cache() == tmp_path / "xdg" / "edgekd" / "exports"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == Path.home() / ".cache" / "edgekd" / "exports"


def test_as_many_conversions_run_at_once_as_cores_and_memory_allow(monkeypatch):
    class Memory:
        available = 3 * 2**30

    monkeypatch.setattr(runner, "_cores", lambda: 16)
    monkeypatch.setattr(runner.psutil, "virtual_memory", lambda: Memory)
    assert (runner.parallel_jobs(5), runner.parallel_jobs(1)) == (2, 1)
    monkeypatch.setattr(Memory, "available", 0)
    assert runner.parallel_jobs(5) == 1
