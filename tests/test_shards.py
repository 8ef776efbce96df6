"""Every per-photo command in shards: the bytes of one process, without waiting for each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Run, copy_workspace, draw_scenes, prepare, run_chain, write_scenes

from vpltool.command import parse_line
from vpltool.formats.shards import shard_of
from vpltool.shell import settings_with
from vpltool.stages import find_stages

# A GPU sums in other orders for other batches.
pytestmark = pytest.mark.cpu

PER_PHOTO = ("extract", "embed", "cam", "refine", "crf", "predict", "tag", "propose")

BEFORE: tuple[tuple[object, ...], ...] = (("text-prototypes", "--prompts", "single"),)
SHARDED: tuple[tuple[object, ...], ...] = (
    ("extract", "--split", "train", "--keep", "tokens,patches,attention,layers"),
    ("embed", "--split", "train"),
    ("cam", "--split", "train"),
    ("refine", "--split", "train"),
    ("crf", "--split", "train"),
    ("tag", "--split", "train"),
)
TRAIN: tuple[tuple[object, ...], ...] = (
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3,
     "--batch-size", 2, "--width", 16, "--iters", 3, "--name", "tiny"),)
PREDICT: tuple[tuple[object, ...], ...] = (
    ("predict", "--split", "train", "--probabilities"),
    ("predict", "--split", "val", "--scales", "1,0.75", "--flip", "--overlay"),
)
READS_PHOTOS = ("extract", "crf", "tag", "predict")


def with_workers(words: Sequence[object], count: int) -> tuple[object, ...]:
    return (*words, *(("--workers", count) if words[0] in READS_PHOTOS else ()))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A workspace with text prototypes, and photos of which one is torn."""
    base = tmp_path_factory.mktemp("begun") / "base"
    base.mkdir()
    (base / "clip").symlink_to(tiny_clip)
    write_scenes(base, draw_scenes(10))
    assert prepare(base, "--masks", base / "masks").code == 0
    run_chain(base, BEFORE)
    return base


