"""Latency, memory and load time as measured: contenders side by side, statistics that admit what they do not know."""

from edgekd.device_benchmarks.contender import (
    Contender,
    ExportedArtifact,
    Replay,
    StudentModule,
    TeacherModule,
    ZooModule,
    of_artifact,
)
from edgekd.device_benchmarks.host import HostState, host_state
from edgekd.device_benchmarks.measure import measure_all
from edgekd.device_benchmarks.measurement import Measurement, MeasurementSet, PairedRatio
from edgekd.device_benchmarks.summary import compare

__all__ = [
    "Contender",
    "ExportedArtifact",
    "HostState",
    "Measurement",
    "MeasurementSet",
    "PairedRatio",
    "Replay",
    "StudentModule",
    "TeacherModule",
    "ZooModule",
    "compare",
    "host_state",
    "measure_all",
    "of_artifact",
]
