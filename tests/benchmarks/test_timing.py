"""Claims about `edgekd bench timing`: its parts run for real in small, resume, and say NO where a bar does not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgekd.benchmarks import peers, timing
from edgekd.benchmarks.page import BEGIN, END
from edgekd.benchmarks.streams import MOODS
from edgekd.benchmarks.timing_page import document, text
from edgekd.cli import app
from edgekd.device_benchmarks import schedule
from edgekd.device_benchmarks.block_ops import Net, Op
from edgekd.device_benchmarks.block_tflite import tflite_bytes
from edgekd.device_benchmarks.probe_nets import Probe, write_probe
from edgekd.errors import CheckError, InputError

BRIEF = schedule.MODES["quick"].model_copy(
    update={"processes": 1, "rounds": 2, "runs_min": 4, "block_s": 0.005, "warm_up_s": 0.01, "warm_up_cap_s": 0.1}
)
HOST = {"load": [0.5, 1.5], "stolen_s": 0.0, "at": "2026-01-01 00:00:00"}
SETTINGS = {"models": ["m"], "threads": 1, "seed": 0, "mode": "quick"}


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small chain of convolutions, and one that is several times as much work."""
    folder = tmp_path_factory.mktemp("nets")
    made = (
        write_probe(Probe(name, 14, 16, 3, n), folder / f"{name}.onnx") for name, n in (("small", 2), ("large", 20))
    )
    small, large = made
    return str(small), str(large)


def brief(out: Path, models: tuple[str, ...], **changes: Any) -> timing.Plan:
    return timing.Plan(out=out, models=models, schedule=BRIEF, **{"rounds": 2, "repeats": 2, "sessions": 1, **changes})


