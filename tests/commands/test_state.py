"""`status` and `update`: what is stale is found, said in words, and made again, nothing else."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, copy_workspace, draw_scenes, prepare

from vpltool.console import size
from vpltool.formats import open_workspace, read_tensors
from vpltool.state import read_state


def stale(work: Path) -> dict[str, list[str]]:
    state = read_state(open_workspace(work))
    return {artifact.name: state.stale(artifact) for artifact in state.in_order
            if state.stale(artifact)}


def times(work: Path) -> dict[str, int]:
    return {path.relative_to(work).as_posix(): path.stat().st_mtime_ns
            for path in work.rglob("*.safetensors") if ".head." not in path.name}


def retag(base: Path, old: str, new: str) -> None:
    """Change the tags of the CSV, and prepare again."""
    file = base / "tags.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert prepare(base, "--masks", base / "masks").code == 0


def test_all_is_up_to_date(run: Run, copied: Path) -> None:
    work = copied / "work"
    listed = json.loads(run("status", "--json", work=work).out)
    names = [entry["name"] for entry in listed]
    assert set(names) == {
        "prototypes/text.safetensors", *(f"{kind}/{split}" for split in ("train", "val")
                                         for kind in ("features", "cams/text",
                                                      "cams/text-refined")),
        "masks/text-refined/train", "masks/text-refined-full/train"}
    assert not any(entry["stale"] for entry in listed)
    for entry in listed:
        for source in entry["sources"]:
            assert names.index(source) < names.index(entry["name"])
    assert "stale" not in run("status", work=work).out
    before = times(work)
    assert run("update", work=work).out == ""
    assert times(work) == before


def test_what_is_damaged_is_named_and_the_rest_is_listed(run: Run, copied: Path) -> None:
    """A manifest, one of a shard, and a single file; `update` stops, since it would change them."""
    work = copied / "work"
    before = [entry["name"] for entry in json.loads(run("status", "--json", work=work).out)]
    (work / "features/val/artifact.json").write_text("{")
    shards = work / "cams/text/train/.shards"
    shards.mkdir()
    (shards / "0-of-2.json").write_text('{"shard": ')
    (work / "prototypes/text.safetensors").write_bytes(b"torn")
    result = run("status", "--json", work=work)
    assert result.code == 0, result.err
    listed = {entry["name"]: entry for entry in json.loads(result.out)}
    assert sorted(listed) == sorted(before)
    damaged = {name: entry["damaged"] for name, entry in listed.items() if entry["damaged"]}
    assert sorted(damaged) == ["cams/text/train", "features/val", "prototypes/text.safetensors"]
    assert "0-of-2.json is damaged" in damaged["cams/text/train"]
    assert listed["cams/text-refined/train"]["stale"] == ["cams/text/train is damaged"]
    assert not listed["features/train"]["stale"]
    shown = run("status", work=work).out.splitlines()
    assert sum(line.startswith("damaged  ") for line in shown) == 3
    assert any(line.endswith("DAMAGED") for line in shown)
    assert "damaged  features/val" in run("status", "--stale", work=work).out.splitlines()
    refused = run("update", work=work)
    assert refused.code == 1 and len(refused.lines("error:")) == 1
    assert listed["features/val"]["line"] == f"vpltool -C {work} doctor"
    (work / "prototypes/text.safetensors").unlink()
    (work / "prototypes/text.safetensors").symlink_to("nowhere")
    shown = run("status", work=work)
    assert shown.code == 0, shown.err
    assert "damaged  prototypes/nowhere" in shown.out.splitlines()
    assert " days " not in shown.out


@pytest.mark.parametrize("name", [
    "prototypes/text.safetensors", "features/val/artifact.json"])
def test_what_may_not_be_read_is_not_called_damaged(name: str, run: Run, copied: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """No line deletes or recomputes it: its owner can give the right. The rest is listed."""
    work = copied / "work"
    before = len(json.loads(run("status", "--json", work=work).out))
    close(monkeypatch, work / name)
    listed = json.loads(run("status", "--json", work=work).out)
    assert len(listed) == before
    (found,) = (entry for entry in listed if entry["damaged"])
    assert re.fullmatch(rf"you may not read .*{name} \(owner \w+, mode 244\)", found["damaged"])
    assert found["line"] == f"run: chmod u+r {work / name}"
    assert found["forbidden"]
    assert f"forbidden  {found['name']}" in run("status", work=work).out.splitlines()
    (stale,) = (entry["stale"] for entry in listed if found["name"] in entry["sources"]
                and entry["name"] in ("cams/text/val",))
    assert stale == [f"{found['name']} may not be read"]
    checked = run("doctor", "--no-machine", work=work)
    assert checked.code == 1
    assert f"run: chmod u+r {work / name}" in checked.out
    assert "rm " not in checked.out
    refused = run("cam", "--split", "val", work=work)
    assert "you may not read" in refused.lines("error:")[0]


def test_a_photo_s_file_that_may_not_be_read(run: Run, copied: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    file = copied / "work/cams/text/val/scene6.safetensors"
    close(monkeypatch, file)
    checked = run("doctor", "--no-machine", work=copied / "work").out
    assert f"run: chmod u+r {file}" in checked
    assert "rm " not in checked


def close(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Make a file unreadable, also for root."""
    whole, may = Path.open, os.access
    # The file itself may have another link, in the workspace of other tests.
    own = closed.with_suffix(".own")
    shutil.copy2(closed, own)
    own.chmod(0o244)
    own.replace(closed)

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and may(path, mode))


