"""The HTML page: self-contained, escaped, the same bytes each time, and honest about what was predicted."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any

import example_report as example
import pytest

from edgekd.gates import evaluate_gates
from edgekd.report import RunReport, load, render, write_report

HOSTILE = "<script>alert(1)</script> \"'&$x_{^} {{7*7}} 日本 \x1b[31m"
VOID = {"meta", "br", "link", "img", "hr", "input"}


def example_report(**changes: Any) -> RunReport:
    report: RunReport = example.example_report(**changes)
    return report.model_copy(update={"gates": evaluate_gates(report)})


class Page(html.parser.HTMLParser):
    """Tags, attributes and texts of a page; `open_tags` is empty when every tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open_tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def page_text() -> str:
    return render(example_report())


def test_nothing_is_loaded_from_anywhere(page_text: str) -> None:
    page = Page(page_text)
    loading = [
        value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    assert loading
    assert all(value.startswith("#") for value in loading)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", page_text)


def test_every_tag_is_closed_and_every_id_is_unique(page_text: str) -> None:
    page = Page(page_text)
    assert page.open_tags == []
    charts = [value for name, value in page.attributes if name == "id"]
    assert len(charts) == len(set(charts))
    assert page.tags.count("svg") == 8


def test_the_same_report_gives_the_same_bytes(page_text: str) -> None:
    assert render(example_report()) == page_text


def test_the_page_follows_a_dark_theme_charts_included(page_text: str) -> None:
    assert "prefers-color-scheme: dark" in page_text
    svgs = "".join(re.findall(r"<svg.*?</svg>", page_text, re.DOTALL))
    assert "var(--ink)" in svgs
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", svgs)) == set()


def test_hostile_names_are_text_everywhere() -> None:
    base = example_report()
    report = example_report(
        title=HOSTILE,
        command=HOSTILE,
        plan=(HOSTILE,),
        warnings=(HOSTILE,),
        host={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        recipe={HOSTILE: HOSTILE},
        data={**base.data.model_dump(), "name": HOSTILE, "note": HOSTILE},
        teacher={**base.teacher.model_dump(), "name": HOSTILE, "note": HOSTILE},
        profile={**base.profile.model_dump(), "name": HOSTILE, "title": HOSTILE, "runtime": HOSTILE},
        accuracies=[{**row.model_dump(), "name": HOSTILE} for row in base.accuracies],
        measurements=[{**row.model_dump(), "name": HOSTILE, "runtime": HOSTILE} for row in base.measurements],
        trainings=[{**base.trainings[0].model_dump(), "epochs": [{"epoch": 0, "losses": {HOSTILE: 1.0}}]}],
        artifacts=[{**row.model_dump(), "reason": HOSTILE} for row in base.artifacts],
        attached={"name": HOSTILE, "address": HOSTILE, "state": {HOSTILE: HOSTILE}, "reason": HOSTILE},
    )
    text = render(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "{{7*7}}" in text
    assert " 49 " not in text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.open_tags == []


def test_a_subset_is_said_in_big_letters() -> None:
    data = {**example_report().data.model_dump(), "note": "subset: smoke numbers only"}
    text = render(example_report(data=data))
    assert '<div class="banner">subset: smoke numbers only' in text
    assert '<div class="banner">' not in render(example_report())


def test_predicted_figures_are_marked_apart_from_measured_ones(page_text: str) -> None:
    assert '<div class="tile predicted">' in page_text
    assert '<tr class="predicted">' in page_text
    assert '<span class="tag measured">measured</span>' in page_text


def test_the_attached_device_stands_beside_what_was_predicted_for_it() -> None:
    base = example_report()
    row = next(row for row in base.measurements if row.artifact == "tflite-int8").model_dump()
    there = {**row, "name": "student, int8 on pi", "on_profile_device": True, "p50_ms": 1.22}
    report = example_report(
        measurements=[*(r.model_dump() for r in base.measurements), there],
        ratios=[{**r.model_dump(), "device": "pi", "on_profile_device": True} for r in base.ratios],
        attached={"name": "pi", "address": "ssh://pi", "state": {"kernel": "Linux aarch64"}},
    )
    texts = Page(render(report)).texts
    assert "Predicted against measured on pi (ssh://pi), for Raspberry Pi 5 (8 GB)." in texts
    where = texts.index("latency p50")
    assert [text.strip() for text in texts[where : where + 6] if text.strip()][1:] == [
        "0.610 ms",
        "0.320 – 1.15",
        "1.22 ms",
        "2.00",
    ]
    assert "speedup over the teacher's best export on pi" in texts
    assert any("on pi: predicted 0.61 [0.32, 1.15]" in text for text in texts)
    assert "Linux aarch64" in texts


def test_a_device_that_could_not_be_measured_is_named_with_the_reason() -> None:
    texts = Page(render(example_report(attached={"name": "pi", "address": "ssh://pi", "reason": "it went"}))).texts
    assert "The student was not measured on pi (ssh://pi): it went" in texts
    assert any("not measured on pi: it went" in text for text in texts if "budget p90" in text)


def test_a_speedup_of_an_unchecked_artifact_is_withheld() -> None:
    ratios = [{**row.model_dump(), "artifact": "openvino-fp16"} for row in example_report().ratios]
    text = render(example_report(ratios=ratios))
    assert "43.6" not in text.split("<h2>Gates</h2>")[0]
    assert "withheld: openvino-fp16 has not passed its check" in text


def test_an_insignificant_ratio_is_called_no_difference(page_text: str) -> None:
    assert "no significant difference" in page_text


def test_a_run_that_has_only_a_plan_still_gives_a_page() -> None:
    empty: dict[str, Any] = dict.fromkeys(
        ("candidates", "trainings", "accuracies", "artifacts", "measurements", "ratios", "predicted", "stages"), ()
    )
    report = example_report(**empty)
    text = render(report)
    assert Page(text).open_tags == []
    assert "not measured" in text


def test_one_epoch_one_sample_and_equal_values_can_be_drawn() -> None:
    base = example_report()
    report = example_report(
        trainings=[
            {"name": "distil", "epochs": [{"epoch": 0, "losses": {"total": 0.0}, "val_top1": 1.0}], "seconds": 1}
        ],
        measurements=[{**base.measurements[0].model_dump(), "samples_ms": [8.4] * 10, "p50_ms": 8.4}],
        accuracies=[{**base.accuracies[0].model_dump(), "top1": 1.0, "lo": 1.0, "hi": 1.0}],
        candidates=[base.candidates[0].model_dump()],
    )
    assert render(report).count("<svg") == 6


def test_write_report_leaves_both_files_and_nothing_else(tmp_path: Path) -> None:
    report = example_report()
    html_path, json_path = write_report(tmp_path, report)
    assert load(json_path) == report
    assert html_path.read_text(encoding="utf-8") == render(report)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
