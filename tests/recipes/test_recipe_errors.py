"""What `run` says of a wrong line: in the words of the recipe, before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Result, Run, draw_scenes, write_scenes
from safetensors.torch import save_file

from vpltool.recipes.parse import read_recipe, recipe_files
from vpltool.recipes.terms import path_in, path_names, terms_of


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos and tags, in the folder in which the commands are typed."""
    write_scenes(tmp_path, draw_scenes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(result: Result) -> tuple[str, str]:
    """The error and its hint; nothing was done before."""
    assert result.code == 1
    assert not Path("w").exists()
    (error,), (hint,) = result.lines("error:"), result.lines("hint:")
    return error, hint


def test_names_of_its_values() -> None:
    names = terms_of(read_recipe(recipe_files()["own-photos"]), {}).names
    assert names["prepare"] == {
        "images": "photos", "labels": "tags", "masks": "masks", "classes": "classes",
        "hold_out": "held", "corrections": "corrections", "model": "model",
        "encoder": "encoder", "pretrained": "pretrained",
        **{name: name for name in ("tile", "bands", "percentiles", "column", "layer")}}
    assert names["predict"] == {"images": "new", "max_side": "side", "tile": "tile",
                                "precision": "precision"}
    assert names["crf"] == {"alpha": "alpha"}


def test_paths_are_values_that_fill_a_path(tmp_path: Path) -> None:
    assert path_names(read_recipe(recipe_files()["own-photos"])) == [
        "photos", "tags", "masks", "classes", "corrections", "words", "proposals", "new"]
    path = tmp_path / "x.recipe"
    path.write_text("# X.\nmade =\nnames =\nvpltool show --out $made\nvpltool show cams/$names\n"
                    "vpltool eval --threshold-from $made\n")
    assert path_names(read_recipe(path)) == []


def test_a_hint_names_the_values(run: Run, own: Path) -> None:
    result = run("run", "own-photos", "photos=photos", work=Path("w"))
    assert result.code == 1
    assert result.lines("error:")[0].startswith("own-photos, line ")
    assert result.lines("hint:")[0].startswith(
        "tags=FILE.csv has the tags of each photo; or classes=FILE has one class per line")


def test_without_a_network(run: Run, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CLIP is asked for by another command than that whose line names it."""
    from vpltool.clip.catalogue import _download_hint
    from vpltool.errors import VplError

    def refuse(*_args: object, **_more: object) -> None:
        raise VplError("cannot download it", _download_hint("", "https://x.org/clip.pt"))

    monkeypatch.setattr("vpltool.stages.estimate.run", refuse)
    result = run("run", "own-photos", "photos=photos", "tags=tags.csv", work=Path("w"))
    assert result.lines("hint:") == [
        "without a network: download https://x.org/clip.pt elsewhere, and prepare again with "
        "pretrained=FILE; then run the recipe again: it resumes at this line"]


@pytest.mark.parametrize(("value", "message", "hint"), [
    ("alpha=x", "alpha=x: 'x' is not a number (own-photos, line ", "alpha is: background score"),
    ("side=1.5", "side=1.5: '1.5' is not a whole number (own-photos, line ", "side is: longer"),
    ("alpha=-1", "alpha=-1: -1.0 is not in the range", "alpha is: "),
    ("photos=fotos", "photos=fotos: fotos does not exist", "did you mean `photos`?"),
    ("tags=tagz.csv", "tags=tagz.csv: tagz.csv does not exist", "did you mean `tags.csv`?"),
    ("masks=no", "masks=no: no does not exist", "masks is: folder of true masks"),
    ("new=nowhere", "new=nowhere: nowhere does not exist", "new is: folder of new photos"),
])
def test_a_wrong_value_is_named_before_anything_is_run(value: str, message: str, hint: str,
                                                       run: Run, own: Path) -> None:
    values = {"photos": "photos", "tags": "tags.csv"} | dict([value.split("=")])
    error, advice = said(run("run", "own-photos", *(f"{name}={item}" for name, item in
                                                    values.items()), work=Path("w")))
    assert error.startswith(message)
    assert advice.startswith(hint)


def test_a_path_that_the_recipe_says_nothing_about(run: Run, own: Path) -> None:
    Path("own.recipe").write_text("# A job.\ntags =\nvpltool prepare folder p --labels $tags\n")
    assert said(run("run", "own.recipe", "tags=nowhere", work=Path("w"))) == (
        "tags=nowhere: nowhere does not exist", "give `tags=PATH`")


@pytest.mark.parametrize(("words", "line"), [
    (("photos", "tags=tags.csv"), "photos=photos tags=tags.csv"),
    (("tags=tags.csv",), "photos=… tags=tags.csv"),
    (("photos=", "tags=tags.csv"), "photos=… tags=tags.csv"),
    (("photos", "=", "photos", "tags=tags.csv"), "photos=photos tags=tags.csv"),
    (("my photos", "side=256"), "'photos=my photos' side=256")])
def test_the_corrected_line_is_whole(words: tuple[str, ...], line: str, run: Run, own: Path
                                     ) -> None:
    result = run("-C", "w", "run", "own-photos", *words)
    assert result.lines("hint:") == [f"vpltool -C w run own-photos {line}"]


@pytest.mark.parametrize(("value", "message", "hint"), [
    ("student=smal", "student=smal: no such file", "student is: small, or a network timm:MODEL"),
    ("student=timm:vit,no.pth", "student=timm:vit,no.pth: there is no no.pth", "student is: "),
    ("student=timm:resnet81", "timm has no model `resnet81`", "student=timm:resnet"),
    ("student=tags.csv", "tags.csv is text that begins `", "download it again"),
    ("encoder=dinov2", "encoder=dinov2: no such file", "encoder is: "),
    ("encoder=x.safetensors", "x.safetensors has no tensors with DINO's names, but `x`", "give a"),
    ("student=timm.safetensors", "timm.safetensors is a model of timm: it has `head.weight`",
     "student=timm:MODEL,timm.safetensors names")])
def test_an_encoder_that_is_none_is_told_before_anything_is_run(
        value: str, message: str, hint: str, run: Run, own: Path) -> None:
    save_file({"x": torch.zeros(1)}, "x.safetensors")
    save_file({name: torch.zeros(1) for name in (
        "head.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")}, "timm.safetensors")
    error, advice = said(run("run", "own-photos", "photos=photos", "tags=tags.csv", value,
                             work=Path("w")))
    assert error.startswith(message)
    assert advice.startswith(hint)


def test_a_hint_names_the_encoder_of_the_photos_not_the_students() -> None:
    terms = terms_of(read_recipe(recipe_files()["own-photos"]), {})
    assert terms.spell("`encoder='FILE'`", "estimate") == "encoder=FILE"
    assert terms.spell("`encoder='FILE'`", "train-student") == "student=FILE"


def test_not_all_photos_can_be_held_out(run: Run, own: Path) -> None:
    result = run("run", "own-photos", "photos=photos", "tags=tags.csv", "held=1", work=Path("w"))
    assert result.code == 1
    assert "held=1 would hold out every photo" in result.lines("error:")[0]
    assert result.lines("hint:")[0].startswith("held=10 holds out one in ten, held=0 none")


def test_a_word_that_may_be_many_values(run: Run, own: Path) -> None:
    result = run("-C", "w", "run", "own-photos", "photos=photos", "tags.csv")
    assert result.lines("error:") == ["tags.csv: expected NAME=VALUE"]
    assert result.lines("hint:")[0].startswith("NAME is one of: photos, tags, encoder, ")
    assert result.lines("hint:")[0].endswith("; vpltool -C w run own-photos photos=photos …")


def test_an_option_that_is_nearly_one(run: Run, own: Path) -> None:
    result = run("run", "own-photos", "photos=photos", "--dryrun")
    assert result.code == 2
    assert "did you mean `--dry-run`?" in " ".join(result.err.replace("│", " ").split())


def test_a_question_is_followed_by_a_sentence(run: Run, own: Path) -> None:
    path = own / "x.recipe"
    path.write_text("# X.\nvpltool prepare folder photos --labels tagz.csv\n")
    result = run("run", path, work=Path("w"))
    assert result.lines("error:")[0].startswith(f"{path}, line 2, vpltool prepare ")
    assert result.lines("hint:") == [
        "did you mean `tags.csv`? Then run the recipe again: it resumes at this line"]


@pytest.mark.parametrize(("words", "message"), [
    (("extract", "--max-side", "abc"), "'abc' is not a whole number"),
    (("crf", "--alpha", "abc"), "'abc' is not a number")])
def test_a_word_in_place_of_a_number(words: tuple[str, ...], message: str, run: Run) -> None:
    result = run(*words)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())


def test_a_dry_run_warns_of_what_is_not_there(run: Run, own: Path) -> None:
    """Its lines may be for another machine."""
    for value, warning in (
            ("photos=fotos", "photos=fotos: fotos does not exist; did you mean `photos`?"),
            ("tags=tagz.csv", "tags=tagz.csv: tagz.csv does not exist; did you mean `tags.csv`?"),
            ("encoder=dinov2", "encoder=dinov2: no such file, and not of the form")):
        values = {"photos": "photos", "tags": "tags.csv"} | dict([value.split("=")])
        result = run("run", "own-photos", *(f"{name}={item}" for name, item in values.items()),
                     "--dry-run", work=Path("w"))
        assert result.code == 0
        assert result.lines("warning:")[0].startswith(warning)
        assert "vpltool -C w prepare folder" in result.out


@pytest.mark.parametrize(("value", "parts"), [
    ("hf:org/name", ("hf:org/name", "")), ("hf-hub:org/name", ("hf-hub:org/name", "")),
    ("dino:org/name", ("dino:", "org/name")), ("timm:vit,org/name", ("timm:vit,", "org/name")),
    ("org/name", ("", "org/name")), ("openai", ("openai", ""))])
def test_a_name_on_the_hub_is_no_folder(value: str, parts: tuple[str, str], tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert path_in(value, is_path=False) == parts
