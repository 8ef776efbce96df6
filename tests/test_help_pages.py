"""Help fits a terminal of 80 columns and 24 lines, topic by topic, and says how to see the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Run

from vpltool.command_help import Subject, help_page, stage_subject
from vpltool.methods import Method, find_methods
from vpltool.settings import described
from vpltool.stages import find_stages

STAGES = find_stages()
CHOSEN = [(name, method) for name, found in STAGES.items() for method in (
    [None] if not found.stage.methods else list(find_methods(found.stage.methods).values())
    if found.stage.subcommands else [None, *find_methods(found.stage.methods).values()])]


def subject_of(name: str, method: Method | None) -> Subject:
    line = f"vpltool {name}"
    return stage_subject(STAGES[name], method, f"{line} {method.name}" if method and STAGES[
        name].stage.subcommands else line)


def fits(page: str) -> bool:
    lines = page.splitlines()
    return len(lines) <= 24 and all(len(line) <= 80 for line in lines)


def topics_of(page: str) -> list[str]:
    more = " ".join(page.split("\nMore: ")[1].split())
    told = re.search(r"TOPIC \(([^)]*)\)", more)
    return told[1].split(", ") if told else []


@pytest.mark.parametrize(("name", "method"), CHOSEN, ids=str)
def test_every_topic_fits(name: str, method: Method | None) -> None:
    """Of each command and method; and each option is on one of the pages."""
    subject = subject_of(name, method)
    page = help_page(subject)
    assert fits(page), page
    assert page.startswith("Usage: vpltool")
    assert "; --help-all." in " ".join(page.split("\nMore: ")[1].split())
    pages = [page, *(help_page(subject, topic) for topic in topics_of(page) if topic != "about")]
    assert all(fits(each) for each in pages)
    for entry in subject.entries:
        shown = entry.metavar if entry.positional else entry.flag
        assert any(f"\n  {shown}" in each for each in pages)


@pytest.mark.parametrize("name", [
    name for name, found in STAGES.items() if described(found.stage.settings)])
def test_every_option_has_a_page(name: str) -> None:
    subject = subject_of(name, None)
    for entry in subject.entries:
        told = help_page(subject, entry.name)
        assert fits(told)
        assert entry.help in " ".join(told.split())


@pytest.mark.parametrize("line", [(), ("prepare",), ("export",), ("cam",), ("run",)], ids=str)
def test_the_command_line_prints_them(line: tuple[str, ...], run: Run) -> None:
    page = run(*line, "--help")
    assert page.code == 0, page.err
    assert fits(page.out), page.out
    for topic in topics_of(page.out):
        assert fits(run(*line, "--help", topic).out)
    assert run(*line, "-h").out == page.out


def test_help_before_a_command_is_its_help(run: Run) -> None:
    assert run("--help", "cam").out == run("cam", "--help").out
    assert run("export", "--help", "yolo").out == run("export", "yolo", "--help").out


@pytest.mark.parametrize(("line", "said"), [
    ("learn-prototypes --help phi",
     "No effect with --pixels all or regions: there are no seeds to threshold.\n"),
    ("predict --help overlap", "No effect without --tile: photos are seen whole.\n"),
    ("tag --help crop", "No effect with --no-rescore: nothing is cut out.\n"),
    ("learn-prototypes --help rounds", "with --rounds 2 or\n    more:")])
def test_an_option_says_where_it_has_no_effect(line: str, said: str, run: Run) -> None:
    assert said in run(*line.split()).out


def test_help_all_has_everything(run: Run) -> None:
    told = run("cam", "--help-all").out
    for entry in described(STAGES["cam"].stage.settings):
        assert entry.flag in told


@pytest.mark.parametrize(("words", "hint"), [
    (("cam", "--help", "methdos"), "did you mean `methods`?"),
    (("--help", "mask"), "did you mean `masks`?")])
def test_a_topic_that_there_is_not_is_a_usage_error(words: tuple[str, ...], hint: str, run: Run
                                                   ) -> None:
    result = run(*words)
    assert result.code == 2
    assert hint in " ".join(result.err.replace("│", " ").split())


def test_an_option_of_another_method_is_found(run: Run) -> None:
    said = run("seed-prototypes", "--help", "per-class").out
    first, *others = said.split("\n\n")
    assert first.splitlines()[0].startswith("With --method context")
    assert first.splitlines()[1].startswith("--per-class  whole number")
    assert any("--method kmeans" in part.splitlines()[0] for part in others)
    assert run("cam", "--help", "split").out.startswith("--split")


@pytest.mark.parametrize("words", [("nosuch", "--help"), ("nosuch", "-h"),
                                   ("nosuch", "--help-all"), ("prepare", "nosuch", "--help")])
def test_help_about_a_command_that_there_is_not(run: Run, words: tuple[str, ...],
                                                tmp_path: Path) -> None:
    """The same error as without `--help`; help that is asked for before a word stays help."""
    result = run(*words, work=tmp_path)
    assert result.code == 2 and not result.out
    assert "no command `nosuch`" in result.err
    assert run("--help", "cam", work=tmp_path).code == 0


@pytest.mark.parametrize(("words", "said"), [
    (("cam", "--overwrit"), "no option `--overwrit`: did you mean `--overwrite`?"),
    (("--wrk", "x", "cam"), "no option `--wrk`: did you mean `--work`?"),
    (("prepare", "folder", "x", "--lables", "y"),
     "no option `--lables`: did you mean `--labels`?"),
    (("cam", "--nosuch"), "no option `--nosuch`"),
    (("run", "demo", "--sides", "9"), "no option `--sides`; values of a recipe are written "
                                      "NAME=VALUE, such as sides=9"),
    (("extract", "--batch-size", "many"),
     "invalid value for '--batch-size': 'many' is not a whole number"),
])
def test_a_mistyped_line_is_told_as_any_other_error(run: Run, words: tuple[str, ...], said: str
                                                    ) -> None:
    result = run(*words)
    assert (result.code, result.lines("error:")) == (2, [said])
    (hint,) = result.lines("hint:")
    assert hint.startswith("vpltool") and hint.endswith(" --help")
