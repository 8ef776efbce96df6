"""The same work is done by one process at a time; the second is told what the first is doing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run, prepare, save_clip, write_scenes
from conftest import draw_scenes as scenes
from launching import ROOT, environment

from vpltool.errors import VplError
from vpltool.parallel.once import once, write_alone, writer
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


@pytest.mark.parametrize(("name", "shards"), [("extract", True), ("seed-prototypes", False)])
def test_only_work_that_can_be_shared_is_hinted_to_be(name: str, shards: bool, tmp_path: Path
                                                      ) -> None:
    found = find_stage(name)
    settings = stage_settings(found, {})
    with (_once(found, tmp_path, settings), pytest.raises(VplError) as refused,
          _once(found, tmp_path, settings)):
        raise AssertionError
    assert ("shard=" in refused.value.hint) is shards


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
        assert "Path(" not in result.lines("error:")[0]
        assert "is already running" in result.lines("error:")[0]
        assert sorted(work.rglob("*")) == before
        assert run(name, *others, *quick, work=work).code == 0
    assert run(name, *options, *quick, work=work).code == 0


HOLD = """
import sys
from pathlib import Path
from vpltool.parallel.once import write_alone, writer
with writer(sys.argv[1]):
    write_alone(Path(sys.argv[2]))
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_writes(path: Path, work: str) -> Iterator[int]:
    """Let another process write a folder, until the block is done; its number."""
    with subprocess.Popen([sys.executable, "-c", HOLD, work, str(path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True) as held:
        assert held.stdout is not None and held.stdout.readline() == "holds\n"
        yield held.pid


def test_one_work_writes_a_folder(tmp_path: Path) -> None:
    """Its shards and ranks may do so together; other work is told who does."""
    with another_writes(tmp_path / "a", "crf") as number:
        with writer("crf"):
            write_alone(tmp_path / "a")
            write_alone(tmp_path / "a")
        said = rf"is being written with other settings by process {number}"
        with writer("cam"), pytest.raises(VplError, match=said):
            write_alone(tmp_path / "a")
        with writer("cam"):
            write_alone(tmp_path / "b")
    with writer("cam"):
        write_alone(tmp_path / "a")


def test_two_commands_with_other_settings_do_not_mix(copied: Path, run: Run) -> None:
    """Folders of photos, single files, and the workspace itself: nothing is changed."""
    work = copied / "work"
    for place, command in (
            ("masks/text-refined/train", ("crf", "--alpha", 8, "--overwrite", "--workers", 0)),
            ("masks/text-refined-full/train", ("crf", "--alpha", 8, "--update", "--workers", 0)),
            ("prototypes/text.safetensors", ("text-prototypes", "--overwrite")),
            ("workspace.json", ("prepare", "folder", copied / "photos"))):
        before = {file: file.read_bytes() for file in work.rglob("*") if file.is_file()}
        with another_writes(work / place, "crf with alpha=3"):
            result = run(*command, work=work)
        assert result.code == 1
        assert f"{place} is being written with other settings" in result.lines("error:")[0]
        assert {file: file.read_bytes() for file in work.rglob("*") if file.is_file()} == before
