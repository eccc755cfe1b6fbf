"""The loop one would write by hand: what edgekd's is measured against.

It has the same models, losses, augmentation and optimiser, and nothing else: no checkpoint, no resume, no report.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.data.augmentation import augment
from edgekd.data.dataset import Dataset
from edgekd.distill.losses.soft_target import soft_target_kl


@dataclass
class HandWritten:
    """Soft targets at temperature 4, weights 0.1 and 0.9, SGD with Nesterov momentum, on float32.

    teacher None: labels alone, of weight 1. The images are given as they come, without augmentation, where shift_px
    is 0 and the data are not mirrored.
    """

    dataset: Dataset
    student: nn.Module
    teacher: nn.Module | None
    batch_size: int
    shift_px: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        layout = torch.channels_last
        self.student.to(self.device).to(memory_format=layout).train()
        if self.teacher is not None:
            self.teacher.to(self.device).to(memory_format=layout).eval().requires_grad_(False)
        self.optimiser = torch.optim.SGD(
            self.student.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)
        self.order = torch.randperm(len(self.dataset.train), generator=self.generator)
        self.labels = self.dataset.train.labels
        self.position = 0
        self.losses: list[float] = []

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next images, normalised, and labels."""
        if self.position + self.batch_size > len(self.order):
            self.order, self.position = torch.randperm(len(self.order), generator=self.generator), 0
        index = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        pixels = self.dataset.train.images(index)
        if self.shift_px or self.dataset.horizontal_flip:
            pixels = augment(
                pixels, generator=self.generator, flip=self.dataset.horizontal_flip, shift_px=self.shift_px
            )
        images = self.dataset.preprocessing.normalise(pixels.to(self.device))
        return images.contiguous(memory_format=torch.channels_last), self.labels[index].to(self.device)

    def go(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            images, labels = self.batch()
            if self.teacher is None:
                loss = functional.cross_entropy(self.student(images), labels)
            else:
                with torch.no_grad():
                    told = self.teacher(images)
                logits = self.student(images)
                soft = soft_target_kl(logits, told, temperature=4.0)
                loss = 0.1 * functional.cross_entropy(logits, labels) + 0.9 * soft
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            if self.device.type == "cpu":  # watching the loss is what every loop does
                self.losses.append(loss.item())
