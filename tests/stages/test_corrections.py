"""Masks that a person corrected: taken by `prepare`, learned from by `train-decoder`, told of."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TRAIN, Result, Run, copy_workspace
from PIL import Image

from vpltool.formats import (
    Photo,
    Workspace,
    describe,
    open_workspace,
    read_labels,
    read_tensors,
    voc_palette,
)
from vpltool.formats.header import Header


@pytest.fixture
def base(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "base", tiny_clip)


def corrected(base: Path, *ids: str, value: int = 1) -> Path:
    """A folder with masks as an editor saves them, of these photos."""
    folder = base / "corrected"
    folder.mkdir(exist_ok=True)
    for key in ids:
        with Image.open(base / f"photos/{key}.png") as photo:
            labels = np.zeros(photo.size[::-1], np.uint8)
        labels[: len(labels) // 2] = value
        Image.fromarray(labels).save(folder / f"{key}.png")
    return folder


def take(run: Run, base: Path, folder: Path, *more: object) -> Result:
    return run("prepare", "folder", base / "photos", "--corrections", folder, *more,
               work=base / "work")


def workspace_of(base: Path) -> Workspace:
    return open_workspace(base / "work")


def photos_of(base: Path) -> dict[str, Photo]:
    return {photo.id: photo for photo in workspace_of(base).photos()}


def header_of(path: Path) -> Header:
    header = describe(path).header
    assert header is not None
    return header


def test_they_are_learned_from_and_every_header_says_so(base: Path, run: Run) -> None:
    work = base / "work"
    assert run(*TRAIN, work=work).code == 0
    decoder = work / "decoder/text-refined.safetensors"
    before = decoder.read_bytes()
    assert header_of(decoder).supervision == ""
    assert "supervision" not in (work / "masks/text-refined/train/artifact.json").read_text()
    assert "supervision" not in run("inspect", decoder, work=work).out
    result = take(run, base, corrected(base, "scene0", "scene3"))
    assert result.code == 0, result.err
    assert str(work / "corrections") in result.out
    taken = work / "corrections/scene3.png"
    assert np.array_equal(read_labels(taken), read_labels(base / "corrected/scene3.png"))
    # The other decoder is tiny.
    assert run("status", "--stale", work=work).out.count("corrected masks have changed") == 2
    refused = run(*TRAIN, work=work)
    assert refused.code == 1
    assert "corrected masks have changed" in refused.lines("error:")[0]
    updated = run(*TRAIN, "--update", work=work)
    assert updated.code == 0, updated.err
    assert decoder.read_bytes() != before
    assert header_of(decoder).supervision == "tags and 2 corrected masks"
    assert run("status", "--stale", work=work).out.count("corrected masks have changed") == 1
    assert run("predict", "--decoder", "text-refined", work=work).code == 0
    for made in ("predictions/text-refined/val/scene6.png",
                 "probabilities/text-refined/val/scene6.safetensors"):
        assert header_of(work / made).supervision == "tags and 2 corrected masks"
    assert "supervision: tags and 2 corrected masks" in run("inspect", decoder, work=work).out
    scored = run("eval", "--what", "predictions/text-refined", work=work)
    assert "supervised by tags and 2 corrected masks" in scored.out
    report = json.loads((work / "scores/predictions-text-refined-val.json").read_text())
    assert report["supervision"] == "tags and 2 corrected masks"


def test_the_labels_that_are_learned_are_those(base: Path, run: Run) -> None:
    """A corrected mask takes the place of the pseudo mask, byte for byte as if that had been it."""
    work, more = base / "work", corrected(base, "scene1", value=3)
    mixed = base / "mixed"
    shutil.copytree(work / "masks/text-refined/train", mixed)
    (mixed / "artifact.json").unlink()
    shutil.copy(more / "scene1.png", mixed / "scene1.png")
    assert run(*TRAIN, "--masks", mixed, "--name", "mixed", work=work).code == 0
    assert take(run, base, more).code == 0
    assert run(*TRAIN, "--name", "taken", work=work).code == 0
    _, first = read_tensors(work / "decoder/mixed.safetensors", "decoder")
    _, second = read_tensors(work / "decoder/taken.safetensors", "decoder")
    assert all(first[name].equal(second[name]) for name in first)
    assert header_of(work / "decoder/mixed.safetensors"
                     ).supervision == "tags and 6 masks of one's own"


def test_a_photo_without_a_pseudo_mask_is_learned_from(base: Path, run: Run) -> None:
    work = base / "work"
    manifest = work / "masks/text-refined/train/artifact.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"failed": {"scene0": "torn"}}))
    (manifest.parent / "scene0.png").unlink()
    assert run(*TRAIN, "--name", "five", work=work).code == 0
    assert take(run, base, corrected(base, "scene0")).code == 0
    assert run(*TRAIN, "--name", "six", work=work).code == 0
    assert header_of(work / "decoder/six.safetensors").supervision == "tags and 1 corrected mask"
    assert (work / "decoder/five.safetensors").read_bytes() != (
        work / "decoder/six.safetensors").read_bytes()


def test_true_masks_are_never_corrections(base: Path, run: Run) -> None:
    for more in ((), ("--masks", base / "masks")):
        refused = take(run, base, base / "masks", *more)
        assert refused.code == 1
        assert "true masks" in refused.lines("error:")[0]
    assert not (base / "work/corrections").exists()


def test_what_nobody_changed_is_left_out(base: Path, run: Run) -> None:
    """Masks as vpltool wrote them say nothing that it did not know."""
    folder, work = base / "copied", base / "work"
    shutil.copytree(work / "masks/text-refined/train", folder)
    refused = take(run, base, folder)
    assert "no mask was changed" in refused.lines("error:")[0]
    shutil.copy(corrected(base, "scene2") / "scene2.png", folder)
    shutil.copy(folder / "scene2.png", folder / "nobody.png")
    taken = take(run, base, folder)
    assert taken.code == 0
    assert ("does not have a photo's name and is skipped, such as nobody.png"
            in taken.lines("warning:")[0])
    assert "1 corrected mask is imported, 1 in total; update trains on it" in (
        taken.err.replace(f"vpltool -C {work} ", ""))
    assert [path.name for path in (work / "corrections").iterdir()] == ["scene2.png"]


def test_exported_masks_name_their_classes(base: Path, run: Run) -> None:
    """Numbers may be others since, such as after a class has lost its typo."""
    work = base / "work"
    assert run("export", "masks", "--what", "masks/text-refined-full", "--split", "train",
               work=work).code == 0
    folder = work / "exports/text-refined-full-train"
    shutil.copy(corrected(base, "scene3", value=1) / "scene3.png", folder)
    before = json.loads((work / "workspace.json").read_text())
    classes = before["classes"][::-1]
    (work / "workspace.json").write_text(json.dumps(before | {"classes": classes}))
    result = take(run, base, folder)
    assert result.code == 0, result.err
    assert [path.stem for path in (work / "corrections").glob("*.png")] == ["scene3"]
    now = json.loads((work / "workspace.json").read_text())["classes"]
    found = read_labels(work / "corrections/scene3.png")
    assert {now[label - 1] for label in np.unique(found) if label not in (0, 255)} == {
        before["classes"][0]}


def test_a_list_of_classes_beside_the_masks_is_no_legend(base: Path, run: Run) -> None:
    """It has no background, so its lines are not the values."""
    folder = corrected(base, "scene2", value=1)
    for place in (folder, folder.parent):
        (place / "classes.txt").write_text("bar\nbox\ndisc\n")
    assert take(run, base, folder).code == 0
    assert set(np.unique(read_labels(base / "work/corrections/scene2.png"))) <= {0, 1, 255}


def test_pictures_that_are_no_masks_are_told(base: Path, run: Run) -> None:
    folder = corrected(base, "scene2", "scene3")
    with Image.open(folder / "scene3.png") as image:
        image.convert("RGB").save(folder / "scene3.jpg")
    with Image.open(folder / "scene2.png") as image:
        Image.fromarray((np.asarray(image) > 0).astype(np.uint8) * 255).save(folder / "scene2.png")
    (folder / "scene3.png").unlink()
    result = take(run, base, folder)
    assert result.code == 0, result.err
    unread, blank = result.lines("warning:")[:2]
    assert "scene3.jpg in" in unread and "is not read: masks are PNGs or TIFFs" in unread
    assert "1 mask shows no class, although the photo has tags: scene2" in blank


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_the_palette_are_labels(mode: str, base: Path, run: Run) -> None:
    """Many paint programs save no palette."""
    folder = corrected(base, "scene2")
    wanted = read_labels(folder / "scene2.png").copy()
    wanted[:3] = 255
    image = Image.fromarray(wanted)
    image.putpalette(voc_palette())
    image.convert(mode).save(folder / "scene2.png")
    assert take(run, base, folder).code == 0
    assert np.array_equal(read_labels(base / "work/corrections/scene2.png"), wanted)
    # One pixel of a smoothed edge.
    smooth = image.convert(mode)
    smooth.putpixel((1, 1), (100, 7, 9, 255)[:len(mode)])
    smooth.save(folder / "scene2.png")
    result = take(run, base, folder)
    assert result.code == 1
    assert "scene2.png has the colour #640709, which is of no class" in result.lines("error:")[0]


def test_what_nobody_changed_in_an_export_is_left_out(base: Path, run: Run) -> None:
    """Other programs' PNGs have no header: their labels are compared."""
    work = base / "work"
    assert run("export", "masks", "--what", "masks/text-refined-full", "--split", "train",
               work=work).code == 0
    folder = work / "exports/text-refined-full-train"
    nothing = take(run, base, folder)
    assert nothing.code == 1
    assert "no mask was changed" in nothing.lines("error:")[0]
    assert not (work / "corrections").exists()
    shutil.copy(corrected(base, "scene3", value=2) / "scene3.png", folder / "scene3.png")
    result = take(run, base, folder)
    assert result.code == 0, result.err
    assert [path.stem for path in (work / "corrections").glob("*.png")] == ["scene3"]


