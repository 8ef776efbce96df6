"""`group-use`: the table of stored group maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Run

from vpltool.formats import Header, open_output


@pytest.fixture
def mapped(copied: Path) -> Path:
    """A workspace with two folders of group maps of the split val."""
    for name, share in (("apart", 1.0), ("close", 0.6)):
        maps = torch.tensor([[[share, 1 - share, 1 - share]], [[1 - share, share, share]]])
        output = open_output(copied / "work/group-maps" / name / "val",
                             Header(kind="group-maps", command="predict"),
                             ["scene6", "scene7"])
        output.begin()
        for key in ("scene6", "scene7"):
            output.write_tensors(key, {"first": torch.eye(3)[:, None].half(),
                                       "second": maps.half()})
        output.finish()
    return copied / "work"


def test_the_table(mapped: Path, run: Run, tmp_path: Path) -> None:
    result = run("group-use", "both=[ac]*", "close", "--markdown", "--out",
                 tmp_path / "t.md", work=mapped)
    assert result.code == 0, result.err
    lines = [[cell.strip() for cell in line.split("|")[1:-1]]
             for line in result.out.splitlines()]
    assert lines[0][3:] == ["first used", "first overlap", "second used", "second overlap"]
    # 1.2 / 1.8, and 0.
    assert lines[2] == ["both", "val", "2", "3.00 ± 0.00", "0.00 ± 0.00", "2.00 ± 0.00",
                        "0.33 ± 0.47"]
    assert lines[3] == ["close", "val", "2", "3.00", "0.00", "2.00", "0.67"]
    assert (tmp_path / "t.md").read_text() == result.out


def test_a_wrong_name(mapped: Path, run: Run) -> None:
    result = run("group-use", "clse", work=mapped)
    assert result.code == 1
    assert "no group-maps called `clse`" in result.lines("error:")[0]
