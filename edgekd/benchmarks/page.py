"""Pages with a section that a benchmark rewrites and text around it that people write."""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import InputError
from edgekd.files import write_text

BEGIN, END = "<!-- results: written by edgekd bench -->", "<!-- end of results -->"


def replace_results(path: Path, text: str) -> Path:
    """Put `text` between the two marks of a page; a page that is not there yet is made.

    Raises: InputError: the page has no marks.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else f"# {path.stem}\n\n{BEGIN}\n{END}\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError("the page has no place for results", where=path, fix=f"add the lines '{BEGIN}' and '{END}'")
    return write_text(path, f"{before}{BEGIN}\n{text.strip()}\n{END}{after}")
