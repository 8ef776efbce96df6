"""What `doctor` asks a machine: packages, torch and its GPUs, disk, shared memory, the cache."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from vpltool import __version__
from vpltool.commands._findings import BROKEN, NOTE, OK, Finding
from vpltool.commands._tree import size
from vpltool.errors import counted, first_line
from vpltool.formats.storage import short_path
from vpltool.parallel.processes import core_count

_SHARED_MEMORY = Path("/dev/shm")
_BATCH = 8 * 3 * 512 * 512 * 4
"""Bytes of a batch of `extract` at its default: eight photos of 512×512 pixels."""
_SPARE = 200_000_000
_SCARCE = 5_000_000_000
"""Free bytes on a disk below which commands stop soon, and below which it is worth a look."""
_WHEELS = ((13, 0), (12, 9), (12, 8), (12, 6), (12, 4), (12, 1), (11, 8))
"""CUDA versions that torch was or is built for, the newest first."""


def machine_findings(work: Path) -> list[Finding]:
    """Look at the machine, as the commands that work in a folder would meet it."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _packages, _torch, _crf, lambda: _disk(work), _cache, _shared_memory)
    return [finding for check in checks for finding in check()]


def _found(level: str, about: str, says: str, repair: str = "") -> Finding:
    return Finding("machine", level, about, says, repair)


def _packages() -> list[Finding]:
    """Versions of Python and vpltool; packages that are missing or too old."""
    found = [_found(OK, "vpltool", f"{__version__}, Python {platform.python_version()}, "
                                   f"{core_count()} cores")]
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in metadata.requires("vpltool") or ()]
    except (ImportError, metadata.PackageNotFoundError):
        return found
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            installed = _version_of(requirement.name)
            if not requirement.specifier.contains(installed or "0", prereleases=True):
                found.append(_found(
                    BROKEN, requirement.name, f"{installed or 'not installed'}, "
                    f"vpltool needs {requirement.name}{requirement.specifier}",
                    shlex.join(["pip", "install", f"{requirement.name}{requirement.specifier}"])))
    return found


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> list[Finding]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return [_found(BROKEN, "torch", f"cannot be imported: {first_line(error)}",
                       "pip install --force-reinstall torch")]
    built, driver, newest = torch.version.cuda, *_driver()
    found = [_found(OK, "torch", f"{torch.__version__}, "
                    + (f"built for CUDA {built}" if built else "built without CUDA"))]
    if not torch.cuda.is_available():
        return [*found, judge_driver(built, driver, newest)]
    for index in range(torch.cuda.device_count()):
        found.append(_gpu(torch, index, driver))
    return found


def _gpu(torch: Any, index: int, driver: str) -> Finding:
    """A GPU, its memory, and whether it computes."""
    name = f"cuda:{index}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        torch.ones(2, 2, device=name).matmul(torch.ones(2, 2, device=name)).sum().item()
    except RuntimeError as error:
        return _found(BROKEN, name, f"does not compute: {first_line(error)}",
                      "pip install --force-reinstall torch")
    return _found(OK, name, f"{torch.cuda.get_device_name(index)}, {size(free)} of {size(total)} "
                            f"free, driver {driver or 'unknown'}")


