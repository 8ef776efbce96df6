"""Recipes: how they are read, what they come to, and how they run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import Run

from vpltool.command import parse_line
from vpltool.errors import VplError
from vpltool.recipes.parse import (
    Rounds,
    Step,
    commands_of,
    read_recipe,
    recipe_files,
    steps_of,
)

TEXT = """# A small job.
photos = ?          # the photos
model =             # another model
seeds = 0 1         # one run each

say Begin with $photos
vpltool prepare folder $photos --labels 'my tags.csv' [--pretrained $model]
if model
    vpltool text-prototypes
end
each seed in $seeds
    vpltool seed-prototypes --seed $seed \\
        --out $work/prototypes/v-${seed}.safetensors
    each rsc in 0 1
        vpltool scores 'a b=scores/x-$seed-[0-9].json' [--out $model-$rsc.md]
    end
end
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.recipe"
    path.write_text(TEXT)
    return path


def flat(steps: list[Step | Rounds] | tuple[Step | Rounds, ...]) -> list[str]:
    lines = []
    for step in steps:
        if isinstance(step, Rounds):
            lines += [line for part in step.rounds for line in flat(part)]
        else:
            lines.append(step.heading or shlex.join(step.words))
    return lines


def test_read(recipe: Path) -> None:
    found = read_recipe(recipe)
    assert found.title == "A small job"
    assert [(value.name, value.default, value.about) for value in found.values] == [
        ("photos", None, "the photos"), ("model", "", "another model"),
        ("seeds", "0 1", "one run each")]


def test_steps(recipe: Path) -> None:
    found = read_recipe(recipe)
    plain = flat(steps_of(found, {"photos": "my photos"}, Path("w")))
    assert plain[:2] == ["Begin with my photos",
                         "prepare folder 'my photos' --labels 'my tags.csv'"]
    assert plain[2:5] == ["seed-prototypes --seed 0 --out w/prototypes/v-0.safetensors",
                          "scores 'a b=scores/x-0-[0-9].json'",
                          "scores 'a b=scores/x-0-[0-9].json'"]
    full = flat(steps_of(found, {"photos": "p", "model": "m", "seeds": "7"}, Path("w")))
    assert full[1:3] == ["prepare folder p --labels 'my tags.csv' --pretrained m",
                         "text-prototypes"]
    assert full[4:] == ["scores 'a b=scores/x-7-[0-9].json' --out m-0.md",
                        "scores 'a b=scores/x-7-[0-9].json' --out m-1.md"]


def test_lines_are_those_of_the_file(recipe: Path) -> None:
    steps = steps_of(read_recipe(recipe), {"photos": "p"}, Path("w"))
    rounds = steps[-1]
    assert isinstance(rounds, Rounds)
    first, nested = rounds.rounds[0]
    assert isinstance(first, Step)
    assert TEXT.splitlines()[first.line - 1].strip().startswith("vpltool seed-prototypes")
    assert isinstance(nested, Rounds)
    inner = nested.rounds[1][0]
    assert isinstance(inner, Step)
    assert "vpltool scores" in TEXT.splitlines()[inner.line - 1]


def test_lines_where_a_value_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "choice.recipe"
    path.write_text("# t\ntags =  # a\nif tags\nvpltool cam\nend\nunless tags\nvpltool tag\nend\n")
    found = read_recipe(path)
    assert flat(steps_of(found, {}, Path("w"))) == ["tag"]
    assert flat(steps_of(found, {"tags": "x.csv"}, Path("w"))) == ["cam"]


