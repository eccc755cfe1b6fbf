"""`edgekd bench rival`: the width of equal latency, and both networks measured and taught by one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgekd.benchmarks.rival import Rival, page_text, spec_fits, verdict, width_of_equal_latency
from edgekd.data import Dataset
from edgekd.device_benchmarks import PairedRatio
from edgekd.device_benchmarks.contender import Contender, ZooModule
from edgekd.device_benchmarks.loading import module_of
from edgekd.errors import InputError
from edgekd.latency.networks import build_named
from edgekd.students import StageSpec, StudentSpec, read_spec
from edgekd.teachers.architectures import build

SPEC = StudentSpec(
    image_size=28,
    in_channels=1,
    num_classes=10,
    stem_channels=8,
    head_channels=32,
    stages=(StageSpec(channels=16, depth=1, stride=2),),
)


def said(ratio: float) -> PairedRatio:
    figures = {"ratio": ratio, "lo": ratio, "hi": ratio, "cpu_ratio": ratio, "cpu_lo": ratio, "cpu_hi": ratio}
    flags = {"significant": True, "cpu_significant": True, "clocks_disagree": False}
    return PairedRatio(baseline="rival", contender="student", n_blocks=8, text="", **figures, **flags)


@pytest.mark.parametrize("per_width", [0.7, 1.0, 2.35, 9.0])
def test_the_width_whose_time_is_nearest_is_found_in_few_measurements(per_width: float) -> None:
    asked: list[float] = []

    def measure(width: float) -> PairedRatio:
        asked.append(width)
        return said(0.1 + per_width * width)

    found = width_of_equal_latency(measure)
    assert abs(found - 0.9 / per_width) <= 0.05
    assert len(asked) == len(set(asked)) <= 10


def test_a_rival_out_of_reach_is_an_error() -> None:
    with pytest.raises(InputError, match=r"even at width 0\.05 the rival takes 3\.00x"):
        width_of_equal_latency(lambda width: said(3.0))
    with pytest.raises(InputError, match=r"even at width 4\.95 the rival takes 0\.50x"):
        width_of_equal_latency(lambda width: said(0.5))


def test_a_networks_channels_follow_the_width_and_its_stem_the_stride(tiny_dataset: Dataset) -> None:
    small, large = (Rival("torchvision:mobilenet_v3_small", 1).built(width, tiny_dataset) for width in (0.25, 1.0))
    assert small.features[0][0].stride == (1, 1)
    assert sum(p.numel() for p in small.parameters()) < 0.25 * sum(p.numel() for p in large.parameters())
    with torch.inference_mode():
        assert small.eval()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("name", ["mobilenet_v2@0", "mobilenet_v2@x", "resnet18@0.5", "mobilenet_v3_small@-1"])
def test_a_width_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match="is no width of a network"):
        build(f"torchvision:{name}", num_classes=10, in_channels=3)


def test_a_student_of_other_data_or_no_student_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    spec_fits(SPEC, tiny_dataset, tmp_path)
    with pytest.raises(InputError, match="the data is of"):
        spec_fits(SPEC.model_copy(update={"num_classes": 7}), tiny_dataset, tmp_path)
    file = tmp_path / "student.json"
    for text in ('{"kind": "stages"}', '{"kind": "tree"}', "[1]"):
        file.write_text(text)
        with pytest.raises(InputError, match="not a student"):
            read_spec(file)


def test_the_page_tells_latency_accuracy_and_lead() -> None:
    accuracies = {"student": (0.81, 0.79), "rival": (0.75, 0.77)}
    rows = [
        {
            "student": who, "method": method, "seed": seed, "test_top1": top1 - 0.1 * (method == "no-kd"),
            "learning_rate": 0.1, "factor": 1.0, "test_nll": 1.0, "steps": 10, "students": 1,
        }
        for who, both in accuracies.items() for seed, top1 in enumerate(both) for method in ("no-kd", "dkd")
    ]  # fmt: skip
    answer = {
        "rival": "torchvision:mobilenet_v2", "stem_stride": 1, "width": 0.35, "runtime": "openvino", "image_size": 32,
        "rival_over_student": {"ratio": 1.012, "lo": 0.98, "hi": 1.05},
    }  # fmt: skip
    about = {"train_images": 100, "val_images": 10, "test_images": 20, "epochs": 2, "batch_size": 8}
    text = page_text(about, rows, answer, ["dkd"])
    assert "torchvision:mobilenet_v2@0.35, stem stride 1 takes 1.012x the student's time" in text
    assert "| student | dkd | 80.00 | 1.41 | 2 |" in text
    assert "dkd: the student leads by +6.00, +2.00 points" in text
    assert verdict(rows, "dkd")["wins"]
    assert json.dumps(verdict(rows, "kd")) == '{"method": "kd", "seeds": [], "lead_points": [], "wins": false}'


def test_a_width_is_known_wherever_networks_have_names() -> None:
    zoo = ZooModule(library="torchvision", name="mobilenet_v2@0.5")
    made = [
        build("torchvision:mobilenet_v2@0.5", num_classes=1000, in_channels=3),
        build_named("torchvision:mobilenet_v2@0.5"),
        module_of(Contender(name="n", source=zoo))[0],
    ]
    assert len({sum(p.numel() for p in module.parameters()) for module in made}) == 1
