"""From advice to the recipe that a run carries out."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.advisor.advice import Advice
from edgekd.recipes import Recipe, load_recipe
from edgekd.recipes.schema import ChainTable, PoolSource, SourceTable, TeacherSource, TeacherTable

# What a run teaches with when nothing speaks for anything else.
DEFAULT_RECIPE = "soft-targets-hint"
_READS_LABELS_ALONE = "cross_entropy"


def advised_recipe(advice: Advice, *, further_teachers: Mapping[str, TeacherTable] | None = None) -> Recipe | None:
    """The shipped recipe with the advice worked in: so many assistants, no labels where they cannot be trusted, and
    the further teachers by name in place of the ones it makes for itself. None: not to distil."""
    if advice.recipe is None:
        return None
    recipe = load_recipe(advice.recipe)
    if advice.assistants is not None:
        recipe = recipe.model_copy(update={"chain": ChainTable(assistants=advice.assistants)})
    if not advice.labels:
        recipe = _without_labels(recipe)
    return _with_teachers(recipe, further_teachers) if further_teachers else recipe


def _without_labels(recipe: Recipe) -> Recipe:
    """Without cross-entropy, where another term remains."""
    stages = []
    for stage in recipe.stages:
        terms = tuple(term for term in stage.terms if term.method != _READS_LABELS_ALONE)
        stages.append(stage.model_copy(update={"terms": terms or stage.terms}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def _with_teachers(recipe: Recipe, teachers: Mapping[str, TeacherTable]) -> Recipe:
    """The last stage alone, its pools made of the run's teacher and the named ones."""
    last = recipe.stages[-1]
    pools: dict[str, SourceTable] = {
        name: source.model_copy(update={"members": ("teacher", *teachers)})
        for name, source in last.sources.items()
        if isinstance(source, PoolSource)
    }
    if not pools:
        return recipe
    named: dict[str, SourceTable] = {name: TeacherSource(kind="teacher", teacher=name) for name in teachers}
    stage = last.model_copy(update={"sources": {**named, **pools}})
    return recipe.model_copy(update={"teachers": {**recipe.teachers, **teachers}, "stages": (stage,)})
