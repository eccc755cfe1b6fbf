"""Errors a user sees: what is wrong, where, what was got, and what to do. A leaf: imports nothing of edgekd.

The command line prints `str(error)` on one line and exits with `exit_code`; nothing else in edgekd prints or exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgekdError(Exception):
    """Base of every error edgekd raises on purpose.

    exit_code: 2 for usage or input, 1 for a gate or check that failed.

    >>> print(EdgekdError("unknown key 'dram_gb_s'", where="profiles/x.toml", fix="did you mean 'dram_gb_per_s'?"))
    profiles/x.toml: unknown key 'dram_gb_s'; did you mean 'dram_gb_per_s'?
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        head = f"{where}: " if where is not None else ""
        tail = f"; {fix}" if fix else ""
        super().__init__(" ".join(f"{head}{what}{tail}".split()))


class InputError(EdgekdError):
    """A file, key, option or value that cannot be used."""


class MissingExtraError(EdgekdError):
    """A runtime or converter that is not installed."""

    def __init__(self, target: str, package: str, extra: str) -> None:
        super().__init__(f"target '{target}' needs {package} (not installed)", fix=f"pip install 'edgekd[{extra}]'")


class ConversionError(EdgekdError):
    """A converter refused, crashed, hung or ran out of memory; carries the tool's own last lines in its text."""

    exit_code = 1


class CheckError(EdgekdError):
    """A gate, parity bar or integrity check that failed."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Advice naming the nearest known names, or all of them when few.

    >>> did_you_mean("jetson-nanno", ["jetson-nano", "pixel-8"])
    "did you mean 'jetson-nano'?"
    >>> did_you_mean("zzz", ["a", "b"])
    'known: a, b'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "known: " + ", ".join(names)
