"""Learn costs of devices from tables of published latencies, and judge the result on what it has not seen.

Two judgements: a family of networks that no device of any kind has shown, on known devices; and a device that is new
but for ten networks. An interval is a pair of factors around the prediction, the 10 and 90 % quantiles of measured over
predicted on what was held out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from edgekd.latency.features import FEATURES, NAMES, Vector
from edgekd.latency.hierarchy import Kind, Matrix, Normal, Rows, Strength, fit_device, fit_kind, log_ms, nominal
from edgekd.latency.published import KINDS, Device, Network, Table, picked

FEWEST_NETWORKS = 3
FEWEST_TO_JUDGE = 6
MEASURED_OF_A_NEW_DEVICE = 10
FOLDS_OF_DEVICES = 5
ROWS_FOR_AN_OWN_INTERVAL = 100
STRENGTHS = {
    "compiled": Strength(single=0.35, parent=0.05, drift=0.35),
    "cpu": Strength(single=0.2),
    "gpu": Strength(single=0.1),
    # Float and int8 share few networks there, and differ in what arithmetic costs beside everything else.
    "npu": Strength(single=0.1, group=0.5, parent=0.05),
}

Tables = Mapping[Device, Table]
Talk = Callable[[str], None]


class Knowledge(NamedTuple):
    """Priors of kinds and own costs of devices."""

    kinds: dict[str, Normal]
    devices: dict[Device, Normal]


class Judged(NamedTuple):
    """One held-out row in ms: measured, predicted, and what two simple fits to the same rows of the device predict.

    macs_ms: in proportion to multiply-adds. log_linear_ms: least squares in logs of multiply-adds, parameters and
    elements moved.
    """

    device: Device
    network: Network
    family: str
    measured_ms: float
    predicted_ms: float
    macs_ms: float
    log_linear_ms: float


def learn(tables: Tables) -> Knowledge:
    """Priors of every kind that has rows, and costs of every device with at least FEWEST_NETWORKS networks."""
    kinds: dict[str, Normal] = {}
    devices: dict[Device, Normal] = {}
    usable = {d: t for d, t in tables.items() if len(t.networks) >= FEWEST_NETWORKS}
    for parent in sorted(set(KINDS.values())):
        inside = {d: t for d, t in usable.items() if KINDS[d.kind] == parent}
        if not inside:
            continue
        anchor = _parent(parent, inside)
        for kind in sorted({device.kind for device in inside}):
            own = {d: t for d, t in inside.items() if d.kind == kind}
            found = _fit(own, anchor, STRENGTHS[parent])
            kinds[kind] = found.prior
            devices.update(zip(own, found.devices, strict=True))
    return Knowledge(kinds, devices)


def _parent(name: str, inside: Tables) -> Vector:
    if len({device.kind for device in inside}) == 1:
        return nominal()
    return _fit(inside, nominal(), STRENGTHS[name]).prior.mean


def _fit(tables: Tables, anchor: Vector, strength: Strength) -> Kind:
    return fit_kind([table.rows for table in tables.values()], anchor, strength, rounds=3)


def judge_families(tables: Tables, talk: Talk = lambda _: None) -> list[Judged]:
    """Every row predicted by costs learned without its family, on any device."""
    judged: list[Judged] = []
    for family in sorted({f for table in tables.values() for f in table.families}):
        kept = {d: picked(t, [f != family for f in t.families]) for d, t in tables.items()}
        parents = {KINDS[device.kind] for device, table in tables.items() if family in table.families}
        known = learn({d: t for d, t in kept.items() if KINDS[d.kind] in parents})
        for device, table in tables.items():
            if device in known.devices:
                held = picked(table, [f == family for f in table.families])
                judged += _judged(device, kept[device], held, known.devices[device].mean)
        talk(f"family {family}: {len(judged)} rows so far")
    return judged


def judge_devices(tables: Tables, talk: Talk = lambda _: None, *, seed: int = 0) -> list[Judged]:
    """Rows of devices that were unknown but for up to ten networks, in folds over the devices' names.

    A device is dealt out several times so that each of its networks is predicted once from ten others (or from all
    others, where it has fewer). Devices with fewer than six networks say too little and are left out.
    """
    rng = np.random.default_rng(seed)
    names = sorted({device.name for device in tables})
    fold_of = dict(zip(rng.permutation(names), range(len(names)), strict=True))
    judged: list[Judged] = []
    for fold in range(FOLDS_OF_DEVICES):
        new = {d: t for d, t in tables.items() if fold_of[d.name] % FOLDS_OF_DEVICES == fold}
        known = learn({d: t for d, t in tables.items() if d not in new})
        for device, table in new.items():
            if device.kind in known.kinds and len(table.networks) >= FEWEST_TO_JUDGE:
                judged += _few_shot(device, table, known.kinds[device.kind], rng)
        talk(f"devices, fold {fold + 1} of {FOLDS_OF_DEVICES}: {len(judged)} rows so far")
    return judged


def _few_shot(device: Device, table: Table, prior: Normal, rng: np.random.Generator) -> list[Judged]:
    n = len(table.networks)
    order = rng.permutation(n)
    judged: list[Judged] = []
    if n > 2 * MEASURED_OF_A_NEW_DEVICE:  # ten random ones, judged on all the others
        parts = [order[MEASURED_OF_A_NEW_DEVICE:]]
    else:
        parts = [order[i : i + 1] for i in range(n)]
    for held in parts:
        others = rng.permutation([i for i in range(n) if i not in set(held.tolist())])[:MEASURED_OF_A_NEW_DEVICE]
        shown = picked(table, [i in set(others.tolist()) for i in range(n)])
        unseen = picked(table, [i in set(held.tolist()) for i in range(n)])
        judged += _judged(device, shown, unseen, fit_device(shown.rows, prior).mean)
    return judged


def judge_others(tables: Tables, others: Tables, *, seed: int = 0) -> list[Judged]:
    """Rows of another file: of known devices by their costs, of new ones by their kind and ten of their networks."""
    rng, known = np.random.default_rng(seed), learn(tables)
    judged: list[Judged] = []
    for device, table in others.items():
        if device in known.devices:
            judged += _judged(device, tables[device], table, known.devices[device].mean)
        elif device.kind in known.kinds and len(table.networks) >= FEWEST_TO_JUDGE:
            judged += _few_shot(device, table, known.kinds[device.kind], rng)
    return judged


def _judged(device: Device, shown: Table, held: Table, theta: Vector) -> list[Judged]:
    if not held.networks:
        return []
    predicted, measured = np.exp(log_ms(held.rows.features, theta)), np.exp(held.rows.log_ms)
    macs, log_linear = baselines(shown.rows, held.rows.features)
    columns = zip(held.networks, held.families, measured, predicted, macs, log_linear, strict=True)
    return [Judged(device, n, f, *(float(x) for x in figures)) for n, f, *figures in columns]


def baselines(shown: Rows, unseen: Matrix) -> tuple[Vector, Vector]:
    """What proportion to multiply-adds, and a log-linear fit, make of the unseen rows, in ms; shape (rows,) each."""
    known, asked = _totals(shown.features), _totals(unseen)
    rate = np.median(shown.log_ms - known[:, 0])
    by_macs = np.exp(asked[:, 0] + rate)
    if len(known) < FEWEST_TO_JUDGE - 1:
        return by_macs, by_macs
    ones = np.ones((len(known), 1))
    found = np.linalg.lstsq(np.hstack([known, ones]), shown.log_ms, rcond=None)[0]
    return by_macs, np.exp(np.hstack([asked, np.ones((len(asked), 1))]) @ found)


def _totals(features: Matrix) -> Matrix:
    """Logs of 1e9 multiply-adds, 1e6 parameters and 1e6 elements moved, shape (rows, 3)."""
    extra = ("conv_small", "conv_narrow", "attention_small", "folded")
    macs = [f.group in ("D", "W") and f.name not in extra for f in FEATURES]
    weights = [f.name in ("weights", "linear_weights", "vector_weights") for f in FEATURES]
    moved = [f.name in ("conv_elements", "depthwise_elements", "linear_elements", "pool_elements") for f in FEATURES]
    vector = features[:, NAMES.index("vector_weights")] / 1e3
    columns = [features[:, macs].sum(axis=1) + vector, features[:, weights].sum(axis=1), features[:, moved].sum(axis=1)]
    return np.asarray(np.log(np.maximum(np.stack(columns, axis=1), 1e-6)), dtype=np.float64)


def interval(judged: Iterable[Judged]) -> tuple[float, float]:
    """Factors that hold measured over predicted for 80 % of the rows; no rows: a factor of 2.5 either way.

    A family of many rows says more than one of few, but not in proportion: a row weighs one over the root of its
    family's size. Few families know little of how far the next one is off: quantiles are moved from the median by what
    Student's t with one degree of freedom less than there are families asks for, as far as families differ.
    """
    rows = list(judged)
    if len(rows) < 5:
        return 0.4, 2.5
    sizes = Counter(row.family for row in rows)
    logs = np.log([row.measured_ms / row.predicted_ms for row in rows])
    low, middle, high = _quantiles(logs, np.array([sizes[row.family] ** -0.5 for row in rows]))
    wider = _wider([logs[[row.family == name for row in rows]] for name in sizes])
    return float(np.exp(middle + wider * (low - middle))), float(np.exp(middle + wider * (high - middle)))


def _quantiles(values: Vector, weights: Vector) -> Vector:
    """10, 50 and 90 %, between the middles of the values' weights."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) - weights[order] / 2
    return np.asarray(np.interp([0.1, 0.5, 0.9], below / weights.sum(), values[order]))