def test_later_ones_are_added(base: Path, run: Run) -> None:
    assert take(run, base, corrected(base, "scene0")).code == 0
    shutil.rmtree(base / "corrected")
    assert take(run, base, corrected(base, "scene4")).code == 0
    assert run("prepare", "folder", base / "photos", work=base / "work").code == 0
    assert sorted(path.stem for path in (base / "work/corrections").iterdir()) == ["scene0",
                                                                                    "scene4"]


@pytest.mark.parametrize(("value", "size", "said"), [
    (9, (48, 40), "the value 9 is not a class"), (1, (10, 10), "is 10×10")])
def test_one_that_does_not_fit_is_named(
    value: int, size: tuple[int, int], said: str, base: Path, run: Run
) -> None:
    folder = corrected(base, "scene2")
    Image.new("L", size, value).save(folder / "scene0.png")
    before = (base / "work/changes.jsonl").read_bytes()
    refused = take(run, base, folder)
    assert refused.code == 1
    assert said in refused.lines("error:")[0]
    assert "scene0.png" in refused.lines("error:")[0]
    assert not (base / "work/corrections").exists()
    assert (base / "work/changes.jsonl").read_bytes() == before


def test_other_classes_make_them_void(base: Path, run: Run) -> None:
    """Their values are indices: a class that comes behind changes nothing, another order does."""
    work = base / "work"
    assert take(run, base, corrected(base, "scene0")).code == 0
    path = work / "workspace.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"classes": content["classes"][::-1]}))
    refused = run(*TRAIN, "--name", "new", work=work)
    assert refused.code == 1
    assert "corrections/scene0.png was imported when the classes were" in refused.lines("error:")[0]
    hint, = refused.lines("hint:")
    assert hint.endswith("gives the masks there the new numbers")
    words = shlex.split(hint.split(" gives ")[0])
    again = run(*words[words.index("prepare"):], work=work)
    assert again.code == 0, again.err
    # Computed masks are of the old order, too.
    later, = run(*TRAIN, "--name", "new", work=work).lines("error:")
    assert "masks/text-refined/train was made with other classes" in later


