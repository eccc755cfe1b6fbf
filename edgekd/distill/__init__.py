"""The distillation core: taps, sources, terms, stages, the loop."""

from __future__ import annotations

from edgekd.distill.adversarial import Discriminator, Pass
from edgekd.distill.attack import Attacker, Box, robust_accuracy
from edgekd.distill.averaging import MeanTeacher, WeightAverage
from edgekd.distill.cache import CachedTeacher
from edgekd.distill.chain import ChainPlan, plan_chain
from edgekd.distill.checkpoint import best_path, last_path, student_weights
from edgekd.distill.collaboration import Collaboration
from edgekd.distill.evaluate import Evaluation, evaluate, evaluation_of
from edgekd.distill.interrupts import Interrupted
from edgekd.distill.losses import CrossEntropy, Hint, SoftTarget, soft_target_kl
from edgekd.distill.own_predictions import PlainView, TemporalEnsemble
from edgekd.distill.players import Player, Roster
from edgekd.distill.pool import Pool
from edgekd.distill.results import EpochRecord, Progress, StageResult
from edgekd.distill.running import run_stage
from edgekd.distill.sources import Live, Signals, Source
from edgekd.distill.stage import Milestone, Stage
from edgekd.distill.taps import WithTaps, default_tap
from edgekd.distill.terms import Loss, Needs, Term
from edgekd.distill.training import Training

__all__ = [
    "Attacker",
    "Box",
    "CachedTeacher",
    "ChainPlan",
    "Collaboration",
    "CrossEntropy",
    "Discriminator",
    "EpochRecord",
    "Evaluation",
    "Hint",
    "Interrupted",
    "Live",
    "Loss",
    "MeanTeacher",
    "Milestone",
    "Needs",
    "Pass",
    "PlainView",
    "Player",
    "Pool",
    "Progress",
    "Roster",
    "Signals",
    "SoftTarget",
    "Source",
    "Stage",
    "StageResult",
    "TemporalEnsemble",
    "Term",
    "Training",
    "WeightAverage",
    "WithTaps",
    "best_path",
    "default_tap",
    "evaluate",
    "evaluation_of",
    "last_path",
    "plan_chain",
    "robust_accuracy",
    "run_stage",
    "soft_target_kl",
    "student_weights",
]
