"""`edgekd recipes`: ways to teach a student, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.recipes import Recipe

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and check recipes for `edgekd distill --recipe`.\n\nExample: `edgekd recipes show dkd`",
)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("list")
def list_recipes(json: Json = False) -> None:
    """The recipes that ship with edgekd.

    Example: `edgekd recipes list`
    """
    from rich.table import Table

    from edgekd.recipes import load_recipe, recipe_names

    recipes = {name: load_recipe(name) for name in recipe_names()}
    if json:
        console.print_json([{"name": name, **_line(recipe)} for name, recipe in recipes.items()])
        return
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in ("recipe", "what it does", "methods", "source"):
        table.add_column(column, overflow="fold")
    for name, recipe in recipes.items():
        line = _line(recipe)
        table.add_row(name, recipe.title, ", ".join(line["methods"]), recipe.source)
    console.data().print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe, or a TOML or YAML file.")],
    json: Json = False,
) -> None:
    """Stages, terms, weights and players of a recipe.

    Example: `edgekd recipes show ca-mkd`
    """
    from edgekd.recipes import load_recipe

    recipe = load_recipe(name)
    if json:
        console.print_json(recipe.model_dump(mode="json", exclude_none=True))
        return
    out = console.data()
    out.print(f"[bold]{recipe.title}[/bold]: {recipe.source}", soft_wrap=True)
    for line in _lines(recipe):
        out.print(line, soft_wrap=True, markup=False)


@app.command("check")
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A TOML or YAML file, or a shipped recipe's name.")],
    json: Json = False,
) -> None:
    """Check a recipe: exit 0 when it is valid, 2 with one line naming the place and the cure when it is not.

    Taps are checked when the models are known, at the start of a run. Example: `edgekd recipes check my-recipe.toml`
    """
    from edgekd.recipes import load_recipe

    recipe = load_recipe(file)
    if json:
        console.print_json({"valid": True, **_line(recipe)})
        return
    typer.echo(f"{file}: valid recipe '{recipe.title}' ({len(recipe.stages)} stages: {', '.join(_methods(recipe))})")


def _methods(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(term.method for stage in recipe.stages for term in stage.terms))


def _line(recipe: Recipe) -> dict[str, Any]:
    return {
        "title": recipe.title,
        "source": recipe.source,
        "note": recipe.note,
        "stages": [stage.name for stage in recipe.stages],
        "methods": _methods(recipe),
    }


def _lines(recipe: Recipe) -> list[str]:
    """The recipe for people, a line for each thing."""
    lines = [f"note: {recipe.note}"] if recipe.note else []
    if recipe.chain is not None:
        lines.append(f"chain: {_plain(recipe.chain)}")
    lines += [f"teacher '{name}': {_plain(teacher)}" for name, teacher in recipe.teachers.items()]
    for stage in recipe.stages:
        students = ", ".join(f"{name} ({_plain(student) or 'as selected'})" for name, student in stage.students.items())
        lines.append(f"stage '{stage.name}', {stage.epochs:g} x the run's epochs; students: {students}")
        lines += [f"  source '{name}': {_plain(source)}" for name, source in stage.sources.items()]
        lines += [f"  player '{name}': {_plain(player)}" for name, player in stage.players.items()]
        lines += [f"  term {term.label}: {_plain(term)}" for term in stage.terms]
        if settings := _plain(stage.training):
            lines.append(f"  training: {settings}")
    return lines


def _plain(table: Any) -> str:
    """What a table says beyond its defaults."""
    document = table.model_dump(mode="json", exclude_none=True, exclude={"method", "student", "discriminator"})
    defaults = {name: field.default for name, field in type(table).model_fields.items()}
    told = {key: value for key, value in document.items() if value != defaults[key] or key in ("weight", "decay")}
    return ", ".join(f"{key} {value}" for key, value in told.items())
