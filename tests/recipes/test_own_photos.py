"""The recipe for one's own photos: from a folder and a CSV to masks, a segmenter and pictures."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Result, Run, draw_scenes, write_scenes
from PIL import Image
from reference import dino

from vpltool.formats import describe
from vpltool.formats.workspace import read_images


def write_own(folder: Path) -> Path:
    write_scenes(folder, draw_scenes())
    (folder / "new").mkdir()
    Image.fromarray(draw_scenes(10, seed=4)[9].photo).save(folder / "new/holiday.png")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_own(tmp_path)


@pytest.fixture(scope="module")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path
         ) -> tuple[Path, Result]:
    """A folder in which the recipe has run once, and what it said."""
    folder = write_own(tmp_path_factory.mktemp("own"))
    return folder, again(run, folder, tiny_clip)


@pytest.fixture
def recipe(made: tuple[Path, Result], own: Path) -> Result:
    """The same in `own`, by a copy of the files and their times."""
    folder, said = made
    shutil.copytree(folder, own, symlinks=True, dirs_exist_ok=True)
    return replace(said, out=said.out.replace(str(folder), str(own)),
                   err=said.err.replace(str(folder), str(own)))


def again(run: Run, own: Path, tiny_clip: Path, *values: str) -> Result:
    return run("run", "own-photos", f"photos={own / 'photos'}", f"tags={own / 'tags.csv'}",
               f"pretrained={tiny_clip}", f"masks={own / 'masks'}", f"new={own / 'new'}",
               *values, work=own / "work")


def times(work: Path) -> dict[str, int]:
    return {path.relative_to(work).as_posix(): path.stat().st_mtime_ns
            for path in work.rglob("*") if path.is_file()
            and path.relative_to(work).parts[0] not in ("pictures", "scores", "recipe.json")}


def test_a_workspace_that_moves_is_not_computed_anew(
    recipe: Result, run: Run, own: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made in float32, it stays so where bf16 is faster; asked for, bf16 is another setting."""
    before = times(own / "work")
    monkeypatch.setattr("vpltool.parallel.device.slowdown_of", lambda _dtype: 0.3)
    assert again(run, own, tiny_clip).code == 0
    assert times(own / "work") == before
    result = run("run", "own-photos", "precision=bf16", "--dry-run", work=own / "work")
    assert "extract --max-side 512" in result.out
    assert "--precision bf16" in result.out
    assert "--precision fp32" not in result.out


def test_how_geotiffs_are_cut_reaches_prepare(run: Run, own: Path) -> None:
    result = run("run", "own-photos", f"photos={own / 'photos'}", f"tags={own / 'tags.csv'}",
                 "tile=64", "bands=4,3,2", "percentiles=0,100", "column=use", "layer=land",
                 "--dry-run", work=own / "work")
    assert ("--tile 64 --bands 4,3,2 --percentiles 0,100 --column use --layer land"
            in result.out), result.err


def test_masks_segmenter_and_pictures(recipe: Result, run: Run, own: Path) -> None:
    assert recipe.code == 0, recipe.err
    work = own / "work"
    assert len(list((work / "masks/seeds-refined-full/train").glob("*.png"))) == 6
    assert (work / "decoder/segmenter.safetensors").exists()
    assert (work / "predictions/segmenter/new/holiday.png").exists()
    assert list((work / "pictures").rglob("holiday.*"))
    assert (work / "pictures/masks.png").exists()
    assert "on this machine" in recipe.err
    assert "mIoU" in recipe.out
    assert "" not in recipe.out.splitlines()
    assert "predictions-segmenter on `val`: of 2 photos" in recipe.out
    assert "predictions-segmenter on `val`: 2 photos, mean over" in recipe.out
    assert (work / "scores/predictions-segmenter-val.json").exists()
    told = recipe.err.splitlines()[-5:]
    assert told == [
        f"Look at: {work}/pictures/masks.png",
        f"Masks: {work}/masks/seeds-refined-full/train",
        f"Segmenter: {work}/decoder/segmenter.safetensors",
        f"Masks to correct: vpltool -C {work} predict --split train --decoder segmenter, "
        f"then vpltool -C {work} export review --what predictions/segmenter",
        f"New photos: vpltool -C {work} predict DIR --decoder segmenter --max-side 512 "
        "--precision auto --overlay"]
    assert all(Path(line.split(": ")[1]).exists() for line in told[:3])
    line = told[4].partition("vpltool ")[2].replace("DIR", str(own / "new"))
    assert run(*shlex.split(line)).code == 0


