"""Every method as a recipe: the shipped ones, and one made for each loss that no shipped recipe is about."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from edgekd.distill.losses import LOSSES
from edgekd.distill.terms import Loss
from edgekd.errors import InputError, did_you_mean
from edgekd.recipes import Recipe, load_recipe, recipe_names

BASELINE = "no-kd"
STAGES = ["stage:-3", "stage:-2", "stage:-1"]
# The short list that the field compares first; --methods key.
KEY = (BASELINE, "soft-targets", "dkd", "dist", "dist-t4", "crd", "review-kd")
LEFT_OUT = {
    "adversarial-training": "is judged by its accuracy under attack, not by the clean one",
    "ard": "is judged by its accuracy under attack, not by the clean one",
    "cached-teacher": "is soft-targets, its teacher read from disk",
    "simkd": "changes the student: its projector stays in the network",
    "attention-maps": "compares attention maps of two transformers",
    "deit": "needs a student with a distillation token",
}
# Logit losses that replace most of the cross-entropy, as their authors have it.
_LABEL_WEIGHT = {"ctkd": 0.1, "mlkd": 0.1, "logit_standardisation": 0.1, "hard_label": 0.5}
_OPTIONS: dict[str, dict[str, Any]] = {
    "logit_standardisation": {"inner": {"method": "soft_target_kl", "temperature": 2.0}},
    "srrl": {"student_tap": "head", "teacher_tap": "head"},
    "crd_memory": {"student_tap": "head", "teacher_tap": "head"},
    "cat_kd": {"student_tap": "stage:-1", "teacher_tap": "stage:-1"},
    "hard_label": {},
}
# Read the last feature alone: relations between images, and losses with heavy modules or one classifier.
_LAST_ONLY = ("factor_transfer", "pkt", "correlation_congruence", "ickd", "wcord_global", "wcord_local", "mgd", "cwd")


def catalogue() -> dict[str, Recipe]:
    """Method -> recipe, the baseline first."""
    shipped = {name: load_recipe(name) for name in recipe_names() if name not in LEFT_OUT}
    about = {term.method for recipe in shipped.values() for stage in recipe.stages for term in stage.terms}
    made = {_name(loss): _recipe(loss) for loss in LOSSES if loss not in about and _name(loss) not in LEFT_OUT}
    # DKD: beta 2 for teachers of ResNet-56's kind, 8 for ResNet-32x4 (mdistiller). DIST: the shipped recipe is that of
    # ImageNet; 4 is what KD and DKD have on CIFAR.
    shipped["dkd"] = _with_options(shipped["dkd"], "dkd", beta=2.0)
    shipped["dist-t4"] = _with_options(shipped["dist"], "dist", temperature=4.0)
    baseline = Recipe.model_validate(
        {"title": "Labels alone", "source": "no teacher", "stages": [{"terms": [{"method": "cross_entropy"}]}]}
    )
    return {BASELINE: baseline, **dict(sorted({**made, **shipped}.items()))}


def choose(wanted: str | None) -> dict[str, Recipe]:
    """Methods by name, comma-separated; `key` is the short list, None all. The baseline is always the first.

    Raises: InputError: an unknown name, with the nearest ones.

    >>> list(choose("dkd"))
    ['no-kd', 'dkd']
    """
    known = catalogue()
    if wanted is None or wanted == "all":
        return known
    names = KEY if wanted == "key" else tuple(name.strip() for name in wanted.split(",") if name.strip())
    for name in names:
        if name not in known:
            reason = f"it {LEFT_OUT[name]}" if name in LEFT_OUT else did_you_mean(name, known)
            raise InputError(f"no method '{name}' in this comparison", where="--methods", fix=reason)
    return {name: known[name] for name in dict.fromkeys((BASELINE, *names))}


def _with_options(recipe: Recipe, method: str, **options: Any) -> Recipe:
    """The recipe with other options of a method: where authors set them by the pair of networks or the data."""
    document = recipe.model_dump(exclude_none=True)
    for stage in document["stages"]:
        for term in stage["terms"]:
            if term["method"] == method:
                term["options"] = {**term["options"], **options}
    return Recipe.model_validate(document)


def _name(loss: str) -> str:
    return loss.replace("_", "-")


def _recipe(name: str) -> Recipe:
    """Cross-entropy beside the loss with its published weight, on taps that any two models have."""
    loss = LOSSES[name]
    doc = (inspect.getdoc(inspect.getmodule(loss)) or name).splitlines()[0]
    terms: list[dict[str, Any]] = [
        {"method": "cross_entropy", "weight": _LABEL_WEIGHT.get(name, 1.0)},
        {"method": name, "weight": loss.published_weight, "source": "teacher", "options": _options(name, loss)},
    ]
    stages = [{"terms": terms}]
    return Recipe.model_validate({"title": name, "source": doc, "stages": stages})


def _options(name: str, loss: Callable[..., Loss]) -> dict[str, Any]:
    if name in _OPTIONS:
        return _OPTIONS[name]
    taps: list[str] | str = "stage:-1" if name in _LAST_ONLY else STAGES
    return {key: taps for key in inspect.signature(loss).parameters if key in ("student_tap", "teacher_tap")}
