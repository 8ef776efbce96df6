"""The same work is done by one process at a time; the second is told what the first is doing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Run, prepare, save_clip, write_scenes
from conftest import draw_scenes as scenes

from vpltool.errors import VplError
from vpltool.parallel.once import once
from vpltool.run import _once, find_stage, stage_settings


def test_the_second_is_told_which_is_the_first(tmp_path: Path) -> None:
    """The error names the process, and the lock ends with the work."""
    said = rf"`cam\(\)` is already running.*process {os.getpid()}"
    with (once(tmp_path, "cam", "`cam()`"), once(tmp_path, "refine", "`refine()`"),
          once(tmp_path.parent, "cam", "`cam()`"), pytest.raises(VplError, match=said),
          once(tmp_path, "cam", "`cam()`")):
        raise AssertionError
    with once(tmp_path, "cam", "`cam()`"):
        pass


def test_without_a_folder_for_locks_the_work_is_done(tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with once(tmp_path, "cam", "`cam()`"):
        pass


@pytest.mark.parametrize(("name", "words", "free"), [
    ("extract", {"split": "train"}, {"split": "val"}),
    ("extract", {"shard": "0/2"}, {"shard": "1/2"})])
def test_stages(name: str, words: dict[str, str], free: dict[str, str], tmp_path: Path,
                run: Run) -> None:
    """The same call is refused, whatever its device or batch size; another one is not."""
    save_clip(tmp_path / "clip")
    write_scenes(tmp_path, scenes(4))
    assert prepare(tmp_path).code == 0
    work, found = tmp_path / "work", find_stage(name)
    options = [part for key, value in words.items() for part in (f"--{key}", value)]
    others = [part for key, value in free.items() for part in (f"--{key}", value)]
    quick = ("--workers", 0)
    with _once(found, work, stage_settings(found, words)):
        before = sorted(work.rglob("*"))
        result = run(name, *options, "--device", "cpu", *quick, work=work)
        assert result.code == 1
        assert f"vpltool {name}" in result.lines("error:")[0]
        assert "is already running" in result.lines("error:")[0]
        assert sorted(work.rglob("*")) == before
        assert run(name, *others, *quick, work=work).code == 0
    assert run(name, *options, *quick, work=work).code == 0
