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
    """Check that the command that the header of a file names makes such a file, with such settings.

    Raises:
        VplError: no version of vpltool has written this header here.
    """
    if wrong := _strange(header, found):
        raise VplError(f"the header of {name} {wrong}",
                       f"move {name} out of the workspace: vpltool did not make it")


def _strange(header: Header, found: FoundStage) -> str:
    """What vpltool does not write into a header; empty if it may have written this one."""
    if header.kind not in found.stage.writes:
        return f"says that {found.name} made it, which makes no {header.kind}"
    entries = settings_with(found, str(header.call.get("method", "")))
    for setting in (*header.call, *header.sources):
        if setting != "out" and setting in entries and entries[setting].by_hand:
            return f"gives `{setting}`, which is only said by hand"
    if "out" in header.sources or not isinstance(header.call.get("out", ""), str):
        return "has no valid `out`"
    for setting, value in header.call.items():
        several = value if isinstance(value, list) else [value]
        if setting in entries and entries[setting].type is Path and not all(
                isinstance(one, str) for one in several):
            return f"gives a `{setting}` that is no path"
    return ""


def reason_by_hand(header: Header, found: FoundStage, work: Path) -> str:
    """Say why a person must make an artifact again; empty where `update` may."""
    if not found.stage.reads:
        return f"{found.name} made it"
    out = (work / str(header.call.get("out", "."))).resolve()
    return ("" if out.is_relative_to(work.resolve())
            else f"it was written to {out}, outside of the workspace")
