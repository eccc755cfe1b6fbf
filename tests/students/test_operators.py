"""The operators of a student by arithmetic on its parts are those that tracing it finds; whole bodies leave a space."""

from __future__ import annotations

import random
import time

import pytest

from edgekd.latency import trace_cost
from edgekd.students import build, space_operators, student_operators, without
from edgekd.students.spaces import STAGE_SPACES, Task


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", STAGE_SPACES)
def test_parts_have_the_operators_that_tracing_finds(name: str, image_size: int) -> None:
    space, rng = STAGE_SPACES[name](Task((image_size,), 3, 10)), random.Random(0)
    for _ in range(5):
        number = rng.randrange(len(space.bodies))
        spec = space.spec((number, tuple(rng.randrange(len(some)) for some in space.bodies[number].choices)))
        assert student_operators(spec) == set(trace_cost(build(spec), (1, 3, image_size, image_size)).operators)


@pytest.mark.parametrize("unwanted", ["hardswish", "hardsigmoid", "depthwise_convolution", "bmm", "add"])
def test_what_is_left_of_a_space_are_its_students_without_the_operator(unwanted: str) -> None:
    for name in ("residual", "hybrid"):
        space = STAGE_SPACES[name](Task((32,), 3, 10))
        kept = [spec for spec in space.specs() if unwanted not in student_operators(spec)]
        rest = without(space, [unwanted])
        assert list(rest.specs()) == kept
        assert rest.size == len(kept)
        assert not kept or unwanted not in space_operators(rest)


def test_five_million_students_are_screened_in_a_moment() -> None:
    space = STAGE_SPACES["gated"](Task((32,), 3, 10))
    start = time.process_time()
    rest = without(space, space_operators(space) & {"hardswish", "hardsigmoid"})
    assert time.process_time() - start < 1.0
    assert space.size > 5_000_000
    assert 0 < rest.size < space.size / 10
