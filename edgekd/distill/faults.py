"""What can go wrong in a step, named: a loss, a source or a weight that became nan or inf."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgekd.distill.batches import Batch
from edgekd.distill.sources import Source
from edgekd.distill.stage import Stage
from edgekd.errors import CheckError


def loss_broke(stage: Stage, label: str, batch: Batch, sources: Mapping[str, Source]) -> CheckError:
    """The error for a term that was not finite in a batch; it names the source where that is to blame."""
    where = f"stage '{stage.name}', step {batch.step}"
    broken = next((name for name, source in sources.items() if not source.signals(batch).is_finite()), None)
    if broken is None:
        return CheckError(f"loss term '{label}' became nan or inf", where=where, fix=_cure(stage))
    fix = "check the teacher's weights and that it gets images as it was trained on"
    return CheckError(f"source '{broken}' returns nan or inf, so loss term '{label}' does too", where=where, fix=fix)


def stop_if_weights_broke(stage: Stage, module: nn.Module, step: int) -> None:
    """A loss can be finite and its gradient not; such weights must never replace a good checkpoint.

    Raises: CheckError: names the first parameter that holds nan or inf.
    """
    for name, tensor in module.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            where = f"stage '{stage.name}', step {step}"
            raise CheckError(f"parameter '{name}' became nan or inf", where=where, fix=_cure(stage))


def _cure(stage: Stage) -> str:
    return f"lower the learning rate (peak {stage.training.learning_rate}), or set clip_norm"