def test_every_part_measures_and_goes_on_behind_what_is_there(nets: tuple[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    kept = timing.run(brief(tmp_path, nets), timing.PARTS, said.append)
    assert [len(kept[part]) for part in timing.PARTS] == [4, 2, 1, 5]
    peer = kept["peers"][0]
    assert (peer["model"], peer["tool"], peer["round"]) == ("small.onnx", "perf_test loop", 0)
    assert peer["order"] == peer["order"][::-1]
    assert all(ms > 0 for ms in [*peer["edgekd_ms"], *peer["peer_ms"]])
    assert kept["repeatability"][0]["interleaved"]["ratio"] > 2, "ten times the work"
    assert kept["repeatability"][0]["sequential"] > 2
    assert set(kept["aa"][0]) >= {"session", "same", "tenth", "load"}
    said.clear()
    more = timing.run(brief(tmp_path, nets, repeats=3), ("repeatability", "aa"), said.append)
    assert [line.partition(":")[0] for line in said] == ["repeat 3"]
    assert more["repeatability"][:2] == kept["repeatability"]
    with pytest.raises(InputError, match="it holds results with threads 1, now 2; give the same again"):
        timing.run(brief(tmp_path, nets, threads=2), ("aa",))


def test_no_round_starts_once_the_time_is_over(nets: tuple[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    assert timing.run(brief(tmp_path, nets, seconds=0.0), ("peers", "aa"), said.append)["peers"] == []
    assert said == [f"{part}: the time is over; the same command goes on" for part in ("peers", "aa")]


def test_a_wrong_model_leaves_nothing_that_stands_in_the_way_of_the_right_one(
    nets: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no such model"):
        timing.run(brief(tmp_path, (str(tmp_path / "typo.onnx"), nets[1])), ("peers",))
    assert timing.run(brief(tmp_path, nets, seconds=0.0), ("peers",))["peers"] == []


def peer_row(number: int, mine: float, theirs: float) -> dict[str, Any]:
    both = {"edgekd_ms": [mine, mine], "peer_ms": [theirs, theirs]}
    return {"model": "m.onnx", "tool": "t", "round": number, **both, **HOST}


def speed(ratio: float, found: str = "faster", **changes: Any) -> dict[str, Any]:
    three = [ratio, ratio, ratio]
    return {"ratio": ratio, "found": found, "clock": "wall", "wall": three, "cpu": three, **changes}


def rows(**parts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {part: parts.get(part, []) for part in timing.PARTS}


@pytest.mark.parametrize(("mine", "holds"), [(1.029, True), (1.035, False), (0.965, False)])
def test_a_p50_off_by_more_than_three_percent_breaks_the_bar(mine: float, holds: bool) -> None:
    found = document(rows(peers=[peer_row(i, mine * (1 + i / 1e4), 1.0) for i in range(4)]), SETTINGS)
    (peer,) = found["peers"]
    assert found["holds"] is holds
    assert peer["lo"] <= peer["ratio"] <= peer["hi"]
    assert f"| {'yes' if holds else 'NO'} |" in text(found)


@pytest.mark.parametrize(("spread", "holds"), [(0.02, True), (0.08, False)])
def test_a_speedup_that_varies_by_more_than_five_percent_breaks_the_bar(spread: float, holds: bool) -> None:
    ratios = [3 * (1 + spread * (-1) ** i) for i in range(10)]
    repeats = [
        {"repeat": i, "teacher": "t", "student": "s", "interleaved": speed(r), "sequential": 3.0, **HOST}
        for i, r in enumerate(ratios)
    ]
    found = document(rows(repeatability=repeats), SETTINGS)
    assert found["holds"] is holds
    assert found["repeatability"]["sequential"]["cv"] == 0
    assert found["repeatability"]["interleaved"]["cv"] == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(
    ("alarms", "missed", "wrong_way", "holds"),
    [(5, 10, 0, True), (6, 0, 0, False), (0, 11, 0, False), (0, 10, 1, False)],
)
def test_five_alarms_and_ten_misses_of_a_hundred_are_the_most(
    alarms: int, missed: int, wrong_way: int, holds: bool
) -> None:
    tenth = ["no difference"] * missed + ["slower"] * wrong_way
    tenth += ["faster"] * (100 - len(tenth))
    same = ["slower"] * alarms + ["no difference"] * (100 - alarms)
    sessions = [
        {"session": i, "same": speed(1.0, a), "tenth": speed(1.1, b), **HOST}
        for i, (a, b) in enumerate(zip(same, tenth, strict=True))
    ]
    assert document(rows(aa=sessions), SETTINGS)["holds"] is holds
    assert (
        document(rows(simulated=[{"mood": "quiet", "same": same, "tenth": tenth, **HOST}]), SETTINGS)["holds"] is holds
    )


def test_the_command_writes_the_page_and_fails_where_a_bar_does_not_hold(nets: tuple[str, str], tmp_path: Path) -> None:
    page, out = tmp_path / "timing.md", tmp_path / "out"
    page.write_text(f"# Timing\n{BEGIN}\n{END}\nwritten by a person\n")
    words = ["bench", "timing", *nets, "--out", str(out), "--page", str(page), "--json"]
    done = CliRunner().invoke(app, [*words, "--part", "simulated", "--sessions", "4"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["mood"] for row in found["simulated"]] == list(MOODS)
    assert found["machine"]["processor"]
    assert "| quiet | 4 of 4 | 4 of 4 | yes |" in page.read_text()
    assert page.read_text().endswith("written by a person\n")
    with (out / "peers.jsonl").open("w") as file:
        file.writelines(f"{json.dumps(peer_row(i, 2.0, 1.0))}\n" for i in range(4))
    done = CliRunner().invoke(app, [*words, "--part", "simulated", "--sessions", "4"])
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["peers"][0]["ratio"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "peer"], "--part: no part 'peer'; did you mean 'peers'?"),
        (["nothing.tflite", "--part", "peers"], "nothing.tflite"),
        (["timm:resnet18", "--part", "repeatability"], "two models: a student and a teacher"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "timing", *words, "--out", str(tmp_path)])
    assert done.exit_code == 2 or isinstance(done.exception, InputError)
    assert message in f"{done.output}{done.exception}"


def test_a_tool_that_fails_or_says_nothing_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(CheckError, match="failed: "):
        peers.peer_of(broken).median_ms(broken, peers.Pace(1, 0), 1)
    with pytest.raises(CheckError, match="benchmark_app: printed no median, but ended with: nothing"):
        peers.median_of("nothing")
    with pytest.raises(InputError, match=r"no runtime's own tool times such a file; known: \.tflite"):
        peers.peer_of(tmp_path / "net.pt2")


@pytest.mark.runtime
def test_the_vendors_tools_tell_a_median(nets: tuple[str, str], tmp_path: Path) -> None:
    """litert-benchmark and benchmark_app as their wheels install them."""
    import openvino

    ir, litert = tmp_path / "small.xml", tmp_path / "small.tflite"
    openvino.save_model(openvino.convert_model(nets[0]), ir)
    convolution = Op("conv", (0,), 3, 64, 64, 3)
    litert.write_bytes(tflite_bytes(Net(3, 64, (convolution,)), "fp32"))
    for file in (ir, litert):
        assert 0 < peers.peer_of(file).median_ms(file, peers.Pace(5, 2), 1) < 1000
