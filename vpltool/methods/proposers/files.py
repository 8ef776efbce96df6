"""Proposals of other tools: COCO, SAM's own JSON, YOLO, Label Studio, CVAT, LabelMe, or PNGs.

The format is detected, except that of a folder of PNGs, which --format names. labels: a pixel's
value is its class (classes.txt beside the PNGs, or the workspace's); each connected part is a
proposal with its word. instances: a value is a thing, in 8 or 16 bits or COCO's panoptic colours.
masks: a folder per photo with a PNG per mask, and SAM's metadata.csv if there is one. soft: a grey
map or a cut-out photo, as rembg writes them; each level divides it. Such tools learned from masks
that people drew, so what is made of their proposals says so.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool import console, settings
from vpltool.core.proposals import Proposal, Proposals
from vpltool.errors import VplError, check_package, counted, first_few
from vpltool.formats import IGNORE, Photo, identity_of_file, identity_of_many, read_drawn_labels
from vpltool.formats.labels import read_legend, read_numbers, read_soft, size_of_labels
from vpltool.lazy import np, npt, scipy
from vpltool.methods import inputs, labels
from vpltool.methods.exports.coco import outline_region, score_of
from vpltool.settings import NoEffect, setting

READS = ("photo",)
SUPERVISION = "tags, and masks that another tool learned from"

FORMS = ("labels", "instances", "masks", "soft")
_OTHERS = ("auto", *(form for form in FORMS if form != "soft"))

Fits = Callable[[tuple[int, int], str], None]
"""Checks (height, width) of a file or entry before its pixels are decoded."""

Made = Callable[[Fits], Proposals]
"""Reads the proposals of a photo."""


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
    """Return a hash of all files; raise a VplError if there are none in a known format."""
    found, base = _files(settings), _path(settings)
    return {"files": identity_of_many({
        path.relative_to(base).as_posix(): identity_of_file(path) for path in found})}


def propose(request: inputs.ProposalRequest, settings: Settings
            ) -> Iterator[tuple[str, Proposals | str]]:
    """Find the reader; the result yields photos in the order of the files, then all others."""
    _files(settings)
    names = labels.ProposalNames(request.root, request.classes, request.photos)
    return _each(request, settings, names)


def _path(settings: Settings) -> Path:
    if settings.path is None:
        raise VplError("`path` is missing", "`propose(method='files', path='DIR')` names the file "
                                            "or folder that another tool wrote")
    if not settings.path.exists():
        raise VplError(f"{settings.path} does not exist", "give a file or folder of another tool")
    return settings.path


def _files(settings: Settings) -> list[Path]:
    """Return the files that are read; raise a VplError if there are none, or without a package."""
    path = _path(settings)
    if settings.format != "auto":
        levels_of(settings.levels)
        found = sorted(file for file in path.glob("*/*" if settings.format == "masks" else "**/*")
                       if file.suffix.lower() == ".png" or file.name == _METADATA)
        if not found:
            raise VplError(f"{path} holds no PNG", "`format='masks'`: a folder per photo with a "
                           "PNG per mask; others: a PNG per photo")
        return found
    if found := _sam_files(path):
        check_package("pycocotools", "SAM's run lengths need pycocotools, which is not installed",
                      "pip install 'vpltool[labelling]'")
        return found
    tool = labels.find_reader(path)
    if tool is None:
        raise VplError(f"{path} is in no format that is detected",
                       "of PNGs, say what they hold: " + ", ".join(
                           f"`format='{form}'`" for form in FORMS))
    return list(tool[1].files(path))


def _each(request: inputs.ProposalRequest, settings: Settings, names: labels.ProposalNames
          ) -> Iterator[tuple[str, Proposals | str]]:
    wanted = dict(request.jobs)
    for photo, made in _entries(settings, names):
        if photo.id in wanted:
            del wanted[photo.id]
            yield photo.id, _fitted(photo, made, names, resize=settings.resize)
    if wanted:
        console.warn(counted(len(wanted), f"photo has no proposals in {settings.path}",
                             f"photos have no proposals in {settings.path}")
                     + f": {first_few(sorted(wanted))}")
    for key in wanted:
        yield key, _fitted(names.photos[key], lambda _: Proposals.of((1, 1), ()), names,
                           resize=True)


def _entries(settings: Settings, names: labels.ProposalNames) -> Iterator[tuple[Photo, Made]]:
    """Yield each photo of the files, and a function that reads its proposals."""
    path = _path(settings)
    if settings.format != "auto":
        files = _files(settings)
        for place in (sorted({file.parent for file in files}) if settings.format == "masks"
                      else files):
            yield (names.photo(place.relative_to(path).as_posix(), str(place)),
                   functools.partial(_READERS[settings.format], place, settings, names))
        return
    sam = bool(_sam_files(path))
    tool = None if sam else labels.find_reader(path)
    if tool is None or hasattr(tool[1], "outlined"):
        for outlined in (tool[1].outlined if tool else _sam_outlined)(path, names):
            yield outlined.photo, functools.partial(_of_regions, outlined,
                                                    None if sam else names.word)
        return
    for labelled in tool[1].read(path, names):
        yield labelled.photo, functools.partial(_of_labels, labelled, names)


def _of_regions(outlined: labels.Outlined, word: Callable[[int], str] | None, fits: Fits
                ) -> Proposals:
    fits(outlined.size, outlined.where)
    return Proposals.of(outlined.size, (
        Proposal(region.inside(), region.score, word(region.label) if word else "")
        for region in outlined.regions))


def _of_labels(labelled: labels.Labelled, names: labels.ProposalNames, fits: Fits) -> Proposals:
    size = (labelled.labels.shape[0], labelled.labels.shape[1])
    fits(size, labelled.where)
    return Proposals.of(size, (
        Proposal(labelled.labels == label, 1.0, names.word(label))
        for label in np.unique(labelled.labels).tolist() if label not in (0, IGNORE)))


def _fitted(photo: Photo, made: Made, names: labels.ProposalNames, *, resize: bool
            ) -> Proposals | str:
    """Return the proposals of a photo at its size, or the reason why there are none."""
    try:
        size = names.size(photo, photo.id)

        def fits(found: tuple[int, int], where: str) -> None:
            if not resize and tuple(found) != size:
                raise VplError(f"{where}: {found[0]}×{found[1]} (height×width), its photo "
                               f"{photo.id} is {size[0]}×{size[1]}",
                               "`resize=True` scales it")

        return made(fits).resized(size)
    except VplError as error:
        return f"{error.message}{f' ({error.hint})' if error.hint else ''}"
    except (OSError, ValueError, MemoryError) as error:
        return f"{photo.id}: {error or type(error).__name__}"


_METADATA = "metadata.csv"
"""SAM's file beside a photo's masks."""


def _sized(path: Path, fits: Fits) -> tuple[int, int]:
    size = size_of_labels(path)
    fits(size, str(path))
    return size


def _of_label_image(path: Path, settings: Settings, names: labels.ProposalNames, fits: Fits
                    ) -> Proposals:
    """Read each connected part of a class as a proposal with its word; 0 and 255 are none."""
    size = _sized(path, fits)
    legend = read_legend(_path(settings)) or (labels.BACKGROUND_WORDS[0], *names.classes)
    words = {value: name for value, name in enumerate(legend) if name}
    values = read_drawn_labels(path, other_palettes=True)
    found = [value for value in np.unique(values).tolist() if value not in (0, IGNORE)]
    if odd := [value for value in found if value not in words]:
        raise VplError(f"{path} has the value {odd[0]}, which is not a class",
                       "a line of classes.txt beside the PNGs names each value, from 0 on")
    return Proposals.of(size, (Proposal(part, 1.0, words[value]) for value in found
                               for part in _parts(values == value)))


def _parts(inside: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.bool_]]:
    """Return the 8-connected parts of a mask."""
    numbers, count = scipy.ndimage.label(inside, np.ones((3, 3)))
    return (numbers == number for number in range(1, count + 1))


def _of_instances(path: Path, _settings: Settings, _names: labels.ProposalNames, fits: Fits
                  ) -> Proposals:
    """Read each number of an instance image as a proposal; 0 is none."""
    size, numbers = _sized(path, fits), read_numbers(path)
    return Proposals.of(size, (Proposal(numbers == number)
                               for number in np.unique(numbers[numbers > 0]).tolist()))


def _of_masks(folder: Path, _settings: Settings, _names: labels.ProposalNames, fits: Fits
              ) -> Proposals:
    """Read each PNG of a photo's folder as a mask, with the IoU that SAM predicts, if any."""
    paths = [path for path in sorted(folder.glob("*")) if path.suffix.lower() == ".png"]
    if not paths:
        raise VplError(f"{folder} holds no PNG", "a folder per photo holds a PNG per mask")
    scores, file = dict[str, float](), folder / _METADATA
    try:
        # As SAM's amg.py writes it.
        for row in csv.DictReader(labels.read_text(file).splitlines() if file.exists() else ()):
            scores[row["id"]] = float(np.clip(float(row["predicted_iou"]), 0, 1))
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise VplError(f"{file} lacks id and predicted_iou ({error})",
                       "without the file, all masks count alike") from error
    sizes = [_sized(path, fits) for path in paths]
    return Proposals.of(sizes[0], (
        Proposal(read_soft(path) > 127, scores.get(path.stem, 1.0)) for path in paths))


