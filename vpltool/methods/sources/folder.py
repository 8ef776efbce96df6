"""Import photos from a folder, and tags from a CSV.

The CSV has the columns id,labels and, optionally, split; labels are separated by ; or by spaces.
The classes are all labels in alphabetical order, unless --classes names them. Without a CSV, all
photos of the folder are imported without tags: `tag` can find tags, and train-groups uses captions
instead.

Example: vpltool prepare folder photos --labels tags.csv

Next: vpltool text-prototypes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool import settings
from vpltool.datasets import layouts
from vpltool.datasets.words import VOC, VOCABULARIES
from vpltool.errors import VplError, near_path
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.settings import setting

READS = ()


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a folder of photos."""

    images: Path = setting(help="Folder of photos.", metavar="IMAGES", positional=True)
    labels: Path | None = setting(
        None, "CSV of tags; columns: id, labels and, optionally, split. Default: the CSV of the "
              "last call; without any, no photo has a tag.", metavar="FILE.csv")
    untagged: bool = setting(
        False, "Also import photos that the CSV does not list, without tags.")
    masks: Path | None = setting(None, "True masks ID.png, for eval, show and report only.",
                                 metavar="DIR")
    vocabulary: str | None = setting(
        None, "Classes, class words and background words of VOC or COCO.",
        choices=tuple(VOCABULARIES))


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
    photos, found, remarks = layouts.read_folder(settings.images, settings.labels, settings.masks,
                                                 classes_known=bool(named),
                                                 untagged=settings.untagged)
    if settings.masks and not any(photo.mask for photo in photos):
        remarks.append(f"{settings.masks} holds no mask of any photo; masks are called as the "
                       f"photo's id: {photos[0].id}.png; found: "
                       f"{layouts.found_in(settings.masks)}")
    layouts.check_labels(photos, named or found)
    return Source(_name(settings), settings.images, photos, named or found,
                  known.background if known else VOC.background, from_tags=not named,
                  remarks=remarks)


def _name(settings: Settings) -> str:
    if settings.vocabulary:
        return settings.vocabulary
    name = settings.images.resolve().name
    # A data set's own name brings its class words.
    return f"{name}-photos" if name in VOCABULARIES else name
