"""`edgekd bench lut`: how right the predictions of block tables are, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.commands import console
from edgekd.commands.lut import DEFAULT_SPACES, Channels, Classes, ImageSize, Seconds, Spaces, Threads, stage_spaces

if TYPE_CHECKING:
    from edgekd.device_benchmarks.block_bench import Result


def lut(
    runtime: Annotated[str, typer.Option("--runtime", help="Comma-separated.")] = "openvino,onnxruntime,tflite",
    precision: Annotated[str, typer.Option("--precision", help="Comma-separated.")] = "fp32,int8",
    threads: Threads = 1,
    image_size: ImageSize = 32,
    channels: Channels = 3,
    classes: Classes = 10,
    space: Spaces = DEFAULT_SPACES,
    seconds: Seconds = 30.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to keep each result in (JSON) and write lut.md.")
    ] = None,
) -> None:
    """Build block tables here and predict 27 unseen networks of three families, then time them. Quiet machine, please.

    Results in --out are kept by runtime and precision, so that the page can be made in several sittings.
    """
    from edgekd.device_benchmarks.block_bench import Result, bench_table, promises_text, table_text
    from edgekd.device_benchmarks.block_table import bench_here

    results: dict[str, Result] = {}
    if out is not None and out.is_dir():
        kept = [Result.model_validate_json(file.read_text()) for file in sorted(out.glob("lut-*.json"))]
        results = {f"{result.bench.runtime}-{result.bench.precision}": result for result in kept}
    spaces = stage_spaces(space, image_size, channels, classes)
    benches = [bench_here(r, p, threads=threads) for r in runtime.split(",") for p in precision.split(",")]
    for bench in benches:
        with console.talk().status(f"building and testing a table: {bench.text}"):
            _, results[f"{bench.runtime}-{bench.precision}"] = bench_table(bench, spaces, seconds=seconds)
        if out is not None:
            _keep(out, results)
    for text in (table_text(list(results.values())), promises_text(list(results.values()))):
        console.data().print(text, soft_wrap=True, markup=False)


def _keep(out: Path, results: dict[str, Result]) -> None:
    from edgekd.device_benchmarks.block_bench import page
    from edgekd.files import write_json, write_text

    out.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        write_json(out / f"lut-{name}.json", result.model_dump(mode="json"))
    write_text(out / "lut.md", page(list(results.values())))
