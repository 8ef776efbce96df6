"""Bad input gets a clear error, and nothing of what is good is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import CHAIN, Run, draw_scenes, prepare, run_chain, save_clip, write_scenes
from PIL import Image

from vpltool.engine import running
from vpltool.formats import open_input, read_labels, read_tensors

TRAIN = [f"scene{number}" for number in range(6)]


def tear(path: Path) -> bytes:
    """Cut a file in half; its whole content is returned."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def mtimes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("scene*")}


@pytest.fixture
def bare(tmp_path: Path, tiny_clip: Path) -> Path:
    """Photos, tags and a CLIP; nothing is prepared."""
    (tmp_path / "clip").symlink_to(tiny_clip)
    write_scenes(tmp_path, draw_scenes())
    return tmp_path


def rewrite_tags(base: Path, **labels: str) -> None:
    """Change the labels of some photos in tags.csv."""
    rows = [line.split(",") for line in (base / "tags.csv").read_text().splitlines()]
    (base / "tags.csv").write_text("\n".join(
        ",".join([key, labels.get(key, tags), split]) for key, tags, split in rows) + "\n")


def test_a_truncated_photo_among_good_ones(bare: Path, run: Run) -> None:
    """extract names it and does the rest; cam goes on without; once mended, only it is done."""
    assert prepare(bare).code == 0
    run_chain(bare, CHAIN[:1])
    work = bare / "work"
    whole = tear(bare / "photos/scene2.png")
    extract = ("extract", "--workers", 0)
    result = run(*extract, work=work)
    assert result.code == 1
    error, = result.lines("error:")
    assert "1 of 6 photos failed" in error
    assert "done: scene2.png: " in error
    assert result.lines("hint:")
    done = mtimes(work / "features/train")
    assert sorted(done) == [f"{key}.safetensors" for key in TRAIN if key != "scene2"]

    for command in (("cam",), ("refine",), ("crf", "--workers", 0)):
        later = run(*command, work=work)
        assert later.code == 0, later.err
        assert any("scene2" in line for line in later.lines("warning:"))
    assert len(mtimes(work / "cams/text/train")) == 5

    (bare / "photos/scene2.png").write_bytes(whole)
    again = run(*extract, work=work)
    assert again.code == 0, again.err
    now = mtimes(work / "features/train")
    assert now.keys() == {*done, "scene2.safetensors"}
    assert {name: now[name] for name in done} == done
    mended = run("cam", work=work)
    assert mended.code == 0
    assert not mended.lines("warning:")
    assert len(mtimes(work / "cams/text/train")) == 6


