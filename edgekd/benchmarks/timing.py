"""Is `edgekd profile` to be believed? Beside the runtimes' own tools, again and again, and against itself.

Four parts, each a file of rows in the results' folder, one row a round: what is there is not measured again, so that an
idle machine is wanted for a few minutes at a time only. What the rows say together is `timing_summary`'s.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.benchmarks.peers import Pace, peer_of
from edgekd.benchmarks.streams import MOODS, interleaved, raw
from edgekd.device_benchmarks import (
    Contender,
    ExportedArtifact,
    Measurement,
    MeasurementSet,
    PairedRatio,
    compare,
    host_state,
    measure_all,
)
from edgekd.device_benchmarks.probe_nets import Probe, write_probe
from edgekd.device_benchmarks.resolve import contenders_of
from edgekd.device_benchmarks.schedule import MODES, Schedule
from edgekd.errors import InputError
from edgekd.files import read_json, write_json
from edgekd.pipeline.for_device import for_device

PARTS = ("peers", "repeatability", "aa", "simulated")
NETWORKS = ("torchvision:mobilenet_v3_small", "torchvision:resnet50")
RUNTIMES = ("tflite", "openvino", "onnxruntime")
SIDE, CHANNELS, LAYERS = 14, 128, 20  # of the chain of equal convolutions that is compared with itself
VISIT_ROUNDS, VISIT_RUNS = 8, 32
SETTINGS = "settings.json"

Row = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """models: files, or PyTorch networks, which are exported in fp32 for every runtime first; the first is the student
    of `repeatability` and the last its teacher. rounds: of `peers`; repeats, sessions: of the others. seconds: no round
    starts later than that.
    """

    out: Path
    models: tuple[str, ...] = NETWORKS
    threads: int = 1
    rounds: int = 8
    repeats: int = 10
    sessions: int = 100
    seed: int = 0
    seconds: float = math.inf
    schedule: Schedule = MODES["quick"]

    def settings(self) -> dict[str, Any]:
        """What rows must share to stand in one table."""
        return {"models": list(self.models), "threads": self.threads, "seed": self.seed, "mode": self.schedule.name}


def run(plan: Plan, parts: tuple[str, ...], tell: Tell = lambda _: None) -> dict[str, list[Row]]:
    """Measure what is missing of the parts, until the time is over; every row of every part, also those from before.

    Raises: InputError: results of other settings are there, or a model that is none. CheckError: a tool failed.
    """
    _agree(plan)
    deadline = time.monotonic() + plan.seconds
    measures = {"peers": _peers, "repeatability": _repeatability, "aa": _aa, "simulated": _simulated}
    for part in parts:
        for key, measure in _missing(plan, part, measures[part](plan, tell)):
            if time.monotonic() > deadline:
                tell(f"{part}: the time is over; the same command goes on")
                break
            _append(plan.out / f"{part}.jsonl", {**key, **_with_host(measure)})
    return {part: rows(plan.out, part) for part in PARTS}


def rows(out: Path, part: str) -> list[Row]:
    """Kept rows of a part, in the order taken."""
    path = out / f"{part}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


Work = Iterator[tuple[Row, Callable[[], Row]]]


def _missing(plan: Plan, part: str, work: Work) -> Work:
    done = rows(plan.out, part)
    for key, measure in work:
        if not any(key.items() <= row.items() for row in done):
            yield key, measure


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _with_host(measure: Callable[[], Row]) -> Row:
    before = host_state()
    row = measure()
    after = host_state()
    stolen = None if before.cpu_steal_s is None or after.cpu_steal_s is None else after.cpu_steal_s - before.cpu_steal_s
    loads = [state.load_average[0] if state.load_average else None for state in (before, after)]
    return {**row, "load": loads, "stolen_s": stolen, "at": time.strftime("%Y-%m-%d %H:%M:%S")}


def _agree(plan: Plan) -> None:
    """Raises: InputError: the folder holds results of other settings."""
    kept, now = plan.out / SETTINGS, plan.settings()
    if not kept.is_file() or not any(rows(plan.out, part) for part in PARTS):
        plan.out.mkdir(parents=True, exist_ok=True)
        write_json(kept, now)
        return
    before = read_json(kept)
    for key, value in now.items():
        if before.get(key) != value:
            fix = "give the same again, or another --out"
            raise InputError(f"it holds results with {key} {before.get(key)}, now {value}", where=plan.out, fix=fix)


def _files(plan: Plan, model: str, tell: Tell) -> list[Path]:
    """A model file as it is; a network's exports in all runtimes, made once."""
    (contender,) = contenders_of(model)
    if isinstance(contender.source, ExportedArtifact):
        return [contender.source.artifact.path]
    return [_export(plan, contender, model.partition(":")[2], runtime, tell) for runtime in RUNTIMES]


