"""`prepare` on the second day: what is not given stays, what is new is taken and said in words."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run, draw_scenes, prepare, save_clip, write_scenes
from PIL import Image

from vpltool.command_help import format_values, setting_entry
from vpltool.datasets.words import VOC
from vpltool.formats import Photo, Workspace, open_workspace
from vpltool.formats.changes import explain_change, last_call, read_changes
from vpltool.formats.workspace import describe_change, write_workspace
from vpltool.settings import described
from vpltool.stages.prepare import PrepareSettings


@pytest.fixture
def base(tmp_path: Path, tiny_clip: Path) -> Path:
    """Photos, masks, tags, a CLIP, and a workspace made without the masks."""
    (tmp_path / "clip").symlink_to(tiny_clip)
    write_scenes(tmp_path, draw_scenes())
    assert prepare(tmp_path).code == 0
    return tmp_path


def again(base: Path, run: Run, *options: object) -> Result:
    """As a user types it who does not repeat what was said before."""
    return run("prepare", "folder", base / "photos", "--labels", base / "tags.csv", *options,
               work=base / "work")


def taken(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def workspace_of(base: Path) -> Workspace:
    return open_workspace(base / "work")


def photos_of(base: Path) -> dict[str, Photo]:
    return {photo.id: photo for photo in workspace_of(base).photos()}


def add_photo(base: Path, key: str, row: str) -> None:
    # Other bytes than its model's: the same photo under two ids is warned of.
    Image.open(base / "photos/scene0.png").rotate(180).resize((44, 36 + len(key))).save(
        base / f"photos/{key}.png")
    with (base / "tags.csv").open("a") as file:
        file.write(f"{key},{row}\n")


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_later(copied: Path, run: Run) -> None:
    """The line of docs/own-data.md: no option is repeated, the CLIP stays, no work is lost."""
    for path in (copied / "work/workspace.json", copied / "work/changes.jsonl"):
        path.unlink()
    taken(prepare(copied))
    before = workspace_of(copied)
    result = taken(again(copied, run, "--masks", copied / "masks"))
    assert workspace_of(copied) == before
    assert all(photo.mask for photo in photos_of(copied).values())
    assert "true masks of 8 photos are new" in result.err
    assert "update" not in result.err, "nothing but scores depends on masks"
    assert "done already" in taken(run("cam", work=copied / "work")).err
    # Masks stay where they were named.
    taken(again(copied, run))
    assert all(photo.mask for photo in photos_of(copied).values())


def test_a_photo_of_a_new_class(copied: Path, run: Run) -> None:
    """The new class comes last, whatever its name, so that the others keep their numbers."""
    add_photo(copied, "farm", "angora goat;bar,train")
    result = taken(again(copied, run))
    assert workspace_of(copied).classes == ("bar", "box", "disc", "angora goat")
    assert "class `angora goat` is new; 1 photo added" in result.err
    assert "keep their numbers" in result.err
    assert "update" in result.err
    assert "update" not in taken(again(copied, run)).err, "it is said once"


def test_changed_tags(base: Path, run: Run) -> None:
    table = base / "tags.csv"
    table.write_text(table.read_text().replace("scene0,bar,train", "scene0,bar;disc,train"))
    result = taken(again(base, run))
    assert "tags of 1 photo changed" in result.err
    assert "update" not in result.err, "nothing was made of them yet"
    assert photos_of(base)["scene0"].tags == ("bar", "disc")
    table.write_text(table.read_text().replace("scene1,box,train\n", "").replace(
        "scene2,disc,train", "scene2,disc,val"))
    result = taken(again(base, run))
    assert "1 photo gone; splits of 1 photo changed" in result.err
    assert "scene1" not in photos_of(base)


def test_a_class_that_lost_its_photos_stays(copied: Path, run: Run) -> None:
    """Where masks hold the numbers of the others; the warning names the whole line."""
    table = copied / "tags.csv"
    table.write_text(table.read_text().replace("box", "bar"))
    result = taken(again(copied, run))
    assert workspace_of(copied).classes == ("bar", "box", "disc")
    said, = (line for line in result.lines("warning:") if "box" in line)
    assert said.startswith("no photo has the tag `box`; it stays a class, so that the others keep "
                           "their numbers; vpltool prepare folder ")
    assert said.endswith(" removes it; --rename box=NEW if it has another name now")
    assert " --overwrite" in said
    assert f"--labels {table}" in said
    taken(again(copied, run, "--overwrite"))
    assert workspace_of(copied).classes == ("bar", "disc")


def test_a_class_that_nothing_was_made_of_goes(base: Path, run: Run) -> None:
    """A slip in the CSV, mended before the first map; and later, a class behind all others."""
    table = base / "tags.csv"
    right = table.read_text()
    table.write_text(right.replace("scene1,box", "scene1,boks"))
    taken(again(base, run))
    assert "boks" in workspace_of(base).classes
    table.write_text(right)
    result = taken(again(base, run))
    assert workspace_of(base).classes == ("bar", "box", "disc")
    assert "class `boks` is gone" in result.err
    assert not result.lines("warning:")


def test_the_last_class_goes_where_nobody_corrected_masks(copied: Path, run: Run) -> None:
    table = copied / "tags.csv"
    right = table.read_text()
    table.write_text(right.replace("scene1,box", "scene1,boks"))
    taken(again(copied, run))
    assert workspace_of(copied).classes == ("bar", "box", "disc", "boks")
    table.write_text(right)
    taken(again(copied, run))
    assert workspace_of(copied).classes == ("bar", "box", "disc")


def test_what_is_not_given_stays(base: Path, run: Run) -> None:
    (base / "classes.txt").write_text("3 disc\n2 box\n1 bar\n")
    (base / "words.txt").write_text("sky\ngrass\n")
    (base / "captions.csv").write_text('id,caption\nscene0,"a bar, lying"\nscene1.png,a box\n'
                                      "scene0, a blue   bar\n")
    first = ("--classes", base / "classes.txt", "--background", base / "words.txt",
             "--halve", "train", "--masks", base / "masks", "--captions", base / "captions.csv")
    taken(again(base, run, *first))
    files = files_of(base / "work")
    workspace = workspace_of(base)
    assert workspace.classes == ("disc", "box", "bar")
    assert workspace.mask_values == {3: 1, 2: 2, 1: 3}
    assert workspace.background == ("sky", "grass")
    assert photos_of(base)["scene0"].captions == ("a bar, lying", "a blue bar")
    assert photos_of(base)["scene1"].captions == ("a box",)
    taken(again(base, run))
    assert files_of(base / "work") == files
    # Moved together, the paths still lead there.
    (base / "moved").mkdir()
    for name in ("photos", "masks", "work", "tags.csv", "captions.csv", "clip"):
        shutil.move(base / name, base / "moved" / name)
    taken(again(base / "moved", run))
    assert {path.name: content for path, content in files_of(base / "moved/work").items()} == {
        path.name: content for path, content in files.items()}
    # A new photo finds its mask and its caption where those of the others are.
    moved = base / "moved"
    add_photo(moved, "late", "box,train")
    Image.new("L", (44, 40)).save(moved / "masks/late.png")
    with (moved / "captions.csv").open("a") as file:
        file.write("late,a late box\n")
    taken(again(moved, run))
    late = photos_of(moved)["late"]
    assert (late.mask, late.captions) == ("../masks/late.png", ("a late box",))
    assert workspace_of(moved) == replace(workspace, path=moved / "work")


def test_what_others_wrote_into_the_list_stays(base: Path, run: Run) -> None:
    path = base / "work/images.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"camera": "a phone", "tags": "its own", "captions": ["by hand"]}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    add_photo(base, "late", "box,train")
    taken(again(base, run))
    first = photos_of(base)["scene0"]
    assert (first.more, first.captions) == ({"camera": "a phone", "tags": "its own"}, ("by hand",))


def test_classes_and_words_of_voc_later(base: Path, run: Run) -> None:
    """With the vocabulary come its class words: the data set is called so."""
    table = base / "tags.csv"
    for old, new in (("bar", "sheep"), ("box", "cow"), ("disc", "cat")):
        table.write_text(table.read_text().replace(old, new))
    result = taken(again(base, run, "--vocabulary", "voc"))
    assert (workspace_of(base).name, workspace_of(base).classes) == ("voc", VOC.classes)
    assert "class `aeroplane` is new" in result.err
    taken(again(base, run))
    assert workspace_of(base).classes == VOC.classes


def test_a_refusal_is_one_line(base: Path, run: Run) -> None:
    """Doubts about tags that are not taken anyway are not told."""
    add_photo(base, "farm", "bxo,train")
    (base / "work/features").mkdir()
    result = again(base, run, "--normalise", "imagenet")
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["error", "hint"]


def test_a_new_class_must_be_in_the_class_file(base: Path, run: Run) -> None:
    (base / "classes.txt").write_text("bar\nbox\ndisc\n")
    taken(again(base, run, "--classes", base / "classes.txt"))
    add_photo(base, "farm", "goat,train")
    refused = again(base, run)
    assert refused.code == 1
    assert "`goat`" in refused.lines("error:")[0]
    (base / "classes.txt").write_text("bar\ngoat\nbox\ndisc\n")
    result = taken(again(base, run, "--classes", base / "classes.txt"))
    assert workspace_of(base).classes == ("bar", "goat", "box", "disc")
    assert "class `goat` is new" in result.err
    assert "keep their numbers" not in result.err, "the file decides"


def test_a_new_class_is_no_background_word(base: Path, run: Run) -> None:
    assert "tree" in workspace_of(base).background
    add_photo(base, "wood", "tree,train")
    result = taken(again(base, run))
    assert "tree" not in workspace_of(base).background
    assert "the background words changed" in result.err


def test_background_words_replace_the_default_ones(base: Path, run: Run) -> None:
    """They change GradCAM's maps, for which alone the page on own photos names them."""
    work = base / "work"
    assert workspace_of(base).background == VOC.background
    for words in (("text-prototypes",), ("extract", "--split", "train", "--workers", 0), ("cam",)):
        taken(run(*words, work=work))
    maps = files_of(work / "cams")
    (base / "words.txt").write_text("sky\ngrass\n")
    taken(again(base, run, "--background", base / "words.txt"))
    assert workspace_of(base).background == ("sky", "grass")
    assert "words of classes or background have changed" in run("status", "--stale", work=work).out
    taken(run("update", work=work))
    new = files_of(work / "cams")
    assert new.keys() == maps.keys()
    assert all(new[path] != maps[path] for path in maps if path.suffix == ".safetensors")
    # The page of commands and the help say what happens without the file, in one way.
    (entry,) = (entry for entry in described(PrepareSettings) if entry.name == "background")
    assert "none" not in format_values(setting_entry(entry))
    assert "default: the 25 words of CLIP-ES" in entry.help
    assert len(VOC.background) == 25


