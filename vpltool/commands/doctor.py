"""`doctor`: checks torch, its device, the disk, the weights and the workspace."""

from __future__ import annotations

import importlib
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vpltool import __version__
from vpltool.commands._damage import BROKEN, NOTE, OK, Finding, workspace_findings
from vpltool.console import size
from vpltool.errors import VplError, counted, first_line
from vpltool.formats.whereabouts import short_path
from vpltool.settings import Settings, setting
from vpltool.stage import Stage

_SPARE, _SCARCE = 200_000_000, 5_000_000_000
"""Free bytes on a disk below which commands stop soon, and below which it is worth a look."""


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(Settings):
    """Settings of `doctor`."""

    machine: bool = setting(True, "Also check the machine: torch, its device, disk.",
                            off="--no-machine", record="never")


STAGE = Stage(order=6, panel="1. Begin", reads=(), writes=(),
              settings=DoctorSettings, begins=True)


def run(work: Path, settings: DoctorSettings) -> list[dict[str, str]]:
    """Check the machine and the workspace, and say how to repair what is broken.

    On the machine: torch, whether its GPUs compute, and the disk. In the workspace: the weights
    that it names, every file against its header and its folder, photos missing from results, files
    made with other settings, leftovers of killed commands. Nothing is changed. The exit code is 1
    if something is broken, that is, if a command would refuse it or stop.

    Example: vpltool doctor

    Next: vpltool status

    Returns:
        for each finding `part` (machine or workspace), `level` (ok, note, broken), `about`,
        `says`, and `repair`: the lines to type, or nothing.
    """
    found = [*_torch(), _disk(work)] if settings.machine else []
    if (work / "workspace.json").exists():
        found += workspace_findings(work)
    return [asdict(finding) for finding in found]


def _torch() -> Iterator[Finding]:
    """Versions, and whether each GPU that torch sees computes."""
    yield Finding("machine", OK, "vpltool", f"{__version__}, Python {platform.python_version()}")
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("machine", BROKEN, "torch", f"cannot be imported: {first_line(error)}",
                      "pip install --force-reinstall torch")
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding("machine", OK, "torch", f"{torch.__version__}, {built}")
    if not torch.cuda.is_available():
        yield Finding("machine", OK, "GPU", "none that torch sees: everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            torch.ones(2, 2, device=name).matmul(torch.ones(2, 2, device=name)).sum().item()
            yield Finding("machine", OK, name, f"{torch.cuda.get_device_name(index)}, "
                                               f"{size(free)} of {size(total)} free")
        except RuntimeError as error:
            yield Finding("machine", BROKEN, name, f"does not compute: {first_line(error)}",
                          "pip install --force-reinstall torch")


def _disk(work: Path) -> Finding:
    """Room where a workspace is, or will be; and whether it may be written there."""
    folder = next(path for path in (work.resolve(), *work.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    files = os.statvfs(folder).f_favail if hasattr(os, "statvfs") else 0
    about, place = f"disk of {short_path(work)}", shlex.quote(short_path(folder))
    if not os.access(folder, os.W_OK):
        return Finding("machine", BROKEN, about, f"{folder} cannot be written",
                       f"chmod -R u+w {place}")
    if free < _SCARCE:
        return Finding("machine", BROKEN if free < _SPARE else NOTE, about, f"{size(free)} free",
                       f"du -sh {place}/* | sort -h")
    # File systems without a table of files say 0.
    if 0 < files < 100_000:
        return Finding("machine", NOTE, about, f"room for only {files} more files",
                       f"df -i {place}")
    return Finding("machine", OK, about, f"{size(free)} free")


def show(result: list[dict[str, str]], _values: Mapping[str, object]) -> str:
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
