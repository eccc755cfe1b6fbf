"""An option of one value that is given twice is a mistake: the last value would win without a word."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperOption


class OneValueEach(TyperCommand):
    """A command that refuses a repeated option, except switches and those that collect values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises: typer.BadParameter: an option is repeated."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            if not isinstance(option, TyperOption) or option.multiple or option.is_flag:
                continue
            if given.count(option) > 1:
                why = "it is given twice and takes one value; where it takes a list, write it with commas"
                raise typer.BadParameter(why, ctx=ctx, param=option)
        return super().parse_args(ctx, args)


def refuse_repeats(app: typer.Typer) -> None:
    """Every command of `app` and of the groups in it becomes such a command."""
    for command in app.registered_commands:
        command.cls = OneValueEach
    for group in app.registered_groups:
        if group.typer_instance is not None:
            refuse_repeats(group.typer_instance)
