"""The child process of one target's conversions: `python -m edgekd.export.worker REQUEST.json RESULT.json LOG ...`.

Three paths for each conversion, one after another: the converter is imported once. Its streams are the conversion's
log. The result goes to a file, because converters write what they like to stdout.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import psutil

from edgekd.artifact import Artifact
from edgekd.errors import EdgekdError, InputError
from edgekd.export.request import ExportRequest
from edgekd.files import write_json

BUILT_IN = ("tflite", "coreml", "openvino", "onnxruntime", "tensorrt", "null")
PARENT_POLL_S = 1.0
# How the converters say that they lack an operator: litert-torch, torch.onnx, OpenVINO, coremltools, TensorRT.
_MISSING = re.compile(
    r"Lowering not found|No ONNX function found|Exporting the operator|No conversion rule|Unsupported fx node"
    r"|(?:not implemented|not supported|unsupported).{0,40}\bop",
    re.IGNORECASE,
)
_DECORATION = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|^<class '[\w.]+'>: ")


def lowering_for(target: str) -> Callable[[ExportRequest], Artifact]:
    """The function that converts for a target: edgekd's own, or an entry point of the group `edgekd.exporters`.

    Raises: InputError: the target has no exporter.
    """
    if target in BUILT_IN:
        lower: Callable[[ExportRequest], Artifact] = importlib.import_module(f"edgekd.export.{target}").lower
        return lower
    for entry in entry_points(group="edgekd.exporters", name=target):
        found: Callable[[ExportRequest], Artifact] = entry.load()
        return found
    raise InputError(f"target '{target}' has no exporter", fix="its package names one under 'edgekd.exporters'")


def convert(request: ExportRequest) -> dict[str, Any]:
    """The result document: an artifact, or an error's kind and text."""
    try:
        artifact = lowering_for(request.target)(request)
        return {"artifact": artifact.model_dump(mode="json")}
    except EdgekdError as error:
        traceback.print_exc()
        what = f"{error.where}: {error.what}" if error.where is not None else error.what
        return {"kind": type(error).__name__, "what": what, "fix": error.fix}
    except Exception as error:  # whatever a converter raises becomes one line; the traceback is in the log
        traceback.print_exc()
        return {"kind": type(error).__name__, "what": f"the converter raised {_one_line(error)}", "fix": ""}


def _one_line(error: Exception) -> str:
    """Type and the most telling line of an error, shortened; converters put whole graphs in their messages.

    A line that names what is missing, be it of an error's cause, says more than the first.

    >>> _one_line(RuntimeError("Check 'false' failed at ops.cpp:151:\\nNo conversion rule found for: aten.erfinv"))
    'RuntimeError: No conversion rule found for: aten.erfinv'
    """
    said = [line for link in _chain(error) for line in _clean_lines(link)]
    first = next((line for line in said if _MISSING.search(line)), said[0] if said else "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _clean_lines(error: BaseException) -> list[str]:
    lines = (" ".join(_DECORATION.sub("", line).strip("- ").split()) for line in str(error).splitlines())
    return [line for line in lines if line]


def end_with_parent() -> None:
    """End this process group when the parent dies without a chance to stop it (SIGKILL, power of a closed terminal)."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    if os.getpgrp() == os.getpid():  # only when this process leads its own group, as under the runner
        threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Convert as each request says and write each result; 0 when there is an artifact of every one, else 1."""
    end_with_parent()
    complete = True
    started = psutil.Process().create_time()  # the import of the converter counts for the first
    for request, result, log in zip(*[map(Path, arguments)] * 3, strict=True):
        write_to(log)
        document = convert(ExportRequest.model_validate_json(request.read_text(encoding="utf-8")))
        write_json(result, {**document, "wall_s": time.time() - started})
        started = time.time()
        complete = complete and "artifact" in document
    return 0 if complete else 1


def write_to(log: Path) -> None:
    """Both streams of this process, its C libraries' too, go to the log from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


if __name__ == "__main__":
    STATUS = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Vendor libraries crash while they are torn down (TensorRT's logger, triton beside TensorFlow); the work is done.
    os._exit(STATUS)
