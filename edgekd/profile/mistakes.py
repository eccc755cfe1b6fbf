"""From pydantic's complaints to one line per mistake: the key as the file spells it, what was got, the cure.

A misspelt key is also a missing one: it is put in its place before the rest is looked at, so that one slip is one line
and hides nothing else.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgekd.errors import InputError, did_you_mean
from edgekd.profile.defaults import with_roofline_defaults
from edgekd.profile.documents import Document
from edgekd.profile.model import (
    Budgets,
    ComputeUnit,
    Evidence,
    Fallback,
    HardwareProfile,
    Power,
    PowerMode,
    Quantisation,
    RuntimeSupport,
    UnitInMode,
)

SEE = "see docs/profiles.md"
_TABLES: dict[str, type[BaseModel]] = {
    "units": ComputeUnit,
    "runtimes": RuntimeSupport,
    "quantisation": Quantisation,
    "budgets": Budgets,
    "power": Power,
    "power_modes": PowerMode,
    "power_modes.units": UnitInMode,
    "runtimes.fallbacks": Fallback,
    "evidence": Evidence,
    "units.evidence": Evidence,
    "budgets.evidence": Evidence,
}


class Mistake(NamedTuple):
    """One line. key: with its table, for people; kind: pydantic's name of the error."""

    key: str
    kind: str
    what: str
    fix: str

    def error(self, where: str) -> InputError:
        """The mistake as an error about a file."""
        return InputError(self.what, where=where, fix=self.fix)


def validated(document: Document) -> HardwareProfile:
    """Raises: ValidationError."""
    # Through JSON, because only there does strict validation take a list for a tuple.
    return HardwareProfile.model_validate_json(json.dumps(with_roofline_defaults(document), default=str))


def mistakes_in(document: Document, *, partial: bool = False) -> list[Mistake]:
    """Every mistake of a document, misspelt keys first. partial: a part of a profile, where much may be missing."""
    work, found = copy.deepcopy(document), list[Mistake]()
    for _ in range(8):  # each round repairs what it can, so that it hides no more; then the rest is final
        try:
            validated(work)
            return found
        except ValidationError as error:
            details = error.errors()
        found += [m for d in details if _counts(d, details, partial=partial) for m in _as_mistakes(d, work)]
        # A contradiction found once a wrong value was taken out may be about the gap that it left.
        partial = partial or not any(d["type"] == "extra_forbidden" for d in details)
        if not _repair(work, details):
            return _unique(found)
    return _unique(found)


def _counts(detail: ErrorDetails, details: list[ErrorDetails], *, partial: bool) -> bool:
    loc = detail["loc"]
    if detail["type"] == "too_short" and any(len(d["loc"]) > len(loc) and d["loc"][: len(loc)] == loc for d in details):
        return False  # pydantic does not count entries that are wrong themselves
    misspelt = any(d["type"] == "extra_forbidden" for d in details)
    if misspelt:
        return detail["type"] == "extra_forbidden"
    if partial:
        of_a_table = detail["type"] == "value_error" and isinstance(detail["input"], dict | BaseModel)
        return detail["type"] != "missing" and not of_a_table
    return True


def _repair(work: Document, details: list[ErrorDetails]) -> bool:
    """Put misspelt keys where they belong and take wrong optional values out; False: nothing to be done."""
    extras = [d for d in details if d["type"] == "extra_forbidden"]
    changed = False
    for detail in (d for d in extras or details if d["loc"]):
        *parts, last = detail["loc"]
        table = _at(work, parts)
        if not isinstance(table, dict) or last not in table:
            continue
        if detail["type"] == "extra_forbidden":
            meant = _meant(str(last), tuple(parts))
            value = table.pop(last)
            if meant is not None and meant not in table:
                table[meant] = value
            changed = True
        elif not _required(str(last), tuple(parts)):
            del table[last]
            changed = True
    return changed


def _as_mistakes(detail: ErrorDetails, document: Document) -> Iterator[Mistake]:
    key, kind = _key_path(detail["loc"], document), detail["type"]
    if kind == "extra_forbidden":
        yield Mistake(key, kind, f"unknown key '{key}'", _spelling(detail["loc"]))
    elif kind == "missing":
        yield Mistake(key, kind, f"missing key '{key}'", SEE)
    else:
        for line in detail["msg"].removeprefix("Value error, ").split("\n"):
            message = line[0].lower() + line[1:]
            bare = isinstance(detail["input"], dict | list | BaseModel)
            got = "" if not key else f"{key}: " if bare else f"{key} = {detail['input']!r}: "
            yield Mistake(key, kind, f"{got}{message}", _cure(detail, message))


def _spelling(loc: tuple[int | str, ...]) -> str:
    name, known = str(loc[-1]), _keys_at(loc[:-1])
    with_unit = [key for key in known if key.startswith(f"{name}_")]
    if with_unit:
        return f"a number carries its unit: {' or '.join(repr(key) for key in with_unit)}"
    advice = did_you_mean(name, known)
    elsewhere = [place for place, model in _TABLES.items() if name in model.model_fields and "." not in place]
    if advice.startswith("known") and elsewhere:
        return f"it is a key of {' and '.join(elsewhere)}"
    return advice


def _cure(detail: ErrorDetails, message: str) -> str:
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        known = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        advice = did_you_mean(detail["input"], known)
        return advice if advice.startswith("did you mean") else SEE
    return SEE if "did you mean" not in message else ""


def _meant(name: str, parts: tuple[int | str, ...]) -> str | None:
    advice = re.findall(r"'([^']*)'", _spelling((*parts, name)))
    return advice[0] if len(advice) == 1 else None


def _key_path(parts: tuple[int | str, ...], document: Document) -> str:
    """units.1.efficiency as `units[cpu].efficiency`: an entry of a list is named by its kind, target or name."""
    path, here = "", cast(Any, document)
    for part in parts:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None  # a missing key has no value to go on with
        if isinstance(part, int):
            name = (here.get("kind") or here.get("target") or here.get("name")) if isinstance(here, dict) else None
            path += f"[{name or part}]"
        else:
            path += f".{part}" if path else part
    return path


def _keys_at(parts: tuple[int | str, ...]) -> list[str]:
    """The keys that are legal at a place; a key of another table is no help there."""
    return sorted(_model_at(parts).model_fields)


def _required(name: str, parts: tuple[int | str, ...]) -> bool:
    field = _model_at(parts).model_fields.get(name)
    return field is not None and field.is_required()


def _model_at(parts: tuple[int | str, ...]) -> type[BaseModel]:
    names = [part for part in parts if isinstance(part, str)]
    if "evidence" in names:
        return Evidence
    return _TABLES.get(".".join(names), HardwareProfile)


def _at(document: Document, parts: list[int | str]) -> Any:
    here: Any = document
    for part in parts:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return None
    return here


def _unique(found: list[Mistake]) -> list[Mistake]:
    return list(dict.fromkeys(found))
