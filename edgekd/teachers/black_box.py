"""Exported files as teachers: ONNX, LiteRT, OpenVINO IR and torch programs. Only their logits can be had.

A file whose outputs are probabilities (a softmax was exported with it) still teaches: log p equals the logits up to a
constant per sample, which no softmax-based loss can see.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.errors import EdgekdError, InputError, MissingExtraError

SUFFIXES = (".onnx", ".tflite", ".xml", ".pt2")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Opened:
    """A loaded file. run: float32 in the file's own layout -> (batch, classes); shape: its input, None where free."""

    run: Callable[[Floats], NDArray[Any]]
    shape: tuple[int | None, ...]
    smallest_probability: float = 1e-7


class BlackBox(nn.Module):
    """An exported file as a module: float32 (batch, channels, size, size) -> float32 logits (batch, classes).

    A file with a fixed batch is called as often as it takes. It runs on the CPU; results go back to the input's device.
    """

    def __init__(self, opened: Opened, *, channels_last: bool) -> None:
        super().__init__()
        self._opened, self._channels_last = opened, channels_last
        self.probabilities = False

    def train(self, mode: bool = True) -> BlackBox:
        """No effect: the file has no training mode."""
        self.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (log-probabilities where the file ends in a softmax)."""
        array = images.detach().float().cpu().numpy()
        if self._channels_last:
            array = array.transpose(0, 2, 3, 1)
        outputs = torch.from_numpy(self._run(np.ascontiguousarray(array))).to(images.device)
        if not self.probabilities:
            return outputs
        return outputs.clamp_min(self._opened.smallest_probability).log()

    def _run(self, array: Floats) -> Floats:
        batch = self._opened.shape[0] or len(array)
        parts = []
        for start in range(0, len(array), batch):
            chunk = array[start : start + batch]
            full = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
            parts.append(np.asarray(self._opened.run(full), dtype=np.float32)[: len(chunk)])
        return np.concatenate(parts)


@dataclass(frozen=True)
class BlackBoxFacts:
    """What the file says of its input; None where it leaves it open."""

    channels: int | None
    image_size: int | None
    layout: str
    outputs: str
    num_classes: int


def open_black_box(path: Path, *, channels: int, image_size: int) -> tuple[BlackBox, BlackBoxFacts]:
    """Load an exported classifier. channels, image_size: what to try it with where the file leaves them open.

    Raises: InputError: missing, cannot be loaded, or is not an image classifier; MissingExtraError: its runtime is not
    installed.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    openers = {".onnx": _open_onnx, ".tflite": _open_tflite, ".xml": _open_openvino, ".pt2": _open_program}
    try:
        opened = openers[path.suffix](path)
    except EdgekdError:
        raise
    except Exception as error:  # each runtime has its own errors
        raise InputError(f"cannot be loaded ({_first_line(error)})", where=path, fix="export it again") from error
    layout, own_channels, own_size = input_layout(opened.shape, where=path)
    box = BlackBox(opened, channels_last=layout == "NHWC")
    generator = torch.Generator().manual_seed(0)
    size = own_size or image_size
    example = torch.randn(2, own_channels or channels, size, size, generator=generator)
    try:
        outputs = box(example)
    except Exception as error:
        raise InputError(f"fails on {tuple(example.shape)} ({_first_line(error)})", where=path) from error
    if outputs.ndim != 2 or len(outputs) != 2:
        what = f"its output is {tuple(outputs.shape)} for 2 images"
        raise InputError(what, where=path, fix="expected a classifier: (batch, classes)")
    box.probabilities = _are_probabilities(outputs)
    kind = "probabilities" if box.probabilities else "logits"
    return box, BlackBoxFacts(own_channels, own_size, layout, kind, outputs.shape[1])