def _export(plan: Plan, contender: Contender, name: str, runtime: str, tell: Tell) -> Path:
    folder = plan.out / "models" / f"{name}-{runtime}"
    note = folder / "file.json"
    if not note.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of an export that was cut short
        tell(f"exporting {name} for {runtime}")
        (exported,) = for_device([contender], runtime, folder.resolve())
        assert isinstance(exported.source, ExportedArtifact)
        write_json(note, str(exported.source.artifact.path.relative_to(folder.resolve())))
    return folder / str(read_json(note))


def _peers(plan: Plan, tell: Tell) -> Work:
    """A row: four visits in a random ABBA order, each a fresh process of its own."""
    files = [file for model in plan.models for file in _files(plan, model, tell)]
    for model in files:
        peer_of(model)
    paces: dict[Path, Pace] = {}
    for number in range(plan.rounds):
        for model in files:
            key = {"model": _title(plan, model), "round": number}
            yield key, partial(_visits, plan, model, random.Random(f"{plan.seed} {number} {model.name}"), paces, tell)


def _visits(plan: Plan, model: Path, rng: random.Random, paces: dict[Path, Pace], tell: Tell) -> Row:
    peer, order = peer_of(model), rng.sample(("edgekd", "peer"), 2)
    if model not in paces:  # a visit that does not count: so many runs, after so many, are the tool's as well
        first = _visit(plan, model)
        paces[model] = Pace(runs=first.n, warm_up=len(first.processes[0].warm_up_ns))
    row: Row = {"tool": peer.tool, "edgekd_ms": [], "peer_ms": [], "verdicts": [], "order": [*order, *order[::-1]]}
    for who in row["order"]:
        if who == "edgekd":
            mine = _visit(plan, model)
            row["edgekd_ms"].append(mine.p50_ms)
            row["verdicts"].append(mine.verdict)
        else:
            row["peer_ms"].append(peer.median_ms(model, paces[model], plan.threads))
    tell(f"{_title(plan, model)}: edgekd {_some(row['edgekd_ms'])}, {peer.tool} {_some(row['peer_ms'])}")
    return {**row, "runs": paces[model].runs}


def _visit(plan: Plan, model: Path) -> Measurement:
    """As `edgekd profile` does it, in one process; short, since only what is near in time can be compared."""
    short = {"rounds": min(VISIT_ROUNDS, plan.schedule.rounds), "runs_min": min(VISIT_RUNS, plan.schedule.runs_min)}
    alone = plan.schedule.model_copy(update={"processes": 1, "separate_run": False, **short})
    return _measured(plan, contenders_of(str(model)), schedule=alone).measurements[0]


def _some(values: list[float]) -> str:
    return " and ".join(f"{value:.3f}" for value in values) + " ms"


def _title(plan: Plan, model: Path) -> str:
    exported = plan.out.resolve() / "models"
    if exported not in model.resolve().parents:
        return model.name
    return model.resolve().relative_to(exported).parts[0].rpartition("-")[0] + model.suffix


def _repeatability(plan: Plan, tell: Tell) -> Work:
    """A row: the speedup of an interleaved session, and that of the two medians taken one after the other."""
    student, teacher = _student_and_teacher(plan, tell)
    for number in range(plan.repeats):
        yield {"repeat": number}, partial(_twice, plan, teacher, student, number, tell)


def _student_and_teacher(plan: Plan, tell: Tell) -> tuple[Contender, Contender]:
    """The first model, as a file; the last as the user has it: eager PyTorch for a network."""
    first, last = plan.models[0], plan.models[-1]
    if first == last:
        raise InputError("the speedup needs two models: a student and a teacher", where=first)
    (teacher,) = contenders_of(last, label="teacher ")
    file = _files(plan, first, tell)[0]
    (student,) = contenders_of(str(file))
    return student.model_copy(update={"name": _title(plan, file)}), teacher


