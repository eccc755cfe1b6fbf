"""Short distillation with successive halving: the candidates learn a little from the real teacher, half stay, and on.

The prior only proposes; what is learned in a short while on the real data decides. Source: Jamieson & Talwalkar 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgekd.distill import evaluate
from edgekd.pipeline.context import Context
from edgekd.pipeline.distilling import stage_for, terms_for
from edgekd.pipeline.resolution import untaught
from edgekd.pipeline.teaching import teach
from edgekd.students import Candidate


def halve(context: Context, candidates: Sequence[Candidate]) -> tuple[Candidate, dict[str, Any]]:
    """The candidate that learns best, and what each reached: epochs double as half of them leave."""
    reached: list[list[float]] = [[] for _ in candidates]
    left, epochs, rounds = list(range(len(candidates))), context.plan.search_epochs, 0
    while len(left) > 1:
        for number in left:
            found = _learned(context, candidates[number], epochs, f"search-{rounds}-{number}")
            reached[number].append(found)
            said = f"round {rounds + 1}, candidate {number}, {epochs:g} epochs: held-out top-1 {found:.2%}"
            context.events.note(said)
        # Ties keep the order of the prior, so the same numbers always give the same student.
        left = sorted(left, key=lambda number: (-reached[number][rounds], number))[: max(1, len(left) // 2)]
        epochs, rounds = 2 * epochs, rounds + 1
    rows = [
        {"score": c.score, "spec": c.spec.model_dump(mode="json"), "val_top1": values}
        for c, values in zip(candidates, reached, strict=True)
    ]
    return candidates[left[0]], {"rows": rows, "chosen": left[0], **correlations(rows)}


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Spearman: prior against the first round, and the first round against the last that more than two took part in."""
    first = [row["val_top1"][0] for row in rows]
    rounds = sorted((len(row["val_top1"]) for row in rows), reverse=True)
    last = rounds[2] if len(rounds) > 2 else 1
    lasting = [row["val_top1"] for row in rows if len(row["val_top1"]) >= last] if last > 1 else []
    return {
        "prior_to_proxy": _spearman([row["score"] for row in rows], first),
        "proxy_to_longer": _spearman([values[0] for values in lasting], [values[last - 1] for values in lasting]),
    }


def _spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    from scipy.stats import spearmanr

    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(spearmanr(one, other)[0])


def _learned(context: Context, candidate: Candidate, epochs: float, name: str) -> float:
    torch.manual_seed(context.settings.seed)
    student = untaught(context, candidate.spec)
    own = context.dataset.at(candidate.spec.image_size)
    terms, _ = terms_for(context, student, candidate.spec.image_size)
    teach(context, stage_for(context, name, student, terms, epochs=epochs))
    return float(evaluate(student, own.val, own.preprocessing).to_dict()["top1"])
