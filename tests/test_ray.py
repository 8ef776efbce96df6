"""`ray`: shards as tasks on a cluster of two workers, of which one is killed at its work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Run, copy_workspace

from vpltool.commands import ray as command
from vpltool.errors import VplError
from vpltool.formats import open_workspace
from vpltool.state import read_state

DEADLY = '''"""Cosine maps, by a worker that is killed at the second batch of its first task."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from vpltool import settings

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """None."""


def make_cams(batch, settings):
    """Make flat maps; where $DEADLY/armed is, die once, behind a written photo."""
    folder = Path(os.environ["DEADLY"])
    with (folder / "batches").open("a") as file:
        file.write(f"{os.getpid()} {','.join(batch.ids)}\\n")
    begun = [line for line in (folder / "batches").read_text().splitlines()
             if line.startswith(f"{os.getpid()} ")]
    if len(begun) == 2:
        try:
            (folder / "armed").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        except FileNotFoundError:
            pass
    return [torch.full((len(present), *batch.grid), 0.5) for present in batch.present]
'''


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A cluster of two workers on this machine."""
    ray = pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("deadly")
    (folder / "cams").mkdir()
    (folder / "cams/deadly.py").write_text(DEADLY)
    root = Path(__file__).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("VPLTOOL_METHODS", str(folder))
        patch.setenv("DEADLY", str(folder))
        # Ray is nice to others; beside the rest of the tests its workers would wait for long.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
                 object_store_memory=80_000_000)
        yield ray
        ray.shutdown()


def test_a_killed_worker_loses_only_the_work_in_flight(
    run: Run, ray: ModuleType, copied: Path, ready: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    """The killed shard is done again by another worker; the folder is what one process makes."""
    folder = Path(os.environ["DEADLY"])
    line = ("cam", "--method", "deadly", "--batch-size", 1)
    plain = copy_workspace(ready, tmp_path / "plain", tiny_clip) / "work"
    assert run(*line, work=plain).code == 0
    (folder / "batches").unlink()
    (folder / "armed").touch()
    work = copied / "work"
    result = run("ray", "--shards", 2, "--", *line, work=work)
    assert result.code == 0, result.err
    assert not (folder / "armed").exists()
    done = [line.split() for line in (folder / "batches").read_text().splitlines()]
    ids = [photo.id for photo in open_workspace(work).photos("train")]
    # Which photo was in flight is done twice, no other; and both processes have worked.
    assert sorted({key for _, key in done}) == ids
    assert len(done) == len(ids) + 1
    assert len({pid for pid, _ in done}) >= 2
    made, alone = ({file.name: file.read_bytes() for file in (
        base / "cams/text-deadly/train").iterdir() if file.is_file()} for base in (work, plain))
    assert made == alone
    # Ray's own line about the worker that died goes to stderr.
    assert result.out == f"{work.resolve() / 'cams/text-deadly/train'}\n"


def test_a_recipe(run: Run, ray: ModuleType, copied: Path, tmp_path: Path) -> None:
    """Lines on single photos in shards, the others as one task, in the recipe's order."""
    recipe = tmp_path / "maps.recipe"
    recipe.write_text("# Maps.\nsay Maps\nvpltool cam --method dense --split val\n"
                      "vpltool eval -q --what cams/text-dense --split val\n")
    work = copied / "work"
    result = run("ray", "--shards", 2, "--", "run", recipe, work=work)
    assert result.code == 0, result.err
    assert "mIoU" in result.out
    state = read_state(open_workspace(work))
    assert not state.stale(state.artifacts["cams/text-dense/val"])
    assert json.loads((work / "scores/cams-text-dense-val.json").read_text())


def test_what_a_task_says_is_an_error_of_one_line(run: Run, ray: ModuleType, copied: Path) -> None:
    result = run("ray", "--shards", 2, "--", "cam", "--prototypes", "none", work=copied / "work")
    assert result.code == 1
    assert result.lines("error:")[0].startswith("shard ")
    assert "none" in result.lines("error:")[0]
    assert result.lines("error:")[0].endswith("2 of 2 tasks failed")


def test_lines_are_checked_before_anything_is_started(
    run: Run, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    wrong = run("ray", "--", "cam", "--method", "dens", work=tmp_path)
    assert wrong.code in (1, 2)
    assert "dense" in wrong.err
    assert run("ray", work=tmp_path).code in (1, 2)
    assert "no workspace in" in run("ray", "--", "cam", work=tmp_path).lines("error:")[0]
    without = run("ray", "--", "cam", work=copied / "work")
    assert without.lines("error:") == ["the package `ray` is not installed"]
    assert without.lines("hint:") == ["pip install 'vpltool[ray]'"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "a Ray job" in run("ray", "--", "cam", work=copied / "work").lines("error:")[0]


def test_tasks_at_once() -> None:
    has = {"CPU": 16.0, "GPU": 2.0}
    assert command._at_once(has, 1, 0) == 16
    assert command._at_once(has, 4, 1) == 2
    assert command._at_once({"CPU": 1.0}, 4, 0) == 1
    assert command._at_once(has, 0, 0) == 1
    with pytest.raises(VplError):
        command._lines(Path(), ())
