"""Student networks: a parametric space, its modules, and the search for one that meets a budget."""

from edgekd.students.layers import Layer, layers_of
from edgekd.students.network import StudentNet, build
from edgekd.students.search import CostModel, capacity_score, figures_of, search
from edgekd.students.selection import Candidate, Figures, Infeasible, Limits, Selection
from edgekd.students.space import SearchSpace
from edgekd.students.spec import StageSpec, StudentSpec

__all__ = [
    "Candidate",
    "CostModel",
    "Figures",
    "Infeasible",
    "Layer",
    "Limits",
    "SearchSpace",
    "Selection",
    "StageSpec",
    "StudentNet",
    "StudentSpec",
    "build",
    "capacity_score",
    "figures_of",
    "layers_of",
    "search",
]
