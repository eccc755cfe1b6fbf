"""Recipes from files: the shipped ones by name, or any TOML or YAML file by path."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekd.distill.losses import LOSSES, find_loss, make_loss
from edgekd.errors import InputError, did_you_mean
from edgekd.recipes.schema import Recipe, StageTable, TermTable

ADVERSARIAL = "adversarial"
YAML = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """Names of the recipes that ship with edgekd, sorted."""
    root = resources.files("edgekd.recipes") / "shipped"
    return sorted(entry.name[:-5] for entry in root.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_file: str) -> Recipe:
    """A shipped recipe by name, or a TOML or YAML file by path, checked.

    Raises: InputError: no such recipe (nearest names given), or it is not valid (file, key and cause named).

    >>> load_recipe("soft-targets").stages[0].terms[1].method
    'soft_target_kl'
    """
    path = Path(name_or_file)
    if path.suffix in (".toml", *YAML) or path.is_file():
        if not path.is_file():
            raise InputError("no such recipe file", where=path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError("a recipe is text in UTF-8", where=path) from error
        return parse_recipe(text, where=str(path), yaml=path.suffix in YAML)
    if name_or_file not in recipe_names():
        raise InputError(f"no recipe '{name_or_file}'", fix=did_you_mean(name_or_file, recipe_names()))
    text = (resources.files("edgekd.recipes") / "shipped" / f"{name_or_file}.toml").read_text(encoding="utf-8")
    return parse_recipe(text, where=f"recipe '{name_or_file}'")


def parse_recipe(text: str, *, where: str, yaml: bool = False) -> Recipe:
    """TOML (or YAML) text to a checked recipe.

    Raises: InputError: names the file, the key, what was got and what to do.
    """
    document = _from_yaml(text, where) if yaml else _from_toml(text, where)
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise InputError(_first_mistake(error), where=where) from error
    check_recipe(recipe, where=where)
    return recipe


def _from_toml(text: str, where: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML ({error})", where=where) from error


def _from_yaml(text: str, where: str) -> Any:
    """Plain data alone: tags that would make objects are refused, and so is a key that is given twice."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _no_key_twice(node, where)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML ({' '.join(str(error).split())})", where=where) from error
    if not isinstance(document, dict):
        raise InputError("a recipe is a mapping of keys", where=where, fix="begin with title: and source:")
    return document


def _no_key_twice(node: Any, where: str) -> None:
    """YAML lets the last one win, unseen."""
    pairs = node.value if node is not None and node.id == "mapping" else ()
    keys = [key.value for key, _ in pairs]
    if twice := [str(key) for key in keys if keys.count(key) > 1]:
        raise InputError(f"key '{twice[0]}' is given twice", where=where)
    for child in [value for _, value in pairs] or (node.value if node is not None and node.id == "sequence" else []):
        _no_key_twice(child, where)


def _first_mistake(error: ValidationError) -> str:
    mistakes = error.errors()
    # A misspelt key is also a missing one: name the spelling, which is the cause.
    first = min(mistakes, key=lambda mistake: "unknown key" not in mistake["msg"])
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    got: Any = first.get("input")
    shown = "" if isinstance(got, (dict, list)) or first["type"] == "value_error" else f", got {got!r}"
    return f"{place + ': ' if place else ''}{message}{shown}"


def check_recipe(recipe: Recipe, *, where: str = "recipe") -> None:
    """What can be seen wrong without models: names of methods, options, sources, students and stages.

    Raises: InputError: the first mistake, with the nearest names.
    """
    names = [stage.name for stage in recipe.stages]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two stages are named '{twice[0]}'", where=where)
    if recipe.chain is not None and len(recipe.stages) != 1:
        raise InputError("a chain repeats one stage", where=where, fix=f"give one of the {len(names)} stages")
    for number, stage in enumerate(recipe.stages):
        _check_stage(recipe, stage, before=names[:number], where=f"{where}, stage '{stage.name}'")


def _check_stage(recipe: Recipe, stage: StageTable, *, before: list[str], where: str) -> None:
    sources = {"teacher", *stage.sources}
    for name, student in stage.students.items():
        if student.from_stage is not None:
            _known("stage", student.from_stage, before, f"{where}, student '{name}'")
    for name in stage.sources:
        _check_source(recipe, stage, name, before=before, where=f"{where}, source '{name}'")
    for player in stage.players.values():
        if player.kind == "attacker":
            _known("student", player.student, stage.students, f"{where}, players")
    for term in stage.terms:
        _check_term(stage, term, sources, f"{where}, term '{term.method}'")


def _check_source(recipe: Recipe, stage: StageTable, name: str, *, before: list[str], where: str) -> None:
    source, others = stage.sources[name], {"teacher", *stage.sources} - {name}
    if source.kind == "teacher":
        _known("teacher", source.teacher, ["teacher", *recipe.teachers], where)
    elif source.kind == "stage":
        _known("stage", source.stage, before, where)
    elif source.kind == "pool":
        for member in source.members:
            _known("source", member, others, where)
    elif source.kind == "collaboration":
        for member in source.members:
            _known("student", member, stage.students, where)
    elif source.kind == "cached":
        _known("source", source.of, {"teacher", *others}, where)
        if stage.training.views is None:
            raise InputError("a cache needs a known number of augmentations", where=where, fix="training.views = 8")
    else:
        _known("student", source.student, stage.students, where)


def _check_term(stage: StageTable, term: TermTable, sources: set[str], where: str) -> None:
    _known("student", term.student, stage.students, where)
    if term.source is not None:
        _known("source", term.source, sources | set(stage.students), where)
    try:
        if term.method == ADVERSARIAL:
            judges = [name for name, player in stage.players.items() if player.kind == "discriminator"]
            _known("discriminator", term.discriminator or "", judges, where)
            for option in term.options:
                _known("option", option, ["student_tap", "teacher_tap"], where)
        elif term.method not in LOSSES:
            find_loss(term.method)
        else:
            make_loss(term.method, **term.options)
    except InputError as error:
        raise error if error.where else InputError(error.what, where=where, fix=error.fix) from error


def _known(what: str, name: str, known: Any, where: str) -> None:
    if name not in known:
        raise InputError(f"unknown {what} '{name}'", where=where, fix=did_you_mean(name, known))
