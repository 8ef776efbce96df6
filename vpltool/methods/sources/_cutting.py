"""Photos that are cut out of larger files: tiles of a photo or GeoTIFF, pages of a TIFF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from vpltool import console
from vpltool.core import grids
from vpltool.core.photos import photo_size, read_photo, rgb_of
from vpltool.datasets.layouts import relative_name
from vpltool.datasets.tag_raster import TagRaster
from vpltool.datasets.tags import some
from vpltool.datasets.tile_tags import Box, Located, Region, Tagged, outside, placed, tags_of_tiles
from vpltool.errors import VplError, counted, part_of
from vpltool.file_hashes import identity_of_file
from vpltool.formats import Header, OutputFolder, Photo, Workspace, read_labels, write_labels
from vpltool.formats.atomic import atomic_path
from vpltool.formats.rasters import Scaling, Scene, check_alike, is_scene
from vpltool.formats.storage import read_json, write_json
from vpltool.lazy import Image, np, npt

FOLDER = "tiles"
"""Folder of the workspace that tiles and pages are written to."""

_TRUE = "tiles-truth"
"""Folder of their true masks."""

_STAMP = "source.json"
"""Beside the tiles of a file: what they were made of."""


@dataclass(frozen=True)
class Cut:
    """How files are divided.

    Args:
        side: of a tile; 0: only pages are taken apart.
        least: a photo is divided if its longer side has more pixels than this.
        scaling: of GeoTIFFs.
    """

    side: int
    least: int
    scaling: Scaling


@dataclass(frozen=True)
class Part:
    """A photo that is cut out: of which photo, which page, and where."""

    photo: Photo
    source: Photo
    page: int
    box: Box


class Large:
    """A file that is taken apart; it is opened where that is needed.

    Args:
        path: the file.
        cut: how.
    """

    def __init__(self, path: Path, cut: Cut) -> None:
        self.path, self.cut = path, cut
        self.scene = Scene(path, cut.scaling) if is_scene(path) else None
        if self.scene:
            self.scene.warn_unplaced()
        try:
            self.size = self.scene.size if self.scene else photo_size(path)
            self.pages = 1 if self.scene else _pages(path)
        except OSError as error:
            raise VplError(f"{path} cannot be read ({error})", "fix it, or leave it out"
                           ) from error

    def boxes(self) -> list[Box]:
        """The tiles of a page, without those that are nodata alone; one if it is small."""
        height, width = self.size
        side = self.cut.side
        if not side or not (self.scene or max(height, width) > self.cut.least):
            return [Box(0, 0, height, width)]
        found = [Box(down.start, across.start, min(side, height), min(side, width))
                 for down in grids.spans(height, side, 0) for across in grids.spans(width, side, 0)]
        return [box for box in found if not self.scene or self.scene.may_be_valid(
            box.top, box.left, box.height, box.width)]

    def read(self, page: int) -> npt.NDArray[np.uint8]:
        """Read a page whole: RGB (H, W, 3)."""
        if self.pages == 1:
            return read_photo(self.path)
        with Image.open(self.path) as image:
            image.seek(page)
            return rgb_of(image)


def _pages(path: Path) -> int:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    with Image.open(path) as image:
        return int(getattr(image, "n_frames", 1))


def cut_photos(images: Path, photos: Sequence[Photo], cut: Cut, regions: Sequence[Located],
               root: Path, raster: TagRaster | None = None
               ) -> tuple[list[Photo], list[Part], list[str]]:
    """Say which photos are cut out of files; nothing is written.

    Args:
        images: folder of the files.
        photos: the files, with the tags of each.
        cut: how they are divided.
        regions: what is where in them; empty: tiles have the tags of their file.
        root: the folder that the new photos' paths are relative to.
        raster: what is where, in place of regions.

    Returns:
        the photos: what is cut out, and files that stay whole; the former; and remarks.

    Raises:
        VplError: a file cannot be opened, has other bands than the first, or a tag is outside.
    """
    whole: list[Photo] = []
    parts: list[Part] = []
    scenes: list[Scene] = []
    unknown, known = 0, set[str]()
    for photo in photos:
        large = Large(images / photo.image, cut)
        if large.scene:
            scenes.append(large.scene)
            check_alike([scenes[0], large.scene])
        boxes = large.boxes()
        if large.pages == 1 and len(boxes) == 1 and not (
                large.scene or regions or raster):
            whole.append(replace(photo, image=relative_name(large.path, root),
                                 mask=photo.mask and relative_name(images / photo.mask, root)))
            continue
        tags: list[Tagged | None] = [None] * len(boxes)
        if regions:
            here = placed(regions, large.scene, large.path, photo.id)
            lost = outside(here, large.size)
            _check_inside(here, lost, large)
            known |= {region.where for region in here} - {region.where for region in lost}
            tags = tags_of_tiles(boxes, here)
        elif raster:
            tags = [*raster.tags_of(boxes, large.scene, large.path, large.size)]
        for page in range(large.pages):
            for box, tagged in zip(boxes, tags, strict=True):
                if regions and tagged is None:
                    unknown += 1
                    continue
                part = _part(photo, large, page, box, root)
                parts.append(replace(part, photo=replace(
                    part.photo, tags=tagged.labels, splits=(tagged.split,) if tagged.split
                    else photo.splits)) if tagged else part)
    if regions and not known:
        raise VplError(f"{regions[0].region.where} and all other tags lie outside of the photos in "
                       f"{images}", "see that they are of the same place, and in the right "
                       "coordinate reference system")
    found = [*whole, *(part.photo for part in parts)]
    remarks = [part_of(unknown, unknown + len(parts), "tiles", "has", "have")
               + " no tag in the CSV and is left out" * (unknown == 1)
               + " no tag in the CSV and are left out" * (unknown > 1)] if unknown else []
    return found, parts, remarks


def _check_inside(here: Sequence[Region], lost: Sequence[Region], large: Large) -> None:
    """Check that tags that name a photo lie in it.

    Raises:
        VplError: one does not.
    """
    where = [region.where for region in lost if region.photo]
    if where:
        height, width = large.size
        raise VplError(part_of(len(where), len(here), "tags", "lies", "lie")
                       + f" outside of {large.path.name}, {width}×{height} pixels: {some(where)}",
                       "x and y count pixels from the left and the top")


def _part(photo: Photo, large: Large, page: int, box: Box, root: Path) -> Part:
    key = f"{photo.id}/{page:05}" if large.pages > 1 else photo.id
    if (box.height, box.width) != large.size or large.pages == 1:
        key = f"{key}/{box.top:05}-{box.left:05}"
    mask = (relative_name(root.parent / _TRUE / f"{key}.png", root)
            if photo.mask and large.pages == 1 else None)
    return Part(replace(photo, id=key, image=f"{key}.png", mask=mask), photo, page, box)


def write_parts(workspace: Workspace, images: Path, parts: Sequence[Part], cut: Cut
                ) -> list[OutputFolder]:
    """Write what is cut out, and its true masks; files that were made so before are kept."""
    root = workspace.path / FOLDER
    with console.progress("cut", len(parts)) as advance:
        for source, group in groupby(parts, lambda part: part.source):
            own = list(group)
            path = images / source.image
            masks = images / source.mask if source.mask else None
            stamp = _stamp(path, masks, own, cut)
            file = root / source.id / _STAMP
            if file.is_file() and read_json(file, "") == stamp and all(
                    (root / part.photo.image).is_file() for part in own):
                for _ in own:
                    advance()
                continue
            large = Large(path, cut)
            for part, pixels in _pixels(large, own):
                with atomic_path(root / part.photo.image) as temporary:
                    Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
                advance()
            if masks:
                _write_masks(root, masks, own, large)
            write_json(file, stamp)
    console.note(f"{root}: {counted(len(parts), 'photo', 'photos')} cut out")
    return []


def _stamp(path: Path, masks: Path | None, parts: Sequence[Part], cut: Cut) -> dict[str, object]:
    """What the tiles of a file depend on, as JSON has it."""
    return {"file": identity_of_file(path), "bands": list(cut.scaling.bands),
            "percentiles": list(cut.scaling.percentiles),
            "masks": identity_of_file(masks) if masks else "",
            "parts": [[part.page, *asdict(part.box).values()] for part in parts]}


def _pixels(large: Large, parts: Sequence[Part]) -> Iterator[tuple[Part, npt.NDArray[np.uint8]]]:
    """Read each part: of a scene its window, of a photo what is cut of it."""
    if large.scene:
        for part in parts:
            box = part.box
            yield part, large.scene.read(box.top, box.left, box.height, box.width)
        return
    for page, own in groupby(parts, lambda part: part.page):
        whole = large.read(page)
        for part in own:
            yield part, np.ascontiguousarray(_cropped(whole, part.box))


def _cropped(whole: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    return whole[box.top : box.top + box.height, box.left : box.left + box.width]


def _write_masks(root: Path, masks: Path, parts: Sequence[Part], large: Large) -> None:
    """Cut the true mask of a file as the file is cut."""
    labels, size = read_labels(masks), large.size
    if labels.shape != size:
        raise VplError(f"{masks} is {labels.shape[1]}×{labels.shape[0]} pixels, its photo "
                       f"{size[1]}×{size[0]}", "a mask has a pixel for each of its photo's")
    header = Header(kind="masks", command="prepare", options={"method": "folder"})
    for part in parts:
        if part.photo.mask:
            write_labels(root / part.photo.mask, np.ascontiguousarray(_cropped(labels, part.box)),
                         header)

