"""Checks of headers, which anybody can write, before `update` runs their commands.

A header is trusted only if its command makes such a file, and only with settings that the command
records. What is replaced, where results go, and which programs are started is set by hand alone
(`by_hand` of a setting).
"""

from __future__ import annotations

from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats import Header
from vpltool.names import short_path
from vpltool.shell import settings_with
from vpltool.stages import FoundStage


def check_header(header: Header, found: FoundStage, name: str) -> None:
    """Check that the command in the header of a file makes such files, with such settings.

    Raises a VplError if no version of vpltool wrote this header here.
    """
    if wrong := _strange(header, found):
        raise VplError(f"the header of {name} {wrong}",
                       f"move {name} out of the workspace: vpltool did not make it")


def _strange(header: Header, found: FoundStage) -> str:
    """Return what vpltool does not write into a header; empty if it may have written this one."""
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
    """Explain why a person must recompute an artifact; empty if `update` may."""
    if not found.stage.reads:
        return f"{found.name} made it"
    for image in header.images:
        if not (work / image).exists():
            return f"{short_path(work / image)} is gone; put it back, or delete this folder"
    out = (work / str(header.call.get("out", "."))).resolve()
    return ("" if out.is_relative_to(work.resolve())
            else f"it was written to {out}, outside of the workspace")