@pytest.mark.parametrize(("held", "lines"), [("", ["tag"]), ("0", ["tag"]), ("10", ["cam"])])
def test_lines_where_a_value_is_a_word(held: str, lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "choice.recipe"
    path.write_text("# t\nheld = 10\nif held not 0\nvpltool cam\nend\n"
                    "unless held not 0\nvpltool tag\nend\n")
    assert flat(steps_of(read_recipe(path), {"held": held}, Path("w"))) == lines


@pytest.mark.parametrize("held", ["held=", "held=0"])
def test_own_photos_without_held_out_photos(held: str, run: Run, tmp_path: Path) -> None:
    lines = run("run", "own-photos", "photos=p", "tags=t.csv", held, "--dry-run", work=tmp_path)
    assert lines.code == 0
    assert "--split val" not in lines.out


@pytest.mark.parametrize(("given", "message", "hint"), [
    ({}, "small needs photos=… (the photos)", "photos=…"),
    ({"photo": "x"}, "small has no parameter `photo`", "`photos`"),
])
def test_a_missing_or_unknown_value(given: dict[str, str], message: str, hint: str,
                                    recipe: Path) -> None:
    with pytest.raises(VplError) as caught:
        steps_of(read_recipe(recipe), given, Path())
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(("text", "message"), [
    ("# t\nvpltool cam\nend\n", ":3: `end` without a block"),
    ("# t\nif x\nvpltool cam\n", ":2: `if x` is never closed"),
    ("# t\ncam --split val\n", ":2: `cam --split val` is not a line of a recipe"),
])
def test_a_wrong_line_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.recipe"
    path.write_text(text)
    with pytest.raises(VplError) as caught:
        read_recipe(path)
    assert message in caught.value.message


@pytest.mark.parametrize(("line", "words"), [
    ("show '[a].jpg' \"b\"c[1] [--split 'x]y' --out $a]", ("show", "[a].jpg", "bc[1]")),
    ("show [--split $a --limit 3", ":3: `show [--split $a --limit 3` cannot be read"),
    ("show [--split $a [--limit $a]", "cannot be read"),
    ("show [a].jpg", "cannot be read"),
    ("show 'a", "cannot be read"),
    ("[show $a]", ":3: `[show $a]` is empty here"),
])
def test_no_text_of_a_line_is_dropped(line: str, words: tuple[str, ...] | str, tmp_path: Path
                                      ) -> None:
    path = tmp_path / "own.recipe"
    path.write_text(f"# t\na =   # a value\nvpltool {line}\n")
    if isinstance(words, tuple):
        assert [step.words for step in commands_of(steps_of(read_recipe(path), {}, Path()))] == [
            words]
        return
    with pytest.raises(VplError) as caught:
        steps_of(read_recipe(path), {}, Path())
    assert words in caught.value.message


@pytest.mark.parametrize("line", [[], ["--preset"], ["--preset", "vpl-voc"]])
def test_a_line_without_a_command(line: list[str]) -> None:
    with pytest.raises(VplError):
        parse_line(line)


def test_an_unknown_name_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.recipe"
    path.write_text("# t\nvpltool cam --split $splt\n")
    with pytest.raises(VplError, match=":2: no value is called `splt`"):
        steps_of(read_recipe(path), {}, Path())


@pytest.mark.parametrize("name", recipe_files())
def test_every_line_of_the_bundled_recipes_is_a_command(name: str, run: Run, tmp_path: Path
                                                        ) -> None:
    """With every value given: all blocks are there."""
    others = {"finetune": 2, "student": "timm:resnet18"}
    values = [f"{value.name}={value.default or others.get(value.name, 'x')}"
              for value in read_recipe(recipe_files()[name]).values]
    result = run("run", name, *values, "--dry-run", work=tmp_path)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert len(lines) > 5
    assert all(line.startswith((f"vpltool -C {tmp_path} ", "# ")) for line in lines)


def test_they_are_listed(run: Run) -> None:
    out = run("recipes").out
    for name, path in recipe_files().items():
        assert f"{name:12} {read_recipe(path).title}" in out
    assert run("recipes", "demo").out == recipe_files()["demo"].read_text()


SMALL = """# Maps.
cut = 0.4
each method in dense gradcam
    vpltool cam --method $method
end
vpltool eval --what cams/text-dense --split train --threshold $cut
"""


def test_run_says_lines_skips_what_is_done_and_prints_reports(run: Run, copied: Path) -> None:
    path = copied / "maps.recipe"
    path.write_text(SMALL)
    first = run("run", path, "--jobs", 1, work=copied / "work")
    assert first.code == 0, first.err
    assert "  vpltool cam --method dense" in first.err.splitlines()
    assert "mIoU" in first.out
    times = {file: file.stat().st_mtime_ns for file in (copied / "work/cams").rglob("*")}
    again = run("run", path, "--jobs", 1, work=copied / "work")
    assert again.code == 0, again.err
    assert times == {file: file.stat().st_mtime_ns for file in (copied / "work/cams").rglob("*")}


def test_run_stops_at_the_first_error_and_names_the_line(run: Run, copied: Path) -> None:
    path = copied / "maps.recipe"
    path.write_text("# Maps.\nvpltool cam --method dense\nvpltool cam --prototypes visoin\n"
                    "vpltool refine\n")
    result = run("run", path, work=copied / "work")
    assert result.code == 1
    assert "line 3, vpltool cam --prototypes visoin" in result.lines("error:")[0]
    assert "run the recipe again" in result.lines("hint:")[0]
    assert (copied / "work/cams/text-dense/train/artifact.json").exists()


def test_a_wrong_line_ends_it_before_the_first_is_run(run: Run, copied: Path) -> None:
    path = copied / "maps.recipe"
    path.write_text("# Maps.\nvpltool cam --method dense\nvpltool cam --target softmox\n")
    result = run("run", path, work=copied / "work")
    assert result.code == 1
    assert "line 3: vpltool cam --target softmox" in result.lines("error:")[0]
    assert not (copied / "work/cams/text-dense").exists()


def test_dry_run_can_be_pasted(run: Run, copied: Path) -> None:
    path = copied / "maps.recipe"
    path.write_text(SMALL)
    lines = run("run", path, "cut=0.3", "--dry-run", work=copied / "work").out.splitlines()
    assert lines == [f"vpltool -C {copied / 'work'} {rest}" for rest in (
        "cam --method dense", "cam --method gradcam",
        "eval --what cams/text-dense --split train --threshold 0.3")]
    for line in lines:
        assert run(*shlex.split(line)[1:]).code == 0


def test_rounds_side_by_side(run: Run, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Workers write what is written one after the other, and say which they are, in turns.

    They write to the real stderr.
    """
    path = copied / "maps.recipe"
    path.write_text("# Maps.\neach method in dense gradcam\nvpltool cam --method $method --name "
                    "$method\nvpltool eval --what cams/$method --split train\nend\n")

    def scores_of(jobs: int) -> dict[str, float]:
        assert run("run", path, "--jobs", jobs, work=copied / "work").code == 0
        content = json.loads((copied / "work/recipe.json").read_text())
        return dict(content["runs"][-1]["scores"])

    assert len(scores := scores_of(2)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert "method dense: vpltool cam --method dense --name dense" in lines
    assert "method gradcam: vpltool cam --method gradcam --name gradcam" in lines
    assert all(line.startswith(("method dense: ", "method gradcam: ")) for line in lines)
    made = {file.name: file.read_bytes()
            for file in (copied / "work/cams/dense/train").iterdir()}
    assert run("cam", "--method", "dense", "--name", "dense", "--overwrite",
               work=copied / "work").code == 0
    assert made == {file.name: file.read_bytes()
                    for file in (copied / "work/cams/dense/train").iterdir()}
    assert scores_of(1) == scores


@pytest.mark.parametrize("jobs", [1, 2])
def test_rounds_that_write_the_same_are_refused(jobs: int, run: Run, copied: Path) -> None:
    """Else chance would say whose result stays; a line that is the same in all rounds may be."""
    path = copied / "maps.recipe"
    path.write_text("# Maps.\neach tau in 0.1 0.2\nvpltool cam --method gradcam\n"
                    "vpltool cam --method dense --tau $tau --name same\nend\n")
    result = run("run", path, "--jobs", jobs, work=copied / "work")
    assert result.code == 1
    error, = result.lines("error:")
    said = r"the rounds tau 0\.[12] and tau 0\.[12] both write \S+/cams/same/train"
    assert re.search(said, error)
    assert result.lines("hint:")[0].startswith("put $tau into the name or path of each result")
    path.write_text(path.read_text().replace("--name same", "--name same-$tau"))
    assert run("run", path, "--jobs", jobs, work=copied / "work").code == 0


def test_a_command_in_a_heading_can_be_pasted(run: Run, copied: Path) -> None:
    path = copied / "maps.recipe"
    path.write_text("# Maps.\nname = my maps\nvpltool cam --method dense\n"
                    "say Look at: $work/cams/$name\nsay Again: vpltool -C $work show $name\n")
    lines = run("run", path, "--dry-run", work=copied / "a b").out.splitlines()
    assert lines[-2:] == [f"# Look at: {copied}/a b/cams/my maps",
                          f"# Again: vpltool -C '{copied}/a b' show 'my maps'"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_nested_rounds_know_each_other(jobs: int, run: Run, copied: Path) -> None:
    path = copied / "maps.recipe"
    path.write_text(
        "# Maps.\neach tau in 0.1 0.2\neach to in a b\nvpltool cam --method gradcam\n"
        "vpltool cam --method dense --tau $tau --name same-$to\nend\nend\n")
    result = run("run", path, "--jobs", jobs, work=copied / "work")
    assert result.code == 1
    assert re.search(r"the rounds tau 0\.[12] and tau 0\.[12] both write \S+/cams/same-[ab]/train",
                     result.lines("error:")[0])
    assert result.lines("hint:")[0].startswith("put $tau into the name or path of each result")
    path.write_text(path.read_text().replace("--name same", "--name same-$tau"))
    result = run("run", path, "--jobs", jobs, work=copied / "work")
    assert result.code == 0, result.err


@pytest.mark.parametrize("words", [("--pretrained", "FOLDER"), ("--pretrained=FOLDER",)])
def test_a_value_that_looks_like_an_option(words: tuple[str, ...], run: Run, tmp_path: Path
                                           ) -> None:
    result = run("run", "own-photos", "photos=a", *words, work=tmp_path)
    assert result.code == 2
    said = " ".join(result.err.replace("│", " ").split())
    assert "values of a recipe are written NAME=VALUE, such as pretrained=FOLDER" in said
