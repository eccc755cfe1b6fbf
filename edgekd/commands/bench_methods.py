"""`edgekd bench methods`: every distillation method with the same teacher, student, data and schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.benchmarks.protocol import Comparison
    from edgekd.recipes import Recipe

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Students = Annotated[
    list[str] | None, typer.Option("--student", help="A network by name, as edgekd:resnet20; may be repeated.")
]
Methods = Annotated[
    str, typer.Option("--methods", help="Comma-separated names, `key` (those that are compared first) or `all`.")
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", min=1e-6, help="Peak. Default: 0.1 with SGD, 0.001 with AdamW (layer norms)."),
]
Costs = Annotated[bool, typer.Option("--costs", help="Also time and memory of a step, with the teacher run in it.")]
Page = Annotated[
    Path | None, typer.Option("--page", help="Markdown page whose results section is rewritten at the end.")
]


def methods(  # noqa: PLR0913 - a command's options are its parameters
    data: Annotated[str | None, typer.Option("--data", "-d", help="As for `edgekd distill`.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="As for `edgekd distill`.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Its checkpoint.")] = None,
    student: Students = None,
    methods: Methods = "all",
    epochs: Annotated[float, typer.Option("--epochs", min=0.01, help="240 is the literature's.")] = 240.0,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Training images. Default: all.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Comma-separated.")] = "0,1,2",
    batch_size: Annotated[int, typer.Option("--batch-size", min=2)] = 64,
    learning_rate: LearningRate = None,
    views: Annotated[int, typer.Option("--views", min=1, help="Augmentations of each image.")] = 2,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("runs/methods"),
    tune: Annotated[
        str | None,
        typer.Option(
            "--tune",
            help="First settle on held-out training images: the baseline's learning rate, and of these methods (as for "
            "--methods) weights and rate.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on behind the last result in --out.")] = False,
    costs: Costs = False,
    int8: Annotated[int, typer.Option("--int8", min=0, help="So many of the best also in int8, by PTQ and QAT.")] = 0,
    page: Page = None,
    json: Json = False,
) -> None:
    """Train each method and the no-KD baseline by one protocol; table of test accuracy, mean and spread by method.

    Example: `edgekd bench methods --data cifar10 --teacher t.safetensors --student edgekd:resnet20 --methods key`
    """
    from edgekd.benchmarks.catalogue import choose
    from edgekd.benchmarks.methods import compare
    from edgekd.benchmarks.protocol import Comparison, Protocol, subset
    from edgekd.benchmarks.tuning import tune as tuned
    from edgekd.data import load_data
    from edgekd.teachers import load_teacher

    chosen, numbers = choose(methods), seed_numbers(seeds, tune=tune is not None)
    settled = None if tune is None else choose(tune)
    protocol = Protocol(epochs, images, batch_size, learning_rate, views=views, device=_known(device))
    dataset = subset(load_data(data), images)
    known = load_teacher(teacher, weights=weights, dataset=dataset)
    comparison = Comparison(dataset, known, tuple(student or ["edgekd:resnet20"]), protocol)
    if settled is not None:
        comparison = tuned(comparison, settled, out=out, resume=resume, on_row=say_row)
    compare(comparison, chosen, seeds=numbers, out=out, resume=resume or settled is not None, on_row=say_row)
    _report(comparison, chosen, out, costs=costs, int8=int8, page=page, json=json)


def _report(
    comparison: Comparison,
    chosen: dict[str, Recipe],
    out: Path,
    *,
    costs: bool,
    int8: int,
    page: Path | None,
    json: bool,
) -> None:
    from edgekd.benchmarks.costs import measure_costs
    from edgekd.benchmarks.int8 import int8_table, quantise_best
    from edgekd.benchmarks.methods import read_results, read_rows
    from edgekd.benchmarks.methods_page import Extra, summary, table, write_page
    from edgekd.benchmarks.tuning import FILE

    about, rows = read_results(out)
    measured = measure_costs(comparison, chosen, out) if costs else []
    quantised = quantise_best(comparison, rows, count=int8, out=out, on_row=_say_int8) if int8 else []
    if page is not None:
        write_page(page, about, rows, Extra(measured, quantised, read_rows(out / FILE)))
    if json:
        console.print_json({"about": about, "methods": summary(rows), "costs": measured, "int8": quantised})
        return
    console.data().print(table(summary(rows), measured), markup=False)
    if quantised:
        console.data().print(f"\n{int8_table(quantised)}", markup=False)


def seed_numbers(seeds: str, *, tune: bool) -> tuple[int, ...]:
    """The numbers of a list. Raises: InputError: it is none, or has the seed that --tune settles with."""
    from edgekd.benchmarks.tuning import SEED
    from edgekd.errors import InputError

    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError as error:
        raise InputError(f"'{seeds}' is no list of numbers", where="--seeds", fix="like 0,1,2") from error
    if tune and SEED in numbers:
        raise InputError(f"seed {SEED} is what --tune settles the weights with", where="--seeds", fix="like 0,1,2")
    return numbers


def _known(device: str) -> str:
    from edgekd.errors import InputError

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"no device '{device}'", where="--device", fix="known: auto, cpu, cuda")
    return device


def say_row(row: dict[str, Any]) -> None:
    """One training as a line."""
    at = f"{row['student']} {row['method']} seed {row['seed']}"
    if "refused" in row:
        outcome = row["refused"]
    elif "test_top1" in row:
        outcome = f"{100 * row['test_top1']:.2f}% of the test images in {row['cpu_s']} s of CPU"
    else:
        rate, factor = row["learning_rate"], row["factor"]
        outcome = f"rate {rate:g}, weight x {factor:g}: {100 * row['val_top1']:.2f}% of the held-out images"
    console.talk().print(f"{at}: {outcome}", soft_wrap=True)


def _say_int8(row: dict[str, Any]) -> None:
    outcome = row.get("refused") or f"QAT {100 * row['qat_litert']:.2f}%, PTQ {100 * row['ptq_litert']:.2f}% in LiteRT"
    console.talk().print(f"{row['student']} {row['method']} int8: {outcome}", soft_wrap=True)
