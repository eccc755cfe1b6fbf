"""The advisor: what to teach a student with, why, and what would change the advice. Rules as data; pure."""

from edgekd.advisor.advice import Advice, Counterfactual, Reason, advise
from edgekd.advisor.recipe import DEFAULT_RECIPE, advised_recipe
from edgekd.advisor.situation import Need, Situation

__all__ = [
    "DEFAULT_RECIPE",
    "Advice",
    "Counterfactual",
    "Need",
    "Reason",
    "Situation",
    "advise",
    "advised_recipe",
]
