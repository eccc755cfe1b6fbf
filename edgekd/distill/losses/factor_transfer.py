"""Factor transfer: the teacher's feature is paraphrased by an autoencoder, and the student learns its code.

Source: Kim, Park & Kwak 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer" (1802.04977).
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from edgekd.distill.batches import Batch
from edgekd.distill.losses.checks import not_negative, positive, several_values, share
from edgekd.distill.losses.pairs import PairLoss, Taps
from edgekd.distill.sources import Signals
from edgekd.errors import InputError


class FactorTransfer(PairLoss):
    """reconstruction * mean((D(E(F_t)) - F_t)^2) + mean |N(E(F_t)) - N(R(F_s))|, N to length 1 by image.

    The paper trains the paraphraser (E, D) in a stage of its own, before the student's. Here both learn in one: the
    first term trains only E and D, the second only the student and its translator R, and it begins after the
    `first_stage` share of the stage, so that 0.1 gives the paraphraser a head start.
    Defaults: rate 0.5 (code channels over the teacher's), weight 200 (CIFAR-100): RepDistiller; no norm in the
    paraphraser, as there. reconstruction 1 and first_stage 0 are ours.
    Raises: ValueError: an argument out of its range. InputError: more than one tap of each.
    """

    name: ClassVar[str] = "factor_transfer"
    published_weight: ClassVar[float] = 200.0

    def __init__(
        self,
        student_tap: Taps,
        teacher_tap: Taps,
        *,
        rate: float = 0.5,
        reconstruction: float = 1.0,
        first_stage: float = 0.0,
    ) -> None:
        super().__init__(student_tap, teacher_tap)
        if len(self.student_taps) > 1:
            raise InputError("factor_transfer takes one tap of each network", fix="use a term per pair")
        positive(rate=rate)
        not_negative(reconstruction=reconstruction)
        share(first_stage=first_stage)
        self.rate, self.reconstruction, self.first_stage = rate, reconstruction, first_stage
        self.encoder: nn.Module = nn.Identity()
        self.decoder: nn.Module = nn.Identity()
        self.translator: nn.Module = nn.Identity()

    def build(self, student: Signals, teacher: Signals) -> None:
        """Paraphraser and translator of the real widths."""
        mine, theirs = self.pairs(student, teacher)[0]
        several_values(mine, self.name)
        width, code = theirs.shape[1], max(1, int(theirs.shape[1] * self.rate))
        self.encoder = _three(nn.Conv2d, (width, width, code, code), norm=False)
        self.decoder = _three(nn.ConvTranspose2d, (code, code, width, width), norm=False)
        self.translator = _three(nn.Conv2d, (mine.shape[1], mine.shape[1], code, code), norm=True)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Shapes: (batch, any channels, height, width) -> ()."""
        mine, theirs = self.pairs(student, teacher)[0]
        code = self.encoder(theirs)
        paraphrase = self.reconstruction * functional.mse_loss(self.decoder(code), theirs)
        a, b = (functional.normalize(f.flatten(1)) for f in (code.detach(), self.translator(mine)))
        started = float(batch.progress >= self.first_stage)
        return paraphrase + started * (a - b).abs().mean()


def _three(layer: type[nn.Conv2d | nn.ConvTranspose2d], widths: tuple[int, ...], *, norm: bool) -> nn.Sequential:
    """Three 3x3 layers with LeakyReLU(0.1), as in the reference code."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [layer(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*parts)
