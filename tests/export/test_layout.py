"""A chain of transposes and reshapes, told as one transpose between two reshapes, moves every value alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekd.export.tflite_layout import Axes


def moved(shape: tuple[int, ...], chain: list[tuple[str, list[int]]]) -> np.ndarray:
    values = np.arange(math.prod(shape)).reshape(shape)
    for kind, argument in chain:
        values = values.transpose(argument) if kind == "TRANSPOSE" else values.reshape(argument)
    return values


def as_one(shape: tuple[int, ...], chain: list[tuple[str, list[int]]]) -> tuple[list[int], list[int]] | None:
    axes = Axes(shape)
    for kind, argument in chain:
        if not (axes.transpose(argument) if kind == "TRANSPOSE" else axes.reshape(argument)):
            return None
    return axes.merged()


KNOWN = {
    "there and back": ((1, 8, 8, 24), [("TRANSPOSE", [0, 3, 1, 2]), ("TRANSPOSE", [0, 2, 3, 1])], True),
    "detection head": (
        (1, 8, 8, 24),
        [("TRANSPOSE", [0, 3, 1, 2]), ("RESHAPE", [1, 6, 4, 8, 8]), ("TRANSPOSE", [0, 3, 4, 1, 2])],
        True,
    ),
    "patch embedding": (
        (1, 4, 4, 192),
        [("TRANSPOSE", [0, 3, 1, 2]), ("RESHAPE", [1, 192, 16]), ("TRANSPOSE", [0, 2, 1])],
        True,
    ),
    "channel shuffle": (
        (1, 4, 4, 6),
        [
            ("TRANSPOSE", [0, 3, 1, 2]),
            ("RESHAPE", [1, 2, 3, 4, 4]),
            ("TRANSPOSE", [0, 2, 1, 3, 4]),
            ("RESHAPE", [1, 6, 4, 4]),
            ("TRANSPOSE", [0, 2, 3, 1]),
        ],
        False,
    ),
    "one real transpose": ((1, 4, 5, 6), [("TRANSPOSE", [0, 3, 1, 2])], False),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_what_converters_leave_around_heads_is_told_from_what_really_moves(name: str) -> None:
    shape, chain, idle = KNOWN[name]
    told = as_one(shape, chain)
    assert told is not None
    assert (told[1] == sorted(told[1])) == idle


def test_any_chain_told_as_one_moves_every_value_alike() -> None:
    random, told_count = np.random.default_rng(0), 0
    for _ in range(400):
        shape = tuple(int(size) for size in random.choice([1, 2, 3, 4, 6], size=random.integers(1, 5)))
        chain, current = [], shape
        for _ in range(int(random.integers(1, 6))):
            if random.random() < 0.5:
                order = [int(axis) for axis in random.permutation(len(current))]
                chain.append(("TRANSPOSE", order))
                current = tuple(current[axis] for axis in order)
            else:
                current = regrouped(math.prod(current), random)
                chain.append(("RESHAPE", list(current)))
        if (told := as_one(shape, chain)) is not None:
            told_count += 1
            split, order = told
            one = np.arange(math.prod(shape)).reshape(split).transpose(order)
            assert (one.ravel() == moved(shape, chain).ravel()).all(), (shape, chain)
    assert told_count > 200


def regrouped(count: int, random: np.random.Generator) -> tuple[int, ...]:
    sizes = []
    while count > 1:
        size = int(random.choice([d for d in range(2, count + 1) if count % d == 0]))
        sizes.append(size)
        count //= size
    return (*sizes, 1)
