"""`edgekd bench`: what edgekd costs, what its methods are worth, how right its predictions and times are.

To add a benchmark: one module `bench_NAME.py` beside this one, and a line below.
"""

from __future__ import annotations

import typer

from edgekd.commands import (
    bench_loop,
    bench_lut,
    bench_methods,
    bench_predictor,
    bench_rival,
    bench_search,
    bench_timing,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Measure edgekd itself: loop, methods, predictions, times.\n\nExample: `edgekd bench loop --json`",
)
app.command("loop")(bench_loop.loop)
app.command("methods")(bench_methods.methods)
app.command("lut")(bench_lut.lut)
app.command("predictor")(bench_predictor.predictor)
app.command("rival")(bench_rival.rival)
app.command("search")(bench_search.search)
app.command("timing")(bench_timing.timing)
