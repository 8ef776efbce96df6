"""`doctor`: what is wrong with the machine and the workspace, and what repairs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vpltool.commands._findings import BROKEN, OK
from vpltool.commands._machine_checks import machine_findings
from vpltool.commands._workspace_checks import workspace_findings
from vpltool.errors import VplError, counted
from vpltool.settings import Settings, setting
from vpltool.stage import Stage


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(Settings):
    """Settings of `doctor`."""

    machine: bool = setting(True, "Also check the machine: packages, GPU, disk, memory.",
                            off="--no-machine", record="never")


STAGE = Stage(order=6, panel="1. Begin", reads=(), writes=(),
              settings=DoctorSettings, begins=True)


def run(work: Path, settings: DoctorSettings) -> list[dict[str, str]]:
    """Check the machine and the workspace, and say how to repair what is broken.

    On the machine: packages, torch, GPUs and their driver, Numba, pydensecrf, disk, model cache,
    shared memory. In the workspace: every file against its header and its folder, photos missing
    from results, files made with other settings, leftovers of killed commands. Nothing is changed.
    The exit code is 1 if something is broken, that is, if a command would refuse it or stop.

    Example: vpltool doctor

    Next: vpltool status

    Args:
        work: the workspace folder; if it is none, only the machine is looked at.
        settings: what to leave out.

    Returns:
        for each finding `part` (machine or workspace), `level` (ok, note, broken), `about`,
        `says`, and `repair`: the lines to type, or nothing.
    """
    found = machine_findings(work) if settings.machine else []
    if (work / "workspace.json").exists():
        found += workspace_findings(work)
    return [asdict(finding) for finding in found]


def show(result: list[dict[str, str]], _values: Mapping[str, Any]) -> str:
    """Format the findings, a line each; what repairs it below."""
    width = max((len(entry["about"]) for entry in result), default=0)
    lines: list[str] = []
    part = ""
    for entry in result:
        if entry["part"] != part:
            part = entry["part"]
            lines += ["", part] if lines else [part]
        mark = entry["level"].upper() if entry["level"] == BROKEN else entry["level"]
        lines.append(f"  {mark:6}  {entry['about']:{width}}  {entry['says']}")
        if entry["repair"]:
            lines += [f"          {line}" for line in entry["repair"].splitlines()]
    if part != "workspace":
        lines += ["", "workspace", "  none here"]
    return "\n".join(lines).lstrip("\n")


def judge(result: list[dict[str, str]]) -> None:
    """Turn what is broken into the exit code of the command.

    Raises:
        VplError: something is broken.
    """
    broken = [entry for entry in result if entry["level"] == BROKEN]
    noted = sum(entry["level"] not in (OK, BROKEN) for entry in result)
    if broken:
        more = f"; {counted(noted, 'note', 'notes')}" if noted else ""
        raise VplError(f"{counted(len(broken), 'problem', 'problems')} found: "
                       f"{', '.join(dict.fromkeys(entry['about'] for entry in broken))}{more}",
                       "the command below each one repairs it")