def test_halves_stay_halves(base: Path, run: Run) -> None:
    taken(again(base, run, "--halve", "train"))
    before = {key: photo.splits for key, photo in photos_of(base).items()}
    add_photo(base, "aaa", "box,train")
    add_photo(base, "zzz", "box,train")
    table = (base / "tags.csv").read_text().splitlines()
    (base / "tags.csv").write_text("\n".join([table[0], table[-2], *table[1:-2], table[-1]]))
    taken(again(base, run))
    after = {key: photo.splits for key, photo in photos_of(base).items()}
    assert {key: after[key] for key in before} == before
    assert {after["aaa"], after["zzz"]} == {("train", "train-a"), ("train", "train-b")}


def test_settings_of_a_voc_folder_stay(tmp_path: Path, run: Run) -> None:
    root, work = tmp_path / "VOC2012", tmp_path / "work"
    for folder in ("JPEGImages", "ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True)
    for key in ("a", "b"):
        Image.new("RGB", (4, 3)).save(root / f"JPEGImages/{key}.jpg")
        (root / f"Annotations/{key}.xml").write_text(
            "<annotation><object><name>cat</name></object></annotation>")
    for name in ("train", "val"):
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("a\n")
    (tmp_path / "extra.txt").write_text("b\n")
    taken(run("prepare", "voc", root, "--list", tmp_path / "extra.txt", "--normalise", "imagenet",
              work=work))
    files = files_of(work)
    assert '"extra"' in (work / "images.jsonl").read_text()
    assert taken(run("prepare", "voc", root, work=work)).lines("warning:")
    assert files_of(work) == files


def refused(base: Path, result: Result, said: str) -> None:
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert "--overwrite" in result.lines("hint:")[0]
    assert " replaces it" in result.lines("hint:")[0]


def turn_all(photos: Path) -> None:
    for file in photos.iterdir():
        Image.open(file).rotate(180).save(file)


def test_photos_that_have_moved_keep_splits_and_results(copied: Path, run: Run) -> None:
    """Neither the held-out photos nor any result may depend on where the photos are."""
    work = copied / "work"
    splits = {photo.id: photo.splits for photo in open_workspace(work).photos()}
    new = copied / "new"
    for name in ("photos", "tags.csv"):
        new.mkdir(exist_ok=True)
        shutil.move(copied / name, new / name)
    first = run(work=work)
    assert "8 of 8 photos are not where `prepare` found them" in first.out
    assert first.out.splitlines()[3].endswith(" doctor")
    broken = run("doctor", "--no-machine", work=work)
    assert broken.code == 1
    assert " prepare folder IMAGES --labels FILE.csv" in broken.out
    bare = run("prepare", "folder", new / "photos", work=work)
    assert bare.lines("error:")[0].endswith(
        "tags.csv, which an earlier call has named, does not exist")
    shutil.copytree(new / "photos", copied / "turned")
    turn_all(copied / "turned")
    other = run("prepare", "folder", copied / "turned", "--labels", new / "tags.csv", work=work)
    refused(copied, other, "the photos' folder was ../photos, now ../turned, where most of")
    taken(run("prepare", "folder", new / "photos", "--labels", new / "tags.csv", work=work))
    assert {photo.id: photo.splits for photo in open_workspace(work).photos()} == splits
    assert "no result is stale" in taken(run("status", "--stale", work=work)).out
    assert run("doctor", "--no-machine", work=work).code == 0


def test_a_folder_that_shares_one_photo_is_another_one(base: Path, run: Run) -> None:
    files = files_of(base / "work")
    (base / "new").mkdir()
    shutil.copy(base / "photos/scene0.png", base / "new")
    result = run("prepare", "folder", base / "new", "--labels", base / "tags.csv",
                 work=base / "work")
    refused(base, result, "where most of its photos are not the same")
    assert files_of(base / "work") == files


def test_other_photos_are_refused(base: Path, run: Run) -> None:
    files = files_of(base / "work")
    shutil.copytree(base / "photos", base / "elsewhere")
    turn_all(base / "elsewhere")
    result = run("prepare", "folder", base / "elsewhere", "--labels", base / "tags.csv",
                 work=base / "work")
    refused(base, result,
            "the photos' folder was ../photos, now ../elsewhere, where most of its photos "
            "are not the same")
    add_photo(base, "new", "box,train")
    lines = (base / "tags.csv").read_text().splitlines()
    (base / "tags.csv").write_text(f"{lines[0]}\n{lines[-1]}\n")
    refused(base, again(base, run), "none of its 8 photos is left")
    assert files_of(base / "work") == files


@pytest.mark.parametrize(("options", "said"), [
    (("--pretrained", "other"), "the CLIP was clip (../clip), now other (../other)"),
    (("--model", "ViT-B-16-quickgelu"), "the CLIP was clip (../clip), now ViT-B-16-quickgelu"),
    (("--normalise", "imagenet"), "normalise was model, now imagenet")])
def test_another_clip_is_refused(options: tuple[str, str], said: str, tmp_path: Path, run: Run,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("clip", "other")):
        save_clip(tmp_path / name, seed=number)
    write_scenes(tmp_path, draw_scenes())
    taken(prepare(tmp_path))
    (tmp_path / "work/features").mkdir()
    files = files_of(tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    result = again(tmp_path, run, *options)
    refused(tmp_path, result, said)
    hint, = result.lines("hint:")
    assert hint.startswith(f"vpltool prepare folder {tmp_path / 'photos'} ")
    assert " ".join(options) in hint
    line = shlex.split(hint.partition(" replaces it")[0])
    assert files_of(tmp_path / "work") == files
    taken(run(*line[1:], work=tmp_path / "work"))


def test_a_clip_that_has_moved_is_the_same(tmp_path: Path, run: Run) -> None:
    """Where its old folder is gone, or holds the same weights; another one of its name is not."""
    save_clip(tmp_path / "clip", seed=0)
    save_clip(tmp_path / "others/clip", seed=1)
    write_scenes(tmp_path, draw_scenes())
    taken(prepare(tmp_path))
    (tmp_path / "work/features").mkdir()
    refused(tmp_path, again(tmp_path, run, "--pretrained", tmp_path / "others/clip"),
            "the CLIP was clip (../clip), now clip (../others/clip)")
    shutil.copytree(tmp_path / "clip", tmp_path / "moved/clip")
    taken(again(tmp_path, run, "--pretrained", tmp_path / "moved/clip"))
    assert workspace_of(tmp_path).pretrained == "../moved/clip"
    (tmp_path / "moved").rename(tmp_path / "again")
    taken(again(tmp_path, run, "--pretrained", tmp_path / "again/clip"))
    assert workspace_of(tmp_path).pretrained == "../again/clip"


def test_another_clip_is_taken_where_nothing_was_computed(tmp_path: Path, run: Run) -> None:
    """As after a first try without a network."""
    for number, name in enumerate(("clip", "other")):
        save_clip(tmp_path / name, seed=number)
    write_scenes(tmp_path, draw_scenes())
    taken(prepare(tmp_path))
    taken(again(tmp_path, run, "--pretrained", tmp_path / "other"))
    assert workspace_of(tmp_path).model == "other"
    taken(again(tmp_path, run))
    assert workspace_of(tmp_path).model == "other"


def test_a_model_beside_a_folder_that_names_its_own_is_told(base: Path, run: Run) -> None:
    result = taken(again(base, run, "--pretrained", base / "clip", "--model", "ViT-B-16"))
    assert result.lines("warning:") == [
        f"--model ViT-B-16 has no effect: `{base / 'clip'}` already determines the model"]
    assert taken(again(base, run, "--pretrained", base / "clip")).lines("warning:") == []


def test_overwrite_takes_other_photos_and_keeps_the_clip(base: Path, run: Run) -> None:
    """The CLIP was chosen once, and is not the default; a hint must not change it."""
    before = workspace_of(base)
    assert before.model == "clip"
    shutil.copytree(base / "photos", base / "elsewhere")
    (base / "short.csv").write_text("id,labels\nscene0,bar\n")
    taken(run("prepare", "folder", base / "elsewhere", "--labels", base / "short.csv",
              "--overwrite", work=base / "work"))
    workspace = workspace_of(base)
    assert (workspace.model, workspace.pretrained) == (before.model, before.pretrained)
    assert (workspace.root, workspace.classes) == ("../elsewhere", ("bar",))


@pytest.mark.parametrize("name", ["workspace.json", "images.jsonl"])
def test_a_damaged_workspace_is_named_and_can_be_replaced(name: str, base: Path, run: Run) -> None:
    path = base / "work" / name
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    result = again(base, run)
    assert result.code == 1
    assert name in result.lines("error:")[0]
    assert "--overwrite" in result.lines("hint:")[0]
    taken(prepare(base, "--overwrite"))
    assert path.read_bytes() == content


# changes.jsonl


CAT, DOG = (Photo(name, f"{name}.jpg", (name,), ("train",)) for name in ("cat", "dog"))


def written(path: Path, classes: tuple[str, ...], *photos: Photo, **parts: Any) -> Workspace:
    workspace = Workspace(path, "pets", "..", classes, ("sky",), "m", "p", **parts)
    write_workspace(workspace, photos, {"method": "folder"})
    return open_workspace(path)


def test_every_change_is_a_line_without_a_date(tmp_path: Path) -> None:
    first = written(tmp_path, ("cat",), CAT)
    written(tmp_path, ("cat",), CAT)
    second = written(tmp_path, ("cat", "dog"), CAT, DOG)
    third = written(tmp_path, ("cat", "dog"), CAT, replace(DOG, tags=("cat", "dog")))
    lines = read_changes(tmp_path)
    assert [line["words"] for line in lines] == [
        {}, {"classes": ["class `dog` is new"], "photos": ["1 photo added"]},
        {"photos": ["tags of 1 photo changed"]}]
    assert [line["after"]["classes"] for line in lines] == [
        workspace.classes_identity for workspace in (first, second, third)]
    assert lines[2]["before"] == lines[1]["after"]
    assert lines[2]["after"]["tags"] == {"train": third.tags_identity("train")}
    assert lines[0]["before"] == {}
    assert {*lines[0]} == {"before", "after", "words", "call"}
    assert last_call(tmp_path) == {"method": "folder"}
    assert first.classes_identity != second.classes_identity


def test_an_old_identity_is_explained(tmp_path: Path) -> None:
    first = written(tmp_path, ("cat",), CAT)
    old = {"classes": first.classes_identity, "tags": first.tags_identity("train")}
    assert explain_change(tmp_path, "classes", old["classes"]) == "", "it is today's"
    second = written(tmp_path, ("cat", "dog"), CAT, DOG)
    assert explain_change(tmp_path, "classes", old["classes"]) == "class `dog` is new"
    assert explain_change(tmp_path, "tags", old["tags"]) == "1 photo added"
    between = second.tags_identity("train")
    written(tmp_path, ("cat", "dog"), CAT, replace(DOG, tags=("cat", "dog")))
    assert explain_change(tmp_path, "tags", old["tags"]) == (
        "1 photo added; tags of 1 photo changed")
    assert explain_change(tmp_path, "tags", between) == "tags of 1 photo changed"
    assert explain_change(tmp_path, "classes", old["classes"]) == "class `dog` is new"
    # There and back again: nothing has changed.
    written(tmp_path, ("cat",), CAT)
    assert explain_change(tmp_path, "classes", old["classes"]) == ""
    assert explain_change(tmp_path, "tags", old["tags"]) == ""


def test_what_nobody_knows_is_not_explained(tmp_path: Path) -> None:
    assert explain_change(tmp_path, "classes", "0123456789abcdef") == ""
    written(tmp_path, ("cat",), CAT)
    written(tmp_path, ("dog",), DOG)
    assert explain_change(tmp_path, "classes", "0123456789abcdef") == ""
    assert explain_change(tmp_path, "features", "0123456789abcdef") == ""
    log = tmp_path / "changes.jsonl"
    log.write_text("{torn\n[]\n" + log.read_text())
    assert len(read_changes(tmp_path)) == 2
    log.write_bytes(b"\xff\xfe")
    assert read_changes(tmp_path) == []


def test_words_of_changes() -> None:
    old = Workspace(Path(), "pets", "..", ("cat", "dog", "cow"), ("sky",), "m", "p")
    new = replace(old, classes=("dog", "cat", "goat"), background=("sea",), mask_values={3: 1})
    more = replace(CAT, mask="m.png", splits=("val",), captions=("a cat",), image="cat.png")
    assert describe_change(old, [CAT, DOG], new, [more, DOG]) == {
        "classes": ["class `goat` is new", "class `cow` is gone",
                    "the classes are in another order"],
        "photos": ["splits of 1 photo changed", "files of 1 photo changed",
                   "captions of 1 photo changed"],
        "words": ["the background words changed"],
        "masks": ["true masks of 1 photo are new", "the values of true masks changed"]}
    assert describe_change(old, [CAT, DOG], old, [DOG, CAT]) == {}
    first, other = ([replace(CAT, mask=name), DOG] for name in ("m.png", "n.png"))
    for before, after, words in ((first, other, "changed"), (first, [CAT, DOG], "are gone")):
        assert describe_change(old, before, old, after) == {
            "masks": [f"true masks of 1 photo {words}"]}


def test_the_log_names_no_folder_of_this_machine(base: Path, run: Run) -> None:
    taken(again(base, run, "--masks", base / "masks"))
    text = (base / "work/changes.jsonl").read_text()
    assert str(base) not in text
    assert json.loads(text.splitlines()[-1])["call"] == {
        "method": "folder", "images": "../photos", "labels": "../tags.csv", "masks": "../masks"}


def test_masks_that_do_not_exist_are_refused(base: Path, run: Run) -> None:
    before = files_of(base / "work")
    result = again(base, run, "--masks", base / "nomasks")
    assert result.code == 1
    assert result.lines("error:") == [f"{base / 'nomasks'} does not exist"]
    assert result.lines("hint:") == [f"did you mean `{base / 'masks'}`?"]
    assert files_of(base / "work") == before


def test_photos_that_do_not_exist(base: Path, run: Run) -> None:
    result = run("prepare", "folder", base / "fotos", work=base / "other")
    assert result.lines("error:") == ["neither tags nor class names are given"]
    result = run("prepare", "folder", base / "fotos", "--vocabulary", "voc", work=base / "other")
    assert result.lines("error:") == [f"{base / 'fotos'} does not exist"]
    assert result.lines("hint:") == [f"did you mean `{base / 'photos'}`?"]
    assert not (base / "other").exists()


def test_most_photos_gone_is_a_warning(base: Path, run: Run) -> None:
    """A CSV may have been cut, or be another one."""
    tags = (base / "tags.csv").read_text().splitlines(keepends=True)
    assert len(tags) == 9
    for left, warns in ((5, False), (2, True)):
        (base / "tags.csv").write_text("".join(tags[:left]))
        result = run("prepare", "folder", base / "photos", "--labels", base / "tags.csv",
                     work=base / "work")
        assert result.code == 0, result.err
        assert any("gone, such as" in line for line in result.lines("warning:")) == warns


def test_masks_that_have_gone_can_be_forgotten(base: Path, run: Run) -> None:
    taken(again(base, run, "--masks", base / "masks"))
    assert all(photo.mask for photo in photos_of(base).values())
    shutil.move(base / "masks", base / "truth")
    result = again(base, run)
    assert result.lines("error:")[0].endswith(
        "masks, which an earlier call has named, does not exist")
    assert result.lines("hint:")[0].endswith("; or --masks '' forgets it")
    taken(again(base, run, "--masks", ""))
    assert not any(photo.mask for photo in photos_of(base).values())
    assert "masks" not in last_call(base / "work")
    taken(again(base, run))


def test_an_empty_path_is_no_photos(base: Path, run: Run) -> None:
    result = run("prepare", "folder", "", "--labels", base / "tags.csv", work=base / "other")
    assert result.code == 1
    assert "expected a path" in result.lines("error:")[0]


def test_a_csv_that_is_remembered_is_named_by_its_short_path(base: Path, run: Run) -> None:
    shutil.copy(base / "photos/scene0.png", base / "photos/other.png")
    result = run("prepare", "folder", base / "photos", work=base / "work")
    assert result.code == 0, result.err
    assert "has no row in" in result.err
    assert "/../" not in result.err
