"""The advice for known situations is written down whole, and what would change it is true when it is tried."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgekd import cli
from edgekd.advisor import DEFAULT_RECIPE, Situation, advise, advised_recipe
from edgekd.advisor.guide import QUESTIONS
from edgekd.errors import InputError
from edgekd.pipeline.advice_for import AdviceRequest, advice_for
from edgekd.pipeline.advising import family_of
from edgekd.pipeline.settings import Training
from edgekd.recipes import load_recipe, recipe_names
from edgekd.recipes.schema import PoolSource, TeacherTable
from edgekd.teachers.architectures import build

GOLDEN = Path(__file__).parent / "golden.json"
USUAL: dict[str, Any] = {
    "teacher_parameters": 692_000,
    "student_parameters": 170_000,
    "classes": 10,
    "train_images": 55_000,
    "teacher_accuracy": 0.944,
}
SITUATIONS: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "black box": {"black_box": True, "teacher_parameters": None, "teacher_family": "other"},
    "black box, two classes": {"black_box": True, "teacher_family": "other", "classes": 2},
    "ten times larger, shortfall unknown": {"teacher_parameters": 11_000_000},
    "ten times larger, one assistant": {"teacher_parameters": 11_000_000, "alone_accuracy": 0.5},
    "hopeless alone": {"alone_accuracy": 0.3},
    "peers": {"alone_accuracy": 0.94},
    "no teacher": {"teachers": 0, "teacher_accuracy": None, "teacher_parameters": None},
    "no teacher, wrong labels": {"teachers": 0, "labels": "corrupted"},
    "no teacher, features": {"teachers": 0, "needs": ("features",)},
    "features and structure": {"needs": ("features", "structure")},
    "three teachers": {"teachers": 3},
    "three teachers, no labels": {"teachers": 3, "labels": "none"},
    "no labels": {"labels": "none"},
    "few images": {"train_images": 400},
    "no images": {"train_images": 0, "original_data": False},
    "ViT teaches CNN": {"teacher_family": "transformer"},
    "CNN teaches ViT": {"student_family": "transformer"},
    "ViT teaches ViT, features": {
        "teacher_family": "transformer",
        "student_family": "transformer",
        "needs": ("features",),
    },
    "features": {"needs": ("features",)},
    "features, ViT teaches CNN": {"teacher_family": "transformer", "needs": ("features",)},
    "structure": {"needs": ("structure",)},
    "robustness": {"needs": ("robustness",)},
    "robustness, the teacher has it": {"needs": ("robustness",), "teacher_robust": 0.45},
    "robustness, the teacher has none": {"needs": ("robustness",), "teacher_robust": 0.02},
    "robustness, no teacher": {"needs": ("robustness",), "teachers": 0, "teacher_accuracy": None},
    "calibration": {"needs": ("calibration",)},
    "latency": {"needs": ("latency",)},
    "training time": {"needs": ("training-time",)},
    "explanations": {"needs": ("interpretability",)},
    "paired modality": {"modality": "paired"},
    "unpaired modality": {"modality": "unpaired"},
    "teacher at chance": {"teacher_accuracy": 0.11},
}


def situation(**changes: Any) -> Situation:
    return Situation(**{**USUAL, **changes})


def test_the_advice_for_known_situations() -> None:
    """After a deliberate change of the guide: EDGEKD_GOLDEN=1 pytest tests/advisor, and read the difference."""
    found = {}
    for name, changes in SITUATIONS.items():
        advice = advise(situation(**changes))
        found[name] = {
            "recipe": advice.recipe,
            "assistants": advice.assistants,
            "answers": {reason.question: reason.answer for reason in advice.reasons if reason.question != "recipe"},
            "why": advice.reason("recipe").why,
            "changes": {change.change: change.recipe for change in advice.changes},
        }
    if os.environ.get("EDGEKD_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_every_advised_recipe_ships_and_every_answer_can_be_reached() -> None:
    advised = {rule.answer for rule in QUESTIONS["recipe"] if rule.answer}
    assert advised <= set(recipe_names())
    reached = {reason.answer for changes in SITUATIONS.values() for reason in advise(situation(**changes)).reasons}
    for rules in QUESTIONS.values():
        assert {rule.answer for rule in rules} <= reached


@pytest.mark.parametrize("name", ["quickstart", "ViT teaches CNN", "no teacher", "few images"])
def test_what_would_change_the_advice_does(name: str) -> None:
    """The borders of a range are where the recipe flips: one step outside it is as before."""
    base = situation(**SITUATIONS[name])
    advice = advise(base)
    for change in advice.changes:
        assert (change.recipe, change.assistants) != (advice.recipe, advice.assistants)
    borders = [c for c in advice.changes if c.change.startswith("the student alone, measured at under")]
    for change in borders:
        border = float(change.change.rsplit(" ", 1)[1].rstrip("%")) / 100
        inside, outside = (base.model_copy(update={"alone_accuracy": border + step}) for step in (-0.002, 0.002))
        assert advise(inside).recipe == change.recipe
        assert (advise(outside).recipe, advise(outside).assistants) != (change.recipe, change.assistants)


def test_the_bands_of_the_guide() -> None:
    def answer(teacher: float, alone: float) -> str:
        return advise(situation(teacher_accuracy=teacher, alone_accuracy=alone)).reason("capacity gap").answer

    assert [answer(0.9, 0.9 / ratio) for ratio in (1.0, 1.1, 1.49, 1.51, 2.99, 3.01)] == [
        "none",
        "direct",
        "direct",
        "one assistant",
        "one assistant",
        "several assistants",
    ]


def test_a_large_gap_in_parameters_alone_buys_no_second_training() -> None:
    advice = advise(situation(teacher_parameters=25_000_000))
    assert advice.recipe == DEFAULT_RECIPE
    assert "--baseline" in advice.reason("capacity gap").why


def test_an_assistant_is_worked_into_the_recipe_and_labels_are_left_out() -> None:
    chain = advised_recipe(advise(situation(alone_accuracy=0.3)))
    assert chain is not None
    assert chain.chain is not None
    assert chain.chain.assistants == 2
    silent = advised_recipe(advise(situation(labels="none", teachers=2)))
    assert silent is not None
    assert "cross_entropy" not in {term.method for stage in silent.stages for term in stage.terms}
    assert advised_recipe(advise(situation(needs=("interpretability",)))) is None


def test_further_teachers_take_the_place_of_the_made_ones() -> None:
    named = {"second": TeacherTable(model="timm:resnet18", weights="w.safetensors")}
    recipe = advised_recipe(advise(situation(teachers=2)), further_teachers=named)
    assert recipe is not None
    assert recipe.teachers == named
    (stage,) = recipe.stages
    assert stage.sources["second"].kind == "teacher"
    pools = [source for source in stage.sources.values() if isinstance(source, PoolSource)]
    assert [pool.members for pool in pools] == [("teacher", "second")]


def test_the_default_recipe_says_what_a_run_without_one_does() -> None:
    run = Training()
    terms = {term.method: term for term in load_recipe(DEFAULT_RECIPE).stages[0].terms}
    assert terms["cross_entropy"].weight == run.cross_entropy_weight
    assert terms["soft_target_kl"].weight == run.soft_target_weight
    assert terms["soft_target_kl"].options["temperature"] == run.temperature
    assert terms["hint"].weight == run.hint_weight


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("torchvision:resnet18", "cnn"),
        ("torchvision:vit_b_16", "transformer"),
        ("timm:vit_tiny_patch16_224", "transformer"),
        ("timm:swin_tiny_patch4_window7_224", "transformer"),
        ("timm:convnext_atto", "cnn"),
        ("timm:mobilenetv3_small_050", "cnn"),
        ("timm:mixer_s16_224", "other"),
    ],
)
def test_families_are_recognised(architecture: str, family: str) -> None:
    assert family_of(build(architecture, num_classes=10, in_channels=3)) == family


def test_a_linear_model_is_neither() -> None:
    assert family_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) == "other"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    import numpy as np

    path = tmp_path_factory.mktemp("data") / "grey.npz"
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 60), ("test", 30)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 3
    np.savez(path, **arrays)
    return str(path)


def test_the_command_names_recipe_reasons_and_changes(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["advise", "--teacher", "timm:resnet18", "--student", "timm:mobilenetv3_small_050", "--data", data]
    assert cli.run([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["advice"]["situation"]["teacher_parameters"] > 10_000_000
    assert document["recipe"]["stages"]
    assert {reason["question"] for reason in document["advice"]["reasons"]} == set(QUESTIONS)
    assert document["advice"]["changes"]
    assert cli.run([*line, "--need", "robustness"]) == 0
    assert "recipe: ard" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--need", "robustnes"], "unknown need 'robustnes'; did you mean 'robustness'?"),
        (["--labels", "noisy"], "--labels"),
        (["--alone-accuracy", "1.4"], "--alone-accuracy"),
        (["--profile", "jetson-nano"], "advice is for one student"),
        (["--after", "/nowhere"], "no distil.json in this folder"),
        (["--student", "timm:mobilenetv9"], "timm:mobilenetv9"),
    ],
)
def test_bad_input_is_one_line(data: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    student = [] if "--student" in options else ["--student", "timm:mobilenetv3_small_050"]
    assert cli.run(["advise", "--teacher", "timm:resnet18", "--data", data, *student, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_finished_run_tells_the_shortfall(data: str, tmp_path: Path) -> None:
    run = {"accuracy": {"teacher": {"top1": 0.9}, "student": {"top1": 0.5}, "baseline": {"top1": 0.4}}}
    (tmp_path / "distil.json").write_text(json.dumps(run))
    request = AdviceRequest(
        teacher="timm:resnet18", student="timm:mobilenetv3_small_050", data=data, after=tmp_path, teacher_accuracy=None
    )
    assert advice_for(request)["advice"]["recipe"] == "teacher-assistant"
    del run["accuracy"]["baseline"]
    (tmp_path / "distil.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="run it with --baseline"):
        advice_for(request)
