"""Losses, one small file per method."""

from edgekd.distill.losses.cross_entropy import CrossEntropy
from edgekd.distill.losses.hint import Hint
from edgekd.distill.losses.soft_target import SoftTarget, soft_target_kl

__all__ = ["CrossEntropy", "Hint", "SoftTarget", "soft_target_kl"]