def _twice(plan: Plan, teacher: Contender, student: Contender, number: int, tell: Tell) -> Row:
    both = _measured(plan, [teacher, student], [(teacher.name, student.name)], seed=plan.seed + number)
    plain = plan.schedule.model_copy(update={"processes": 1, "separate_run": False})
    alone = [_measured(plan, [one], schedule=plain).measurements[0].p50_ms for one in (teacher, student)]
    row: Row = {
        "teacher": teacher.name,
        "student": student.name,
        "interleaved": _figures(both.ratios[0]),
        "sequential": alone[0] / alone[1],
        "sequential_ms": alone,
        "p50_ms": [both.measurement(one.name).p50_ms for one in (teacher, student)],
    }
    tell(f"repeat {number + 1}: {row['interleaved']['ratio']:.2f}x interleaved, {row['sequential']:.2f}x one by one")
    return row


def _aa(plan: Plan, tell: Tell) -> Work:
    """A row: a chain of convolutions against itself, and against one with a tenth more of them, in one session."""
    chains = [_chain(plan, layers) for layers in (LAYERS, LAYERS + LAYERS // 10)]
    (one,), (more,) = (contenders_of(str(path)) for path in chains)
    again = one.model_copy(update={"name": f"{one.name}, again"})
    for number in range(plan.sessions):
        yield {"session": number}, partial(_alarms, plan, (one, again, more), number, tell)


def _chain(plan: Plan, layers: int) -> Path:
    path = plan.out / f"chain-{layers}.onnx"
    return path if path.is_file() else write_probe(Probe("chain", SIDE, CHANNELS, 3, layers), path)


def _alarms(plan: Plan, three: tuple[Contender, Contender, Contender], number: int, tell: Tell) -> Row:
    one, again, more = three
    pairs = [(one.name, again.name), (more.name, one.name)]
    same, tenth = _measured(plan, list(three), pairs, seed=plan.seed + number).ratios
    row = {"same": _figures(same), "tenth": _figures(tenth)}
    tell(
        f"session {number + 1}: itself {row['same']['ratio']:.3f} ({row['same']['found']}), "
        f"a tenth more {row['tenth']['ratio']:.3f} ({row['tenth']['found']})"
    )
    return row


def _simulated(plan: Plan, tell: Tell) -> Work:
    """A row: made streams of one host's mood, all sessions of it."""
    for mood in MOODS:
        yield {"mood": mood, "sessions": plan.sessions}, partial(_streams, plan, mood, tell)


def _streams(plan: Plan, mood: str, tell: Tell) -> Row:
    tell(f"simulated: {mood}")
    rng, levels = np.random.default_rng(plan.seed), {"slow": 5.5, "fast": 5.0, "again": 5.0}
    made = [raw(interleaved(rng, MOODS[mood], level_ms=levels)) for _ in range(plan.sessions)]
    same = [_figures(compare(found["again"], found["fast"], seed=i)) for i, found in enumerate(made)]
    tenth = [_figures(compare(found["slow"], found["fast"], seed=i)) for i, found in enumerate(made)]
    return {"same": [found["found"] for found in same], "tenth": [found["found"] for found in tenth]}


def _measured(
    plan: Plan,
    contenders: list[Contender],
    pairs: list[tuple[str, str]] | None = None,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> MeasurementSet:
    mode = schedule or plan.schedule.model_copy(update={"separate_run": False})
    return measure_all(contenders, pairs=pairs or [], mode=mode, threads=plan.threads, seed=seed)


def _figures(found: PairedRatio) -> Row:
    """Both clocks, and the verdict of the one that leads: CPU time where the clocks disagree."""
    wall = [found.ratio, found.lo, found.hi]
    cpu = [found.cpu_ratio, found.cpu_lo, found.cpu_hi]
    ratio, lo, hi = cpu if found.clocks_disagree else wall
    verdict = "no difference" if lo <= 1 <= hi else ("slower", "faster")[ratio > 1]
    clock = "CPU" if found.clocks_disagree else "wall"
    return {"ratio": ratio, "found": verdict, "clock": clock, "wall": wall, "cpu": cpu}
