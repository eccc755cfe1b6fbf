"""A table of what each part of a student takes in one runtime on one machine, and how its sums become a prediction.

Measured, but what is made of it is a prediction: a network that was never run. A table answers only for the machine,
runtime version, threads and precision that it was measured with; any other is refused as stale, in one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.host import host_state, installed_versions
from edgekd.errors import EdgekdError, InputError
from edgekd.files import read_json, write_json
from edgekd.students import Part, StudentSpec
from edgekd.students.layers import part_layers

RUNTIMES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "tflite": "ai-edge-litert"}
PRECISIONS = ("fp32", "int8")


class Bench(Frozen):
    """What a table holds for: nothing in it carries over when one of these changes."""

    device: str
    cpus: int = Field(ge=1)
    runtime: str
    version: str
    precision: str
    threads: int = Field(ge=1)
    batch: int = 1

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.runtime} {self.version} {self.precision}, {self.threads} thread(s), {self.device}"


class Fit(Frozen):
    """latency p50 = scale x sum of the parts - per_part_ms x parts + constant_ms + what weights cost; fitted.

    per_weight_ms: of every weight beyond cached_weights. A part that is timed again and again finds its weights in the
    cache; inside a large network they are read from further away (ONNX Runtime fp32: 1.5 times as slow at 3e6 weights).

    p50_over_least: the median over the least time of whole networks.
    p90_over_p50: of nine whole networks out of ten it is less.
    low, high: 5% and 95% of measured over predicted, each network predicted by a fit without it.
    """

    scale: float
    per_part_ms: float
    constant_ms: float
    per_weight_ms: float = Field(ge=0)
    cached_weights: float = Field(ge=0)
    p50_over_least: float = Field(gt=0)
    p90_over_p50: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    networks: int


class Whole(Frozen):
    """A network that was measured whole, with its median latency."""

    spec: StudentSpec
    p50_ms: float = Field(gt=0)


class BlockTable(Frozen):
    """parts_ms: milliseconds of each part in context, by `Part.key`; built: date; digest: of everything else.

    networks: those that the sums were fitted to; what else is known of the machine can be moved by them.
    """

    schema_version: Literal[3] = 3
    bench: Bench
    parts_ms: dict[str, float]
    fit: Fit
    networks: tuple[Whole, ...]
    built: str
    build_s: float
    rounds: int
    digest: str = ""

    def knows(self, part: Part) -> bool:
        """Whether the part was measured."""
        return part.key in self.parts_ms

    def price(self, part: Part) -> float:
        """The part's share of the network's median latency in ms; the constant is with the stem.

        Raises: KeyError: it was not measured.
        """
        share = self.fit.scale * self.parts_ms[part.key] - self.fit.per_part_ms
        return max(0.0, share) + (self.fit.constant_ms if part.kind == "stem" else 0.0)

    @property
    def tariffs(self) -> tuple[tuple[float, float], ...]:
        """What a network costs besides its parts is the larger of these: (ms, ms per weight)."""
        return (0.0, 0.0), (-self.fit.per_weight_ms * self.fit.cached_weights, self.fit.per_weight_ms)

    def p50_ms(self, parts: Sequence[Part]) -> float:
        """Of a whole network."""
        weights = sum(weights_of(part) for part in parts)
        return sum(self.price(part) for part in parts) + max(fixed + slope * weights for fixed, slope in self.tariffs)

    @property
    def provenance(self) -> str:
        """What a prediction from it is made of."""
        count = f"{len(self.parts_ms)} parts and {self.fit.networks} networks"
        return f"block table of {count} measured on this device {self.built} ({self.bench.text})"


def weights_of(part: Part) -> int:
    """Weights and biases of a part, batch norms folded."""
    return sum(layer.weight_elements for layer in part_layers(part))


def bench_here(runtime: str, precision: str, *, threads: int) -> Bench:
    """What would be measured here now. Raises: InputError: no such runtime or precision, or it is not installed."""
    if runtime not in RUNTIMES or precision not in PRECISIONS:
        what = f"no block table for {runtime} {precision}"
        raise InputError(what, fix=f"runtimes: {', '.join(RUNTIMES)}; precisions: {', '.join(PRECISIONS)}")
    package = RUNTIMES[runtime]
    version = installed_versions([package]).get(package)
    if version is None:
        raise InputError(f"{package} is not installed", where=f"runtime '{runtime}'")
    state = host_state()
    return Bench(
        device=state.cpu_model,
        cpus=state.usable_cpus,
        runtime=runtime,
        version=version,
        precision=precision,
        threads=threads,
    )


def file_of(bench: Bench, folder: Path) -> Path:
    """Where the table of a bench lies: the name tells people, the digest in it keeps benches apart."""
    digest = hashlib.sha256(bench.model_dump_json().encode()).hexdigest()[:12]
    return folder / f"{bench.runtime}-{bench.precision}-{digest}.json"


def save_table(table: BlockTable, folder: Path) -> Path:
    """Write it with its digest, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    sealed = table.model_copy(update={"digest": _digest(table)})
    return write_json(file_of(table.bench, folder), sealed.model_dump(mode="json"))


def load_table(bench: Bench, folder: Path) -> BlockTable:
    """The table of a bench.

    Raises: InputError: there is none, only a stale one (what differs is named), or the file is damaged.
    """
    file = file_of(bench, folder)
    if file.is_file():
        return read_table(file)
    build = f"edgekd lut build --runtime {bench.runtime} --precision {bench.precision} --threads {bench.threads}"
    for other in sorted(folder.glob(f"{bench.runtime}-{bench.precision}-*.json")) if folder.is_dir() else []:
        found = read_table(other).bench
        differs = [
            f"{name} {getattr(found, name)}, now {getattr(bench, name)}"
            for name in Bench.model_fields
            if getattr(found, name) != getattr(bench, name)
        ]
        raise InputError(f"stale block table: it was measured with {'; '.join(differs)}", where=other, fix=build)
    raise InputError(f"no block table for {bench.text}", where=folder, fix=build)


def read_table(file: Path) -> BlockTable:
    """Raises: InputError: the file is no table, or was changed since it was written."""
    fix = "delete it and build it again: edgekd lut build"
    try:
        table = BlockTable.model_validate(read_json(file))
    except (ValidationError, OSError, ValueError, EdgekdError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"damaged block table ({reason})", where=file, fix=fix) from error
    if table.digest != _digest(table):
        raise InputError("damaged block table (its content does not match its digest)", where=file, fix=fix)
    return table


def _digest(table: BlockTable) -> str:
    plain = table.model_dump(mode="json", exclude={"digest"})
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
