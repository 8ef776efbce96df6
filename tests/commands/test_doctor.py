"""`doctor`: each kind of damage is found, and the printed line repairs it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN, Run, prepare
from PIL import Image

from vpltool.commands import doctor
from vpltool.commands.doctor import removal
from vpltool.formats import describe, write_tensors
from vpltool.names import short_path


def findings(run: Run, work: Path) -> list[dict[str, Any]]:
    """What is not as it should be, after a check that says so by its exit code."""
    result = run("doctor", "--no-machine", "--json", work=work)
    listed = json.loads(result.out)
    assert result.code == any(entry["level"] == "broken" for entry in listed), result.err
    return [entry for entry in listed if entry["level"] != "ok"]


def repair(run: Run, line: str) -> None:
    """Run a printed line: in a shell, and in this process what is vpltool's."""
    for part in line.split(" && "):
        words = shlex.split(part)
        if words[0] == "vpltool":
            done = run(*words[1:])
            assert done.code == 0, f"{part}: {done.err}"
        else:
            subprocess.run(words, check=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def of_another_run(path: Path) -> None:
    header = describe(path).header
    assert header is not None
    header.options["method"] = "another"
    write_tensors(path, header, {"cam": torch.ones(1, 2, 2).half(),
                                 "classes": torch.ones(1).long()})


def test_all_is_well(run: Run, copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copied / "work").rglob("*")}
    result = run("doctor", "--no-machine", work=copied / "work")
    assert result.code == 0
    assert not result.lines("error:")
    files = [path for path in before if path.suffix in (".safetensors", ".png")]
    assert f"8 photos, {len(files)} files checked" in result.out
    assert findings(run, copied / "work") == []
    assert {path: path.stat().st_mtime_ns for path in (copied / "work").rglob("*")} == before


def test_photos_that_failed_are_told_once(run: Run, copied: Path) -> None:
    """By reason, with the line that tries them again; `vpltool` alone counts them."""
    work, photos = copied / "work", copied / "photos"
    names = ("scene0", "scene2", "scene3")
    good = {name: (photos / f"{name}.png").read_bytes() for name in names}
    for name in good:
        (photos / f"{name}.png").write_bytes(b"" if name != "scene2" else b"no photo")
    for command in (("extract", "--workers", 0), ("cam",), ("refine",), ("crf", "--workers", 0)):
        run(*command, "--overwrite", work=work)
    found = findings(run, work)
    assert [(entry["level"], entry["about"]) for entry in found] == [("note", "photos")] * 2
    says = [entry["says"] for entry in found]
    assert says[0] == "2 photos failed (the file is empty): scene0.png, scene3.png; fix them first"
    assert says[1].startswith("1 photo failed (")
    assert says[1].endswith("): scene2.png; fix it first")
    line = f"vpltool -C {work} extract --update"
    assert [entry["repair"] for entry in found] == [line, line]
    told = run(work=work).out
    assert f"3 photos failed and are left out; this says why: vpltool -C {work} doctor\n" in told
    status = run("status", work=work).out
    assert status.count("which failed") == 1
    assert status.count("; without 3 photos") == 5
    for name, content in good.items():
        (photos / f"{name}.png").write_bytes(content)
    repair(run, found[0]["repair"])
    assert "left out" not in run(work=work).out
    assert "which failed" not in run("status", work=work).out
    (stale,) = (entry for entry in findings(run, work) if entry["about"] == "results")
    repair(run, stale["repair"])
    assert findings(run, work) == []
    assert "left out" not in run(work=work).out


