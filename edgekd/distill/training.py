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
    clip_norm: greatest gradient norm of each student, and of each loss's own parameters, None: unclipped. shift_px:
    random shift of the images.
    mixed_precision: `auto` runs in bfloat16 what the device is faster at in it; `fp16` also scales the loss. device:
    `auto` is the GPU where one is.
    checkpoint_every_s: seconds between checkpoints; one is also written after each epoch. It never changes a result.
    accumulate: parts a batch is learned in, for memory; the step stays one (batch norm sees the parts).
    ema_decay: validate, keep and end with the moving average of the students' weights, None: with the weights.
    mixup, cutmix: alpha of the mixing that teacher and student share, 0: none. views: each image is only ever seen in
    this many augmentations, drawn from view_seed alone, so that a teacher's answers can be cached; None: always fresh.
    compile: run models whose features nobody reads through torch.compile.
    patience: epochs without a better held-out accuracy after which to stop, and end with the best epoch's weights;
    None: train to the end, and end with the last weights.
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
    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every_s: float = 60.0
    accumulate: int = 1
    ema_decay: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    views: int | None = None
    view_seed: int = 0
    compile: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            name for name in ("epochs", "batch_size", "learning_rate", "accumulate") if not getattr(self, name) > 0
        ]
        wrong += [
            name
            for name in ("weight_decay", "shift_px", "seed", "checkpoint_every_s", "mixup", "cutmix", "view_seed")
            if not getattr(self, name) >= 0
        ]
        wrong += [name for name in ("warmup", "momentum") if not 0 <= getattr(self, name) < 1]
        wrong += ["ema_decay"] if self.ema_decay is not None and not 0 <= self.ema_decay < 1 else []
        wrong += ["views"] if self.views is not None and not 0 < self.views < 2**24 else []
        wrong += ["patience"] if self.patience is not None and not self.patience > 0 else []
        wrong += ["clip_norm"] if self.clip_norm is not None and not self.clip_norm > 0 else []
        if wrong:
            raise InputError(f"training: {wrong[0]} {getattr(self, wrong[0])} is out of range")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def steps_for(self, images: int) -> int:
        """Optimiser steps for a training split of so many images, at least one.

        >>> Training(epochs=2, batch_size=100).steps_for(1000)
        20
        """
        return max(1, round(self.epochs * images / self.batch_size))
