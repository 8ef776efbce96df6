"""`vpltool` alone: in a workspace it names the next line, and that line runs."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import Run, copy_workspace, draw_scenes, prepare, write_scenes

QUICK = {"extract": ("--workers", "0"), "crf": ("--workers", "0"), "report": ("--workers", "0"),
         "train-decoder": ("--iters", "2", "--crop", "3", "--batch-size", "2", "--width", "16",
                           "--workers", "0"),
         "predict": ("--workers", "0")}


def line_of(run: Run, work: Path) -> tuple[str, list[str]]:
    """Why, and the words of the line behind `vpltool -C WORK`."""
    result = run(work=work)
    assert result.code == 0, result.err
    assert result.err == ""
    why = result.out.splitlines()[1]
    (line,) = (line for line in result.out.splitlines() if line.startswith("    "))
    words = shlex.split(line)
    assert words[:3] == ["vpltool", "-C", str(work)]
    return why, words[3:]


def test_its_lines_lead_from_photos_to_the_report(run: Run, tmp_path: Path, tiny_clip: Path
                                                  ) -> None:
    write_scenes(tmp_path, draw_scenes())
    (tmp_path / "clip").symlink_to(tiny_clip)
    assert prepare(tmp_path, "--masks", tmp_path / "masks").code == 0
    work = tmp_path / "work"
    taken, reasons = [], []
    while True:
        why, words = line_of(run, work)
        if "PHOTOS" in words:
            break
        taken.append(words)
        reasons.append(why)
        assert len(taken) < 12, taken
        result = run(*words, *QUICK.get(words[0], ()), work=work)
        assert result.code == 0, (words, result.err)
    assert [words[0] for words in taken] == [
        "text-prototypes", "extract", "cam", "crf", "train-decoder", "predict", "eval", "report"]
    assert taken[4][1:] == ["--prototypes", "text"], "the masks come from text prototypes"
    assert taken[6][1:] == ["--what", "predictions/text", "--split", "val"]
    assert reasons[:4] == ["no text prototypes:", "text prototypes exist, but no features:",
                           "features exist, but no CAMs:", "CAMs exist, but no masks:"]
    assert line_of(run, work) == ("all steps are done; segment new photos:",
                                  ["predict", "PHOTOS", "--overlay"])


def test_what_is_stale_comes_first(run: Run, copied: Path) -> None:
    work = copied / "work"
    assert line_of(run, work)[1][0] == "train-decoder"
    assert run("text-prototypes", "--prompts", "origami", "--overwrite", work=work).code == 0
    assert line_of(run, work) == ("6 of 9 results are stale or not finished:", ["update"])


def test_maps_of_another_name_are_named(run: Run, copied: Path) -> None:
    work = copied / "work"
    for folder in ("masks", "cams"):
        shutil.rmtree(work / folder)
    assert run("cam", "--method", "dense", work=work).code == 0
    assert line_of(run, work)[1] == ["crf", "--what", "text-dense"]


def test_without_tags(run: Run, copied: Path) -> None:
    work = copied / "work"
    for folder in ("masks", "cams"):
        shutil.rmtree(work / folder)
    lines = [json.loads(line) | {"labels": []}
             for line in (work / "images.jsonl").read_text().splitlines()]
    (work / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert line_of(run, work) == ("no photo has a tag:", ["tag"])


def test_photos_in_one_split(run: Run, ready: Path, tmp_path: Path, tiny_clip: Path) -> None:
    base = copy_workspace(ready, tmp_path / "base", tiny_clip)
    work = base / "work"
    lines = [json.loads(line) | {"splits": ["all"]}
             for line in (work / "images.jsonl").read_text().splitlines()]
    (work / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for folder in ("masks", "cams", "features"):
        shutil.rmtree(work / folder)
    assert line_of(run, work)[1] == ["extract", "--split", "all"]


def test_elsewhere_it_lists_the_commands(run: Run, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run()
    assert result.code == 2
    assert result.out.strip() == run("--help").out.strip()


@pytest.fixture
def begun(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which a recipe was interrupted after its first step."""
    from vpltool.formats import OutputFolder

    (copied / "maps.recipe").write_text(
        "# Maps.\nphotos = ?\ncut = 0.4\nvpltool prepare folder $photos\nvpltool cam --split train"
        " --method dense\nvpltool eval --what cams/text-dense --split train --threshold $cut\n")

    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(copied)
    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, "write_tensors", stop)
        line = ("run", "maps.recipe", "photos=photos", "cut=0.3", "--jobs", 1)
        assert run(*line, work=Path("work")).code == 130
    return copied


def test_an_interrupted_recipe_comes_first(run: Run, begun: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    why, words = line_of(run, Path("work"))
    assert why == "the recipe maps.recipe is not finished:"
    assert words == ["run", "maps.recipe", "photos=photos", "cut=0.3", "--jobs", "1"]
    assert str(begun) not in (begun / "work/recipe.json").read_text()
    monkeypatch.chdir(begun / "work")
    assert line_of(run, begun / "work")[1][1:3] == ["../maps.recipe", "photos=../photos"]
    result = run(*line_of(run, begun / "work")[1], work=begun / "work")
    assert result.code == 0, result.err
    assert line_of(run, begun / "work")[1][0] == "train-decoder", "as without a recipe"


def test_a_first_step_that_fails_is_no_recipe_at_work(run: Run, begun: Path) -> None:
    before = (begun / "work/recipe.json").read_bytes()
    (begun / "other").mkdir()
    assert run("run", "maps.recipe", "photos=other", work=begun / "work").code == 1
    assert (begun / "work/recipe.json").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"recipe": 1}',
                                  '{"recipe": "x", "done": false, "words": [1]}',
                                  '{"recipe": "x", "done": false, "words": 1}'])
def test_a_damaged_record_of_a_recipe(text: str, run: Run, copied: Path) -> None:
    (copied / "work/recipe.json").write_text(text)
    result = run(work=copied / "work")
    assert result.code == 1
    assert "recipe.json" in result.lines("error:")[0]
    assert "delete" in result.lines("hint:")[0]


def test_the_workspace_is_named_behind_the_advice(run: Run, copied: Path) -> None:
    assert run(work=copied / "work").out.splitlines()[-1] == (
        f"Results: vpltool -C {copied / 'work'} status. All commands: vpltool --help")


@pytest.mark.parametrize("command", [(), ("status",), ("extract",)])
def test_a_workspace_of_a_near_name(command: tuple[str, ...], run: Run, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work/photos").mkdir(parents=True)
    (tmp_path / "work/photos/workspace.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    result = run("-C", "work/photo", *command)
    assert result.code == 1
    assert result.lines("hint:") == ["did you mean vpltool -C work/photos COMMAND?"]


@pytest.mark.parametrize("command", [(), ("status",), ("extract",), ("demo",),
                                     ("prepare", "folder", "photos", "--labels", "tags.csv"),
                                     ("run", "own-photos", "photos=photos", "tags=tags.csv")])
def test_a_file_is_no_workspace(command: tuple[str, ...], run: Run, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path, draw_scenes())
    monkeypatch.chdir(tmp_path)
    result = run("-C", "tags.csv", *command)
    assert result.code == 1
    assert result.lines("error:") == ["tags.csv is a file; a workspace is a folder"]
    assert result.lines("hint:") == ["name the workspace folder, as in vpltool -C DIR COMMAND"]
