"""What the docstrings of the distillation room show is what happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import edgekd.distill

MODULES = [info.name for info in pkgutil.walk_packages(edgekd.distill.__path__, "edgekd.distill.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 25
