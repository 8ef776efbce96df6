"""`pull`: a segmenter from the Hugging Face hub."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vpltool import options
from vpltool.errors import VplError
from vpltool.formats import expect_header
from vpltool.formats.atomic import atomic_path
from vpltool.settings import Settings, Stage, setting
from vpltool.stages._hub import check_repository, download


@dataclass(frozen=True, kw_only=True)
class PullSettings(Settings):
    """Settings of `pull`."""

    repository: str = setting(help="Where it is on the hub.", metavar="ORGANISATION/NAME",
                              positional=True)
    revision: str = setting("", "Branch, tag or commit; default: the newest.", metavar="NAME")
    out: Path | None = options.out()
    overwrite: bool = options.overwrite()


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
    cached = download(settings.repository, settings.revision)
    try:
        expect_header(cached, "bundle")
    except VplError as error:
        error.message = error.message.replace(str(cached), f"the file of {settings.repository}")
        raise
    with atomic_path(target) as temporary:
        shutil.copyfile(cached, temporary)
    return target
