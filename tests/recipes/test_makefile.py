"""The Makefile's targets call recipes, and the modules beside them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("words", "line"), [
    (("demo", "DEMO=some/demo"), "vpltool -C some/demo run demo"),
    (("photos20", "WORK=some/dir", "REALDATA=data"),
     "vpltool -C some/dir run photos20 data=data"),
    (("table3", "WORKSPACE=some/dir", "OPTIONS=--quick"),
     "python -m vpltool.papers.tables 3 some/dir --quick"),
    (("compare", "WORKSPACE=some/dir", "OPTIONS=--list"),
     "python -m vpltool.papers.comparison some/dir --list"),
    (("coco14", "COCO=data", "COCO14=some/dir"),
     "python -m vpltool.papers.tables 2 some/dir "),
])
def test_what_a_target_calls(words: tuple[str, ...], line: str) -> None:
    said = subprocess.run(["make", "--no-print-directory", "-n", *words], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1].partition("bin/")[2] == line


def test_the_recipes_are_package_data() -> None:
    packaged = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '"recipes/*.recipe"' in packaged and '"papers/comparison/*.recipe"' in packaged


def test_benchmarks_are_about_speed() -> None:
    """Pipelines, tables and figures are recipes."""
    assert not list((ROOT / "benchmarks").glob("*.sh"))
    assert not {"tables.py", "figures.py"} & {path.name for path in (ROOT / "benchmarks").iterdir()}
