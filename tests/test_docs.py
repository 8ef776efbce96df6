"""Every command line in the documentation parses; the README's pipeline runs as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, copy_workspace, draw_scenes, prepare, write_scenes
from launching import environment
from PIL import Image

from vpltool.command import parse_line
from vpltool.core.photos import fit_size
from vpltool.stages import find_stages

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> list[str]:
    """The ```sh blocks of a page, continued lines joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    return re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """Its vpltool lines, without comment, pipe or redirection."""
    return [re.split(r" (?:#|\||>|>>|&&) ?", line)[0] for line in block.splitlines()
            if line.startswith("vpltool ")]


LINES = [(page.name, line) for page in PAGES if page.exists() for block in blocks(page)
         for line in commands(block)]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_line_parses(page: str, line: str) -> None:
    """Command, subcommand, options, values and arguments; nothing is run."""
    words = shlex.split(line)[1:]
    while words[0] in ("-C", "--work", "-q"):
        words = words[2 if words[0] != "-q" else 1:]
    if words in (["--help"], ["--version"]):
        return
    assert words[0] in find_stages() or words[0] == "--preset", f"{page}: no command {words[0]}"
    if words[-2:-1] == ["--help"]:
        words = words[:-1]
    if words[-1] in ("--help", "--help-all"):
        words = words[:-1]
        if len(words) == 1 and find_stages()[words[0]].stage.subcommands:
            return
        if "--method" not in words:
            return
    # Raises an error for a missing argument, an unknown option, or a value of the wrong type.
    parse_line(words)


def test_there_are_lines_in_every_page_that_shows_commands() -> None:
    assert (ROOT / "README.md").exists()
    assert len(LINES) > 20
    assert {"README.md", "commands.md"} <= {page for page, _ in LINES}


@pytest.mark.parametrize("name", list(find_stages()))
def test_every_command_is_documented(name: str) -> None:
    text = "".join(page.read_text("utf-8") for page in (ROOT / "README.md",
                                                        ROOT / "docs/commands.md"))
    assert re.search(rf"vpltool {name}\b", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pipeline_of_the_readme_runs(run: Run, tmp_path: Path, tiny_clip: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny CLIP, three iterations, and no worker processes; else to the letter."""
    text = (ROOT / "README.md").read_text("utf-8").split("\n## The pipeline\n")[1]
    (tmp_path / "page.md").write_text(text)
    lines = commands(blocks(tmp_path / "page.md")[0])
    assert {line.split()[1] for line in lines} >= {
        "prepare", "text-prototypes", "extract", "cam", "refine", "learn-prototypes", "crf",
        "train-decoder", "predict", "eval"}
    write_scenes(tmp_path, draw_scenes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vpltool.parallel.device.default_workers", lambda: 0)
    model = "ViT-B-16-quickgelu --pretrained openai"
    assert model in lines[0]
    for line in lines:
        quick = re.sub(r"--iters \d+", "--iters 3", line)
        quick = quick.replace(model, f"x --pretrained {shlex.quote(str(tiny_clip))}")
        result = run(*shlex.split(quick)[1:])
        assert result.code == 0, f"{line}: {result.err}"
    assert "predictions-vision-refined on `val`: 2 photos" in result.out


def test_a_split_that_the_tags_lack(run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    """As where the README's pipeline meets a CSV without the column `split`."""
    write_scenes(tmp_path, draw_scenes())
    rows = [line.rpartition(",")[0] for line in (tmp_path / "tags.csv").read_text().splitlines()]
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    (tmp_path / "clip").symlink_to(tiny_clip)
    assert prepare(tmp_path).code == 0
    result = run("extract", "--split", "val", work=tmp_path / "work")
    assert result.lines("error:") == ["no photo is in the split `val`"]
    assert "add a column `split` with train or val to the CSV of tags" in result.lines("hint:")[0]


def test_the_page_about_giving_a_segmenter_away_runs(run: Run, layered: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line; `export onnx`, `push` and `pull` have tests of their own."""
    lines = [line for block in blocks(ROOT / "docs/deploy.md") for line in commands(block)]
    assert len(lines) == 11
    monkeypatch.setattr("vpltool.parallel.device.default_workers", lambda: 0)
    first, *rest = (line for line in lines if not re.match(
        r"vpltool (?:export onnx|pull|push .*--private)", line))
    home = layered / "work"
    (home / "decoder/tiny.safetensors").rename(home / "decoder/segmenter.safetensors")
    assert run(*shlex.split(first)[1:], work=home).code == 0
    for name in ("segmenter", "animals", "exports/segmenter"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(home / "exports/segmenter.safetensors", tmp_path / f"{name}.safetensors")
    shutil.copytree(layered / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for line in rest:
        result = run(*shlex.split(line)[1:])
        assert result.code == 0, f"{line}: {result.err}"
    (python,) = (block for block in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text("utf-8"), flags=re.DOTALL)
        if "Segmenter" in block)
    names: dict[str, Any] = {}
    exec(compile(python, "deploy.md", "exec"), names)  # noqa: S102 - our own page
    with Image.open("one.png") as made:
        assert (np.asarray(made) == names["labels"]).all()


def test_the_programs_of_the_page_resize_photos_as_predict_does() -> None:
    """Also where rounding pushes a side over a multiple: 400 * (224 / 400) is more than 224."""
    programs = re.findall(r"^patch, shrink = .*\n# .*\n(?:size|width, height) = .*\n",
                          (ROOT / "docs/deploy.md").read_text("utf-8"), flags=re.MULTILINE)
    assert len(programs) == 3
    for program in programs:
        names = {"photo": Image.new("RGB", (400, 266)), "np": np,
                 "meta": {"patch": 16, "max_side": 224}}
        exec(compile(program, "deploy.md", "exec"), names)  # noqa: S102 - our own page
        width, height = names.get("size") or (names["width"], names["height"])
        assert (height, width) == fit_size((266, 400), 16, max_side=224) == (160, 224)


def test_the_launchers_of_the_page_on_scale_run(layered: Path, tmp_path: Path, tiny_clip: Path,
                                                run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`xargs` and torchrun, as a shell runs them; two processes and three iterations suffice.

    What `xargs` starts is run in this process: to import torch in each takes seconds.
    """
    base = copy_workspace(layered, tmp_path / "base", tiny_clip)
    program = tmp_path / "bin" / "vpltool"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*" >> started.txt\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent),
                            os.environ["PATH"]])
    text = "\n".join(blocks(ROOT / "docs/scale.md"))
    lines = [line for line in text.splitlines()
             if line and not line.startswith(("vpltool ", "pip "))]
    assert [line.split()[0] for line in lines] == ["seq", "torchrun"]
    shutil.rmtree(base / "work/features/train")
    for line in lines:
        quick = line.replace("3000", "3").replace("0 3", "0 1").replace("/4", "/2 --workers 0")
        done = subprocess.run(quick, shell=True, cwd=base, env=environment(PATH=path), text=True,
                              capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        if line.startswith("seq"):
            monkeypatch.chdir(base)
            started = (base / "started.txt").read_text().splitlines()
            assert len(started) == 2
            for words in started:
                result = run(*shlex.split(words))
                assert result.code == 0, result.err
    manifest = json.loads((base / "work/features/train/artifact.json").read_text())
    assert manifest["complete"]
    assert not (base / "work/features/train/.shards").exists()
    assert (base / "work/prototypes/vision.safetensors").exists()


def named_tests(page: Path) -> list[tuple[str, str]]:
    """File and function of each test that a page names; `::NAME` is in the file before it."""
    named, file = list[tuple[str, str]](), ""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", page.read_text("utf-8")):
        file = path or file
        if path or name:
            named.append((file, name))
    return named


def test_every_test_that_a_page_names_is_there() -> None:
    named = named_tests(ROOT / "docs/reliability.md")
    assert len(named) > 150
    for file, name in named:
        text = (ROOT / file).read_text("utf-8")
        assert not name or re.search(rf"^def {name}\(", text, flags=re.MULTILINE), f"{file}::{name}"


def test_every_case_of_the_review_has_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", (ROOT / "docs/reliability.md").read_text(
        "utf-8"), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(40, 67), *range(70, 95)]
    assert all("::test_" in tests for _, tests in rows)
