"""Torch's exported programs (.pt2) from files of unknown origin.

torch.export.load unpickles parts of the archive, loads compiled libraries it finds there, calls what the graph names,
and gives symbolic shapes to SymPy, which evaluates text (torch 2.14: export/pt2_archive/_package.py and
_export/serde/serialize.py). An archive that torch.export.save made of a plain model needs only tensors and operators,
so anything else is refused before it is loaded.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgekd.errors import InputError

_PLAIN = re.compile(
    r"(archive_format|archive_version|byteorder|\.format_version|\.storage_alignment|\.data/.*"
    r"|models/[^/]+\.json|extra/.*|data/(weights|constants)/[^/]+|data/sample_inputs/[^/]+\.pt)"
)
# sympy.srepr of a shape, as "Mul(Integer(2), Symbol('s31', positive=True, integer=True))"
_QUOTED = re.compile(r"'[A-Za-z]\w*'")
_FUNCTIONS = "torch.utils._sympy.functions."
_NAME = re.compile(r"[A-Za-z_]\w*(?:\s*=(?!=))?")
_PLAIN_NAME = re.compile(r"[su]\d+|[A-Z][A-Za-z0-9]*|floor|ceiling|[a-z_]+\s*=")
_ARITHMETIC = re.compile(r"[\w\s+\-*/(),<>=&|~]*")
_TARGET = re.compile(r"torch\.ops\.[\w.]+|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\._sym_\w+")


def load_program(path: Path) -> torch.export.ExportedProgram:
    """An exported program whose archive holds tensors and a graph only.

    Raises: InputError: missing, not a .pt2 archive, of another version, or holding something that could run code.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_code(archive, path)
        return torch.export.load(path)
    except InputError:
        raise
    except Exception as error:  # damaged archives and other versions raise many things
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"not an exported program that torch can load ({reason})", where=path) from error


def _refuse_code(archive: zipfile.ZipFile, path: Path) -> None:
    names = {info.filename: info.filename.partition("/")[2] for info in archive.infolist()}
    if "archive_version" not in names.values():
        raise InputError("not a .pt2 archive", where=path, fix="save it with torch.export.save")
    if len({name.lower() for name in names}) != len(archive.infolist()):
        raise _unsafe("two entries of one name", path)
    for full, name in names.items():
        if not _PLAIN.fullmatch(name):
            raise _unsafe(f"'{full}'", path)
        if name.endswith("_config.json"):
            _check_payloads(json.loads(archive.read(full)), path)
        elif name.startswith("models/"):
            _check_graph(json.loads(archive.read(full)), path)
        elif name.startswith("data/sample_inputs/"):
            torch.load(io.BytesIO(archive.read(full)), map_location="cpu", weights_only=True)
        elif re.fullmatch(r"data/(weights|constants)/.*\.pt", name):
            raise _unsafe(f"pickled '{name}'", path)


def _check_payloads(config: Any, path: Path) -> None:
    for name, payload in config.get("config", {}).items():
        if payload.get("use_pickle") or not re.match(r"(weight|tensor)_", str(payload.get("path_name"))):
            raise _unsafe(f"pickled '{name}'", path)


def _check_graph(graph: Any, path: Path) -> None:
    for key, text in _strings(graph):
        if key == "expr_str" and not is_plain_expression(text):
            raise _unsafe(f"expression '{text[:60]}'", path)
        if key == "target" and not _TARGET.fullmatch(text):
            raise _unsafe(f"a call of '{text[:60]}'", path)


def is_plain_expression(text: str) -> bool:
    """Whether a serialised shape is arithmetic on symbols, with nothing that evaluating it could call.

    >>> is_plain_expression("Mul(Integer(2), Symbol('s31', positive=True, integer=True))")
    True
    >>> is_plain_expression("exec(chr(105))"), is_plain_expression("().__class__")
    (False, False)
    """
    text = _QUOTED.sub("", text.replace(_FUNCTIONS, ""))
    return bool(_ARITHMETIC.fullmatch(text)) and all(_PLAIN_NAME.fullmatch(name) for name in _NAME.findall(text))


def _strings(node: Any) -> Iterator[tuple[str, str]]:
    """Every expression and every call target in a serialised graph."""
    if isinstance(node, dict):
        if "expr_str" in node:
            yield "expr_str", str(node["expr_str"])
        if "target" in node and "inputs" in node:
            yield "target", str(node["target"])
        for child in node.values():
            yield from _strings(child)
    elif isinstance(node, list):
        for child in node:
            yield from _strings(child)


def _unsafe(what: str, path: Path) -> InputError:
    return InputError(f"holds {what}, which could run code when loaded", where=path, fix="export the model again")
