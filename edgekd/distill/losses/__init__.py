"""Losses, one small file per method; `LOSSES` has them by name."""

from edgekd.distill.losses.cross_entropy import CrossEntropy
from edgekd.distill.losses.hint import Hint
from edgekd.distill.losses.registry import LOSSES, find_loss, make_loss
from edgekd.distill.losses.simkd import ReusedClassifier
from edgekd.distill.losses.soft_target import SoftTarget, soft_target_kl

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "Hint",
    "ReusedClassifier",
    "SoftTarget",
    "find_loss",
    "make_loss",
    "soft_target_kl",
]
