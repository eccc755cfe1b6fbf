"""Held out means held out; the benchmark's table says how far off the predictor and the simple fits were."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgekd.cli import app
from edgekd.errors import InputError
from edgekd.latency import corpus
from edgekd.latency.benchmark import lines, markdown, score
from edgekd.latency.features import FEATURES, NAMES, mask
from edgekd.latency.hierarchy import log_ms, nominal
from edgekd.latency.learn import Judged, covered, interval, judge_devices, judge_families, judge_others, learn
from edgekd.latency.published import Device, Network, read_rows, tables_of
from edgekd.latency.table import load_table

HEAD = (
    "mapped,resolution,res_w,map_quality,device,chipset,compute_unit,runtime,runtime_version,precision,threads,batch,"
    "latency_ms,model_family,quality_flag,params_m,trust"
)
FAMILIES = ("a", "b", "c", "d")
SPEEDS = {"one": 0.0, "two": 1.0, "three": 2.0, "four": 0.5, "five": 1.5}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows of 16 made-up networks on five made-up boards, and the cache of the networks' features."""
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    known = {Network(f"timm:{i}", 224, 224): np.exp(rng.normal(1, 1, len(FEATURES))) for i in range(16)}
    out = [HEAD]
    for board, speed in SPEEDS.items():
        theta = nominal() + speed + rng.normal(0, 0.1, len(FEATURES))
        for i, (network, row) in enumerate(known.items()):
            ms = float(np.exp(log_ms((row * mask("deployed"))[None], theta)[0] + rng.normal(0, 0.05)))
            out.append(f"{network.name},224,224,exact,{board},,cpu,ncnn,,fp32,4,1.0,{ms},{FAMILIES[i % 4]},,,A")
    with gzip.open(folder / "visible_map.csv.gz", "wt") as file:
        file.write("\n".join(out) + "\n")
    cache = folder / "traced.npz"
    corpus._save({network: np.array([1.0, *row]) for network, row in known.items()}, cache)
    return folder, cache


@pytest.fixture(scope="module")
def tables(collection):
    rows = read_rows(collection[0])
    return tables_of(rows, corpus.known_features(rows, collection[1]))


def test_unseen_families_and_devices_are_predicted_from_the_others(tables) -> None:
    for judged in (judge_families(tables), judge_devices(tables)):
        assert len(judged) == 16 * 5
        (line,) = lines("x", judged)
        assert line.predictor.mape < 0.5 * line.macs.mape
        assert line.predictor.spearman > 0.95


def test_a_held_out_family_leaves_no_trace(tables) -> None:
    absurd = {
        device: table._replace(
            rows=table.rows._replace(log_ms=table.rows.log_ms + 3.0 * np.array([f == "a" for f in table.families]))
        )
        for device, table in tables.items()
    }
    before = {(j.device, j.network): j.predicted_ms for j in judge_families(tables) if j.family == "a"}
    after = {(j.device, j.network): j.predicted_ms for j in judge_families(absurd) if j.family == "a"}
    assert after == pytest.approx(before)


def test_intervals_come_from_other_families(tables) -> None:
    judged = judge_families(tables)
    inside = [ok for _, ok in covered(judged)]
    assert 0.6 < np.mean(inside) < 0.95
    wild = [j._replace(predicted_ms=j.predicted_ms * 9) if j.family == "a" else j for j in judged]
    assert not any(ok for row, ok in covered(wild) if row.family == "a")


def test_another_file_is_judged_without_being_learned(tables) -> None:
    known = dict(list(tables.items())[:4])
    judged = judge_others(known, tables)
    assert {j.device for j in judged} == set(tables)
    assert score([j.measured_ms for j in judged], [j.predicted_ms for j in judged]).mape < 0.2


def test_learning_repeats(tables) -> None:
    first, second = learn(tables), learn(tables)
    assert all((first.devices[d].mean == second.devices[d].mean).all() for d in first.devices)


def test_the_command_writes_page_table_and_json(collection, tmp_path: Path) -> None:
    folder, cache = collection
    page, table = tmp_path / "page.md", tmp_path / "calibration.npz"
    words = ["bench", "predictor", "--data", str(folder), "--cache", str(cache), "--json"]
    done = CliRunner().invoke(app, [*words, "--out", str(page), "--save", str(table)], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert [line["group"] for line in document["lines"]] == ["cpu.ncnn.float", "cpu.ncnn.float"]
    text = page.read_text()
    assert text.count("| cpu.ncnn.float | 80 | 5 |") == 2
    assert len(load_table(table).devices) == 5
    with pytest.raises(InputError, match="--save needs the cross-validation"):
        CliRunner().invoke(app, [*words, "--test", str(folder), "--save", str(table)], catch_exceptions=False)


def test_a_cache_of_other_features_is_refused(collection, tmp_path: Path) -> None:
    cache = tmp_path / "old.npz"
    np.savez(cache, features=np.array(NAMES[:-1]), networks=np.array(["x"]), values=np.zeros((1, 3)))
    with pytest.raises(InputError, match=r"old\.npz: a cache of other features; delete it"):
        corpus.known_features(read_rows(collection[0]), cache)


def test_a_damaged_cache_is_refused_in_one_line(collection, tmp_path: Path) -> None:
    whole, cache, refused = collection[1].read_bytes(), tmp_path / "t.npz", 0
    for place in range(0, len(whole), max(1, len(whole) // 100)):
        cache.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            corpus._load(cache)
        except InputError:
            refused += 1
    assert refused > 50


def test_markdown_has_one_table_per_scope(tables) -> None:
    judged = judge_families(tables)
    text = markdown([*lines("one", judged), *lines("two", judged)])
    assert text.count("### ") == 2


def drawn(families: int, rows: int, *, between: float, rng: np.random.Generator) -> list[Judged]:
    device = Device("cpu.ncnn.float", "board", "soc", "ncnn", "1", "fp32", "4")
    found = []
    for family in range(families):
        centre = rng.normal(0, between)
        for _ in range(rows):
            ratio = float(np.exp(rng.normal(centre, 0.05)))
            found.append(Judged(device, Network("n", 224, 224), str(family), ratio, 1.0, 1.0, 1.0))
    return found


@pytest.mark.parametrize(("families", "between"), [(4, 0.2), (8, 0.1), (20, 0.2), (5, 0.0)])
def test_an_interval_holds_about_80_percent_of_families_that_it_has_not_seen(families: int, between: float) -> None:
    rng, inside = np.random.default_rng(0), []
    for _ in range(300):
        *known, new = [drawn(1, 6, between=between, rng=rng) for _ in range(families + 1)]
        rows = [row._replace(family=str(i)) for i, some in enumerate(known) for row in some]
        low, high = interval(rows)
        inside += [low <= row.measured_ms <= high for row in new]
    assert 0.73 <= np.mean(inside) <= 0.87


def test_rows_of_one_large_family_do_not_settle_the_interval() -> None:
    rng = np.random.default_rng(0)
    rows = [row for n in (200, 4, 4) for row in drawn(1, n, between=0.0, rng=rng)]
    apart = [row._replace(family=str(i > 199) + str(i > 203), measured_ms=row.measured_ms * (1 + 0.5 * (i > 199)))
             for i, row in enumerate(rows)]  # fmt: skip
    assert interval(apart)[1] > 1.4
