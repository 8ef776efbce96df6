"""`crf`: what it reads, where it runs, and what it refuses; a method in a file of its own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, copy_workspace, run_chain
from PIL import Image
from reference import clip_es, par

from vpltool.core.crf import KERNELS
from vpltool.formats import read_tensors

CRF = ("crf", "--workers", 0)


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    return content


def labels(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found[path.stem] = np.asarray(image).copy()
    return found


@pytest.fixture
def work(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"


def test_headers_of_both_folders(ready: Path) -> None:
    folders = [ready / "work/masks" / name / "train" for name in ("text-refined",
                                                                  "text-refined-full")]
    first, full = (manifest(folder)["header"] for folder in folders)
    assert first["options"]["crf"] == asdict(KERNELS["clip-es"])
    assert first["options"]["confidence"] == 0.95
    assert full["options"] == {**first["options"], "confidence": 0.0}
    assert first["sources"] == {"what": "cams/text-refined/train"}
    sure, every = map(labels, folders)
    assert not any((label == 255).any() for label in every.values())
    for key, label in sure.items():
        assert ((label == every[key]) | (label == 255)).all()


def test_nothing_is_deleted_before_all_is_checked(run: Run, copied: Path) -> None:
    work = copied / "work"
    before = {path: path.read_bytes() for path in (work / "masks").rglob("*.*")}
    assert len(before) == 14
    for words in (("--device", "cuda:9"), ("--kernels", "clipes"), ("--what", "txt-refined")):
        result = run(*CRF, *words, "--overwrite", work=work)
        assert result.code == 1, result.err
        assert {path: path.read_bytes() for path in before} == before


def test_a_backend_that_is_not_there(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch
                                     ) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: (
        None if name == "pydensecrf" else find_spec(name, *rest)))
    result = run(*CRF, "--backend", "pydensecrf", "--overwrite", work=copied / "work")
    assert result.code == 1
    assert result.lines("hint:") == ["pip install pydensecrf2, or --backend auto"]
    assert len(labels(copied / "work/masks/text-refined/train")) == 6


def test_the_number_of_workers_changes_nothing(run: Run, ready: Path, tmp_path: Path) -> None:
    result = run("crf", "--workers", 2, "--out", tmp_path / "x", work=ready / "work")
    assert result.code == 0, result.err
    for name, folder in (("x", "text-refined"), ("x-full", "text-refined-full")):
        wanted = labels(ready / "work/masks" / folder / "train")
        found = labels(tmp_path / name)
        assert found.keys() == wanted.keys()
        assert all((found[key] == wanted[key]).all() for key in wanted)


@pytest.mark.parametrize(("content", "said"), [
    ('{"smooth_sxy": "3"}', "smooth_sxy"), ('{"smooth_sxy": 3}', "smooth_weight"),
    (json.dumps(asdict(KERNELS["weclip"]) | {"bilateral_srgb": 0}), "bilateral_srgb is 0"),
    (json.dumps(asdict(KERNELS["weclip"]) | {"iterations": 2.5}), "iterations is 2.5"),
    (json.dumps(asdict(KERNELS["weclip"]) | {"sigma": 1}), "sigma"), ("[]", "object"),
    ("{", "JSON")])
def test_a_file_of_kernels_is_checked(content: str, said: str, run: Run, ready: Path,
                                      tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    result = run(*CRF, "--kernels", path, "--out", tmp_path / "x", work=ready / "work")
    assert result.code == 1
    assert "mine.json" in result.lines("error:")[0]
    assert said in result.lines("error:")[0]
    assert not (tmp_path / "x").exists()


def test_a_file_of_kernels_is_used(run: Run, ready: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(asdict(KERNELS["weclip"])))
    for name, kernels in (("file", path), ("name", "weclip")):
        result = run(*CRF, "--kernels", kernels, "--out", tmp_path / name, work=ready / "work")
        assert result.code == 0, result.err
    first, second = labels(tmp_path / "file"), labels(tmp_path / "name")
    assert all((first[key] == second[key]).all() for key in first)
    assert manifest(tmp_path / "file")["header"]["options"]["crf"] == asdict(KERNELS["weclip"])


def test_photos_are_worked_on_at_a_bounded_size(run: Run, ready: Path, tmp_path: Path) -> None:
    """Labels come out at the photo's own size; the default changes nothing here."""
    result = run(*CRF, "--max-side", 24, "--out", tmp_path / "small", work=ready / "work")
    assert result.code == 0, result.err
    wanted, found = labels(ready / "work/masks/text-refined-full/train"), labels(
        tmp_path / "small-full")
    for key in wanted:
        assert found[key].shape == wanted[key].shape
    assert any((found[key] != wanted[key]).any() for key in wanted)
    header = manifest(tmp_path / "small")["header"]
    assert header["options"]["max_side"] == 24
    assert "max_side" not in manifest(ready / "work/masks/text-refined/train")["header"]["options"]
    result = run(*CRF, "--max-side", 48, "--out", tmp_path / "whole", work=ready / "work")
    assert result.code == 0, result.err
    whole = labels(tmp_path / "whole-full")
    assert all((whole[key] == wanted[key]).all() for key in wanted)


