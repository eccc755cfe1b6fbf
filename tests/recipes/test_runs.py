"""`edgekd distill --recipe` and `edgekd recipes`, from the command line to the trained student."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_files import teacher_file, tiny_npz

from edgekd import cli
from edgekd.data import Dataset
from edgekd.errors import InputError
from edgekd.pipeline import api
from edgekd.pipeline.events import Silent
from edgekd.pipeline.settings import Settings
from edgekd.recipes import load_recipe, parse_recipe, recipe_names


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> dict[str, Any]:
    """Settings of a small run: an .npz, two untrained teachers of the right classes."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        teacher_file(folder, tiny_dataset, name=name)
    return {
        "profile": "jetson-nano",
        "data": str(tiny_npz(folder, tiny_dataset)),
        "teacher": str(folder / "one.safetensors"),
        "targets": ("null",),
        "training": {"epochs": 1, "batch_size": 108},
    }


class Stopping(Silent):
    """Stops a run once its student is taught: the rest is the same for every recipe."""

    def stage(self, number: int, total: int, title: str) -> None:
        if title.startswith("quantise"):
            raise KeyboardInterrupt


def taught(settings: Settings, out: Path, *, resume: bool = False) -> dict[str, Any]:
    with pytest.raises(KeyboardInterrupt):
        api.distill(settings, out=out, resume=resume, events=Stopping())
    assert (out / "student.safetensors").is_file()
    document: dict[str, Any] = json.loads((out / "distil.json").read_text())
    return document


@pytest.mark.slow
def test_a_run_is_taught_by_a_shipped_recipe(inputs: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = Settings(**inputs, recipe=load_recipe("mutual-learning"))
    found = taught(settings, out)
    assert (
        found["notes"][0]
        == "recipe: Deep mutual learning of three peers; no teacher (Zhang et al. 2018, arXiv 1706.00384)"
    )
    assert "soft_target_kl: peer-2 <- student" in found["trainings"][0]["epochs"][0]["losses"]
    teaching = json.loads((out / "select.json").read_text())["teaching"]
    assert any(line.startswith("recipe: 'Deep mutual learning") and ", as asked; " in line for line in teaching)
    assert taught(settings, out, resume=True) == found, "the recipe is kept whole in run.json"


@pytest.mark.slow
def test_a_recipe_of_ones_own_names_a_second_teacher_and_has_two_stages(inputs: dict[str, Any], tmp_path: Path) -> None:
    second = Path(inputs["teacher"]).with_name("two.safetensors")
    text = f"""
title = "Mine"
source = "a test"
teachers.second = {{ model = "{second}" }}
[[stages]]
name = "first"
terms = [{{ method = "cross_entropy" }}]
[[stages]]
students.student = {{ from_stage = "first" }}
sources.second = {{ kind = "teacher", teacher = "second" }}
sources.pool = {{ kind = "pool", members = ["teacher", "second"], weighting = "labels" }}
sources.kept = {{ kind = "cached", of = "teacher" }}
training.views = 2
terms = [{{ method = "soft_target_kl", source = "pool" }}, {{ method = "dkd", source = "kept" }}]
"""
    settings = Settings(**inputs, recipe=parse_recipe(text, where="mine.toml"))
    found = taught(settings, tmp_path / "run")
    assert [training["name"] for training in found["earlier"]] == ["distil-first"]
    losses = found["trainings"][0]["epochs"][0]["losses"]
    assert set(losses) == {"soft_target_kl: student <- pool", "dkd: student <- kept"}
    assert list((Path(os.environ["EDGEKD_CACHE"]) / "teachers").glob("*/values.f16"))
    other = Settings(**inputs, recipe=parse_recipe(text.replace("labels", "mean"), where="mine.toml"))
    with pytest.raises(InputError, match="was started with recipe="):
        api.distill(other, out=tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_run_that_teaches_robustness_measures_it(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Student and teacher under the recipe's attack; a run with another recipe is not attacked."""
    recipe = load_recipe("ard")
    attacker = recipe.stages[0].players["attacker"].model_copy(update={"steps": 1, "epsilon": 4 / 255})
    gentle = recipe.model_copy(update={"stages": (recipe.stages[0].model_copy(update={"players": {"a": attacker}}),)})
    found = taught(Settings(**inputs, recipe=gentle), tmp_path / "run")["assessment"]["attacked"]
    assert (found["epsilon"], found["steps"]) == (4 / 255, 20)
    assert found["n"] >= 64
    assert {"student", "teacher"} <= found.keys()
    assert all(0 <= found[who] <= 1 for who in ("student", "teacher"))


def test_recipes_are_listed_shown_and_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["recipes", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [line["name"] for line in listed] == recipe_names()
    for name in recipe_names():
        assert cli.run(["recipes", "show", name]) == 0
        text = capsys.readouterr().out
        assert "stage '" in text
        assert "term " in text
    assert cli.run(["recipes", "show", "dkd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["terms"][1]["options"]["beta"] == 8.0
    assert cli.run(["recipes", "check", "crd"]) == 0
    assert "valid recipe" in capsys.readouterr().out
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('title = "t"\nsource = "s"\n[[stages]]\nterms = [{ method = "crdd" }]\n')
    assert cli.run(["recipes", "check", str(wrong)]) == 2
    assert "unknown method 'crdd'; did you mean 'crd'" in capsys.readouterr().err
    assert cli.run(["distill", "--profile", "jetson-nano", "--recipe", "dkdd"]) == 2
    assert "no recipe 'dkdd'; did you mean 'dkd'" in capsys.readouterr().err