@pytest.mark.cpu
@pytest.mark.parametrize("scale", [1, 2])
def test_a_photo_whose_attention_a_cpu_would_need_minutes_for(
        scale: int, bare: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named before it is encoded; both settings that the message names do."""
    assert prepare(bare).code == 0
    work = bare / "work"
    # Photos of 5×6 patches; this one has 15×18.
    monkeypatch.setattr(running, "_MOST_PATCHES", 40 * scale**2)
    with Image.open(bare / "photos/scene2.png") as image:
        image.resize((3 * image.width, 3 * image.height)).save(bare / "photos/scene2.png")
    extract = ("extract", "--workers", 0, "--batch-size", 2, "--scale", scale, "--overwrite")
    result = run(*extract, work=work)
    assert result.code == 1
    error, = result.lines("error:")
    assert "1 of 6 photos failed" in error and "scene2" in error
    assert "patches, over 40" in error or "patches, over 160" in error
    assert sorted(mtimes(work / "features/train")) == [
        f"{key}.safetensors" for key in TRAIN if key != "scene2"]
    options = re.findall(r"--(?:max-side|window) \d+", error)
    assert [option.split()[0] for option in options] == ["--max-side", "--window"]
    for option in options:
        # The window that is named is larger than these photos.
        keep = ("--keep", "patches", "--max-side", 0) if "window" in option else ()
        value = 16 if "window" in option else option.split()[1]
        again = run(*extract, option.split()[0], value, *keep, work=work)
        assert again.code == 0, again.err
        assert len(mtimes(work / "features/train")) == 6


def test_a_photo_torn_between_extract_and_crf(copied: Path, run: Run) -> None:
    """Both folders that crf writes are complete and name the photo; training can go on."""
    work = copied / "work"
    shutil.rmtree(work / "masks")
    tear(copied / "photos/scene2.png")
    result = run("crf", "--workers", 0, work=work)
    assert result.code == 1
    assert "out of date (photo replaced): scene2" in result.lines("error:")[0]
    # A photo that could not be read has no hash there, and is read.
    manifest = work / "cams/text-refined/train/artifact.json"
    content = json.loads(manifest.read_text())
    del content["photos"]
    manifest.write_text(json.dumps(content))
    result = run("crf", "--workers", 0, work=work)
    assert result.code == 1
    assert "scene2" in result.lines("error:")[0]
    for name in ("text-refined", "text-refined-full"):
        manifest = json.loads((work / "masks" / name / "train/artifact.json").read_text())
        assert manifest["complete"]
        assert list(manifest["failed"]) == ["scene2"]
        folder = open_input(work / "masks" / name / "train", ("masks",))
        assert folder.available(TRAIN) == [key for key in TRAIN if key != "scene2"]


@pytest.mark.parametrize("content", [b"", b"a letter, not a photo", None])
def test_unreadable_photos_are_named(bare: Path, run: Run, content: bytes | None) -> None:
    assert prepare(bare).code == 0
    path = bare / "photos/scene1.png"
    path.unlink() if content is None else path.write_bytes(content)
    result = run("extract", "--workers", 0, work=bare / "work")
    assert result.code == 1
    assert "scene1.png" in result.lines("error:")[0]
    assert len(mtimes(bare / "work/features/train")) == 5


def test_all_photos_unreadable(bare: Path, run: Run) -> None:
    assert prepare(bare).code == 0
    run_chain(bare, CHAIN[:1])
    for path in (bare / "photos").iterdir():
        path.write_bytes(b"")
    result = run("extract", "--workers", 0, work=bare / "work")
    assert "all 6 photos failed" in result.lines("error:")[0]
    later = run("cam", work=bare / "work")
    assert later.code == 1
    assert later.lines("hint:")


def test_photos_that_are_gone_are_named_with_their_folder(bare: Path, run: Run) -> None:
    assert prepare(bare).code == 0
    (bare / "photos").rename(bare / "moved")
    result = run("extract", "--workers", 0, work=bare / "work")
    assert "the photo does not exist" in result.lines("error:")[0]
    assert re.match(rf"{bare}/.*photos/scene\d.png is not there; ", result.lines("hint:")[0])


def test_odd_photos_go_through(bare: Path, run: Run) -> None:
    """Greyscale, CMYK, 16-bit and EXIF-rotated; masks come out at the upright size."""
    photos = bare / "photos"
    exif = Image.Exif()
    exif[274] = 6
    rgb = Image.open(photos / "scene0.png").convert("RGB")
    width, height = rgb.size
    rgb.save(photos / "scene0.png", exif=exif)
    Image.open(photos / "scene1.png").convert("L").save(photos / "scene1.png")
    Image.open(photos / "scene2.png").convert("CMYK").save(photos / "scene2.jpg")
    (photos / "scene2.png").unlink()
    Image.open(photos / "scene3.png").convert("L").convert("I;16").save(photos / "scene3.png")
    assert prepare(bare).code == 0
    run_chain(bare, (CHAIN[0], CHAIN[1], CHAIN[3], CHAIN[5], CHAIN[7]))
    assert read_labels(bare / "work/masks/text-refined/train/scene0.png").shape == (width, height)


def test_a_tag_that_names_no_class(bare: Path, run: Run) -> None:
    (bare / "classes.txt").write_text("bar\nbox\ndisc\n")
    rewrite_tags(bare, scene4="dics")
    result = prepare(bare, "--classes", bare / "classes.txt")
    assert result.code == 1
    assert "scene4" in result.lines("error:")[0]
    assert "`dics`" in result.lines("error:")[0]
    assert "did you mean `disc`?" in result.lines("hint:")[0]
    assert not (bare / "work/workspace.json").exists()


def test_a_tag_changed_by_hand(copied: Path, run: Run) -> None:
    path = copied / "work/images.jsonl"
    path.write_text(path.read_text().replace('"disc"', '"dics"', 1))
    result = run("cam", work=copied / "work")
    assert result.code == 1
    assert "`dics`" in result.lines("error:")[0]
    assert "`disc`" in result.lines("hint:")[0]


@pytest.mark.parametrize("method", ["gradcam", "dense"])
def test_a_photo_without_tags(bare: Path, run: Run, method: str) -> None:
    """No map, and all background; it stops no command."""
    rewrite_tags(bare, scene1="")
    result = prepare(bare)
    assert result.code == 0
    assert any("no tag" in line and "scene1" in line for line in result.lines("warning:"))
    work = bare / "work"
    name = "text" if method == "gradcam" else "text-dense"
    run_chain(bare, (CHAIN[0], CHAIN[1], ("cam", "--method", method), ("refine", "--cams", name),
                     ("crf", "--what", f"{name}-refined", "--workers", 0)))
    for folder in (name, f"{name}-refined"):
        tensors = read_tensors(work / "cams" / folder / "train/scene1.safetensors", "cams")[1]
        assert tensors["cam"].shape[0] == 0
        assert tensors["classes"].tolist() == []
    labels = read_labels(work / "masks" / f"{name}-refined" / "train/scene1.png")
    assert labels.shape == Image.open(bare / "photos/scene1.png").size[::-1]
    assert (labels == 0).all()


def test_a_class_without_photos(bare: Path, run: Run) -> None:
    (bare / "classes.txt").write_text("bar\nbox\ndisc\nunicorn\n")
    result = prepare(bare, "--classes", bare / "classes.txt")
    assert result.code == 0
    assert result.lines("warning:") == ["no photo has the tag `unicorn`"]
    run_chain(bare, (CHAIN[0], CHAIN[1], CHAIN[3], CHAIN[5], CHAIN[7]))


@pytest.mark.parametrize("command", ["extract", "cam", "refine", "crf"])
def test_a_split_that_is_not_there(command: str, ready: Path, run: Run) -> None:
    result = run(command, "--split", "trian", work=ready / "work")
    assert result.code == 1
    assert "`trian`" in result.lines("error:")[0]
    assert "did you mean `train`?" in result.lines("hint:")[0]


def test_features_of_one_model_with_prototypes_of_another(copied: Path, run: Run) -> None:
    save_clip(copied / "other" / "clip", seed=1)
    path = copied / "work/workspace.json"
    content = json.loads(path.read_text())
    content["pretrained"] = "../other/clip"
    path.write_text(json.dumps(content))
    made = run("text-prototypes", "--prompts", "single", "--overwrite", work=copied / "work")
    assert made.code == 0, made.err
    result = run("cam", work=copied / "work")
    assert result.code == 1
    error, = result.lines("error:")
    assert "different models" in error
    assert "features/train" in error
    assert "text.safetensors" in error
    assert result.lines("hint:")


def test_the_same_name_with_other_weights_does_not_resume(copied: Path, run: Run) -> None:
    """Both models are called `clip`: only the fingerprint tells them apart."""
    save_clip(copied / "other" / "clip", seed=1)
    path = copied / "work/workspace.json"
    content = json.loads(path.read_text())
    content["pretrained"] = "../other/clip"
    path.write_text(json.dumps(content))
    result = run("extract", "--workers", 0, work=copied / "work")
    assert result.code == 1
    assert "the weights of the CLIP clip (clip) have changed" in result.lines("error:")[0]


def test_prototypes_of_other_classes(copied: Path, run: Run) -> None:
    path = copied / "work/workspace.json"
    content = json.loads(path.read_text())
    content["classes"].append("unicorn")
    path.write_text(json.dumps(content))
    result = run("cam", work=copied / "work")
    assert result.code == 1
    assert "class `unicorn` is new" in result.lines("error:")[0]
    assert "vpltool update" in result.lines("hint:")[0]
    assert "vpltool text-prototypes, with --overwrite" in result.lines("hint:")[0]


@pytest.mark.parametrize("pretrained", ["none", "photos", "empty"])
def test_a_model_that_is_none(bare: Path, run: Run, tiny_clip: Path, pretrained: str) -> None:
    """No such path, a folder without a model, one with a config and no weights: never random."""
    (bare / "empty").mkdir()
    shutil.copy(tiny_clip / "open_clip_config.json", bare / "empty")
    result = run("prepare", "folder", bare / "photos", "--labels", bare / "tags.csv",
                 "--pretrained", bare / pretrained, work=bare / "work")
    assert result.code == 1
    assert not (bare / "work").exists()
    # A model that was there when the workspace was made, and is not any more.
    assert prepare(bare).code == 0
    path = bare / "work/workspace.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pretrained": f"../{pretrained}"}))
    for command in ("text-prototypes", "extract"):
        later = run(command, work=bare / "work")
        for refused in (result, later):
            assert refused.code == 1
            assert len(refused.lines("error:")) == 1
            assert pretrained in refused.lines("error:")[0]
            assert refused.lines("hint:")
    assert not (bare / "work/features").exists()


@pytest.mark.parametrize(("arguments", "said"), [
    (("extract", "--keep", "token"), "token"),
    (("extract", "--keep", "layers", "--layers", "7"), "7"),
    (("extract", "--device", "gpu"), "gpu"), (("extract", "--max-side", "10"), "--max-side 10"),
    (("extract", "--precision", "fp16", "--device", "cpu"), "fp16"),
    (("cam", "--prototypes", "vison"), "vison"), (("refine", "--cams", "txt"), "txt"),
    (("crf", "--kernels", "clipes"), "clipes"), (("crf", "--what", "txet-refined"), "txet"),
    (("text-prototypes", "--prompts", "sngle"), "sngle"),
])
def test_a_wrong_value_is_named(arguments: tuple[str, ...], said: str, ready: Path,
                                run: Run) -> None:
    result = run(*arguments, work=ready / "work")
    assert result.code == 1, result.err
    assert len(result.lines("error:")) == 1
    assert said in result.lines("error:")[0]
    assert result.lines("hint:")


def test_a_typo_is_told_before_tensors_that_are_missing(copied: Path, run: Run) -> None:
    """Its cure takes seconds, that of the others the time of the encoder."""
    work = copied / "work"
    assert run("extract", "--keep", "patches", "--overwrite", "--workers", 0, work=work).code == 0
    assert "vison" in run("cam", "--prototypes", "vison", work=work).lines("error:")[0]
    assert "tokens" in run("cam", "--prototypes", "text", work=work).lines("error:")[0]


@pytest.mark.parametrize(("arguments", "said"), [
    (("cam", "--method", "gradcamm"), "did you mean `gradcam`?"),
    (("cam", "--target", "max"), "'max' is not one of 'margin', 'softmax'"),
    (("refine", "--mask", "bx"), "'bx' is not one of 'box', 'none'"),
    (("crf", "--backend", "cuda"), "'cuda' is not one of 'auto', 'numba'"),
    (("extract", "--precision", "fp8"), "'fp8' is not one of 'fp32', 'bf16', 'fp16'"),
    (("prepare", "coco", "x", "--crowd", "all"), "'all' is not one of 'class', 'ignore'"),
    (("prepare", "folder", "x", "--labels", "y", "--vocabulary", "voc12"),
     "'voc12' is not one of 'voc', 'coco'"),
])
def test_a_choice_that_there_is_not_is_a_usage_error(arguments: tuple[str, ...], said: str,
                                                     ready: Path, run: Run) -> None:
    result = run(*arguments, work=ready / "work")
    assert result.code == 2, result.err
    assert said in " ".join(result.err.split())


@pytest.mark.parametrize("name", [
    "features/train/scene0.safetensors", "prototypes/text.safetensors",
    "features/train.head.safetensors"])
def test_a_torn_artifact_is_named(name: str, copied: Path, run: Run) -> None:
    tear(copied / "work" / name)
    result = run("cam", "--overwrite", work=copied / "work")
    assert result.code == 1, result.err
    assert Path(name).name in result.lines("error:")[0]
    assert result.lines("hint:")


def test_a_torn_list_of_photos_is_named(copied: Path, run: Run) -> None:
    path = copied / "work/images.jsonl"
    path.write_text(path.read_text()[:-20])
    result = run("cam", work=copied / "work")
    assert result.code == 1
    assert "images.jsonl:8" in result.lines("error:")[0]


def test_several_segmenters_are_named_by_the_option_of_the_command(copied: Path, run: Run) -> None:
    work = copied / "work"
    for name in ("one", "two"):
        assert run("train-decoder", "--prototypes", "text", "--iters", 0, "--residual",
                   "--width", 16, "--name", name, "--overwrite", work=work).code == 0
    for path in (work / "decoder").glob("*.safetensors"):
        if path.stem not in ("one", "two"):
            path.unlink()
    assert run("export", "bundle", work=work).lines("hint:") == ["--what one or --what two"]
    assert run("predict", work=work).lines("hint:") == ["--decoder one or --decoder two"]


def test_status_tells_of_a_csv_that_has_changed(copied: Path, run: Run) -> None:
    tags = copied / "tags.csv"
    tags.write_text(tags.read_text().replace("box", "crate"))
    result = run("status", "--stale", work=copied / "work")
    assert result.code == 0
    assert "photos or tags have changed since" in result.lines("warning:")[0]
