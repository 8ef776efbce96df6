"""`prepare webdataset`: a workspace of tars; nothing in a tar writes outside of its folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from conftest import Result, Run, prepare, run_in_process
from PIL import Image
from test_webdataset import write_tar

from vpltool.datasets.webdataset import folder_names
from vpltool.formats import Photo, open_workspace
from vpltool.names import leads_out


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 32), (shade, 90, 40)).save(file, format="JPEG")
    return file.getvalue()


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars/000.tar", {
        "a/0.jpg": jpeg(0), "a/0.txt": "one cat\na cat", "a/0.json": '{"labels": ["cat"]}',
        "a/1.jpg": jpeg(20), "a/1.json": '{"caption": "a dog", "tags": ["dog", "cat"]}'})
    write_tar(tmp_path / "tars/001.tar", {
        "a/0.jpg": jpeg(40), "a/0.txt": " ", "a/0.cls": "dog",
        "a/2.jpg": jpeg(60), "a/2.cls": "cat", "3.txt": "no photo"})
    return tmp_path


def prepared(base: Path, *options: object) -> Result:
    return run_in_process("prepare", "webdataset", base / "tars/{000..000}.tar", "--val",
                          base / "tars/001.tar", *options, work=base / "work")


def test_a_workspace_of_tars(tars: Path) -> None:
    result = prepared(tars)
    assert result.code == 0, result.err
    workspace = open_workspace(tars / "work")
    assert workspace.classes == ("cat", "dog")
    assert workspace.photos() == [
        Photo("000/a/0", "000/a/0.jpg", ("cat",), ("train",), None, ("one cat", "a cat")),
        Photo("000/a/1", "000/a/1.jpg", ("dog", "cat"), ("train",), None, ("a dog",)),
        Photo("001/a/0", "001/a/0.jpg", ("dog",), ("val",)),
        Photo("001/a/2", "001/a/2.jpg", ("cat",), ("val",))]
    assert [workspace.image_path(photo).read_bytes() for photo in workspace.photos()] == [
        jpeg(shade) for shade in (0, 20, 40, 60)]
    assert result.lines("warning:") == [
        f"skipped 1 empty captions: {tars}/tars/001.tar: a/0",
        f"skipped 1 captions without a photo: {tars}/tars/001.tar: 3",
        "2 of 4 photos have no caption, such as 001/a/0"]


def test_again_writes_only_what_is_not_there(tars: Path) -> None:
    prepared(tars)
    lost, kept = tars / "work/unpacked/000/a/0.jpg", tars / "work/unpacked/001/a/0.jpg"
    lost.unlink()
    time = kept.stat().st_mtime_ns
    assert "writing 1 photo" in prepared(tars).err
    assert lost.read_bytes() == jpeg(0)
    assert kept.stat().st_mtime_ns == time
    assert "writing" not in prepared(tars).err


def test_numbers_of_classes_are_named_by_a_class_file(tars: Path) -> None:
    for number, content in enumerate(("1", "0")):
        write_tar(tars / f"tars/{number:03}.tar", {"0.jpg": jpeg(0), "0.cls": content})
    assert "the classes are numbers, such as 0" in prepared(tars).err
    (tars / "classes.txt").write_text("cat\ndog\n")
    assert prepared(tars, "--classes", tars / "classes.txt", "--overwrite").code == 0
    photos = open_workspace(tars / "work").photos()
    assert [photo.tags for photo in photos] == [("dog",), ("cat",)]
    write_tar(tars / "tars/000.tar", {"0.jpg": jpeg(0), "0.cls": "7"})
    assert prepared(tars).lines("error:") == ["photo 000/0 has the tag `7`, which is not a class"]


def test_another_workspace_gets_no_photos(tars: Path, tiny_clip: Path, ready: Path) -> None:
    (tars / "photos").mkdir()
    Image.new("RGB", (40, 32)).save(tars / "photos/a.png")
    (tars / "tags.csv").write_text("id,labels\na,cat\n")
    (tars / "clip").symlink_to(tiny_clip)
    assert prepare(tars).code == 0
    result = prepared(tars)
    assert result.code == 1
    assert "was made with other settings" in result.err
    assert not (tars / "work/unpacked").exists(), "refused before a photo is written"


@pytest.mark.parametrize("key", ["../evil", "/evil", "a/../../evil", "a//b", "./a", "..\\evil",
                                 "C:/evil", "a\0b"])
def test_names_that_lead_out(key: str) -> None:
    assert leads_out(key)


@pytest.mark.parametrize("key", ["a", "a b/c", "a..b", "...a/x", "ä/0"])
def test_names_that_stay_inside(key: str) -> None:
    assert not leads_out(key)


def test_a_tar_cannot_write_outside(tars: Path) -> None:
    path = tars / "tars/000.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../../../evil.jpg", f"{tars}/evil.jpg", "0.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(jpeg(0))
            tar.addfile(member, io.BytesIO(jpeg(0)))
        for name, kind in (("way", tarfile.SYMTYPE), ("1.jpg", tarfile.SYMTYPE),
                           ("2.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tars)
            tar.addfile(member)
        member = tarfile.TarInfo("way/evil.jpg")
        member.size = len(jpeg(0))
        tar.addfile(member, io.BytesIO(jpeg(0)))
    before = {file for file in tars.rglob("*") if "work" not in file.parts}
    result = prepared(tars)
    assert "skipped 2 names that lead out of their folder" in result.err
    assert {file for file in tars.rglob("*") if "work" not in file.parts} == before
    unpacked = tars / "work/unpacked"
    written = [file for file in unpacked.rglob("*") if file.is_file()]
    assert sorted(file.relative_to(unpacked).as_posix() for file in written) == [
        "000/0.jpg", "000/way/evil.jpg", "001/a/0.jpg", "001/a/2.jpg"]
    assert not any(file.is_symlink() for file in unpacked.rglob("*"))


@pytest.mark.parametrize(("tars", "names"), [
    (["x/train/000.tar", "x/train/001.tar.gz"], ["000", "001"]),
    (["x/train/0.tar", "x/val/0.tar"], ["train/0", "val/0"]),
    (["s3://b/0.tar?x=1&y", "pipe:curl 'http://h/1.tar'"], ["0", "1"]),
    (["../0.tar", "0.tar.gz", "0.tar"], ["0-0", "0-1", "0-2"]),
    (["..", "a"], ["tar", "a"]),
])
def test_each_tar_has_a_folder_of_its_own(tars: list[str], names: list[str]) -> None:
    assert folder_names(tars) == names


def test_a_folder_with_captions_needs_neither_tags_nor_classes(
        tars: Path, run: Run, tiny_clip: Path) -> None:
    (tars / "photos").mkdir()
    for name in "ab":
        (tars / f"photos/{name}.jpg").write_bytes(jpeg(ord(name)))
    (tars / "captions.csv").write_text("id,caption\na,a cat\na,one cat\nb,a dog\n")
    call = ("prepare", "folder", tars / "photos", "--pretrained", tiny_clip)
    work = tars / "work"
    assert run(*call, work=work).lines("error:") == [
        "neither tags nor class names are given"]
    result = run(*call, "--captions", tars / "captions.csv", work=work)
    assert result.code == 0, result.err
    assert "2 photos with captions, 3 in all" in result.err
    assert "no classes" in result.err
    assert open_workspace(work).classes == ()
    refused = run("text-prototypes", work=work)
    assert refused.lines("error:") == [f"{work}/workspace.json names no class"]
    assert "--classes FILE" in refused.lines("hint:")[0]
    # Named later, they are taken into the same workspace.
    (tars / "classes.txt").write_text("cat\ndog\n")
    assert run(*call, "--classes", tars / "classes.txt", work=work).code == 0
    assert open_workspace(work).classes == ("cat", "dog")
    assert run("text-prototypes", "--prompts", "single", work=work).code == 0
