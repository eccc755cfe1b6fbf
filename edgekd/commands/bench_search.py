"""`edgekd bench search`: how long ten thousand predictions, a search, and "nothing fits" take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgekd.commands import console

CANDIDATES = 10_000
BUDGETS = (0.05, 0.25, 0.6)  # searched under: quantiles of random students' latencies


def search(
    profile: Annotated[str, typer.Option("--profile", "-p", help="Whose first runtime prices the students.")],
    space: Annotated[
        str, typer.Option("--space", help="Comma-separated spaces of stages.")
    ] = "inverted-residual,gated,residual,hybrid",
    image_size: Annotated[str, typer.Option("--image-size", help="Comma-separated, pixels a side.")] = "32,224",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Time predictions, searches at three budgets and the answer to an impossible one, in seconds of CPU time.

    Example: `edgekd bench search --profile jetson-nano`
    """
    from edgekd.commands.lut import stage_spaces
    from edgekd.latency import ProfileCost
    from edgekd.profile import load_profile

    device = load_profile(profile)
    runtime, precision = device.primary, device.quantisation.preferred_precision
    rows = []
    for size in (int(text) for text in image_size.split(",")):
        for one in stage_spaces(space, size, 3, 100):
            cost = ProfileCost(device, unit=runtime.unit, precision=precision, runtime=runtime.target)
            rows.append({"space": one.name, "image_size": size, "students": one.size, **_timed(one, cost)})
    if json:
        console.print_json({"profile": device.name, "provenance": cost.provenance, "rows": rows})
        return
    out = console.data()
    out.print("| space | px | students | 10,000 predictions, s | slowest of 3 searches, s | nothing fits, s |")
    out.print("|---|---|---|---|---|---|")
    for row in rows:
        seconds = " | ".join(f"{row[key]:.2f}" for key in ("predict_s", "search_s", "infeasible_s"))
        out.print(f"| {row['space']} | {row['image_size']} | {row['students']:.3g} | {seconds} |", soft_wrap=True)
    out.print(f"{device.name}: {cost.provenance}", soft_wrap=True)


def _timed(space: Any, cost: Any) -> dict[str, float]:
    """Seconds of CPU time, and the budgets in ms."""
    import random
    import time

    import numpy as np

    from edgekd.students import Limits, Prices
    from edgekd.students import search as find

    rng = random.Random(0)
    numbers = [rng.randrange(len(space.bodies)) for _ in range(CANDIDATES)]
    genomes = [(n, tuple(rng.randrange(len(some)) for some in space.bodies[n].choices)) for n in numbers]
    specs = [space.spec(genome) for genome in genomes]
    start = time.process_time()
    prices = Prices(cost)
    p90_ms = [prices.of(spec).latency_p90_ms for spec in specs]
    predict_s, search_s = time.process_time() - start, []
    budgets = [float(ms) for ms in np.quantile(p90_ms, BUDGETS)]
    for budget_ms in [*budgets, min(p90_ms) / 100]:
        limits = Limits(latency_p90_ms=budget_ms, peak_memory_mib=2**20, artifact_size_mib=2**20, macs=10**12)
        start = time.process_time()
        find(space, cost=Prices(cost), limits=limits)
        search_s.append(time.process_time() - start)
    return {"predict_s": predict_s, "search_s": max(search_s[:-1]), "infeasible_s": search_s[-1]}