@pytest.mark.cpu
@pytest.mark.parametrize("workers", [0, 3])
def test_photos_that_need_much_memory_are_told(workers: int, run: Run, ready: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpltool.parallel.memory.physical_memory", lambda: 1e6)
    monkeypatch.setattr("vpltool.stages.crf.run_jobs", lambda function, jobs, count: map(
        function, jobs))
    result = run("crf", "--workers", workers, "--out", tmp_path / "x", work=ready / "work")
    assert result.code == 0, result.err
    (told,) = result.lines("warning:")
    assert f"{max(workers, 1)} are processed at a time" in told
    assert "--max-side 1024" in told
    monkeypatch.setattr("vpltool.parallel.memory.physical_memory", lambda: 1e12)
    result = run("crf", "--workers", workers, "--out", tmp_path / "y", work=ready / "work")
    assert result.lines("warning:") == []


@pytest.mark.parametrize(("words", "said"), [
    (("--alpha", "2.0"), "--alpha 2 has no effect: predictions have a background"),
    (("--confidence", "0.5"), "--confidence 0.5 has no effect: predictions keep every pixel")])
def test_what_predictions_do_not_need(words: tuple[str, ...], said: str, run: Run, work: Path,
                                      tmp_path: Path) -> None:
    assert run("predict", "--decoder", "tiny", "--split", "val", work=work).code == 0
    found = []
    for name, given in (("a", ()), ("b", words)):
        result = run(*CRF, "--what", "predictions/tiny", "--split", "val", *given, "--out",
                     tmp_path / name, work=work)
        assert result.code == 0, result.err
        assert result.lines("warning:") == ([said] if given else [])
        found.append(labels(tmp_path / name))
    assert all((found[0][key] == found[1][key]).all() for key in found[0])
    assert not {"alpha", "confidence"} & set(manifest(tmp_path / "b")["header"]["options"])


def test_predictions_that_lie_elsewhere_have_no_probabilities(run: Run, work: Path, tmp_path: Path
                                                              ) -> None:
    """Even where three folders above them there is a folder of that name."""
    assert run("predict", "--decoder", "tiny", "--split", "val", work=work).code == 0
    (tmp_path / "else").mkdir()
    for kind in ("predictions", "probabilities"):
        (work / kind).rename(tmp_path / "else" / kind)
    result = run(*CRF, "--what", tmp_path / "else/predictions/tiny/val", "--split", "val",
                 work=work)
    assert result.code == 0, result.err
    sources = manifest(work / "predictions/tiny-crf/val")["header"]["sources"]
    assert sources["what"].endswith("else/predictions/tiny/val")


def test_a_tag_more_makes_one_mask_anew(run: Run, copied: Path) -> None:
    work = copied / "work"
    photos = [json.loads(line) for line in (work / "images.jsonl").read_text().splitlines()]
    photos[0]["labels"] = ["bar", "box", "disc"]
    (work / "images.jsonl").write_text("".join(json.dumps(photo) + "\n" for photo in photos))
    before = {path: path.stat().st_mtime_ns for path in (work / "masks").rglob("*.png")}
    run_chain(copied, (("cam",), ("refine",), CRF))
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.stem for path in before if after[path] != before[path]} == {photos[0]["id"]}


METHOD = '''"""The strongest score, with a threshold; for a test."""

from dataclasses import dataclass

from vpltool import settings
from vpltool.settings import setting

READS = ("photo",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    power: float = setting(1.0, "Exponent of the scores.", low=0)


def refine_labels(photos, settings, device):
    assert all(photo.photo.shape[:2] == photo.scores.shape[1:] for photo in photos)
    powers = [photo.scores ** settings.power for photo in photos]
    return [scores / scores.sum(axis=0) for scores in powers]
'''


