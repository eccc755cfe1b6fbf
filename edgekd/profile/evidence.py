"""Numbers that do not say where they come from: `edgekd profiles check` reports them, loading lets them pass.

A file that worked yesterday still loads: its numbers are as good as they were, only nobody can tell how good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from edgekd.profile.documents import IDENTITY, Document, Source, is_number, merged, tables

_COUNTS = ("fitted_rows", "cores")
_OF_THE_DEVICE = ("ram_mib", "p90_over_p50")
_WITH_CONFIDENCE = ("onnx_opset_min", "onnx_opset_max", "onnx_ir_version_max", "weight_bits")
_PLACEHOLDERS = ("", "?", "-", "...", "n/a", "none", "tba", "tbd", "todo", "unknown", "xxx")
_ENTRY = '{ source = "...", confidence = "..." }'


class Finding(NamedTuple):
    """What is wrong with a key (with its table), and what to do."""

    key: str
    what: str
    fix: str


def without_evidence(document: Document) -> Iterator[Finding]:
    """Each number of a whole document that has no source or no confidence.

    >>> list(without_evidence({"ram_mib": 512}))[0][:2]
    ('ram_mib', 'ram_mib = 512: a number without source and confidence')
    """
    yield from _without_entry(document, "", [k for k in _OF_THE_DEVICE if is_number(document.get(k))])
    budgets = document.get("budgets")
    if isinstance(budgets, dict) and budgets.get("thermal_headroom"):
        yield from _without_entry(budgets, "budgets.", ["thermal_headroom"])  # the other budgets are choices
    yield from _without_confidence(document)
    yield from _placeholders(document, "")


def under_an_old_source(chain: tuple[Source, ...]) -> Iterator[Finding]:
    """As `without_evidence`: what a file says anew in an inherited table whose source is about the old numbers."""
    if len(chain) < 2:
        return
    for path, own, inherited in _inherited_tables(chain[0].document, merged(chain[1:])):
        if "source" not in own:
            for key, value in _new_numbers(own, inherited):
                # Of units, a number that changes is refused at loading already.
                if not (path.startswith("units") and key in inherited):
                    what = f"{path}.{key} = {value:g}: a new number under an inherited source"
                    yield Finding(f"{path}.{key}", what, f"give {path} a source and a confidence of its own")
        elif "confidence" in inherited and "confidence" not in own:
            fix = f"say how far to trust it: confidence in {path}"
            yield Finding(f"{path}.confidence", f"{path}: a new source under an inherited confidence", fix)


def runtime_path(runtime: Document) -> str:
    """What to call a runtime: a target may come once per unit."""
    return f"runtimes[{runtime.get('target')} on {runtime.get('unit')}]"


def _new_numbers(own: Document, inherited: Document) -> Iterator[tuple[str, float]]:
    given = own.get("evidence")
    known = {*_COUNTS, *(given if isinstance(given, dict) else ())}
    for key, value in own.items():
        if is_number(value) and key not in known and value != inherited.get(key):
            yield key, value
    of_before = {str(unit.get("kind")): unit for unit in tables(inherited, "units")}
    for unit in tables(own, "units"):  # of a power mode
        for key, value in _new_numbers(unit, of_before.get(str(unit.get("kind")), {})):
            yield f"units[{unit.get('kind')}].{key}", value


def _without_entry(table: Document, prefix: str, keys: list[str]) -> Iterator[Finding]:
    given = table.get("evidence", {})
    for key in keys:
        if not isinstance(given, dict) or key not in given:
            what = f"{prefix}{key} = {table[key]}: a number without source and confidence"
            yield Finding(f"{prefix}{key}", what, f"say both: [{prefix}evidence] {key} = {_ENTRY}")


def _without_confidence(document: Document) -> Iterator[Finding]:
    """Tables whose confidence may be left out, which is right where they hold no number."""
    named = [(runtime_path(runtime), runtime) for runtime in tables(document, "runtimes")]
    quantisation = document.get("quantisation")
    if isinstance(quantisation, dict):
        named.append(("quantisation", quantisation))
    for path, table in named:
        numbers = [key for key in _WITH_CONFIDENCE if is_number(table.get(key))]
        if numbers and "confidence" not in table:
            what = f"{path}: {', '.join(numbers)} without a confidence"
            fix = "say how far to trust the source: confidence = 'recalled' or better"
            yield Finding(f"{path}.confidence", what, fix)


def _placeholders(value: Any, path: str) -> Iterator[Finding]:
    """Every `source` of a document, however deep, that names nothing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "source" and isinstance(inner, str) and inner and inner.strip().lower() in _PLACEHOLDERS:
                fix = "say where the numbers can be read or how they were made"
                yield Finding(where, f"{where} = {inner!r}: names no source", fix)
            yield from _placeholders(inner, where)
    elif isinstance(value, list):
        for entry in value:
            name = (entry.get("kind") or entry.get("target") or entry.get("name")) if isinstance(entry, dict) else None
            yield from _placeholders(entry, f"{path}[{name}]")


def _inherited_tables(child: Document, parent: Document) -> Iterator[tuple[str, Document, Document]]:
    """(path, the child's table, the parent's) wherever both have one that carries a source."""
    for key in ("power", "quantisation"):
        own, inherited = child.get(key), parent.get(key)
        if isinstance(own, dict) and isinstance(inherited, dict):
            yield key, own, inherited
    for key, identity in IDENTITY.items():
        known = {tuple(str(entry.get(k)) for k in identity): entry for entry in tables(parent, key)}
        for own in tables(child, key):
            inherited = known.get(tuple(str(own.get(k)) for k in identity))
            if inherited is not None:
                name = " on ".join(str(own.get(k)) for k in identity)
                yield f"{key}[{name}]", own, inherited