def test_the_tree_is_what_was_made_from_what(run: Run, copied: Path) -> None:
    work = copied / "work"
    old = work / "prototypes/text.safetensors"
    os.utime(old, (time.time() - 10 * 86400,) * 2)
    lines = run("status", work=work).out.splitlines()
    names = [re.split(r"  +\d", line)[0].strip() for line in lines]
    assert names[:4] == ["prototypes/text.safetensors", "features/train", "└─ cams/text/train",
                         "└─ cams/text-refined/train"]
    assert names[4:6] == ["├─ masks/text-refined-full/train", "└─ masks/text-refined/train"]
    assert "10 days" in lines[0]
    assert lines[2].endswith("cam, also from prototypes/text.safetensors")
    listed = json.loads(run("status", "--json", work=work).out)
    for entry in listed:
        path = work / entry["name"]
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        assert entry["bytes"] == sum(file.stat().st_size for file in files)
        assert entry["written"] == pytest.approx(max(file.stat().st_mtime for file in files),
                                                 abs=0.001)
    assert [size(count) for count in (0, 999, 1000, 9_949, 12_345_678, 1_500_000_000)] == [
        "0 B", "999 B", "1.0 kB", "9.9 kB", "12 MB", "1.5 GB"]


def test_what_was_interrupted_is_incomplete(run: Run, copied: Path) -> None:
    """Nothing that it was made from has changed; what is made from it is stale."""
    work = copied / "work"
    manifest = work / "features/train/artifact.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    (work / "features/train/scene0.safetensors").unlink()
    shown = run("status", work=work).out
    tree = {line.split()[0]: line for line in shown.partition("\n\n")[0].splitlines()}
    assert tree["features/train"].endswith("INCOMPLETE")
    assert "incomplete  features/train" in shown
    assert "1 result is incomplete; to finish it, run update\n" in shown
    listed = {entry["name"]: entry for entry in json.loads(run("status", "--json", work=work).out)}
    assert [name for name, entry in listed.items() if entry["incomplete"]] == ["features/train"]
    assert listed["cams/text/train"]["stale"] == ["features/train is not up to date"]
    assert run("extract", "--workers", 0, work=work).code == 0
    assert not stale(work)


def test_copies_in_other_folders_are_no_results(run: Run, copied: Path) -> None:
    """Nor unfinished ones, although their names begin alike; `doctor` checks their files."""
    work = copied / "work"
    before = run("status", "--json", work=work).out
    shutil.copytree(work / "cams/text", work / "cams-old/text")
    shutil.copytree(work / "features", work / "features-mine")
    shutil.copytree(work / "masks/text-refined", work / "own/text-refined")
    assert run("status", "--json", work=work).out == before
    assert run("doctor", "--no-machine", work=work).code == 0
    for damaged in ("cams-old/text/train/scene1.safetensors", "own/text-refined/train/scene1.png"):
        (work / damaged).write_bytes(b"")
        assert run("doctor", "--no-machine", work=work).code == 1
        shutil.rmtree(work / damaged.partition("/")[0])
    assert run("doctor", "--no-machine", work=work).code == 0


def test_results_on_another_disk_are_checked(run: Run, copied: Path) -> None:
    """Also those without a manifest."""
    work = copied / "work"
    shutil.move(work / "cams", copied / "disk")
    (work / "cams").symlink_to(copied / "disk")
    (work / "cams/text/train/artifact.json").unlink()
    listed = json.loads(run("status", "--json", work=work).out)
    assert [entry["name"] for entry in listed if entry["incomplete"]] == ["../disk/text/train"]
    assert "cams/text/train" in run("doctor", "--no-machine", work=work).err


