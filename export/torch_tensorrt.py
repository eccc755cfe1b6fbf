"""What full TensorRT says of a program where it is installed and a GPU is present: compiled by torch-tensorrt and run.

`import torch_tensorrt` can raise a bare Exception, or crash without a driver, so it is tried in a process of its own:
`python -m edgekd.export.torch_tensorrt PROGRAM.pt2 PRECISION REPORT.json`. It gives one line of evidence for the
kit, or the reason for none. Written from torch-tensorrt's documentation: it was never run on a machine that has both.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgekd.export.process import last_lines, run_watched
from edgekd.files import read_json, write_json

PROBE_COMMAND = (sys.executable, "-P", "-m", "edgekd.export.torch_tensorrt")
TIMEOUT_S = 240.0
MEMORY_GIB = 16.0
RUNS = 50


def evidence(program: Path, precision: str, *, command: tuple[str, ...] = PROBE_COMMAND) -> str:
    """One line: how the program ran under torch-tensorrt on this host's GPU, or why it did not."""
    if precision == "int8":
        return "torch-tensorrt: not tried, it reads no quantised programs of torch.export"
    if command is PROBE_COMMAND and find_spec("torch_tensorrt") is None:
        return "torch-tensorrt: not installed"
    with tempfile.TemporaryDirectory(prefix="edgekd-torch-tensorrt-") as folder:
        result, log = Path(folder) / "report.json", Path(folder) / "log"
        end = run_watched(
            [*command, str(program), precision, str(result)],
            log=log,
            environment=os.environ,
            timeout_s=TIMEOUT_S,
            memory_limit_gib=MEMORY_GIB,
        )
        if end.ending == "exit" and end.code == 0 and result.is_file():
            return f"torch-tensorrt: {read_json(result)['line']}"
        said = "".join(last_lines(log)[-1:]) or "it printed nothing"
        return f"torch-tensorrt: the trial {end.describe()}; {said}"


def trial(program: Path, precision: str) -> str:
    """Compile, compare and time the program in this process, or say what is missing."""
    import torch

    if not torch.cuda.is_available():
        return "installed, but there is no CUDA device"
    try:
        import torch_tensorrt
    except Exception as error:  # it raises bare Exception without a driver or without TensorRT's libraries
        return f"installed, but cannot be imported ({str(error).splitlines()[0][:160]})"
    from edgekd.quant import image_shape, load_program

    loaded = load_program(program)
    image = torch.randn(image_shape(loaded), generator=torch.Generator().manual_seed(0)).cuda()
    reference = loaded.module(check_guards=False).cuda()(image)
    kinds = {torch.float32} | ({torch.float16} if precision == "fp16" else set())
    compiled = torch_tensorrt.dynamo.compile(
        loaded, arg_inputs=(image,), enabled_precisions=kinds, min_block_size=1, truncate_double=True
    )
    engines = sum("_run_on_acc" in name for name, _ in compiled.named_children())
    difference = _snr_db(_first(reference), _first(compiled(image)))
    name = torch.cuda.get_device_name()
    version = torch_tensorrt.__version__
    timing = f"p50 {_p50_ms(compiled, image):.3f} ms, {difference:.1f} dB against torch"
    return f"{version} on {name}: {engines} TensorRT engines, {timing}"


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


def _snr_db(reference: Any, found: Any) -> float:
    import torch

    noise = ((reference - found.float()) ** 2).sum().clamp_min(1e-30)
    return float(10 * torch.log10((reference**2).sum() / noise))


def _p50_ms(module: Any, image: Any) -> float:
    import torch

    times_ms: list[float] = []
    for _ in range(RUNS):
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        module(image)
        end.record()
        torch.cuda.synchronize()
        times_ms.append(float(start.elapsed_time(end)))
    return sorted(times_ms)[RUNS // 2]


if __name__ == "__main__":
    write_json(Path(sys.argv[3]), {"line": trial(Path(sys.argv[1]), sys.argv[2])})
    sys.stdout.flush()
    os._exit(0)  # CUDA and TensorRT may crash while they are torn down; the report is written