def test_the_same_line_again_does_nothing(recipe: Result, run: Run, own: Path, tiny_clip: Path
                                          ) -> None:
    before = times(own / "work")
    result = again(run, own, tiny_clip)
    assert result.code == 0, result.err
    assert times(own / "work") == before
    assert "on this machine" not in result.err


@pytest.mark.parametrize(("lacks", "what"), [
    ("train", "masks/seeds-refined-full"), ("val", "predictions/segmenter")])
def test_a_split_without_true_masks_is_not_scored(
        lacks: str, what: str, recipe: Result, run: Run, own: Path, tiny_clip: Path) -> None:
    for scene in draw_scenes():
        if scene.split == lacks:
            (own / "masks" / f"{scene.id}.png").unlink()
    result = again(run, own, tiny_clip)
    assert result.code == 0, result.err
    assert result.lines("warning:")[-1] == (
        f"no photo of `{lacks}` has a true mask, so {what} is not scored")
    assert result.out.count("mean over") == 1
    refused = run("eval", "--what", what, "--split", lacks, work=own / "work")
    assert refused.lines("error:") == [f"no photo of `{lacks}` has a true mask"]


def test_photos_that_cannot_be_read_are_named_at_the_start_and_at_the_end(
        run: Run, own: Path, tiny_clip: Path) -> None:
    for name in ("photos/scene0", "photos/scene2", "new/holiday"):
        path = own / f"{name}.png"
        path.write_bytes(path.read_bytes()[:200])
    result = again(run, own, tiny_clip, "masks=")
    assert result.code == 1
    assert result.lines("error:") == ["3 photos failed, the others are done: "
                                      "scene0, scene2, holiday"]
    damaged, failed, left_out, empty, new = result.lines("warning:")
    assert damaged.startswith("2 of 8 photos cannot be read: scene0.png (")
    assert "no mask shows " in empty
    assert failed.startswith("2 of 6 photos failed, the others are done: scene0.png: ")
    assert "scene0: " not in failed
    assert left_out == ("an earlier step failed on 2 photos, which are skipped: "
                        "scene0, scene2")
    assert new.startswith("the photo failed: holiday.png: ")
    status = run("status", work=own / "work").out
    assert "       without 2 photos, which failed: scene0, scene2\n" in status


def test_one_more_photo(recipe: Result, run: Run, own: Path, tiny_clip: Path) -> None:
    """Its features are made, and what learns from all photos; the features of the others stay."""
    Image.fromarray(draw_scenes(9, seed=3)[6].photo).save(own / "photos/more.png")
    with (own / "tags.csv").open("a") as file:
        file.write("more,box,train\n")
    work = own / "work"
    before = times(work)
    result = again(run, own, tiny_clip)
    assert result.code == 0, result.err
    after = times(work)
    assert {name for name in after if name.startswith("features/train/scene")
            and after[name] != before[name]} == set()
    for made in ("features/train/more.safetensors", "cams/tags-salient/train/more.safetensors",
                 "masks/seeds-refined/train/more.png"):
        assert made in after
        assert made not in before
    for changed in ("prototypes/seeds.safetensors", "decoder/segmenter.safetensors"):
        assert after[changed] != before[changed]
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"


def test_a_photo_that_cannot_be_read_does_not_end_it(run: Run, own: Path, tiny_clip: Path) -> None:
    (own / "photos/scene0.png").write_bytes(b"no photo")
    result = again(run, own, tiny_clip)
    assert result.code == 1
    assert "scene0" in result.lines("error:")[0]
    assert (own / "work/decoder/segmenter.safetensors").exists()


def test_an_unreadable_photo_that_comes_later_does_not_stop_it(
        recipe: Result, run: Run, own: Path, tiny_clip: Path) -> None:
    (own / "photos/later.png").write_bytes(b"")
    with (own / "tags.csv").open("a") as file:
        file.write("later,box,train\n")
    for _ in range(2):
        result = again(run, own, tiny_clip)
        assert result.lines("error:") == ["1 photo failed, the others are done: later"]
        assert "nothing remains to be encoded: 1 new photo cannot be read: later.png: " \
            in result.err
    assert run("status", "--stale", work=own / "work").out.strip() == "no result is stale"


def test_a_mended_photo_is_learned_from(run: Run, own: Path, tiny_clip: Path) -> None:
    """What is made from all photos is as if the photo had never been broken."""
    photo = own / "photos/scene2.png"
    good = photo.read_bytes()
    photo.write_bytes(good[:200])
    assert again(run, own, tiny_clip, "masks=").code == 1
    work = own / "work"
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"
    names = [f"prototypes/{name}.safetensors" for name in ("tags", "seeds")]
    names.append("decoder/segmenter.safetensors")
    before = [(work / name).read_bytes() for name in names]
    photo.write_bytes(good)
    result = again(run, own, tiny_clip, "masks=")
    assert result.code == 0, result.err
    mended = [(work / name).read_bytes() for name in names]
    assert not {*before} & {*mended}
    work.rename(own / "earlier")
    assert again(run, own, tiny_clip, "masks=").code == 0
    assert [(work / name).read_bytes() for name in names] == mended


