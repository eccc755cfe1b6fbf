"""The loop: carries out a stage on `accelerate` (a CPU, a GPU, or the processes that torchrun started).

Resuming is exact because nothing remembers where it was: batches, augmentation, dropout and learning rate are functions
of the step; weights, optimiser and loss modules come from the checkpoint. Nothing is printed; `on_progress` is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from edgekd.distill import checkpoint
from edgekd.distill.averaging import WeightAverage
from edgekd.distill.batches import Batch, BatchStream, seed_of
from edgekd.distill.checkup import Checkup
from edgekd.distill.ensemble import bind
from edgekd.distill.evaluate import accuracy_of, predict
from edgekd.distill.faults import loss_broke, stop_if_weights_broke
from edgekd.distill.interrupts import Interrupted, Interrupts
from edgekd.distill.meter import Meter
from edgekd.distill.optimiser import build_optimiser, learning_rate_at
from edgekd.distill.players import Roster
from edgekd.distill.precision import choose_bfloat16
from edgekd.distill.results import EpochRecord, Progress, StageResult
from edgekd.distill.sources import Live, evaluating
from edgekd.distill.stage import Stage

REPORT_EVERY_S = 0.5
OnProgress = Callable[[Progress], None]


def _as_target(said: torch.Tensor) -> torch.Tensor:
    """What a teacher said, as losses read it."""
    if said.requires_grad:
        said = said.detach()
    return said.float()


class Run:
    """The moving parts of one `run_stage` (running.py). `step` counts the optimiser steps done."""

    interrupts: Interrupts

    def __init__(
        self, stage: Stage, out: Path, accelerator: Accelerator, stream: BatchStream, ddp: DistributedDataParallelKwargs
    ) -> None:
        self.stage, self.out, self.accelerator, self.stream = stage, out, accelerator, stream
        self.device: torch.device = accelerator.device
        self.total_steps = stage.total_steps
        self.bfloat16 = choose_bfloat16(stage.training.mixed_precision, self.device.type, stage.students.values())
        compiles = stage.training.compile
        self.students = {
            name: Live(model, frozen=False, bfloat16=self.bfloat16.students, compile=compiles)
            for name, model in stage.students.items()
        }
        self.sources = {
            name: Live(source, bfloat16=self.bfloat16.teachers, compile=compiles)
            if isinstance(source, nn.Module)
            else source
            for name, source in stage.sources.items()
        }
        fp16 = stage.training.mixed_precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type) if fp16 else None
        for live in self._lives():
            live.half = torch.float16 if fp16 else torch.bfloat16
        self.ensemble = bind(stage, self.students, self.sources, stream.at(0))
        self.asked = {name: source for name, source in self.sources.items() if name not in self.ensemble.together}
        if all(live.layout == torch.channels_last for live in self._lives()):
            stream.layout = torch.channels_last  # once for all models, in place of once for each
        self.players = stage.everyone
        roster = Roster(self.students, self.sources, stage.dataset, self.device, stage.training)
        for player in self.players.values():
            player.join(roster)
        decay = stage.training.ema_decay
        self.average = None if decay is None else WeightAverage(dict(stage.students), decay=decay)
        ddp.find_unused_parameters = self.ensemble.may_skip_parameters()
        # Losses keep their buffers equal by themselves; DDP would send a memory bank of 51 MB before every step.
        own = [name for name, _ in self.ensemble.named_buffers() if name.startswith("losses.")]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            self.ensemble, own
        )
        self.wrapped: nn.Module = accelerator.prepare(self.ensemble)
        self.owned = self.ensemble.owned()
        self.parameters = [parameter for own in self.owned for parameter in own]
        self.optimiser = build_optimiser(self.parameters, stage.training)
        self.meter = Meter([term.label for term in stage.terms], self.device)
        looks = stage.diagnose and self._is_main
        self.checkup = Checkup(stage, self.students, self.sources, self.device) if looks else None
        self.history: list[EpochRecord] = []
        self.step = 0
        self.epoch_seconds = self.seconds = 0.0

    def _lives(self) -> Iterator[Live]:
        yield from self.students.values()
        yield from (source for source in self.sources.values() if isinstance(source, Live))

    # ------------------------------------------------------------------ beginning and end

    def start(self, *, resume: bool) -> None:
        """Train mode; weights and position of the checkpoint where one is to be resumed."""
        path = checkpoint.last_path(self.out)
        document = checkpoint.load(path) if resume and path.exists() else None
        if document is not None and document["identity"]["stage"] == self.stage.name:
            checkpoint.same_identity(document, self.stage.identity(), path)
            self.step = int(document["step"])
            self._train_mode()
            self._restore(document)
        else:
            self._train_mode()
            self._look(last=False)

    def _look(self, *, last: bool) -> None:
        """The checkup, where it is due; it leaves the models as they were."""
        if self.checkup is None or (self.step and not self.checkup.due(self.step, last=last)):
            return
        self.checkup.look(self.step, self.meter.first_by_term(), [record.losses for record in self.history])
        self._repeat_milestones()

    def _train_mode(self) -> None:
        for student in self.students.values():
            student.model.train()
        self._repeat_milestones()

    def _repeat_milestones(self) -> None:
        for milestone in self.stage.milestones:
            if milestone.step(self.total_steps) < self.step:
                milestone.act()

    def close(self) -> None:
        """Models as the caller gave them, but in eval mode."""
        for source in (*self.sources.values(), *self.students.values()):
            source.close()

    def _install_best(self) -> None:
        self.accelerator.wait_for_everyone()
        for name, state in checkpoint.load(checkpoint.best_path(self.out))["students"].items():
            self.students[name].model.load_state_dict(state)

    def _gave_up(self) -> bool:
        """Whether the held-out accuracy has not risen for `patience` epochs."""
        patience = self.stage.training.patience
        if patience is None or len(self.history) <= patience:
            return False
        found = [record.val_accuracy for record in self.history]
        return max(found[:-patience]) >= max(found[-patience:])

    def result(self) -> StageResult:
        """What the stage came to; the students hold their moving average, or the best of it, where one was kept."""
        if self.average is not None:
            self.average.install()
        if self.stage.training.patience is not None:
            self._install_best()
        best = max(self.history, key=lambda record: record.val_accuracy)
        trained_s = sum(record.seconds for record in self.history)
        return StageResult(
            stage=self.stage.name,
            steps=self.step,
            history=tuple(self.history),
            val_accuracy=self.history[-1].val_accuracy,
            best_val_accuracy=best.val_accuracy,
            best_epoch=best.epoch,
            images_per_s=self.step * self.stage.training.batch_size / max(trained_s, 1e-9),
            seconds=self.seconds,
            device=str(self.device),
            processes=self.stream.share.world,
            precision=("fp16" if self.scaler else "bf16") if self.bfloat16.students else "fp32",
            checks=() if self.checkup is None else self.checkup.checks,
            figures=None if self.checkup is None else self.checkup.figures,
        )

    # ------------------------------------------------------------------ the loop

    def go(self, on_progress: OnProgress, *, steps: int | None = None) -> None:
        """Steps to the end, or so many, with validation after each epoch, reports and checkpoints between."""
        interrupts, end = self.interrupts, self.total_steps if steps is None else self.step + steps
        first_step, began = self.step, time.perf_counter()
        seconds_before = self.seconds
        reported = saved = began
        while self.step < end and not self._gave_up():
            began_step = time.perf_counter()
            self._one_step()
            now = time.perf_counter()
            self.epoch_seconds += now - began_step
            record = self._end_epoch() if self._epoch_ends() else None
            now = time.perf_counter()
            self.seconds = seconds_before + now - began
            if record or now - reported >= REPORT_EVERY_S:
                eta_s = (now - began) / (self.step - first_step) * (self.total_steps - self.step)
                on_progress(self._progress(eta_s, record))
                reported = now
            if self._is_main and (record or interrupts.wanted or now - saved >= self.stage.training.checkpoint_every_s):
                self._save()
                saved = time.perf_counter()
            if interrupts.wanted and self.step < self.total_steps and not self._gave_up():
                done = f"step {self.step} of {self.total_steps}"
                raise Interrupted(
                    f"interrupted at {done}", where=f"stage '{self.stage.name}'", fix="go on with --resume"
                )

    def _one_step(self) -> None:
        for milestone in self.stage.milestones:
            if milestone.step(self.total_steps) == self.step:
                milestone.act()
        batch = self.stream.take(self.step)
        self._seed()
        learning_rate = self._learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        parts = batch.parts(self.stage.training.accumulate)
        for number, part in enumerate(parts, start=1):
            self.meter.add(self._learn_from(part, len(parts), last=number == len(parts)), len(parts))
        self.meter.end_step(self.step)
        if self.device.type == "cpu":  # free here; on a GPU it would wait for the step, so there reports and saves look
            self._stop_if_not_finite()
        self._apply()
        for parameter in self.parameters:
            parameter.grad = None
        for player in self.players.values():
            player.after_step(self.step)
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1

    def _apply(self) -> None:
        """The gradients, clipped, to the weights."""
        clip_norm = self.stage.training.clip_norm
        if self.scaler is not None:
            self.scaler.unscale_(self.optimiser)
        if clip_norm is not None:
            for own in self.owned:
                nn.utils.clip_grad_norm_(own, clip_norm)
        if self.scaler is None:
            self.optimiser.step()
            return
        self.scaler.step(self.optimiser)  # leaves a step out whose gradients overflowed
        self.scaler.update()

    def _learn_from(self, batch: Batch, parts: int, *, last: bool) -> list[torch.Tensor]:
        """Gradients of one part of a batch, and its loss values by term. Processes exchange gradients in the last."""
        for player in self.players.values():
            batch = player.before(batch)
        taught = {name: source.signals(batch).map(_as_target) for name, source in self.asked.items()}
        with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            total, values = self.wrapped(batch, taught)
            # Not accelerator.backward, which divides the loss by 1 first, and its gradient again: 12 us.
            total = total if parts == 1 else total / parts
            (total if self.scaler is None else self.scaler.scale(total)).backward()
        for player in self.players.values():
            player.after(batch, self.ensemble.spoken, taught)
        self.ensemble.spoken = {}
        result: list[torch.Tensor] = values
        return result

    def _seed(self) -> None:
        """Dropout's generators, by step and process."""
        seed = seed_of(self.stage.training.seed, "step", self.step, self.stream.share.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _learning_rate(self) -> float:
        return learning_rate_at(self.step, self.total_steps, self.stage.training)

    def _epoch_of(self, step: int) -> int:
        return step * self.stage.training.batch_size // len(self.stage.dataset.train)

    def _epoch_ends(self) -> bool:
        return self.step == self.total_steps or self._epoch_of(self.step) > self._epoch_of(self.step - 1)

    def _end_epoch(self) -> EpochRecord:
        self._stop_if_not_finite()
        sums = self.accelerator.reduce(self.meter.sums, "mean").tolist()
        images = self.meter.count * self.stage.training.batch_size
        with nullcontext() if self.average is None else self.average.shown():
            return self._note_epoch(sums, images)

    def _note_epoch(self, sums: list[float], images: int) -> EpochRecord:
        """The epoch's record in the history; best.pt where it is the best."""
        record = EpochRecord(
            epoch=len(self.history) + 1,
            step=self.step,
            losses={label: s / self.meter.count for label, s in zip(self.meter.labels, sums, strict=True)},
            val_accuracy=self._validate(),
            learning_rate=float(self.optimiser.param_groups[0]["lr"]),
            images_per_s=images / max(self.epoch_seconds, 1e-9),
            seconds=self.epoch_seconds,
        )
        best = max((r.val_accuracy for r in self.history), default=-1.0)
        self.history.append(record)
        self.meter.reset()
        self.epoch_seconds = 0.0
        self._look(last=self.step == self.total_steps)
        if self._is_main and record.val_accuracy > best:
            document = {"stage": self.stage.name, "step": self.step, "val_accuracy": record.val_accuracy}
            checkpoint.save(checkpoint.best_path(self.out), {**document, "students": self.ensemble.state()})
        return record

    def _validate(self) -> float:
        """Accuracy of the first student, in float32, measured by the main process and told to the others."""
        student = next(iter(self.students.values()))
        top1 = torch.zeros((), dtype=torch.float64, device=self.device)
        if self._is_main:
            with evaluating(student.model):
                logits = predict(
                    student.model, self.stage.dataset.val, self.stage.dataset.preprocessing, layout=student.layout
                )
            top1 += accuracy_of(logits, self.stage.dataset.val.labels)
            self._repeat_milestones()
        return float(self.accelerator.reduce(top1, "sum"))

    def _progress(self, eta_s: float, record: EpochRecord | None) -> Progress:
        self._stop_if_not_finite()
        images = self.meter.count * self.stage.training.batch_size
        return Progress(
            stage=self.stage.name,
            step=self.step,
            total_steps=self.total_steps,
            epoch=len(self.history) + (0 if record else 1),
            images_per_s=record.images_per_s if record else images / max(self.epoch_seconds, 1e-9),
            eta_s=eta_s,
            losses=self.meter.newest_by_term(),
            epoch_record=record,
            warnings=() if self.checkup is None else self.checkup.new_warnings(),
        )

    @property
    def _is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    # ------------------------------------------------------------------ what can go wrong

    def _stop_if_not_finite(self) -> None:
        bad = self.meter.first_bad_term()
        if bad is not None:
            raise loss_broke(self.stage, bad[0], self.stream.at(bad[1]), self.sources)

    # ------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        self._stop_if_not_finite()
        stop_if_weights_broke(self.stage, self.ensemble, self.step)
        document: dict[str, Any] = {
            "identity": self.stage.identity(),
            "step": self.step,
            "students": self.ensemble.state(),
            "losses": self.ensemble.losses.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "sums": self.meter.sums,
            "count": self.meter.count,
            "history": [asdict(record) for record in self.history],
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "players": {name: player.state_dict() for name, player in self.players.items()},
        }
        if self.scaler is not None:
            document["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            document["average"] = self.average.state_dict()
        if self.checkup is not None:
            document["checkup"] = {**self.checkup.state_dict(), "first": self.meter.first}
        checkpoint.save(checkpoint.last_path(self.out), document)

    def _restore(self, document: dict[str, Any]) -> None:
        for name, student in self.students.items():
            student.model.load_state_dict(document["students"][name])
        self.ensemble.losses.load_state_dict(document["losses"])
        self.optimiser.load_state_dict(document["optimiser"])
        for name, player in self.players.items():
            player.load_state_dict(document["players"][name])
        if self.scaler is not None:
            self.scaler.load_state_dict(document["scaler"])
        if self.average is not None:
            self.average.load_state_dict(document["average"])
        if self.checkup is not None and "checkup" in document:
            self.checkup.load_state_dict(document["checkup"])
            self.meter.first = document["checkup"]["first"]
        self.meter.restore(document["sums"], int(document["count"]))
        self.history = [EpochRecord(**record) for record in document["history"]]
        self.epoch_seconds, self.seconds = float(document["epoch_seconds"]), float(document["seconds"])
