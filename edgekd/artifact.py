"""What an exporter hands to a checker, a runner and a bundle: one file (or folder) that one runtime can load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

# w8: int8 weights and float activations, which some runtimes quantise on the fly.
Precision = Literal["fp32", "fp16", "int8", "w8"]
# What a device is said to take, and what a run can be planned for.
DevicePrecision = Literal["fp32", "fp16", "int8"]
# ANY: an output that is not [batch, classes]; its axes are in the program's order.
Layout = Literal["NCHW", "NHWC", "NC", "ANY"]
# pixels: raw 0..255, the artifact normalises them itself.
Holds = Literal["normalised", "pixels"]


class Frozen(BaseModel):
    """Plain immutable data; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(Frozen):
    """One input or output of an artifact.

    scale, zero_point: only where the tensor is an integer that stands for a real number (int8 input and output).
    holds: what an input's values are; pixels are 0..255 in the tensor's own dtype, without scale and zero point.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    scale: float | None = None
    zero_point: int | None = None
    holds: Holds = "normalised"


class Artifact(Frozen):
    """A converted model. `path` is a file, or a folder for .mlpackage and for the Jetson build kit.

    `precision` is what the weights and compute are stored as; what really runs is the check's evidence, not this field.
    """

    target: str
    precision: Precision
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size_bytes: int
    sha256: str
    notes: tuple[str, ...] = ()
