"""What a runtime accepts: frozen data and rules; no vendor import, no torch.

One file per runtime, each with `TARGET` (capabilities) and `QUANT` (int8 specification per activation scheme). Your own
package adds a target with one line under the entry point group `edgekd.targets`, naming its `Target`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Literal

from edgekd.errors import InputError, did_you_mean
from edgekd.targets.spec import QuantSpec, Scheme, Target

__all__ = ["QuantSpec", "Scheme", "Target", "get_target", "load_targets", "quant_spec_for"]

_BUILT_IN = ("tflite", "coreml", "openvino", "onnxruntime", "tensorrt", "null")
# What people type at the door; inside edgekd only the canonical name exists.
_ALIASES = {"onnx": "onnxruntime", "ort": "onnxruntime", "litert": "tflite", "trt": "tensorrt", "ov": "openvino"}


@cache
def _targets() -> Mapping[str, Target]:
    found = {name: _from_module(name) for name in _BUILT_IN}
    for entry in entry_points(group="edgekd.targets"):
        if entry.name not in found:
            found[entry.name] = _from_entry(entry.name, entry.load())
    return MappingProxyType(found)


def _from_module(name: str) -> Target:
    target = importlib.import_module(f"edgekd.targets.{name}").TARGET
    return _from_entry(name, target)


def _from_entry(name: str, target: object) -> Target:
    if not isinstance(target, Target):
        raise InputError(f"entry point '{name}' is a {type(target).__name__}, not a Target", where="edgekd.targets")
    return target


def load_targets() -> dict[str, Target]:
    """All targets by name: those that ship with edgekd (also from a clone that is not installed), then third parties'.

    Raises: InputError: a third party's entry point does not name a `Target`.

    >>> list(load_targets())[:6]
    ['tflite', 'coreml', 'openvino', 'onnxruntime', 'tensorrt', 'null']
    """
    return dict(_targets())


def get_target(name: str) -> Target:
    """A target by its name or a usual alias (onnx, litert, trt).

    Raises: InputError: no such target; the nearest names are given.

    >>> get_target("litert").name
    'tflite'
    """
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    targets = _targets()
    if key not in targets:
        raise InputError(f"no target '{name}'", fix=did_you_mean(key, [*targets, *_ALIASES]))
    return targets[key]


def quant_spec_for(target: Target | str, scheme: Scheme | None = None, weight_bits: Literal[7, 8] = 8) -> QuantSpec:
    """The int8 specification that training must use so that this target runs the result as int8.

    scheme: None takes the target's preferred one. weight_bits: 7 on x86 without VNNI (see `QuantSpec`).
    Raises: InputError: the target does not run int8 with that scheme.

    >>> quant_spec_for("tensorrt").scheme, quant_spec_for("openvino", "affine", 7).weight_max
    ('symmetric', 63)
    """
    chosen = get_target(target) if isinstance(target, str) else target
    wanted = scheme or (chosen.schemes[0] if chosen.schemes else None)
    reason = chosen.why_not("int8", wanted)
    if reason or wanted is None:
        fix = f"use {' or '.join(chosen.schemes)}" if chosen.schemes else "use fp16 or fp32"
        raise InputError(reason or f"{chosen.title} has no int8 scheme", where=f"target '{chosen.name}'", fix=fix)
    base = next((spec for spec in chosen.quant if spec.scheme == wanted), QuantSpec(scheme=wanted))
    return base.model_copy(update={"weight_bits": weight_bits})
