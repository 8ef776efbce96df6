"""`update`: recomputes stale results with their own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vpltool import console
from vpltool.command import Call
from vpltool.errors import PhotosFailed, VplError, then
from vpltool.formats import Workspace, open_workspace
from vpltool.formats.manifest import replacing_only
from vpltool.formats.shards import check_alone
from vpltool.next_step import warn_of_changes
from vpltool.provenance import reason_by_hand
from vpltool.recipes.runner import run_through
from vpltool.settings import Settings, Stage, setting
from vpltool.state import read_state


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(Settings):
    """Settings of `update`."""

    dry_run: bool = setting(False, "Print the command lines without running them.",
                            off="-", record="never")


STAGE = Stage(order=4, panel="1. Begin", reads=("workspace",), writes=(), settings=UpdateSettings)


def run(workspace: Workspace, settings: UpdateSettings) -> list[str]:
    """Recompute stale results with their original settings.

    If photos or the CSV of tags have changed since `prepare`, it says what has changed, and which
    command to run first.

    Example: vpltool update

    Next: vpltool status

    Returns:
        names of what was recomputed; for a dry run, the lines.

    Raises:
        VplError: a line failed, or must be typed by hand.
        PhotosFailed: some photos failed; the others are done.
    """
    changed = warn_of_changes(workspace)
    state = read_state(workspace)
    stale = [artifact for artifact in state.in_order if state.stale(artifact)]
    lines = list(dict.fromkeys(artifact.line() for artifact in stale))
    if settings.dry_run:
        return lines
    check_alone("an update")
    failed: PhotosFailed | None = None
    left_to_hand: VplError | None = None
    made, run_already = [], set()
    for artifact in stale:
        line = artifact.line()
        if reason := reason_by_hand(artifact.header, artifact.stage, workspace.path):
            left_to_hand = left_to_hand or VplError(
                f"{artifact.name} is not up to date, and is not made again by `update()`: {reason}",
                line)
            continue
        made.append(artifact.name)
        # One line of crf or predict makes two folders.
        if line in run_already:
            continue
        run_already.add(line)
        console.note(line)
        try:
            with replacing_only(workspace.path, [one.path for one in stale if one.line() == line]):
                values = artifact.call()
                # Settings that were not given in the original call keep their defaults.
                _, failure = run_through(Call(artifact.stage, values, frozenset(values)),
                                         workspace.path)
        except VplError as error:
            error.hint = then(error.hint, "`update()` continues")
            raise
        failed = failed or failure
    if failed:
        raise PhotosFailed(failed.message, failed.hint, made, failed.photos)
    if left_to_hand:
        raise left_to_hand
    left = read_state(open_workspace(workspace.path))
    console.note("`status(stale=True)` lists what could not be recomputed"
                 if any(map(left.stale, left.in_order)) else
                 "everything else is up to date" if changed else "everything is up to date")
    return made


def show(result: list[str], _values: Mapping[str, object]) -> str:
    """Format the names of recomputed results, a line each."""
    return "\n".join(result)
