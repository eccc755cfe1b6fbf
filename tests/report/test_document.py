"""The report as data: it survives JSON, refuses what JSON cannot hold, and names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_report import example_report

from edgekd.errors import InputError
from edgekd.report import load, parse, save


def test_json_gives_back_the_same_report(tmp_path: Path) -> None:
    report = example_report()
    assert load(save(report, tmp_path / "report.json")) == report


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["predicted", "recipe", "preprocessing"])
def test_nan_and_infinity_are_refused_wherever_they_hide(field: str, bad: float) -> None:
    row = {"what": "student", "quantity": "latency_p50_ms", "value": bad, "lo": 1, "hi": 2, "provenance": "x"}
    value = [row] if field == "predicted" else {"a": [{"b": bad}]}
    with pytest.raises(ValueError, match=r"finite|NaN"):
        example_report(**{field: value})


def test_predicted_and_measured_are_told_apart_in_the_json() -> None:
    document = json.loads(example_report().model_dump_json())
    assert {row["kind"] for row in document["predicted"] + document["candidates"]} == {"predicted"}
    assert {row["kind"] for row in document["measurements"] + document["accuracies"]} == {"measured"}


def test_a_prediction_cannot_be_stored_as_a_measurement() -> None:
    row = example_report().predicted[0].model_dump()
    with pytest.raises(ValueError, match="kind"):
        example_report(predicted=[{**row, "kind": "measured"}])


def test_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    document = {**json.loads(example_report().model_dump_json()), "schema_version": 9}
    with pytest.raises(InputError, match=r"schema version 9 is not known; this edgekd reads version 1"):
        parse(document, where=tmp_path)


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    document = json.loads(example_report().model_dump_json())
    document["accuracies"][0]["top1"] = 93.1
    with pytest.raises(InputError, match=r"'accuracies.0.top1': .* less than or equal to 1"):
        parse(document, where=tmp_path)


def test_the_primary_artifact_is_the_marked_one_else_the_first_that_was_exported() -> None:
    report = example_report()
    assert report.primary is not None
    assert report.primary.name == "tflite-int8"
    unmarked = [{**row.model_dump(), "primary": False} for row in reversed(report.artifacts)]
    other = example_report(artifacts=unmarked).primary
    assert other is not None
    assert other.name == "tensorrt-fp16"
