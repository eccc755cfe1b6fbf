#!/usr/bin/env python3
"""Runs on the device: one model in its own runtime, one JSON command a line on stdin, one JSON answer a line on stdout.

What it is: an importer, a loader, two clocks around one call, and a reader of the device's state. What it is not: a
judge; order, pairing and statistics are the host's. It is pushed with `device_state` beside it and nothing else of
edgekd, imports only the standard library, and works with Python 3.6 (JetPack 4); numpy comes with the runtime there.
Commands: state, prepare, load, warm_up, block, outputs, finish. The end of its input ends it, even in a block.
"""
# ruff: noqa: UP006, UP035, UP036, UP045, B905

import base64
import gc
import hashlib
import importlib
import json
import os
import queue
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

try:
    import device_state  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # on this host both are part of edgekd
    from edgekd.device_benchmarks import device_state

RUNTIMES = {
    "tflite": (
        "LiteRT",
        ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter"),
    ),
    "onnxruntime": ("ONNX Runtime", ("onnxruntime",)),
    "openvino": ("OpenVINO", ("openvino",)),
}
INSTALL = {"tflite": "ai-edge-litert (or tflite-runtime)", "onnxruntime": "onnxruntime", "openvino": "openvino"}
CONVERSION_RUNS = 30
STABLE_WITHIN = 0.02

Invoke = Callable[[Any], Any]
Samples = List[int]

if sys.version_info >= (3, 7):
    wall_ns, cpu_ns = time.perf_counter_ns, time.process_time_ns
else:

    def wall_ns() -> int:
        return int(time.perf_counter() * 1e9)

    def cpu_ns() -> int:
        return int(time.process_time() * 1e9)


class Refused(Exception):
    """What the user can mend: a runtime that is not there, a model that it does not take."""


class Model:
    """A loaded artifact: `feed` and `read` convert, `invoke` is all that is timed."""

    def __init__(self, invoke: Invoke, inputs: Dict[str, Any], outputs: List[Dict[str, Any]]) -> None:
        self.invoke, self.input, self.outputs = invoke, inputs, outputs

    def feed(self, image: Any) -> Any:
        """float32 [1, C, H, W] -> the artifact's layout, dtype and integer grid."""
        import numpy as np

        spec, values = self.input, image
        if spec["layout"] == "NHWC":
            values = values.transpose(0, 2, 3, 1)
        dtype = np.dtype(spec["dtype"])
        if dtype.kind in "iu" and spec.get("scale"):
            values = np.round(values / np.float32(spec["scale"])) + (spec.get("zero_point") or 0)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.clip(values, limits.min, limits.max)
        return np.ascontiguousarray(values.astype(dtype))

    def read(self, raw: Sequence[Any]) -> List[Any]:
        """Raw outputs -> float32 arrays in their own shapes."""
        import numpy as np

        found = []
        for values, spec in zip(raw, self.outputs):
            real = np.asarray(values).astype(np.float32)
            if np.dtype(spec["dtype"]).kind in "iu" and spec.get("scale"):
                real = (real - np.float32(spec.get("zero_point") or 0)) * np.float32(spec["scale"])
            found.append(real)
        return found


def open_model(model: Dict[str, Any], threads: int) -> Model:
    """Raises: Refused: no such runtime here, or it does not take the file."""
    target = model["target"]
    try:
        return {"tflite": open_tflite, "onnxruntime": open_onnx, "openvino": open_openvino}[target](model, threads)
    except ImportError as error:
        raise absent(target, error) from error
    except (ValueError, RuntimeError) as error:
        raise Refused(f"{RUNTIMES[target][0]} cannot load it ({first_line(error)})") from error


def absent(target: str, error: ImportError) -> Refused:
    """A runtime that is not there, with the cure."""
    cure = f"pip install {INSTALL[target]} there, or name the Python that has it in the devices file"
    return Refused(f"{RUNTIMES[target][0]} is not on the device ({first_line(error)}); {cure}")