def test_a_class_with_another_name_is_named(base: Path, run: Run) -> None:
    work = base / "work"
    assert take(run, base, corrected(base, "scene0")).code == 0
    first = json.loads((work / "workspace.json").read_text())["classes"][0]
    for name in ("workspace.json", "images.jsonl"):
        path = work / name
        path.write_text(path.read_text().replace(f'"{first}"', '"renamed"'))
    refused = run(*TRAIN, "--name", "new", work=work)
    assert refused.code == 1
    assert f"it shows `{first}`: `prepare` takes --rename {first}=NEW" in refused.lines("hint:")[0]
    again = run("prepare", "folder", base / "photos", "--labels", _renamed_tags(base, first),
                work=work)
    assert again.code == 0, again.err
    assert f"1 corrected mask shows `{first}`, which is no class any more: scene0" in again.err


def _renamed_tags(base: Path, *names: str, new: str = "renamed") -> Path:
    """The CSV of tags, in which classes have another name."""
    table = base / "tags.csv"
    for name in names:
        table.write_text(table.read_text().replace(name, new))
    return table


@pytest.mark.parametrize("merged", [False, True])
def test_a_renamed_class_keeps_its_corrections(merged: bool, base: Path, run: Run) -> None:
    """In corrections/ and in place, and also where two classes become one."""
    work = base / "work"
    first, second, third = classes = workspace_of(base).classes
    assert take(run, base, corrected(base, "scene0", value=1)).code == 0
    in_place = work / "masks/text-refined/train/scene3.png"
    shown = np.where(read_labels(in_place) == 0, 0, 3).astype(np.uint8)
    Image.fromarray(shown).save(in_place)
    old = (first, third) if merged else (first,)
    table = _renamed_tags(base, *old, new="felis")
    renames = [word for name in old for word in ("--rename", f"{name}=felis")]
    typo = run("prepare", "folder", base / "photos", "--labels", table, "--rename", "nothing=felis",
               work=work)
    assert "no class was named `nothing`" in typo.lines("error:")[0]
    used = run("prepare", "folder", base / "photos", "--labels", table, "--rename",
               f"{second}=felis", work=work)
    assert f"still have `{second}`" in used.lines("error:")[0]
    result = run("prepare", "folder", base / "photos", "--labels", table, *renames, work=work)
    assert result.code == 0, result.err
    assert "1 mask that was edited in place is in" in result.err
    assert workspace_of(base).classes == ("felis", second) if merged else ("felis", *classes[1:])
    for key, label in (("scene0", 1), ("scene3", 1 if merged else 3)):
        path = work / f"corrections/{key}.png"
        assert {*np.unique(read_labels(path)).tolist()} == {0, label}
        assert header_of(path).facts["classes"] == list(workspace_of(base).classes)
        assert header_of(path).facts["photo"]
    again = run("prepare", "folder", base / "photos", "--labels", table, *renames, work=work)
    assert (again.code, "edited in place" in again.err) == (1, False), "no class has the old name"
    assert run("update", work=work).code == 0
    trained = run(*TRAIN, "--name", "new", work=work)
    assert trained.code == 0, trained.err
    assert header_of(work / "decoder/new.safetensors").supervision == "tags and 2 corrected masks"


