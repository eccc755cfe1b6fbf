"""What the user asked for, as one plain document. It is stored in run.json and decides what `--resume` may skip."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from edgekd.advisor.situation import Need
from edgekd.artifact import DevicePrecision, Frozen
from edgekd.errors import did_you_mean
from edgekd.recipes.schema import Recipe
from edgekd.students.spaces import DEFAULT, NAMES

ImagePx = Annotated[int, Field(ge=8, le=1024)]


class Training(Frozen):
    """How the student is taught. epochs, shift_px None: chosen from the size of the training split and the epochs."""

    epochs: int | None = Field(default=None, ge=1)
    qat_epochs: int = Field(default=2, ge=1)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=0.2, gt=0)
    qat_learning_rate: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    temperature: float = Field(default=4.0, gt=0)
    cross_entropy_weight: float = Field(default=0.1, ge=0)
    soft_target_weight: float = Field(default=0.9, ge=0)
    hint_weight: float = Field(default=1.0, ge=0)
    shift_px: int | None = Field(default=None, ge=0)
    clip_norm: float = Field(default=5.0, gt=0)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"


class BudgetOverrides(Frozen):
    """Budgets from the command line; None keeps the profile's. Beyond 10 minutes, 4 TiB, 1 TiB or 1 MJ is a typo."""

    latency_p90_ms: float | None = Field(default=None, gt=0, le=600_000)
    peak_memory_mib: float | None = Field(default=None, gt=0, le=4_194_304)
    artifact_size_mib: float | None = Field(default=None, gt=0, le=1_048_576)
    energy_mj: float | None = Field(default=None, gt=0, le=1e9)
    teacher_macs_fraction: float | None = Field(default=None, gt=0, le=1)


class Settings(Frozen):
    """One run. Paths are kept as the user wrote them, a recipe whole; without one the advisor chooses by `needs`.

    image_size: px that images are read at, and the student's input unless image_sizes are given: then the search picks
    among those, none larger than what is read; the teacher sees what is read.
    candidates: students that learn for search_epochs before one is chosen; None: 8 with a GPU, else 1 (the prior
    decides). reselections: how often a student that is too slow on the device may be replaced.
    on: the profile's device as ssh://user@host, adb:SERIAL or a name of devices_file; None: this host, if it is that.
    """

    profile: str
    teacher: str | None = None
    weights: str | None = None
    data: str | None = None
    targets: tuple[str, ...] = ()
    precision: DevicePrecision | None = None
    image_size: int | None = Field(default=None, ge=8, le=1024)
    image_sizes: tuple[ImagePx, ...] = ()
    seed: int = Field(default=0, ge=0)
    skip_bad: bool = False
    spaces: tuple[str, ...] = Field(default=(DEFAULT,), min_length=1)
    zoo_weights: str | None = None
    candidates: int | None = Field(default=None, ge=1, le=32)
    search_epochs: float | None = Field(default=None, gt=0)
    reselections: int = Field(default=1, ge=0, le=5)
    on: str | None = None
    devices_file: str | None = None
    baseline: bool = False
    budgets: BudgetOverrides = BudgetOverrides()
    training: Training = Training()
    recipe: Recipe | None = None
    track: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    needs: tuple[Need, ...] = ()
    threads: int = Field(default=1, ge=1)
    calibration_images: int = Field(default=512, ge=300)
    check_images: int = Field(default=512, ge=256)

    @field_validator("on")
    @classmethod
    def _this_host_is_no_device(cls, on: str | None) -> str | None:
        return None if on == "local" else on

    @field_validator("image_sizes")
    @classmethod
    def _each_size_once(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(sizes)))

    @field_validator("spaces")
    @classmethod
    def _spaces_exist(cls, spaces: tuple[str, ...]) -> tuple[str, ...]:
        for name in spaces:
            if name not in NAMES:
                raise ValueError(f"no search space '{name}'; {did_you_mean(name, NAMES)}")
        return tuple(dict.fromkeys(spaces))
