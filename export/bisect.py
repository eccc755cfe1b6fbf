"""Which layer does a conversion break? Cut the program short, convert the cuts, and find the first one that is off.

A cut is the program up to one operator, converted by the same exporter in its own subprocess and run in the same
runtime. Binary search assumes that what is broken stays broken further on, which holds for parity: noise adds up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekd.artifact import Artifact, Frozen, Precision
from edgekd.errors import EdgekdError, InputError
from edgekd.export.check import bars_for, check, keep_reference
from edgekd.export.request import ExportRequest
from edgekd.export.runner import export_one

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

    from edgekd.data.preprocessing import Preprocessing

Converter = Callable[..., Artifact]
BISECTION_IMAGES = 8
# Operators that compute nothing: a break in one shows in the next that does.
_MOVES = (
    *("view", "reshape", "_unsafe_view", "permute", "transpose", "flatten", "squeeze", "unsqueeze", "expand", "clone"),
    *("contiguous", "slice", "select", "split", "split_with_sizes", "chunk", "getitem", "unbind", "alias", "detach"),
)
_CLAMPS = ("relu", "hardtanh", "clamp")


class Cut(Frozen):
    """The program up to one operator. snr_db: its conversion against itself; None where it could not be had."""

    layer: str
    operator: str
    snr_db: float | None
    error: str = ""


class Bisection(Frozen):
    """What was found. layer, operator: the first that is under the bar, "" where none is; before_db, after_db: the cut
    before it (None: it is the first) and the cut at it. text: all of it in one sentence. cuts: in the order tried.
    """

    target: str
    precision: Precision
    bar_db: float
    layer: str = ""
    operator: str = ""
    before_db: float | None = None
    after_db: float | None = None
    text: str
    cuts: tuple[Cut, ...] = ()
    wall_s: float = 0.0


def bisect(
    request: ExportRequest,
    images: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    *,
    log_dir: Path,
    bar_db: float | None = None,
    convert: Converter = export_one,
    on_cut: Callable[[Cut], None] | None = None,
) -> Bisection:
    """Find the first operator whose conversion is under the bar.

    request: the conversion whose artifact failed on parity. images: uint8 [N, C, H, W], a few. bar_db: the precision's
    own by default. convert: what turns a request into an artifact, as `export_one` does.
    Raises: InputError: the program cannot be read, or has no operator to cut at.
    """
    from edgekd.quant import load_program

    started = time.monotonic()
    bar = bar_db if bar_db is not None else bars_for(request.precision).snr_db
    program = load_program(request.program)
    points = cut_points(program)
    if not points:
        raise InputError("the program has no operator to cut at", where=request.program)
    with tempfile.TemporaryDirectory(prefix="edgekd-bisect-") as folder:
        tell = on_cut or (lambda _: None)
        trial = _Trial(request, images, preprocessing, Path(folder), log_dir, convert=convert, on_cut=tell)
        found = _search(trial, program, points, bar)
        text = sentence(found, bar, len(points))
        return found.model_copy(update={"text": text, "cuts": tuple(trial.tried), "wall_s": time.monotonic() - started})


class CutPoint(Frozen):
    """One place to cut: the node whose value becomes the output, and the operator that it stands for."""

    node: str
    layer: str
    operator: str


def cut_points(program: ExportedProgram) -> list[CutPoint]:
    """Operators that compute on the image, in execution order, each with the clamp and rounding that belong to it."""
    from edgekd.quant.layers import layer_of

    graph = _graph(program).graph
    image = next(node for node in graph.nodes if node.op == "placeholder")
    reached, points, taken = {image}, [], set()
    for node in graph.nodes:
        if node.op != "call_function" or not reached.intersection(node.all_input_nodes):
            continue
        reached.add(node)
        name = _operator(node)
        if name in _MOVES or "quantize" in name or not _is_float(node):
            continue
        last = _tail(node)
        if last.name not in taken:
            taken.add(last.name)
            points.append(CutPoint(node=last.name, layer=layer_of(node), operator=name))
    return points


def _tail(node: fx.Node) -> fx.Node:
    """The last node that belongs to an operator: past a clamp that only it feeds, and past its rounding to int8."""
    while len(node.users) == 1:
        (user,) = node.users
        if not (_operator(user) in _CLAMPS or "quantize" in _operator(user)):
            return node
        node = user
    readers = list(node.users)
    rounds = bool(readers) and all(_operator(r).startswith("dequantize") for r in readers)
    return readers[0] if rounds else node


def cut(program: ExportedProgram, point: CutPoint) -> ExportedProgram:
    """The program up to a point: same input, that node's value as its one output."""
    import torch

    from edgekd.quant import image_shape
    from edgekd.quant.graph import finish, keep_first_output

    graph = _graph(program)
    node = next(node for node in graph.graph.nodes if node.name == point.node)
    graph.graph.output_node().args = ((node,),)
    keep_first_output(graph)
    return finish(graph, torch.zeros(image_shape(program)))