def input_layout(shape: Sequence[int | None], *, where: object) -> tuple[str, int | None, int | None]:
    """Layout, channels and size in px of an image input; None where the shape leaves it open.

    >>> input_layout((1, 224, 224, 3), where="m.tflite"), input_layout((None, 1, 28, 28), where="m.onnx")
    (('NHWC', 3, 224), ('NCHW', 1, 28))
    """
    if len(shape) == 4:
        channels_last = shape[3] in (1, 3) and shape[1] not in (1, 3)
        channels = shape[3] if channels_last else shape[1]
        height, width = shape[1:3] if channels_last else shape[2:4]
        if height == width and channels in (1, 3, None):
            return "NHWC" if channels_last else "NCHW", channels, height
    shown = tuple("?" if size is None else size for size in shape)
    raise InputError(f"its input is {shown}", where=where, fix="expected one square image input of 1 or 3 channels")


def _are_probabilities(outputs: Tensor) -> bool:
    # Quantised probabilities are off by half a step of 1/256 per class.
    sums = outputs.sum(1)
    return bool((outputs >= 0).all() and ((sums - 1).abs() < 0.02).all())


def _open_onnx(path: Path) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = _only(session.get_inputs(), path)
    if entry.type not in ("tensor(float)", "tensor(float16)"):
        raise InputError(f"its input is {entry.type}", where=path, fix="export it with a float input")
    dtype = np.float16 if "16" in entry.type else np.float32
    output = session.get_outputs()[0].name
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in entry.shape)
    return Opened(lambda x: session.run([output], {entry.name: x.astype(dtype)})[0], shape)


def _open_tflite(path: Path) -> Opened:
    _need("ai_edge_litert", target="tflite", package="ai-edge-litert", extra="tflite")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    entry = _only(interpreter.get_input_details(), path)
    output = interpreter.get_output_details()[0]

    def run(x: Floats) -> NDArray[Any]:
        interpreter.set_tensor(entry["index"], _quantised(x, entry))
        interpreter.invoke()
        return _dequantised(interpreter.get_tensor(output["index"]), output)

    step = float(output["quantization"][0]) or 2e-7
    return Opened(run, tuple(int(size) for size in entry["shape"]), smallest_probability=step / 2)


def _quantised(x: Floats, detail: dict[str, Any]) -> NDArray[Any]:
    if not np.issubdtype(detail["dtype"], np.integer):
        return np.asarray(x, dtype=detail["dtype"])
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    codes = np.clip(np.rint(x / scale) + zero_point, limits.min, limits.max)
    return np.asarray(codes, dtype=detail["dtype"])


def _dequantised(values: NDArray[Any], detail: dict[str, Any]) -> NDArray[Any]:
    scale, zero_point = detail["quantization"]
    if not np.issubdtype(detail["dtype"], np.integer):
        return np.asarray(values)
    return np.asarray((values.astype(np.float32) - zero_point) * scale, dtype=np.float32)


def _open_openvino(path: Path) -> Opened:
    _need("openvino", target="openvino", package="openvino", extra="openvino")
    import openvino

    if not path.with_suffix(".bin").is_file():
        raise InputError(f"its weights {path.with_suffix('.bin').name} are missing", where=path, fix="copy both files")
    core = openvino.Core()
    model = core.read_model(str(path))
    entry = _only(model.inputs, path)
    shape = tuple(None if size.is_dynamic else int(size.get_length()) for size in entry.get_partial_shape())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return Opened(lambda x: compiled(x)[0], shape)


def _open_program(path: Path) -> Opened:
    from edgekd.teachers.pt2 import load_program

    program = load_program(path)
    users = set(program.graph_signature.user_inputs)
    entry = _only([node for node in program.graph.nodes if node.op == "placeholder" and node.name in users], path)
    shape = tuple(size if isinstance(size, int) else None for size in entry.meta["val"].shape)
    module = program.module()

    def run(x: Floats) -> NDArray[Any]:
        with torch.no_grad():
            out = module(torch.from_numpy(x))
        first: Tensor = out[0] if isinstance(out, (tuple, list)) else out
        return np.asarray(first.numpy())

    return Opened(run, shape)


def _only(inputs: Sequence[Any], path: Path) -> Any:
    if len(inputs) != 1:
        raise InputError(f"it has {len(inputs)} inputs", where=path, fix="expected one image input")
    return inputs[0]


def _need(module: str, *, target: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(target, package, extra)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
