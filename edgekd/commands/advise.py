"""`edgekd advise`: how to teach a student, why, and what would change the advice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.commands import console
from edgekd.commands.run_options import Data, ImageSize, NeedList, SkipBad, Weights, needs_of

_TEACHER = "As for distill, or `none`. A timm: or torchvision: name needs no --weights here."


def advise(  # noqa: PLR0913 - a command's options are its parameters
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help=_TEACHER)] = None,
    weights: Weights = None,
    student: Annotated[str | None, typer.Option("--student", "-s", help="timm:NAME or torchvision:NAME.")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Instead of --student: the net that a run would pick.")
    ] = None,
    data: Data = None,
    need: NeedList = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="A further teacher, MODEL or MODEL,WEIGHTS; repeatable.")
    ] = None,
    labels: Annotated[str, typer.Option("--labels", help="clean, corrupted or none.")] = "clean",
    modality: Annotated[
        str, typer.Option("--modality", help="The teacher's input: same, paired (another kind of it) or unpaired.")
    ] = "same",
    images: Annotated[bool, typer.Option("--images/--no-images", help="Whether training images are at hand.")] = True,
    teacher_accuracy: Annotated[float | None, typer.Option("--teacher-accuracy", help="Measured, in [0, 1].")] = None,
    alone_accuracy: Annotated[
        float | None, typer.Option("--alone-accuracy", help="Of the student trained without a teacher, in [0, 1].")
    ] = None,
    after: Annotated[
        Path | None, typer.Option("--after", help="A run with --baseline, for the accuracies it measured.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the teacher on up to 1,024 held-out images.")
    ] = False,
    image_size: ImageSize = None,
    skip_bad: SkipBad = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Which recipe, why, and what would change that; nothing is trained or written.

    Example: `edgekd advise --profile jetson-nano --need robustness`
    """
    options = locals()
    from edgekd.pipeline import api

    document = api.advise(_request(options))
    if json:
        console.print_json(document)
    else:
        _print(document)


def _request(options: dict[str, Any]) -> Any:
    """Raises: InputError: a word that is none of the known ones; the nearest is named."""
    from pydantic import ValidationError

    from edgekd.errors import InputError, did_you_mean
    from edgekd.pipeline.advice_for import AdviceRequest

    plain = {key: value for key, value in options.items() if key not in ("json", "need", "images", "also")}
    try:
        return AdviceRequest(
            **plain, needs=needs_of(options["need"]), also=tuple(options["also"] or ()), has_images=options["images"]
        )
    except ValidationError as error:
        first = error.errors()[0]
        known = [word.strip(" '") for word in first.get("ctx", {}).get("expected", "").replace(" or ", ",").split(",")]
        fix = did_you_mean(str(first["input"]), known) if known != [""] else ""
        raise InputError(f"{first['input']!r}: {first['msg']}", where=f"--{first['loc'][0]}", fix=fix) from error


def _print(document: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    advice, out = document["advice"], console.data()
    chain = f", {advice['assistants']} assistant(s)" if advice["assistants"] else ""
    out.print(f"[bold]recipe: {escape(advice['recipe'] or 'do not distil')}[/]{chain}", soft_wrap=True)
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in ("question", "answer", "why", "source"):
        table.add_column(column, overflow="fold")
    for reason in advice["reasons"]:
        table.add_row(reason["question"], escape(reason["answer"] or "-"), escape(reason["why"]), reason["source"])
    out.print(table)
    out.print("\n[bold]what would change it[/] (the same rules, asked again)")
    changes = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in ("if", "then", "because"):
        changes.add_column(column, overflow="fold")
    for change in advice["changes"]:
        links = f" ({change['assistants']})" if change["assistants"] else ""
        changes.add_row(change["change"], (change["recipe"] or "do not distil") + links, escape(change["because"]))
    out.print(changes)
    if advice["recipe"]:
        out.print(f"\nedgekd distill ... --recipe {advice['recipe']}", soft_wrap=True)