def _graph(program: ExportedProgram) -> fx.GraphModule:
    graph: Any = program.module(check_guards=False)
    found: fx.GraphModule = graph
    return found


def _operator(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0].rstrip("_")


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return bool(getattr(value, "is_floating_point", lambda: False)())


class _Trial:
    """Convert a cut and compare it with itself; everything that stays the same from cut to cut."""

    def __init__(
        self,
        request: ExportRequest,
        images: npt.NDArray[np.uint8],
        preprocessing: Preprocessing,
        *folders: Path,
        convert: Converter = export_one,
        on_cut: Callable[[Cut], None] = lambda _: None,
    ) -> None:
        self.request, self.images, self.preprocessing = request, images, preprocessing
        self.folder, self.log_dir = folders
        self.convert, self.on_cut = convert, on_cut
        self.tried: list[Cut] = []

    def whole(self) -> float | None:
        """SNR of the whole program, converted afresh in its plainest form."""
        return self._run(self.request.program, "whole", "", "the whole program").snr_db

    def at(self, program: ExportedProgram, point: CutPoint) -> float | None:
        """SNR of one cut, None where it cannot be converted or run."""
        from edgekd.quant import save_program

        try:
            path = save_program(cut(program, point), self.folder / point.node / "cut.pt2")
        except Exception as error:  # torch.export raises a dozen kinds; a cut that cannot be made is left out
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            return self._note(Cut(layer=point.layer, operator=point.operator, snr_db=None, error=reason)).snr_db
        return self._run(path, point.node, point.layer, point.operator).snr_db

    def _run(self, program: Path, name: str, layer: str, operator: str) -> Cut:
        plain = {"labels": (), "io_dtype": "auto", "input_layout": None, "fold_preprocessing": False}
        out = self.folder / name / "artifact"
        request = self.request.model_copy(update={"program": program, "out": out, **plain})
        log = self.log_dir / f"bisect-{self.request.label}-{name}.log"
        try:
            artifact = self.convert(request, log=log)
            keep_reference(program, self.images, self.preprocessing)
            report = check(artifact, program, self.images, None, self.preprocessing, log=log)
        except EdgekdError as error:
            return self._note(Cut(layer=layer, operator=operator, snr_db=None, error=str(error)))
        error_text = "" if report.snr_db is not None else "; ".join(report.failures)
        return self._note(Cut(layer=layer, operator=operator, snr_db=report.snr_db, error=error_text))

    def _note(self, found: Cut) -> Cut:
        self.tried.append(found)
        self.on_cut(found)
        return found


def _search(trial: _Trial, program: ExportedProgram, points: Sequence[CutPoint], bar_db: float) -> Bisection:
    """The first point under the bar. Points whose cut gives no number are left out."""
    whole_db = trial.whole()
    facts = {"target": trial.request.target, "precision": trial.request.precision, "bar_db": bar_db, "text": ""}
    if whole_db is not None and whole_db >= bar_db:
        return Bisection.model_validate({**facts, "before_db": whole_db})
    left, good_db = list(points), None
    broken: tuple[CutPoint, float] | None = None
    while left:
        middle = len(left) // 2
        snr_db = trial.at(program, left[middle])
        if snr_db is None:
            del left[middle]
        elif snr_db >= bar_db:
            good_db, left = snr_db, left[middle + 1 :]
        else:
            broken, left = (left[middle], snr_db), left[:middle]
    if broken is None:
        return Bisection.model_validate({**facts, "before_db": good_db, "after_db": whole_db})
    point, snr_db = broken
    names = {"layer": point.layer, "operator": point.operator}
    return Bisection.model_validate({**facts, **names, "before_db": good_db, "after_db": snr_db})


def sentence(found: Bisection, bar_db: float, points: int) -> str:
    """What a bisection says, for a person.

    >>> sentence(Bisection(target="null", precision="int8", bar_db=30, layer="conv1", operator="conv2d",
    ...     before_db=41.2, after_db=3.0, text=""), 30.0, 12)
    "the first break is layer 'conv1' (conv2d): 41.2 dB before it, 3.0 dB after it, bar 30 dB"
    """
    if found.operator:
        name = f"layer '{found.layer}' ({found.operator})" if found.layer else f"operator {found.operator}"
        before = (
            f"{found.before_db:.1f} dB before it" if found.before_db is not None else "the input before it is exact"
        )
        return f"the first break is {name}: {before}, {found.after_db:.1f} dB after it, bar {bar_db:g} dB"
    if found.after_db is None and found.before_db is not None:
        return (
            f"a fresh conversion of the whole program agrees ({found.before_db:.1f} dB): the file is not what the "
            "exporter writes, or its input and output form is at fault; export it again without --io and folding"
        )
    if found.after_db is None:
        return f"no cut of {points} could be converted and run: see the logs"
    return f"every cut of {points} agrees and only the whole program does not: the break is in how operators are fused"