def test_classes_of_another_order_renumber_corrections(base: Path, run: Run) -> None:
    """Those edited in place, too: they have no names, so they are moved while the old are known."""
    work = base / "work"
    classes = workspace_of(base).classes
    assert take(run, base, corrected(base, "scene0", value=1)).code == 0
    in_place = work / "masks/text-refined/train/scene3.png"
    Image.fromarray(np.full_like(read_labels(in_place), 1)).save(in_place)
    names = base / "classes.txt"
    names.write_text("\n".join(classes[::-1]))
    result = run("prepare", "folder", base / "photos", "--labels", base / "tags.csv", "--classes",
                 names, work=work)
    assert result.code == 0, result.err
    assert not in_place.exists()
    for key in ("scene0", "scene3"):
        assert np.unique(read_labels(work / f"corrections/{key}.png"))[-1] == len(classes)


def test_an_edit_in_place_is_not_that_of_another_photo(base: Path, run: Run) -> None:
    work, photo = base / "work", base / "photos/scene3.png"
    in_place = work / "masks/text-refined/train/scene3.png"
    labels = np.full_like(read_labels(in_place), 1)
    Image.fromarray(labels).save(in_place)
    with Image.open(photo) as before:
        before.rotate(180).save(photo)
    refused = run("update", work=work)
    assert refused.code == 1
    assert "scene3.png was edited by hand, and its photo was replaced" in refused.err
    assert np.array_equal(np.asarray(Image.open(in_place)), labels)
    assert run("prepare", "folder", base / "photos", work=work).code == 0
    assert np.array_equal(read_labels(work / "corrections/scene3.png"), labels)
    result = run("update", work=work)
    assert result.code == 0, result.err
    assert "is of a photo that was replaced since, and is not used: scene3" in result.err


