"""Shards: which photos a process does, and folders that several processes write at once."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vpltool.engine.photos import chosen_shard
from vpltool.errors import VplError
from vpltool.formats import Header, OutputFolder, open_input, open_output
from vpltool.formats.shards import (
    WHOLE,
    Shard,
    check_alone,
    find_shard,
    rank_of_process,
    shard_of,
)

HEADER = Header(kind="cams", command="cam", options={"split": "train", "tau": 0.01})
CAM = {"cam": torch.zeros(1, 2, 2).half(), "classes": torch.tensor([1])}
IDS = [f"photo{number}" for number in range(12)]
TAGS = {key: f"tag of {key}" for key in IDS}
TORN = "photo5"

VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT",
             "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def tell(monkeypatch: pytest.MonkeyPatch, **variables: object) -> None:
    """Set environment variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_a_photo_s_shard_never_changes() -> None:
    """By SHA-256: the same in each process, on each machine, in each version."""
    assert [shard_of(key, 4) for key in ("a", "2007_000032", "straße/ü")] == [
        int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) % 4
        for key in ("a", "2007_000032", "straße/ü")]
    # ca978112ca1bbdca… is the SHA-256 of "a".
    assert shard_of("a", 1000) == 0xCA978112CA1BBDCA % 1000
    shards = [Shard(index, 5) for index in range(5)]
    assert all(sum(shard.holds(key) for shard in shards) == 1 for key in IDS)
    assert all(WHOLE.holds(key) for key in IDS)


def test_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, RANK=0, WORLD_SIZE=2)
    assert str(find_shard("3/4")) == "3/4"
    assert find_shard("0/1").count == 1
    for wrong in ("4/4", "-1/4", "1", "1/0", "a/b", "1/4/2", "0/4 "):
        with pytest.raises(VplError, match="expected I/N") as caught:
            find_shard(wrong)
        assert "`shard='0/4'`" in caught.value.hint


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_shard("") is WHOLE
    tell(monkeypatch, RANK=1, WORLD_SIZE=3, SLURM_ARRAY_TASK_ID=0, SLURM_ARRAY_TASK_COUNT=2)
    assert find_shard("") == Shard(1, 3, "RANK and WORLD_SIZE")
    assert rank_of_process() == (1, 3)
    tell(monkeypatch, RANK=3)
    with pytest.raises(VplError, match="ranks are 0 to 2"):
        find_shard("")
    tell(monkeypatch, RANK="one")
    with pytest.raises(VplError, match="RANK=one"):
        find_shard("")


def test_a_torchrun_of_one_leaves_the_array_its_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, RANK=0, WORLD_SIZE=1, SLURM_ARRAY_TASK_ID=1, SLURM_ARRAY_TASK_COUNT=2)
    assert find_shard("").set_by == "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT"
    assert str(find_shard("")) == "1/2"


@pytest.mark.parametrize(("first", "last", "index", "count"), [
    (1, 4, 1, 4), (3, 5, 3, 2), (0, 5, 0, 2), (0, 5, 5, 2)],
    ids=["from one", "a retry of 3 and 5", "a retry of 0 and 5", "its last"])
def test_an_array_that_is_not_numbered_from_0_is_refused(
    monkeypatch: pytest.MonkeyPatch, first: int, last: int, index: int, count: int
) -> None:
    tell(monkeypatch, SLURM_ARRAY_TASK_ID=index, SLURM_ARRAY_TASK_COUNT=count,
         SLURM_ARRAY_TASK_MIN=first, SLURM_ARRAY_TASK_MAX=last)
    with pytest.raises(VplError, match=f"{first} to {last}") as caught:
        find_shard("")
    assert f"`shard='{index}/N'`" in caught.value.hint


ARRAY = {"SLURM_ARRAY_TASK_ID": 0, "SLURM_ARRAY_TASK_COUNT": 2, "SLURM_ARRAY_TASK_MIN": 0,
         "SLURM_ARRAY_TASK_MAX": 1}


@pytest.mark.parametrize(("variables", "choice", "tasks"), [
    ({"SLURM_STEP_NUM_TASKS": 4, "SLURM_PROCID": 2}, "", 4),
    ({"SLURM_STEP_NUM_TASKS": 4, "SLURM_PROCID": 2} | ARRAY, "", 4),
    ({"SLURM_STEP_NUM_TASKS": 4, "SLURM_PROCID": 2}, "2/4", 1),
    ({"SLURM_STEP_NUM_TASKS": 4, "RANK": 0, "WORLD_SIZE": 8}, "", 1),
    ({"SLURM_STEP_NUM_TASKS": 1, "SLURM_NTASKS": 4, "SLURM_PROCID": 0}, "", 1)],
    ids=["srun", "srun in an array", "named shards", "torchrun", "the script of sbatch"])