def test_a_damaged_photo_that_is_taken_out_is_named_no_more(run: Run, copied: Path) -> None:
    """Its file and its row are deleted, and `prepare` has read that."""
    work, photo = copied / "work", copied / "photos/scene2.png"
    photo.write_bytes(b"no photo")
    for command in (("extract", "--workers", 0), ("cam",), ("refine",), ("crf", "--workers", 0)):
        run(*command, "--overwrite", work=work)
    assert "scene2" in run("doctor", "--no-machine", work=work).out
    photo.unlink()
    rows = (copied / "tags.csv").read_text().splitlines(keepends=True)
    (copied / "tags.csv").write_text("".join(row for row in rows if "scene2" not in row))
    assert prepare(copied).code == 0
    for command in (("doctor", "--no-machine"), ("status",), ("report", "--split", "train"), ()):
        told = run(*command, work=work)
        assert told.code == 0, told.err
        assert "scene2" not in told.out + told.err and "failed" not in told.out
    repair(run, f"vpltool -C {work} update")
    assert findings(run, work) == []


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "features/train": ("features/train/scene0.safetensors", truncate, "1 file is damaged: scene0"),
    "features/val": ("features/val.head.safetensors", Path.unlink, "val.head.safetensors is not"),
    "features/train.head.safetensors": (
        "features/train.head.safetensors", truncate, "is truncated"),
    "cams/text/train": ("cams/text/train/scene1.safetensors", Path.unlink,
                        "lacks 1 of 6 photos: scene1"),
    "cams/text-refined/val": ("cams/text-refined/val/scene6.safetensors", of_another_run,
                              "1 file is of another configuration than the folder: scene6"),
    "cams/text/val": ("cams/text/val/artifact.json", truncate, "cannot be read as JSON"),
    "masks/text-refined/train": ("masks/text-refined/train/scene2.png", truncate,
                                 "1 file is damaged: scene2"),
    "masks/text-refined-full/train": (
        "masks/text-refined-full/train/artifact.json", Path.unlink, "holds masks, but no artifact"),
    "prototypes/text.safetensors": ("prototypes/text.safetensors", truncate, "is truncated"),
}


def test_each_damage_is_found_and_its_line_repairs_it(run: Run, copied: Path) -> None:
    """All at once; whole features of the same photos are not made again."""
    work = copied / "work"
    kept = (work / "features/train/scene5.safetensors").stat().st_mtime_ns
    whole = {file: file.read_bytes() for file in work.rglob("*") if file.is_file()}
    for file, damage, _ in DAMAGES.values():
        damage(work / file)
    (work / "scores").mkdir()
    (work / "scores/text-train.json").write_text("{")
    listed = findings(run, work)
    found = {entry["about"]: entry for entry in listed}
    assert found.keys() == {*DAMAGES, "scores/text-train.json"}
    for about, (_, _, says) in DAMAGES.items():
        assert says in found[about]["says"], found[about]
    # From top to bottom: what is made from others is repaired behind them.
    for entry in listed:
        repair(run, entry["repair"])
    assert findings(run, work) == []
    assert (work / "features/train/scene5.safetensors").stat().st_mtime_ns == kept
    again = {file: file.read_bytes() for file in work.rglob("*") if file.is_file()}
    # The tiny CLIP lies in another place than when `ready` was made: headers only tell its name.
    assert [file for file in whole if again.get(file) != whole[file]] == []


def test_what_killed_commands_leave(run: Run, copied: Path) -> None:
    work = copied / "work"
    old, young = (work / "cams/text/train" / f".part-{name}.safetensors" for name in "ab")
    for part in (old, young):
        part.write_bytes(b"123")
    os.utime(old, (time.time() - 7200,) * 2)
    manifest = work / "cams/text/val/artifact.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"complete": False}, indent=1))
    run("extract", "--keep", "tokens,patches,attention,layers", "--overwrite", "--workers", 0,
        work=work)
    assert run(*TRAIN, "--name", "tiny", work=work).code == 0
    done = work / "decoder/tiny.safetensors"
    shutil.copy(done, work / "decoder/tiny.checkpoint.safetensors")
    shutil.copy(done, work / "decoder/other.checkpoint.safetensors")
    found = {entry["about"]: entry for entry in findings(run, work) if entry["about"] != ".part-*"}
    assert {entry["level"] for entry in found.values()} == {"note"}
    assert found["cams/text/val"]["says"] == "has all its photos, but is not marked complete"
    assert "was left behind" in found["decoder/tiny.checkpoint.safetensors"]["says"]
    assert "training stopped at step" in found["decoder/other.checkpoint.safetensors"]["says"]
    assert "--iters 5" in found["decoder/other.checkpoint.safetensors"]["repair"]
    parts = [entry for entry in findings(run, work) if entry["about"] == ".part-*"]
    assert [entry["says"].split(",")[0] for entry in parts] == [
        "1 file is left by commands that were killed", "1 file is being written"]
    repair(run, parts[0]["repair"])
    assert (old.exists(), young.exists()) == (False, True)


