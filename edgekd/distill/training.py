"""How a stage learns: plain settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekd.errors import InputError


@dataclass(frozen=True)
class Training:
    """How a stage learns.

    epochs: passes over the training images, may be a fraction. batch_size: images per step over all processes.
    schedule: `one_cycle` climbs for `warmup` (share of the steps), then falls straight to zero; `cosine` as a cosine.
    clip_norm: greatest gradient norm, None: unclipped. shift_px: random shift of the images.
    mixed_precision: `auto` runs in bfloat16 what the device is faster at in it. device: `auto` is the GPU where one is.
    checkpoint_every_s: seconds between checkpoints; one is also written after each epoch. It never changes a result.
    Raises: InputError: a value out of its range.
    """

    epochs: float = 10.0
    batch_size: int = 128
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    shift_px: int = 0
    seed: int = 0
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every_s: float = 60.0

    def __post_init__(self) -> None:
        wrong = [name for name in ("epochs", "batch_size", "learning_rate") if not getattr(self, name) > 0]
        wrong += [
            name for name in ("weight_decay", "shift_px", "seed", "checkpoint_every_s") if not getattr(self, name) >= 0
        ]
        wrong += [name for name in ("warmup", "momentum") if not 0 <= getattr(self, name) < 1]
        wrong += ["clip_norm"] if self.clip_norm is not None and not self.clip_norm > 0 else []
        if wrong:
            raise InputError(f"training: {wrong[0]} {getattr(self, wrong[0])} is out of range")

    def steps_for(self, images: int) -> int:
        """Optimiser steps for a training split of so many images, at least one.

        >>> Training(epochs=2, batch_size=100).steps_for(1000)
        20
        """
        return max(1, round(self.epochs * images / self.batch_size))
