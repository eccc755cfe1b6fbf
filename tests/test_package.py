"""What is shipped: every package listed, nothing at the top level but edgekd, assets whole, the README true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from edgekd.cli import app
from edgekd.files import sha256_of

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("targets", "profiles", "export", "device_benchmarks")


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    inside = {p.parent for p in (ROOT / "edgekd").rglob("__init__.py") if not p.parent.is_symlink()}
    rooms = {p.parent for room in ROOMS for p in (ROOT / room).rglob("__init__.py")}
    found = {".".join(p.relative_to(ROOT).parts) for p in inside}
    found |= {".".join(("edgekd", *p.relative_to(ROOT).parts)) for p in rooms}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found
    assert {name.split(".")[0] for name in found} == {"edgekd"}, "a wheel must put nothing else into site-packages"


def test_the_four_rooms_are_links_into_the_package() -> None:
    for room in ROOMS:
        link = ROOT / "edgekd" / room
        assert link.is_symlink()
        assert link.resolve() == ROOT / room


def test_the_teacher_is_the_one_its_card_describes() -> None:
    folder = ROOT / "edgekd" / "teachers" / "assets"
    weights = folder / "fashion-mnist-wrn16-2.safetensors"
    assert sha256_of(weights) in (folder / "README.md").read_text()
    assert weights.stat().st_size <= 4_000_000


def test_the_packaged_subset_is_small_enough() -> None:
    assert (ROOT / "edgekd" / "data" / "assets" / "fashion-mnist-subset.npz").stat().st_size <= 4_000_000


def test_the_python_in_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, timeout=120, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_every_command_in_the_readme_exists() -> None:
    known = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^\$ edgekd (\w+)", text, re.M))
    assert used
    assert used <= known
    links = re.findall(r"\]\(([^)#:]+\.md)\)", text)
    assert links
    assert all((ROOT / link).is_file() for link in links)


def test_no_file_names_a_path_of_a_developers_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    names = [n for n in listed if n.endswith((".py", ".md", ".toml", ".j2", ".txt"))]
    bad = re.compile(r"/(?:work|home|root)/\w")
    found = [n for n in names if n != "tests/test_package.py" and bad.search((ROOT / n).read_text(errors="replace"))]
    assert found == []
