"""`recipe.json`: the recipe that was started last in a workspace, and the scores of all runs.

It belongs to the identity of nothing. Paths are stored relative to the workspace, and are returned
as they are seen from the current folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vpltool.errors import VplError
from vpltool.formats.fields import FLAG, OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.storage import read_json, write_json
from vpltool.formats.whereabouts import short_path
from vpltool.formats.workspace import relative_to
from vpltool.names import leads_out

FILE = "recipe.json"
PICTURES = "pictures/"
"""Folder of the workspace that the pictures of a run are in."""


@dataclass(frozen=True)
class LineWord:
    """A word of a command line: text, then a path, if it has one: `photos=` and the photos."""

    text: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class FinishedRun:
    """A run of a recipe that has come to its end.

    Args:
        recipe: name of its file.
        values: name to value; of a path only the name.
        scores: title to score, in [0, 1].
        pictures: its sheets, relative to the workspace.
    """

    recipe: str
    values: Mapping[str, str]
    scores: Mapping[str, float]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class StartedRecipe:
    """A recipe that was started: its name or file, and the words of its line after `-C WORK`.

    It is done if it has come to its end, as all of its `runs` have, the last one last.
    """

    name: str
    words: tuple[str, ...]
    done: bool
    runs: tuple[FinishedRun, ...] = ()


def write_started(work: Path, name: str, words: Iterable[LineWord], *, done: bool,
                  runs: Sequence[FinishedRun] = ()) -> None:
    """Write which recipe was started in a workspace, and how; nothing where there is none yet.

    Raises:
        VplError: the file cannot be written.
    """
    if (work / "workspace.json").exists():
        write_json(work / FILE, {"recipe": name, "done": done, "words": [
            word.text if word.path is None else
            {"text": word.text, "path": relative_to(word.path, work)} for word in words],
            **({"runs": [asdict(run) for run in runs]} if runs else {})})


def read_started(work: Path) -> StartedRecipe | None:
    """Return the recipe that was started last in a workspace; None if there was none.

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
    """A run that has come to its end; a ValueError where it is described by something else."""
    check_fields(content, {"recipe": TEXT, "values": TEXT_OF, "scores": OBJECT, "pictures": TEXTS})
    scores = content["scores"]
    if not all(isinstance(score, float) for score in scores.values()):
        raise ValueError("`scores` is not an object of numbers")
    _check_typed([content["recipe"], *content["values"], *content["values"].values(), *scores,
                  *content["pictures"]])
    if away := next((name for name in content["pictures"]
                     if leads_out(name) or not name.startswith(PICTURES)), ""):
        raise ValueError(f"{away!r} is not below {PICTURES}")
    return FinishedRun(content["recipe"], content["values"], scores, tuple(content["pictures"]))


def _check_typed(words: Iterable[str]) -> None:
    if odd := next((word for word in words if not word.isprintable()), ""):
        raise ValueError(f"the word {odd!r} cannot be typed")
