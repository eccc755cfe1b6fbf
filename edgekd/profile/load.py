"""Profiles by name, by name and power mode, or by file; and the check that reports every mistake of a file."""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import InputError, did_you_mean
from edgekd.profile.documents import (
    Document,
    Source,
    ancestry,
    family_names,
    merged,
    parse_toml,
    profile_file,
    profile_names,
    unsourced,
)
from edgekd.profile.doubts import doubts
from edgekd.profile.evidence import Finding, under_an_old_source, without_evidence
from edgekd.profile.mistakes import SEE, Mistake, mistakes_in, validated
from edgekd.profile.model import HardwareProfile

__all__ = [
    "check_profile",
    "family_names",
    "load_profile",
    "parse_profile",
    "profile_file",
    "profile_names",
    "read_document",
]


def load_profile(name_or_file: str) -> HardwareProfile:
    """A shipped profile by name, or a TOML file by path; `@MODE` behind either chooses a power mode.

    Raises: InputError: no such profile or mode (nearest names given), or the file is not a valid profile (its first
    mistake, and how many more there are).

    >>> load_profile("jetson-nano").quantisation.preferred_precision
    'fp16'
    """
    name, mode = _split(name_or_file)
    profile = _profile(_source(name))
    return profile.in_mode(mode) if mode else profile


def parse_profile(text: str, *, where: str, folder: Path | None = None) -> HardwareProfile:
    """TOML text to a profile; `extends` is relative to folder.

    Raises: InputError: names the file, the key, what was got and what to do.
    """
    return _profile(parse_toml(text, where=where, folder=folder))


def check_profile(name_or_file: str) -> tuple[HardwareProfile | None, list[InputError]]:
    """The profile and no mistakes, or every mistake of the file and of what it extends, each with its file.

    Stricter than `load_profile`: numbers without evidence and doubtful ones count as well, which do load.

    (None, []): a family that is right, which is no device of its own.
    """
    try:
        chain = ancestry(_source(_split(name_or_file)[0]))
    except InputError as error:
        return None, [error]
    mistakes = [*_mistakes(chain), *_reported(chain)]
    if mistakes or chain[0].document.get("abstract") is True:
        return None, mistakes
    return validated(merged(chain)), []


def read_document(name_or_file: str) -> Document:
    """What a profile's file says together with everything it extends, before it is checked. Raises: InputError."""
    return merged(ancestry(_source(name_or_file)))


def _split(text: str) -> tuple[str, str]:
    name, _, mode = text.rpartition("@")
    return (name, mode) if name and not Path(text).is_file() else (text, "")


def _source(name_or_file: str) -> Source:
    path = Path(name_or_file)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise InputError("no such profile file", where=path)
        return parse_toml(_text(path), where=str(path), folder=path.parent)
    if name_or_file not in profile_names():
        raise InputError(f"no profile '{name_or_file}'", fix=_nearest(name_or_file))
    text = profile_file(name_or_file).read_text(encoding="utf-8")
    return parse_toml(text, where=f"profiles/{name_or_file}.toml")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text ({error.reason} at byte {error.start})", where=path) from error


def _nearest(name: str) -> str:
    if name in family_names():
        return "it is a family that profiles extend, not a device: `edgekd profiles list` names the devices"
    advice = did_you_mean(name, profile_names())
    return advice if advice.startswith("did you mean") else "`edgekd profiles list` names them"


def _profile(source: Source) -> HardwareProfile:
    chain = ancestry(source)
    mistakes = _mistakes(chain)
    if mistakes:
        first, more = mistakes[0], len(mistakes) - 1
        if not more:
            raise first
        raise InputError(f"{first.what} (and {more} more)", where=first.where, fix=first.fix)
    if source.document.get("abstract") is True:
        fix = "name a profile that extends it"
        raise InputError("a family (abstract = true), not a device", where=source.where, fix=fix)
    return validated(merged(chain))


def _mistakes(chain: tuple[Source, ...]) -> list[InputError]:
    """Of each file alone first, so that each is blamed on the file that it stands in; then of the whole."""
    if len(chain) == 1 and "abstract" not in chain[0].document:
        return [mistake.error(chain[0].where) for mistake in mistakes_in(chain[0].document)]
    found: list[tuple[str, Mistake]] = []
    for source in reversed(chain):
        own = {key: value for key, value in source.document.items() if key not in ("extends", "abstract")}
        found += [(source.where, mistake) for mistake in mistakes_in(own, partial=True)]
        if not isinstance(source.document.get("abstract", False), bool):
            found.append((source.where, Mistake("abstract", "bool_type", "abstract: true or false", SEE)))
    found += [(chain[0].where, mistake) for mistake in _unsourced(chain)]
    if chain[0].document.get("abstract") is not True:
        known = {(mistake.key, mistake.kind) for _, mistake in found}
        whole = [mistake for mistake in mistakes_in(merged(chain)) if (mistake.key, mistake.kind) not in known]
        found += [(chain[0].where, mistake) for mistake in whole]
    return [mistake.error(where) for where, mistake in found]


def _reported(chain: tuple[Source, ...]) -> list[InputError]:
    """What only a check reports, each blamed on the oldest file that has it together with what it extends."""
    heirs = [chain[place:] for place in range(len(chain))]
    found = [(heir[0].where, _reportable(merged(heir))) for heir in heirs]
    errors = []
    for mistake in found[0][1]:
        where = next(where for where, known in reversed(found) if mistake in known)
        errors.append(InputError(mistake.what, where=where, fix=mistake.fix))
    for heir in reversed(heirs):
        errors += [InputError(what, where=heir[0].where, fix=fix) for _, what, fix in under_an_old_source(heir)]
    return errors


def _reportable(document: Document) -> list[Finding]:
    return [*without_evidence(document), *doubts(document)]


def _unsourced(chain: tuple[Source, ...]) -> list[Mistake]:
    what = "changes an inherited number, and the source is the old one's"
    fix = "give the unit a source and a confidence, or the number an entry in evidence"
    return [Mistake(key, "unsourced", f"{key}: {what}", fix) for key in unsourced(chain)]