def _wider(families: list[Vector]) -> float:
    """By how much: 1 where families are alike or many. Their share of the variance is that of a one-way analysis."""
    from scipy.stats import norm, t

    n, count = sum(map(len, families)), len(families)
    if count < 2 or n <= count:
        return float(t.ppf(0.9, 1) / norm.ppf(0.9))
    means = np.array([family.mean() for family in families])
    sizes = np.array([len(family) for family in families], dtype=np.float64)
    grand = float((sizes * means).sum() / n)
    within = sum(float(((family - family.mean()) ** 2).sum()) for family in families) / (n - count)
    between = float((sizes * (means - grand) ** 2).sum()) / (count - 1)
    size = (n - float((sizes**2).sum()) / n) / (count - 1)
    variance = max(0.0, (between - within) / size)
    share = variance / (variance + within) if variance > 0 else 0.0
    asked = float(t.ppf(0.9, count - 1) / norm.ppf(0.9)) * np.sqrt(1 + 1 / count)
    return float(np.sqrt(1 - share + share * asked**2))


def group_of(device: Device, rows: int) -> str:
    """What an interval is about: the kind, or the device itself where it has many rows of its own."""
    return device.kind if rows < ROWS_FOR_AN_OWN_INTERVAL else "|".join(device)


def grouped(judged: Iterable[Judged]) -> dict[str, list[Judged]]:
    """Rows by what their interval is about; a kind's rows include those of devices with intervals of their own."""
    rows = list(judged)
    per_device = Counter(row.device for row in rows)
    found: dict[str, list[Judged]] = defaultdict(list)
    for row in rows:
        for name in {row.device.kind, group_of(row.device, per_device[row.device])}:
            found[name].append(row)
    return dict(found)


def covered(judged: Iterable[Judged]) -> list[tuple[Judged, bool]]:
    """Each row with whether it lies in the interval that the other families of its group give."""
    rows = list(judged)
    per_device, groups = Counter(row.device for row in rows), grouped(rows)
    bounds: dict[tuple[str, str], tuple[float, float]] = {}
    found = []
    for row in rows:
        name = group_of(row.device, per_device[row.device])
        if (name, row.family) not in bounds:
            bounds[name, row.family] = interval(r for r in groups[name] if r.family != row.family)
        low, high = bounds[name, row.family]
        found.append((row, low <= row.measured_ms / row.predicted_ms <= high))
    return found
