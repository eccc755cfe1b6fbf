"""Everything that learns, as one module: students and losses, so that one DDP wrapper and one optimiser hold them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batch, seed_of
from edgekd.distill.collaboration import Collaboration
from edgekd.distill.sources import Live, Signals, Source, autocast_as
from edgekd.distill.stage import Stage
from edgekd.distill.terms import Context
from edgekd.errors import InputError, did_you_mean


class Ensemble(nn.Module):
    """Students and losses of a stage. forward: a batch and what the teachers said -> (total loss, value by term)."""

    def __init__(self, stage: Stage, students: Mapping[str, Live]) -> None:
        super().__init__()
        self.terms, self.lives = tuple(stage.terms), students
        self.students = nn.ModuleDict({name: live.model for name, live in students.items()})
        self.losses = nn.ModuleList([term.loss for term in stage.terms])
        self.listened_to = bool(stage.everyone)
        self.together = {name: source for name, source in stage.sources.items() if isinstance(source, Collaboration)}
        self.spoken: dict[str, Signals] = {}

    def forward(self, batch: Batch, taught: Mapping[str, Signals]) -> tuple[Tensor, list[Tensor]]:
        """`taught` is float32, no gradient. Returns the total () and each term's value (), unweighted and detached.

        What the students said stays in `spoken`, detached, where the stage has players.
        """
        spoken = {name: live.signals(batch).map(Tensor.float) for name, live in self.lives.items()}
        if self.listened_to:  # else features would stay in memory through the backward pass
            self.spoken = {name: signals.map(Tensor.detach) for name, signals in spoken.items()}
        if self.together:
            peers = {name: source.together(spoken, batch.labels) for name, source in self.together.items()}
            taught = {**taught, **peers}
        total: Tensor | None = None
        values = []
        with autocast_as(None, batch.images.device.type):
            for term in self.terms:
                weight = term.weight_at(batch.progress)
                if weight == 0:
                    values.append(batch.images.new_zeros(()))
                    continue
                mine = theirs = spoken[term.student]
                if term.source is not None:
                    theirs = taught.get(term.source) or spoken[term.source].map(Tensor.detach)
                value = term.loss(mine, theirs, batch)
                values.append(value.detach())
                value = value if weight == 1 else weight * value
                total = value if total is None else total + value
        return batch.images.new_zeros(()) if total is None else total, values

    def owned(self) -> list[list[nn.Parameter]]:
        """What learns, by who owns it: each student, then each loss. Clipped as one, a projector or an agent with large
        gradients takes the student's step away: factor transfer left it a hundredth."""
        seen: set[int] = set()
        found = []
        for owner in (*self.students.values(), *self.losses):
            own = [p for p in owner.parameters() if p.requires_grad and id(p) not in seen]
            seen.update(map(id, own))
            found += [own] if own else []
        return found

    def may_skip_parameters(self) -> bool:
        """Whether some parameter may get no gradient in a step, which DDP must know: a weight that can be 0, or a
        student whose logits nobody reads."""
        scheduled = any(callable(term.weight) or term.weight == 0 for term in self.terms)
        by_logits = {term.student for term in self.terms if not term.loss.needs().student}
        return scheduled or by_logits != set(self.lives)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Each student's state dict, with the module versions that torch hangs on it: an observer of a quantised graph
        that is loaded without its version falls back to an old eps."""
        return {name: student.state_dict() for name, student in self.students.items()}


def bind(stage: Stage, students: Mapping[str, Live], sources: Mapping[str, Source], batch: Batch) -> Ensemble:
    """Show every model the first batch, check what they answer, and build the losses' own modules from it.

    Raises: InputError: a model cannot run on it, a tap is missing, or the classes do not fit.
    """
    for name, source in stage.sources.items():
        if isinstance(source, Collaboration) and (strangers := sorted(source.members.keys() - students.keys())):
            raise stage.error(f"source '{name}': no student '{strangers[0]}'", did_you_mean(strangers[0], students))
    said = {name: source.bind(batch.images, stage.taps_of(name)) for name, source in {**students, **sources}.items()}
    classes = len(stage.dataset.classes)
    for name in students:
        if said[name].logits.shape != (len(batch.labels), classes):
            got = tuple(said[name].logits.shape)
            raise stage.error(f"student '{name}' gives logits {got}", f"the data has {classes} classes")
    for term in stage.terms:
        mine, theirs = said[term.student].map(Tensor.float), said[term.source or term.student].map(Tensor.float)
        # Projectors start the same in every process and with every teacher, whatever was drawn before.
        torch.manual_seed(seed_of(stage.training.seed, "build", term.label))
        models = [_model_of({**sources, **students}[name]) for name in (term.student, term.source or term.student)]
        try:
            term.loss.prepare(Context(stage.dataset.train.labels, stage.training.seed, *models))
            term.loss.build(mine, theirs)
        except InputError as error:
            raise stage.error(f"term '{term.label}': {error.what}", error.fix) from error
        term.loss.to(batch.images.device).train()
    return Ensemble(stage, students)


def _model_of(source: Source) -> nn.Module | None:
    return source.model if isinstance(source, Live) else None