def runtime_module(target: str) -> Any:
    """The first of the target's packages that imports. Raises: ImportError: none does.

    OpenVINO's telemetry, which it can do without, would start a process beside what is timed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    reasons = []
    for name in RUNTIMES[target][1]:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise ImportError("; ".join(reasons)[:300])


def open_tflite(model: Dict[str, Any], threads: int) -> Model:
    interpreter = runtime_module("tflite").Interpreter(model_path=model["path"], num_threads=threads)
    interpreter.allocate_tensors()
    entry, results = interpreter.get_input_details()[0], interpreter.get_output_details()
    wanted = [results[k] for k in positions(model["outputs"], [str(result["name"]) for result in results])]
    indices = [result["index"] for result in wanted]

    written = []  # type: List[Any]

    def invoke(fed: Any) -> Any:
        if not written or written[0] is not fed:  # no operator writes over it, and the runtime's own tools fill it once
            interpreter.set_tensor(entry["index"], fed)
            written[:] = [fed]
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in indices]

    specs = [dict(spec, **_grid(result)) for spec, result in zip(model["outputs"], wanted)]
    image = model["inputs"][0]
    return Model(invoke, image if image.get("holds") == "pixels" else dict(image, **_grid(entry)), specs)


def positions(declared: Sequence[Dict[str, Any]], names: Sequence[str]) -> List[int]:
    """Where in the runtime's outputs each of the artifact's is: by name, else by position. Raises: Refused."""
    wanted = [spec["name"] for spec in declared]
    if set(wanted) <= set(names):
        return [list(names).index(name) for name in wanted]
    if len(wanted) != len(names):
        raise Refused(f"it has {len(names)} outputs, not the {len(wanted)} declared")
    return list(range(len(wanted)))


def _grid(details: Dict[str, Any]) -> Dict[str, Any]:
    import numpy as np

    scale, zero_point = details["quantization"]
    integer = np.dtype(details["dtype"]).kind in "iu" and bool(scale)
    return {
        "dtype": np.dtype(details["dtype"]).name,
        "scale": float(scale) if integer else None,
        "zero_point": int(zero_point) if integer else None,
    }


def open_onnx(model: Dict[str, Any], threads: int) -> Model:
    onnxruntime = runtime_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model["path"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    outputs = [names[k] for k in positions(model["outputs"], names)]
    return Model(lambda fed: session.run(outputs, {name: fed}), model["inputs"][0], model["outputs"])


def open_openvino(model: Dict[str, Any], threads: int) -> Model:
    # Without the last hint a float model runs in bf16 where the CPU has it, and its outputs are others.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = runtime_module("openvino").Core().compile_model(model["path"], "CPU", settings)
    request = compiled.create_infer_request()
    names = [next(iter(sorted(output.get_names())), "") for output in compiled.outputs]
    ports = [compiled.outputs[k] for k in positions(model["outputs"], names)]

    given = []  # type: List[Any]

    def invoke(fed: Any) -> Any:
        inputs = None if given and given[0] is fed else [fed]
        answer = request.infer(inputs, share_inputs=True, share_outputs=True)
        given[:] = [fed]
        return [answer[port] for port in ports]

    return Model(invoke, model["inputs"][0], model["outputs"])


def timed(call: Invoke, argument: Any) -> Tuple[int, int]:
    """Wall time and CPU time of the process in ns: some runtimes work on other threads than the calling one."""
    cpu, wall = cpu_ns(), wall_ns()
    call(argument)
    return wall_ns() - wall, cpu_ns() - cpu


def median(samples: Sequence[float]) -> float:
    """The median of at least one sample."""
    ordered, middle = sorted(samples), len(samples) // 2
    return float(ordered[middle]) if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def is_stable(samples: Sequence[int]) -> bool:
    """Whether the median of the last ten is within 2% of the ten before."""
    if len(samples) < 20:
        return False
    before, last = median(samples[-20:-10]), median(samples[-10:])
    return abs(last - before) <= STABLE_WITHIN * before


def run_warm_up(invoke: Invoke, fed: Any, min_runs: int, min_s: float, cap_s: float) -> Samples:
    """Wall times until they are stable, or until the cap."""
    samples: Samples = []
    start = time.perf_counter()
    while True:
        spent_s = time.perf_counter() - start
        if spent_s >= cap_s or (len(samples) >= min_runs and spent_s >= min_s and is_stable(samples)):
            return samples
        samples.append(timed(invoke, fed)[0])


def run_block(invoke: Invoke, fed: Any, runs: int, lead_in: int) -> Dict[str, Any]:
    """`lead_in` runs that are not counted, then `runs` that are. The garbage collector waits meanwhile."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(lead_in):
            invoke(fed)
        pairs = [timed(invoke, fed) for _ in range(runs)]
        clock_mhz = device_state.clock_mhz()
    finally:
        gc.enable()
    return {"wall_ns": [wall for wall, _ in pairs], "cpu_ns": [cpu for _, cpu in pairs], "clock_mhz": clock_mhz}


