"""Import photos from a folder, and tags from a CSV.

The CSV has the columns id,labels and, optionally, split; labels are separated by ; or by spaces.
In place of labels, each class may have a column, with yes or no.
The classes are all labels in alphabetical order, unless --classes names them. Without a CSV, all
photos of the folder are imported without tags: `tag` can find tags, and train-groups uses captions
instead.

With --tile, large photos and GeoTIFFs are cut into tiles, which are photos of their own. A tile has
the tags of its photo; or --labels says where things are: a CSV with the columns
x,y,width,height,labels, x,y,labels, lon,lat,labels or easting,northing,labels, or polygons in a
GeoPackage or GeoJSON.

Example: vpltool prepare folder photos --labels tags.csv

Example: vpltool prepare folder scenes --tile 448 --labels districts.gpkg

Next: vpltool text-prototypes
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from vpltool import console, formats, options, settings
from vpltool.core import grids
from vpltool.core.photos import photo_size, read_photo, rgb_of
from vpltool.datasets import layouts, tile_tags
from vpltool.datasets.tags import remark_on
from vpltool.datasets.tile_tags import Box, Tagged
from vpltool.datasets.words import VOC, VOCABULARIES
from vpltool.errors import VplError, counted, first_few, near_path, part_of
from vpltool.file_hashes import hashes_of
from vpltool.formats import Header, OutputFolder, Photo, Workspace, atomic, rasters
from vpltool.formats.kinds import IGNORE, MOST_CLASSES
from vpltool.formats.workspace import relative_to
from vpltool.lazy import Image, np, npt
from vpltool.methods.inputs import AUTO_SIDE, Source, SourceRequest, parse_tile
from vpltool.names import short_path
from vpltool.settings import setting

FOLDER = "tiles"
"""Folder of the workspace for tiles and pages."""

_TRUE = "tiles-truth"
"""Folder of their true masks."""

_STAMP = "source.json"
"""File beside the tiles of a photo that records their origin."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a folder of photos."""

    images: Path = setting(help="Folder of photos.", metavar="IMAGES", positional=True)
    labels: Path | None = setting(
        None, "CSV of tags; columns: id, labels (or one of each class) and, optionally, split. "
              "With `tile`, also places, polygons or a raster. Default: that of the last call; "
              "without any, no photo has a tag.", metavar="FILE.csv")
    untagged: bool = setting(
        False, "Also import photos that the CSV does not list, without tags.")
    masks: Path | None = setting(
        None, "True masks ID.png or ID.tif, for eval, show and report only.", metavar="DIR")
    vocabulary: str | None = setting(
        None, "Classes, class words and background words of VOC or COCO.",
        choices=tuple(VOCABULARIES))
    tile: str = setting(
        "", "Cut GeoTIFFs and larger photos into tiles of this side, which then count as photos; "
            "auto: 512, for photos longer than three times that.",
        metavar="PIXELS|auto")
    tags_of_folder: bool = setting(
        False, "A row of the CSV may name a folder or a TIFF of several pages; its tags are those "
               "of all frames in it. The id . names the whole folder.")
    column: str = setting("", "Of polygons: the column of the classes. Default: class, label, "
                              "labels, category, type or name.", metavar="NAME", brief=False)
    layer: str = setting("", "Of a GeoPackage: the layer of the polygons. Default: all.",
                         metavar="NAME", brief=False)
    bands: str = options.bands()
    percentiles: str = options.percentiles()


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the folder and the CSV."""
    named = shared.classes or (VOCABULARIES[settings.vocabulary].classes if settings.vocabulary
                               else ())
    if settings.labels is None and not named and not shared.captioned:
        raise VplError("neither tags nor class names are given",
                       "`labels='FILE.csv'` has the tags of each photo; or `classes='FILE'` has "
                       "one class per line, and `tag()` tags the photos")
    if not settings.images.exists():
        raise VplError(f"{settings.images} does not exist",
                       near_path(settings.images) or "give the folder that holds the photos")
    for name, path, what in (("labels", settings.labels, "the CSV of tags"),
                             ("masks", settings.masks, "the folder of true masks ID.png")):
        if path and not path.exists() and name not in settings.given:
            raise VplError(
                f"{short_path(path)}, which an earlier call has named, does not exist",
                f"give {what}: `prepare('folder', images={str(settings.images)!r}, "
                f"{name}='PATH')`; or `{name}=''` forgets it")
    if settings.masks and not settings.masks.exists():
        raise VplError(f"{settings.masks} does not exist", near_path(settings.masks)
                       or "give the folder of true masks ID.png, or none")
    places = (settings.labels if settings.labels and tile_tags.has_locations(settings.labels)
              else None)
    if places and not settings.tile:
        raise VplError(f"{places} says where things are, which is for tiles",
                       "`tile='448'` cuts photos into tiles")
    labels = settings.labels
    if labels and "labels" not in settings.given:
        labels = Path(short_path(labels))
    photos, found, remarks, copies = layouts.read_folder(
        settings.images, None if places else labels, settings.masks,
        classes_known=bool(named), untagged=settings.untagged, of_folders=settings.tags_of_folder)
    if settings.masks and not any(photo.mask for photo in photos):
        remarks.append(f"{settings.masks} holds no mask of any photo; masks are called as the "
                       f"photo's id: {photos[0].id}.png or .tif; found: "
                       f"{layouts.found_in(settings.masks)}")
    if settings.tile or settings.tags_of_folder:
        return _cut_up(workspace_path, settings, named, photos, places, remarks)
    layouts.check_labels(photos, named or found)
    return replace(_source(settings, settings.images, photos, named, found, remarks),
                   file_of=copies)


def _source(settings: Settings, root: Path, photos: list[Photo], named: tuple[str, ...],
            found: tuple[str, ...], remarks: list[str]) -> Source:
    """Return the data set, with the named classes or those of the tags."""
    name = settings.images.resolve().name
    # A data set's own name brings its class words.
    name = settings.vocabulary or (f"{name}-photos" if name in VOCABULARIES else name)
    return Source(name, root, photos, named or found,
                  VOCABULARIES.get(settings.vocabulary or "", VOC).background,
                  from_tags=not named, remarks=remarks, unlisted=settings.untagged)


def _cut_up(workspace_path: Path, settings: Settings, named: tuple[str, ...],
            photos: list[Photo], places: Path | None, remarks: list[str]) -> Source:
    """Cut files into tiles and pages, which are the photos."""
    side, least = parse_tile(settings.tile, AUTO_SIDE) if settings.tile else (0, 0)
    cut = Cut(side, least, rasters.Scaling.parse(settings.bands, settings.percentiles))
    raster = (tile_tags.TagRaster(places, named)
              if places and places.suffix.lower() in rasters.SUFFIXES else None)
    regions = (tile_tags.read_regions(places, settings.column, settings.layer)
               if places and not raster else [])
    root = workspace_path / FOLDER
    made, parts, others = _cut_photos(settings.images, photos, cut, regions, root, raster)
    found = tuple(sorted({label for photo in made for label in photo.tags}))
    if raster and not found:
        raise VplError(f"{places} has no class in any tile of the photos in {settings.images}",
                       "see that they are of the same place")
    layouts.check_class_count(found, str(settings.labels), listed=bool(named))
    layouts.check_labels(made, named or found)

    def paint(workspace: Workspace, listed: Sequence[Photo]
              ) -> tuple[list[Photo], list[OutputFolder]]:
        _write_parts(workspace, settings.images, parts, cut)
        return list(listed), []

    file_of = {part.photo.id: part.source.id for part in parts if part.photo.id != part.source.id}
    if settings.tags_of_folder:
        # Frames of a film.
        file_of |= {photo.id: folder for photo in made
                    if photo.id not in file_of and (folder := photo.id.rpartition("/")[0])}
    return replace(_source(settings, root, made, named, found, [*remarks, *others]), paint=paint,
                   edited=lambda: _edited(root, settings.images, parts), file_of=file_of)


@dataclass(frozen=True)
class Cut:
    """How files are divided."""

    side: int  # of a tile; 0: only pages are separated
    least: int  # a photo is divided if its longer side has more pixels than this
    scaling: rasters.Scaling  # of GeoTIFFs


@dataclass(frozen=True)
class Part:
    """A photo that is cut out of a page of another one."""

    photo: Photo
    source: Photo
    page: int
    box: Box


class DividedFile:
    """A file that is divided; it is opened when needed."""

    def __init__(self, path: Path, cut: Cut) -> None:
        self.path, self.cut, self.pages = path, cut, 1
        self.scene = rasters.Scene(path, cut.scaling) if rasters.is_scene(path) else None
        if self.scene:
            self.scene.warn_unplaced()
        try:
            self.size = self.scene.size if self.scene else photo_size(path)
            if not self.scene and path.suffix.lower() in rasters.SUFFIXES:
                with Image.open(path) as image:
                    self.pages = int(getattr(image, "n_frames", 1))
        except OSError as error:
            raise VplError(f"{path} cannot be read ({error})", "fix it, or leave it out"
                           ) from error

    def boxes(self) -> list[Box]:
        """Return the tiles of a page, without those of nodata alone; one if it is small."""
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


def _cut_photos(images: Path, photos: Sequence[Photo], cut: Cut,
                regions: Sequence[tile_tags.Region], root: Path,
                raster: tile_tags.TagRaster | None
                ) -> tuple[list[Photo], list[Part], list[str]]:
    """Return all photos, whole ones and parts of files; the parts; and remarks."""
    whole, parts = list[Photo](), list[Part]()
    first: rasters.Scene | None = None
    unknown, known, used = 0, set[str](), set[str]()
    # What no rectangle names is unknown, also in photos without any.
    of_tiles = any(region.tells_of_tile for region in regions)
    for photo in photos:
        large = DividedFile(images / photo.image, cut)
        if large.scene:
            first = first or large.scene
            rasters.check_alike(first, large.scene)
        boxes = large.boxes()
        if large.pages == 1 and len(boxes) == 1 and not (large.scene or regions or raster):
            mask = photo.mask and relative_to(images / photo.mask, root)
            whole.append(replace(photo, image=relative_to(large.path, root), mask=mask))
            continue
        tags: list[Tagged | None] = [None] * len(boxes)
        if regions:
            here = tile_tags.placed(regions, large.scene, large.path, photo.id)
            known |= _inside(here, large)
            tags = tile_tags.tags_of_tiles(boxes, here, large.scene, unknown=of_tiles)
            used |= {origin for tagged in tags if tagged for origin in tagged.origins}
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
        raise VplError(f"{regions[0].where} and all other tags lie outside of the photos in "
                       f"{images}", "see that they are of the same place, and in the right "
                       "coordinate reference system")
    found = [*whole, *(part.photo for part in parts)]
    remarks = [part_of(unknown, unknown + len(parts), "tiles", "has", "have")
               + f" no tag in the CSV and {'is' if unknown == 1 else 'are'} left out"
               ] if unknown else []
    return found, parts, [*remarks, *_unused(regions, used)]


def _unused(regions: Sequence[tile_tags.Region], used: Collection[str]) -> list[str]:
    """Return a remark on rows of a CSV that tag no tile, or none."""
    rows = {region.where: region.photo for region in regions if region.row}
    names = [f"{where} ({key})" if key else where for where, key in rows.items()
             if where not in used]
    return remark_on(names, len(rows), "rows of places", "tags no tile", "tag no tile")


def _inside(here: Sequence[tile_tags.Region], large: DividedFile) -> set[str]:
    """Return the origins of the tags that lie in a file; refuse tags outside that name it."""
    outside = tile_tags.outside(here, large.size)
    where = [region.where for region in outside if region.photo]
    if where:
        height, width = large.size
        raise VplError(part_of(len(where), len(here), "tags", "lies", "lie")
                       + f" outside of {large.path.name}, {width}×{height} pixels: "
                       + first_few(where),
                       "x and y count pixels from the left and the top")
    return {region.where for region in here} - {region.where for region in outside}


def _part(photo: Photo, large: DividedFile, page: int, box: Box, root: Path) -> Part:
    key = f"{photo.id}/{page:05}" if large.pages > 1 else photo.id
    if (box.height, box.width) != large.size or large.pages == 1:
        key = f"{key}/{box.top:05}-{box.left:05}"
    mask = (relative_to(root.parent / _TRUE / f"{key}.png", root)
            if photo.mask and large.pages == 1 else None)
    return Part(replace(photo, id=key, image=f"{key}.png", mask=mask), photo, page, box)


def _write_parts(workspace: Workspace, images: Path, parts: Sequence[Part], cut: Cut) -> None:
    """Write all parts and their true masks; keep files that were made in the same way."""
    root = workspace.path / FOLDER
    header = Header(kind="masks", command="prepare", options={"method": "folder"})
    with console.progress("cut", len(parts)) as advance:
        for source, group in groupby(parts, lambda part: part.source):
            own = list(group)
            contents = _contents(images, source)
            stamp = {"file": contents["file"], "bands": list(cut.scaling.bands),
                     "percentiles": list(cut.scaling.percentiles), "masks": contents["masks"],
                     "parts": [[part.page, *asdict(part.box).values()] for part in own]}
            file = root / source.id / _STAMP
            if file.is_file() and formats.read_json(file, "") == stamp and all(
                    (root / part.photo.image).is_file() for part in own):
                for _ in own:
                    advance()
                continue
            large = DividedFile(images / source.image, cut)
            read_mask = (_mask_reader(images / source.mask, large, len(workspace.classes))
                         if source.mask else None)
            for part, pixels in _pixels(large, own):
                with atomic.atomic_path(root / part.photo.image) as temporary:
                    Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
                if read_mask and part.photo.mask:
                    formats.write_labels(root / part.photo.mask, read_mask(part.box), header)
                advance()
            formats.write_json(file, stamp)
    console.note(f"{root}: {counted(len(parts), 'photo', 'photos')} cut out")


def _contents(images: Path, source: Photo) -> dict[str, str]:
    """Return the hashes of a file and of its true mask, which are read only if they are new."""
    hashes = hashes_of(images, filter(None, (source.image, source.mask)))
    return {"file": hashes.get(source.image, ""), "masks": hashes.get(source.mask or "", "")}


def _edited(root: Path, images: Path, parts: Sequence[Part]) -> list[str]:
    """Return the names of files of which another content has been cut."""
    sources = {part.source.id: part.source for part in parts}
    stamps = {key: formats.read_json(file, "") for key in sources
              if (file := root / key / _STAMP).is_file()}
    return [sources[key].image for key, stamp in stamps.items()
            if not _contents(images, sources[key]).items() <= stamp.items()]


def _pixels(large: DividedFile, parts: Sequence[Part]
            ) -> Iterator[tuple[Part, npt.NDArray[np.uint8]]]:
    """Read the pixels of each part."""
    if large.scene:
        with large.scene:
            for part in parts:
                box = part.box
                yield part, large.scene.read(box.top, box.left, box.height, box.width)
        return
    for page, own in groupby(parts, lambda part: part.page):
        whole = large.read(page)
        for part in own:
            yield part, _cropped(whole, part.box)


def _cropped(whole: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(
        whole[box.top : box.top + box.height, box.left : box.left + box.width])


def _mask_reader(path: Path, large: DividedFile, classes: int
                 ) -> Callable[[Box], npt.NDArray[np.uint8]]:
    """Return a function that reads the true mask of a tile; a GeoTIFF is read in windows.

    Raises:
        VplError: the mask cannot be read, or has other pixels than its photo.
    """
    if large.scene is None or path.suffix.lower() not in rasters.SUFFIXES:
        labels = formats.read_labels(path)
        _check_size(path, labels.shape, large)
        return lambda box: _cropped(labels, box)
    file = rasters.open_raster(path)
    _check_size(path, file.shape, large)
    if file.count != 1 or np.dtype(file.dtypes[0]).kind not in "ui":
        raise VplError(f"{path} has {file.count} of {file.dtypes[0]}; a mask is one band of whole "
                       "numbers", "give the numbers of the classes, 0 for the background")
    own = large.scene.file
    if file.crs and own.crs and min(own.res) / 2 < max(
            abs(side - other) for side, other in zip(file.bounds, own.bounds, strict=True)):
        raise VplError(f"{path} does not lie where {large.path} lies",
                       "a mask must have the size of its photo; gdalwarp -te and -ts cut it")

    def read(box: Box) -> npt.NDArray[np.uint8]:
        with rasters.reading(path):
            values = file.read(1, window=((box.top, box.top + box.height),
                                          (box.left, box.left + box.width))).astype(np.int64)
        if (values == file.nodata).any() and classes >= IGNORE:
            raise VplError(f"{path} has nodata, and 255 is a class of {classes}",
                           "give it no nodata value: gdal_edit.py -unsetnodata")
        values[values == file.nodata] = IGNORE
        if odd := [value for value in (values.min(), values.max())
                   if not 0 <= value <= MOST_CLASSES + 1]:
            raise VplError(f"{path} has the value {odd[0]}, not one of 0 to {MOST_CLASSES + 1}",
                           "a pixel's value is the number of its class")
        return values.astype(np.uint8 if values.max() <= IGNORE else np.uint16)

    return read


def _check_size(path: Path, shape: tuple[int, ...], large: DividedFile) -> None:
    if shape != large.size:
        raise VplError(f"{path} is {shape[1]}×{shape[0]} pixels, its photo "
                       f"{large.size[1]}×{large.size[0]}",
                       "a mask must have the size of its photo")
