"""`edgekd lut`: block tables, measured on this machine, that latency predictions for it are made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.students import StageSpace

Runtime = Annotated[str, typer.Option("--runtime", help="openvino, onnxruntime or tflite.")]
PrecisionName = Annotated[str, typer.Option("--precision", help="fp32 or int8.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one inference.")]
ImageSize = Annotated[int, typer.Option("--image-size", min=8, max=1024, help="Pixels a side of the students' input.")]
Channels = Annotated[int, typer.Option("--channels", min=1, help="Channels of the students' input.")]
Classes = Annotated[int, typer.Option("--classes", min=2, help="Classes.")]
Spaces = Annotated[str, typer.Option("--space", help="Comma-separated spaces of stages whose blocks are measured.")]
Seconds = Annotated[float, typer.Option("--seconds", min=1, max=600, help="For the rounds; compiling comes before.")]
DEFAULT_SPACES = "inverted-residual,residual"

app = typer.Typer(no_args_is_help=True, help="Block tables: what each block takes in one runtime on this machine.")


@app.command("build")
def build(
    runtime: Runtime = "openvino",
    precision: PrecisionName = "int8",
    threads: Threads = 1,
    image_size: ImageSize = 32,
    channels: Channels = 3,
    classes: Classes = 10,
    space: Spaces = DEFAULT_SPACES,
    seconds: Seconds = 60.0,
) -> None:
    """Measure every block of the spaces on this machine, in context, and fit whole networks; a minute or two.

    Example: `edgekd lut build --runtime openvino --precision int8 --image-size 32`
    """
    from edgekd.device_benchmarks.block_build import build_table
    from edgekd.device_benchmarks.block_table import bench_here, save_table
    from edgekd.pipeline.block_tables import tables_folder

    bench = bench_here(runtime, precision, threads=threads)
    spaces = stage_spaces(space, image_size, channels, classes)
    with console.talk().status(f"measuring blocks: {bench.text}"):
        table = build_table(bench, spaces, seconds=seconds)
    path = save_table(merged_with_old(table, tables_folder()), tables_folder())
    fit = table.fit
    console.data().print(
        f"{len(table.parts_ms)} parts in {table.build_s:.0f} s, {table.rounds} rounds; networks left out of the fit: "
        f"measured / predicted {fit.low:.2f} to {fit.high:.2f} (5% to 95% of {fit.networks})\n{path}",
        soft_wrap=True,
    )


@app.command("list")
def listed(json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """The tables of this user, and which of them hold for this machine now."""
    from edgekd.device_benchmarks.block_table import bench_here, read_table
    from edgekd.errors import EdgekdError
    from edgekd.pipeline.block_tables import tables_folder

    rows: list[dict[str, Any]] = []
    for file in sorted(tables_folder().glob("*.json")):
        try:
            table = read_table(file)
            here = bench_here(table.bench.runtime, table.bench.precision, threads=table.bench.threads)
            state = "usable" if here == table.bench else "stale"
            rows.append({"bench": table.bench.text, "parts": len(table.parts_ms), "state": state, "file": str(file)})
        except EdgekdError as error:
            rows.append({"bench": "", "parts": 0, "state": f"damaged: {error}", "file": str(file)})
    if json:
        console.print_json({"tables": rows})
        return
    for row in rows:
        console.data().print(f"{row['state']}  {row['bench']}  {row['parts']} parts  {row['file']}", soft_wrap=True)
    if not rows:
        console.talk().print(f"no block table in {tables_folder()}; make one: edgekd lut build", soft_wrap=True)


def stage_spaces(names: str, image_size: int, channels: int, classes: int) -> list[StageSpace]:
    """Spaces of stages by name. Raises: InputError: no such space, or one without blocks."""
    from edgekd.errors import InputError, did_you_mean
    from edgekd.students.spaces import STAGE_SPACES, Task

    found = []
    for name in (part.strip() for part in names.split(",") if part.strip()):
        if name not in STAGE_SPACES:
            raise InputError(f"no space of stages '{name}'", where="--space", fix=did_you_mean(name, STAGE_SPACES))
        found.append(STAGE_SPACES[name](Task((image_size,), channels, classes)))
    if not found:
        raise InputError("names no space", where="--space", fix=f"known: {', '.join(STAGE_SPACES)}")
    return found


def merged_with_old(table: Any, folder: Path) -> Any:
    """The new table with the parts that an older one of the same bench knows besides (other image sizes)."""
    from edgekd.device_benchmarks.block_table import file_of, read_table
    from edgekd.errors import EdgekdError

    file = file_of(table.bench, folder)
    if not file.is_file():
        return table
    try:
        old = read_table(file).parts_ms
    except EdgekdError:
        return table
    return table.model_copy(update={"parts_ms": {**old, **table.parts_ms}})
