"""What another `prepare` would change, and the line that does it.

`changes.jsonl` is data, so the line is printed and not run.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Workspace
from vpltool.formats.changes import last_call
from vpltool.formats.whereabouts import short_path
from vpltool.methods import find_methods
from vpltool.settings import described
from vpltool.shell import command_line, program
from vpltool.stages.prepare import changes_since


def prepare_line(workspace: Workspace) -> str:
    """Return the line that prepared the workspace last; without what it remembers anyway."""
    call = last_call(workspace.path)
    methods = find_methods("sources")
    if call.get("method") not in methods:
        return shlex.join([*program(workspace.path), "prepare", "--help"])
    values = {"method": call["method"]}
    for entry in described(methods[call["method"]].settings):
        if entry.positional and isinstance(value := call.get(entry.name), str):
            values[entry.name] = (short_path(workspace.path / value) if entry.type is Path
                                  else value)
    return command_line("prepare", values, program(workspace.path))


def warn_of_changes(workspace: Workspace) -> bool:
    """Warn where the folder of photos or the CSV of tags has changed since `prepare` read them.

    Returns:
        whether they have.
    """
    try:
        # What `prepare` has said of odd files is not said again.
        with console.heard_by(console.Silence()):
            changes = changes_since(workspace)
    except VplError as error:
        console.warn(f"photos and tags cannot be compared with the workspace: {error.message}")
        return False
    if changes:
        console.warn(f"photos or tags have changed since `prepare`: {'; '.join(changes)}; "
                     f"{prepare_line(workspace)} takes that in")
    return bool(changes)