def test_below_the_tree_is_what_is_stale(run: Run, copied: Path) -> None:
    work = copied / "work"
    assert run("text-prototypes", "--prompts", "origami", "--overwrite", work=work).code == 0
    tree, _, rest = run("status", work=work).out.partition("\n\n")
    assert tree.count("STALE") == 6
    assert rest == run("status", "--stale", work=work).out
    assert rest.endswith("6 results are stale; to recompute them, run update\n")


def test_another_tag_of_a_photo(run: Run, copied: Path) -> None:
    """Its maps and masks are made again, those of the other photos are not touched."""
    work = copied / "work"
    retag(copied, "scene0,bar,", "scene0,bar;box,")
    told = stale(work)
    assert set(told) == {"cams/text/train", "cams/text-refined/train", "masks/text-refined/train",
                         "masks/text-refined-full/train"}
    assert told["cams/text/train"] == ["1 of 6 photos is to be done"]
    before = times(work)
    made = run("update", work=work)
    assert made.code == 0, made.err
    assert not stale(work)
    after = times(work)
    assert {name for name in after if after[name] != before[name]} == {
        "cams/text/train/scene0.safetensors", "cams/text-refined/train/scene0.safetensors"}


def test_a_photo_that_failed_and_was_mended(run: Run, copied: Path) -> None:
    """What is made from all photos is made again, and all that follows; not while it fails."""
    work, photo = copied / "work", copied / "photos/scene0.png"
    good = photo.read_bytes()
    photo.write_bytes(b"")
    for command in (("extract", "--workers", 0), ("cam",), ("refine",), ("crf", "--workers", 0)):
        run(*command, "--overwrite", work=work)
    made = {"seeds": ("seed-prototypes", "--phi", 0.5),
            "vision": ("learn-prototypes", "--iters", 2),
            "shifted": ("shift-gap", "--centroid", "pixels"),
            "aligned": ("align", "--iters", 2)}
    for command in made.values():
        result = run(*command, work=work)
        assert result.code == 0, result.err
    assert run("cam", "--prototypes", "seeds", work=work).code == 0
    assert stale(work) == {}
    before = read_tensors(work / "prototypes/vision.safetensors", "prototypes")[1]["prototypes"]
    photo.write_bytes(good)
    for name, command in made.items():
        again = run(*command, work=work)
        assert "already exists" in again.err, (name, again.err)
    assert run("extract", "--workers", 0, work=work).code == 0
    told = stale(work)
    assert told["cams/text/train"] == ["1 of 6 photos is to be done"]
    assert "prototypes/vision.safetensors" in told
    assert told["prototypes/vision.safetensors"] == [
        "other photos can be read than it was made from"]
    assert told["prototypes/seeds.safetensors"] == ["cams/text-refined/train is not up to date"]
    assert "cams/seeds/train" in told
    assert run("cam", work=work).code == run("refine", work=work).code == 0
    told = stale(work)
    for name in made:
        assert told[f"prototypes/{name}.safetensors"] == [
            "other photos can be read than it was made from"]
        refused = run(*made[name], work=work)
        assert "was made with other settings: other photos can be read" in \
            refused.lines("error:")[0]
    result = run("update", work=work)
    assert result.code == 0, result.err
    assert stale(work) == {}
    after = read_tensors(work / "prototypes/vision.safetensors", "prototypes")[1]["prototypes"]
    assert not before.equal(after)
    assert (work / "cams/seeds/train/scene0.safetensors").exists()


def test_the_same_command_does_one_more_photo(run: Run, copied: Path) -> None:
    """A new photo is no reason to refuse; what is there stays."""
    work = copied / "work"
    scene = draw_scenes(9, seed=3)[6]
    from PIL import Image

    Image.fromarray(scene.photo).save(copied / "photos/new.png")
    with (copied / "tags.csv").open("a") as file:
        file.write("new,box,train\n")
    assert prepare(copied, "--masks", copied / "masks").code == 0
    before = times(work)
    for command in (("extract", "--workers", 0), ("cam",), ("refine",), ("crf", "--workers", 0)):
        result = run(*command, work=work)
        assert result.code == 0, result.err
    after = times(work)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"{folder}/train/new.safetensors" for folder in ("features", "cams/text",
                                                         "cams/text-refined")}
    assert (work / "masks/text-refined/train/new.png").exists()
    assert not stale(work)


