"""Published latencies as rows: one measurement of a named network on a device, and the devices that rows make up.

Input: `visible_map.csv.gz` or a file with the same columns (mapped, resolution, res_w, map_quality, device, chipset,
compute_unit, runtime, runtime_version, precision, threads, batch, latency_ms, model_family, quality_flag, params_m,
trust).
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgekd.errors import InputError
from edgekd.latency.features import Style, Vector, mask
from edgekd.latency.hierarchy import Rows

_COLUMNS = (
    "mapped", "resolution", "res_w", "map_quality", "device", "chipset", "compute_unit", "runtime", "runtime_version",
    "precision", "threads", "batch", "latency_ms", "model_family", "quality_flag", "params_m", "trust",
)  # fmt: skip
_FLOAT = ("fp32", "fp16", "fp16?")
FILE_NAME = "visible_map.csv.gz"

# kind -> parent. A parent's devices are all of its kinds'.
KINDS = {
    "cpu.compiled": "compiled",
    "cpu.ncnn.float": "cpu",
    "cpu.ncnn.int8": "cpu",
    "cpu.mobile.float": "cpu",
    "cpu.mobile.int8": "cpu",
    "gpu.cuda": "gpu",
    "gpu.vulkan": "gpu",
    "gpu.mobile": "gpu",
    "npu.qnn.float": "npu",
    "npu.qnn.int8": "npu",
    "npu.ane": "npu",
}


class Network(NamedTuple):
    """A network that `edgekd.latency.networks` can build, at a size."""

    name: str
    height: int
    width: int
    reparameterised: bool = False


class Row(NamedTuple):
    """One published measurement. parameters: in 1e6 as the source states them, 0 where it does not."""

    network: Network
    device: str
    chipset: str
    unit: str
    runtime: str
    version: str
    precision: str
    threads: str
    family: str
    ms: float
    parameters: float


class Device(NamedTuple):
    """What one set of costs is about."""

    kind: str
    name: str
    chipset: str
    runtime: str
    version: str
    precision: str
    threads: str


class Table(NamedTuple):
    """Rows of one device as arrays: repeated networks are one row, the median."""

    networks: tuple[Network, ...]
    families: tuple[str, ...]
    rows: Rows


def style_of(kind: str) -> Style:
    """How the runtimes of a kind fuse."""
    return "compiled" if kind == "cpu.compiled" else "deployed"


def read_rows(path: Path) -> list[Row]:
    """Rows of a file, or of the file in a folder; single images only, no throughputs, nothing of trust C (a bound).

    Raises: InputError: no such file, a missing column, or a number that is none (line named).
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError("no such file of published latencies", where=file, fix=f"give a folder with {FILE_NAME}")
    with gzip.open(file, "rt", newline="") if file.suffix == ".gz" else open(file, newline="") as lines:
        try:
            reader = csv.DictReader(lines)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"column '{missing[0]}' is missing", where=file)
            return [_row(line, f"{file}:{reader.line_num}") for line in reader if _usable(line)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"cannot be read ({error})", where=file) from error


def _usable(line: Mapping[str, str]) -> bool:
    flags = line["quality_flag"] or ""
    single = line["batch"] in ("", "1", "1.0") and "batch>1" not in flags
    return single and "throughput" not in flags and line["trust"] != "C"


def _row(line: Mapping[str, str], where: str) -> Row:
    try:
        height, ms = int(line["resolution"]), float(line["latency_ms"])
        network = Network(line["mapped"], height, int(line["res_w"] or height), line["map_quality"] == "rep")
        parameters = float(line["params_m"] or 0)
    except ValueError as error:
        raise InputError(f"not a number ({error})", where=where) from error
    if not (ms > 0 and math.isfinite(ms) and height > 0):
        raise InputError(f"latency_ms {ms:g} at {height} px is no measurement", where=where)
    return Row(
        network=network,
        device=line["device"],
        chipset=line["chipset"],
        unit=line["compute_unit"],
        runtime=line["runtime"],
        version=line["runtime_version"],
        precision=line["precision"],
        threads=line["threads"],
        family=line["model_family"],
        ms=ms,
        parameters=parameters,
    )


def kind_of(unit: str, runtime: str, precision: str) -> str | None:
    """Kind of the devices that a row belongs to, or None for what no kind covers.

    >>> kind_of("cpu", "ncnn", "fp32"), kind_of("npu", "QNN DLC", "w8a16")
    ('cpu.ncnn.float', None)
    """
    number = "float" if precision in _FLOAT else "int8" if precision in ("int8", "w8a8") else None
    if number is None:
        return None
    if unit == "npu" and "QNN" in runtime:
        return f"npu.qnn.{number}"
    if unit == "cpu":
        if runtime == "PyTorch torch.compile":
            return "cpu.compiled"
        return f"cpu.{'ncnn' if runtime == 'ncnn' else 'mobile'}.{number}"
    if unit == "gpu":
        return "gpu.vulkan" if "Vulkan" in runtime else "gpu.cuda" if _is_cuda(runtime) else "gpu.mobile"
    return "npu.ane" if unit == "ane" else None


def _is_cuda(runtime: str) -> bool:
    return "TensorRT" in runtime or "CUDA" in runtime


def device_of(row: Row) -> Device | None:
    """The device of a row; versions are told apart only where they were measured side by side (torch.compile)."""
    kind = kind_of(row.unit, row.runtime, row.precision)
    if kind is None:
        return None
    version = row.version if kind == "cpu.compiled" else ""
    return Device(kind, row.device, row.chipset, row.runtime, version, row.precision, row.threads)


def tables_of(rows: Iterable[Row], known: Mapping[Network, Vector]) -> dict[Device, Table]:
    """Rows grouped by device, for the networks whose features are known; sorted, so that fits repeat."""
    grouped: dict[Device, dict[Network, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        device = device_of(row)
        if device is not None and row.network in known:
            grouped[device][row.network].append(row)
    return {device: _table(device, grouped[device], known) for device in sorted(grouped)}


def _table(device: Device, measured: Mapping[Network, list[Row]], known: Mapping[Network, Vector]) -> Table:
    networks = tuple(sorted(measured))
    seen = mask(style_of(device.kind))
    features = np.array([known[network] * seen for network in networks])
    log_ms = np.log([np.median([row.ms for row in measured[network]]) for network in networks])
    families = tuple(measured[network][0].family for network in networks)
    return Table(networks, families, Rows(features, log_ms, np.ones(len(networks))))


def picked(table: Table, keep: Iterable[bool]) -> Table:
    """The rows of a table that are kept."""
    chosen = np.array(list(keep), dtype=bool)
    networks = tuple(n for n, k in zip(table.networks, chosen, strict=True) if k)
    families = tuple(f for f, k in zip(table.families, chosen, strict=True) if k)
    rows = table.rows
    return Table(networks, families, Rows(rows.features[chosen], rows.log_ms[chosen], rows.weights[chosen]))
