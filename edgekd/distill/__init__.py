"""The distillation core: taps, sources, terms, stages, the loop."""

from __future__ import annotations

from edgekd.distill.checkpoint import best_path, last_path, student_weights
from edgekd.distill.evaluate import Evaluation, evaluate, evaluation_of
from edgekd.distill.interrupts import Interrupted
from edgekd.distill.loop import run_stage
from edgekd.distill.losses import CrossEntropy, Hint, SoftTarget, soft_target_kl
from edgekd.distill.results import EpochRecord, Progress, StageResult
from edgekd.distill.sources import Live, Signals, Source
from edgekd.distill.stage import Milestone, Stage
from edgekd.distill.taps import WithTaps, default_tap
from edgekd.distill.terms import Loss, Needs, Term
from edgekd.distill.training import Training

__all__ = [
    "CrossEntropy",
    "EpochRecord",
    "Evaluation",
    "Hint",
    "Interrupted",
    "Live",
    "Loss",
    "Milestone",
    "Needs",
    "Progress",
    "Signals",
    "SoftTarget",
    "Source",
    "Stage",
    "StageResult",
    "Term",
    "Training",
    "WithTaps",
    "best_path",
    "default_tap",
    "evaluate",
    "evaluation_of",
    "last_path",
    "run_stage",
    "soft_target_kl",
    "student_weights",
]
