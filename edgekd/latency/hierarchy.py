"""Costs per unit of work, learned for many devices at once: a device is a draw from its kind, a kind from its parent.

Model: log(ms) = log(sum_k exp(theta_k) x_k) + noise, with theta of a device normal around its kind's mean. Costs are
positive by construction; a device with many rows finds its own, one with ten moves its kind's, one with none keeps it.
Fit: Gauss-Newton for the mode, Laplace's approximation for the spread, expectation-maximisation for the kinds. Noise is
Student's t, so that a mistaken row pulls little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.latency.features import BASE, FEATURES, Vector

Matrix = npt.NDArray[np.float64]
NOISE = 0.1  # of a row's logarithm, where the model is right: about what two runs of one network differ by
_FREEDOM = 4.0  # of Student's t
_LARGEST_STEP = 2.0


class Rows(NamedTuple):
    """Measurements of one device: features (rows, features), natural logarithm of ms (rows,), and weights (rows,)."""

    features: Matrix
    log_ms: Vector
    weights: Vector


class Normal(NamedTuple):
    """A distribution of log costs: mean (features,), covariance (features, features)."""

    mean: Vector
    covariance: Matrix


def spread(*, speed: float, group: float, single: float) -> Matrix:
    """Covariance of log costs: devices differ in speed, in how fast a group of features is, and in single features."""
    groups = np.array([feature.group for feature in FEATURES])
    same = (groups[:, None] == groups[None, :]).astype(np.float64)
    return np.asarray(speed**2 + group**2 * same + single**2 * np.eye(len(FEATURES)), dtype=np.float64)


def log_ms(features: Matrix, theta: Vector) -> Vector:
    """Predicted logarithm of ms, shape (rows,)."""
    return np.asarray(np.log(features @ np.exp(theta)))


def fit_device(rows: Rows, prior: Normal, *, start: Vector | None = None, steps: int = 12) -> Normal:
    """Mode and spread of a device's log costs given its rows and its kind."""
    precision = _inverse(prior.covariance)
    theta = prior.mean.copy() if start is None else start.copy()
    loss = _loss(rows, theta, prior.mean, precision)
    hessian = precision
    for _ in range(steps):
        gradient, hessian = _slopes(rows, theta, prior.mean, precision)
        step = np.asarray(np.linalg.solve(hessian, gradient), dtype=np.float64)
        step *= min(1.0, _LARGEST_STEP / max(float(np.abs(step).max()), 1e-12))
        theta, improved = _along(rows, theta, step, loss, (prior.mean, precision))
        if loss - improved < 1e-4:
            break
        loss = improved
    return Normal(theta, _inverse(hessian))


def _inverse(matrix: Matrix) -> Matrix:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _along(rows: Rows, theta: Vector, step: Vector, loss: float, prior: tuple[Vector, Matrix]) -> tuple[Vector, float]:
    for _ in range(10):
        found = _loss(rows, theta + step, *prior)
        if found <= loss:
            return theta + step, found
        step = step / 2
    return theta, loss


def _loss(rows: Rows, theta: Vector, mean: Vector, precision: Matrix) -> float:
    residual = (rows.log_ms - log_ms(rows.features, theta)) / NOISE
    away = theta - mean
    fit = (rows.weights * (_FREEDOM + 1) * np.log1p(residual**2 / _FREEDOM)).sum()
    return float(fit + away @ precision @ away)


def _slopes(rows: Rows, theta: Vector, mean: Vector, precision: Matrix) -> tuple[Vector, Matrix]:
    parts = rows.features * np.exp(theta)
    total = parts.sum(axis=1)
    shares = parts / total[:, None]
    residual = rows.log_ms - np.log(total)
    weight = rows.weights * (_FREEDOM + 1) / (_FREEDOM + (residual / NOISE) ** 2) / NOISE**2
    weighted = shares * weight[:, None]
    return weighted.T @ residual - precision @ (theta - mean), weighted.T @ shares + precision


class Kind(NamedTuple):
    """What devices of a kind have in common, and each device's own costs, in the order they were given."""

    prior: Normal
    devices: tuple[Normal, ...]


class Strength(NamedTuple):
    """How much is believed before rows are seen. single, group, speed: spreads between devices of a kind, in logs.

    pseudo: as many devices as the spread counts for. parent: share of the devices' number that the parent counts for
    (devices of one table measured the same few networks, so their number overstates what they know).
    """

    speed: float = 1.5
    group: float = 0.7
    single: float = 0.15
    pseudo: float = 20.0
    parent: float = 0.2
    drift: float = 0.25


def fit_kind(devices: Sequence[Rows], parent: Vector, strength: Strength, *, rounds: int = 4) -> Kind:
    """Mean and covariance of a kind of devices around its parent's mean, with every device's own costs."""
    n = len(devices)
    first = spread(speed=strength.speed, group=strength.group, single=strength.single)
    loose = spread(speed=3.0, group=1.0, single=strength.drift)
    anchor = parent + _speed(devices, parent)
    pull = strength.parent * n * np.linalg.inv(loose)
    prior = Normal(anchor, first)
    found: list[Normal] = [prior] * n
    for _ in range(rounds):
        found = [fit_device(r, prior, start=f.mean, steps=4) for r, f in zip(devices, found, strict=True)]
        precision = _inverse(prior.covariance)
        means = np.array([f.mean for f in found])
        mean = np.linalg.solve(n * precision + pull, precision @ means.sum(axis=0) + pull @ anchor)
        away = means - mean
        covariances = np.sum([f.covariance for f in found], axis=0)
        prior = Normal(mean, (away.T @ away + covariances + strength.pseudo * first) / (n + strength.pseudo))
    found = [fit_device(r, prior, start=f.mean, steps=6) for r, f in zip(devices, found, strict=True)]
    return Kind(prior, tuple(found))


def _speed(devices: Sequence[Rows], mean: Vector) -> float:
    """Median over devices of how much slower they are than a mean says, in logs."""
    return float(np.median([np.median(r.log_ms - log_ms(r.features, mean)) for r in devices]))


def nominal() -> Vector:
    """Log costs of a nominal device: the root of every kind."""
    return BASE.copy()
