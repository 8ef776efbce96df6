"""Which recipe was started last in a workspace, and whether it has come to its end: `recipe.json`.

It belongs to the identity of nothing. Paths are stored relative to the workspace, and are returned
as they are seen from the current folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.fields import FLAG, TEXT, check_fields
from vpltool.formats.storage import read_json, short_path, write_json
from vpltool.formats.workspace import relative_to

FILE = "recipe.json"

_FIELDS = {"recipe": TEXT, "done": FLAG}


@dataclass(frozen=True)
class LineWord:
    """A word of a command line: text, then a path, if it has one: `photos=` and the photos."""

    text: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class StartedRecipe:
    """A recipe that was started.

    Args:
        name: of the recipe, or of its file.
        words: the line, after `vpltool -C WORK`.
        done: whether it has come to its end.
    """

    name: str
    words: tuple[str, ...]
    done: bool


def write_started(work: Path, name: str, words: Iterable[LineWord], *, done: bool) -> None:
    """Write which recipe was started in a workspace, and how; nothing where there is none yet.

    Raises:
        VplError: the file cannot be written.
    """
    if (work / "workspace.json").exists():
        write_json(work / FILE, {"recipe": name, "done": done, "words": [
            word.text if word.path is None else
            {"text": word.text, "path": relative_to(word.path, work)} for word in words]})


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
        check_fields(content, _FIELDS)
        words = []
        for word in content.get("words", []):
            if isinstance(word, dict):
                check_fields(word, {"text": TEXT, "path": TEXT})
                words.append(word["text"] + short_path(work / word["path"]))
            else:
                check_fields({"word": word}, {"word": TEXT})
                words.append(word)
        if odd := next((word for word in words if not word.isprintable()), ""):
            raise ValueError(f"the word {odd!r} cannot be typed")
    except (ValueError, TypeError, RuntimeError) as error:
        raise VplError(f"{path} is not valid: {error}", hint) from error
    return StartedRecipe(content["recipe"], tuple(words), content["done"])
