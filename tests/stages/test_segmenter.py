"""`predict` on features, photos and folders; the CRF and the scores of what it says."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRAIN, Run, copy_workspace, save_clip
from PIL import Image

from vpltool import Segmenter
from vpltool.core import segment as core_segment
from vpltool.engine import running
from vpltool.formats import read_tensors, write_tensors

PREDICT = ("predict", "--decoder", "tiny", "--workers", 0)
SIZES = {"scene6": (40, 48), "scene7": (48, 40)}
"""Height and width of the photos of the split val, turned by `draw_scenes`."""


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    return content


def labels(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            assert image.mode == "P"
            found[path.relative_to(folder).with_suffix("").as_posix()] = np.asarray(image)
    return found


@pytest.fixture
def work(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"


@pytest.fixture
def holiday(tmp_path: Path) -> Path:
    """Photos that no list knows: of several sizes and types, one in a sub-folder; and a text."""
    folder = tmp_path / "holiday"
    (folder / "day 2").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("sea.jpg", (30, 52)), ("hill.png", (47, 33)), ("day 2/sea.jpeg", (9, 70))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_predict_features_then_photos(run: Run, work: Path, tmp_path: Path) -> None:
    """Both ways say nearly the same; features are stored in half precision."""
    result = run(*PREDICT, work=work)
    assert result.code == 0, result.err
    folders = [work / kind / "tiny/val" for kind in ("predictions", "probabilities")]
    assert sorted(result.out.splitlines()) == sorted(map(str, folders))
    assert manifest(folders[0])["header"]["options"]["source"] == "features"
    other = run(*PREDICT, "--source", "photos", "--out", tmp_path / "p", work=work)
    assert other.code == 0, other.err
    assert manifest(tmp_path / "p")["header"]["options"]["source"] == "photos"
    first, second = labels(folders[0]), labels(tmp_path / "p")
    assert first.keys() == second.keys() == SIZES.keys()
    for key, size in SIZES.items():
        with Image.open(work.parent / f"photos/{key}.png") as photo:
            assert first[key].shape == (photo.height, photo.width)
        assert sorted(first[key].shape) == sorted(size)
        assert first[key].max() <= 3
        assert (first[key] == second[key]).mean() > 0.98
        _, soft = read_tensors(folders[1] / f"{key}.safetensors", "probabilities")
        assert soft["classes"][0] == 0
        assert float(soft["probabilities"].float().sum(dim=0).max()) <= 1.01


def test_a_second_run_rewrites_nothing_and_another_is_refused(run: Run, work: Path) -> None:
    assert run(*PREDICT, work=work).code == 0
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    assert run(*PREDICT, work=work).code == 0
    refused = run(*PREDICT, "--scales", "1,0.75", "--flip", work=work)
    assert refused.code == 1
    assert "--overwrite" in refused.lines("hint:")[0]
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}


def test_scales_and_flip(run: Run, work: Path, tmp_path: Path) -> None:
    result = run(*PREDICT, "--scales", "1,0.75", "--flip", "--out", tmp_path / "p", work=work)
    assert result.code == 0, result.err
    options = manifest(tmp_path / "p")["header"]["options"]
    assert options["scales"] == [1, 0.75]
    assert options["flip"] is True
    assert options["source"] == "photos", "stored features are of one scale"
    assert labels(tmp_path / "p").keys() == SIZES.keys()
    refused = run(*PREDICT, "--source", "features", "--flip", "--out", tmp_path / "q", work=work)
    assert refused.code == 1
    assert refused.lines("hint:") == ["--source photos"]


def test_with_tags_nothing_else_is_predicted(run: Run, work: Path, tmp_path: Path) -> None:
    from vpltool.formats import open_workspace, read_labels

    for tags in ((), ("--tags",)):
        out = tmp_path / f"labels{len(tags)}"
        assert run("predict", "--out", out, "--workers", 0, *tags, work=work).code == 0
    workspace = open_workspace(work)
    for photo in workspace.photos("val"):
        free, told = (set(np.unique(read_labels(tmp_path / f"labels{count}" / f"{photo.id}.png")))
                      for count in (0, 1))
        assert told <= {0, *workspace.indices_of(photo)}
        assert free, "the photo is predicted without tags too"


def test_tags_of_named_photos_are_refused(run: Run, work: Path, holiday: Path) -> None:
    result = run("predict", holiday, "--tags", work=work)
    assert result.code == 1
    assert "--split" in result.lines("hint:")[0]


def test_a_folder_of_photos(run: Run, work: Path, holiday: Path, tmp_path: Path) -> None:
    result = run(*PREDICT, holiday, "--out", tmp_path / "p", work=work)
    assert result.code == 0, result.err
    assert {key: label.shape for key, label in labels(tmp_path / "p").items()} == {
        "sea": (30, 52), "hill": (47, 33), "day 2/sea": (9, 70)}


@pytest.mark.parametrize("broken", [b"", b"no photo"])
def test_a_broken_photo_among_them(broken: bytes, run: Run, work: Path, holiday: Path) -> None:
    """It is named, the others are written; mended, it alone is done."""
    whole = (holiday / "hill.png").read_bytes()
    (holiday / "hill.png").write_bytes(broken)
    options = (*PREDICT, holiday / "sea.jpg", holiday / "hill.png", "--scales", "1,0.75", "--flip")
    result = run(*options, work=work)
    assert result.code == 1
    assert len(result.lines("error:")) == 1
    assert "1 of 2" in result.lines("error:")[0]
    assert "hill" in result.lines("error:")[0]
    folder = work / "predictions/tiny/files"
    assert {key: label.shape for key, label in labels(folder).items()} == {"sea": (30, 52)}
    first = (folder / "sea.png").stat().st_mtime_ns
    (holiday / "hill.png").write_bytes(whole)
    assert run(*options, work=work).code == 0
    assert labels(folder).keys() == {"sea", "hill"}
    assert (folder / "sea.png").stat().st_mtime_ns == first


def test_a_limit_holds_for_named_photos_too(run: Run, work: Path, holiday: Path,
                                            tmp_path: Path) -> None:
    result = run(*PREDICT, holiday, "--limit", 2, "--out", tmp_path / "p", work=work)
    assert result.code == 0, result.err
    assert len(labels(tmp_path / "p")) == 2


@pytest.mark.parametrize(("options", "hint"), [
    (("--scales", "1;0.5"), "--scales 1,0.75"), (("--scales", "0"), "--scales"),
    (("--decoder", "tony"), "tiny"),
    (("nowhere.jpg",), "photos"), (("empty",), "photos"),
    (("holiday/sea.jpg", "holiday/day 2/sea.jpeg"), "--out"), (("--split", "test"), "")])
def test_refused(options: tuple[str, ...], hint: str, run: Run, work: Path, holiday: Path,
                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(holiday.parent)
    Path("empty").mkdir()
    result = run(*PREDICT, *options, work=work)
    assert result.code == 1, result.err
    assert len(result.lines("error:")) == 1
    assert hint in result.lines("hint:")[0]
    assert not (work / "predictions").exists()


def test_a_decoder_of_another_model_is_refused(run: Run, work: Path) -> None:
    header, tensors = read_tensors(work / "decoder/tiny.safetensors", "decoder")
    write_tensors(work / "decoder/other.safetensors", replace(
        header, model={**header.model, "fingerprint": "0" * 16}), tensors)
    for source in ("features", "photos"):
        result = run("predict", "--decoder", "other", "--source", source, "--workers", 0, work=work)
        assert result.code == 1
        assert "different models" in result.lines("error:")[0]
        assert not list(work.glob("predictions/other/val/*.png"))


def test_a_workspace_of_another_model_is_refused(run: Run, work: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "other/clip", seed=1)
    description = json.loads((work / "workspace.json").read_text())
    description["pretrained"] = str(tmp_path / "other/clip")
    (work / "workspace.json").write_text(json.dumps(description))
    result = run(*PREDICT, "--source", "photos", work=work)
    assert result.code == 1
    assert "different models" in result.lines("error:")[0]


def test_several_decoders_want_a_choice(run: Run, work: Path) -> None:
    assert run(*TRAIN, "--iters", 1, "--name", "more", work=work).code == 0
    result = run("predict", work=work)
    assert result.code == 1
    assert "tiny" in result.lines("hint:")[0]
    assert "more" in result.lines("hint:")[0]


@pytest.mark.parametrize("kind", ["probabilities", "predictions"])
def test_crf_and_scores(kind: str, run: Run, work: Path) -> None:
    options = ("--labels-only",) if kind == "predictions" else ()
    assert run(*PREDICT, *options, work=work).code == 0
    assert (work / "probabilities").exists() == (kind == "probabilities")
    result = run("crf", "--what", "predictions/tiny", "--split", "val", "--workers", 0, work=work)
    assert result.code == 0, result.err
    folder = work / "predictions/tiny-crf/val"
    assert result.out.splitlines() == [str(folder)]
    header = manifest(folder)["header"]
    assert set(header["inputs"]) == {"what", "classes"}
    assert header["sources"] == {"what": f"{kind}/tiny/val"}
    raw, sharp = labels(work / "predictions/tiny/val"), labels(folder)
    assert {key: label.shape for key, label in sharp.items()} == {
        key: label.shape for key, label in raw.items()}
    for name in ("tiny", "tiny-crf"):
        scored = run("eval", "--split", "val", "--what", f"predictions/{name}", "--json", work=work)
        assert scored.code == 0, scored.err
        report = json.loads(scored.out)
        assert (report["photos"], report["scored"]) == (2, "predictions")
        truth = [np.asarray(Image.open(work.parent / f"masks/{key}.png")) for key in SIZES]
        said = labels(work / f"predictions/{name}/val")
        right = sum(int((true == said[key]).sum())
                    for key, true in zip(SIZES, truth, strict=True))
        assert report["accuracy"] == pytest.approx(right / sum(mask.size for mask in truth),
                                                   abs=1e-6)
    result = run("scores", work=work)
    assert result.code == 0
    assert "predictions-tiny-crf" in result.out


def test_probabilities_of_an_earlier_run_are_not_taken_for_these(run: Run, work: Path) -> None:
    assert run(*PREDICT, work=work).code == 0
    assert run(*PREDICT, "--labels-only", "--source", "photos", "--flip", "--overwrite",
               work=work).code == 0
    result = run("crf", "--what", "predictions/tiny", "--split", "val", "--workers", 0, work=work)
    header = manifest(work / "predictions/tiny-crf/val")["header"]
    assert result.code == 0, result.err
    assert header["sources"] == {"what": "predictions/tiny/val"}


def test_threshold_of_another_split(run: Run, work: Path, tmp_path: Path) -> None:
    first = tmp_path / "train.json"
    assert run("eval", "--what", "cams/text", "--split", "train", "--out", first,
               work=work).code == 0
    chosen = json.loads(first.read_text())["threshold"]
    second = run("eval", "--what", "cams/text", "--split", "val", "--threshold-from", first,
                 "--json", work=work)
    assert second.code == 0, second.err
    report = json.loads(second.out)
    assert report["threshold"] == chosen
    assert report["threshold_chosen_by"] == "given"
    assert report["miou"] == report["sweep"][f"{chosen:.2f}"]
    masks = tmp_path / "masks.json"
    assert run("eval", "--what", "masks/text-refined-full", "--split", "train", "--out", masks,
               work=work).code == 0
    for path in (masks, tmp_path / "missing.json"):
        refused = run("eval", "--what", "cams/text", "--split", "val", "--threshold-from", path,
                      work=work)
        assert refused.code == 1
        assert refused.lines("hint:")


def mtimes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
            for path in folder.rglob("*.png")}


def test_folders_are_added_to(run: Run, work: Path, holiday: Path, tmp_path: Path) -> None:
    """Each has its own predictions; a new photo is done, the others are kept."""
    assert run(*PREDICT, holiday, work=work).code == 0
    folder = work / "predictions/tiny/holiday"
    first = mtimes(folder)
    assert set(first) == {"sea.png", "hill.png", "day 2/sea.png"}
    shutil.copy(holiday / "hill.png", holiday / "new.png")
    (tmp_path / "party").mkdir()
    shutil.copy(holiday / "hill.png", tmp_path / "party/cake.png")
    result = run(*PREDICT, tmp_path / "party", holiday, work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(work / "predictions/tiny/party"), str(folder)]
    assert set(mtimes(work / "predictions/tiny/party")) == {"cake.png"}
    assert set(mtimes(folder)) == {*first, "new.png"}
    assert {name: mtimes(folder)[name] for name in first} == first
    # Another folder of the same name.
    (tmp_path / "later/holiday").mkdir(parents=True)
    shutil.copy(holiday / "hill.png", tmp_path / "later/holiday/hut.png")
    assert run(*PREDICT, tmp_path / "later/holiday", work=work).code == 0
    assert set(mtimes(folder)) == {*first, "new.png", "hut.png"}
    assert {name: mtimes(folder)[name] for name in first} == first
    refused = run(*PREDICT, holiday, "--flip", work=work)
    assert refused.code == 1
    assert "flip was False, now True" in refused.lines("error:")[0]


def test_two_folders_of_one_name_keep_their_masks(run: Run, work: Path, holiday: Path,
                                                  tmp_path: Path) -> None:
    """Each has a photo `sea`; single files go to a folder of their own."""
    assert run(*PREDICT, holiday, work=work).code == 0
    before = mtimes(work / "predictions/tiny/holiday")
    other = tmp_path / "other/holiday"
    other.mkdir(parents=True)
    shutil.copy(holiday / "hill.png", other / "sea.png")
    refused = run(*PREDICT, other, work=work)
    assert refused.code == 1
    assert "holds the masks of" in refused.lines("error:")[0]
    assert "which also has a photo sea" in refused.lines("error:")[0]
    assert run(*PREDICT, other / "sea.png", work=work).code == 0
    assert mtimes(work / "predictions/tiny/holiday") == before
    # What else would be deleted is said.
    assert run(*PREDICT, holiday / "hill.png", work=work).code == 0
    refused = run(*PREDICT, holiday / "hill.png", "--flip", work=work)
    assert refused.lines("hint:") == [
        "--overwrite replaces it and deletes 1 file of other photos; --out DIR keeps both"]
    # What would take the present result over is said, too, and does.
    one = holiday / "hill.png"
    assert run(*PREDICT, one, "--flip", "--scales", "1,2", "--overwrite", work=work).code == 0
    refused = run(*PREDICT, one, work=work)
    assert refused.lines("hint:") == [
        "--overwrite replaces it; --out DIR keeps both; --flip --scales 1,2 accepts it as it is"]
    assert "1 of 1 photos are done already" in run(
        *PREDICT, one, "--flip", "--scales", "1,2", work=work).err


def test_a_photo_of_the_same_name_is_another_photo(run: Run, work: Path, holiday: Path) -> None:
    assert run(*PREDICT, holiday / "sea.jpg", holiday / "hill.png", work=work).code == 0
    folder = work / "predictions/tiny/files"
    first = mtimes(folder)
    assert run(*PREDICT, holiday / "day 2/sea.jpeg", work=work).code == 0
    assert labels(folder)["sea"].shape == (9, 70)
    assert mtimes(folder)["hill.png"] == first["hill.png"]


def test_a_folder_that_is_called_as_a_split(run: Run, work: Path, holiday: Path, tmp_path: Path
                                            ) -> None:
    assert run(*PREDICT, work=work).code == 0
    before = mtimes(work / "predictions/tiny/val")
    shutil.copytree(holiday, tmp_path / "val")
    result = run(*PREDICT, tmp_path / "val", work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(work / "predictions/tiny/val-photos")]
    assert mtimes(work / "predictions/tiny/val") == before


def test_one_folder_with_out_takes_photos_of_several(run: Run, work: Path, holiday: Path,
                                                     tmp_path: Path) -> None:
    (tmp_path / "party").mkdir()
    shutil.copy(holiday / "hill.png", tmp_path / "party/cake.png")
    for folder in (holiday, tmp_path / "party"):
        result = run(*PREDICT, folder, "--out", tmp_path / "p", work=work)
        assert result.code == 0, result.err
    assert labels(tmp_path / "p").keys() == {"sea", "hill", "day 2/sea", "cake"}


def test_photos_that_fail_in_one_folder_leave_the_other(run: Run, work: Path, holiday: Path,
                                                        tmp_path: Path) -> None:
    (tmp_path / "party").mkdir()
    shutil.copy(holiday / "hill.png", tmp_path / "party/cake.png")
    (holiday / "hill.png").write_bytes(b"no photo")
    result = run(*PREDICT, holiday, tmp_path / "party", work=work)
    assert result.code == 1
    assert "1 of 3 photos failed" in result.lines("error:")[0]
    assert set(mtimes(work / "predictions/tiny/holiday")) == {"sea.png", "day 2/sea.png"}
    assert set(mtimes(work / "predictions/tiny/party")) == {"cake.png"}


def test_a_single_photo_goes_to_a_file(run: Run, work: Path, holiday: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    result = run(*PREDICT, holiday / "hill.png", "--out", out, "--overlay", work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(out), str(tmp_path / "one-overlay.jpg")]
    with Image.open(out) as image:
        assert (image.mode, image.size) == ("P", (33, 47))
    assert run(*PREDICT, holiday, "--out", tmp_path / "p", work=work).code == 0
    assert (np.asarray(Image.open(out)) == labels(tmp_path / "p")["hill"]).all()
    before = out.stat().st_mtime_ns
    again = run(*PREDICT, holiday / "hill.png", "--out", out, work=work)
    assert again.code == 0
    assert out.stat().st_mtime_ns == before
    other = run(*PREDICT, holiday / "sea.jpg", "--out", out, work=work)
    assert other.code == 1
    assert out.stat().st_mtime_ns == before
    many = run(*PREDICT, holiday, "--out", out, work=work)
    assert many.code == 1
    assert "one file, for 3 photos" in many.lines("error:")[0]


def test_what_is_no_photo_is_named(run: Run, work: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Photos")
    result = run(*PREDICT, tmp_path / "README.md", work=work)
    assert result.code == 1
    assert "README.md: .md is not supported" in result.lines("error:")[0]
    assert not (work / "predictions").exists()


def test_a_moved_workspace_gives_the_same_bytes(run: Run, work: Path, holiday: Path,
                                                tmp_path: Path, tiny_clip: Path) -> None:
    """No path from the root, in a header or hashed into one."""
    copy_workspace(work.parent, tmp_path / "elsewhere/base", tiny_clip)
    shutil.copytree(holiday, tmp_path / "elsewhere/holiday")
    found = []
    for base, photos in ((work, holiday), (tmp_path / "elsewhere/base/work",
                                           tmp_path / "elsewhere/holiday")):
        result = run(*PREDICT, photos, work=base)
        assert result.code == 0, result.err
        result = run(*PREDICT, photos / "sea.jpg", photos / "hill.png", work=base)
        assert result.code == 0, result.err
        folder = base / "predictions/tiny"
        found.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
                      if path.is_file()})
        assert not any(str(tmp_path).encode() in content for content in found[-1].values())
    assert found[0] == found[1]


@pytest.mark.parametrize(("option", "value"), [("--scale", 2), ("--max-side", 32)])
def test_features_of_another_size_do_not_serve(option: str, value: object, run: Run, work: Path,
                                               tmp_path: Path) -> None:
    made = run("extract", "--split", "val", "--workers", 0, "--keep",
               "tokens,patches,attention,layers", option, value, "--overwrite", work=work)
    assert made.code == 0, made.err
    name = option.removeprefix("--").replace("-", "_")
    refused = run(*PREDICT, "--source", "features", work=work)
    assert refused.code == 1
    assert f"was made with {option} {value}, not {option} " in refused.lines("error:")[0]
    result = run(*PREDICT, "--out", tmp_path / "auto", work=work)
    assert result.code == 0, result.err
    assert manifest(tmp_path / "auto")["header"]["options"]["source"] == "photos"
    assert f"was made with {option} {value}" in result.err
    # Asked for that size, they do.
    asked = ("--scales", 2) if name == "scale" else ("--max-side", 32)
    for source in ("features", "photos"):
        result = run(*PREDICT, *asked, "--source", source, "--out", tmp_path / source, work=work)
        assert result.code == 0, result.err
    options = manifest(tmp_path / "features")["header"]["options"]
    assert (options["scales"], options["max_side"]) == (([2], 1024) if name == "scale"
                                                        else ([1], 32))
    first, second = labels(tmp_path / "features"), labels(tmp_path / "photos")
    assert all((first[key] == second[key]).mean() > 0.98 for key in SIZES)


def test_a_side_that_scales_no_photo_down_is_told(run: Run, work: Path, tmp_path: Path) -> None:
    extract = ("extract", "--split", "val", "--workers", 0, "--overwrite")
    for line in (extract, (*PREDICT, "--source", "photos", "--out", tmp_path / "out",
                           "--overwrite")):
        for side, more in (((), 0), ((2000,), 1), ((32,), 0)):
            result = run(*line, *(("--max-side", *side) if side else ()), work=work)
            assert result.code == 0, result.err
            told = f"no photo is longer than 48 pixels, so --max-side {side[0] if side else 0} "
            assert result.err.count(told) == result.err.count("no photo is longer") == more


def test_photos_are_seen_at_the_size_of_the_training(run: Run, work: Path, tmp_path: Path) -> None:
    made = run("extract", "--split", "train", "--workers", 0, "--keep",
               "tokens,patches,attention,layers", "--max-side", 32, "--overwrite", work=work)
    assert made.code == 0, made.err
    assert run(*TRAIN, "--name", "small", work=work).code == 0
    call = ("predict", "--decoder", "small", "--workers", 0, "--source", "photos")
    assert run(*call, "--out", tmp_path / "same", work=work).code == 0
    assert manifest(tmp_path / "same")["header"]["options"]["max_side"] == 32
    decoder, photo = work / "decoder/small.safetensors", work.parent / "photos/scene6.png"
    own, same, large = (Segmenter.load(decoder, max_side=side)(photo) for side in (None, 32, 0))
    assert (own.probabilities == same.probabilities).all()
    assert (own.probabilities != large.probabilities).any()
    assert (own.labels == labels(tmp_path / "same")["scene6"]).all()


def test_features_without_patches_serve_a_decoder_that_reads_none(run: Run, work: Path) -> None:
    for split in ("train", "val"):
        assert run("extract", "--split", split, "--workers", 0, "--keep", "tokens,patches,layers",
                   "--overwrite", work=work).code == 0
    assert run(*TRAIN, "--name", "plain", work=work).code == 0
    assert run("extract", "--split", "val", "--workers", 0, "--keep", "tokens,layers",
               "--overwrite", work=work).code == 0
    result = run("predict", "--decoder", "plain", "--source", "features", work=work)
    assert result.code == 0, result.err


def test_precision_without_an_encoder_is_told(run: Run, work: Path, tmp_path: Path) -> None:
    result = run(*PREDICT, "--precision", "bf16", "--out", tmp_path / "x", work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        "--precision bf16 has no effect: no encoder is run; --source photos runs it"]
    result = run(*PREDICT, "--precision", "bf16", "--source", "photos", "--probabilities", "--out",
                 tmp_path / "y", work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        "--probabilities has no effect: only those of a split, at its own path, are stored"]


def test_nothing_is_deleted_before_all_is_checked(run: Run, work: Path) -> None:
    assert run(*PREDICT, work=work).code == 0
    header, tensors = read_tensors(work / "decoder/tiny.safetensors", "decoder")
    before = {path: path.read_bytes() for path in (work / "predictions").rglob("*.*")}
    for words in (("--device", "cuda:9"), ("--source", "photos", "--precision", "fp16",
                                           "--device", "cpu")):
        result = run(*PREDICT, *words, "--overwrite", work=work)
        assert result.code == 1, result.err
        assert {path: path.read_bytes() for path in before} == before
    write_tensors(work / "decoder/tiny.safetensors", replace(
        header, model={**header.model, "fingerprint": "0" * 16}), tensors)
    for source in ("features", "photos"):
        result = run(*PREDICT, "--source", source, "--overwrite", work=work)
        assert "different models" in result.lines("error:")[0]
        assert {path: path.read_bytes() for path in before} == before


def test_a_tag_more_makes_one_prediction_anew(run: Run, work: Path) -> None:
    assert run(*PREDICT, "--tags", work=work).code == 0
    before = mtimes(work / "predictions/tiny/val")
    lines = (work / "images.jsonl").read_text().splitlines()
    photos = [json.loads(line) for line in lines]
    for photo in photos:
        if photo["id"] == "scene6":
            photo["labels"] = ["bar", "box", "disc"]
    (work / "images.jsonl").write_text("".join(json.dumps(photo) + "\n" for photo in photos))
    result = run(*PREDICT, "--tags", work=work)
    assert result.code == 0, result.err
    after = mtimes(work / "predictions/tiny/val")
    assert {name for name in after if after[name] != before[name]} == {"scene6.png"}


def test_overlays(run: Run, work: Path, holiday: Path) -> None:
    """Of predictions that are there, too; they are drawn once."""
    assert run(*PREDICT, holiday, work=work).code == 0
    folder = work / "pictures/predictions/tiny/holiday"
    result = run(*PREDICT, holiday, "--overlay", work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(work / "predictions/tiny/holiday"), str(folder)]
    drawn = {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
             for path in folder.rglob("*.jpg")}
    assert set(drawn) == {"sea.jpg", "hill.jpg", "day 2/sea.jpg"}
    with Image.open(folder / "hill.jpg") as picture:
        assert picture.height > 47
    assert run(*PREDICT, holiday, "--overlay", work=work).code == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in drawn} == drawn


@pytest.mark.cpu
def test_a_photo_that_a_cpu_would_take_minutes_for_is_named(
        run: Run, work: Path, holiday: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its attention, which grows with the square of its patches; the others are done."""
    monkeypatch.setattr(running, "_MOST_PATCHES", 40)
    big = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(big).save(holiday / "big.png")
    line = (*PREDICT, holiday / "sea.jpg", holiday / "big.png", "--max-side")
    result = run(*line, 0, work=work)
    (error,) = result.lines("error:")
    assert result.code == 1 and "big: 180 patches" in error
    folder = work / "predictions/tiny/files"
    assert labels(folder).keys() == {"sea"}
    side = error.partition("--max-side ")[2].split(",")[0].split()[0].rstrip("`")
    again = run(*line, side, "--overwrite", work=work)
    assert again.code == 0, again.err
    assert labels(folder).keys() == {"sea", "big"}


