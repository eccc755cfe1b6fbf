"""A teacher that is run once over all images in all their views, and then answers from memory, features too.

For comparing methods: each sees the very same teacher, and a hundred trainings pay for one teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.distill.batches import Batch, BatchStream, Share
from edgekd.distill.sources import Live, Signals
from edgekd.distill.training import Training
from edgekd.errors import InputError
from edgekd.files import write_whole

_LOGITS = ""


class Remembered(Live):
    """A frozen teacher whose logits and taps are kept as float16, one row for each (image, view).

    It may serve many stages, as long as `Training.views`, `view_seed` and `shift_px` stay the same. folder: where the
    rows lie for the next process too, in files named after teacher (fingerprint), data and views; None: nowhere.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        training: Training,
        *,
        folder: Path | None = None,
        fingerprint: str = "",
        bfloat16: bool = False,
    ) -> None:
        """Raises: InputError: the views are not fixed, or images are mixed."""
        if training.views is None or training.mixes:
            raise InputError("answers can be remembered for fixed views only", fix="set views, drop mixup and cutmix")
        super().__init__(model, bfloat16=bfloat16)
        self.views, self._dataset, self._training = training.views, dataset, training
        self._wanted: tuple[str, ...] = (_LOGITS,)
        self._rows: dict[str, Tensor] = {}
        own = (fingerprint, dataset.fingerprint, len(dataset.train), self.views, training.view_seed, training.shift_px)
        self._file = None if folder is None else folder / f"remembered-{hashlib.sha256(repr(own).encode()).hexdigest()}"

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
            self._read_or_run(missing, batch.images.device)
        rows = batch.index * self.views + batch.view
        said = {tap: self._rows[tap][rows].float() for tap in self._wanted}
        return Signals(said.pop(_LOGITS), said)

    def _read_or_run(self, taps: Sequence[str], device: torch.device) -> None:
        files = {} if self._file is None else {tap: self._file / f"{tap.encode().hex() or 'logits'}.pt" for tap in taps}
        for tap, file in files.items():
            if file.is_file():
                self._rows[tap] = torch.load(file, map_location=device)
        if missing := [tap for tap in taps if tap not in self._rows]:
            self._run_all(missing, device)
        for tap in missing:
            if tap in files:
                write_whole(files[tap], lambda path, tap=tap: torch.save(self._rows[tap], path))  # type: ignore[misc]

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
