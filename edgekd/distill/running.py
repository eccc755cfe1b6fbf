"""Carrying out a stage: devices and processes are found, the loop is run, and the models are given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from edgekd.distill.batches import BatchStream, Share
from edgekd.distill.interrupts import Interrupts
from edgekd.distill.loop import OnProgress, Run
from edgekd.distill.precision import choose_device
from edgekd.distill.results import Progress, StageResult
from edgekd.distill.stage import Stage


def run_stage(stage: Stage, *, out: Path, resume: bool = False, on_progress: OnProgress | None = None) -> StageResult:
    """Train the stage's students in place; afterwards they hold the last step's weights, in eval mode.

    out: the run folder; `checkpoints/last.pt` and `checkpoints/best.pt` (best validation accuracy) are kept in it.
    resume: go on from last.pt where it belongs to a stage of this name, else begin. On one CPU the result is the same
    to the bit as that of an uninterrupted run. A finished stage is only loaded.
    on_progress: called in the main process about twice a second, at the end, and after each epoch.
    Raises: InputError: the stage does not fit together, the checkpoint is not this stage's, or the disk is full.
    CheckError: a loss became nan or inf. Interrupted: Ctrl-C or SIGTERM, after last.pt was written.
    """
    with opened(stage, out=out, resume=resume) as run:
        run.go(on_progress if run.accelerator.is_main_process and on_progress else _silent)
        return run.result()


@contextmanager
def opened(stage: Stage, *, out: Path, resume: bool = False) -> Iterator[Run]:
    """A stage ready for `go`; afterwards the models are as the caller gave them, but in eval mode."""
    stage.check()
    training = stage.training
    device_type = choose_device(training.device)
    # No mixed_precision here: accelerate keeps it per process and refuses a second value, while stages may differ.
    ddp = DistributedDataParallelKwargs()
    accelerator = Accelerator(cpu=device_type == "cpu", mixed_precision="no", kwargs_handlers=[ddp])
    share = Share(accelerator.process_index, accelerator.num_processes)
    if training.batch_size % (share.world * training.accumulate):
        what = f"batch_size {training.batch_size} over {share.world} processes in {training.accumulate} parts"
        raise stage.error(what, f"give a multiple of {share.world * training.accumulate}")
    with ExitStack() as stack:
        cuda = [accelerator.device] if device_type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(cuda))
        stream = BatchStream(stage.dataset, training, device=accelerator.device, share=share)
        stack.enter_context(stream)
        interrupts = stack.enter_context(Interrupts(enabled=share.world == 1))
        run = Run(stage, out, accelerator, stream, ddp)
        run.interrupts = interrupts
        stack.callback(run.close)
        run.start(resume=resume)
        yield run


def _silent(_progress: Progress) -> None:
    """Nobody watches."""
