"""The run record: done means done from the same inputs with files unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.errors import InputError
from edgekd.pipeline import record
from edgekd.pipeline.settings import Settings

SETTINGS = Settings(profile="jetson-nano")


def finished(folder: Path) -> record.RunRecord:
    run = record.create(folder, SETTINGS, command="edgekd distill")
    output = folder / "weights.bin"
    output.write_bytes(b"abc")
    run.finish("plan", inputs="i", result={"a": 1}, outputs=[output], seconds=1.0)
    return run


def test_a_finished_stage_is_intact_for_the_same_inputs_only(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    again = record.resume(tmp_path / "run", SETTINGS)
    assert again.intact("plan", "i")
    assert not again.intact("plan", "other")
    assert not again.intact("select", "i")


def test_a_changed_or_missing_output_is_not_intact(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    (tmp_path / "run" / "weights.bin").write_bytes(b"abd")
    assert not run.intact("plan", "i")
    (tmp_path / "run" / "weights.bin").unlink()
    assert not run.intact("plan", "i")


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds another run; go on with --resume"):
        record.create(tmp_path / "run", SETTINGS, command="edgekd distill")


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not an empty folder"):
        record.create(tmp_path, SETTINGS, command="edgekd distill")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_other_settings_names_the_first_difference(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    with pytest.raises(InputError, match=r"was started with seed=0, not 1"):
        record.resume(tmp_path / "run", SETTINGS.model_copy(update={"seed": 1}))


def test_a_second_process_in_the_same_run_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    with (
        record.exclusive(tmp_path / "run"),
        pytest.raises(InputError, match="another process"),
        record.exclusive(tmp_path / "run"),
    ):
        pass


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema_version": 99}', '{"schema_version": 1, "settings": {}, "stages": {}}']
)
def test_a_broken_run_json_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError):
        record.open_record(tmp_path)


def test_run_json_is_written_after_the_stage_result(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(document["stages"]["plan"]["outputs"]) == {"plan.json", "weights.bin"}
    assert run.result("plan") == {"a": 1}


def test_numbered_runs_never_collide(tmp_path: Path) -> None:
    first = record.next_free(tmp_path, "jetson-nano")
    record.create(first, SETTINGS, command="")
    assert record.next_free(tmp_path, "jetson-nano").name == "jetson-nano-002"
    assert record.latest(tmp_path, "jetson-nano") == first
