"""What will be done and why: pure decisions from profile, teacher, data and settings. Nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekd.artifact import Frozen, Precision
from edgekd.errors import InputError, MissingExtraError
from edgekd.pipeline.settings import BudgetOverrides, Settings
from edgekd.profile import Budgets, HardwareProfile, RuntimeSupport
from edgekd.targets.spec import Scheme, Target

# Images a default run shows the student: enough for a small net to come near its teacher, minutes on a laptop CPU.
DEFAULT_IMAGES_SEEN = 330_000
LONG_SCHEDULE_EPOCHS = 30
CANDIDATES_WITH_GPU = 8


class TargetPlan(Frozen):
    """One export. precision None: refused, and `why` is the reason."""

    target: str
    precision: Precision | None
    why: str


class Plan(Frozen):
    """The decisions of a run. `reasons` is what the user is shown."""

    profile: str
    precision: Precision
    scheme: Scheme | None
    weight_bits: int
    targets: tuple[TargetPlan, ...]
    budgets: Budgets
    epochs: int
    qat_epochs: int
    shift_px: int
    spaces: tuple[str, ...]
    candidates: int
    search_epochs: float
    reasons: tuple[str, ...]

    @property
    def exports(self) -> tuple[TargetPlan, ...]:
        """The targets that will be exported."""
        return tuple(t for t in self.targets if t.precision is not None)


def make_plan(
    profile: HardwareProfile,
    settings: Settings,
    *,
    targets: Mapping[str, Target],
    train_images: int,
    image_size: int,
    data_note: str = "",
    teacher: str = "",
    gpu: bool = False,
) -> Plan:
    """Decide precision, targets, budgets and schedule.

    Raises: InputError: the precision is not legal on the profile's runtime. MissingExtraError: a target asked for by
    name is not installed (a default target that is not installed is refused with the reason instead).
    """
    precision = _precision(profile, settings)
    scheme = _scheme(profile, targets[profile.primary.target]) if precision == "int8" else None
    names = settings.targets or tuple(n for n in targets if n != "null")
    planned = tuple(
        _plan_target(targets[name], profile, precision, scheme, asked=name in settings.targets) for name in names
    )
    epochs = settings.training.epochs or default_epochs(train_images)
    candidates = settings.candidates or (CANDIDATES_WITH_GPU if gpu else 1)
    reasons = (
        profile.quantisation.why
        if settings.precision in (None, profile.quantisation.preferred_precision)
        else f"{precision.upper()} because --precision asked for it (the profile prefers "
        f"{profile.quantisation.preferred_precision})",
        *_quantise_reason(precision, scheme, settings),
        f"{epochs} epochs of {train_images} images: "
        + ("as asked" if settings.training.epochs else f"about {DEFAULT_IMAGES_SEEN} images seen"),
        *_heat_reason(profile.budgets),
        *([f"teacher: {teacher}"] if teacher else []),
        *_search_reason(candidates, settings.search_epochs or default_search_epochs(epochs)),
        *([f"data: {data_note}"] if data_note else []),
    )
    return Plan(
        profile=profile.name,
        precision=precision,
        scheme=scheme,
        weight_bits=profile.quantisation.weight_bits,
        targets=planned,
        budgets=effective_budgets(profile.budgets, settings.budgets),
        epochs=epochs,
        qat_epochs=settings.training.qat_epochs if precision == "int8" else 0,
        shift_px=default_shift_px(epochs, image_size)
        if settings.training.shift_px is None
        else settings.training.shift_px,
        spaces=settings.spaces,
        candidates=candidates,
        search_epochs=settings.search_epochs or default_search_epochs(epochs),
        reasons=reasons,
    )


def _heat_reason(budgets: Budgets) -> tuple[str, ...]:
    """Why the search leaves a share of the latency budget free."""
    if not budgets.thermal_headroom:
        return ()
    said = budgets.evidence.get("thermal_headroom")
    source = f" ({said.confidence}: {said.source})" if said else f" ({budgets.why})"
    return (f"{budgets.thermal_headroom:.0%} of the latency budget kept free for when the device is hot{source}",)


def default_epochs(train_images: int) -> int:
    """Epochs that show about `DEFAULT_IMAGES_SEEN` images, between 2 and 100.

    >>> default_epochs(55_000), default_epochs(6_300), default_epochs(1_300_000)
    (6, 53, 2)
    """
    return min(100, max(2, math.ceil(DEFAULT_IMAGES_SEEN / max(1, train_images))))


def default_search_epochs(epochs: int) -> float:
    """Of the first round of successive halving: a fortieth of the whole, so that 8 candidates cost about 60% of it.

    >>> default_search_epochs(6)
    0.15
    """
    return epochs / 40


def _search_reason(candidates: int, epochs: float) -> tuple[str, ...]:
    if candidates == 1:
        return ()
    return (f"{candidates} candidates learn for {epochs:g} epochs each, the better half for twice as long, and so on",)


def default_shift_px(epochs: int, image_size: int) -> int:
    """Random shift of the training images, px. Short schedules underfit, and shifts cost them accuracy: measured on
    Fashion-MNIST, 4 epochs without shift reached what 8 epochs with 2 px did (92.4%).

    >>> default_shift_px(8, 28), default_shift_px(60, 28)
    (0, 2)
    """
    return 0 if epochs < LONG_SCHEDULE_EPOCHS else image_size // 14


def effective_budgets(budgets: Budgets, overrides: BudgetOverrides) -> Budgets:
    """The profile's budgets with the command line's on top; `why` says which were overridden."""
    changed = {key: value for key, value in overrides.model_dump().items() if value is not None}
    if not changed:
        return budgets
    return budgets.model_copy(
        update={**changed, "why": f"{budgets.why}; set on the command line: {', '.join(changed)}"}
    )


def _precision(profile: HardwareProfile, settings: Settings) -> Precision:
    wanted = settings.precision or profile.quantisation.preferred_precision
    legal = profile.primary.precisions
    if wanted not in legal:
        raise InputError(
            f"{wanted} is not legal in {profile.primary.target} on this device (legal: {', '.join(legal)}): "
            f"{profile.quantisation.why}",
            where=f"profile '{profile.name}'",
            fix=f"leave --precision out, or use {profile.quantisation.preferred_precision}",
        )
    return wanted


def _scheme(profile: HardwareProfile, primary: Target) -> Scheme:
    """The int8 activations that the profile asks for, else the first that its first runtime takes.

    Raises: InputError: that runtime takes no int8, or not with the activations that the profile asks for.
    """
    legal = [scheme for scheme in primary.schemes if scheme in (profile.primary.schemes or primary.schemes)]
    wanted = profile.quantisation.scheme or next(iter(legal), None)
    if wanted is not None and wanted in legal:
        return wanted
    takes = f"int8 with {' or '.join(legal)} activations" if legal else "no int8"
    what = f"{primary.title} takes {takes} on this device" + (f", not {wanted}" if legal else "")
    raise InputError(
        what, where=f"profile '{profile.name}'", fix="correct [quantisation] scheme, or use --precision fp16"
    )


def _plan_target(
    target: Target, profile: HardwareProfile, precision: Precision, scheme: Scheme | None, *, asked: bool
) -> TargetPlan:
    missing = target.missing()
    if missing is not None:
        if asked:
            raise MissingExtraError(target.name, missing, target.extra)
        return TargetPlan(
            target=target.name, precision=None, why=f"{missing} is not installed: pip install 'edgekd[{target.extra}]'"
        )
    runtime = next((r for r in profile.runtimes if r.target == target.name), None)
    where = (
        f"{runtime.target} {runtime.version} on the {runtime.unit}"
        if runtime
        else "portable copy, not a runtime of this device"
    )
    refusal = _refusal(target, runtime, precision, scheme)
    if refusal is None:
        return TargetPlan(target=target.name, precision=precision, why=where)
    for fallback in ("fp16", "fp32"):
        if _refusal(target, runtime, fallback, None) is None:
            return TargetPlan(target=target.name, precision=fallback, why=f"{where}; {fallback} because {refusal}")
    return TargetPlan(target=target.name, precision=None, why=refusal)


def _refusal(target: Target, runtime: RuntimeSupport | None, precision: Precision, scheme: Scheme | None) -> str | None:
    if runtime is not None and not runtime.takes(precision):
        return f"{precision} is not legal there: {runtime.why}"
    return target.why_not(precision, scheme)


def _quantise_reason(precision: Precision, scheme: Scheme | None, settings: Settings) -> tuple[str, ...]:
    if precision != "int8":
        return (f"{precision} needs no quantisation-aware training",)
    return (
        f"int8 with {scheme} activations per tensor and per-channel weights; {settings.training.qat_epochs} epochs of "
        f"quantisation-aware distillation, post-training quantisation beside it ({settings.calibration_images} images)",
    )


def as_document(plan: Plan) -> dict[str, Any]:
    """Plain data for JSON."""
    return plan.model_dump(mode="json")