def test_masks_corrected_by_hand_are_learned_from_and_kept(
    recipe: Result, run: Run, own: Path, tiny_clip: Path
) -> None:
    """Also when other values of the recipe make the others anew."""
    work = own / "work"
    mask = work / "masks/seeds-refined/train/scene0.png"
    with Image.open(mask) as image:
        Image.new("L", image.size, 1).save(mask)
    corrected = mask.read_bytes()
    before = times(work)
    result = again(run, own, tiny_clip)
    assert result.code == 0, result.err
    after = times(work)
    assert {name for name in after if after[name] != before[name]} == {
        "decoder/segmenter.safetensors", "predictions/segmenter/new/artifact.json",
        "predictions/segmenter/new/holiday.png", *(
            f"{kind}/segmenter/val/{name}" for kind, suffix in (
                ("predictions", "png"), ("probabilities", "safetensors"))
            for name in ("artifact.json", f"scene6.{suffix}", f"scene7.{suffix}"))}
    assert "no photo is longer" not in result.err
    result = again(run, own, tiny_clip, "alpha=2", "side=1024")
    assert result.code == 0, result.err
    assert result.err.count("no photo is longer than ") == 1
    assert "1 of 6 was corrected by hand and is kept; --overwrite replaces it" in result.err
    assert mask.read_bytes() == corrected
    header = describe(mask.with_name("scene1.png")).header
    assert header is not None
    assert header.options["alpha"] == 2
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"


def test_names_of_classes_are_enough(run: Run, own: Path, tiny_clip: Path) -> None:
    """CLIP finds the tags; the same line again does nothing, and a new photo is tagged, too."""
    (own / "tags.csv").unlink()
    (own / "names.txt").write_text("bar\nbox\ndisc\n")
    line = ("run", "own-photos", f"photos={own / 'photos'}", f"classes={own / 'names.txt'}",
            f"pretrained={tiny_clip}")
    work = own / "work"
    result = run(*line, work=work)
    assert result.code == 0, result.err
    assert len(list((work / "masks/seeds-refined-full/train").glob("*.png"))) == 8
    assert "finds some" not in result.err, "the recipe does it itself"
    before = times(work)
    result = run(*line, work=work)
    assert result.code == 0, result.err
    after = times(work)
    assert {name for name in after if after.get(name) != before.get(name)} == {"tags/train.csv"}
    Image.fromarray(draw_scenes(9, seed=3)[6].photo).save(own / "photos/more.png")
    result = run(*line, work=work)
    assert result.code == 0, result.err
    assert "1 photo added" in result.err
    assert "recomputes the stale results" not in result.err
    assert "more," in (work / "tags/train.csv").read_text()
    assert (work / "masks/seeds-refined-full/train/more.png").exists()
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"


def test_an_encoder_without_words(run: Run, own: Path) -> None:
    """No CLIP is loaded where the photos have tags; the segmenter predicts new photos."""
    from safetensors.torch import save_file

    from vpltool.clip.catalogue import import_library

    torch.manual_seed(0)
    state = import_library("timm").create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    save_file(state, own / "vit.safetensors")
    result = run("run", "own-photos", f"photos={own / 'photos'}", f"tags={own / 'tags.csv'}",
                 f"encoder=timm:vit_tiny_patch16_224,{own / 'vit.safetensors'}",
                 f"new={own / 'new'}", work=own / "work")
    assert result.code == 0, result.err
    assert not (own / "work/prototypes/text.safetensors").exists()
    assert (own / "work/predictions/segmenter/new/holiday.png").exists()


def test_every_tenth_photo_is_held_out(run: Run, own: Path, tiny_clip: Path) -> None:
    """Where the tags have no val; photos that come later change nobody's split."""
    scenes = draw_scenes(12, seed=2)
    write_scenes(own, scenes)
    rows = [f"{scene.id},{';'.join(scene.tags)}" for scene in scenes]
    (own / "tags.csv").write_text("\n".join(["id,labels", *rows[:11]]) + "\n")
    line = ("prepare", "folder", own / "photos", "--labels", own / "tags.csv", "--pretrained",
            tiny_clip)

    def held() -> list[str]:
        return [photo.id for photo in read_images(own / "work/images.jsonl")
                if photo.splits == ("val",)]

    assert run(*line, "--hold-out", 10, work=own / "work").code == 0
    first = held()
    assert len(first) == 2
    (own / "tags.csv").write_text("\n".join(["id,labels", *rows]) + "\n")
    assert run(*line, work=own / "work").code == 0
    assert held() == first
    (own / "tags.csv").write_text("\n".join(["id,labels,split", *(
        f"{row},{'val' if number == 5 else 'train'}" for number, row in enumerate(rows))]) + "\n")
    assert run(*line, work=own / "work").code == 0
    assert held() == [scenes[5].id]