def run_all(base: Path, count: int, workers: int) -> dict[str, bytes]:
    """Run the pipeline with the per-photo commands in shards; every file of the workspace.

    Workers, which take seconds to start, are for the first shard and for one that is empty.
    """
    for commands in (SHARDED, TRAIN, PREDICT):
        for index in range(count if commands is not TRAIN else 1):
            shard = ("--shard", f"{index}/{count}") if commands is not TRAIN and count > 1 else ()
            empty = not any(shard_of(f"scene{number}", count) == index for number in range(8))
            used = workers if index == 0 or empty else 0
            run_chain(base, tuple((*with_workers(words, used), *shard) for words in commands))
    return {str(file.relative_to(base / "work")): file.read_bytes()
            for file in sorted((base / "work").rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def alone(begun: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path
          ) -> dict[str, bytes]:
    base = copy_workspace(begun, tmp_path_factory.mktemp("alone") / "base", tiny_clip)
    return run_all(base, 1, 0)


@pytest.mark.parametrize(("count", "workers"), [(2, 0), (5, 1)])
def test_any_number_of_shards_and_workers_gives_the_same_bytes(
    begun: Path, tmp_path: Path, tiny_clip: Path, alone: dict[str, bytes], count: int, workers: int
) -> None:
    """Each shard goes through all commands before the next one begins; one of five is empty."""
    found = run_all(copy_workspace(begun, tmp_path / "base", tiny_clip), count, workers)
    # Where the CLIP lies is told relative to the workspace: both copies are beside it alike.
    assert sorted(found) == sorted(alone)
    assert [name for name in found if found[name] != alone[name]] == []


def test_the_commands_that_have_shards() -> None:
    assert {name for name, found in find_stages().items()
            if "shard" in settings_with(found, None)} == {*PER_PHOTO, "pack"}
    for name in (*PER_PHOTO, "pack"):
        assert parse_line([name, "--shard", "1/2"]).values["shard"] == "1/2"


def test_status_lists_what_each_shard_lacks(run: Run, begun: Path, tmp_path: Path,
                                            tiny_clip: Path) -> None:
    """At the number of shards of the first time; its lines complete it, here in two ways."""
    work = copy_workspace(begun, tmp_path / "base", tiny_clip) / "work"
    assert run("extract", "--shard", "1/3", "--workers", 0, work=work).err.startswith(
        "shard 1/3 of the photos, as asked for")
    said = run("status", "--json", work=work)
    (features,) = (entry for entry in json.loads(said.out) if entry["name"] == "features/train")
    ids = [f"scene{number}" for number in range(8)]
    lacking = {index: sum(shard_of(key, 3) == index for key in ids) for index in (0, 2)}
    assert [(entry["shard"], entry["missing"]) for entry in features["shards"]] == [
        (f"{index}/3", count) for index, count in lacking.items() if count]
    lines = [entry["line"] for entry in features["shards"]]
    assert all(line in run("status", work=work).out for line in lines)
    assert lines[0].endswith(f"extract --shard {features['shards'][0]['shard']} --update")
    assert run("cam", work=work).lines("hint:")[0].startswith(
        f"vpltool extract --split train --shard {features['shards'][0]['shard']} continues")
    for line in lines[:-1]:
        assert run(*line.split()[1:]).code == 0
    assert run("update", work=work).code == 0
    assert run("status", "--stale", work=work).out == "no result is stale\n"


def test_the_line_that_goes_on_has_all_settings(run: Run, begun: Path, tmp_path: Path,
                                                tiny_clip: Path) -> None:
    work = copy_workspace(begun, tmp_path / "base", tiny_clip) / "work"
    assert run("extract", "--shard", "0/2", "--max-side", 24, "--workers", 0, work=work).code == 0
    hint = run("cam", work=work).lines("hint:")[0]
    line = hint.partition(" continues")[0]
    assert "--max-side 24" in line
    assert run(*line.split()[1:], work=work).code == 0
    assert run("cam", work=work).code == 0


def test_a_bad_photo_does_not_fail_its_shard(run: Run, begun: Path, tmp_path: Path, tiny_clip: Path
                                             ) -> None:
    base = copy_workspace(begun, tmp_path / "base", tiny_clip)
    torn = base / "photos/scene3.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:200])
    shard = f"{shard_of('scene3', 2)}/2"
    other = f"{1 - shard_of('scene3', 2)}/2"
    failed = run("extract", "--shard", shard, "--workers", 0, work=base / "work")
    assert failed.code == 1
    assert "scene3" in failed.lines("error:")[0]
    assert "the others are done" in failed.lines("error:")[0]
    assert run("cam", "--shard", shard, work=base / "work").code == 0
    for command in ("extract", "cam"):
        assert run(command, "--shard", other, work=base / "work").code == 0
    assert run("eval", "--what", "cams/text", "--split", "train", work=base / "work").code == 0
    torn.write_bytes(whole)
    for command in ("extract", "cam"):
        assert run(command, "--shard", shard, work=base / "work").code == 0
    manifest = json.loads((base / "work/cams/text/train/artifact.json").read_text())
    assert (manifest["complete"], manifest["failed"]) == (True, {})


def test_tags_are_written_with_the_last_shard(run: Run, begun: Path, tmp_path: Path,
                                              tiny_clip: Path) -> None:
    work = copy_workspace(begun, tmp_path / "base", tiny_clip) / "work"
    first = run("tag", "--shard", "0/2", "--workers", 0, work=work)
    assert "train.csv will be written by the last shard" in first.err
    assert not (work / "tags/train.csv").exists()
    assert run("tag", "--shard", "1/2", "--workers", 0, work=work).code == 0
    assert len((work / "tags/train.csv").read_text().splitlines()) == 9


def test_the_environment_is_taken_and_said(run: Run, begun: Path, tmp_path: Path, tiny_clip: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    work = copy_workspace(begun, tmp_path / "base", tiny_clip) / "work"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    said = run("extract", "--workers", 0, work=work).err
    assert said.startswith("shard 1/2 of the photos, SLURM_ARRAY_TASK_ID and")
    made = {file.stem for file in (work / "features/train").glob("scene*.safetensors")}
    assert made == {f"scene{number}" for number in range(8) if shard_of(f"scene{number}", 2) == 1}
    wrong = run("extract", "--shard", "2/2", work=work)
    assert wrong.code == 1
    assert "--shard 2/2: expected I/N" in wrong.lines("error:")[0]