def _of_soft(path: Path, settings: Settings, _names: labels.ProposalNames, fits: Fits
             ) -> Proposals:
    """Read the regions above and below each level of a soft map."""
    size = _sized(path, fits)
    return Proposals.of(size, of_soft_map(read_soft(path), levels_of(settings.levels)))


_READERS: Mapping[str, Callable[[Path, Settings, labels.ProposalNames, Fits], Proposals]] = {
    "labels": _of_label_image, "instances": _of_instances, "masks": _of_masks, "soft": _of_soft}


def of_soft_map(values: npt.NDArray[np.uint8], levels: tuple[float, ...]) -> Iterator[Proposal]:
    """Yield, for each level in (0, 1), the regions of a soft map (H, W) above and below it.

    255 is certain. A mask's score is the mean certainty inside it.
    """
    soft = values.astype(np.float32) / 255
    for level in levels:
        above = soft >= level
        for inside, sure in ((above, soft), (~above, 1 - soft)):
            if inside.any():
                yield Proposal(inside, float(sure[inside].mean()))


def levels_of(text: str) -> tuple[float, ...]:
    """Parse levels of soft maps, separated by commas; VplError unless all are between 0 and 1."""
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        levels = (0.0,)
    if not all(0 < level < 1 for level in levels):
        raise VplError(f"`levels={text!r}` is not a list of numbers between 0 and 1",
                       "`levels='0.5'`")
    return levels