def test_a_long_photo_in_which_nothing_was_found(run: Run, work: Path, holiday: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos that were not scaled down, and those with a class, are no cause for a warning."""
    segment, strongest = core_segment.segment, 1

    def one_class(*arguments: Any, **options: Any) -> torch.Tensor:
        made = segment(*arguments, **options)
        made[:, strongest] = 2
        return made

    line = (*PREDICT, holiday / "sea.jpg", holiday / "hill.png", "--overwrite", "--max-side")
    said = ("1 photo is all background after being scaled down to 48 pixels: sea; objects may be "
            "too small then: try --max-side ")
    monkeypatch.setattr(core_segment, "segment", one_class)
    assert said not in run(*line, 48, work=work).err
    strongest = 0
    assert f"{said}52\n" in run(*line, 48, work=work).err, "no more than the photo's own side"
    assert "try --max-side 48\n" in run(*line, 24, work=work).err
    assert "all background" not in run(*line, 52, work=work).err


def test_large_photos_are_seen_in_tiles(run: Run, work: Path, holiday: Path, tmp_path: Path
                                        ) -> None:
    """Not scaled down; with `auto`, only photos longer than three times the side of training."""
    rng = np.random.default_rng(1)
    big = rng.integers(0, 255, (64, 200, 3), dtype=np.uint8)
    Image.fromarray(big).save(holiday / "big.png")
    segmenter = Segmenter.load(work / "decoder/tiny.safetensors")
    result = run(*PREDICT, holiday, "--tile", 32, "--out", tmp_path / "t", work=work)
    assert result.code == 0, result.err
    # Of `big` three rows of eight, of the others two, four and three.
    assert "tiles: 33 in " in result.err
    made = labels(tmp_path / "t")
    np.testing.assert_array_equal(made["big"], segmenter(big, tile=32).labels)
    assert manifest(tmp_path / "t")["header"]["options"]["tile"] == "32"
    auto = Segmenter.load(_of_side(work, 48))
    assert run("predict", "--decoder", "small", "--workers", 0, holiday, "--tile", "auto", "--out",
               tmp_path / "a", work=work).code == 0
    made = labels(tmp_path / "a")
    np.testing.assert_array_equal(made["big"], auto(big, tile=48).labels)
    sea = np.asarray(Image.open(holiday / "sea.jpg"))
    np.testing.assert_array_equal(made["sea"], auto(sea).labels)
    assert auto(big, tile="auto").field.shape == auto(big, tile=48).field.shape
    assert auto(big).field.shape != auto(big, tile=48).field.shape


def _of_side(work: Path, side: int) -> Path:
    """The decoder, as if it had been trained at another side."""
    path = work / "decoder/tiny.safetensors"
    header, tensors = read_tensors(path, "decoder")
    other = path.with_name("small.safetensors")
    write_tensors(other, replace(header, facts=header.facts | {"max_side": side}), tensors)
    return other


@pytest.mark.cpu
def test_tiles_are_seen_in_threads(work: Path, holiday: Path, monkeypatch: pytest.MonkeyPatch
                                   ) -> None:
    """On a CPU each by a core of its own, with the same result; all cores are free again then."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 130, 3), dtype=np.uint8)).save(
        holiday / "big.png")
    segmenter = Segmenter.load(work / "decoder/tiny.safetensors")
    before, seen, own = torch.get_num_threads(), list[tuple[int, int]](), core_segment.segment

    def watched(*words: Any, **named: Any) -> Any:
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return own(*words, **named)

    monkeypatch.setattr(core_segment, "segment", watched)
    try:
        fields = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fields.append(segmenter(holiday / "big.png", tile=32).field)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(fields[0], fields[1])
    half = len(seen) // 2
    assert half > 4 and {entry[0] for entry in seen[:half]} == {threading.get_ident()}
    assert {entry[1] for entry in seen} == {1}
    assert threading.get_ident() not in {entry[0] for entry in seen[half:]}


@pytest.mark.parametrize("tile", ["big", "0", "-3"])
def test_a_tile_that_is_none(tile: str, run: Run, work: Path, holiday: Path) -> None:
    result = run(*PREDICT, holiday, f"--tile={tile}", work=work)
    assert result.code == 1
    assert "neither a number of pixels nor auto" in result.lines("error:")[0]