class Bench:
    """One model and its input; one method per command, each taking and giving plain JSON values."""

    def __init__(self) -> None:
        self.model: Dict[str, Any] = {}
        self.threads = 1
        self.baseline_kib: Optional[int] = None
        self.opened: Optional[Model] = None

    def state(self) -> Dict[str, Any]:
        """Identity and state of the device."""
        return dict(device_state.state())

    def prepare(self, model: Dict[str, Any], threads: int, affinity: Sequence[int]) -> Dict[str, Any]:
        """Check that the files arrived whole, pin, import the runtime, note the memory that it takes before a model."""
        self.model, self.threads = model, threads
        for path, wanted in dict(model["files"]).items():
            if device_state.digest(path) != wanted:
                raise Refused(f"{os.path.basename(path)} did not arrive whole")
        if affinity and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, affinity)
        start = wall_ns()
        try:
            runtime_module(model["target"])
        except ImportError as error:
            raise absent(model["target"], error) from error
        import_ms = (wall_ns() - start) / 1e6
        self.baseline_kib = device_state.fields("/proc/self/status").get("VmRSS")
        return {"import_ms": import_ms, "pid": os.getpid()}

    def load(self) -> Dict[str, Any]:
        """Load (and compile, where the runtime does) and run once, both timed."""
        import numpy as np

        start = wall_ns()
        self.opened = open_model(self.model, self.threads)
        load_ms = (wall_ns() - start) / 1e6
        raw = np.fromfile(self.model["image"], dtype=np.float32)
        self.image = raw.reshape(self.model["input_shape"])
        self.fed = self.opened.feed(self.image)
        start = wall_ns()
        self.opened.invoke(self.fed)
        first_inference_ms = (wall_ns() - start) / 1e6
        name = INSTALL[self.model["target"]].partition(" ")[0]
        installed = device_state.versions((name, "tflite-runtime", "onnxruntime-gpu", "tensorflow"))
        return {
            "load_ms": load_ms,
            "first_inference_ms": first_inference_ms,
            "input_shape": list(self.model["input_shape"]),
            "input_sha256": hashlib.sha256(self.image.tobytes()).hexdigest(),
            "runtime": self.model["target"],
            "runtime_version": installed.get(name) or next(iter(installed.values()), None),
            "artifact_sha256": self.model["sha256"],
            "executed": "runtime",
            "note": "",
        }

    def warm_up(self, min_runs: int, min_s: float, cap_s: float) -> Dict[str, Any]:
        """Run until stable; these samples stay apart."""
        samples = run_warm_up(self._loaded().invoke, self.fed, min_runs, min_s, cap_s)
        return {"wall_ns": samples, "converged": is_stable(samples), "recent_ns": median(samples[-10:] or [1])}

    def block(self, runs: int, lead_in: int) -> Dict[str, Any]:
        """Counted runs, every sample kept."""
        return run_block(self._loaded().invoke, self.fed, runs, lead_in)

    def outputs(self) -> Dict[str, Any]:
        """Every output for the input that is timed, so that the host can compare them with its own."""
        opened = self._loaded()
        found = opened.read(opened.invoke(self.fed))
        rows = [
            {"name": spec["name"], "shape": list(values.shape), "base64": base64.b64encode(values.tobytes()).decode()}
            for spec, values in zip(opened.outputs, found)
        ]
        return {"outputs": rows}

    def finish(self) -> Dict[str, Any]:
        """Memory at its peak and now, and what converting input and output costs, after all timing is done."""
        memory, pss = (
            device_state.fields("/proc/self/status"),
            device_state.fields("/proc/self/smaps_rollup").get("Pss"),
        )
        peak, base = memory.get("VmHWM"), self.baseline_kib
        found = {
            "peak_rss_mib": None if peak is None else peak / 1024.0,
            "model_rss_mib": None if peak is None or base is None else max(0, peak - base) / 1024.0,
            "pss_mib": None if pss is None else pss / 1024.0,
        }  # type: Dict[str, Any]
        if self.opened is not None:
            raw = self.opened.invoke(self.fed)
            feed = [timed(self.opened.feed, self.image)[0] for _ in range(CONVERSION_RUNS)]
            read = [timed(self.opened.read, raw)[0] for _ in range(CONVERSION_RUNS)]
            found.update(feed_p50_ms=median(feed) / 1e6, read_p50_ms=median(read) / 1e6)
        return found

    def _loaded(self) -> Model:
        if self.opened is None:
            raise Refused("no model is loaded")
        return self.opened


def first_line(error: Exception) -> str:
    """An exception's text on one line, not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


COMMANDS = ("state", "prepare", "load", "warm_up", "block", "outputs", "finish")


def serve(commands: "queue.Queue[str]", answer: Callable[[Dict[str, Any]], None], idle: threading.Event) -> None:
    """Answer every command; an error is an answer too. idle: set while none is being worked on."""
    bench = Bench()
    while True:
        idle.set()
        command = json.loads(commands.get())
        idle.clear()
        name = command.pop("do")
        try:
            answer(getattr(bench, name)(**command) if name in COMMANDS else {"error": f"unknown command {name!r}"})
        except Refused as error:
            answer({"error": str(error), "input": True})
        except Exception as error:  # a vendor library may raise anything; the host names the model
            answer({"error": f"{type(error).__name__}: {first_line(error)}"})


def listen(commands: "queue.Queue[str]", stream: int) -> None:
    """Read a file descriptor until it ends; then nobody wants an answer any more, and this process must not stay.

    An error is an end too: sshd's socket is reset, not closed, when an answer lay in it unread.
    """
    try:
        with os.fdopen(stream) as lines:
            for line in lines:
                commands.put(line)
    finally:
        os._exit(0)


def main() -> None:
    """Keep stdout for the answers (vendor libraries print to it) and serve stdin; `state` tells that and ends.

    Both ends are copies: a library that forks closes `sys.stdin` in its child, and would wait there for our reader.
    """
    if sys.argv[1:] == ["state"]:
        sys.stdout.write(json.dumps(device_state.state()) + "\n")
        return
    asked, answers, idle = os.dup(0), os.dup(1), threading.Event()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(target=listen, args=(commands, asked), daemon=True).start()
    threading.Thread(target=device_state.end_with_the_link, args=(answers, idle), daemon=True).start()
    serve(commands, lambda document: device_state.say(answers, json.dumps(document) + "\n"), idle)


if __name__ == "__main__":
    main()
