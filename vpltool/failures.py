"""Photos that failed: each once, with the reason and the command that tries again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.state import Artifact, State


@dataclass(frozen=True)
class Failure:
    """Photos that a step failed on for one reason.

    Args:
        reason: why, without the name of a file.
        photos: file names of the photos; their ids, where the reason does not begin with one.
        line: the line that tries them again.
    """

    reason: str
    photos: Sequence[str]
    line: str


def failed_here(state: State, artifact: Artifact) -> list[str]:
    """Return the photos that the step of an artifact failed on, without those it never got."""
    if artifact.folder is None or not artifact.failed:
        return []
    sources = [state.artifacts.get(source) for source in artifact.header.sources.values()]
    # What an input outside the workspace lacks is told here, or nowhere.
    told = any(source and source.folder for source in sources)
    _, todo = state.to_do(artifact)
    return sorted({*artifact.failed} - {*todo} - (artifact.folder.waiting if told else set()))


def failures_of(state: State) -> list[Failure]:
    """Return what failed, by reason, with the first step that failed on it.

    Later steps only pass a failure on, and need no line of their own: `update` makes them again.
    A photo's reason is told once: `crf` writes two folders.
    """
    known: set[tuple[str, str]] = set()
    found: dict[tuple[str, str], list[str]] = {}
    for artifact in state.in_order:
        if artifact.folder is None:
            continue
        for key in failed_here(state, artifact):
            why = artifact.folder.failed[key]
            if (key, why) in known:
                continue
            known.add((key, why))
            name, reason = _parted(key, why)
            found.setdefault((reason, artifact.line()), []).append(name)
    return [Failure(reason, names, line) for (reason, line), names in found.items()]


def _parted(photo_id: str, why: str) -> tuple[str, str]:
    """Part a reason into the name of the photo's file and the rest, as far as it has both."""
    name, colon, reason = why.partition(": ")
    return ((name, reason) if colon and name.startswith(f"{Path(photo_id).name}.")
            else (photo_id, why))
