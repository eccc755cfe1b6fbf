"""`edgekd bench timing`: whether the times and ratios of `edgekd profile` are to be believed, measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.commands import console

PAGE = Path("docs/benchmarks/timing.md")
WORDS = "peers, repeatability, aa, simulated"


def timing(  # noqa: PLR0913 - a command's options are its parameters
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="torchvision:NAME, timm:NAME (exported first) or .tflite .xml .onnx files; the student first, the "
            "teacher last. Default: torchvision's mobilenet_v3_small and resnet50."
        ),
    ] = None,
    part: Annotated[str, typer.Option("--part", help=f"Comma-separated: {WORDS}; or all.")] = "all",
    out: Annotated[Path, typer.Option("--out", help="Folder of the rows; what is there is not measured again.")] = Path(
        "runs/timing"
    ),
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Start no round later than that; run again to go on.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one inference.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Of peers: four visits each, random ABBA.")] = 8,
    repeats: Annotated[int, typer.Option("--repeats", min=2, help="Of repeatability.")] = 10,
    sessions: Annotated[int, typer.Option("--sessions", min=1, help="Of aa and simulated.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    page: Annotated[
        Path | None, typer.Option("--page", help=f"Markdown page whose results section is rewritten, as {PAGE}.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, every row included.")] = False,
) -> None:
    """Compare p50 with the runtimes' own tools, a speedup with itself ten times, a model with itself a hundred times.

    Wants an idle machine: about 25 minutes for peers, 10 for repeatability, 20 for aa. Exit 1 where a
    bar does not hold.

    Example: `edgekd bench timing --part peers --minutes 5 --out runs/timing`
    """
    from edgekd.benchmarks.timing import NETWORKS, PARTS, Plan, run
    from edgekd.benchmarks.timing_page import document, text, write_page
    from edgekd.errors import InputError, did_you_mean

    chosen = PARTS if part == "all" else tuple(dict.fromkeys(word.strip() for word in part.split(",")))
    for word in chosen:
        if word not in PARTS:
            raise InputError(f"no part '{word}'", where="--part", fix=did_you_mean(word, [*PARTS, "all"]))
    plan = Plan(
        out=out,
        models=tuple(models or NETWORKS),
        threads=threads,
        rounds=rounds,
        repeats=repeats,
        sessions=sessions,
        seed=seed,
        seconds=60 * minutes if minutes else float("inf"),
    )
    found = document(run(plan, chosen, lambda line: console.talk().print(line, markup=False)), plan.settings())
    if page is not None:
        write_page(page, found)
    if json:
        console.print_json(found)
    else:
        console.data().print(text(found), markup=False, soft_wrap=True)
    if not found["holds"]:
        raise typer.Exit(1)
