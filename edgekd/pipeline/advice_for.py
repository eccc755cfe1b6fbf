"""`edgekd advise`: the situation of a teacher, a student and data named on the command line, and the advice for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from edgekd.advisor import Need, Situation, advise, advised_recipe
from edgekd.advisor.situation import Labels, Modality
from edgekd.artifact import Frozen
from edgekd.data import Dataset, load_data
from edgekd.data.dataset import View
from edgekd.distill import evaluate, robust_accuracy
from edgekd.errors import InputError
from edgekd.files import read_json
from edgekd.pipeline import choosing
from edgekd.pipeline.advising import family_of, parameters_of
from edgekd.pipeline.context import Inputs, plan_of
from edgekd.pipeline.settings import Settings
from edgekd.profile import load_profile
from edgekd.recipes.schema import TeacherTable
from edgekd.teachers import load_teacher
from edgekd.teachers.architectures import build

NO_TEACHER = "none"
_BY_NAME = ("edgekd:wrn", "timm:", "torchvision:")
_MEASURED_ON = 1024  # held-out images that --measure shows the teacher
_ATTACKED_ON = 64  # of them attacked, where robustness is needed


class AdviceRequest(Frozen):
    """What may be said. teacher None: the shipped one; `none`: none; a timm:/torchvision: name needs no weights here.

    student or profile: an architecture, or the device whose search finds one. also: further teachers. after: a finished
    run, for its measured accuracies. measure: run the teacher on held-out images.
    """

    teacher: str | None = None
    weights: str | None = None
    student: str | None = None
    profile: str | None = None
    data: str | None = None
    image_size: int | None = None
    also: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    labels: Labels = "clean"
    modality: Modality = "same"
    has_images: bool = True
    teacher_accuracy: float | None = None
    alone_accuracy: float | None = None
    after: Path | None = None
    measure: bool = False
    skip_bad: bool = False


def advice_for(request: AdviceRequest) -> dict[str, Any]:
    """{"advice": the advice, "recipe": the recipe it comes to, or None}.

    Raises: InputError: neither or both of student and profile, or something named cannot be used.
    """
    if (request.student is None) == (request.profile is None):
        raise InputError("advice is for one student", fix="give --student timm:NAME, or --profile NAME to search one")
    data = load_data(request.data, image_size=request.image_size, skip_bad=request.skip_bad, seed=0)
    facts = {**_teacher(request, data), **_student(request, data), **_measured(request)}
    asked = {"teacher_accuracy": request.teacher_accuracy, "alone_accuracy": request.alone_accuracy}
    facts |= {key: value for key, value in asked.items() if value is not None}
    try:
        situation = Situation(
            classes=data.num_classes,
            train_images=len(data.train) if request.has_images else 0,
            labels=request.labels,
            modality=request.modality,
            original_data=request.has_images,
            needs=request.needs or ("accuracy",),
            **facts,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = "--" + str(first["loc"][0]).replace("_", "-")
        raise InputError(f"{first['input']!r}: {first['msg']}", where=where) from error
    advice = advise(situation)
    recipe = advised_recipe(advice, further_teachers=_tables(request.also))
    return {
        "advice": advice.model_dump(mode="json"),
        "recipe": None if recipe is None else recipe.model_dump(mode="json", exclude_none=True),
    }


def _tables(also: tuple[str, ...]) -> dict[str, TeacherTable]:
    """`MODEL` or `MODEL,WEIGHTS`, named teacher-2 and so on."""
    tables = {}
    for number, text in enumerate(also, start=2):
        model, _, weights = text.partition(",")
        tables[f"teacher-{number}"] = TeacherTable(model=model, weights=weights or None)
    return tables


def _teacher(request: AdviceRequest, data: Dataset) -> dict[str, Any]:
    """Number, size, family and recorded or measured accuracy."""
    if request.teacher == NO_TEACHER:
        return {"teachers": 0, "teacher_family": "other"}
    count = {"teachers": 1 + len(request.also)}
    if request.weights is None and request.teacher is not None and request.teacher.startswith(_BY_NAME):
        return {**count, **_module_facts("teacher", _named(request.teacher, data))}
    weights = None if request.weights is None else Path(request.weights)
    teacher = load_teacher(request.teacher, weights=weights, dataset=data)
    recorded = teacher.facts.get("test_top1")
    found: dict[str, Any] = {**count, "black_box": teacher.black_box}
    found |= {"teacher_family": "other"} if teacher.black_box else _module_facts("teacher", teacher.module)
    if request.measure:
        part = View(data.val, data.sample("val", _MEASURED_ON))
        shown = teacher.adapt(data.preprocessing)
        found["teacher_accuracy"] = evaluate(shown, part, data.preprocessing).top1
        if "robustness" in request.needs and not teacher.black_box:
            few = View(data.val, data.sample("val", _ATTACKED_ON))
            found["teacher_robust"] = robust_accuracy(shown, few, data.preprocessing)
    elif isinstance(recorded, (int, float)) and 0 <= recorded <= 1:
        found["teacher_accuracy"] = float(recorded)
    return found


def _named(architecture: str, data: Dataset) -> nn.Module:
    with torch.random.fork_rng([]):
        return build(architecture, num_classes=data.num_classes, in_channels=data.preprocessing.channels)


def _module_facts(who: str, module: nn.Module) -> dict[str, Any]:
    return {f"{who}_parameters": parameters_of(module), f"{who}_family": family_of(module)}


def _student(request: AdviceRequest, data: Dataset) -> dict[str, Any]:
    """The named net, or the one that the search of the profile picks."""
    if request.student is not None:
        return _module_facts("student", _named(request.student, data))
    assert request.profile is not None
    settings = Settings(profile=request.profile, data=request.data, image_size=request.image_size)
    profile = load_profile(request.profile)
    bare = request.teacher is not None and request.weights is None and request.teacher.startswith(_BY_NAME)
    if request.teacher == NO_TEACHER or bare:
        if not data.name.startswith("fashion-mnist"):
            fix = "give --weights with the teacher, or --student"
            raise InputError("the search of a student needs a teacher that runs", where="--teacher", fix=fix)
        teacher = load_teacher(None, dataset=data)
    else:
        weights = None if request.weights is None else Path(request.weights)
        teacher = load_teacher(request.teacher, weights=weights, dataset=data)
    inputs = Inputs(profile, data, teacher)
    found = choosing.choose(inputs, plan_of(settings, profile, data, teacher))
    return _module_facts("student", choosing.student_module(inputs, found.chosen.spec))


def _measured(request: AdviceRequest) -> dict[str, Any]:
    """Test accuracies of teacher and baseline in a finished run. Raises: InputError: it trained no baseline."""
    if request.after is None:
        return {}
    path = request.after / "distil.json"
    if not path.is_file():
        raise InputError("no distil.json in this folder", where=request.after, fix="give a run whose training is done")
    document = read_json(path)
    accuracy = document["accuracy"]
    if "baseline" not in accuracy:
        raise InputError("this run trained no baseline", where=request.after, fix="run it with --baseline")
    found = {"teacher_accuracy": accuracy["teacher"]["top1"], "alone_accuracy": accuracy["baseline"]["top1"]}
    attacked = (document.get("assessment") or {}).get("attacked") or {}
    return found | ({"teacher_robust": attacked["teacher"]} if "teacher" in attacked else {})
