"""`edgekd bench predictor`: what the latency predictor makes of networks and devices that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.commands import console
from edgekd.errors import InputError


def predictor(
    data: Annotated[Path, typer.Option(help="Published latencies: a folder with visible_map.csv.gz, or such a file.")],
    test: Annotated[
        Path | None, typer.Option(help="Another such file: learn from --data, judge on this instead.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="A .npz file that keeps the traced networks (the first run takes ~15 min).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the tables into this Markdown page, between its marks.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Learn from all rows and write the calibration table here.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which ten networks of a new device are shown.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Cross-validate by whole family and by whole device, beside two simple fits to the same rows.

    Example: `edgekd bench predictor --data latencies/ --cache traced.npz --out docs/benchmarks/predictor.md`
    """
    from edgekd.latency import benchmark
    from edgekd.latency.corpus import known_features
    from edgekd.latency.learn import judge_devices, judge_families, judge_others
    from edgekd.latency.published import read_rows, tables_of
    from edgekd.latency.table import save_table, table_of

    if save is not None and test is not None:
        raise InputError("--save needs the cross-validation, for its intervals", fix="leave --test out")
    talk = console.talk().print
    rows = read_rows(data)
    others = read_rows(test) if test is not None else []
    known = known_features([*rows, *others], cache, talk)
    tables = tables_of(rows, known)
    if test is not None:
        judged = {f"{test.name}: not learned": judge_others(tables, tables_of(others, known), seed=seed)}
    else:
        judged = {
            "Unseen families of known devices": judge_families(tables, talk),
            "Unseen devices with ten measured networks": judge_devices(tables, talk, seed=seed),
        }
    found = [line for scope, held_out in judged.items() for line in benchmark.lines(scope, held_out)]
    if save is not None:
        save_table(table_of(tables, *judged.values()), save)
        talk(f"calibration table: {save}")
    if out is not None:
        write_page(out, benchmark.markdown(found))
    if json:
        console.print_json({"rows": len(rows), "networks": len(known), "lines": benchmark.document(found)})
    else:
        console.data().print(benchmark.markdown(found), soft_wrap=True, markup=False)


def write_page(path: Path, tables: str) -> None:
    """Put the tables between the marks of a page, or make the page."""
    from edgekd.files import write_text

    begin, end = "<!-- bench predictor begin -->", "<!-- bench predictor end -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# Latency predictor\n\n{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    write_text(path, f"{head}{begin}\n{tables}{end}{tail}")
