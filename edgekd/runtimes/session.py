"""What every runtime here offers: a session that runs a batch-1 classifier, and a report of what it really runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgekd.artifact import Artifact, Frozen, TensorSpec
from edgekd.errors import InputError

FloatArray = npt.NDArray[np.float32]
Images = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Executed = Literal["runtime", "interpreted", "stand-in", "not-executed"]
ComputeKind = Literal["conv", "linear"]


class Session(Protocol):
    """One loaded artifact. `feed`, `read` and `read_all` convert, `invoke` is all that a benchmark times.

    executed: "runtime" (the artifact's own), "interpreted" (its graph, by torch) or "stand-in" (another runtime).
    note: one sentence to show beside any number from this session, "" where the runtime itself ran.
    A session belongs to one thread.
    """

    executed: Executed
    note: str

    def feed(self, images: Images) -> Any:
        """Image [1, C, H, W] -> what the runtime eats: its layout and dtype, quantised if its input is.

        images: normalised float32, or pixels 0..255 (uint8 or float32) where the input `holds` pixels.
        """

    def invoke(self, fed: Any) -> Any:
        """Run the network once. `fed` may be reused; the result is valid until the next `invoke`."""

    def read(self, raw: Any) -> FloatArray:
        """Result of `invoke` -> its first output, float32 [1, classes], dequantised if it is an integer; a copy."""

    def read_all(self, raw: Any) -> dict[str, FloatArray]:
        """Result of `invoke` -> every output by the artifact's names, float32 in its own shape; copies."""

    def close(self) -> None:
        """Free the runtime's memory; the session cannot be used afterwards."""


class ComputeOp(Frozen):
    """A convolution or matrix product in an execution graph, as the runtime names it. macs: multiply-adds, batch 1."""

    name: str
    kind: ComputeKind
    op_type: str
    int8: bool
    macs: int = 0


class OpReport(Frozen):
    """What a runtime's own graph is made of.

    ops: how many of each operator. compute_ops: convolutions (depthwise included) and matrix products, and how many of
    them compute in int8. convs, int8_convs: the convolutions among them. macs, int8_macs: multiply-adds of the compute
    operators, from the shapes in the graph. float_convs, float_linears: the compute operators that are not int8, as
    "TYPE name", most multiply-adds first. fp16_compute: whether any compute operator takes fp16 values; fp16_weights:
    whether any constant is stored as fp16.
    source: where the report comes from, e.g. "LiteRT graph"; detail: whatever else the runtime says.
    """

    ops: dict[str, int]
    compute_ops: int
    int8_compute_ops: int
    convs: int = 0
    int8_convs: int = 0
    macs: int = 0
    int8_macs: int = 0
    float_convs: tuple[str, ...] = ()
    float_linears: tuple[str, ...] = ()
    fp16_compute: bool = False
    fp16_weights: bool = False
    source: str = ""
    detail: dict[str, Any] = Field(default_factory=dict)

    @property
    def int8_share(self) -> float:
        """Part of the compute operators that run in int8; 0 when there is none."""
        return self.int8_compute_ops / self.compute_ops if self.compute_ops else 0.0

    @property
    def int8_macs_share(self) -> float:
        """Part of the multiply-adds that run in int8; 0 when there is none.

        >>> OpReport(ops={}, compute_ops=2, int8_compute_ops=1, macs=200, int8_macs=190).int8_macs_share
        0.95
        """
        return self.int8_macs / self.macs if self.macs else 0.0

    @classmethod
    def of(
        cls,
        ops: Mapping[str, int],
        compute: list[ComputeOp],
        *,
        source: str,
        fp16_compute: bool = False,
        fp16_weights: bool = False,
        **detail: Any,
    ) -> OpReport:
        """Count the compute operators.

        >>> conv = ComputeOp(name="stem", kind="conv", op_type="CONV_2D", int8=False)
        >>> OpReport.of({"CONV_2D": 1}, [conv], source="LiteRT graph").float_convs
        ('CONV_2D stem',)
        """
        return cls(
            ops=dict(sorted(ops.items())),
            compute_ops=len(compute),
            int8_compute_ops=sum(op.int8 for op in compute),
            convs=sum(op.kind == "conv" for op in compute),
            int8_convs=sum(op.kind == "conv" and op.int8 for op in compute),
            macs=sum(op.macs for op in compute),
            int8_macs=sum(op.macs for op in compute if op.int8),
            float_convs=_not_int8(compute, "conv"),
            float_linears=_not_int8(compute, "linear"),
            fp16_compute=fp16_compute,
            fp16_weights=fp16_weights,
            source=source,
            detail=detail,
        )


def _not_int8(compute: list[ComputeOp], kind: ComputeKind) -> tuple[str, ...]:
    left = sorted((op for op in compute if op.kind == kind and not op.int8), key=lambda op: -op.macs)
    return tuple(f"{op.op_type} {op.name}" for op in left)


def logits(session: Session, images: Images) -> FloatArray:
    """Images [N, C, H, W] -> first output float32 [N, classes], one image at a time (artifacts have batch 1).

    images: what `Session.feed` takes.

    Raises: InputError: the images do not fit the artifact's input.
    """
    return np.concatenate([session.read(session.invoke(session.feed(images[i : i + 1]))) for i in range(len(images))])


def image_input(artifact: Artifact) -> TensorSpec:
    """The one image input. Raises: InputError: the artifact has none or several."""
    if len(artifact.inputs) != 1:
        names = ", ".join(spec.name for spec in artifact.inputs) or "none"
        raise InputError(f"expected one input, it has {names}", where=artifact.path)
    return artifact.inputs[0]


def nchw_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Shape in channels-first order.

    >>> nchw_shape(TensorSpec(name="image", shape=(1, 28, 32, 3), dtype="float32", layout="NHWC"))
    (1, 3, 28, 32)
    """
    if spec.layout != "NHWC":
        return spec.shape
    batch, height, width, channels = spec.shape
    return (batch, channels, height, width)


def arranged(images: Images, spec: TensorSpec, path: Path) -> npt.NDArray[Any]:
    """Images in the order, dtype and grid of an input tensor, contiguous.

    Raises: InputError: their shape is not that of the input, or they are pixels where it takes normalised values, or
        the other way round.
    """
    expected = nchw_shape(spec)
    if tuple(images.shape) != expected:
        raise InputError(f"got images of shape {list(images.shape)}", where=path, fix=f"it takes {list(expected)}")
    _require_kind(images, spec, path)
    ordered = images.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else images
    return np.ascontiguousarray(quantised(ordered, spec))


def _require_kind(images: Images, spec: TensorSpec, path: Path) -> None:
    if spec.holds == "normalised" and images.dtype.kind != "f":
        raise InputError(f"got {images.dtype} pixels", where=path, fix="it takes normalised float32 images")
    if spec.holds == "pixels" and images.dtype.kind == "f" and not (images.min() >= 0 and images.max() <= 255):
        found = f"got values from {images.min():.3g} to {images.max():.3g}"
        raise InputError(found, where=path, fix="it takes pixels 0..255 and normalises them itself")


def quantised(values: Images, spec: TensorSpec) -> npt.NDArray[Any]:
    """Values on the tensor's integer grid (rounded half to even, saturated), or just its float dtype."""
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f" or values.dtype == dtype:
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    codes = np.round(values / np.float32(spec.scale or 1.0)) + (spec.zero_point or 0)
    saturated: npt.NDArray[Any] = np.clip(codes, limits.min, limits.max).astype(dtype)
    return saturated


def real_values(raw: npt.NDArray[Any], spec: TensorSpec) -> FloatArray:
    """Integer codes to real values, or floats to float32; a copy in the same shape.

    >>> out = TensorSpec(name="logits", shape=(1, 2), dtype="int8", layout="NC", scale=0.5, zero_point=-1)
    >>> real_values(np.array([[1, -1]], dtype=np.int8), out).tolist()
    [[1.0, 0.0]]
    """
    values: FloatArray = np.array(raw, dtype=np.float32)
    if np.dtype(spec.dtype).kind in "iu" and spec.scale is not None:
        values = (values - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)
    return values


def first_output(raw: Sequence[npt.NDArray[Any]], specs: Sequence[TensorSpec]) -> FloatArray:
    """The first output's real values, shaped [batch, classes]; what `Session.read` gives."""
    values = real_values(raw[0], specs[0])
    return values.reshape(values.shape[0] if values.ndim else 1, -1)


def every_output(raw: Sequence[npt.NDArray[Any]], specs: Sequence[TensorSpec]) -> dict[str, FloatArray]:
    """Real values of all outputs by name, in their own shapes; what `Session.read_all` gives."""
    return {spec.name: real_values(values, spec) for values, spec in zip(raw, specs, strict=True)}


def output_positions(artifact: Artifact, names: Sequence[str]) -> list[int]:
    """Where in the runtime's outputs, called `names`, each of the artifact's is: by name, else by position.

    Raises: InputError: there are more or fewer than the artifact declares.
    """
    declared = [spec.name for spec in artifact.outputs]
    if set(declared) <= set(names):
        return [list(names).index(name) for name in declared]
    if len(declared) != len(names):
        what = f"it has {len(names)} outputs ({', '.join(names)}), not the {len(declared)} declared"
        raise InputError(what, where=artifact.path, fix="export it again")
    return list(range(len(declared)))


def first_line(error: BaseException) -> str:
    """The first telling line of a runtime's message, at most 200 characters; its type's name when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith("Exception from")]
    return (kept or [type(error).__name__])[0][:200]