def test_srun_whose_tasks_all_take_the_same_photos_is_warned_of(
    variables: dict[str, int], choice: str, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, **variables)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen_shard(choice)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (tasks > 1)
    share, number = (("I/8", "4 × SLURM_ARRAY_TASK_ID + SLURM_PROCID")
                     if "SLURM_ARRAY_TASK_ID" in variables else ("I/4", "its SLURM_PROCID"))
    assert all("4 tasks" in message and f"`shard='{share}'`, where I is {number}" in message
               for message in said)


def test_what_cannot_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone("a recipe")
    tell(monkeypatch, SLURM_ARRAY_TASK_ID=4, SLURM_ARRAY_TASK_COUNT=8)
    with pytest.raises(VplError, match="a recipe has steps over all photos") as caught:
        check_alone("a recipe")
    assert "unset SLURM_ARRAY_TASK_COUNT" in caught.value.hint


def opened(path: Path, shard: Shard = WHOLE, ids: Iterable[str] = IDS, header: Header = HEADER,
           **options: bool) -> OutputFolder:
    """A folder as a process with a shard opens it."""
    mine = [key for key in ids if shard.holds(key)]
    return open_output(path, header, mine, per_photo_inputs={key: TAGS[key] for key in mine},
                       shard=shard, **options)


def work(output: OutputFolder, failing: Sequence[str] = (), stop_after: int = 99) -> None:
    """Do what is left to do; a process that stops after some photos does not finish."""
    output.begin()
    for key in output.todo[:stop_after]:
        if key in failing:
            output.fail(key, "it is torn")
        else:
            output.write_tensors(key, CAM)
    if stop_after == 99:
        output.finish()


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*"))
            if file.is_file()}


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, bytes]:
    """What one process makes; a photo is torn."""
    work(opened(tmp_path / "alone"), failing=[TORN])
    return tree(tmp_path / "alone")


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_shards_end_in_the_bytes_of_one_process(tmp_path: Path, alone: dict[str, bytes],
                                                order: list[int]) -> None:
    for index in order:
        work(opened(tmp_path / "cams", Shard(index, 3)), failing=[TORN])
    assert tree(tmp_path / "cams") == alone
    assert all(path.is_file() for path in (tmp_path / "cams").iterdir())


def test_shards_at_once(tmp_path: Path, alone: dict[str, bytes]) -> None:
    """All are opened before the first begins, and all have begun before the first finishes."""
    outputs = [opened(tmp_path / "cams", Shard(index, 3)) for index in range(3)]
    for output in outputs:
        output.begin()
    for output in reversed(outputs):
        work(output, failing=[TORN])
    assert tree(tmp_path / "cams") == alone


def test_readers_join_what_is_there(tmp_path: Path) -> None:
    lost = shard_of(TORN, 3)
    work(opened(tmp_path, Shard(lost, 3)), failing=[TORN])
    folder = open_input(tmp_path, ("cams",))
    mine = {key for key in IDS if shard_of(key, 3) == lost}
    assert folder.shards == 3
    assert folder.failed == {TORN: "it is torn"}
    assert folder.per_photo_inputs == {key: TAGS[key] for key in mine}
    with pytest.warns(UserWarning, match=TORN):
        assert set(folder.available(mine)) == mine - {TORN}
    others = [str(Shard(index, 3)) for index in range(3) if index != lost]
    with pytest.raises(VplError, match=f"has {len(mine) - 1} of 12 photos") as caught:
        folder.available(IDS)
    assert f"`cam(split='train', shard='{others[0]}')`" in caught.value.hint
    assert f"of {', '.join(others)};" in caught.value.hint


def test_one_process_completes_what_shards_began(tmp_path: Path, alone: dict[str, bytes]) -> None:
    work(opened(tmp_path / "cams", Shard(0, 3)), failing=[TORN])
    work(opened(tmp_path / "cams", Shard(2, 3)), failing=[TORN], stop_after=1)
    rest = opened(tmp_path / "cams")
    assert 0 < len(rest.todo) < len(IDS)
    work(rest, failing=[TORN])
    assert tree(tmp_path / "cams") == alone
    assert all(path.is_file() for path in (tmp_path / "cams").iterdir())


