"""Shell completion of the values of settings from the files of a workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vpltool.json_text import parse_json

Names = Callable[[Path], Iterator[str]]


def _folders(*kinds: str) -> Names:
    """Complete results with their kind: `cams/text`."""
    return lambda work: (path.relative_to(work).as_posix() for kind in kinds
                         for path in sorted(work.glob(f"{kind}/*")) if path.is_dir())


def _bare(kind: str) -> Names:
    """Complete results of a kind: `text`."""
    return lambda work: (path.stem for path in sorted(work.glob(f"{kind}/*"))
                         if ".checkpoint" not in path.name and not path.name.startswith("."))


def _shipped(pattern: str) -> Names:
    """Complete recipes or presets that come with vpltool."""
    return lambda _work: (path.stem for path in sorted(Path(__file__).parent.glob(pattern)))


def _lines(work: Path) -> Iterator[Any]:
    with (work / "images.jsonl").open(encoding="utf-8") as file:
        yield from map(parse_json, file)


SETTINGS: Mapping[str, Names] = {
    "split": lambda work: (str(split) for line in _lines(work) for split in line["splits"]),
    "ids": lambda work: (str(line["id"]) for line in _lines(work)),
    "tagged": lambda work: map(str, parse_json((work / "workspace.json").read_text("utf-8"))[
        "classes"]),
    "what": _folders("cams", "masks", "predictions"), "cams": _bare("cams"),
    "masks": _bare("masks"), "prototypes": _bare("prototypes"), "text": _bare("prototypes"),
    "decoder": _bare("decoder"), "recipe": _shipped("recipes/*.recipe"),
    "preset": _shipped("presets/*.toml"),
}
"""Name of a setting of any stage to its names."""

_DEEPEST = 4

_MOST = 200
"""Maximum number of names that are offered."""


def names_for(setting: str, work: Path, prefix: str) -> list[str]:
    """Return the names for a setting that begin with a prefix; none outside a workspace.

    The last item of a list, `a,b`, is completed.
    """
    head, comma, tail = prefix.rpartition(",") if setting == "ids" else ("", "", prefix)
    try:
        found = dict.fromkeys(SETTINGS[setting](work))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [head + comma + name for name in found if name.startswith(tail)][:_MOST]


def workspaces(prefix: str) -> list[str]:
    """Return the paths of workspaces that begin with a prefix, at most three folders deep."""
    base = prefix.rpartition("/")[0] + "/" if "/" in prefix else ""
    files = [file for depth in range(1, _DEEPEST)
             for file in sorted(Path(base or ".").glob("*/" * depth + "workspace.json"))]
    found = [base + file.parent.relative_to(base or ".").as_posix() for file in files]
    return [path for path in found if path.startswith(prefix)]
