"""A teacher that is run once over all images in all their views, and then answers from memory, features too.

For comparing methods: each sees the very same teacher, and a hundred trainings pay for one teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill.batches import Batch, BatchStream, Share
from edgekd.distill.sources import Live, Signals
from edgekd.distill.training import Training
from edgekd.errors import InputError

_LOGITS = ""


class Remembered(Live):
    """A frozen teacher whose logits and taps are kept as float16, one row for each (image, view).

    It may serve many stages, as long as `Training.views`, `view_seed` and `shift_px` stay the same.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, training: Training, *, bfloat16: bool = False) -> None:
        """Raises: InputError: the views are not fixed, or images are mixed."""
        if training.views is None or training.mixes:
            raise InputError("answers can be remembered for fixed views only", fix="set views, drop mixup and cutmix")
        super().__init__(model, bfloat16=bfloat16)
        self.views, self._dataset, self._training = training.views, dataset, training
        self._wanted: tuple[str, ...] = (_LOGITS,)
        self._rows: dict[str, Tensor] = {}

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """The taps of this stage; what is missing in memory is computed at the first batch."""
        self._wanted = (_LOGITS, *taps)
        return super().bind(images, taps)

    def signals(self, batch: Batch) -> Signals:
        """The rows of the batch."""
        if batch.view is None:
            return super().signals(batch)
        missing = [tap for tap in self._wanted if tap not in self._rows]
        if missing:
            self._run_all(missing, batch.images.device)
        rows = batch.index * self.views + batch.view
        said = {tap: self._rows[tap][rows].float() for tap in self._wanted}
        return Signals(said.pop(_LOGITS), said)

    def _run_all(self, taps: Sequence[str], device: torch.device) -> None:
        """Every image in every view, through the same augmentation as the training's."""
        stream = BatchStream(self._dataset, self._training, device=device, share=Share())
        stream.__exit__(None, None, None)  # nothing is made ahead
        index = torch.arange(len(self._dataset.train))
        for view in range(self.views):
            for part in torch.split(index, 256):
                here = torch.full_like(part, view)
                pixels = stream.augmented(self._dataset.train.images(part), part, here, 0)
                images = self._dataset.preprocessing.normalise(pixels.to(device))
                answer = super().signals(Batch(images, part, part, 0, 0.0))
                for tap in taps:
                    value = answer.logits if tap == _LOGITS else answer.taps[tap]
                    self._keep(tap, part * self.views + view, value)

    def _keep(self, tap: str, rows: Tensor, value: Tensor) -> None:
        if tap not in self._rows:
            shape = (len(self._dataset.train) * self.views, *value.shape[1:])
            self._rows[tap] = torch.zeros(shape, dtype=torch.float16, device=value.device)
        self._rows[tap][rows.to(value.device)] = value.half()