def test_renamed_photos_keep_splits_and_corrections(base: Path, run: Run) -> None:
    """Also in a folder of their own, where no id is left; those of photos that are gone are told.
    """
    work, photos = base / "work", base / "photos"
    splits = {photo.id: photo.splits for photo in open_workspace(work).photos()}
    assert take(run, base, corrected(base, "scene0", "scene3")).code == 0
    (photos / "2026").mkdir()
    for path in sorted(photos.glob("*.png")):
        path.rename(photos / "2026" / path.name)
    table = base / "tags.csv"
    table.write_text(table.read_text().replace("scene", "2026/scene"))
    result = run("prepare", "folder", photos, "--labels", table, work=work)
    assert result.code == 0, result.err
    assert "8 photos were renamed or moved, and keep their splits" in result.err
    assert {photo.id: photo.splits for photo in open_workspace(work).photos()} == {
        f"2026/{key}": split for key, split in splits.items()}
    assert {path.relative_to(work).as_posix() for path in (work / "corrections").rglob("*.png")
            } == {"corrections/2026/scene0.png", "corrections/2026/scene3.png"}
    by_name = take(run, base, corrected_again(base))
    assert by_name.code == 0, by_name.err
    assert (work / "corrections/2026/scene1.png").is_file()
    (photos / "2026/scene0.png").unlink()
    gone = run("prepare", "folder", photos, "--labels", table, work=work)
    assert "1 corrected mask is of a photo that is gone, and is not used: 2026/scene0" in gone.err


def corrected_again(base: Path) -> Path:
    """A folder with a mask by the name that its photo had before it was moved."""
    folder = base / "more"
    folder.mkdir()
    Image.fromarray(np.full_like(read_labels(base / "masks/scene1.png"), 1)).save(
        folder / "scene1.png")
    return folder


def test_replaced_corrections_are_kept(base: Path, run: Run) -> None:
    work = base / "work"
    assert take(run, base, corrected(base, "scene0", value=1)).code == 0
    before = read_labels(work / "corrections/scene0.png")
    result = take(run, base, corrected(base, "scene0", value=2))
    assert "the earlier corrections of scene0 are in" in result.err
    assert np.array_equal(read_labels(work / "corrections-replaced/scene0.png"), before)
    assert run("doctor", "--no-machine", work=work).code == 0


def test_tags_that_contradict_a_correction_are_told(base: Path, run: Run) -> None:
    """Although they were changed after it was imported."""
    work = base / "work"
    label = workspace_of(base).index_of(photos_of(base)["scene0"].tags[0])
    assert take(run, base, corrected(base, "scene0", value=label)).code == 0
    tags = photos_of(base)["scene0"].tags
    other = next(name for name in workspace_of(base).classes if name not in tags)
    table = base / "tags.csv"
    table.write_text(table.read_text().replace(f"scene0,{';'.join(tags)}", f"scene0,{other}"))
    result = run("prepare", "folder", base / "photos", "--labels", table, work=work)
    assert result.code == 0, result.err
    assert run("update", work=work).code == 0
    trained = run(*TRAIN, "--name", "new", work=work)
    assert "1 mask shows a class that is not among the photo's tags: scene0" in trained.err


def test_without_its_file_a_correction_is_undone(base: Path, run: Run) -> None:
    work = base / "work"
    assert run(*TRAIN, "--name", "mine", work=work).code == 0
    decoder = work / "decoder/mine.safetensors"
    before = decoder.read_bytes()
    assert take(run, base, corrected(base, "scene0", "scene3")).code == 0
    assert run(*TRAIN, "--name", "mine", "--update", work=work).code == 0
    assert decoder.read_bytes() != before
    for key in ("scene0", "scene3"):
        (work / f"corrections/{key}.png").unlink()
    assert "corrected masks have changed" in run("status", "--stale", work=work).out
    assert run(*TRAIN, "--name", "mine", "--update", work=work).code == 0
    assert decoder.read_bytes() == before


@pytest.mark.parametrize("other_size", [False, True])
def test_that_of_a_photo_since_replaced_is_not_used(other_size: bool, base: Path, run: Run) -> None:
    work, photo = base / "work", base / "photos/scene3.png"
    assert take(run, base, corrected(base, "scene0", "scene3")).code == 0
    assert run(*TRAIN, "--name", "mine", work=work).code == 0
    with Image.open(photo) as before:
        after = before.rotate(180)
    (after.crop((0, 0, after.width, after.height - 8)) if other_size else after).save(photo)
    assert "corrected masks have changed" in run("status", "--stale", work=work).out
    result = run("update", work=work)
    assert result.code == 0, result.err
    assert ("1 corrected mask is of a photo that was replaced since, and is not used: scene3"
            in result.err)
    decoder = work / "decoder/mine.safetensors"
    assert header_of(decoder).supervision == "tags and 1 corrected mask"
    assert take(run, base, corrected(base, "scene3")).code == 0
    result = run("update", work=work)
    assert result.code == 0 and "replaced since" not in result.err
    assert header_of(decoder).supervision == "tags and 2 corrected masks"
    assert run("status", "--stale", work=work).out == "no result is stale\n"
