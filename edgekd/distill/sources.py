"""Sources: whoever says something about a batch. A teacher is one, and so is a student.

What a source says is `Signals`. To add one (an average of students, a cache, a pool of teachers), implement `Source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batch
from edgekd.distill.taps import forward_with_taps
from edgekd.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Signals:
    """What a model said about one batch. logits: (batch, classes); taps: tensors by tap."""

    logits: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Signals:
        """The same signals with every tensor changed."""
        return Signals(change(self.logits), {tap: change(tensor) for tap, tensor in self.taps.items()})

    def is_finite(self) -> bool:
        """Whether no value is nan or inf."""
        return all(bool(torch.isfinite(t).all()) for t in (self.logits, *self.taps.values()))


class Source(Protocol):
    """Who teaches. `bind` comes once, before the first batch."""

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """Get ready, on the device of `images`, to report these taps; answer for this first example, in eval mode."""
        ...

    def signals(self, batch: Batch) -> Signals:
        """What it says about a batch."""
        ...

    def close(self) -> None:
        """The stage is over: undo what `bind` changed."""
        ...


class Live:
    """A model that is run on every batch: a teacher (frozen: eval mode, no gradient) or a student.

    The model returns logits, or (logits, {tap: tensor}) as a quantisation-aware graph or `WithTaps` does.
    bfloat16: run under autocast, which leaves weights and softmax in float32 (`half` may be set to float16). compile:
    through torch.compile where no tap is read (hooks would break its graph).
    Raises: InputError: the model returns something else, or has no such tap.
    """

    def __init__(self, model: nn.Module, *, frozen: bool = True, bfloat16: bool = False, compile: bool = False) -> None:
        self.model, self.frozen, self.bfloat16, self.compile = model, frozen, bfloat16, compile
        self.half = torch.bfloat16
        self._run_model: Callable[[Tensor], Any] = model
        self._taps: tuple[str, ...] = ()
        self._returns_taps = False
        self._home = device_of(model)
        self.layout: torch.memory_format = torch.contiguous_format

    def bind(self, images: Tensor, taps: Sequence[str]) -> Signals:
        """Move to the device and into the faster memory layout; the answer is in eval mode, so no statistic moves."""
        self._taps = tuple(taps)
        self._home = device_of(self.model)
        self.model.to(images.device).eval()
        if self.frozen:
            self.model.requires_grad_(False)
        try:
            self.layout = use_channels_last(self.model, images)
            with torch.no_grad(), self._autocast(images.device):
                self._returns_taps = isinstance(self.model(images[:2]), tuple)
                said = self._run(images)
        except RuntimeError as error:
            name, shape = type(self.model).__name__, tuple(images.shape)
            raise InputError(f"{name} cannot run on images {shape}: {str(error).splitlines()[0]}") from error
        if self.compile and not self._taps:
            self._run_model = torch.compile(self.model)
        return said

    def signals(self, batch: Batch) -> Signals:
        """Logits and taps, as float32 where they were computed in it."""
        enabled = torch.is_grad_enabled() and not self.frozen
        with torch.set_grad_enabled(enabled), self._autocast(batch.images.device):
            if self.frozen and batch.teacher_images is not None:
                return self._run(batch.teacher_images)
            return self._run(batch.images)

    def close(self) -> None:
        """Back on the device it came from and in the contiguous layout, as exporters expect it; eval mode."""
        self.model.to(memory_format=torch.contiguous_format)
        self.model.to(self._home).eval()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return autocast_as(self.half if self.bfloat16 else None, device.type)

    def _run(self, images: Tensor) -> Signals:
        images = images.contiguous(memory_format=self.layout)
        if not self._taps:
            return Signals(logits_of(self._run_model(images)))
        if not self._returns_taps:
            output, taps = forward_with_taps(self.model, images, self._taps)
            return Signals(logits_of(output), taps)
        output = self.model(images)
        missing = [tap for tap in self._taps if tap not in output[1]]
        if missing:
            name = type(self.model).__name__
            raise InputError(f"{name} returns no tap '{missing[0]}'", fix=did_you_mean(missing[0], map(str, output[1])))
        return Signals(logits_of(output), {tap: output[1][tap] for tap in self._taps})


_AS_IS = nullcontext()


def autocast_as(half: torch.dtype | None, device_type: str) -> AbstractContextManager[object]:
    """Autocast to a type of 16 bits, or none. Entering torch.autocast takes 10 us: a region that is right stays."""
    if half is None and not torch.is_autocast_enabled(device_type):
        return _AS_IS
    # No cache: a frozen weight is never cached, and a trained one is used once per forward.
    return torch.autocast(device_type, half or torch.bfloat16, enabled=half is not None, cache_enabled=False)


def logits_of(output: Any) -> Tensor:
    """Logits from a model's output: a tensor, the first of a pair (logits, taps), or what has them as `.logits`.

    The last is how Hugging Face's image classifiers answer. Raises: InputError: the output is none of these.
    """
    logits = output[0] if isinstance(output, (tuple, list)) and output else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"a model returned {type(output).__name__}", fix="it must return logits, (logits, taps), or have .logits"
        )
    return logits


def use_channels_last(model: nn.Module, images: Tensor) -> torch.memory_format:
    """Put the model in channels_last where it can run so, and say which layout its input must have.

    Measured on a CPU with AMX, one thread, batch 128: WRN-16-2 forward in bf16 271 -> 75 ms, the training step of an
    inverted-residual student 615 -> 342 ms. A model that calls `view` on a feature map cannot and stays as it is.
    """
    try:
        model.to(memory_format=torch.channels_last)
        with torch.no_grad():
            model(images[:2].contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        model.to(memory_format=torch.contiguous_format)
        if "view size is not compatible" not in str(error):
            raise
        return torch.contiguous_format
    return torch.channels_last


def device_of(model: nn.Module) -> torch.device:
    """Where a model lies: the device of its first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, and every submodule's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)  # an exported graph switches its ops here
        for module, mode in modes:
            module.training = mode
