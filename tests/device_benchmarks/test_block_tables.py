"""Block tables: what is written is what the arithmetic says, sums predict networks, one bench has one table."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from edgekd.device_benchmarks.block_bench import promises
from edgekd.device_benchmarks.block_build import fit, parts_of_spaces, sample, timed
from edgekd.device_benchmarks.block_campaign import Timing
from edgekd.device_benchmarks.block_onnx import onnx_bytes
from edgekd.device_benchmarks.block_ops import Net, sandwich, whole_net
from edgekd.device_benchmarks.block_table import Bench, BlockTable, Whole, bench_here, file_of, load_table, save_table
from edgekd.device_benchmarks.block_tflite import tflite_bytes
from edgekd.errors import CheckError, InputError
from edgekd.students import Part, layers_of, parts_of
from edgekd.students.spaces import STAGE_SPACES, Task

TASK = Task((32,), 3, 10)
SPACES = [STAGE_SPACES[name](TASK) for name in ("inverted-residual", "residual", "gated")]
BENCH = Bench(device="a machine", cpus=2, runtime="onnxruntime", version="1.2", precision="int8", threads=1)


def macs(net: Net) -> int:
    products = 0
    for op in net.ops:
        inside = 1 if op.depthwise else op.in_channels
        if op.kind in ("conv", "linear"):
            products += op.size**2 * op.channels * inside * op.kernel**2
    return products


def made_up_table(**change: object) -> BlockTable:
    parts = parts_of_spaces(SPACES[:1])
    specs = sample(SPACES[:1], 12, seed=0)
    networks = [tuple(parts_of(spec)) for spec in specs]
    rng = random.Random(0)
    parts_ms = {part.key: rng.uniform(0.01, 1) for part in parts}
    timings = []
    for network in networks:
        ms = 1.1 * sum(parts_ms[part.key] for part in network) - 0.002 * len(network) + 0.05
        timings.append(Timing(least_ms=ms / 1.05, p50_ms=ms, p90_ms=1.2 * ms))
    found = fit(parts_ms, networks, timings)
    whole = tuple(Whole(spec=spec, p50_ms=timing.p50_ms) for spec, timing in zip(specs, timings, strict=True))
    facts = {"networks": whole, "built": "2026-01-01", "build_s": 1, "rounds": 9}
    table = BlockTable(bench=BENCH, parts_ms=parts_ms, fit=found, **facts)  # type: ignore[arg-type]
    return table.model_copy(update=change)


@pytest.mark.parametrize("spec", sample(SPACES, 6, seed=3), ids=lambda spec: spec.space)
def test_a_written_network_computes_what_the_student_does(spec: object) -> None:
    net = whole_net(parts_of(spec))  # type: ignore[arg-type]
    assert macs(net) == sum(layer.macs for layer in layers_of(spec))  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_both_writers_make_files_that_their_runtimes_run(precision: str) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for spec in sample(SPACES, 3, seed=5):
        net = whole_net(parts_of(spec))
        session = onnxruntime.InferenceSession(onnx_bytes(net, precision), options, providers=["CPUExecutionProvider"])
        image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
        (logits,) = session.run(None, {"image": image})
        assert logits.shape == (1, 10)
        assert np.isfinite(logits).all()


@pytest.mark.runtime
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_litert_runs_what_the_tflite_writer_writes(precision: str) -> None:
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    for spec in sample(SPACES, 3, seed=5):
        content = tflite_bytes(whole_net(parts_of(spec)), precision)
        interpreter = interpreters.Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        image = interpreter.get_input_details()[0]
        assert image["dtype"] == (np.int8 if precision == "int8" else np.float32)
        interpreter.set_tensor(image["index"], np.zeros(image["shape"], image["dtype"]))
        interpreter.invoke()
        assert interpreter.get_output_details()[0]["shape"].tolist() == [1, 10]


def test_a_sandwich_differs_from_its_base_by_the_part_alone() -> None:
    for part in parts_of_spaces(SPACES[:1])[:40]:
        with_it, without = sandwich(part)
        kept = [op for op in without.ops if op.kind == "conv"]
        assert [op for op in with_it.ops if op.kind == "conv"][: len(kept)] == kept
        assert macs(with_it) > macs(without)


def test_a_fit_finds_the_law_that_made_the_times() -> None:
    table = made_up_table()
    assert table.fit.scale == pytest.approx(1.1)
    assert table.fit.per_part_ms == pytest.approx(0.002)
    assert table.fit.constant_ms == pytest.approx(0.05)
    assert (table.fit.low, table.fit.high) == (pytest.approx(1), pytest.approx(1))


def test_a_network_costs_the_sum_of_its_parts_prices() -> None:
    table = made_up_table()
    parts = parts_of(sample(SPACES[:1], 1, seed=9)[0])
    plain = table.fit.scale * sum(table.parts_ms[p.key] for p in parts) - table.fit.per_part_ms * len(parts)
    assert table.p50_ms(parts) == pytest.approx(plain + table.fit.constant_ms)


def test_a_table_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    save_table(made_up_table(), tmp_path)
    found = load_table(BENCH, tmp_path)
    assert found.model_copy(update={"digest": ""}) == made_up_table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1.3"}, "stale block table: it was measured with version 1.2, now 1.3"),
        ({"device": "another"}, "stale block table: it was measured with device a machine, now another"),
        ({"threads": 2, "cpus": 4}, "cpus 2, now 4; threads 1, now 2"),
        ({"precision": "fp32"}, "no block table for onnxruntime 1.2 fp32"),
    ],
)
def test_another_bench_is_refused_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_table(made_up_table(), tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_table(BENCH.model_copy(update=change), tmp_path)
    assert "edgekd lut build --runtime onnxruntime" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["{", '{"schema_version": 1}', "changed"])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: str) -> None:
    file = save_table(made_up_table(), tmp_path)
    if damage == "changed":
        document = json.loads(file.read_text())
        document["parts_ms"][next(iter(document["parts_ms"]))] *= 0.5
        damage = json.dumps(document)
    file_of(BENCH, tmp_path).write_text(damage)
    with pytest.raises(InputError, match=r"damaged block table.*delete it and build it again"):
        load_table(BENCH, tmp_path)


def test_what_is_said_to_fit_keeps_the_budget_with_the_margin() -> None:
    table = made_up_table()
    found = promises(table, SPACES[:1])
    assert len(found) >= 5
    for budget_ms, parts in found:
        p90_ms = table.fit.p90_over_p50 * table.p50_ms(parts)
        assert 0.5 * budget_ms < p90_ms * max(1.0, table.fit.high) <= budget_ms * (1 + 1e-9)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="no block table for coreml fp32"):
        bench_here("coreml", "fp32", threads=1)
    attention = Part("block", 16, 16, 8, 1, 3, 2, "attention", False, "relu")
    with pytest.raises(InputError, match="block tables know no attention"):
        whole_net([attention])


def test_a_campaign_times_parts_and_networks_in_a_process_of_its_own() -> None:
    bench = bench_here("onnxruntime", "fp32", threads=1)
    network = parts_of(sample(SPACES[:1], 1, seed=1)[0])
    answer = timed(bench, network[:2], [tuple(network)], seconds=0.1)
    assert answer.rounds >= 7
    assert len(answer.parts_ms) == 2
    assert 0 < answer.networks[0].least_ms <= answer.networks[0].p50_ms


def test_a_campaign_that_fails_names_the_runtime() -> None:
    bench = bench_here("onnxruntime", "fp32", threads=1).model_copy(update={"runtime": "nothing"})
    network = parts_of(sample(SPACES[:1], 1, seed=1)[0])
    with pytest.raises(CheckError, match=r"nothing .*timing blocks failed"):
        timed(bench, network[:1], [], seconds=0.1)
