"""Recipes: how a student is taught, as plain data. TOML in, stages of `edgekd.distill` out."""

from edgekd.recipes.build import Materials, stages_of
from edgekd.recipes.load import check_recipe, load_recipe, parse_recipe, recipe_names
from edgekd.recipes.schema import Recipe

__all__ = ["Materials", "Recipe", "check_recipe", "load_recipe", "parse_recipe", "recipe_names", "stages_of"]
