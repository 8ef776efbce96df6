"""The worst photos by their scores: those that `show` draws and people look at first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats import Workspace, find_folder
from vpltool.stages._reports import read_scores


@dataclass(frozen=True)
class Worst:
    """What scores say of single photos.

    Args:
        what: what was scored, such as `predictions/segmenter`.
        split: of the photos.
        why: id to reason, the worst first.
    """

    what: str
    split: str
    why: Mapping[str, str]


def find_worst(workspace: Workspace, what: str, split: str, scores: Path | None, count: int
               ) -> Worst:
    """Find the worst photos by scores.

    Args:
        workspace: where scores are.
        what: `predictions/NAME` or `masks/NAME`, whose scores are meant; empty: `scores` says it.
        split: of the photos, if no scores are named.
        scores: the file; None: that of `what`, by true masks if there is one, else by tags.
        count: number of photos at most.

    Raises:
        VplError: there are no such scores, they tell of no single photo, or no photo is worse than
            the others.
    """
    path = scores or _scores_of(workspace, what, split)
    content = read_scores(path)
    if "worst" not in content:
        raise VplError(f"{path} does not say which photos are the worst",
                       "`eval(what='predictions/NAME')`, or with `against='tags'`, writes scores "
                       "that do")
    listed = {entry["id"]: entry["why"] for entry in content["worst"][:count]}
    if not listed:
        raise VplError(f"{path}: the classes of every photo match its tags",
                       "`show()` without `worst` shows any photo")
    kind = str(content.get("scored", "predictions"))
    named = f"{kind}/{str(content['what']).removeprefix(f'{kind}-')}"
    return Worst(what or named, str(content["split"]), listed)


def _scores_of(workspace: Workspace, what: str, split: str) -> Path:
    """Path of the scores of predictions or masks.

    Raises:
        VplError: there are none.
    """
    source = find_folder(workspace.path, ("predictions", "masks"), what, split,
                         ("predictions", "masks", "cams"), f"`predict(split={split!r})`")
    name = f"{source.kind}-{source.name}-{split}"
    for path in (workspace.path / "scores" / f"{end}.json" for end in (name, f"{name}-tags")):
        if path.exists():
            return path
    wanted = f"what='{source.kind}/{source.name}', split={split!r}"
    raise VplError(f"no scores of {source.path}",
                   f"`eval({wanted})`, or without true masks `eval({wanted}, against='tags')`")
