"""What a process grows by when a runtime loads and runs a network: constants that were measured, per runtime.

    MiB = base + per_weight x weight bytes + per_activation x bytes of the peak live activations

Fitted by scripts/measure_memory.py to docs/benchmarks/memory.json; how wrong it is says docs/latency.md. A runtime
keeps weights more than once (the file, the tensors that it packs for its kernels), and its libraries touch memory of
their own once they compute. Affine in both elements, which the exact search relies on.
"""

from __future__ import annotations

from typing import NamedTuple

from edgekd.artifact import Precision

BYTES_PER_ELEMENT: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
_MIB = 2.0**20


class Footprint(NamedTuple):
    """Constants of one runtime at one precision: MiB, bytes per byte of the weights, bytes per byte of activations."""

    base_mib: float
    per_weight: float
    per_activation: float


MEASURED: dict[tuple[str, Precision], Footprint] = {
    ("tflite", "fp32"): Footprint(6.81, 2.08, 1.93),
    ("tflite", "int8"): Footprint(6.72, 2.42, 4.19),
    ("onnxruntime", "fp32"): Footprint(7.97, 2.48, 2.83),
    ("onnxruntime", "int8"): Footprint(14.31, 1.96, 6.36),
    ("openvino", "fp32"): Footprint(49.56, 1.98, 1.65),
    ("openvino", "int8"): Footprint(57.26, 2.02, 4.85),
}


def footprint_mib(weight_elements: int, peak_activation_elements: int, precision: Precision, runtime: str) -> float:
    """Predicted growth of the process in MiB.

    fp16 files of the measured runtimes, all on CPUs, are unpacked to fp32 and grow as those do (0.85 to 1.13 times, two
    networks); their GPUs and NPUs, which nobody measured, are counted so too, rather too high than too low. The other
    runtimes were not measured: they are taken as ONNX Runtime's fp32 at their own bytes.

    >>> footprint_mib(0, 0, "fp16", "openvino") == MEASURED["openvino", "fp32"].base_mib
    True
    """
    measured = (runtime, "fp32") in MEASURED
    runs: Precision = "fp32" if measured and precision == "fp16" else precision
    constants = MEASURED[runtime, runs] if measured else MEASURED["onnxruntime", "fp32"]
    mib_per_element = BYTES_PER_ELEMENT[runs] / _MIB
    return constants.base_mib + mib_per_element * (
        constants.per_weight * weight_elements + constants.per_activation * peak_activation_elements
    )
