"""The calibration table that ships: costs of devices and kinds as plain arrays, and how far off they were.

`calibration.npz` holds numbers and one JSON text, no pickled objects and no published latency. It is written by
`edgekd bench predictor --save`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError
from edgekd.files import write_whole
from edgekd.latency.features import NAMES, Vector
from edgekd.latency.hierarchy import Normal
from edgekd.latency.learn import Judged, Tables, grouped, interval, learn
from edgekd.latency.published import KINDS, Device

FORMAT = 1
_REFIT = "make it again with `edgekd bench predictor --save`"


class Costs(NamedTuple):
    """A device with the log costs of its features, and how many networks they rest on."""

    device: Device
    networks: int
    theta: Vector


class Interval(NamedTuple):
    """Factors around a prediction that hold 80 % of held-out rows, and their number; see `edgekd.latency.learn`."""

    low: float
    high: float
    rows: int


class CalibrationTable(NamedTuple):
    """families: intervals for unseen families, by kind or device. few: for new devices with ten networks.

    The keys are `edgekd.latency.learn.group_of`'s.
    """

    devices: tuple[Costs, ...]
    kinds: dict[str, Normal]
    families: dict[str, Interval]
    few: dict[str, Interval]


def save_table(table: CalibrationTable, path: Path) -> Path:
    """Write a table as a compressed .npz."""
    text = {
        "format": FORMAT,
        "features": NAMES,
        "devices": [[*costs.device, costs.networks] for costs in table.devices],
        "kinds": list(table.kinds),
        "families": table.families,
        "few": table.few,
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "text": np.frombuffer(json.dumps(text).encode(), dtype=np.uint8),
        "theta": np.array([costs.theta for costs in table.devices], dtype=np.float32),
        "means": np.array([kind.mean for kind in table.kinds.values()], dtype=np.float32),
        "covariances": np.array([kind.covariance for kind in table.kinds.values()], dtype=np.float32),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return write_whole(path, lambda part: _write(part, buffer.getvalue()))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def load_table(path: Path) -> CalibrationTable:
    """Read and check a table. Raises: InputError: no such file, not a table, damaged, or of other features."""
    if not path.is_file():
        raise InputError("no such calibration table", where=path, fix=_REFIT)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("text", "theta", "means", "covariances")}
        text = json.loads(arrays["text"].tobytes())
        return _parsed(text, arrays, path)
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises anything: BadZipFile, zlib.error, NotImplementedError, ...
        raise InputError(f"not a calibration table, or a damaged one ({error})", where=path, fix=_REFIT) from error


def _parsed(text: dict[str, Any], arrays: dict[str, Any], path: Path) -> CalibrationTable:
    if text["format"] != FORMAT or tuple(text["features"]) != NAMES:
        raise InputError("a calibration table of another edgekd (its features differ)", where=path, fix=_REFIT)
    theta, means, covariances = (arrays[name].astype(np.float64) for name in ("theta", "means", "covariances"))
    n = len(NAMES)
    shapes = (len(text["devices"]), n), (len(text["kinds"]), n), (len(text["kinds"]), n, n)
    if (theta.shape, means.shape, covariances.shape) != shapes:
        raise ValueError("arrays and names disagree")
    if not all(np.isfinite(array).all() for array in (theta, means, covariances)):
        raise ValueError("a cost is no number")
    devices = tuple(Costs(Device(*d[:-1]), int(d[-1]), t) for d, t in zip(text["devices"], theta, strict=True))
    for costs in devices:
        if costs.device.kind not in KINDS:
            raise ValueError(f"unknown kind '{costs.device.kind}'")
    kinds = {k: Normal(m, c) for k, m, c in zip(text["kinds"], means, covariances, strict=True)}
    families, few = ({k: Interval(*v) for k, v in text[name].items()} for name in ("families", "few"))
    return CalibrationTable(devices, kinds, families, few)


def table_of(tables: Tables, families: Iterable[Judged], few: Iterable[Judged]) -> CalibrationTable:
    """Learn from all rows; intervals from what the two judgements held out."""
    known = learn(tables)
    devices = tuple(Costs(d, len(tables[d].networks), normal.mean) for d, normal in known.devices.items())
    return CalibrationTable(devices, known.kinds, _intervals(families), _intervals(few))


def _intervals(judged: Iterable[Judged]) -> dict[str, Interval]:
    return {name: Interval(*interval(rows), len(rows)) for name, rows in sorted(grouped(judged).items())}


@lru_cache(maxsize=1)
def shipped_table() -> CalibrationTable:
    """The table in the package."""
    with resources.as_file(resources.files("edgekd.latency") / "calibration.npz") as path:
        return load_table(path)
