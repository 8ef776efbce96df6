"""Shared parts of exports that are a folder of photos and labels, for labelling and training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from vpltool import console, options, settings
from vpltool.core import photos
from vpltool.core.outlines import remove_small_regions
from vpltool.core.photos import read_photo
from vpltool.errors import VplError, check_package, part_of
from vpltool.formats import IGNORE, Photo, archives
from vpltool.formats.corrections import import_call
from vpltool.formats.labels import png_bytes
from vpltool.lazy import Image, np, npt
from vpltool.methods.inputs import Predictions
from vpltool.pictures.colours import class_palette
from vpltool.settings import NoEffect, setting, warn_without_effect

Members = Iterator[archives.Member]
"""Files of a folder."""

JPEG = (".jpg", ".jpeg")

POLYGON_AREA = 16
"""Default minimum size of a region in formats of polygons: smaller regions are mostly noise."""

_STRIPPED = {*JPEG, ".jpe", ".jfif", ".png", ".webp", ".bmp"}
"""Suffixes of photos without metadata, or from which it can be removed without decoding."""

_PACKAGES = {"cv2": "OpenCV", "pycocotools": "pycocotools", "yaml": "PyYAML"}


# Settings that formats share, as in `options`.
tolerance_setting = partial(
    setting, 0.0, "Drop polygon points that are this close to the line, in pixels; 0: the exact "
    "mask.", low=0, metavar="PIXELS")

min_area_setting = partial(
    setting, help="Minimum size of a region in pixels; smaller ones are removed. 0: keep all.",
    low=0, metavar="PIXELS")

small_setting = partial(
    setting, help="What smaller regions become: background (drop), or the label around them "
    "(merge).", choices=("drop", "merge"),
    no_effect=[NoEffect({"min_area": (0,)}, "all regions stay")])

keep_exif_setting = partial(
    setting, False, "Copy photos as they are, with EXIF (place, owner, date) and comments; "
    "otherwise only orientation and colour profile stay.", brief=False)

corrections_setting = partial(setting, True, "Use corrected masks in place of computed ones.")


@dataclass(frozen=True, kw_only=True)
class LabellingSettings(settings.Settings):
    """Settings that all exports for labelling and training share."""

    split: str = options.split("train")
    min_area: int = min_area_setting(0)
    small: str = small_setting("drop")
    photos: str = setting("copy", "Copy the photos beside the labels, or not (none).",
                          choices=("copy", "none"))
    keep_exif: bool = keep_exif_setting()
    corrections: bool = corrections_setting()


@dataclass(frozen=True, kw_only=True)
class PolygonSettings(LabellingSettings):
    """Settings of formats of polygons."""

    min_area: int = min_area_setting(POLYGON_AREA)
    small: str = small_setting("merge")
    tolerance: float = tolerance_setting()


def classes_in(labels: npt.NDArray[np.uint8]) -> list[int]:
    """Return the class indices in labels (H, W), ascending, without background and 255."""
    return [int(label) for label in np.unique(labels) if label not in (0, IGNORE)]


def flat_names(photos: Sequence[Photo]) -> dict[str, str]:
    """Map ids to names without folders, `sub/cat` to `sub__cat`: tools find labels by name alone.

    Raises a VplError if two photos would have the same name.
    """
    names = {photo.id: photo.id.replace("/", "__") for photo in photos}
    name, count = Counter(names.values()).most_common(1)[0]
    if count > 1:
        twice = [key for key in names if names[key] == name]
        raise VplError(f"photos {twice[0]} and {twice[1]} would both be called {name}",
                       "rename one of them")
    return names


class PhotoFiles:
    """Photos and their labels as files of a folder for another program.

    Photos with suffixes that the program does not accept become PNGs. With None, it accepts any
    suffix, but one for all photos: all become PNGs unless all are JPEGs. `splits` are those in the
    folder.
    """

    def __init__(self, predictions: Predictions, settings: LabellingSettings, path: Path,
                 suffixes: Collection[str] | None, splits: Sequence[str]) -> None:
        self.predictions, self.settings, self.path = predictions, settings, path
        self.classes, self.splits = predictions.workspace.classes, {*splits, settings.split}
        self.names = flat_names(predictions.photos)
        own = {photo.id: copied_suffix(photo, settings.keep_exif) for photo in predictions.photos}
        if suffixes is None:
            jpeg = all(suffix in JPEG for suffix in own.values())
            self.suffixes = dict.fromkeys(own, ".jpg" if jpeg else ".png")
        else:
            self.suffixes = {key: suffix if suffix in suffixes else ".png"
                             for key, suffix in own.items()}

    def name(self, photo: Photo) -> str:
        """Return the name of a photo's file, without folders."""
        return self.names[photo.id] + self.suffixes[photo.id]

    def labels(self, *, keeps_ignored: bool) -> Iterator[tuple[Photo, npt.NDArray[np.uint8]]]:
        """Yield each photo with its labels (H, W), without small regions.

        If the format cannot express 255, a warning counts the photos concerned.
        """
        warn_without_effect(self.settings)
        lossy, least = 0, self.settings.min_area
        for photo, labels in self.predictions.each():
            if least:
                labels = remove_small_regions(labels, least, merge=self.settings.small == "merge")
            lossy += bool((labels == IGNORE).any())
            yield photo, labels
        if lossy and not keeps_ignored:
            console.warn(part_of(lossy, len(self.predictions.photos), "photos", "has", "have")
                         + f" pixels of no known class ({IGNORE}); this format cannot express "
                         "that: they become background")

    def label_images(self, folder: str) -> Members:
        """Yield the labels below a folder, as greyscale PNGs."""
        for photo, labels in self.labels(keeps_ignored=True):
            yield f"{folder}/{self.names[photo.id]}.png", grey_png(labels)

    def photos(self, folder: str) -> Members:
        """Yield the readable photos below a folder, "" for the top; none if not wanted."""
        for photo in self.predictions.photos if self.settings.photos == "copy" else ():
            path = self.predictions.workspace.image_path(photo)
            try:
                content = copied_bytes(path, self.suffixes[photo.id], self.settings.keep_exif)
            except OSError as error:
                self.predictions.failed[photo.id] = f"{path.name}: {error}"
                continue
            yield f"{folder}/{self.name(photo)}".lstrip("/"), content


