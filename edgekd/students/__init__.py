"""Student networks: what they are as data, the spaces they come from, and the search for one that meets a budget."""

from edgekd.students.costs import CostModel, Prices, capacity_score, figures_of, work_of
from edgekd.students.layers import Layer, Part, layers_of, parts_of
from edgekd.students.modules import build
from edgekd.students.network import StudentNet
from edgekd.students.operators import space_operators, student_operators, without
from edgekd.students.search import merged, search, select
from edgekd.students.selection import Candidate, Figures, Infeasible, LeftOut, Limits, Selection
from edgekd.students.space import StageSpace
from edgekd.students.spec import AnySpec, PrunedSpec, StageSpec, StudentSpec, ZooSpec, parse_spec, read_spec

__all__ = [
    "AnySpec",
    "Candidate",
    "CostModel",
    "Figures",
    "Infeasible",
    "Layer",
    "LeftOut",
    "Limits",
    "Part",
    "Prices",
    "PrunedSpec",
    "Selection",
    "StageSpace",
    "StageSpec",
    "StudentNet",
    "StudentSpec",
    "ZooSpec",
    "build",
    "capacity_score",
    "figures_of",
    "layers_of",
    "merged",
    "parse_spec",
    "parts_of",
    "read_spec",
    "search",
    "select",
    "space_operators",
    "student_operators",
    "without",
    "work_of",
]
