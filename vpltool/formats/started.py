"""`recipe.json`: the last recipe started in a workspace, and the scores of all runs.

It affects no artifact's identity. Paths are stored relative to the workspace, and returned relative
to the current folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vpltool.errors import VplError
from vpltool.formats.fields import FLAG, OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.kinds import is_workspace
from vpltool.formats.storage import read_json, write_json
from vpltool.formats.workspace import relative_to
from vpltool.names import leads_out, short_path

FILE = "recipe.json"
PICTURES = "pictures/"
"""Folder of the workspace with the pictures of runs."""


Word = str | tuple[str, Path]
"""A word of a command line: text, or text and then a path, such as `photos=` and a folder."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of a recipe."""

    recipe: str  # name of the recipe file
    values: Mapping[str, str]  # value by name; paths are reduced to their names
    scores: Mapping[str, float]  # score in [0, 1] by title
    pictures: tuple[str, ...]  # paths of its contact sheets, relative to the workspace
    data: str = ""  # identity of the photos with their tags and splits; empty if not recorded


@dataclass(frozen=True)
class StartedRecipe:
    """A recipe that was started: its name or file, and the words of its command after `-C WORK`.

    `done` tells whether it has finished; `runs` are its finished runs, latest last.
    """

    name: str
    words: tuple[str, ...]
    done: bool
    runs: tuple[FinishedRun, ...] = ()


def write_started(work: Path, name: str, words: Iterable[Word], *, done: bool,
                  runs: Sequence[FinishedRun] = ()) -> None:
    """Record which recipe was started and how; does nothing if there is no workspace yet.

    Raises:
        VplError: the file cannot be written.
    """
    if is_workspace(work):
        write_json(work / FILE, {"recipe": name, "done": done, "words": [
            word if isinstance(word, str) else
            {"text": word[0], "path": relative_to(word[1], work)} for word in words],
            **({"runs": [asdict(run) for run in runs]} if runs else {})})


def read_started(work: Path) -> StartedRecipe | None:
    """Return the recipe started last in a workspace; None if there was none.

    Raises:
        VplError: the file is damaged.
    """
    path = work / FILE
    if not path.exists():
        return None
    hint = f"delete {path}: it only says which recipe was started"
    content = read_json(path, hint)
    try:
        check_fields(content, {"recipe": TEXT, "done": FLAG})
        words = []
        for word in content.get("words", []):
            if isinstance(word, dict):
                check_fields(word, {"text": TEXT, "path": TEXT})
                words.append(word["text"] + short_path(work / word["path"]))
            else:
                check_fields({"word": word}, {"word": TEXT})
                words.append(word)
        _check_typed(words)
        runs = tuple(_run(run) for run in content.get("runs", []))
    except (ValueError, TypeError, RuntimeError) as error:
        raise VplError(f"{path} is not valid: {error}", hint) from error
    return StartedRecipe(content["recipe"], tuple(words), content["done"], runs)


def _run(content: Any) -> FinishedRun:
    check_fields(content, {"recipe": TEXT, "values": TEXT_OF, "scores": OBJECT, "pictures": TEXTS},
                 {"data": TEXT})
    scores = content["scores"]
    if not all(isinstance(score, float) for score in scores.values()):
        raise ValueError("`scores` is not an object of numbers")
    _check_typed([content["recipe"], *content["values"], *content["values"].values(), *scores,
                  *content["pictures"]])
    if away := next((name for name in content["pictures"]
                     if leads_out(name) or not name.startswith(PICTURES)), ""):
        raise ValueError(f"{away!r} is not below {PICTURES}")
    return FinishedRun(content["recipe"], content["values"], scores, tuple(content["pictures"]),
                       content.get("data", ""))


def _check_typed(words: Iterable[str]) -> None:
    if odd := next((word for word in words if not word.isprintable()), ""):
        raise ValueError(f"the word {odd!r} cannot be typed")
