"""What goes into a conversion and what comes out: plain frozen data that crosses a process boundary as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgekd.artifact import Artifact, Frozen, Layout, Precision
from edgekd.errors import InputError
from edgekd.profile import HardwareProfile, RuntimeSupport

State = Literal["exported", "failed", "refused"]
IoDtype = Literal["auto", "float32", "int8", "uint8"]


class RefusedError(InputError):
    """A conversion that was not tried, because the target or the profile cannot take what was asked; says why."""

    exit_code = 1


class ExportRequest(Frozen):
    """One conversion: a torch.export program (`.pt2`) to one target at one precision.

    program: float for fp32 and fp16, converted (folded int8 weights, q/dq ops) for int8; batch 1, NCHW, normalised
    input. out: the folder that will hold the artifact; replaced as a whole on success, untouched on failure.
    labels: class names; preprocessing: `Preprocessing.to_dict()`; both go into artifacts that can carry them.
    io_dtype: of input and output tensors; auto is the target's usual one. input_layout: None is the target's own.
    fold_preprocessing: the artifact takes pixels 0..255 and normalises them itself.
    """

    target: str
    precision: Precision
    program: Path
    out: Path
    profile: HardwareProfile | None = None
    labels: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    io_dtype: IoDtype = "auto"
    input_layout: Layout | None = None
    fold_preprocessing: bool = False

    @property
    def label(self) -> str:
        """Short name for logs and folders.

        >>> ExportRequest(target="null", precision="fp32", program=Path("a.pt2"), out=Path("o")).label
        'null-fp32'
        """
        return f"{self.target}-{self.precision}"

    @property
    def runtime(self) -> RuntimeSupport | None:
        """What the profile says of this target, or None without a profile or where it does not list the target."""
        runtimes = self.profile.runtimes if self.profile is not None else ()
        return next((r for r in runtimes if r.target == self.target), None)


class ExportOutcome(Frozen):
    """How one conversion ended: exported (with an artifact), failed or refused (with a reason).

    log: name of the file that holds the converter's own output, "" when no converter was started.
    wall_s: seconds of wall time, process start included. cached: the artifact came from the cache of earlier exports.
    """

    target: str
    precision: Precision
    state: State
    artifact: Artifact | None = None
    reason: str = ""
    log: str = ""
    wall_s: float = 0.0
    cached: bool = False
