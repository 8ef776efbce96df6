"""Columns of contact sheets: folders of maps or labels, drawn as one panel per photo."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, formats
from vpltool.datasets.layouts import PHOTO_SUFFIXES, photos_below
from vpltool.errors import VplError
from vpltool.formats import IGNORE, InputFolder, Workspace, input_folders, kinds
from vpltool.formats.labels import read_legend
from vpltool.formats.manifest import MANIFEST
from vpltool.lazy import F, Image, Tensor, np, npt
from vpltool.pictures.overlays import Rgb, SheetPanel, cams_over, classes_in, labels_over

KINDS = ("cams", "masks", "predictions", "group-maps", "probabilities")

_TENSORS = {"cams": "cam", "probabilities": "probabilities"}


@dataclass(frozen=True)
class Column:
    """A folder shown as a column of a sheet.

    Args:
        name: title, as given by the user.
        source: the opened artifact; None for a plain folder of label images.
    """

    name: str
    path: Path
    source: InputFolder | None

    def file_of(self, photo_id: str) -> Path:
        """Return the path of a photo's file."""
        return (self.source.path_of(photo_id) if self.source else self.path / f"{photo_id}.png")

    def check_file(self, photo_id: str) -> None:
        """Raise a VplError with the reason if a photo has no file."""
        if not self.file_of(photo_id).exists():
            raise VplError((self.source.failed.get(photo_id) if self.source else None)
                           or f"{self.name} has no file of this photo")

    def read_labels(self, photo_id: str) -> npt.NDArray[np.uint8]:
        """Read the labels (H, W) of a photo, where the folder holds some."""
        return (self.source.read_labels(photo_id) if self.source
                else formats.read_labels(self.file_of(photo_id)))

    def panels(self, photo_id: str, picture: Rgb) -> list[SheetPanel]:
        """Draw a photo's maps or labels over its picture (H, W, 3); groups give two panels.

        Raises:
            VplError: the file is missing or damaged, or comes from another run than its folder.
        """
        self.check_file(photo_id)
        if self.source is None or self.source.kind in ("masks", "predictions"):
            labels = self.read_labels(photo_id)
            return [SheetPanel(self.name, labels_over(picture, labels), classes_in(labels))]
        tensors = self.source.read_tensors(photo_id)
        if self.source.kind == "group-maps":
            return [_group_panel(f"{self.name}, stage {number}", tensors[stage], picture)
                    for number, stage in enumerate(("first", "second"), 1)]
        classes = tensors["classes"].tolist()
        maps = tensors[_TENSORS[self.source.kind]].float().numpy()
        return [SheetPanel(self.name, cams_over(picture, maps, classes), classes)]


def _group_panel(name: str, shares: Tensor, picture: Rgb) -> SheetPanel:
    """Draw the strongest of the groups (G, h, w) at each pixel; colours do not denote classes."""
    whole = F.interpolate(shares.float()[None], size=picture.shape[:2], mode="bilinear",
                          align_corners=False)[0]
    strongest = whole.argmax(dim=0)
    return SheetPanel(f"{name}: {len(strongest.unique())} of {len(shares)} groups",
                      labels_over(picture, (1 + strongest).byte().numpy()))


def open_column(workspace: Workspace, name: str, split: str) -> Column:
    """Open a folder by `cams/NAME` or path.

    Raises a VplError if there is none, or its classes differ from the workspace's.
    """
    for path in (Path(name), workspace.path / name):
        if holds_labels(path):
            return Column(name, path, None)
    found = formats.find_folder(workspace.path, KINDS, name, split, "`cam()` makes one")
    workspace.check_classes(found.header, found.path)
    return Column(name, found.path, found)


def open_columns(workspace: Workspace, names: Sequence[str], split: str) -> list[Column]:
    """Open folders by name or path; without names, all of a split that can be opened.

    Raises a VplError if a named folder does not exist, or has other classes.
    """
    if names:
        return [open_column(workspace, name, split) for name in names]
    columns = []
    for name in columns_there(workspace.path, split):
        try:
            columns.append(open_column(workspace, name, split))
        except VplError as error:
            console.warn(f"{name} is skipped: {error.message}")
    return columns


def bare_workspace(work: Path, names: Sequence[str]) -> Workspace:
    """Make an in-memory workspace for photos and masks outside of any workspace.

    Class names come from the first `classes.txt` beside masks, as `export` writes it; otherwise
    classes are numbered.
    """
    listed = next(filter(None, (read_legend(Path(name)) for name in names)),
                  ["background", *(f"class {index}" for index in range(1, IGNORE))])
    return Workspace(work, "", ".", tuple(listed[1:]), (), "", "")


def columns_there(work: Path, split: str) -> list[str]:
    """Return the names of all maps and labels of a split, except probabilities."""
    return sorted(kinds.result_name(kind, name) for kind in KINDS[:4]
                  for name in input_folders.names_in(kinds.folder_of(work, kind), split))


def holds_labels(path: Path) -> bool | None:
    """Return whether a folder holds label images, that is, index PNGs, rather than photos.

    None: it holds neither, or vpltool made it.
    """
    if not path.is_dir() or any(path.rglob(MANIFEST)):
        return None
    for first in photos_below(path):
        try:
            with Image.open(first) as image:
                return image.format == "PNG" and image.mode in ("P", "L")
        except OSError:
            return False
    return None


def new_photos(columns: Sequence[Column], work: Path) -> dict[str, Path]:
    """Return the paths of the photos shown in columns, by id; empty if they are the workspace's.

    Raises a VplError if the columns show different photos.
    """
    found = [(column.name, named_photos_of(column.source, work))
             for column in columns if column.source]
    paths: dict[str, Path] = {}
    for name, photos in found:
        first, shown = found[0]
        if bool(photos) != bool(shown) or any(paths.get(key, path) != path
                                              for key, path in photos.items()):
            raise VplError(f"{first} and {name} are of different photos",
                           "show them apart, or name the folder of all photos: `photos='DIR'`")
        paths |= photos
    return paths


def named_photos_of(source: InputFolder, work: Path) -> dict[str, Path]:
    """Return the paths of photos that `predict` was given, by id; empty for a split."""
    if not source.header.images:
        return {}
    return {key: _photo_of(key, [work / image for image in (
                formats.describe(source.path_of(key)).header or source.header).images])
            for key in source.photo_ids()}


def _photo_of(key: str, images: Sequence[Path]) -> Path:
    """Find the photo of an id among files and folders; it may no longer exist."""
    for image in images:
        if image.suffix.lower() in PHOTO_SUFFIXES and image.stem == key:
            return image
        named = image / key
        for path in named.parent.glob(f"{glob.escape(named.name)}.*"):
            if path.suffix.lower() in PHOTO_SUFFIXES and path.stem == named.name:
                return path
    return images[0] / key
