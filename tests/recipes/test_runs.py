"""Values of a run are remembered, pictures of other values are kept, and all runs are listed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run, draw_scenes, prepare, write_scenes

from vpltool.formats import describe, open_workspace
from vpltool.recipes import runs
from vpltool.review.desk import Desk

RECIPE = """# Masks.
photos = ?         # folder of photos
alpha = 2.5        # background score
words =            # class words
vpltool prepare folder $photos
vpltool text-prototypes --prompts single [--words $words]
vpltool crf --what text-refined --alpha $alpha --workers 0 --max-side 64
vpltool eval --what masks/text-refined-full --split train
vpltool show masks/text-refined-full --limit 3 --out $work/pictures/masks.png
say Look at: $work/pictures/masks.png
"""


@pytest.fixture
def base(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (copied / "masks.recipe").write_text(RECIPE)
    monkeypatch.chdir(copied)
    return copied


def masks(run: Run, *values: str) -> Result:
    result = run("run", "masks.recipe", *values, work=Path("work"))
    assert result.code == 0, result.err
    return result


def alpha_of(base: Path) -> Any:
    header = describe(base / "work/masks/text-refined/train/scene0.png").header
    assert header is not None
    return header.options["alpha"]


def test_values_of_the_last_run_are_kept(base: Path, run: Run) -> None:
    masks(run, "photos=photos", "alpha=4")
    result = masks(run)
    assert alpha_of(base) == 4
    assert "as in the last run: photos=photos alpha=4\n" in result.err
    result = masks(run, "alpha=2.5")
    assert "since the last run: alpha was 4, now 2.5\n" in result.err
    assert alpha_of(base) == 2.5
    lines = run("run", "masks.recipe", "--dry-run", work=Path("work")).out
    assert "prepare folder photos\n" in lines


def test_values_of_another_recipe_are_not_taken(base: Path, run: Run) -> None:
    masks(run, "photos=photos", "alpha=4")
    (base / "other.recipe").write_text(RECIPE)
    result = run("run", "other.recipe", work=Path("work"))
    assert result.code == 1
    assert "needs photos=" in result.lines("error:")[0]


def test_a_kept_path_that_is_gone_can_be_left_out(base: Path, run: Run) -> None:
    (base / "words.txt").write_text("bar: long bar\n")
    masks(run, "photos=photos", "words=words.txt")
    (base / "words.txt").unlink()
    result = run("run", "masks.recipe", work=Path("work"))
    assert result.code == 1
    assert result.lines("error:") == ["words=words.txt of the last run: words.txt does not exist"]
    assert "words= leaves it out" in result.lines("hint:")[0].replace("`", "")
    masks(run, "words=")


def test_what_was_made_by_hand_with_other_values_is_told(base: Path, run: Run) -> None:
    """The recipe makes it again with its own values, and says what they were."""
    (base / "words.txt").write_text("bar: long bar\n")
    masks(run, "photos=photos")
    assert run("text-prototypes", "--prompts", "single", "--words", "words.txt", "--overwrite",
               work=Path("work")).code == 0
    assert run("crf", "--what", "text-refined", "--alpha", 8, "--workers", 0, "--max-side", 64,
               "--overwrite", work=Path("work")).code == 0
    said = masks(run).err
    assert "text.safetensors: words was words.txt, now the default\n" in said
    assert "alpha was 8.0, now 2.5\n" in said


def test_pictures_of_other_values_are_kept_and_runs_listed(base: Path, run: Run) -> None:
    first = masks(run, "photos=photos")
    assert "sheet" not in first.err
    pictures = base / "work/pictures"
    before = (pictures / "masks.png").read_bytes()
    second = masks(run, "alpha=8")
    assert (pictures / "masks-alpha-2.5.png").read_bytes() == before
    assert (pictures / "masks.png").read_bytes() != before
    head, *rows = [line.split() for line in second.err.splitlines()[-3:]]
    assert head == ["sheet", "alpha", "mIoU", "train"]
    assert [row[:2] for row in rows] == [["pictures/masks-alpha-2.5.png", "2.5"],
                                         ["pictures/masks.png", "8"]]
    assert all(0 < float(row[2]) <= 100 for row in rows)
    record = (base / "work/recipe.json").read_bytes()
    masks(run)
    assert (base / "work/recipe.json").read_bytes() == record, "same run, same bytes"
    assert len(json.loads(record)["runs"]) == 2
    assert str(base) not in record.decode()
    third = masks(run, "alpha=2.5").err.splitlines()[-2:]
    assert [line.split()[:2] for line in third] == [["pictures/masks-alpha-8.png", "8"],
                                                    ["pictures/masks.png", "2.5"]]


def test_scores_of_other_photos_and_tags_are_marked(base: Path, run: Run) -> None:
    masks(run, "photos=photos")
    assert "tags, corrections" not in masks(run, "alpha=8").err
    tags = base / "tags.csv"
    tags.write_text(tags.read_text().replace("scene0,bar", "scene0,bar;box"))
    prepare(base)
    assert run("update", work=base / "work").code == 0
    record = base / "work/recipe.json"
    content = json.loads(record.read_text())
    for changed, first in ((content, "changed since"),
                           (content | {"runs": [content["runs"][0] | {"data": ""},
                                                *content["runs"][1:]]}, "not recorded")):
        record.write_text(json.dumps(changed))
        head, *rows = masks(run, "alpha=4").err.splitlines()[-4:]
        assert head.endswith("photos, tags, corrections")
        assert [row.rpartition("  ")[2] for row in rows] == [first, "changed since", "as now"]
    photo = base / "photos/scene1.png"
    photo.write_bytes((base / "photos/scene3.png").read_bytes())
    assert run("update", work=base / "work").code == 0
    assert masks(run, "alpha=1").err.splitlines()[-2].endswith("changed since")


def test_runs_of_the_same_values_and_other_corrections_stay(base: Path, run: Run) -> None:
    masks(run, "photos=photos")
    (base / "mine").mkdir()
    shutil.copy(base / "masks/scene0.png", base / "mine")
    assert run("prepare", "folder", "photos", "--corrections", "mine", work=Path("work")).code == 0
    for _ in range(2):
        *_, head, first, last = (line.split() for line in masks(run).err.splitlines())
        assert head == ["sheet", "mIoU", "train", "photos,", "tags,", "corrections"]
        assert (first[0], *first[2:]) == ("-", "changed", "since")
        assert (last[0], *last[2:]) == ("pictures/masks.png", "as", "now")


def test_tags_of_review_replace_those_of_the_last_run(base: Path, run: Run) -> None:
    """Until a person types or edits the others."""
    (base / "masks.recipe").write_text("# Tags.\nphotos = ?\ntags =\n"
                                       "vpltool prepare folder $photos [--labels $tags]\n")
    masks(run, "photos=photos", "tags=tags.csv")
    old = open_workspace(base / "work").photos()[0].tags
    Desk(base / "work", "", "train", "file").edit("scene0", 0, "op", "tag", (0, 0, 0, 0), b"",
                                                  "new", (2,))
    new = open_workspace(base / "work").photos()[0].tags
    for again in (masks(run), masks(run)):
        assert "tags=work/review/tags.csv, since `review` has changed tags" in again.err
        assert open_workspace(base / "work").photos()[0].tags == new != old
    os.utime(base / "tags.csv", (2e9, 2e9))
    for again in (masks(run), masks(run)):
        assert "1 photo has other tags than after `review`: scene0" in again.err
        assert open_workspace(base / "work").photos()[0].tags == old


def test_names_of_kept_pictures_are_not_too_long(base: Path, run: Run) -> None:
    words = base / f"{'long' * 55}.txt"
    words.write_text("bar: long bar\n")
    masks(run, "photos=photos", f"words={words.name}")
    head, *rows = masks(run, "words=", "alpha=8").err.splitlines()[-3:]
    kept = rows[0].split()[0]
    assert len(kept) < 80
    assert (base / "work" / kept).is_file()


def test_values_that_change_nothing_keep_no_picture(base: Path, run: Run) -> None:
    (base / "words.txt").write_text("bar: bar\n")
    masks(run, "photos=photos")
    result = masks(run, "words=words.txt")
    assert [path.name for path in (base / "work/pictures").glob("masks*")] == ["masks.png"]
    assert "sheet" not in result.err


@pytest.mark.parametrize("name", ["../photos/scene0.png", "/etc/passwd", "workspace.json"])
def test_a_record_names_pictures_only(name: str, base: Path, run: Run) -> None:
    """A workspace of a stranger: its record must not make a run delete or copy other files."""
    masks(run, "photos=photos")
    path = base / "work/recipe.json"
    content = json.loads(path.read_text())
    content["runs"][0]["pictures"] = [name]
    path.write_text(json.dumps(content))
    result = run("run", "masks.recipe", work=Path("work"))
    assert result.code == 1
    assert "is not below pictures/" in result.lines("error:")[0]


def test_words_and_tags_of_own_photos(run: Run, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path, draw_scenes())
    monkeypatch.chdir(tmp_path)
    line = ("run", "own-photos", "photos=photos", "--dry-run")
    tagged = run(*line, "tags=tags.csv", work=Path("w")).out
    assert "text-prototypes" not in tagged
    assert "tags/train.csv" not in tagged
    assert "estimate --new --max-side" in tagged
    untagged = run(*line, "classes=names.txt", "words=words.txt", work=Path("w")
                   ).out.splitlines()
    assert any(line.endswith("text-prototypes --words words.txt") for line in untagged)
    assert any(line.startswith("# Tags that CLIP found: w/tags/train.csv") for line in untagged)
    assert any("estimate --new --tag" in line for line in untagged)


def test_each_model_has_a_column_of_its_own() -> None:
    reports = [{"kind": "agreement", "what": f"predictions-{name}", "split": "val",
                "mean": {"f1": score}} for name, score in (("segmenter", 0.3), ("student", 0.2))]
    assert dict(runs._scores(reports)) == {"F1 val": 0.3, "F1 val student": 0.2}


def test_a_value_that_changes_no_step_is_warned_of(base: Path, run: Run) -> None:
    (base / "masks.recipe").write_text(RECIPE.replace(
        "words =            # class words", "words =\nextra =\nside = 64").replace(
        "[--words $words]", "[--words $words --name $extra]"))
    result = masks(run, "photos=photos", "extra=x", "side=64", "--dry-run")
    assert result.lines("warning:") == ["extra=x has no effect with these values"]


@pytest.mark.parametrize("before", ["", "timm:vit,", "dino:"])
def test_a_file_of_another_spelling_is_no_change(before: str, base: Path, run: Run) -> None:
    (base / "weights.pt").touch()
    (base / "other.pt").touch()
    (base / "link.pt").symlink_to("weights.pt")
    (base / "masks.recipe").write_text(RECIPE.replace("words =", "encoder =\nwords =")
                                       + "say $encoder\n")
    masks(run, "photos=photos", f"encoder={before}weights.pt")
    for path in (base / "weights.pt", "link.pt", f"../{base.name}/weights.pt"):
        said = masks(run, f"encoder={before}{path}", "--dry-run").err
        assert "since the last run" not in said
    said = masks(run, f"encoder={before}other.pt", "--dry-run").err
    assert "since the last run: encoder was" in said


def test_a_value_that_has_lost_its_effect_is_forgotten(base: Path, run: Run) -> None:
    (base / "words.txt").write_text("bar: bar\n")
    (base / "masks.recipe").write_text(RECIPE.replace("words =", "name =\nwords =").replace(
        "[--words $words]", "[--words $words --out $name]"))
    place = "name=work/prototypes/text.safetensors"
    masks(run, "photos=photos", "words=words.txt", place)
    assert place in masks(run).err
    said = masks(run, "words=")
    assert place not in said.err
    assert said.lines("warning:") == []
    assert "name=" not in (base / "work/recipe.json").read_text()


def test_weights_beside_a_model_are_found_from_another_folder(
        base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "weights.pt").touch()
    (base / "masks.recipe").write_text(RECIPE.replace("words =", "encoder =\nwords =")
                                       + "say $encoder\n")
    masks(run, "photos=photos", "encoder=timm:vit,weights.pt")
    (base / "below").mkdir()
    monkeypatch.chdir(base / "below")
    result = run("run", "../masks.recipe", work=Path("../work"))
    assert result.code == 0, result.err
    assert "encoder=timm:vit,../weights.pt" in result.err
    recorded = json.loads((base / "work/recipe.json").read_text())["runs"]
    # A workspace that is passed on tells no folder of this machine.
    assert [run["values"]["encoder"] for run in recorded] == ["timm:vit,weights.pt"]
