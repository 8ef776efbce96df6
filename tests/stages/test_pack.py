"""`pack`: features in tars are read as from files, and nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import Run

from vpltool.errors import VplError
from vpltool.formats import open_input
from vpltool.formats.packed import PACKED, packed_slices
from vpltool.stages.pack import _batches

CAM = ("cam", "--split", "train", "--overwrite")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*") if file.is_file()}


def features_of(folder: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.fixture
def packed(run: Run, copied: Path) -> Path:
    """A workspace whose features of the split train lie in a tar."""
    result = run("pack", "--split", "train", work=copied / "work")
    assert result.code == 0, result.err
    assert result.out == f"{copied / 'work/features/train'}\n"
    return copied / "work"


def test_commands_read_tars_as_they_read_files(run: Run, packed: Path, ready: Path) -> None:
    folder = packed / "features/train"
    assert [file.name for file in folder.iterdir() if file.is_file()] == ["artifact.json"]
    assert sorted(file.name for file in (folder / PACKED).iterdir()) == [
        "0-of-1-000000.json", "0-of-1-000000.tar"]
    shutil.rmtree(packed / "cams/text/train")
    result = run(*CAM, work=packed)
    assert result.code == 0, result.err
    assert contents(packed / "cams/text/train") == contents(ready / "work/cams/text/train")
    # What asks for the folder's ids and state finds all of them, and nothing to be done again.
    listed = json.loads(run("inspect", folder, "--json", work=packed).out)
    assert "'photos': 0" not in str(listed)
    assert "STALE" not in run("status", work=packed).out
    assert run("doctor", work=packed).code == 0
    again = run("extract", "--split", "train", "--workers", 0, work=packed)
    assert again.code == 0 and "done already" in again.err
    assert not features_of(folder)


def test_unpacked_they_are_what_they_were(packed: Path, ready: Path, tmp_path: Path) -> None:
    before = features_of(ready / "work/features/train")
    with tarfile.open(packed / "features/train" / PACKED / "0-of-1-000000.tar") as tar:
        assert [(entry.mtime, entry.uid, entry.uname) for entry in tar.getmembers()] == [
            (0, 0, "")] * len(before)
        tar.extractall(tmp_path / "out", filter="data")
    assert features_of(tmp_path / "out") == before


def test_webdataset_reads_the_same_tars(packed: Path, ready: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    tar = packed / "features/train" / PACKED / "0-of-1-000000.tar"
    read = {sample["__key__"]: sample["safetensors"] for sample in webdataset.WebDataset(
        str(tar), shardshuffle=False)}
    assert read == features_of(ready / "work/features/train")


def test_shards_pack_their_own_photos(run: Run, copied: Path, ready: Path) -> None:
    work = copied / "work"
    ids = set(features_of(work / "features/train"))
    assert run("pack", "--shard", "1/2", work=work).code == 0
    places = packed_slices(work / "features/train")
    assert {place.tar for place in places.values()} == {"1-of-2-000000.tar"}
    assert set(features_of(work / "features/train")) == ids - set(places)
    folder = open_input(work / "features/train", ("features",))
    assert set(folder.available(ids)) == ids
    assert run("pack", "--shard", "0/2", work=work).code == 0
    assert set(packed_slices(work / "features/train")) == ids
    assert run(*CAM, work=work).code == 0
    assert contents(work / "cams/text/train") == contents(ready / "work/cams/text/train")


def test_what_a_killed_run_left_is_finished(run: Run, packed: Path, ready: Path) -> None:
    """Killed before the files were deleted, or with a tar that has no index yet."""
    folder = packed / "features/train"
    before = contents(folder)
    for name in ("scene0", "scene1"):
        shutil.copy(ready / f"work/features/train/{name}.safetensors", folder)
    assert run("pack", work=packed).code == 0
    assert contents(folder) == before
    (folder / PACKED / "0-of-1-000000.json").unlink()
    for file in (ready / "work/features/train").glob("*.safetensors"):
        shutil.copy(file, folder)
    assert run("pack", work=packed).code == 0
    assert contents(folder) == before
    # A photo's file that is not what was packed is never deleted unpacked.
    (folder / "scene0.safetensors").write_bytes(
        (ready / "work/features/train/scene1.safetensors").read_bytes())
    assert run("pack", work=packed).code == 0
    assert packed_slices(folder)["scene0"].tar == "0-of-1-000001.tar"


def test_tars_are_not_replaced(run: Run, packed: Path) -> None:
    before = contents(packed / "features/train")
    for more in (("--overwrite",), ("--scale", 0.5, "--overwrite"), ("--scale", 0.5, "--update")):
        result = run("extract", "--workers", 0, *more, work=packed)
        assert result.code == 1
        assert "is packed into tars" in result.lines("error:")[0]
        assert "delete" in result.lines("hint:")[0]
    assert contents(packed / "features/train") == before


def test_a_damaged_tar_is_found_and_repaired(run: Run, packed: Path) -> None:
    tar = packed / "features/train" / PACKED / "0-of-1-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    told = run(*CAM, work=packed)
    assert told.code == 1 and len(told.lines("error:")) == 1
    assert f"delete {tar.with_suffix('.json')}" in told.lines("hint:")[0]
    found = [entry for entry in json.loads(run("doctor", "--json", work=packed).out)
             if entry["about"] == "features/train" and entry["level"] == "broken"]
    assert len(found) == 1 and "0-of-1-000000" in found[0]["says"]
    assert "0-of-1-000000.json" in found[0]["repair"] and "extract" in found[0]["repair"]


def test_a_folder_elsewhere(run: Run, copied: Path, ready: Path, tmp_path: Path) -> None:
    result = run("pack", "--to", tmp_path / "other disk", work=copied / "work")
    assert result.code == 0, result.err
    assert [file.name for file in (tmp_path / "other disk").iterdir()] == ["0-of-1-000000.tar"]
    assert run(*CAM, work=copied / "work").code == 0
    assert contents(copied / "work/cams/text/train") == contents(ready / "work/cams/text/train")


def test_what_cannot_be_packed_stays(run: Run, copied: Path, tmp_path: Path) -> None:
    before = contents(copied / "work")
    (tmp_path / "file").write_text("")
    for to in (tmp_path / "file", "nowhere://bucket/x"):
        result = run("pack", "--to", to, work=copied / "work")
        assert result.code == 1
        assert len(result.lines("error:")) == 1
    assert contents(copied / "work") == before


def test_a_tar_ends_at_its_size(tmp_path: Path) -> None:
    files = {}
    for number in range(5):
        files[str(number)] = tmp_path / str(number)
        files[str(number)].write_bytes(bytes(100))
    assert [list(batch) for batch in _batches(files, 150)] == [["0", "1"], ["2", "3"], ["4"]]


def test_long_names(tmp_path: Path) -> None:
    """Above 100 letters, and others than ASCII: the header has several blocks."""
    from vpltool.formats.packed import read_packed, write_tar

    names = ["é" * 80, "folder/" + "x" * 200, "a.b", "0"]
    files = {}
    for name in names:
        file = tmp_path / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(name.encode() * 99)
        files[name] = file
    write_tar(tmp_path, "t", "", files)
    places = packed_slices(tmp_path)
    for name in names:
        assert read_packed(places[name], f"{name}.safetensors") == files[name].read_bytes()
    with pytest.raises(VplError, match="no other where the index says"):
        read_packed(places["0"], "other")
