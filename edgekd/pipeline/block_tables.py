"""Which block table answers for a run: one of this machine, when the profile is this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekd.device_benchmarks.block_table import BlockTable, bench_here, load_table
from edgekd.errors import InputError
from edgekd.export.cache import default_cache
from edgekd.pipeline.rows import is_profile_device
from edgekd.profile import HardwareProfile
from edgekd.students import Part


def tables_folder() -> Path:
    """Where this user's block tables lie: beside the exports that are kept."""
    return default_cache().parent / "block-tables"


def table_for(
    profile: HardwareProfile, precision: str, *, threads: int, runtime: str | None = None
) -> BlockTable | None:
    """The table for a runtime of the profile, its first by default; None for another machine or where none was built.

    Raises: InputError: the table is stale or damaged: it says so, rather than be passed over in silence.
    """
    folder = tables_folder()
    runtime = runtime or profile.primary.target
    known = any(folder.glob(f"{runtime}-{precision}-*.json")) if folder.is_dir() else False
    if not known or not is_profile_device(profile.model_dump(mode="json")):
        return None
    return load_table(bench_here(runtime, precision, threads=threads), folder)


def price_from(table: BlockTable, otherwise: Callable[[Part], float]) -> Callable[[Part], float]:
    """A part's price: the table's, or the profile's own scaled by what the table says of the parts that both know.

    The scale is settled at the first part that the table lacks, from the parts priced before it and 1 without any.
    """
    ratios: list[float] = []

    def price(part: Part) -> float:
        roof = otherwise(part)
        if table.knows(part):
            found = table.price(part)
            ratios.append(found / roof if roof > 0 else 1.0)
            return found
        ordered = sorted(ratios)
        return roof * (ordered[len(ordered) // 2] if ordered else 1.0)

    return price


def require_covered(table: BlockTable, parts: list[Part], spaces: list[str]) -> None:
    """Raises: InputError: fewer than half of the parts are in it: it was built for other images or spaces."""
    if not parts:
        return
    missing = [part for part in parts if not table.knows(part)]
    if len(missing) > len(parts) / 2:
        size, channels = parts[0].size, parts[0].in_channels
        what = f"the block table knows {len(parts) - len(missing)} of {len(parts)} parts"
        fix = (
            f"edgekd lut build --runtime {table.bench.runtime} --precision {table.bench.precision} "
            f"--image-size {size} --channels {channels} --space {','.join(spaces)}"
        )
        raise InputError(what, where=f"{size} px images", fix=fix)
