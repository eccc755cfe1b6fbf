"""Cost of a graph on a profile: what a model computes and moves, and the time, memory and size that makes.

Everything here is a prediction from shapes and a profile's numbers; `edgekd.device_benchmarks` measures.
"""

from edgekd.latency.cost import GraphCost, OpCost
from edgekd.latency.device_cost import ProfileCost
from edgekd.latency.estimate import Estimate, estimate_latency, estimate_memory_mib, estimate_size_mib
from edgekd.latency.features import features
from edgekd.latency.predict import Predictor
from edgekd.latency.trace import cost_of_file, trace_cost

__all__ = [
    "Estimate",
    "GraphCost",
    "OpCost",
    "Predictor",
    "ProfileCost",
    "cost_of_file",
    "estimate_latency",
    "estimate_memory_mib",
    "estimate_size_mib",
    "features",
    "trace_cost",
]