Chosen = TypeVar("Chosen", bound=LabellingSettings)


def exporter(form: str, suffixes: Collection[str] | None,
             members: Callable[[PhotoFiles, Chosen], Members], *modules: str,
             splits: str = "") -> Callable[[Predictions, Path, Chosen], list[Path]]:
    """Return the `export` of a format: a folder of the files that `members` yields.

    It needs the modules. For `suffixes` see `PhotoFiles`. `splits` is a folder in it with a folder
    for each split; those of other splits than the exported one are kept.
    """
    def export(predictions: Predictions, path: Path, settings: Chosen) -> list[Path]:
        """Write the folder."""
        for module in (*modules, *(["cv2"] if settings.min_area else [])):
            check_package(module, f"{_PACKAGES[module]} is not installed",
                          "pip install 'vpltool[labelling]'")
        kept = archives.splits_in(path, form, splits) if splits else []
        files = PhotoFiles(predictions, settings, path, suffixes, kept)
        archives.write_tree(path, members(files, settings), form, kept,
                            rescue=import_call(predictions.workspace, path))
        return [path]

    return export


def copied_suffix(photo: Photo, keep_exif: bool) -> str:
    """Return the suffix of a photo's copy: its own, or that of PNGs to remove metadata."""
    suffix = Path(photo.image).suffix.lower()
    return suffix if keep_exif or suffix in _STRIPPED else ".png"


def copied_bytes(path: Path, suffix: str, keep_exif: bool) -> bytes:
    """Return the content of a photo's copy with a suffix, with metadata or without.

    Raises an OSError if it cannot be read.
    """
    suffixes = {path.suffix.lower(), suffix.lower()}
    same = len(suffixes) == 1 or suffixes <= {*JPEG}
    content = path.read_bytes()
    if same and keep_exif:
        return content
    if same and (clean := photos.without_metadata(content)) is not None:
        return clean
    return content if same and content.startswith(b"BM") else png_bytes(read_photo(content))


def grey_png(labels: npt.NDArray[np.uint8]) -> bytes:
    """Encode labels (H, W) as a greyscale PNG: programs that read colours get the same values."""
    content = BytesIO()
    Image.fromarray(labels).save(content, format="PNG")
    return content.getvalue()


def hex_colour(index: int) -> str:
    """Return the colour of a class in our pictures, as #RRGGBB: unlike VOC's, clear over photos."""
    return "#" + bytes(class_palette()[3 * index : 3 * index + 3]).hex()
