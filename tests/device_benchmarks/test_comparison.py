"""Claims about `edgekd compare`: what is alike, what is refused and in which words, what a verdict says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edgekd.benchmarks.streams import STATE, Mood, interleaved, provenance, summarised
from edgekd.commands.compare import compare
from edgekd.device_benchmarks.comparison import compare_files, load_result
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.errors import CheckError, InputError

app = typer.Typer()
app.command()(compare)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A result file of models at the given levels (ms); keywords change the provenance, `document` the JSON."""

    def result(file: str, levels: dict[str, float], *, seed: int = 0, document: Any = None, **changes: Any) -> Path:
        rows = summarised(interleaved(np.random.default_rng(seed), Mood(), level_ms=levels))
        kind = "emulated" if document and document.get("kind") == "emulated" else "measured"
        told = [row.model_copy(update={"provenance": provenance(**changes), "kind": kind}) for row in rows.values()]
        found = MeasurementSet(mode="quick", seconds=1, measurements=tuple(told), ratios=(), failures={})
        (tmp_path / file).write_text(json.dumps({**found.model_dump(mode="json"), **(document or {})}))
        return tmp_path / file

    return result


def test_a_model_that_became_faster_is_called_so_and_one_that_did_not_is_not(write: Write) -> None:
    before, same = write("a.json", {"m": 5.0}), write("b.json", {"m": 5.0}, seed=1)
    faster, slower = write("c.json", {"m": 4.0}, seed=2), write("d.json", {"m": 6.2}, seed=3)
    verdicts = [compare_files(before, other).ratios[0].verdict for other in (same, faster, slower)]
    assert verdicts == ["no significant difference", "faster", "slower"]
    assert compare_files(before, faster).ratios[0].ratio == pytest.approx(1.25, rel=0.03)


def test_every_comparison_says_that_two_runs_are_wider_than_one_interleaved(write: Write) -> None:
    result = CliRunner().invoke(app, [str(write("a.json", {"m": 5.0})), str(write("b.json", {"m": 4.0}))])
    assert result.exit_code == 0
    assert "m: faster (" in result.stdout
    assert "99% CI" in result.stdout
    assert "unpaired: the interval is wider than that of one interleaved run" in result.stderr


def test_json_is_one_document(write: Write) -> None:
    result = CliRunner().invoke(app, [str(write("a.json", {"m": 5.0})), str(write("b.json", {"m": 4.0})), "--json"])
    document = json.loads(result.stdout)
    assert document["ratios"][0]["verdict"] == "faster"
    assert "interleaved" in document["note"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 4}, "threads 1 against 4"),
        ({"runtime_version": "2.0"}, "runtime onnxruntime 1.23 against onnxruntime 2.0"),
        ({"runtime": "openvino"}, "runtime onnxruntime 1.23 against openvino 1.23"),
        ({"precision": "int8"}, "precision fp32 against int8"),
        ({"affinity": (2, 3)}, "affinity none against 2x3"),
        ({"input_shape": (1, 3, 64, 64)}, "input shape 1x3x32x32 against 1x3x64x64"),
        ({"mode": "sustained"}, "mode quick against sustained"),
        ({"executed": "interpreted"}, "executed runtime against interpreted"),
        ({"host_start": STATE.model_copy(update={"cpu_model": "Other"})}, "against Other"),
        ({"host_start": STATE.model_copy(update={"device_model": "Pixel 8"})}, "against Pixel 8"),
        ({"host_start": STATE.model_copy(update={"power_mode": "15W"})}, "power mode unknown against 15W"),
        ({"host_start": STATE.model_copy(update={"serial_sha256": "ff"})}, "against ff"),
    ],
)
def test_unlike_things_are_refused_with_what_differs_and_force_compares_them(
    write: Write, changes: dict[str, Any], words: str
) -> None:
    first, second = write("a.json", {"m": 5.0}), write("b.json", {"m": 4.0}, **changes)
    with pytest.raises(CheckError) as refused:
        compare_files(first, second)
    assert "not alike: " in str(refused.value)
    assert words in str(refused.value)
    assert "--force" in str(refused.value)
    assert any(words in text for text in compare_files(first, second, force=True).unlike)
    assert words in CliRunner().invoke(app, [str(first), str(second), "--force"]).stderr.replace("\n", "")


@pytest.mark.parametrize("force", [False, True])
def test_emulated_times_are_never_compared(write: Write, force: bool) -> None:
    real, emulated = write("a.json", {"m": 5.0}), write("b.json", {"m": 4.0}, document={"kind": "emulated"})
    for pair in ((real, emulated), (emulated, real), (emulated, emulated)):
        with pytest.raises(CheckError, match=r"b\.json: its times were taken in an emulator"):
            compare_files(*pair, force=force)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not a JSON document"),
        ('{"measurements": [', "not a JSON document"),
        ("[1]", "not a result of `edgekd profile --json`"),
        ('{"schema_version": 1}', "not a result of"),
        ('{"measurements": [], "schema_version": 2}', "schema_version is 2; this edgekd reads 1"),
        ('{"measurements": []}', "schema_version is None"),
        ('{"devices": {"pi": {}, "nano": {}}}', r"holds several devices \(pi, nano\)"),
        ('{"measurements": [{}], "schema_version": 1}', "was it edited"),
    ],
)
def test_a_file_that_is_no_result_is_one_line_that_names_it(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=match) as refused:
        load_result(tmp_path / "x.json")
    assert "x.json" in str(refused.value)


def test_a_binary_or_absent_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a JSON document"):
        load_result(tmp_path / "x.json")
    with pytest.raises(InputError, match="no such file; edgekd profile MODEL --json > FILE"):
        load_result(tmp_path / "absent.json")


def test_a_changed_sample_that_is_none_is_refused(write: Write) -> None:
    path = write("a.json", {"m": 5.0})
    document = json.loads(path.read_text())
    document["measurements"][0]["blocks"][0]["wall_ns"][0] = "fast"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"measurements\.0\.blocks\.0\.wall_ns\.0"):
        load_result(path)


def test_models_pair_by_name_and_single_ones_whatever_their_names(write: Write) -> None:
    both = write("a.json", {"x": 5.0, "y": 3.0})
    assert [r.name for r in compare_files(both, write("b.json", {"y": 2.0, "z": 1.0})).ratios] == ["y"]
    alone = compare_files(write("c.json", {"x": 5.0}), write("d.json", {"w": 4.0}))
    assert [r.name for r in alone.ratios] == ["x -> w"]
    with pytest.raises(InputError, match=r"no model is in both \(x, y \| v, w\)"):
        compare_files(both, write("e.json", {"v": 5.0, "w": 4.0}))


def test_with_several_threads_only_the_wall_clock_judges(write: Write) -> None:
    first, second = (write(f"{level}.json", {"m": level}, threads=2) for level in (5.0, 4.0))
    (ratio,) = compare_files(first, second).ratios
    assert (ratio.verdict, ratio.cpu_ratio) == ("faster", None)
