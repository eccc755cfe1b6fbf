"""Inside a check's child process: a program's own answers, which every artifact made from it is compared with.

Parity is against the program as it is, one image at a time, an int8 one in float64 (`exact.py`). Accuracy needs
thousands of images, so the program is also rewritten for a free batch in float32; that form is used only after it named
the classes of the program's own float32 form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from edgekd.export.check_images import Deadline, Images, classify, gathered
from edgekd.export.exact import in_float64
from edgekd.files import write_whole
from edgekd.quant.nodes import tensor_of
from edgekd.runtimes import FloatArray

aten = torch.ops.aten
_SIZED = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default}
BATCH = 64
PROVEN_ON = 64


def write_reference(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the program and keep its outputs as .npz: `output:NAME` of the parity images, `logits` of all of them.

    An int8 program's are those in float64; `float32:NAME` is what float32 makes of the first PROVEN_ON images.
    """
    from edgekd.quant import load_program, output_names

    images, program = Images(Path(request["data"])), load_program(Path(request["program"]))
    deadline, names = Deadline(request["time_budget_s"]), output_names(program)
    torch.set_num_threads(request["threads"])
    wanted, single = min(len(images), request["parity_images"]), folded(program)
    exact = in_float64(single)
    module, dtype = (single, torch.float32) if exact is None else (exact, torch.float64)
    outputs = gathered(lambda i: _outputs(module, images.normalised(i, i + 1), dtype), wanted, deadline)
    if not all(np.isfinite(value).all() for value in outputs):
        return {"broken": "its outputs are NaN or infinite"}
    arrays = {f"output:{name}": value for name, value in zip(names, outputs, strict=True)}
    first, known = outputs[0], [value[:PROVEN_ON] for value in outputs]
    if exact is not None:
        known = gathered(lambda i: _outputs(single, images.normalised(i, i + 1)), len(known[0]), deadline)
        arrays |= {f"float32:{name}": value for name, value in zip(names, known, strict=True)}
    if first.ndim == 2 and images.labels is not None:
        arrays["logits"] = _logits(program, images, first, known[0], deadline)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **arrays for allow_pickle

    write_whole(Path(request["out"]), write)
    return {"n_images": len(first)}


def _outputs(module: nn.Module, image: FloatArray, dtype: torch.dtype = torch.float32) -> list[FloatArray]:
    """Each output for one image, kept in float32."""
    with torch.inference_mode():
        result = module(torch.from_numpy(image).to(dtype))
    return [value.float().numpy().copy() for value in (result if isinstance(result, (tuple, list)) else [result])]


def _logits(
    program: ExportedProgram, images: Images, first: FloatArray, known: FloatArray, deadline: Deadline
) -> FloatArray:
    """The first output on all images: those of the parity images as they are, the others from the fastest form.

    known: float32 answers for the first images, to prove that form on.
    """
    module, size = _fastest(program, images.normalised(0, len(known)), known)

    def answer(start: int, stop: int) -> FloatArray:
        return _run(module, images.normalised(start, stop), size)

    rest = classify(answer, len(first), len(images), deadline=deadline)
    return np.concatenate([first, rest]) if len(rest) else first


def answering(program: ExportedProgram, images: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from normalised images (N, C, H, W) to the program's first output (N, ...), in its fastest form.

    images: some to prove that form on; the more, the surer.
    """
    known = images[:PROVEN_ON].numpy()
    module, size = _fastest(program, known, _run(folded(program), known, 1))
    return lambda batch: torch.from_numpy(_run(module, batch.numpy(), size))


def _fastest(program: ExportedProgram, images: FloatArray, known: FloatArray) -> tuple[nn.Module, int]:
    """The program as a module and the batch it takes: free where that names the classes that `known` names."""
    module = free_batch(program)
    if module is None or not _same_classes(module, images, known):
        return folded(program), 1
    return module, BATCH


def _run(module: nn.Module, batch: FloatArray, size: int) -> FloatArray:
    with torch.inference_mode():
        parts = [_first(module(part)).float() for part in torch.split(torch.from_numpy(batch), size)]
    values: FloatArray = torch.cat(parts).numpy()
    return values


def _first(result: Any) -> torch.Tensor:
    value: torch.Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return value


def _same_classes(module: nn.Module, images: FloatArray, first: FloatArray) -> bool:
    """Whether the free-batch form names the class of every image as the program does."""
    try:
        found = _run(module, images, BATCH)
    except Exception:  # a graph with a batch of 1 built in fails in as many ways as there are operators
        return False
    return found.shape == first.shape and bool((found.argmax(1) == first.argmax(1)).all())


def free_batch(program: ExportedProgram) -> nn.Module | None:
    """The program with its batch of 1 taken out of the shapes it spells, or None where that cannot be done.

    What comes out is a guess until it has been compared: an axis of 1 may mean something else than the batch.
    """
    graph = folded(program)
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in _SIZED and not _free(node):
            return None
    graph.recompile()
    return graph


def folded(program: ExportedProgram) -> fx.GraphModule:
    """The program with its stored weights dequantised once instead of at every call: the same numbers, bit for bit."""
    module = program.module(check_guards=False)
    graph = fx.GraphModule(module, module.graph)  # without the hook that insists on the batch of the example
    for index, node in enumerate([n for n in graph.graph.nodes if "dequantize" in str(n.target)]):
        tensors = [a for a in node.args if isinstance(a, fx.Node)]
        if tensors and all(t.op == "get_attr" for t in tensors):
            values = [tensor_of(graph, a) if isinstance(a, fx.Node) else a for a in node.args]
            graph.register_buffer(f"dequantised_{index}", node.target(*values, **node.kwargs))
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(f"dequantised_{index}"))
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _free(node: fx.Node) -> bool:
    """Write -1 for a leading 1 of a shape; False where another axis is already left open."""
    shape = list(node.args[1])  # type: ignore[arg-type]
    if not shape or shape[0] != 1:
        return True
    others = [size for size in shape[1:] if isinstance(size, int)]
    if node.target is not aten.expand.default and -1 in others:
        source = node.args[0]
        value = source.meta.get("val") if isinstance(source, fx.Node) else None
        known = math.prod(size for size in others if size != -1)
        if value is None or known == 0:
            return False
        shape = [value.numel() // known if size == -1 else size for size in shape]
    shape[0] = -1
    node.args = (node.args[0], shape, *node.args[2:])
    return True
