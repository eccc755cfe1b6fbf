"""Profile files before they are types: TOML text, `extends`, and the merge of a file with its parent.

Tables merge key by key; units merge by `kind`, runtimes by `target` and `unit`, power modes by `name`, in the parent's
order with what is new behind; notes add up; any other list replaces the parent's. `name`, `title` and `abstract` are
not inherited. An inherited number keeps its own source when the child names another one for the rest of the table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from edgekd.errors import InputError, did_you_mean

Document = dict[str, Any]
_OF_THE_FILE = ("name", "title", "abstract", "extends")
IDENTITY: dict[str, tuple[str, ...]] = {"units": ("kind",), "runtimes": ("target", "unit"), "power_modes": ("name",)}


class Source(NamedTuple):
    """One profile file: what to call it, its text as a table, and the folder that its `extends` is relative to."""

    where: str
    document: Document
    folder: Path | None


def profile_names() -> list[str]:
    """Names of the profiles that ship with edgekd, sorted."""
    return _stems(_shipped())


def family_names() -> list[str]:
    """Names of the shipped files that only other profiles extend, sorted."""
    return _stems(_shipped() / "families")


def profile_file(name: str) -> Traversable:
    """The shipped file of a profile or family. Raises: InputError: there is none; the nearest names are given."""
    for folder in (_shipped(), _shipped() / "families"):
        file = folder / f"{name}.toml"
        if file.is_file():
            return file
    raise InputError(f"no profile '{name}'", fix=did_you_mean(name, profile_names()))


def parse_toml(text: str, *, where: str, folder: Path | None = None) -> Source:
    """TOML text as a source. Raises: InputError: it is not TOML."""
    try:
        return Source(where, tomllib.loads(text), folder)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML ({error})", where=where) from error


def ancestry(source: Source) -> tuple[Source, ...]:
    """The file and everything it extends, itself first. Raises: InputError: unknown parent, or a circle."""
    chain = [source]
    while (parent := chain[-1].document.get("extends")) is not None:
        heir = chain[-1]
        if not isinstance(parent, str):
            raise InputError(f"extends = {parent!r}: a profile's name or a file, in quotes", where=heir.where)
        found = _parent(parent, heir)
        names = [known.where for known in chain]
        if found.where in names:
            circle = " -> ".join([*names[names.index(found.where) :], found.where])
            raise InputError(f"extends goes in a circle: {circle}", where=source.where, fix="take one 'extends' out")
        chain.append(found)
    return tuple(chain)


def merged(chain: tuple[Source, ...]) -> Document:
    """One table of a file and its parents, without `extends` and `abstract`."""
    result: Document = {}
    for source in reversed(chain):
        inherited = {key: value for key, value in result.items() if key not in _OF_THE_FILE}
        result = _merge(inherited, source.document)
    return {key: value for key, value in result.items() if key not in ("extends", "abstract")}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a TOML value is a number (true and false are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def unsourced(chain: tuple[Source, ...]) -> Iterator[str]:
    """Keys of units where a child changes an inherited number without saying where the new one comes from."""
    if len(chain) < 2:
        return
    inherited = {unit.get("kind"): unit for unit in tables(merged(chain[1:]), "units")}
    for unit in tables(chain[0].document, "units"):
        parent = inherited.get(unit.get("kind"))
        if parent is None or "source" in unit:
            continue
        evidence = unit.get("evidence", {})
        for key in (k for k, v in unit.items() if is_number(v) and k in parent and k not in evidence):
            yield f"units[{unit['kind']}].{key}"


def tables(document: Document, key: str) -> list[Document]:
    """The tables of a list of tables; none where there is no such list."""
    value = document.get(key, [])
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _parent(name: str, heir: Source) -> Source:
    if name.endswith(".toml") or "/" in name:
        path = (heir.folder or Path()) / name
        if not path.is_file():
            raise InputError(f"extends = '{name}': no such file", where=heir.where, fix=f"looked for {path}")
        return parse_toml(path.read_text(encoding="utf-8"), where=str(path), folder=path.parent)
    try:
        file = profile_file(name)
    except InputError as error:
        fix = did_you_mean(name, [*profile_names(), *family_names()])
        raise InputError(f"extends = '{name}': no such profile", where=heir.where, fix=fix) from error
    folder = "profiles" if name in profile_names() else "profiles/families"
    return parse_toml(file.read_text(encoding="utf-8"), where=f"{folder}/{name}.toml")


def _merge(parent: Document, child: Document) -> Document:
    result = _with_own_sources(parent, child)
    for key, value in child.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = _merge(before, value)
        elif key in IDENTITY and isinstance(before, list) and isinstance(value, list):
            result[key] = _merge_lists(before, value, IDENTITY[key])
        elif key == "notes" and isinstance(before, list) and isinstance(value, list):
            result[key] = [*before, *value]
        else:
            result[key] = value
    return result


def _with_own_sources(parent: Document, child: Document) -> Document:
    """The parent's table, its evidence without the numbers that the child replaces, and with those that it keeps."""
    if "evidence" not in parent and "source" not in parent:
        return dict(parent)
    given = parent.get("evidence", {})
    evidence = {key: value for key, value in given.items() if key not in child} if isinstance(given, dict) else {}
    if "source" in child and "confidence" in parent and "kind" in parent:
        own = {"source": parent.get("source"), "confidence": parent["confidence"]}
        for key, value in parent.items():
            if is_number(value) and key not in child and key not in ("fitted_rows", "cores"):
                evidence.setdefault(key, own)
    return {**parent, "evidence": evidence} if evidence else {k: v for k, v in parent.items() if k != "evidence"}


def _merge_lists(parent: list[Any], child: list[Any], identity: tuple[str, ...]) -> list[Any]:
    def key(entry: Any) -> Any:
        return tuple(entry.get(k) for k in identity) if isinstance(entry, dict) else id(entry)

    news = {key(entry): entry for entry in child}
    if len(news) < len(child):
        return [*parent, *child]  # a double entry is a mistake that the check of the whole names
    result = [_merge(entry, news.pop(key(entry))) if key(entry) in news else entry for entry in parent]
    return [*result, *news.values()]


def _shipped() -> Traversable:
    return resources.files("edgekd.profiles")


def _stems(folder: Traversable) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))