_BEGINNING = 4096
"""Bytes of a file that show whether it is SAM's."""

_AGAIN = "SAM's amg.py writes it with --convert-to-rle, a file per photo"


def _sam_files(path: Path) -> list[Path]:
    """Return the file, or those of a folder, if all are SAM's; otherwise none."""
    found = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return found if found and all(map(_is_of_sam, found)) else []


def _is_of_sam(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        head = file.read(_BEGINNING)
    # Neither COCO's file nor Label Studio's begins with SAM's entries of a mask.
    return (b'"segmentation"' in head and b'"categories"' not in head and any(
        name in head for name in (b'"stability_score"', b'"predicted_iou"', b'"crop_box"',
                                  b'"image"'))) or head.strip() == b"[]"


def _sam_outlined(path: Path, request: labels.LabellingRequest) -> Iterator[labels.Outlined]:
    """Yield the masks of each file; it has the photo's name, or contains it, as SA-1B's do."""
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
    outline = entries[0]["segmentation"] if entries else {"size": request.size(photo, str(file))}
    if not isinstance(outline, dict):
        raise TypeError("a mask without run lengths")
    height, width = map(int, outline["size"])
    size = (height, width)
    request.check_size(photo, size, str(file))
    return labels.Outlined(photo, size, [
        labels.Region(0, functools.partial(outline_region, entry["segmentation"], size,
                                           f"{file}: mask {number}"), score_of(entry))
        for number, entry in enumerate(entries, 1)], str(file))
