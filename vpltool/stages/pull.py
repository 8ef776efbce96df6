"""`pull`: a segmenter from the Hugging Face hub.

`HF_ENDPOINT` names another server, and `HF_TOKEN` the token, as for every client of the hub.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vpltool import options
from vpltool.errors import VplError, first_line, silent
from vpltool.formats import atomic, expect_header
from vpltool.settings import Settings, Stage, setting


@dataclass(frozen=True, kw_only=True)
class PullSettings(Settings):
    """Settings of `pull`."""

    repository: str = setting(help="Where it is on the hub.", metavar="ORGANISATION/NAME",
                              positional=True)
    revision: str = setting("", "Branch, tag or commit; default: the newest.", metavar="NAME")
    out: Path | None = options.out()
    overwrite: bool = options.overwrite()


FILE = "segmenter.safetensors"
"""Name of the bundle in a repository."""

_SECONDS = 10.0
"""Timeout of the first request; the hub's client alone would try for minutes."""

_WHY = {401: "you are not logged in", 403: "you may not do that", 404: "it does not exist"}

STAGE = Stage(order=102, panel="4. Scores and pictures", reads=(), writes=("bundle",),
              settings=PullSettings, begins=True)


def run(path: Path, settings: PullSettings) -> Path:
    """Download a segmenter from the Hugging Face hub to NAME.safetensors.

    Example: vpltool pull my-name/animals

    Next: vpltool predict PHOTOS --segmenter animals.safetensors

    Returns:
        the file.

    Raises:
        VplError: the hub cannot be reached, the repository holds no bundle, or the file is there.
    """
    check_repository(settings.repository)
    target = settings.out or path / f"{settings.repository.split('/')[1]}.safetensors"
    if target.exists() and not settings.overwrite:
        raise VplError(f"{target} already exists", "`overwrite=True`, or `out='FILE'`")
    cached = _download(settings.repository, settings.revision)
    try:
        expect_header(cached, "bundle")
    except VplError as error:
        error.message = error.message.replace(str(cached), f"the file of {settings.repository}")
        raise
    with atomic.atomic_path(target) as temporary:
        shutil.copyfile(cached, temporary)
    return target


def check_repository(name: str) -> None:
    """Raise a VplError unless a name can be that of a repository."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise VplError(f"`{name}` is not a name on the hub", "write it as ORGANISATION/NAME")


def _download(repository: str, revision: str) -> Path:
    """Download the bundle of a repository into the client's cache, and return its path there."""
    import huggingface_hub as hub

    with explaining(repository):
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, FILE, revision=revision or None),
                                 timeout=_SECONDS)
        return Path(hub.hf_hub_download(repository, FILE, revision=revision or None))


@contextmanager
def explaining(repository: str) -> Iterator[None]:
    """Turn any error of the hub's client into a VplError of one line."""
    try:
        with silent():
            yield
    except (KeyboardInterrupt, VplError):
        raise
    # The client lets errors of its HTTP library through, and that library has changed.
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        why = _WHY.get(status, first_line(error))
        hint = ("hf auth login, or HF_TOKEN=TOKEN; and check the name" if status in _WHY else
                "check the network; HF_ENDPOINT names another server")
        raise VplError(f"{repository} on the hub: {why}", hint) from error
