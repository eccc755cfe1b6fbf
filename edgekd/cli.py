"""The command line: argv -> functions -> text. An error is one line on stderr and an exit code: 1 failed, 2 usage.

Nothing here or in `edgekd.commands` imports torch or a vendor package at import time: `edgekd --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from edgekd import __version__
from edgekd.commands import (
    advise,
    bench,
    compare,
    devices,
    distill,
    doctor,
    estimate,
    export,
    lut,
    plan,
    profile,
    profiles,
    recipes,
    strict,
    verify,
)
from edgekd.errors import EdgekdError

# typer carries a click of its own from 0.20 on; the base of its usage errors is public under another name there.
_USAGE_ERRORS: Any = getattr(typer, "TyperException", None) or typer.BadParameter.__mro__[2]

INTERRUPTED = 130
_GO_ON = "interrupted; a run goes on with the same command and --resume, an export takes what is done from its cache"

app = typer.Typer(
    name="edgekd",
    help="Budget -> student -> distillation and quantisation -> export -> measured. "
    "Start with: edgekd distill --profile jetson-nano",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("distill")(distill.distill)
app.command("plan")(plan.plan)
app.command("advise")(advise.advise)
app.command("profile")(profile.profile)
app.command("compare")(compare.compare)
app.command("devices")(devices.devices)
app.command("export")(export.export)
app.command("estimate")(estimate.estimate)
app.add_typer(profiles.app, name="profiles")
app.add_typer(bench.app, name="bench")
app.add_typer(recipes.app, name="recipes")
app.add_typer(lut.app, name="lut")
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
strict.refuse_repeats(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that come before the subcommand."""
    if version:
        typer.echo(f"edgekd {__version__}")
        raise typer.Exit
    if debug:
        os.environ["EDGEKD_DEBUG"] = "1"


def main() -> None:
    """Entry point of the `edgekd` script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in argv
    # --debug is understood anywhere on the line, as users expect; the root callback only documents it.
    arguments = [a for a in argv if a != "--debug"]
    try:
        result = app(arguments, standalone_mode=False)
        if result == INTERRUPTED:  # typer turns Ctrl-C into this code by itself, without a word
            return _fail(_GO_ON, INTERRUPTED, debug=debug)
        return result if isinstance(result, int) else 0
    except _USAGE_ERRORS as error:
        error.show()
        return 2
    except EdgekdError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_GO_ON, INTERRUPTED, debug=debug)
    except BrokenPipeError:  # `edgekd ... | head` is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        text = f"unexpected {type(error).__name__}: {error}"
        return _fail(f"{' '.join(text.split())[:400]}; this is a bug in edgekd: --debug shows where", 1, debug=debug)


def _fail(text: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)
    return code