def test_another_number_of_shards_goes_on(tmp_path: Path, alone: dict[str, bytes]) -> None:
    """What two of four did, three need not do again; no photo is left out."""
    for index in (1, 2):
        work(opened(tmp_path / "cams", Shard(index, 4)), failing=[TORN])
    done = {key for key in IDS if shard_of(key, 4) in (1, 2)} - {TORN}
    asked: list[str] = []
    for index in range(3):
        output = opened(tmp_path / "cams", Shard(index, 3))
        asked += output.todo
        work(output, failing=[TORN])
    assert sorted(asked) == sorted(set(IDS) - done)
    assert tree(tmp_path / "cams") == alone


def test_two_processes_with_one_shard(tmp_path: Path, alone: dict[str, bytes]) -> None:
    """Both do the work; neither harms the other."""
    first, second = (opened(tmp_path / "cams", Shard(0, 2)) for _ in range(2))
    first.begin()
    work(second, failing=[TORN])
    work(first, failing=[TORN])
    work(opened(tmp_path / "cams", Shard(1, 2)), failing=[TORN])
    assert tree(tmp_path / "cams") == alone


def test_an_empty_shard(tmp_path: Path) -> None:
    count = 50
    empty = next(index for index in range(count)
                 if index not in {shard_of(key, count) for key in IDS})
    output = opened(tmp_path, Shard(empty, count))
    assert output.todo == []
    work(output)
    assert open_input(tmp_path, ("cams",)).available([]) == []


def test_a_photo_that_failed_is_done_again_by_its_shard_alone(tmp_path: Path,
                                                              alone: dict[str, bytes]) -> None:
    for index in range(3):
        work(opened(tmp_path / "cams", Shard(index, 3)), failing=[TORN])
    again = opened(tmp_path / "cams", Shard(shard_of(TORN, 3), 3))
    assert again.todo == [TORN]
    work(again)
    manifest = json.loads((tmp_path / "cams/artifact.json").read_text())
    assert (manifest["failed"], manifest["complete"]) == ({}, True)
    assert set(tree(tmp_path / "cams")) == {*alone, f"{TORN}.safetensors"}
    other = opened(tmp_path / "cams", Shard((shard_of(TORN, 3) + 1) % 3, 3))
    before = tree(tmp_path / "cams")
    work(other)
    assert tree(tmp_path / "cams") == before


@pytest.mark.parametrize("option", ["overwrite", "update"])
def test_another_configuration_is_replaced_once(tmp_path: Path, option: str) -> None:
    """No shard deletes what another one has just made."""
    header = replace(HEADER, options={"split": "train", "tau": 0.02})
    work(opened(tmp_path / "new", header=header))
    work(opened(tmp_path / "cams"))
    first, second = (opened(tmp_path / "cams", Shard(index, 2), header=header, **{option: True})
                     for index in range(2))
    work(first)
    done = [file for file in tree(tmp_path / "cams") if file.endswith(".safetensors")]
    assert len(done) == len(first.todo)
    work(second)
    third = opened(tmp_path / "cams", Shard(0, 2), header=header)
    assert third.todo == []
    assert tree(tmp_path / "cams") == tree(tmp_path / "new")


def test_overwriting_a_shard_leaves_the_others(tmp_path: Path) -> None:
    work(opened(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    shard = Shard(1, 3)
    work(opened(tmp_path, shard, overwrite=True))
    for file, written in before.items():
        assert (file.stat().st_mtime_ns > written) == shard.holds(file.stem)


def test_a_limit_is_not_the_whole(tmp_path: Path) -> None:
    for index in range(2):
        output = opened(tmp_path, Shard(index, 2), IDS[:6])
        output.whole = False
        work(output)
    assert not json.loads((tmp_path / "artifact.json").read_text())["complete"]
    assert len(open_input(tmp_path, ("cams",)).available(IDS[:6])) == 6


def test_another_process_begins_while_the_folder_is_opened(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has written since the manifest was looked for is no stranger's."""
    from vpltool.formats import outputs

    known_manifest = outputs.known_manifest

    def looked_for_just_before(path: Path, header: Header, made_by: str) -> object:
        found = known_manifest(path, header, made_by)
        monkeypatch.setattr(outputs, "known_manifest", known_manifest)
        other = open_output(path, header, IDS[:1], shard=Shard(1, 3))
        other.begin()
        other.write_tensors(IDS[0], CAM)
        other.finish()
        return found

    monkeypatch.setattr(outputs, "known_manifest", looked_for_just_before)
    own = open_output(tmp_path / "cams", HEADER, IDS[1:2], shard=Shard(0, 3))
    own.begin()
    own.write_tensors(IDS[1], CAM)
    own.finish()
    assert sorted(path.name for path in (tmp_path / "cams").glob("photo*")) == [
        "photo0.safetensors", "photo1.safetensors"]
