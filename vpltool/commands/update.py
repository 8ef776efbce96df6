"""`update`: recomputes stale results with their own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from vpltool.state import Artifact, read_state


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(Settings):
    """Settings of `update`."""

    dry_run: bool = setting(False, "Print the command lines without running them.",
                            off="-", record="never")


STAGE = Stage(order=4, panel="1. Begin", reads=("workspace",), writes=(), settings=UpdateSettings)


def run(workspace: Workspace, settings: UpdateSettings) -> list[str]:
    """Recompute stale results with their original settings.

    If one cannot be recomputed, those that are not made from it are.

    If photos or the CSV of tags have changed since `prepare`, it says what has changed, and which
    command to run first.

    Example: vpltool update

    Next: vpltool status

    Returns:
        names of what was recomputed; for a dry run, the lines.

    Raises:
        VplError: the first of the lines that failed, or that must be typed by hand; all that does
            not depend on them is done.
        PhotosFailed: some photos failed; the others are done.
    """
    changed = warn_of_changes(workspace)
    state = read_state(workspace)
    stale = [artifact for artifact in state.in_order if state.stale(artifact)]
    lines = list(dict.fromkeys(artifact.line() for artifact in stale))
    if settings.dry_run:
        return lines
    check_alone("an update")
    made, failures, errors = _recompute_all(workspace, stale)
    for error in errors[1:]:
        console.warn("; ".join(filter(None, [error.message, error.hint])))
    if errors:
        raise errors[0]
    if failures:
        raise PhotosFailed(failures[0].message, failures[0].hint, made, failures[0].photos)
    left = read_state(open_workspace(workspace.path))
    console.note("`status(stale=True)` lists what could not be recomputed"
                 if any(map(left.stale, left.in_order)) else
                 "everything else is up to date" if changed else "everything is up to date")
    return made


def _recompute_all(workspace: Workspace, stale: Sequence[Artifact]
                   ) -> tuple[list[str], list[PhotosFailed], list[VplError]]:
    """Recompute results, but for those made from one that failed.

    Returns:
        names of what was recomputed; failures of photos; and why others were not recomputed.
    """
    made: list[str] = []
    failures: list[PhotosFailed] = []
    # Result, and its line, to what hinders it.
    hindered: dict[str, VplError] = {}
    run_already: set[str] = set()
    for artifact in stale:
        line = artifact.line()
        error = next((hindered[name] for name in (line, *artifact.header.sources.values())
                      if name in hindered), None)
        if error is None and (reason := reason_by_hand(artifact.header, artifact.stage,
                                                       workspace.path)):
            error = VplError(f"{artifact.name} is not up to date, and is not made again by "
                             f"`update()`: {reason}", line)
        # One line of crf or predict makes two folders.
        if error is None and line not in run_already:
            run_already.add(line)
            console.note(line)
            try:
                failures += _recompute(workspace, artifact, stale)
            except VplError as raised:
                raised.hint = then(raised.hint, "`update()` continues")
                error = raised
        if error:
            hindered |= {artifact.name: error, line: error}
        else:
            made.append(artifact.name)
    return made, failures, list({error.message: error for error in hindered.values()}.values())


def _recompute(workspace: Workspace, artifact: Artifact, stale: Sequence[Artifact]
               ) -> list[PhotosFailed]:
    """Run the line of a stale result; return the error with the photos that failed, if any."""
    line = artifact.line()
    with replacing_only(workspace.path, [one.path for one in stale if one.line() == line]):
        values = artifact.call()
        # Settings that were not given in the original call keep their defaults.
        _, failure = run_through(Call(artifact.stage, values, frozenset(values)), workspace.path)
    return [failure] if failure else []


def show(result: list[str], _values: Mapping[str, object]) -> str:
    """Format the names of recomputed results, a line each."""
    return "\n".join(result)
