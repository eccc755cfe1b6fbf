"""What cannot be taught is refused in one line that names the place, what was got, and what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset, TensorSplit
from edgekd.distill import CrossEntropy, Stage, Term, Training, run_stage
from edgekd.errors import InputError
from edgekd.recipes import Materials, load_recipe, parse_recipe, stages_of

TRAINING = Training(epochs=1, batch_size=100, device="cpu", mixed_precision="no")
SECOND = '[teachers.second]\nmodel = "timm:resnet18"\n'


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [(1, width), (width, width), (width, width)]
        self.features = nn.Sequential(*(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in layers))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def materials(dataset: Dataset, *black_boxes: str) -> Materials:
    teachers = {"teacher": Net(8), "second": Net(6)}
    return Materials(dataset, teachers, lambda _w, _n: Net(4), TRAINING, black_boxes=frozenset(black_boxes))


@pytest.mark.parametrize("recipe", ["fitnet", "attention-transfer", "rkd", "crd", "soft-targets-hint", "review-kd"])
def test_a_black_box_cannot_teach_by_features(recipe: str, tiny_dataset: Dataset) -> None:
    with pytest.raises(
        InputError, match=r"method '\w+' reads features, but 'teacher' is an exported file.*use a recipe"
    ):
        stages_of(load_recipe(recipe), materials(tiny_dataset, "teacher"))


def pool_recipe(term: str) -> str:
    return f"""
title = "Two"
source = "a test"
{SECOND}
[[stages]]
sources.second = {{ kind = "teacher", teacher = "second" }}
sources.pool = {{ kind = "pool", members = ["teacher", "second"] }}
terms = [{term}]
"""


def test_a_black_box_in_a_pool_teaches_by_its_logits_alone(tiny_dataset: Dataset) -> None:
    reading = parse_recipe(
        pool_recipe('{ method = "hint", source = "pool", options = { student_tap = "features", '
                    'teacher_tap = "second/features" } }'),
        where="r",
    )  # fmt: skip
    stages_of(reading, materials(tiny_dataset))
    stages_of(reading, materials(tiny_dataset, "teacher"))
    with pytest.raises(InputError, match="method 'hint' reads features, but 'pool'"):
        stages_of(reading, materials(tiny_dataset, "second"))
    silent = parse_recipe(
        pool_recipe('{ method = "mtkd_rl", source = "pool", options = { members = ["teacher", "second"] } }'), where="r"
    )
    (stage,) = stages_of(silent, materials(tiny_dataset, "teacher", "second"))
    assert stage.terms[0].loss.needs().teacher == ("teacher/@logits", "second/@logits")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused_before_anything_runs(split: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    none = TensorSplit(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    data = dataclasses.replace(tiny_dataset, **{split: none})  # type: ignore[arg-type]
    stage = Stage("distil", data, {"student": Net(4)}, [Term(CrossEntropy())], {}, TRAINING)
    with pytest.raises(InputError, match="stage 'distil': the training or the validation split is empty; give more"):
        run_stage(stage, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tap_of_a_recipe_names_the_nearest_module(tiny_dataset: Dataset) -> None:
    text = """
title = "One"
source = "a test"
[[stages]]
terms = [{ method = "hint", source = "teacher", options = { student_tap = "feature", teacher_tap = "features" } }]
"""
    (stage,) = stages_of(parse_recipe(text, where="r"), materials(tiny_dataset))
    with pytest.raises(InputError, match="tap 'feature': Net has no module 'feature'; did you mean 'features'"):
        run_stage(stage, out=Path("unused"))
    assert not Path("unused").exists()