def test_masks_of_another_tool_are_one_more_value(run: Run, own: Path, tiny_clip: Path) -> None:
    (own / "soft").mkdir()
    for path in (own / "masks").iterdir():
        with Image.open(path) as mask:
            mask.point(lambda label: 220 if label else 20).save(own / "soft" / path.name)
    # Those of `val` are there, too: both splits can be in one folder.
    result = again(run, own, tiny_clip, f"proposals={own / 'soft'}", "format=soft")
    assert result.code == 0, result.err
    header = describe(own / "work/masks/seeds-refined/train/scene0.png").header
    assert header is not None and header.options["method"] == "proposals"
    decoder = describe(own / "work/decoder/segmenter.safetensors").header
    assert decoder is not None and "another tool" in decoder.supervision


@pytest.mark.parametrize(("student", "wanted"), [
    ("small", "train-student --teacher segmenter --iters 3000 --precision auto"),
    ("timm:resnet18", "train-student --teacher segmenter --encoder timm:resnet18 --iters 3000 "
                  "--precision auto"), ("", "")])
def test_a_student_where_one_is_wanted(student: str, wanted: str, run: Run, own: Path,
                                       tiny_clip: Path) -> None:
    """After the segmenter, from what it says of the photos that taught it."""
    result = again(run, own, tiny_clip, f"student={student}", "--dry-run")
    assert result.code == 0, result.err
    lines = [shlex.split(line) for line in result.out.splitlines() if line.startswith("vpltool")]
    found = [" ".join(words[3:]) for words in lines]
    assert [line for line in found if line.startswith("train-student")] == (
        [wanted] if wanted else [])
    if wanted:
        before = found[found.index(wanted) - 1]
        assert before.startswith("predict") and "--split train" in before
        (estimated,) = (line for line in found if line.startswith("estimate"))
        assert f"--student {student} --student-iters 3000" in estimated


def test_a_student_is_counted_trained_and_scored(run: Run, own: Path, tiny_clip: Path) -> None:
    torch.save(dino.random_state(patch=8, scaled=True), own / "dino.pth")
    result = again(run, own, tiny_clip, f"student={own / 'dino.pth'}", "student_iters=2", "side=64")
    assert result.code == 0, result.err
    assert re.search(r"photos?: about .*, train-student ", result.err)
    assert "predictions-student on `val`: of 2 photos" in result.out
    assert "has no effect" not in result.err
    decoder = own / "work/decoder/student.safetensors"
    assert f"Small segmenter with an encoder of its own: {decoder}" in result.err
    header = describe(decoder).header
    assert header is not None and header.options["iters"] == 2


@pytest.mark.cpu
def test_precision_is_what_the_machine_is_fast_in(run: Run, own: Path, tiny_clip: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpltool.parallel.device.slowdown_of", lambda _dtype: 0.3)
    assert again(run, own, tiny_clip).code == 0
    assert precisions(own / "work/features/train") == {"bf16"}
    monkeypatch.setattr("vpltool.parallel.device.slowdown_of", lambda _dtype: 4.0)
    elsewhere = again(run, own, tiny_clip)
    assert elsewhere.code == 0, elsewhere.err
    assert "features/train: precision was bf16, now fp32" in elsewhere.err
    assert precisions(own / "work/features/train") == {"fp32"}


def precisions(folder: Path) -> set[str]:
    headers = [describe(path).header for path in folder.glob("*.safetensors")]
    return {header.options.get("precision", "fp32") for header in headers if header}


def test_finetuning_where_it_is_wanted(run: Run, own: Path, tiny_clip: Path) -> None:
    """It begins at the segmenter, and is looked at beside it."""
    asked = "train-decoder --masks seeds-refined --prototypes seeds --method finetune"
    for values, wanted in (((), False), (("finetune=2",), True)):
        result = again(run, own, tiny_clip, *values, "--dry-run")
        assert result.code == 0, result.err
        found = [line for line in result.out.splitlines() if asked in line]
        assert bool(found) == wanted
        assert ("predictions/tuned" in result.out) == wanted
    assert "--start segmenter --iters 2 --name tuned" in found[0]
