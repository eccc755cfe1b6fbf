"""Every shipped recipe trains; a recipe with a mistake says which, where, and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill import Training, last_path, run_stage
from edgekd.distill.cache import CachedTeacher
from edgekd.distill.chain import parameters_of, plan_chain
from edgekd.distill.checkpoint import load
from edgekd.errors import InputError
from edgekd.recipes import Materials, load_recipe, parse_recipe, recipe_names, stages_of
from edgekd.recipes.schema import Ramp

QUICK = Training(epochs=1, batch_size=100, learning_rate=0.02, device="cpu", mixed_precision="no", clip_norm=5.0)


class Net(nn.Module):
    """Three resolutions and a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 4, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Conv2d(width, 2 * width, 3, stride=2)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.deep(self.middle(self.stem(x))).relu().mean((2, 3)))


def new_student(width: float, number: int) -> nn.Module:
    torch.manual_seed(number)
    return Net(round(4 * width))


def materials(dataset: Dataset, cache: Path | None = None, **changes: object) -> Materials:
    torch.manual_seed(99)
    teacher = changes.pop("teacher", None) or Net(16)
    return Materials(dataset, {"teacher": teacher}, new_student, QUICK, cache=cache, **changes)  # type: ignore[arg-type,dict-item]


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_trains_its_student(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    stages = stages_of(recipe, materials(tiny_dataset, tmp_path / "cache"))
    for stage in stages:
        before = {k: v.clone() for k, v in next(iter(stage.students.values())).state_dict().items()}
        result = run_stage(stage, out=tmp_path / stage.name)
        assert set(result.history[-1].losses) == {term.label for term in stage.terms}
        after = next(iter(stage.students.values())).state_dict()
        assert not torch.equal(after["fc.weight"], before["fc.weight"]) or stage.name == "hint"
        assert not torch.equal(after["stem.0.weight"], before["stem.0.weight"])
    assert recipe.source
    assert recipe.note


def test_there_is_a_recipe_for_each_family() -> None:
    families = {"soft-targets", "ca-mkd", "mean-teacher", "born-again", "mutual-learning", "teacher-assistant", "ard"}
    assert families | {"adversarial-logits", "byot", "cached-teacher", "crd", "fitnet"} <= set(recipe_names())


def test_every_generation_learns_from_the_one_before(tiny_dataset: Dataset) -> None:
    made = materials(tiny_dataset)
    first, second, third = stages_of(load_recipe("born-again"), made)
    assert [first.name, second.name, third.name] == ["generation-1", "generation-2", "distil"]
    assert first.sources["teacher"] is made.teachers["teacher"]
    assert second.sources["teacher"] is first.students["student"]
    assert third.sources["teacher"] is second.students["student"]


def test_assistants_have_the_sizes_in_between(tiny_dataset: Dataset) -> None:
    made = materials(tiny_dataset, teacher=Net(64))
    teacher, student = parameters_of(made.teachers["teacher"]), parameters_of(new_student(1.0, 0))
    planned = plan_chain(teacher, student).assistants
    stages = stages_of(load_recipe("teacher-assistant"), made)
    sizes = [parameters_of(stage.students["student"]) for stage in stages]
    assert len(stages) == len(planned) + 1 == 3, "two assistants for a gap of 200"
    assert sizes[-1] == student
    assert sizes[:-1] == pytest.approx(planned, rel=0.3)


def test_a_gap_below_ten_needs_no_assistant_and_a_measured_shortfall_decides_first() -> None:
    assert plan_chain(9, 1).assistants == ()
    assert len(plan_chain(10, 1).assistants) == 1
    assert plan_chain(1000, 1, accuracy_ratio=1.2).assistants == ()
    assert len(plan_chain(4, 1, accuracy_ratio=2.0).assistants) == 1
    assert len(plan_chain(4, 1, accuracy_ratio=3.5).assistants) == 2
    with pytest.raises(InputError, match="as large as its teacher"):
        plan_chain(5, 5, assistants=1)


def test_peers_start_from_different_weights(tiny_dataset: Dataset) -> None:
    students = list(stages_of(load_recipe("mutual-learning"), materials(tiny_dataset))[0].students.values())
    assert len(students) == 3
    assert not torch.equal(students[0].fc.weight, students[1].fc.weight)  # type: ignore[arg-type,union-attr]


def test_a_hint_stage_hands_its_student_on(tiny_dataset: Dataset) -> None:
    hint, distil = stages_of(load_recipe("fitnet"), materials(tiny_dataset))
    assert hint.students["student"] is distil.students["student"]
    assert hint.terms[0].loss.needs().student == ("middle",)
    assert hint.training.epochs == pytest.approx(0.34)


def test_a_finished_stage_is_only_loaded_when_the_recipe_is_run_again(tiny_dataset: Dataset, tmp_path: Path) -> None:
    states = []
    for _ in range(2):
        stages = stages_of(load_recipe("born-again"), materials(tiny_dataset))
        for stage in stages:
            run_stage(stage, out=tmp_path / stage.name, resume=last_path(tmp_path / stage.name).exists())
        states.append(stages[-1].students["student"].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert load(last_path(tmp_path / "distil"))["step"] == 6


def test_a_black_box_cannot_teach_features(tiny_dataset: Dataset) -> None:
    made = materials(tiny_dataset, black_boxes=frozenset({"teacher"}))
    with pytest.raises(InputError, match="method 'crd' reads features, but 'teacher' is an exported file"):
        stages_of(load_recipe("crd"), made)
    assert stages_of(load_recipe("dkd"), made)


def test_a_stage_that_the_model_has_not_is_named(tiny_dataset: Dataset) -> None:
    text = recipe('method = "attention_transfer"\nsource = "teacher"\noptions.student_tap = "stage:7"')
    text += '\noptions.teacher_tap = "stage:-1"'
    with pytest.raises(InputError, match="tap 'stage:7': Net has stages 0 to 2; count from the end: -1"):
        stages_of(parse_recipe(text, where="r.toml"), materials(tiny_dataset))


def test_a_ramp_stays_between_its_ends() -> None:
    for shape in ("linear", "cosine", "gaussian"):
        ramp = Ramp(first=0.0, last=2.0, begin=0.2, until=0.6, shape=shape)  # type: ignore[arg-type]
        values = [ramp.at(p / 50) for p in range(50)]
        assert values == sorted(values)
        assert values[0] < 0.02
        assert values[-1] == pytest.approx(2.0)


def recipe(term: str, stage: str = "", head: str = "") -> str:
    return f'title = "t"\nsource = "s"\n{head}\n[[stages]]\n{stage}\n[[stages.terms]]\n{term}\n'


PLAIN = 'method = "cross_entropy"'
WRONG = [
    (recipe('method = "ddk"'), "stage 'distil', term 'ddk': unknown method 'ddk'; did you mean 'dkd'"),
    (recipe('method = "dkd"\noptions.betta = 1'), "method 'dkd' has no option 'betta'; did you mean 'beta'"),
    (recipe(PLAIN + "\nwieght = 2"), r"stages.0.terms.0: unknown key 'wieght'; did you mean 'weight'"),
    (recipe(PLAIN, head='sorce = "x"'), "unknown key 'sorce'; did you mean 'source'"),
    (recipe(PLAIN + "\nweight = -1"), "weight.*greater than or equal to 0, got -1"),
    (recipe('method = "soft_target_kl"\noptions.temperature = -4.0'), "temperature must be positive"),
    (recipe('method = "dkd"\nsource = "techer"'), "unknown source 'techer'; did you mean 'teacher'"),
    (recipe(PLAIN + '\nstudent = "studnet"'), "unknown student 'studnet'; did you mean 'student'"),
    (recipe(PLAIN, 'name = "A stage"'), "String should match pattern"),
    (recipe(PLAIN, 'sources.x = { kind = "stage", stage = "late" }'), "source 'x': unknown stage 'late'"),
    (recipe(PLAIN, 'sources.x = { kind = "pol" }'), "does not match any of the expected tags"),
    (recipe(PLAIN, 'sources.x = { kind = "cached" }'), "a cache needs a known number.*training.views = 8"),
    (recipe(PLAIN, 'sources.x = { kind = "pool", members = ["teacher", "b"] }'), "unknown source 'b'"),
    (recipe(PLAIN, 'sources.x = { kind = "collaboration", members = ["student", "peer"] }'), "unknown student 'peer'"),
    (recipe(PLAIN, 'sources.x = { kind = "teacher", teacher = "two" }'), "unknown teacher 'two'"),
    (recipe('method = "adversarial"\ndiscriminator = "j"'), "unknown discriminator 'j'"),
    (recipe(PLAIN, head="chain = { generations = 2, assistants = 1 }"), "give either assistants or generations"),
    (recipe(PLAIN, "training.mixupp = 1.0"), "training: unknown key 'mixupp'; did you mean 'mixup'"),
    ("title = ", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_mistake_is_named_with_its_place_and_its_cure(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse_recipe(text, where="r.toml")
    assert "r.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no recipe 'soft-target'; did you mean 'soft-targets'"):
        load_recipe("soft-target")


def test_the_cached_recipe_keeps_what_the_teacher_said(tiny_dataset: Dataset, tmp_path: Path) -> None:
    made = materials(tiny_dataset, tmp_path / "cache", fingerprints={"teacher": "abc"})
    (stage,) = stages_of(load_recipe("cached-teacher"), made)
    run_stage(stage, out=tmp_path / "run")
    source = stage.sources["teacher"]
    assert isinstance(source, CachedTeacher)
    assert source.asked == 600
    assert (source.folder / "values.f16").stat().st_size == 600 * 8 * 10 * 2


AS_YAML = """
title: Soft targets
source: mine
stages:
  - name: distil
    terms:
      - {method: cross_entropy, weight: 0.1}
      - {method: soft_target_kl, weight: 0.9, source: teacher, options: {temperature: 4.0}}
"""


def test_yaml_says_the_same_as_toml(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(AS_YAML)
    assert load_recipe(str(file)).stages == load_recipe("soft-targets").stages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "mine.yml: not valid YAML .*expected the node content"),
        ("!!python/object/apply:os.system [echo]", "not valid YAML .*could not determine a constructor"),
        ("- title", "a recipe is a mapping of keys; begin with title: and source:"),
        ("", "a recipe is a mapping of keys"),
        (AS_YAML + "title: again\n", "key 'title' is given twice"),
        (AS_YAML.replace("weight: 0.9", "weight: 0.9, weight: 0.8"), "key 'weight' is given twice"),
        (AS_YAML.replace("0.9", "-0.9"), r"stages.0.terms.1.weight.*got -0\.9"),
        (AS_YAML.replace("soft_target_kl", "soft_targetkl"), "unknown method 'soft_targetkl'; did you mean"),
    ],
)
def test_a_mistake_in_yaml_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(str(file))
