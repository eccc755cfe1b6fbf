"""The null target: the program itself is the artifact, so that the whole pipeline runs in seconds, vendor-free."""

from __future__ import annotations

import shutil

from edgekd.artifact import Artifact
from edgekd.export.describe import describe, image_spec
from edgekd.export.program import load
from edgekd.export.request import ExportRequest


def lower(request: ExportRequest) -> Artifact:
    """Copy the program into the folder, after reading it once to prove that it loads."""
    source = load(request)
    path = request.out / "model.pt2"
    shutil.copyfile(request.program, path)
    note = "the torch.export program itself; timings on it say nothing about any device"
    return describe(
        request,
        path,
        inputs=[image_spec(source.shape)],
        outputs=source.outputs,
        notes=[note],
    )
