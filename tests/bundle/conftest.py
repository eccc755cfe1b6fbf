"""One run, its report and its bundle, for all tests of bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import report_of, write_run

from edgekd.bundle import write_bundle
from edgekd.report.document import RunReport


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def report(run: Path) -> RunReport:
    return report_of(run)


@pytest.fixture(scope="session")
def bundle(run: Path, report: RunReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle.zip", report=report, run=run)
