"""Import photos from a folder, and tags from a CSV.

The CSV has the columns id,labels and, optionally, split; labels are separated by ; or by spaces.
The classes are all labels in alphabetical order, unless --classes names them. Without a CSV, all
photos of the folder are imported without tags: `tag` can find tags, and train-groups uses captions
instead.

With --tile, large photos and GeoTIFFs are cut into tiles, which are photos of their own. A tile has
the tags of its photo; or --labels says where things are: a CSV with the columns
x,y,width,height,labels, x,y,labels, lon,lat,labels or easting,northing,labels, or polygons in a
GeoPackage.

Example: vpltool prepare folder photos --labels tags.csv

Example: vpltool prepare folder scenes --tile 448 --labels districts.gpkg

Next: vpltool text-prototypes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import options, settings
from vpltool.datasets import layouts, tile_tags
from vpltool.datasets.words import VOC, VOCABULARIES
from vpltool.errors import VplError, near_path
from vpltool.formats import OutputFolder, Photo, Workspace
from vpltool.formats.rasters import SUFFIXES, Scaling
from vpltool.methods.inputs import Source, SourceRequest, parse_tile
from vpltool.methods.sources import _cutting
from vpltool.settings import setting

READS = ()


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a folder of photos."""

    images: Path = setting(help="Folder of photos.", metavar="IMAGES", positional=True)
    labels: Path | None = setting(
        None, "CSV of tags; columns: id, labels and, optionally, split. With `tile`, also places, "
              "polygons or a raster. Default: that of the last call; without any, no photo has a "
              "tag.", metavar="FILE.csv")
    untagged: bool = setting(
        False, "Also import photos that the CSV does not list, without tags.")
    masks: Path | None = setting(None, "True masks ID.png, for eval, show and report only.",
                                 metavar="DIR")
    vocabulary: str | None = setting(
        None, "Classes, class words and background words of VOC or COCO.",
        choices=tuple(VOCABULARIES))
    tile: str = setting(
        "", "Cut photos larger than this into tiles of this side, and GeoTIFFs, which are photos "
            "of their own; auto: 512, of photos longer than three times that.",
        metavar="PIXELS|auto")
    tags_of_folder: bool = setting(
        False, "A row of the CSV may name a folder, or a TIFF of several pages, and so all frames "
               "in it; a point is the whole folder.")
    column: str = setting("", "Of a GeoPackage: the column of the classes. Default: class, label, "
                              "labels, category, type or name.", metavar="NAME", brief=False)
    bands: str = options.bands()
    percentiles: str = options.percentiles()


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the folder and the CSV."""
    known = VOCABULARIES[settings.vocabulary] if settings.vocabulary else None
    named = shared.classes or (known.classes if known else ())
    if settings.labels is None and not named and not shared.captioned:
        raise VplError("neither tags nor class names are given",
                       "`labels='FILE.csv'` has the tags of each photo; or `classes='FILE'` has "
                       "one class per line, and `tag()` tags the photos")
    if not settings.images.exists():
        raise VplError(f"{settings.images} does not exist",
                       near_path(settings.images) or "give the folder that holds the photos")
    if settings.masks and not settings.masks.exists():
        given = near_path(settings.masks) or "give the folder of true masks ID.png, or none"
        raise VplError(f"{settings.masks} does not exist", given if "masks" in settings.given else
                       f"an earlier call has named it; `prepare('folder', "
                       f"images={str(settings.images)!r}, masks='')` forgets it")
    places = settings.labels if settings.labels and _tells_places(settings) else None
    photos, found, remarks = layouts.read_folder(
        settings.images, None if places else settings.labels, settings.masks,
        classes_known=bool(named), untagged=settings.untagged, of_folders=settings.tags_of_folder)
    if settings.tile or settings.tags_of_folder:
        return _cut_up(workspace_path, settings, shared, photos, places, remarks)
    if settings.masks and not any(photo.mask for photo in photos):
        remarks.append(f"{settings.masks} holds no mask of any photo; masks are called as the "
                       f"photo's id: {photos[0].id}.png; found: "
                       f"{layouts.found_in(settings.masks)}")
    layouts.check_labels(photos, named or found)
    return Source(_name(settings), settings.images, photos, named or found,
                  known.background if known else VOC.background, from_tags=not named,
                  remarks=remarks)


_AUTO = 512
"""Side of a tile with `tile='auto'`: that to which `own-photos` scales photos down."""


def _tells_places(settings: Settings) -> bool:
    """Whether the tags say where things are.

    Raises:
        VplError: they do, and photos are not cut into tiles.
    """
    assert settings.labels is not None
    if not tile_tags.tells_places(settings.labels):
        return False
    if not settings.tile:
        raise VplError(f"{settings.labels} says where things are, which is for tiles",
                       "`tile='448'` cuts photos into tiles")
    return True


def _cut_up(workspace_path: Path, settings: Settings, shared: SourceRequest,
            photos: list[Photo], places: Path | None, remarks: list[str]) -> Source:
    """Cut files into tiles and pages, which are the photos."""
    side, least = parse_tile(settings.tile, _AUTO) if settings.tile else (0, 0)
    cut = _cutting.Cut(side, least, Scaling.parse(settings.bands, settings.percentiles))
    known = VOCABULARIES[settings.vocabulary] if settings.vocabulary else None
    named = shared.classes or (known.classes if known else ())
    raster = (tile_tags.TagRaster(places, named)
              if places and places.suffix.lower() in SUFFIXES else None)
    regions = tile_tags.read_regions(places, settings.column) if places and not raster else []
    root = workspace_path / _cutting.FOLDER
    made, parts, more = _cutting.cut_photos(settings.images, photos, cut, regions, root, raster)
    found = tuple(sorted({label for photo in made for label in photo.tags}))
    if raster and not found:
        raise VplError(f"{places} has no class in any tile of the photos in {settings.images}",
                       "see that they are of the same place")
    layouts.check_class_count(found, str(settings.labels), listed=bool(named))
    layouts.check_labels(made, named or found)

    def paint(workspace: Workspace, listed: Sequence[Photo]
              ) -> tuple[list[Photo], list[OutputFolder]]:
        return list(listed), _cutting.write_parts(workspace, settings.images, parts, cut)

    return Source(_name(settings), root, made, named or found,
                  known.background if known else VOC.background, from_tags=not named,
                  remarks=[*remarks, *more], paint=paint)


def _name(settings: Settings) -> str:
    if settings.vocabulary:
        return settings.vocabulary
    name = settings.images.resolve().name
    # A data set's own name brings its class words.
    return f"{name}-photos" if name in VOCABULARIES else name
