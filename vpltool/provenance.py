"""What a header may say: it is data that anybody can write, and `update` runs what it says.

A header names a command. It is believed only if that command writes such a file, and only with
settings that the command records. What is replaced, where results go and which programs are started
is said by hand alone (`by_hand`, see `setting`).
"""

from __future__ import annotations

from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats import Header
from vpltool.shell import settings_with
from vpltool.stages import FoundStage


def check_header(header: Header, found: FoundStage, name: str) -> None:
    """Check that a command makes such a file, with such settings.

    Raises:
        VplError: no version of vpltool has written this header here.
    """
    hint = f"move {name} out of the workspace: vpltool did not make it"
    if header.kind not in found.stage.writes:
        raise VplError(f"the header of {name} says that {found.name} made it, which makes no "
                       f"{header.kind}", hint)
    entries = {entry.name: entry for entry in settings_with(
        found, str(header.call.get("method", "")))}
    for setting in (*header.call, *header.sources):
        if setting != "out" and setting in entries and entries[setting].about.by_hand:
            raise VplError(f"the header of {name} gives `{setting}`, which is only said by hand",
                           hint)
    if "out" in header.sources or not isinstance(header.call.get("out", ""), str):
        raise VplError(f"the header of {name} has no valid `out`", hint)
    for setting, value in header.call.items():
        several = value if isinstance(value, list) else [value]
        if setting in entries and entries[setting].type is Path and not all(
                isinstance(one, str) for one in several):
            raise VplError(f"the header of {name} gives a `{setting}` that is no path", hint)


def reason_by_hand(header: Header, found: FoundStage, work: Path) -> str:
    """Say why a person must make an artifact again; empty where `update` may."""
    if not found.stage.reads:
        return f"{found.name} made it"
    out = (work / str(header.call.get("out", "."))).resolve()
    return ("" if out.is_relative_to(work.resolve())
            else f"it was written to {out}, outside of the workspace")
