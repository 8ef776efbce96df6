"""Proposals of other tools: COCO, SAM's own JSON, YOLO, Label Studio, CVAT, or PNGs.

The format is detected, except that of a folder of PNGs, which --format names. labels: a pixel's
value is its class (classes.txt beside the PNGs, or the workspace's); each connected part is a
proposal with its word. instances: a value is a thing, in 8 or 16 bits or COCO's panoptic colours.
masks: a folder per photo with a PNG per mask, and SAM's metadata.csv if there is one. soft: a grey
map or a cut-out photo, as rembg writes them; each level divides it. Such tools learned from masks
that people drew, so what is made of their proposals says so.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool import console, settings
from vpltool.core.proposals import Proposal, Proposals
from vpltool.datasets.tags import some
from vpltool.errors import VplError, counted
from vpltool.formats import IGNORE, Photo, identity_of_file, identity_of_many
from vpltool.lazy import np
from vpltool.methods import labels
from vpltool.methods.exports.coco import outline_region, score_of
from vpltool.methods.inputs import ProposalRequest
from vpltool.methods.proposers._pictures import FORMS, Fits, Made, Pictures
from vpltool.settings import NoEffect, setting

READS = ("photo",)
SUPERVISION = "tags, and masks that another tool learned from"

_OTHERS = ("auto", *(form for form in FORMS if form != "soft"))


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of imported proposals."""

    path: Path | None = setting(None, "File or folder that another tool wrote.", metavar="PATH",
                                record="never")
    format: str = setting("auto", "What a folder of PNGs holds; auto: the path is in a format "
                                  "that is detected.", choices=("auto", *FORMS))
    levels: str = setting("0.1,0.3,0.5,0.7,0.9", "Levels that divide a soft map.", metavar="LIST",
                          no_effect=[NoEffect({"format": _OTHERS}, "there are no soft maps")])
    resize: bool = setting(False, "Scale masks to their photo's size; without it, those of "
                                  "another size are refused.", off="-")


def identities(settings: Settings) -> dict[str, str]:
    """Hash of the bytes of all files.

    Raises:
        VplError: the path is missing, or in no format that is known.
    """
    found, base = _files(settings), _path(settings)
    return {"files": identity_of_many({
        path.relative_to(base).as_posix(): identity_of_file(path) for path in found})}


def propose(request: ProposalRequest, settings: Settings
            ) -> Iterator[tuple[str, Proposals | str]]:
    """Find the reader; the result yields the photos in the order of the files, then all others."""
    _files(settings)
    names = labels.ProposalNames(request.root, request.classes, request.photos)
    return _each(request, settings, names, _entries(settings, names))


def _path(settings: Settings) -> Path:
    """Raises VplError where there is none."""
    if settings.path is None:
        raise VplError("`path` is missing", "`propose(method='files', path='DIR')` names the file "
                                            "or folder that another tool wrote")
    if not settings.path.exists():
        raise VplError(f"{settings.path} does not exist", "give a file or folder of another tool")
    return settings.path


def _pictures(settings: Settings, classes: tuple[str, ...] = ()) -> Pictures:
    return Pictures(_path(settings), settings.format, levels_of(settings.levels), classes)


def _files(settings: Settings) -> list[Path]:
    """The files that are read."""
    path = _path(settings)
    if settings.format != "auto":
        found = _pictures(settings).files()
        if not found:
            raise VplError(f"{path} holds no PNG", "`format='masks'`: a folder per photo with a "
                           "PNG per mask; others: a PNG per photo")
        return found
    if found := _sam_files(path):
        if importlib.util.find_spec("pycocotools") is None:
            raise VplError("SAM's run lengths need pycocotools, which is not installed",
                           "pip install 'vpltool[labelling]'")
        return found
    tool = labels.find_reader(path)
    if tool is None:
        raise VplError(f"{path} is in no format that is detected",
                       "of PNGs, say what they hold: " + ", ".join(
                           f"`format='{form}'`" for form in FORMS))
    return list(tool[1].files(path))


def _entries(settings: Settings, names: labels.ProposalNames) -> Iterator[tuple[Photo, Made]]:
    """Each photo of the files, and what reads its proposals."""
    path = _path(settings)
    if settings.format != "auto":
        yield from _pictures(settings, names.classes).each(names)
        return
    sam = bool(_sam_files(path))
    tool = None if sam else labels.find_reader(path)
    if tool is None or hasattr(tool[1], "outlined"):
        read = tool[1].outlined if tool else _sam_outlined
        for outlined in read(path, names):
            yield outlined.photo, _of_regions(outlined, names, worded=not sam)
        return
    for labelled in tool[1].read(path, names):
        yield labelled.photo, _of_labels(labelled, names)


