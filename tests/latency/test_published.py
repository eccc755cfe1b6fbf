"""Published rows: what is read, what is left out, and which mistakes are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import InputError
from edgekd.latency.features import FEATURES
from edgekd.latency.published import Network, device_of, read_rows, tables_of

HEAD = (
    "mapped,resolution,res_w,map_quality,device,chipset,compute_unit,runtime,runtime_version,precision,threads,batch,"
    "latency_ms,model_family,quality_flag,params_m,trust"
)
GOOD = "torchvision:resnet18,224,224,exact,Board,SoC,cpu,ncnn,ncnn 1,fp32,4,1.0,{ms},resnet,{flag},11.7,{trust}"


def rows_file(path: Path, *lines: str) -> Path:
    with gzip.open(path, "wt") as file:
        file.write("\n".join([HEAD, *lines]) + "\n")
    return path


def test_bounds_throughputs_and_batches_are_left_out(tmp_path: Path) -> None:
    lines = [GOOD.format(ms=10, flag="", trust="A"), GOOD.format(ms=11, flag="", trust="C")]
    lines.append(GOOD.format(ms=12, flag="throughput_not_latency", trust="A"))
    (row,) = read_rows(rows_file(tmp_path / "visible_map.csv.gz", *lines))
    assert row.ms == 10
    assert read_rows(tmp_path) == [row]


def test_a_network_that_was_measured_twice_is_one_row_with_the_median(tmp_path: Path) -> None:
    lines = [GOOD.format(ms=ms, flag="", trust="B") for ms in (10, 30)]
    rows = read_rows(rows_file(tmp_path / "a.csv.gz", *lines))
    network = Network("torchvision:resnet18", 224, 224)
    tables = tables_of(rows, {network: np.ones(len(FEATURES))})
    (device,) = tables
    assert device == device_of(rows[0])
    assert tables[device].networks == (network,)
    assert np.exp(tables[device].rows.log_ms) == pytest.approx([20.0])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (GOOD.format(ms="fast", flag="", trust="A"), r"a\.csv\.gz:2: not a number"),
        (GOOD.format(ms=-1, flag="", trust="A"), "latency_ms -1 at 224 px is no measurement"),
        (GOOD.format(ms="inf", flag="", trust="A"), "latency_ms inf"),
    ],
)
def test_a_bad_number_is_named_with_its_line(tmp_path: Path, line: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_rows(rows_file(tmp_path / "a.csv.gz", line))


def test_a_missing_column_or_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("mapped,device\nx,y\n")
    with pytest.raises(InputError, match="column 'resolution' is missing"):
        read_rows(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such file of published latencies"):
        read_rows(tmp_path)
    (tmp_path / "b.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "b.csv.gz")
