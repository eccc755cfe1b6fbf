"""`edgekd bench methods`: every distillation method with the same teacher, student, data and schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.commands import console

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def methods(  # noqa: PLR0913 - a command's options are its parameters
    data: Annotated[str | None, typer.Option("--data", "-d", help="As for `edgekd distill`.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="As for `edgekd distill`.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Its checkpoint.")] = None,
    student: Annotated[
        list[str] | None, typer.Option("--student", help="A network by name, as edgekd:resnet20; may be repeated.")
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="Comma-separated names, `key` (the six that are compared first) or `all`.")
    ] = "all",
    epochs: Annotated[float, typer.Option("--epochs", min=0.01, help="240 is the literature's.")] = 240.0,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Training images. Default: all.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Comma-separated.")] = "0,1,2",
    batch_size: Annotated[int, typer.Option("--batch-size", min=2)] = 64,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=1e-6)] = 0.1,
    views: Annotated[int, typer.Option("--views", min=1, help="Augmentations of each image.")] = 2,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("runs/methods"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on behind the last result in --out.")] = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="Also time and memory of a step of each, with the teacher run in it.")
    ] = False,
    int8: Annotated[
        int,
        typer.Option("--int8", min=0, help="So many of the best methods also in int8, by PTQ and QAT."),
    ] = 0,
    page: Annotated[
        Path | None, typer.Option("--page", help="Markdown page whose results section is rewritten at the end.")
    ] = None,
    json: Json = False,
) -> None:
    """Train each method and the no-KD baseline on held-out protocol; table of test accuracy, mean and spread by method.

    Example: `edgekd bench methods --data cifar10 --teacher t.safetensors --student edgekd:resnet20 --methods key`
    """
    from edgekd.benchmarks.catalogue import choose
    from edgekd.benchmarks.costs import measure_costs
    from edgekd.benchmarks.int8 import int8_table, quantise_best
    from edgekd.benchmarks.methods import Comparison, Protocol, compare, read_results, subset
    from edgekd.benchmarks.methods_page import Extra, summary, table, write_page
    from edgekd.data import load_data
    from edgekd.errors import InputError
    from edgekd.teachers import load_teacher

    chosen = choose(methods)
    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError as error:
        raise InputError(f"'{seeds}' is no list of numbers", where="--seeds", fix="like 0,1,2") from error
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"no device '{device}'", where="--device", fix="known: auto, cpu, cuda")
    dataset = subset(load_data(data), images)
    protocol = Protocol(epochs, images, batch_size, learning_rate, views=views, device=device)
    comparison = Comparison(
        dataset,
        load_teacher(teacher, weights=weights, dataset=dataset),
        tuple(student or ["edgekd:resnet20"]),
        protocol,
    )
    compare(comparison, chosen, seeds=numbers, out=out, resume=resume, on_row=_say)
    about, rows = read_results(out)
    measured = measure_costs(comparison, chosen, out) if costs else []
    quantised = quantise_best(comparison, rows, count=int8, out=out, on_row=_say_int8) if int8 else []
    if page is not None:
        write_page(page, about, rows, Extra(measured, quantised))
    if json:
        console.print_json({"about": about, "methods": summary(rows), "costs": measured, "int8": quantised})
        return
    console.data().print(table(summary(rows), measured), markup=False)
    if quantised:
        console.data().print(f"\n{int8_table(quantised)}", markup=False)


def _say(row: dict[str, Any]) -> None:
    outcome = f"{100 * row['test_top1']:.2f}% in {row['cpu_s']} s of CPU" if "test_top1" in row else row["refused"]
    console.talk().print(f"{row['student']} {row['method']} seed {row['seed']}: {outcome}", soft_wrap=True)


def _say_int8(row: dict[str, Any]) -> None:
    outcome = row.get("refused") or f"QAT {100 * row['qat_litert']:.2f}%, PTQ {100 * row['ptq_litert']:.2f}% in LiteRT"
    console.talk().print(f"{row['student']} {row['method']} int8: {outcome}", soft_wrap=True)
