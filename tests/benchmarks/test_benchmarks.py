"""The benchmarks measure what they say: the same training by hand and by edgekd, every method, results that resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgekd.benchmarks import tuning
from edgekd.benchmarks.catalogue import BASELINE, LEFT_OUT, catalogue, choose
from edgekd.benchmarks.costs import measure_costs
from edgekd.benchmarks.hand_written import HandWritten
from edgekd.benchmarks.interleaved import interleaved
from edgekd.benchmarks.loop import Nothing, kd_loop, random_data
from edgekd.benchmarks.loop_page import write_page as write_loop_page
from edgekd.benchmarks.methods import compare, read_results, read_rows
from edgekd.benchmarks.methods_page import Extra, summary, table, write_page
from edgekd.benchmarks.page import BEGIN, END, replace_results
from edgekd.benchmarks.protocol import Comparison, Protocol, scaled, subset, widened
from edgekd.benchmarks.remembering import Remembered
from edgekd.benchmarks.tuning import climbed, tune
from edgekd.data.dataset import Dataset
from edgekd.distill import Training
from edgekd.distill.batches import BatchStream, Share
from edgekd.distill.interrupts import Interrupted
from edgekd.distill.losses import LOSSES
from edgekd.errors import InputError
from edgekd.recipes import load_recipe, parse_recipe
from edgekd.teachers import Teacher
from edgekd.teachers.architectures import build

CPU = torch.device("cpu")


def teacher_of(dataset: Dataset) -> Teacher:
    torch.manual_seed(1)
    channels = dataset.preprocessing.channels
    model = build("edgekd:resnet8-4", num_classes=dataset.num_classes, in_channels=channels)
    return Teacher("t", model.eval().requires_grad_(False), dataset.preprocessing, dataset.num_classes, "f")


def tiny_comparison(dataset: Dataset, **changes: object) -> Comparison:
    protocol = Protocol(epochs=1, batch_size=32, device="cpu", shift_px=1, **changes)  # type: ignore[arg-type]
    return Comparison(subset(dataset, 64), teacher_of(dataset), ("edgekd:resnet8-2",), protocol)


def test_every_way_runs_the_same_number_of_times_and_first_as_often() -> None:
    calls: list[str] = []
    ways = {name: (lambda steps, name=name: calls.append(name)) for name in "ab"}
    times = interleaved(ways, steps=1, rounds=4, warmup=0)
    assert calls[:2] == ["a", "b"], "warm-up"
    assert calls[2:] == ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert [len(t.ms) for t in times.values()] == [4, 4]


def test_the_hand_written_loop_learns_the_same_as_edgekds_from_the_same_loss() -> None:
    """One epoch over one batch: whatever the order within it, the gradient is that of the whole."""
    data = random_data(64, 4)
    hand = HandWritten(data, Nothing(), Nothing(), 64)
    hand.optimiser.param_groups[0].update(lr=0.0, weight_decay=0.0)
    hand.go(2)
    heard = []
    with kd_loop(data, None, None, CPU) as go:
        go(1)
        run = go.__closure__[0].cell_contents  # type: ignore[union-attr,attr-defined]
        heard = [run.history[0].losses[name] for name in ("cross_entropy", "soft_target_kl")]
    assert 0.1 * heard[0] + 0.9 * heard[1] == pytest.approx(hand.losses[0], rel=1e-5)


def test_all_losses_and_all_shipped_recipes_take_part_or_say_why_not() -> None:
    known = catalogue()
    assert next(iter(known)) == BASELINE
    about = {term.method for recipe in known.values() for stage in recipe.stages for term in stage.terms}
    missing = {name.replace("_", "-") for name in LOSSES if name not in about}
    assert missing <= set(LEFT_OUT)
    with pytest.raises(InputError, match="no method 'dkdd' in this comparison; did you mean 'dkd'"):
        choose("dkdd")
    with pytest.raises(InputError, match="no method 'simkd' in this comparison; it changes the student"):
        choose("simkd")


def test_a_remembered_teacher_says_what_the_live_one_does(tiny_dataset: Dataset) -> None:
    training = Training(epochs=1, batch_size=50, device="cpu", shift_px=1, views=2, mixed_precision="no")
    model = teacher_of(tiny_dataset).module
    source = Remembered(model, tiny_dataset, training)
    with BatchStream(tiny_dataset, training, device=CPU, share=Share()) as stream:
        batch = stream.at(3)
        source.bind(batch.images, ["layer2"])
        said = source.signals(batch)
        torch.testing.assert_close(said.logits, model(batch.images), rtol=2e-3, atol=2e-3)
        assert said.taps["layer2"].shape[1] == 8
    with pytest.raises(InputError, match="fixed views only"):
        Remembered(model, tiny_dataset, Training(device="cpu"))


def test_a_comparison_resumes_behind_its_last_result_and_refuses_another_protocol(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    comparison = tiny_comparison(tiny_dataset)
    first = compare(comparison, choose("soft-targets"), seeds=(0,), out=tmp_path)
    assert [(row["method"], row["seed"]) for row in first] == [(BASELINE, 0), ("soft-targets", 0)]
    new: list[str] = []
    more = choose("soft-targets,review-kd,fsp")
    rows = compare(
        comparison, more, seeds=(0,), out=tmp_path, resume=True, on_row=lambda row: new.append(row["method"])
    )
    assert new == ["review-kd", "fsp"]
    assert rows[:2] == first
    assert "channels" in rows[-1]["refused"], "FSP has no projector and says so"
    with pytest.raises(InputError, match="it has results already"):
        compare(comparison, more, seeds=(0,), out=tmp_path)
    with pytest.raises(InputError, match="results with views 2, now 3"):
        compare(tiny_comparison(tiny_dataset, views=3), more, seeds=(0,), out=tmp_path, resume=True)
    costs = measure_costs(comparison, more, tmp_path)
    assert measure_costs(comparison, more, tmp_path) == costs, "measured once"
    assert {row["method"] for row in costs} == {BASELINE, "soft-targets", "review-kd", "fsp"} - {"fsp"}
    assert all(row["step_ms"] > 0 and row["memory_mib"] >= 0 for row in costs)
    page = write_page(tmp_path / "page.md", *read_results(tmp_path), Extra(costs)).read_text()
    assert "| fsp | not run: " in page
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["method"] == BASELINE


def test_gains_are_over_the_baseline_of_the_same_seed() -> None:
    rows = [
        {"student": "s", "method": m, "seed": seed, "test_top1": top1, "test_nll": 1.0, "steps": 10, "students": 1}
        | {"learning_rate": 0.1, "factor": 0.25}
        for m, seed, top1 in ((BASELINE, 0, 0.5), (BASELINE, 1, 0.7), ("kd", 0, 0.6), ("kd", 1, 0.8))
    ]
    kd = summary(rows)[1]
    assert (kd["gain"], kd["gain_sd"], kd["n"]) == (pytest.approx(0.1), pytest.approx(0.0), 2)
    assert "| kd | 0.1 | 0.25 | 70.00 ± 14.14 | +10.00 ± 0.00 | 2 | 1.00 | 10 | | |" in table(summary(rows))


def test_settings_are_settled_on_held_out_images_and_hold_for_the_seeds_that_are_judged(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FACTORS", (1.0, 4.0))
    monkeypatch.setattr(tuning, "RATES", {"sgd": (0.01, 0.1)})
    comparison, methods, student = tiny_comparison(tiny_dataset), choose("soft-targets,fsp,nkd"), "edgekd:resnet8-2"
    tried: list[dict[str, object]] = []
    tuned = tune(comparison, choose("soft-targets,fsp"), out=tmp_path, on_row=tried.append)

    def best(method: str) -> dict[str, object]:
        return max((row for row in tried if row["method"] == method), key=lambda row: float(str(row["val_top1"])))

    assert [row["learning_rate"] for row in tried if row["method"] == BASELINE] == [0.1, 0.01]
    assert tuned.settings(student, BASELINE).learning_rate == best(BASELINE)["learning_rate"]
    begun = next(row for row in tried if row["method"] == "soft-targets")
    assert (begun["learning_rate"], begun["factor"]) == (0.1, 1.0), "it starts as published"
    settings = tuned.settings(student, "soft-targets")
    found = best("soft-targets")
    assert (settings.learning_rate, settings.factor) == (found["learning_rate"], found["factor"])
    mine = [row for row in tried if row["method"] == "soft-targets"]
    at_last = {row["factor"] for row in mine if row["learning_rate"] == settings.learning_rate}
    assert at_last == {1.0, 4.0}, "the weight was asked again at the rate that was settled on"
    usual = comparison.settings(student, BASELINE)
    assert tuned.settings(student, "fsp") == usual, "it refuses these nets"
    assert tuned.settings(student, "nkd") == usual, "it was not among the settled"
    assert {row["seed"] for row in tried} == {tuning.SEED}
    assert not any("test_top1" in row for row in tried), "test images are not looked at"
    again: list[dict[str, object]] = []
    resumed = tune(comparison, choose("soft-targets,fsp"), out=tmp_path, resume=True, on_row=again.append)
    assert (resumed.tuned, again) == (tuned.tuned, [])
    rows = compare(tuned, methods, seeds=(0,), out=tmp_path, resume=True)
    assert next(row for row in rows if row["method"] == "soft-targets")["factor"] == settings.factor
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    text = write_page(page, *read_results(tmp_path), Extra(tuning=read_rows(tmp_path / tuning.FILE))).read_text()
    assert f"| {student} | fsp | 0.1, x 1: refused; 0.1, x 4: refused" in text
    assert f"| {student} | no-kd | 0.1: " in text


def test_a_climb_goes_on_until_no_neighbour_is_better() -> None:
    asked: list[int] = []

    def value(rung: int) -> float:
        asked.append(rung)
        return [0.1, 0.2, 0.9, 0.3, 0.4, 0.5][rung]

    assert climbed(range(6), 4, value) == 5, "of a hill with two tops the one at hand"
    assert set(asked) == {3, 4, 5}
    assert climbed(range(6), 0, value) == 2


def test_transformers_are_trained_with_adamw(tiny_dataset: Dataset) -> None:
    nets = ("edgekd:vit4-32-4", "edgekd:resnet8-2")
    protocol = Protocol(epochs=1, batch_size=32, device="cpu")
    comparison = Comparison(tiny_dataset, teacher_of(tiny_dataset), nets, protocol)
    assert [comparison.settings(net, "dkd").learning_rate for net in nets] == [1e-3, 0.1]
    made = comparison.materials(nets[0], 0, comparison.settings(nets[0], "dkd"), Path("x"))
    assert (made.training.optimiser, made.training.weight_decay) == ("adamw", 0.05)


def test_a_factor_scales_all_but_the_labels() -> None:
    assert [t.weight for t in scaled(load_recipe("dkd"), 0.25).stages[0].terms] == [1.0, 0.25]
    ramped = parse_recipe(
        'title = "t"\nsource = "s"\n[[stages]]\n'
        'terms = [{ method = "dkd", source = "teacher", weight = { first = 1.0, last = 2.0 } }]\n',
        where="t",
    )
    weight = scaled(ramped, 4.0).stages[0].terms[0].weight
    assert (weight.first, weight.last) == (4.0, 8.0)  # type: ignore[union-attr]


def test_a_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    page = tmp_path / "p.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert replace_results(page, "new").read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(InputError, match="no place for results"):
        replace_results(page, "new")


def test_widths_scale_in_steps_that_the_networks_take() -> None:
    assert widened("edgekd:resnet20", 1.5) == "edgekd:resnet20-24"
    with pytest.raises(InputError, match="one width only"):
        widened("timm:resnet18", 2.0)


def test_the_page_of_the_loop_says_which_bar_does_not_hold(tmp_path: Path) -> None:
    t = {"min_ms": 1.0, "p25_ms": 1.1, "p50_ms": 1.2, "p75_ms": 1.3, "rounds": 30}
    part = {"ratio": 1.0, "added_ms": 0.2, "control_ratio": 1.0, "control_added_ms": 0.0, "steps_per_round": 1}
    found = {
        **{name: {**part, "times": {"hand": t}} for name in ("step", "added", "cache", "crd")},
        **{
            "memory": {"ratio": 1.01, "hand_mib": [1.0], "edgekd_mib": [1.0]},
            "device": "cpu",
            "torch": "2",
            "threads": 1,
        },
        **{"student": "s", "teacher": "t", "negatives": 16384, "images": 50000, "batch": 64},
        "machine": {"processor": "p", "cores": 2, "load_before": 0.0, "load_after": 1.0, "date": "today"},
    }
    text = write_loop_page(tmp_path / "loop.md", found, command="edgekd bench loop").read_text()
    assert "| networks without compute, added to a step | 0.200 ms | 0.1 | NO |" in text
    assert "| s <- t, cached logits over the live teacher | 1.000 x | 0.55 | NO |" in text
    assert "| s <- t, a step over a hand-written loop | 1.000 x | 1.03 | yes |" in text


def test_ctrl_c_is_no_result(tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method that was interrupted is trained again on resume."""

    def stopped(*args: object, **options: object) -> None:
        raise Interrupted("interrupted at step 1 of 2")

    monkeypatch.setattr("edgekd.benchmarks.methods.run_stage", stopped)
    with pytest.raises(Interrupted):
        compare(tiny_comparison(tiny_dataset), choose("no-kd"), seeds=(0,), out=tmp_path)
    assert read_results(tmp_path)[1] == []
