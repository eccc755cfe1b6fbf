"""Which target gets which program: pure decisions from settings, profile and the targets' data. Nothing is run here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekd.artifact import Frozen, Precision
from edgekd.errors import MissingExtraError
from edgekd.export import ExportRequest, why_refused
from edgekd.pipeline.model_export.request import ModelExportSettings
from edgekd.profile import HardwareProfile
from edgekd.targets import get_target, load_targets, quant_spec_for
from edgekd.targets.spec import QuantSpec, Target


class Planned(Frozen):
    """One wanted artifact. program: the program's name, "" where it is refused; reason: why it is refused, or "".

    variant: what tells it from another artifact of the same target and precision ("" for the first).
    """

    target: str
    precision: Precision
    program: str = "float"
    spec: QuantSpec | None = None
    reason: str = ""
    variant: str = ""

    @property
    def label(self) -> str:
        """Folder and row name.

        >>> Planned(target="tflite", precision="int8", variant="mixed").label
        'tflite-int8-mixed'
        """
        return "-".join(part for part in (self.target, self.precision, self.variant) if part)


def target_names(settings: ModelExportSettings, profile: HardwareProfile | None) -> tuple[str, ...]:
    """What to export to: the asked targets, the profile's, or every target but null."""
    if settings.targets:
        return tuple(dict.fromkeys(get_target(name).name for name in settings.targets))
    if profile is not None:
        return tuple(dict.fromkeys(runtime.target for runtime in profile.runtimes))
    return tuple(name for name in load_targets() if name != "null")


def plan(
    settings: ModelExportSettings, profile: HardwareProfile | None, *, preprocessing: dict[str, Any]
) -> tuple[Planned, ...]:
    """Every target at every precision, the refused ones with their reason.

    Raises: MissingExtraError: a target that was asked for by name is not installed. InputError: no such target.
    """
    rows = []
    for name in target_names(settings, profile):
        target = get_target(name)
        missing = target.missing()
        if missing is not None and settings.targets:
            raise MissingExtraError(target.name, missing, target.extra)
        for precision in settings.precisions:
            absent = f"{missing} is not installed: pip install 'edgekd[{target.extra}]'" if missing else ""
            rows.append(_planned(target, precision, settings, profile, preprocessing=preprocessing, absent=absent))
    return _with_programs(rows)


def _planned(
    target: Target,
    precision: Precision,
    settings: ModelExportSettings,
    profile: HardwareProfile | None,
    *,
    preprocessing: dict[str, Any],
    absent: str,
) -> Planned:
    draft = ExportRequest(
        target=target.name,
        precision=precision,
        program=Path(),
        out=Path(),
        profile=profile,
        io_dtype=settings.io_dtype,
        input_layout=settings.input_layout,
        fold_preprocessing=settings.fold_preprocessing,
        preprocessing=preprocessing,
    )
    reason = absent or why_refused(draft) or ""
    if reason:
        return Planned(target=target.name, precision=precision, program="", reason=reason)
    spec = spec_for(target, settings, profile) if precision == "int8" else None
    return Planned(target=target.name, precision=precision, spec=spec)


def spec_for(target: Target, settings: ModelExportSettings, profile: HardwareProfile | None) -> QuantSpec:
    """The target's int8 specification with the profile's scheme and weight bits where the target takes them.

    >>> spec_for(get_target("tensorrt"), ModelExportSettings(model="m"), None).scheme
    'symmetric'
    """
    scheme = profile.quantisation.scheme if profile is not None else None
    if scheme is not None and target.why_not("int8", scheme) is not None:
        scheme = None
    bits = profile.quantisation.weight_bits if profile is not None else 8
    spec = quant_spec_for(target, scheme, bits)
    return spec.model_copy(update={"observer": settings.observer, "float_layers": settings.float_layers})


def _with_programs(rows: Iterable[Planned]) -> tuple[Planned, ...]:
    """Name one int8 program per distinct specification: int8-affine, int8-symmetric, ..."""
    names: dict[str, QuantSpec] = {}
    planned = []
    for row in rows:
        if row.spec is not None and not row.reason:
            row = row.model_copy(update={"program": _name(row.spec, names)})
        planned.append(row)
    return tuple(planned)


def _name(spec: QuantSpec, names: dict[str, QuantSpec]) -> str:
    for name, known in names.items():
        if known == spec:
            return name
    bits = "" if spec.weight_bits == 8 else f"-w{spec.weight_bits}"
    base = f"int8-{spec.scheme}{bits}"
    name = base if base not in names else f"{base}-{1 + sum(n.startswith(base) for n in names)}"
    names[name] = spec
    return name


def specs_of(planned: Iterable[Planned]) -> Mapping[str, QuantSpec]:
    """The int8 programs that a plan needs, by name."""
    return {row.program: row.spec for row in planned if row.spec is not None and row.program}
