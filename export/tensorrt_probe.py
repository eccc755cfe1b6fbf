"""What NVIDIA's own parser and builder say of a graph, through TensorRT-RTX, which needs no GPU for either.

It can die with SIGSEGV on a graph it has just accepted, so a report is made in a process of its own:
`python -m edgekd.export.tensorrt_probe MODEL.onnx REPORT.json`. An engine is built in the converter's own process,
where a crash ends that one conversion only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgekd.errors import ConversionError
from edgekd.export.process import last_lines, run_watched
from edgekd.files import read_json, write_json

PROBE_COMMAND = (sys.executable, "-P", "-m", "edgekd.export.tensorrt_probe")
PROBE_TIMEOUT_S = 120.0
PROBE_MEMORY_GIB = 4.0
FEW_ERRORS = 8
# The wheel with the code; the `tensorrt_rtx` package only re-exports it and is not among the extra's wheels.
PACKAGE = "tensorrt_rtx_bindings"


def vendor() -> Any:
    """NVIDIA's module. Raises: ImportError: it is not installed."""
    return importlib.import_module(PACKAGE)


def report(model: Path, *, command: tuple[str, ...] = PROBE_COMMAND) -> dict[str, Any]:
    """Operators that TensorRT-RTX's parser refuses, as data; a crash of it becomes text.

    Keys: checked_with, supported (None when unknown), errors (operator, node, text), summary.
    """
    if command is PROBE_COMMAND and find_spec(PACKAGE) is None:
        return _unknown("not checked: tensorrt_rtx is not installed", "")
    with tempfile.TemporaryDirectory(prefix="edgekd-probe-") as folder:
        result, log = Path(folder) / "report.json", Path(folder) / "probe.log"
        end = run_watched(
            [*command, str(model), str(result)],
            log=log,
            environment=os.environ,
            timeout_s=PROBE_TIMEOUT_S,
            memory_limit_gib=PROBE_MEMORY_GIB,
        )
        if end.ending == "exit" and end.code == 0 and result.is_file():
            findings: dict[str, Any] = read_json(result)
            return findings
        return _unknown(f"TensorRT-RTX's parser {end.describe()}", " | ".join(last_lines(log)))


def _unknown(what: str, said: str) -> dict[str, Any]:
    return {"checked_with": None, "supported": None, "errors": [], "summary": what, "last_lines": said}


def parse(model: Path) -> dict[str, Any]:
    """The report, in this process. A parser for another TensorRT: it proves that NVIDIA's code reads the graph."""
    rtx, logger = vendor(), _logger()
    network = rtx.Builder(logger).create_network(_strongly_typed())
    parser = rtx.OnnxParser(network, logger)
    supported = bool(parser.supports_model_v2(model.read_bytes()))
    errors = _errors_of(parser)
    name = f"tensorrt_rtx {rtx.__version__}"
    summary = f"{name}'s parser accepts every operator" if supported else f"{name}'s parser refuses: {_named(errors)}"
    return {"checked_with": name, "supported": supported, "errors": errors, "summary": summary}


def build(model: Path, engine: Path, architecture: str) -> dict[str, Any]:
    """Build an engine for an architecture ("SM86") ahead of time and return what the builder said of its layers.

    Raises: ConversionError: the parser or the builder refused the graph; the operator or the builder's error is named.
    """
    rtx, logger = vendor(), _logger()
    logger.messages.clear()
    builder = rtx.Builder(logger)
    network = builder.create_network(_strongly_typed())
    parser = rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise ConversionError(f"TensorRT-RTX's parser refuses: {_named(_errors_of(parser))}")
    serialised = builder.build_serialized_network(network, _settings(builder, architecture))
    if serialised is None:
        said = [text for severity, text in logger.messages if severity in ("ERROR", "INTERNAL_ERROR")]
        raise ConversionError(
            f"TensorRT-RTX cannot build for {architecture}: {' | '.join(said)[:300] or 'no reason given'}"
        )
    engine.write_bytes(bytes(serialised))
    evidence = layer_evidence([text for _, text in logger.messages])
    return {"built_with": f"tensorrt_rtx {rtx.__version__}", "architecture": architecture, **evidence}


def layer_evidence(messages: list[str]) -> dict[str, Any]:
    """Layers and the types they read and write, from the builder's verbose message that starts with `Layers:`.

    An engine cannot be opened without a GPU, so this message is the only proof here of what will run in int8.
    """
    listing = next((text for text in messages if text.startswith("Layers:")), "")
    layers = [_layer(row) for row in listing.splitlines() if row.startswith("Name:")]
    totals = [text for text in messages if "Total Activation" in text or "Total Weights" in text]
    return {
        "layer_count": len(layers),
        "int8_layers": sum("int8" in layer["input_datatype"].lower() for layer in layers),
        "layers": layers,
        "memory": totals,
    }


def _layer(row: str) -> dict[str, str]:
    """One layer: name, kind, first datatype it reads, first it writes.

    >>> _layer("Name: c1, LayerType: conv, Inputs: [{ Datatype: Int8 }], Outputs: [{ Datatype: Half }]")
    {'name': 'c1', 'kind': 'conv', 'input_datatype': 'Int8', 'output_datatype': 'Half'}
    """
    before, _, after = row.partition("Outputs:")
    return {
        "name": _first(r"Name: (.*?), LayerType", before),
        "kind": _first(r"LayerType: (\w+)", before),
        "input_datatype": _first(r"Datatype: (\w+)", before),
        "output_datatype": _first(r"Datatype: (\w+)", after),
    }


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def _settings(builder: Any, architecture: str) -> Any:
    rtx = vendor()
    settings = builder.create_builder_config()
    settings.num_compute_capabilities = 1
    settings.set_compute_capability(getattr(rtx.ComputeCapability, architecture), 0)
    settings.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED
    return settings


def _strongly_typed() -> int:
    return 1 << int(vendor().NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@cache
def _logger() -> Any:
    """The process's one logger: TensorRT keeps the first it is given, for good."""
    rtx = vendor()

    class Recorder(rtx.ILogger):  # type: ignore[misc, name-defined]  # the vendor ships no types
        def __init__(self) -> None:
            rtx.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.messages.append((severity.name, text))
            if severity.name in ("ERROR", "INTERNAL_ERROR", "WARNING"):
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"[{severity.name}] {text}\n")

    return Recorder()


def _errors_of(parser: Any) -> list[dict[str, str]]:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    return [
        {"operator": error.node_operator(), "node": error.node_name(), "text": _text(error)}
        for error in found[:FEW_ERRORS]
    ]


def _text(error: Any) -> str:
    """The parser's own words, or its error code where those say nothing (some are literally `false`)."""
    words = " ".join(str(error.desc()).split())
    return words[:300] if words not in ("", "false", "False") else f"refused with code {error.code()}"


def _named(errors: list[dict[str, str]]) -> str:
    return (
        "; ".join(f"{error['operator']} ({error['node']}): {error['text']}" for error in errors[:2])
        or "no reason given"
    )


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), parse(Path(sys.argv[1])))
    os._exit(0)  # TensorRT-RTX may crash while it is torn down; the report is written