def _driver() -> tuple[str, str]:
    """Version of the GPU driver, and the newest CUDA that it runs; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", ""
    try:
        said = subprocess.run([program], capture_output=True, text=True, timeout=20,
                              check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return "", ""
    versions = [re.search(rf"{words} Version:\s*([\d.]+)", said) for words in ("Driver", "CUDA")]
    return tuple(match[1] if match else "" for match in versions)  # type: ignore[return-value]


def judge_driver(built: str | None, driver: str, newest: str) -> Finding:
    """Say why torch sees no GPU.

    Args:
        built: CUDA version that torch was built for; None: without CUDA.
        driver: version of the GPU driver; empty: there is none.
        newest: newest CUDA that the driver runs.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not driver:
        return _found(OK, "GPU", "none: everything runs on the CPU")
    if hidden is not None and hidden in ("", "-1"):
        return _found(NOTE, "GPU", f"hidden by CUDA_VISIBLE_DEVICES={hidden}",
                      "unset CUDA_VISIBLE_DEVICES")
    if built and _numbers(built) <= _numbers(newest):
        return _found(NOTE, "GPU", f"the driver {driver} is installed, but torch, built for "
                      f"CUDA {built}, finds no GPU", "nvidia-smi")
    fits = next((wheel for wheel in _WHEELS if wheel <= _numbers(newest)), None)
    if fits is None:
        return _found(NOTE, "GPU", f"the driver {driver} is older than any CUDA of torch "
                      f"(it runs {newest or 'none'})", "sudo ubuntu-drivers install")
    what = f"is built for CUDA {built}" if built else "is built without CUDA"
    return _found(NOTE, "GPU", f"torch {what}, the driver {driver} runs CUDA {newest}",
                  "pip install --force-reinstall torch --index-url "
                  f"https://download.pytorch.org/whl/cu{fits[0]}{fits[1]}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


_CRF = (("numba", "numba", "numba", "crf uses it on a CPU",
         "on a CPU, crf uses pydensecrf or torch, which give the same masks but are slower"),
        ("pydensecrf", "pydensecrf.densecrf", "pydensecrf2", "for `crf --backend pydensecrf`",
         "only `crf --backend pydensecrf` needs it"))
"""Package, module, pip's name, what it is for, and what is without it."""


def _crf() -> list[Finding]:
    """What `crf` runs on a CPU: a package that is there and broken ends it."""
    return [_crf_package(*row) for row in _CRF]


def _crf_package(name: str, module: str, distribution: str, use: str, without: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return _found(NOTE, name, f"not installed: {without}", f"pip install {distribution}")
    try:
        importlib.import_module(module)
    except Exception as error:
        # A module built for another numpy raises ValueError or RuntimeError.
        return _found(BROKEN, name, f"cannot be imported: {first_line(error)}",
                      f"pip install --force-reinstall --no-deps {distribution}")
    return _found(OK, name, f"{_version_of(distribution) or 'there'}; {use}")


def _disk(work: Path) -> list[Finding]:
    """Room where a workspace is, or will be; and whether it may be written there."""
    folder = next(path for path in (work.resolve(), *work.resolve().parents) if path.exists())
    free, room = shutil.disk_usage(folder).free, os.statvfs(folder).f_favail
    about = f"disk of {short_path(work)}"
    if not os.access(folder, os.W_OK):
        return [_found(BROKEN, about, f"{folder} cannot be written",
                       shlex.join(["chmod", "-R", "u+w", short_path(folder)]))]
    says = f"{size(free)} free"
    if free < _SCARCE:
        return [_found(BROKEN if free < _SPARE else NOTE, about, says,
                       f"du -sh {shlex.quote(short_path(work))}/* | sort -h")]
    # File systems without a table of files say 0.
    if 0 < room < 100_000:
        return [_found(NOTE, about, f"{says}, but room for only {room} more files",
                       f"df -i {shlex.quote(short_path(folder))}")]
    return [_found(OK, about, says)]


def _cache() -> list[Finding]:
    """The hub's cache: where CLIPs are, and downloads that were cut off."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not cache.is_dir():
        return [_found(OK, "model cache", f"{cache} is empty")]
    if not os.access(cache, os.W_OK):
        return [_found(BROKEN, "model cache", f"{cache} cannot be written",
                       shlex.join(["chmod", "-R", "u+w", str(cache)]))]
    models = len(list(cache.glob("models--*")))
    unfinished = list(cache.glob("models--*/blobs/*.incomplete"))
    if unfinished:
        return [_found(NOTE, "model cache", f"{len(unfinished)} downloads are incomplete, "
                       f"{size(sum(file.stat().st_size for file in unfinished))}",
                       shlex.join(["find", str(cache), "-name", "*.incomplete", "-delete"]))]
    return [_found(OK, "model cache", f"{cache}: {counted(models, 'model', 'models')}")]


def _shared_memory() -> list[Finding]:
    """Room for the batches that worker processes hand over."""
    from vpltool.parallel.device import worker_count

    if not _SHARED_MEMORY.is_dir():
        return []
    free, workers = shutil.disk_usage(_SHARED_MEMORY).free, worker_count(-1)
    need = 2 * workers * _BATCH
    if free >= need:
        return [_found(OK, str(_SHARED_MEMORY), f"{size(free)} free")]
    return [_found(BROKEN, str(_SHARED_MEMORY),
                   f"{size(free)} free; {workers} workers with photos of 512×512 pixels take "
                   f"{size(need)}. In a container: docker run --shm-size=2g; or give commands "
                   "--workers 0", f"mount -o remount,size=2G {_SHARED_MEMORY}")]
