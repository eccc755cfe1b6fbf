"""The worked example of CONTRIBUTING is a whole method: it is short, it trains, it is saved."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from edgekd.data.dataset import Dataset
from edgekd.distill import CrossEntropy, Signals, Stage, Term, Training, last_path, run_stage
from edgekd.distill.batches import Batch
from edgekd.distill.checkpoint import load

CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def example_code() -> str:
    section = CONTRIBUTING.read_text().split("## Add a distillation loss")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


@pytest.fixture
def example(tmp_path: Path) -> ModuleType:
    """The code block as the file that a contributor would write."""
    path = tmp_path / "channel_statistics.py"
    path.write_text(example_code())
    spec = importlib.util.spec_from_file_location("channel_statistics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_one_file_of_at_most_40_lines_of_code() -> None:
    assert len([line for line in example_code().splitlines() if line.strip()]) <= 40


def test_the_example_trains_two_steps_and_its_projector_is_in_the_checkpoint(
    example: ModuleType, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    def net(width: int) -> nn.Module:
        features = nn.Sequential(nn.Conv2d(1, width, 4, stride=4), nn.ReLU())
        return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    torch.manual_seed(0)
    training = Training(epochs=1, batch_size=300, device="cpu", learning_rate=0.1)
    loss = example.ChannelStatistics("0", "0")
    stage = Stage("try", tiny_dataset, {"student": net(4)}, [Term(CrossEntropy())], {"teacher": net(8)}, training)
    stage = dataclasses.replace(stage, terms=[Term(CrossEntropy()), Term(loss, source="teacher")])
    result = run_stage(stage, out=tmp_path)
    assert result.steps == 2
    assert result.history[-1].losses["channel_statistics"] > 0
    saved = load(last_path(tmp_path))["losses"]
    assert saved["1.projectors.0.weight"].shape == (8, 4, 1, 1)
    assert torch.equal(saved["1.projectors.0.weight"], loss.projectors[0].weight)


def test_the_examples_formula_is_what_it_says(example: ModuleType) -> None:
    s, t = torch.randn(2, 3, 2, 2), torch.randn(2, 4, 2, 2)
    mine, theirs = Signals(torch.zeros(2, 3), {"a": s}), Signals(torch.zeros(2, 3), {"b": t})
    loss = example.ChannelStatistics("a", "b", spread=0.5)
    loss.build(mine, theirs)
    seen = loss.projectors[0](s)
    means = sum((seen[b, c].mean() - t[b, c].mean()) ** 2 for b in (0, 1) for c in range(4)) / 8
    spreads = sum((seen[b, c].std(correction=0) - t[b, c].std(correction=0)) ** 2 for b in (0, 1) for c in range(4)) / 8
    batch = Batch(s, torch.zeros(2, dtype=torch.long), torch.arange(2), step=0, progress=0.0)
    torch.testing.assert_close(loss(mine, theirs, batch), means + 0.5 * spreads, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="spread must not be negative"):
        example.ChannelStatistics("a", "b", spread=-1.0)
