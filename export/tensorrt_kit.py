"""The shell scripts of a Jetson build kit: trtexec's options by TensorRT version.

Sources: NVIDIA's guide for migrating trtexec from 8.x to 10.x (--workspace became --memPoolSize, in MiB; available from
8.4), the 11.x notes (--fp16, --int8 and --best are gone: strongly typed only), scripts in use with 8.6.1
(--skipInference in the place of --buildOnly).
"""

from __future__ import annotations

from pathlib import Path

from edgekd.export.request import ExportRequest
from edgekd.files import write_text
from edgekd.targets.tensorrt import Version

MEMORY_POOLS: Version = (8, 4)
SKIP_INFERENCE: Version = (8, 6)
STORED_INT8_WEIGHTS: Version = (10, 0)
STRONGLY_TYPED_ONLY: Version = (11, 0)
WORKSPACE_MIB_MAX = 1024

HEAD = """#!/bin/sh
# {what}, {precision}, TensorRT {version}. TRTEXEC may name another trtexec.
set -eu
cd "$(dirname "$0")"
TRTEXEC="${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}"
[ -x "$TRTEXEC" ] || TRTEXEC="$(command -v trtexec)" || {{ echo "trtexec not found: set TRTEXEC" >&2; exit 2; }}
"""


def write_scripts(folder: Path, request: ExportRequest, version: Version) -> None:
    """`build.sh` and `bench.sh`, executable, for the device's own trtexec."""
    named = request.runtime.version if request.runtime else ".".join(map(str, version))
    scripts = {
        "build.sh": ("Build the engine on the device it will run on", build_options(request, version)),
        "bench.sh": ("Time the engine; writes times.json", bench_options()),
    }
    for name, (what, options) in scripts.items():
        head = HEAD.format(what=what, precision=request.precision, version=named)
        command = " \\\n  ".join(['exec "$TRTEXEC"', *options])
        write_text(folder / name, f"{head}{command}\n").chmod(0o755)


def build_options(request: ExportRequest, version: Version) -> list[str]:
    """trtexec's options that build `model.plan` from `model.onnx`."""
    workspace_mib = WORKSPACE_MIB_MAX
    if request.profile is not None:
        workspace_mib = min(workspace_mib, request.profile.ram_mib // 4)
    return [
        "--onnx=model.onnx",
        *precision_options(request.precision, version),
        f"--memPoolSize=workspace:{workspace_mib}" if version >= MEMORY_POOLS else f"--workspace={workspace_mib}",
        "--timingCacheFile=timing.cache",
        "--saveEngine=model.plan",
        "--skipInference" if version >= SKIP_INFERENCE else "--buildOnly",
    ]


def precision_options(precision: str, version: Version) -> list[str]:
    """Which kernels the builder may take; never --best, which takes int8 for layers that were not trained for it.

    >>> precision_options("int8", (8, 5)), precision_options("fp16", (11, 0))
    (['--int8', '--fp16'], [])
    """
    if version >= STRONGLY_TYPED_ONLY:
        return []
    return {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[precision]


def bench_options() -> list[str]:
    """trtexec's options that time `model.plan`; times.json includes the warm-up rows, readers drop them."""
    return [
        "--loadEngine=model.plan",
        "--warmUp=500",
        "--duration=10",
        "--iterations=200",
        "--avgRuns=100",
        "--percentile=90",
        "--useCudaGraph",
        "--useSpinWait",
        "--exportTimes=times.json",
    ]
