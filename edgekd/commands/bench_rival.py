"""`edgekd bench rival`: is the chosen student better than a well-known network that takes as long?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.commands import console
from edgekd.commands.bench_methods import Json, Page, say_row, seed_numbers

if TYPE_CHECKING:
    from edgekd.data.dataset import Dataset
    from edgekd.students import AnySpec


def rival(  # noqa: PLR0913 - a command's options are its parameters
    student: Annotated[Path, typer.Argument(metavar="STUDENT.json", help="Of a run, or of `distill --dry-run`.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help="As for `edgekd distill`.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="As for `edgekd distill`.")] = None,
    network: Annotated[
        str, typer.Option("--rival", help="torchvision:NAME of a network with a width, as mobilenet_v2 or _v3_small.")
    ] = "torchvision:mobilenet_v3_small",
    stem_stride: Annotated[
        int | None, typer.Option("--stem-stride", min=1, max=2, help="Of the rival; 1 suits images of 32 px.")
    ] = None,
    runtime: Annotated[str, typer.Option("--runtime", help="In which both are timed, as fp32.")] = "onnxruntime",
    method: Annotated[str, typer.Option("--method", help="Of `bench methods`; comma-separated.")] = "soft-targets",
    epochs: Annotated[float, typer.Option("--epochs", min=0.01)] = 20.0,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Training images. Default: all.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Comma-separated.")] = "0,1,2",
    batch_size: Annotated[int, typer.Option("--batch-size", min=2)] = 64,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; the same command goes on there.")] = Path(
        "runs/rival"
    ),
    page: Page = None,
    json: Json = False,
) -> None:
    """Scale a rival to the student's measured latency, teach both alike, compare test accuracy. Exit 1 if it loses.

    Example: `edgekd bench rival runs/jetson-nano-001/student.json --data cifar10 --teacher t.safetensors`
    """
    from edgekd.benchmarks.catalogue import BASELINE, choose
    from edgekd.benchmarks.methods import compare, read_results
    from edgekd.benchmarks.page import replace_results
    from edgekd.benchmarks.protocol import Protocol, subset
    from edgekd.benchmarks.rival import Rival, page_text, scaled, spec_fits, verdict
    from edgekd.benchmarks.tuning import tune
    from edgekd.data import load_data
    from edgekd.students import read_spec

    numbers, chosen = seed_numbers(seeds, tune=True), choose(method)
    spec = read_spec(student)
    dataset = subset(load_data(data, image_size=spec.image_size), images)
    spec_fits(spec, dataset, student)
    contest = Rival(network, stem_stride)
    out.mkdir(parents=True, exist_ok=True)
    with console.talk().status("finding the rival's width"):
        answer = scaled(contest, spec, dataset, runtime=runtime, out=out, tell=console.talk().print)
    protocol = Protocol(epochs, images, batch_size)
    comparison = _comparison(dataset, teacher, protocol, spec, contest, answer["width"])
    comparison = tune(comparison, chosen, out=out, resume=True, on_row=say_row)
    compare(comparison, chosen, seeds=numbers, out=out, resume=True, on_row=say_row)
    about, rows = read_results(out)
    methods = [name for name in chosen if name != BASELINE]
    text = page_text(about, rows, answer, methods)
    verdicts = [verdict(rows, name) for name in methods]
    if page is not None:
        replace_results(page, text)
    if json:
        console.print_json({"scaling": answer, "rows": rows, "verdicts": verdicts})
    else:
        console.data().print(text, soft_wrap=True, markup=False)
    if not all(found["wins"] for found in verdicts):
        raise typer.Exit(1)


def _comparison(dataset: Dataset, teacher: str | None, protocol: Any, spec: AnySpec, rival: Any, width: float) -> Any:
    from edgekd.benchmarks.protocol import Comparison
    from edgekd.benchmarks.rival import RIVAL, STUDENT
    from edgekd.students import build
    from edgekd.teachers import load_teacher

    known = load_teacher(teacher, dataset=dataset)
    built = {STUDENT: lambda: build(spec), RIVAL: lambda: rival.built(width, dataset)}
    return Comparison(dataset, known, (STUDENT, RIVAL), protocol, built=built)