def test_a_new_class_is_named_and_brought_up_to_date(run: Run, copied: Path) -> None:
    work = copied / "work"
    retag(copied, "scene0,bar,", "scene0,bar;goat,")
    refused = run("cam", work=work)
    assert refused.code == 1
    assert "`goat` is new" in refused.lines("error:")[0]
    assert "vpltool update recomputes everything that is stale" in refused.lines("hint:")[0]
    assert any("`goat` is new" in reason for reasons in stale(work).values() for reason in reasons)
    made = run("update", work=work)
    assert made.code == 0, made.err
    assert not stale(work)
    assert run("cam", work=work).code == 0


def test_other_prototypes_make_what_follows_stale(run: Run, copied: Path) -> None:
    work = copied / "work"
    assert run("text-prototypes", "--prompts", "origami", "--overwrite", work=work).code == 0
    told = stale(work)
    assert told["cams/text/train"] == ["prototypes/text.safetensors has changed"]
    assert told["masks/text-refined/train"] == ["cams/text-refined/train is not up to date"]
    shown = run("status", "--stale", work=work).out
    assert f"       vpltool -C {work} cam --update\n" in shown
    refused = run("cam", work=work)
    assert "prototypes/text.safetensors has changed" in refused.lines("error:")[0]
    lines = run("update", "--dry-run", work=work).out.splitlines()
    assert len(lines) == 5, "crf writes two folders by one line"
    assert run("update", work=work).code == 0
    assert not stale(work)


@pytest.mark.parametrize("name", ["prototypes/text.safetensors"])
def test_what_is_gone_is_named(name: str, copied: Path) -> None:
    (copied / "work" / name).unlink()
    assert stale(copied / "work")["cams/text/train"] == [f"{name} is gone"]


def test_update_keeps_options(run: Run, copied: Path) -> None:
    """What was given by hand is given again."""
    work = copied / "work"
    assert run("cam", "--method", "dense", "--tau", "0.2", "--name", "mine", work=work).code == 0
    assert run("text-prototypes", "--prompts", "origami", "--overwrite", work=work).code == 0
    assert run("update", work=work).code == 0
    header = json.loads((work / "cams/mine/train/artifact.json").read_text())["header"]
    assert header["options"]["tau"] == 0.2
    assert header["call"] == {"method": "dense", "name": "mine", "tau": 0.2}
    assert not stale(work)


@pytest.mark.parametrize("command", ["status", "update", "scores"])
def test_outside_of_a_workspace(command: str, run: Run, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = run(command)
    assert nowhere.code == 1
    assert nowhere.lines("error:") == [f"no workspace in {tmp_path}"]
    assert "vpltool -C DIR COMMAND" in nowhere.lines("hint:")[0]
    for name in ("work/cats", "work/dogs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "workspace.json").write_text("{}")
    hint, = run(command).lines("hint:")
    assert "vpltool -C work/cats COMMAND" in hint
    assert "there are work/cats, work/dogs" in hint


def test_lines_can_be_pasted(run: Run, layered: Path, tmp_path: Path, tiny_clip: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    """They name the workspace, and what is elsewhere as it is seen from the current folder."""
    base = copy_workspace(layered, tmp_path / "copy", tiny_clip)
    monkeypatch.chdir(base)
    (base / "more").mkdir()
    shutil.move(base / "photos/scene0.png", base / "more/a.png")
    shutil.copy(base / "more/a.png", base / "photos/scene0.png")
    shutil.copy(base / "more/a.png", base / "b.png")
    assert run("predict", "more", "--decoder", "tiny", work=Path("work")).code == 0
    assert run("predict", "b.png", "more/a.png", "--decoder", "tiny", work=Path("work")).code == 0
    assert run("text-prototypes", "--prompts", "origami", "--overwrite", work=Path("work")
               ).code == 0
    lines = run("update", "--dry-run", work=Path("work")).out.splitlines()
    assert "vpltool -C work predict more --decoder tiny --update" in lines
    assert "vpltool -C work predict b.png more/a.png --decoder tiny --update" in lines
    for line in lines:
        result = run(*shlex.split(line)[1:])
        assert result.code == 0, result.err
    assert not stale(Path("work"))
    monkeypatch.chdir("work")
    assert run("text-prototypes", "--prompts", "single", "--overwrite").code == 0
    assert any(line.startswith("vpltool predict ../more ")
               for line in run("update", "--dry-run").out.splitlines())
    assert run("update").code == 0
    assert not stale(Path())
