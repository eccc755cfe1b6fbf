"""Training curves for TensorBoard: a listener for `run_stage(on_progress=...)`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from edgekd.distill.results import Progress
from edgekd.errors import InputError


def tensorboard_tracker(folder: Path) -> Callable[[Progress], None]:
    """Writes event files into `folder/STAGE`: losses, held-out accuracy, learning rate and speed by step, each epoch.

    Raises: InputError: TensorBoard is not installed; names the extra.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("TensorBoard is not installed", fix="pip install 'edgekd[tensorboard]'")
    from torch.utils.tensorboard import SummaryWriter

    def tell(progress: Progress) -> None:
        record = progress.epoch_record
        if record is None:
            return
        # A writer for each epoch: nothing to close, and a killed run has written what it told.
        with SummaryWriter(str(folder / progress.stage)) as writer:
            for name, value in record.scalars().items():
                writer.add_scalar(name, value, record.step)

    return tell
