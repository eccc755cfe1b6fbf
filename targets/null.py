"""The null target: the torch.export program itself, run by torch. No conversion, no vendor package.

It lets the whole pipeline run in seconds in tests and in CI; its timings say nothing about any device.
"""

from __future__ import annotations

from edgekd.targets.spec import QuantSpec, Scheme, Target

_SCHEMES: tuple[Scheme, ...] = ("affine", "symmetric")
QUANT: dict[Scheme, QuantSpec] = {scheme: QuantSpec(scheme=scheme) for scheme in _SCHEMES}

TARGET = Target(
    name="null",
    title="Null (torch.export program)",
    suffix=".pt2",
    extra="",
    packages=(),
    runs_here_with=("torch",),
    precisions=("fp32", "fp16", "int8", "w8"),
    schemes=_SCHEMES,
    timeout_s=120.0,
    quant=tuple(QUANT.values()),
)