def _of_regions(outlined: labels.Outlined, names: labels.ProposalNames, *, worded: bool) -> Made:
    def made(fits: Fits) -> Proposals:
        fits(outlined.size, outlined.where)
        return Proposals.of(outlined.size, (
            Proposal(region.inside(), region.score, names.word(region.label) if worded else "")
            for region in outlined.regions))

    return made


def _of_labels(labelled: labels.Labelled, names: labels.ProposalNames) -> Made:
    def made(fits: Fits) -> Proposals:
        size = (labelled.labels.shape[0], labelled.labels.shape[1])
        fits(size, labelled.where)
        return Proposals.of(size, (
            Proposal(labelled.labels == label, 1.0, names.word(label))
            for label in np.unique(labelled.labels).tolist() if label not in (0, IGNORE)))

    return made


def _each(request: ProposalRequest, settings: Settings, names: labels.ProposalNames,
          entries: Iterator[tuple[Photo, Made]]) -> Iterator[tuple[str, Proposals | str]]:
    wanted = dict(request.jobs)
    for photo, made in entries:
        if photo.id not in wanted:
            continue
        del wanted[photo.id]
        yield photo.id, _fitted(photo, made, names, resize=settings.resize)
    if wanted:
        console.warn(counted(len(wanted), f"photo has no proposals in {settings.path}",
                             f"photos have no proposals in {settings.path}")
                     + f": {some(sorted(wanted))}")
    for key in wanted:
        yield key, _fitted(names.photos[key], _nothing, names, resize=True)


def _nothing(_fits: Fits) -> Proposals:
    return Proposals.of((1, 1), ())


def _fitted(photo: Photo, made: Made, names: labels.ProposalNames, *, resize: bool
            ) -> Proposals | str:
    """The proposals of a photo at its size, or why there are none."""
    try:
        size = names.size(photo, photo.id)

        def fits(found: Sequence[int], where: str) -> None:
            if not resize and tuple(found) != size:
                raise VplError(f"{where}: {found[0]}×{found[1]} (height×width), its photo "
                               f"{photo.id} is {size[0]}×{size[1]}",
                               "`resize=True` scales it")

        return made(fits).resized(size)
    except VplError as error:
        return f"{error.message}{f' ({error.hint})' if error.hint else ''}"
    except (OSError, ValueError, MemoryError) as error:
        return f"{photo.id}: {error or type(error).__name__}"


def levels_of(text: str) -> tuple[float, ...]:
    """Levels of soft maps, of a list with commas.

    Raises:
        VplError: it is no list of numbers between 0 and 1.
    """
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        levels = (0.0,)
    if not all(0 < level < 1 for level in levels):
        raise VplError(f"`levels={text!r}` is not a list of numbers between 0 and 1",
                       "`levels='0.5'`")
    return levels


_BEGINNING = 4096
"""Bytes of a file that tell whether it is SAM's."""

_AGAIN = "SAM's amg.py writes it with --convert-to-rle, a file per photo"


def _sam_files(path: Path) -> list[Path]:
    """The file, or those of a folder that are all SAM's; none if it is another format."""
    found = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return found if found and all(map(_is_of_sam, found)) else []


def _is_of_sam(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        head = file.read(_BEGINNING)
    # Neither COCO's file nor Label Studio's begins with what SAM says of a mask.
    return (b'"segmentation"' in head and b'"categories"' not in head and (
        b'"stability_score"' in head or b'"predicted_iou"' in head or b'"crop_box"' in head
        or b'"image"' in head)) or head.strip() == b"[]"


def _sam_outlined(path: Path, request: labels.LabellingRequest) -> Iterator[labels.Outlined]:
    """Yield the masks of each file; it has the photo's name, or says it, as SA-1B's do."""
    for file in _sam_files(path):
        content = labels.parse_json(labels.read_text(file), file)
        try:
            yield _outlined(file, content, request)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise VplError(f"{file} is not as SAM writes it ({error})", _AGAIN) from error


def _outlined(file: Path, content: Any, request: labels.LabellingRequest) -> labels.Outlined:
    entries, name = content, file.stem
    if isinstance(content, dict):
        entries, name = content["annotations"], str(content["image"]["file_name"])
    photo = request.photo(name, str(file))
    size = (_size_of(entries[0]["segmentation"]) if entries
            else request.size(photo, str(file)))
    request.check_size(photo, size, str(file))
    return labels.Outlined(photo, size, [
        labels.Region(0, functools.partial(outline_region, entry["segmentation"], size,
                                           f"{file}: mask {number}"), score_of(entry))
        for number, entry in enumerate(entries, 1)], str(file))


def _size_of(outline: Any) -> tuple[int, int]:
    if not isinstance(outline, dict):
        raise TypeError("a mask without run lengths")
    height, width = outline["size"]
    return int(height), int(width)