def test_folders_that_killed_commands_leave(run: Run, copied: Path) -> None:
    """Of an export or a report: doctor's line deletes them, and so does the next command."""
    work, ago = copied / "work", time.time() - 7200
    places = [work / "features/train" / f".part-{'01' * 8}", work / "masks" / f".part-{'02' * 8}",
              work / f".part-{'03' * 8}"]

    def leave() -> None:
        for place in places:
            (place / "images").mkdir(parents=True)
            (place / "images/a.png").write_bytes(b"123")
            for path in (place / "images/a.png", place / "images", place):
                os.utime(path, (ago, ago))

    leave()
    (entry,) = findings(run, work)
    assert entry["says"].startswith("3 files are left by commands that were killed, 9 B")
    repair(run, entry["repair"])
    assert not any(place.exists() for place in places)
    leave()
    assert run("extract", "--split", "train", "--workers", 0, work=work).code == 0
    assert not any(place.exists() for place in places)
    # One that is at work stays, however old the folder itself is.
    leave()
    (places[0] / "images/new.png").write_bytes(b"4")
    os.utime(places[0] / "images", (ago, ago))
    assert run("extract", "--split", "train", "--workers", 0, work=work).code == 0
    assert [place.exists() for place in places] == [True, False, False]


def test_photos_that_are_gone_and_ids_that_come_twice(run: Run, copied: Path) -> None:
    work = copied / "work"
    (copied / "photos/scene3.png").unlink()
    lines = (work / "images.jsonl").read_text().splitlines()
    (work / "images.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    found = {entry["about"]: entry for entry in findings(run, work)}
    assert "1 of 9 photos is not in" in found["photos"]["says"]
    assert "scene3" in found["photos"]["says"]
    assert "1 photo listed twice: scene0" in found["images.jsonl"]["says"]
    assert shlex.split(found["photos"]["repair"])[3:5] == ["prepare", "folder"]
    repair(run, found["photos"]["repair"])
    assert not {"photos", "images.jsonl"} & {entry["about"] for entry in findings(run, work)}


def test_a_workspace_that_cannot_be_read(run: Run, copied: Path, tmp_path: Path) -> None:
    (copied / "work/workspace.json").write_text("{}")
    (entry,) = findings(run, copied / "work")
    assert entry["about"] == "workspace.json"
    assert "it has no `name`" in entry["says"]
    nothing = run("doctor", "--no-machine", work=tmp_path)
    assert (nothing.code, nothing.out) == (0, "workspace\n  none here\n")


def test_shards_have_a_line_each(run: Run, copied: Path) -> None:
    work = copied / "work"
    shutil.rmtree(work / "cams")
    assert run("cam", "--shard", "0/3", work=work).code == 0
    lacking = next(entry for entry in findings(run, work) if entry["about"] == "cams/text/train")
    lines = lacking["repair"].splitlines()
    assert 1 <= len(lines) <= 2
    assert all("--shard" in line for line in lines)
    for line in lines:
        repair(run, line)
    assert "cams/text/train" not in {entry["about"] for entry in findings(run, work)}


def test_the_machine(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(run("doctor", "--json", work=tmp_path).out)
    assert [entry["about"] for entry in listed[:2]] == ["vpltool", "torch"]
    assert torch.__version__ in listed[1]["says"]
    monkeypatch.setattr(doctor.shutil, "disk_usage",
                        lambda _path: shutil._ntuple_diskusage(10, 9, 64_000_000))  # type: ignore[attr-defined]
    result = run("doctor", work=tmp_path)
    assert result.code == 1
    assert "64 MB free" in result.out


def test_a_torch_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise OSError("libc10.so: cannot open")

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    broken = [found for found in doctor._torch() if found.level == "broken"]
    assert [(found.about, found.repair) for found in broken] == [
        ("torch", "pip install --force-reinstall torch")]


def test_of_many_files_the_manifest_goes_and_no_corrected_mask(run: Run, copied: Path) -> None:
    """The command looks at each file then; a line that deletes the folder would lose the mask."""
    files = [copied / f"{number}.png" for number in range(30)]
    manifest = copied / "artifact.json"
    assert removal(files[:2], manifest) == shlex.join(["rm", *map(short_path, sorted(files[:2]))])
    assert removal(files, manifest) == shlex.join(["rm", short_path(manifest)])
    masks = copied / "work/masks/text-refined/train"
    whole = {file.name: file.read_bytes() for file in masks.glob("*.png")}
    _correct(masks / "scene1.png")
    corrected = (masks / "scene1.png").read_bytes()
    truncate(masks / "scene2.png")
    (masks / "scene3.png").unlink()
    (masks / "artifact.json").unlink()
    found = {entry["about"]: entry for entry in findings(run, copied / "work")}
    assert "incomplete" in run("status", work=copied / "work").out
    repair(run, found["masks/text-refined/train"]["repair"])
    now = {file.name: file.read_bytes() for file in masks.glob("*.png")}
    assert now == whole | {"scene1.png": corrected}
    assert findings(run, copied / "work") == []


def test_a_damaged_manifest_costs_no_corrected_mask(run: Run, copied: Path) -> None:
    masks = copied / "work/masks/text-refined/train"
    for file in masks.glob("*.png"):
        _correct(file)
    corrected = {file: file.read_bytes() for file in masks.glob("*.png")}
    truncate(masks / "artifact.json")
    (entry,) = (entry for entry in findings(run, copied / "work") if entry["repair"])
    for part in entry["repair"].split(" && "):
        words = shlex.split(part)
        if words[0] != "vpltool":
            subprocess.run(words, check=True)
    assert {file: file.read_bytes() for file in masks.glob("*.png")} == corrected


def _correct(path: Path) -> None:
    """Save a mask as another program does: without vpltool's header."""
    with Image.open(path) as image:
        image.load()
        image.info.clear()
        image.save(path)


def test_after_prepare_from_the_start_results_are_stale_and_not_broken(run: Run, copied: Path
                                                                       ) -> None:
    """One note, whose line mends it; also where photos have come and gone."""
    work = copied / "work"
    Image.open(copied / "photos/scene2.png").rotate(90).save(copied / "photos/more.png")
    lines = (copied / "tags.csv").read_text().splitlines()
    (copied / "tags.csv").write_text("\n".join(
        [*(line for line in lines if not line.startswith("scene1,")), "more,disc,train"]) + "\n")
    (copied / "photos/scene1.png").unlink()
    done = run("prepare", "folder", copied / "photos", "--labels", copied / "tags.csv",
               "--overwrite", work=work)
    assert done.code == 0, done.err
    found = findings(run, work)
    assert not any(entry["level"] == "broken" for entry in found), found
    (stale,) = (entry for entry in found if "stale" in entry["says"])
    assert stale["repair"].endswith(" update")
    repair(run, stale["repair"])
    assert not any("stale" in entry["says"] for entry in findings(run, work))
