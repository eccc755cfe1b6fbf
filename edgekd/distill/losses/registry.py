"""Losses by the name of their method, for recipes: plain data becomes a loss."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from edgekd.distill.losses.activation_boundaries import ActivationBoundaries
from edgekd.distill.losses.attention_maps import AttentionMaps
from edgekd.distill.losses.attention_transfer import AttentionTransfer
from edgekd.distill.losses.byot import BYOT
from edgekd.distill.losses.cat_kd import CATKD
from edgekd.distill.losses.cc import CorrelationCongruence
from edgekd.distill.losses.crd import CRD
from edgekd.distill.losses.crd_memory import CRDMemory
from edgekd.distill.losses.cross_entropy import CrossEntropy
from edgekd.distill.losses.ctkd import CTKD
from edgekd.distill.losses.cwd import CWD
from edgekd.distill.losses.dist import DIST
from edgekd.distill.losses.dkd import DKD
from edgekd.distill.losses.factor_transfer import FactorTransfer
from edgekd.distill.losses.feature_fusion import FeatureFusion
from edgekd.distill.losses.fsp import FSP
from edgekd.distill.losses.gradient_balanced import GradientBalanced
from edgekd.distill.losses.hard_label import HardLabel
from edgekd.distill.losses.hint import Hint
from edgekd.distill.losses.ickd import ICKD
from edgekd.distill.losses.logit_standardisation import LogitStandardisation
from edgekd.distill.losses.mgd import MGD
from edgekd.distill.losses.mlkd import MLKD
from edgekd.distill.losses.mtkd_rl import MTKDRL
from edgekd.distill.losses.nkd import NKD
from edgekd.distill.losses.nst import NST
from edgekd.distill.losses.ofd import OFD
from edgekd.distill.losses.one import ONE
from edgekd.distill.losses.pkt import PKT
from edgekd.distill.losses.reverse_kl import JensenShannon, ReverseKL, SymmetricKL
from edgekd.distill.losses.review_kd import ReviewKD
from edgekd.distill.losses.rkd import RKDAngle, RKDDistance
from edgekd.distill.losses.simkd import SimKD
from edgekd.distill.losses.soft_target import SoftTarget
from edgekd.distill.losses.sp import SimilarityPreserving
from edgekd.distill.losses.srrl import SRRL
from edgekd.distill.losses.uncertainty import UncertaintyWeighted
from edgekd.distill.losses.vid import VID
from edgekd.distill.losses.vitkd import ViTKD
from edgekd.distill.losses.wcord import WCoRDGlobal, WCoRDLocal
from edgekd.distill.losses.wsld import WSLD
from edgekd.distill.terms import Loss
from edgekd.errors import InputError, did_you_mean

_RESPONSE: tuple[type[Loss], ...] = (
    *(CrossEntropy, SoftTarget, DKD, NKD, DIST, LogitStandardisation, CTKD, MLKD, WSLD),
    *(ReverseKL, SymmetricKL, JensenShannon, HardLabel, MTKDRL, UncertaintyWeighted, GradientBalanced),
)
_FEATURE: tuple[type[Loss], ...] = (
    *(Hint, AttentionTransfer, NST, FSP, VID, FactorTransfer, ActivationBoundaries, OFD, ReviewKD, SimKD, SRRL, CATKD),
    *(PKT, MGD, CWD, AttentionMaps, ViTKD, BYOT, ONE, FeatureFusion),
)
_RELATION: tuple[type[Loss], ...] = (
    *(RKDDistance, RKDAngle, SimilarityPreserving, CorrelationCongruence, ICKD),
    *(CRD, CRDMemory, WCoRDGlobal, WCoRDLocal),
)

LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (*_RESPONSE, *_FEATURE, *_RELATION)}


def find_loss(name: str) -> type[Loss]:
    """The loss of a method. Raises: InputError: no such method; the nearest names are given.

    >>> find_loss("dkd").__name__
    'DKD'
    """
    if name not in LOSSES:
        raise InputError(f"unknown method '{name}'", fix=did_you_mean(name, LOSSES))
    return LOSSES[name]


def make_loss(name: str, /, **options: Any) -> Loss:
    """A loss from its method's name and its constructor's arguments, all plain data.

    A loss that takes another (logit_standardisation's `inner`) takes it as {"method": name, ...}; one that takes
    several (gradient_balanced's `terms`) as a list of such.
    Raises: InputError: an unknown method or option, one that is missing, or a value out of its range.

    >>> make_loss("logit_standardisation", inner={"method": "dkd", "beta": 2.0}).inner.beta
    2.0
    """
    method = find_loss(name)
    known = inspect.signature(method).parameters
    for option, value in options.items():
        if option not in known:
            raise InputError(f"method '{name}' has no option '{option}'", fix=did_you_mean(option, known))
        if isinstance(value, Mapping):
            options = {**options, option: _nested(name, option, value)}
        elif isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
            options = {**options, option: [_nested(name, option, entry) for entry in value]}
    missing = [o for o, p in known.items() if p.default is inspect.Parameter.empty and o not in options]
    if missing:
        raise InputError(f"method '{name}' needs {' and '.join(missing)}")
    try:
        return method(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"method '{name}': {error}") from error


def _nested(name: str, option: str, value: Any) -> Loss:
    if not isinstance(value, Mapping) or "method" not in value:
        raise InputError(f"method '{name}': option '{option}' names no method", fix='give {"method": NAME, ...}')
    return make_loss(value["method"], **{key: given for key, given in value.items() if key != "method"})