@pytest.mark.parametrize("workers", [0, 2])
def test_a_method_in_a_file_of_its_own(workers: int, run: Run, ready: Path, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker process, which begins with nothing, finds it too."""
    (tmp_path / "methods/label_refiners").mkdir(parents=True)
    (tmp_path / "methods/label_refiners/strongest.py").write_text(METHOD)
    monkeypatch.setenv("VPLTOOL_METHODS", str(tmp_path / "methods"))
    result = run("crf", "--method", "strongest", "--power", 2, "--workers", workers, "--out",
                 tmp_path / "x", work=ready / "work")
    assert result.code == 0, result.err
    assert len(labels(tmp_path / "x-full")) == 6
    options = manifest(tmp_path / "x")["header"]["options"]
    assert (options["method"], options["power"]) == ("strongest", 2.0)
    assert "crf" not in options


def test_par_ignores_no_pixel_unless_asked_to(run: Run, ready: Path, tmp_path: Path) -> None:
    for name, words in (("plain", ()), ("sure", ("--confidence", 0.8))):
        result = run(*CRF, "--method", "par", *words, "--out", tmp_path / name,
                     work=ready / "work")
        assert result.code == 0, result.err
    options = manifest(tmp_path / "plain")["header"]["options"]
    assert options == {"method": "par", "confidence": 0.0, "alpha": 1.0, "split": "train",
                       "iterations": 20, "dilations": "1,2,4,8,12,24", "w1": 0.3, "w2": 0.01}
    plain, full, sure = (labels(tmp_path / name) for name in ("plain", "plain-full", "sure"))
    assert manifest(tmp_path / "sure")["header"]["options"]["confidence"] == 0.8
    assert any((label == 255).any() for label in sure.values())
    for key, label in plain.items():
        assert (label == full[key]).all()
        assert ((sure[key] == label) | (sure[key] == 255)).all()


def test_par_is_the_reference(run: Run, ready: Path, tmp_path: Path) -> None:
    result = run(*CRF, "--method", "par", "--iterations", 2, "--limit", 1, "--out",
                 tmp_path / "made", work=ready / "work")
    assert result.code == 0, result.err
    maps = read_tensors(ready / "work/cams/text-refined/train/scene0.safetensors", "cams")[1]
    with Image.open(ready / "photos/scene0.png") as image:
        photo = np.asarray(image.convert("RGB"))
    scores = clip_es.to_size(maps["cam"].float(), photo.shape[:2]).numpy()
    scores = np.concatenate([1 - scores.max(axis=0, keepdims=True), scores])
    classes = np.array([0, *maps["classes"].tolist()])
    wanted = classes[par.refine(photo, scores, 2).argmax(axis=0)]
    assert (labels(tmp_path / "made")["scene0"] == wanted).all()


def test_par_sharpens_predictions(run: Run, work: Path) -> None:
    assert run("predict", "--decoder", "tiny", "--split", "val", work=work).code == 0
    result = run(*CRF, "--method", "par", "--what", "predictions/tiny", "--split", "val", work=work)
    assert result.code == 0, result.err
    header = manifest(work / "predictions/tiny-crf/val")["header"]
    assert not {"alpha", "confidence"} & set(header["options"])


def test_par_refuses_distances_that_are_none(run: Run, copied: Path) -> None:
    result = run(*CRF, "--method", "par", "--dilations", "0,2", "--overwrite",
                 work=copied / "work")
    assert result.code == 1
    assert result.lines("error:")[0].startswith("--dilations 0,2 is not a list of at most")
    assert result.lines("hint:") == ["--dilations 1,2,4,8,12,24"]
    assert len(labels(copied / "work/masks/text-refined/train")) == 6


def test_both_folders_have_the_usual_form(run: Run, ready: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME/SPLIT and NAME-full/SPLIT: so scores of two such results have two names."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out, full in (("a/train", "a-full/train"), ("b", "b-full"), ("train", "train-full"),
                      ("../train", "../train-full")):
        result = run("crf", "--method", "par", "--limit", 1, "--out", out, work=ready / "work")
        assert result.code == 0, result.err
        assert list(Path(out).glob("*.png")) and list(Path(full).glob("*.png"))
