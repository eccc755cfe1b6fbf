"""How the candidates of a run are priced: a block table of the attached device, else the calibrated predictor.

Without rows to rest on the predictor answers with the profile's roofline. Whichever it is says so in its provenance.
"""

from __future__ import annotations

import numpy as np

from edgekd.device_benchmarks.block_build import holds, parts_of_spaces
from edgekd.device_benchmarks.block_table import BlockTable
from edgekd.latency import Estimate, GraphCost, Predictor, ProfileCost, features
from edgekd.pipeline.block_tables import price_from, require_covered, table_for
from edgekd.pipeline.context import Context, Inputs
from edgekd.pipeline.plan import Plan
from edgekd.pipeline.rows import is_profile_device
from edgekd.pipeline.spaces import stage_spaces
from edgekd.students import AnySpec, Prices, StudentSpec, parts_of, work_of
from edgekd.students.costs import Totals, kernels_price


class Pricing:
    """Prices of students made of stages, and of any traced graph, on one unit of a profile.

    stages: from the block table where there is one. graphs: calibrated; with a table, moved by the whole networks that
    were measured for it.
    """

    def __init__(self, cost: ProfileCost, table: BlockTable | None = None, *, watts: float | None = None) -> None:
        self.table = table
        self.cost = cost if table is None else _at_home(cost, table)
        self.graphs = Prices(self.cost, watts=watts)
        self.stages = self.graphs
        if table is not None:
            self.stages = Prices(
                self.cost, price_from(table, kernels_price(self.cost)), tariffs=table.tariffs, watts=watts
            )

    def high(self, *, of_stages: bool) -> float:
        """The factor that measured over predicted rarely exceeds; at least 1."""
        if self.table is not None and of_stages:
            return max(1.0, self.table.fit.high)
        return max(1.0, self.cost.high)

    def totals(self, graph: GraphCost, image_size: int) -> Totals:
        """A traced graph with an input of so many px in the terms of the search.

        Raises: InputError: an operator whose cost nobody stated.
        """
        return Totals(
            milliseconds=self.cost.graph_ms(graph),
            macs=graph.macs,
            activation_elements=sum(op.read_elements + op.write_elements for op in graph.ops),
            weight_elements=graph.weight_elements,
            kernels=len(graph.ops),
            gates=0,
            peak_elements=graph.peak_activation_elements,
            image_size=image_size,
        )

    def estimate(self, spec: AnySpec | None, graph: GraphCost) -> Estimate:
        """Of a student, or of a network without a spec: the search's own figure and its interval."""
        if self.table is None or not isinstance(spec, StudentSpec):
            return self.cost.estimate(graph)
        p50_ms, fit = self.stages.of(spec).latency_p50_ms, self.table.fit
        unknown = sum(not self.table.knows(part) for part in parts_of(spec))
        said = f"; {unknown} parts that it lacks scaled from {self.cost.provenance}" if unknown else ""
        low, high = fit.low * p50_ms, fit.high * p50_ms
        return Estimate(p50_ms=p50_ms, lo_ms=low, hi_ms=high, provenance=self.table.provenance + said)

    @property
    def provenance(self) -> str:
        """What the search's latencies rest on."""
        return self.cost.provenance if self.table is None else self.table.provenance


def pricing_for(inputs: Inputs | Context, plan: Plan) -> Pricing:
    """What the profile's first runtime charges at the plan's precision; on an attached device, with the threads that it
    is measured with.

    By a block table only where it can hold all of the plan's spaces: candidates are compared by one measure. Raises:
    InputError: the block table is stale or damaged, or was built for other images than those of the spaces.
    """
    profile, runtime = inputs.profile, inputs.profile.primary
    elsewhere = inputs.on is not None
    table = table_for(profile, plan.precision, threads=inputs.threads)
    spaces = stage_spaces(inputs, plan)
    if elsewhere or not all(map(holds, spaces.values())):  # a table is of this host
        table = None
    if table is not None:
        for size in inputs.image_sizes:  # each: sizes are compared by one measure
            require_covered(table, parts_of_spaces(stage_spaces(inputs, plan, size).values()), list(spaces))
    cost = ProfileCost(
        profile,
        unit=runtime.unit,
        precision=plan.precision,
        runtime=runtime.target,
        threads=inputs.threads if elsewhere or is_profile_device(profile.model_dump(mode="json")) else None,
    )
    watts = profile.power.limit_w if profile.power is not None else None
    return Pricing(cost, table, watts=watts)


def _at_home(cost: ProfileCost, table: BlockTable) -> ProfileCost:
    """The cost model with the spread that the table measured, moved by the networks that it was fitted to.

    A roofline cannot be moved: it keeps its predictor.
    """
    movable = cost.predictor.rest is not None and bool(table.networks)
    home = cost.resting_on(adapted(cost.predictor, table) if movable else cost.predictor)
    home.p90_over_p50 = table.fit.p90_over_p50
    return home


def adapted(predictor: Predictor, table: BlockTable) -> Predictor:
    """A predictor moved by the whole networks of a block table."""
    rows = np.array([features(work_of(parts_of(network.spec))) for network in table.networks])
    return predictor.adapted(rows, [network.p50_ms for network in table.networks])
