"""docs/distillation.md is true: its recipe is valid, its Python runs, its names are the shipped ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from edgekd.recipes import parse_recipe, recipe_names

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "distillation.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_recipe_on_the_page_is_valid() -> None:
    (text,) = blocks("toml")
    recipe = parse_recipe(text, where="docs/distillation.md")
    assert recipe.stages[0].training.ema_decay == 0.999


def test_the_python_on_the_page_runs() -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_lists_what_ships() -> None:
    table = PAGE.split("| family |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", table)) == set(recipe_names())
