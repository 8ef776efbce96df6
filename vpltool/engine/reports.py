"""Reports: results that a stage both returns and writes as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpltool.errors import VplError
from vpltool.file_hashes import hashes_of
from vpltool.formats import JsonObject, Photo, fields, identity_of_many, kinds, open_workspace
from vpltool.formats.header import PRESET
from vpltool.formats.manifest import MANIFEST, manifest_of
from vpltool.formats.storage import read_json
from vpltool.formats.workspace import with_known_tags

ENOUGH = 20
"""Photos below which a report warns of chance: a single one changes its figures by points."""


class Report(JsonObject):
    """The content of a report's JSON file, with further data for its table.

    Args:
        paths: the file and its companions, such as a picture.
        classes: names of all classes, including those absent from the report.
    """

    def __init__(self, content: Mapping[str, object], *paths: Path, classes: Sequence[str] = ()
                 ) -> None:
        super().__init__(content)
        self.paths = paths
        self.classes = tuple(classes)


_SCORES = {"what": fields.TEXT, "split": fields.TEXT, "photos": fields.NUMBER}
_MAY_HAVE = {
    **dict.fromkeys(("scored", "against", "content", "config", "threshold_chosen_by"), fields.TEXT),
    **dict.fromkeys(("made_under", "scored_under"), fields.OBJECT), "worst": fields.OBJECTS,
    "threshold": fields.SIZE, "sweep": fields.REAL_OF, "confusion": fields.LIST,
    "photos_left_out": fields.NUMBER}
_OF_KIND = {"scores": {"iou": fields.SIZE_OF, "miou": fields.REAL, "accuracy": fields.REAL},
            "agreement": {"mean": fields.SIZE_OF}}


_WRITES = "`eval(what='predictions/NAME')` writes scores"


def read_scores(path: Path) -> JsonObject:
    """Read a file of scores, against true masks or tags.

    Raises a VplError if it does not exist, or is not a file of scores.
    """
    return check_scores(read_json(path, _WRITES), path)


def check_scores(content: JsonObject, path: Path) -> JsonObject:
    """Return the content of a file of scores, or raise a VplError if it is none."""
    if content.get("kind") not in ("scores", "agreement"):
        raise VplError(f"{path} holds no scores", _WRITES)
    try:
        fields.check_fields(content, _SCORES | _OF_KIND[content["kind"]], _MAY_HAVE)
        for entry in content.get("worst", []):
            fields.check_fields(entry, {"id": fields.TEXT, "why": fields.TEXT})
        for preset in filter(None, map(content.get, ("made_under", "scored_under"))):
            fields.check_fields(preset, PRESET)
    except ValueError as error:
        raise VplError(f"{path} is not valid: {error}", _WRITES) from error
    return content


def foreground(iou: Mapping[str, float | None]) -> float | None:
    """Return the mean IoU over the classes of the true masks, without the background."""
    shown = [value for name, value in iou.items() if name != "background" and value is not None]
    return sum(shown) / len(shown) if shown else None


CHANGED = " (changed since)"
"""Added to the name of what has changed since it was scored."""


def changed_since(work: Path, entries: Iterable[Mapping[str, Any]]) -> list[bool]:
    """Return for each file of scores whether its folder now holds other files.

    If it holds those of more photos, only some may have been scored: then it has changed if it is
    from another run. Nothing is known, and False returned, if the folder is gone.
    """
    photos = open_workspace(work).photos() if kinds.is_workspace(work) else []
    return [_has_changed(work, photos, entry) for entry in entries]


def _has_changed(work: Path, photos: Sequence[Photo], entry: Mapping[str, Any]) -> bool:
    kind, what = str(entry.get("scored") or ""), str(entry.get("what", ""))
    name, split = what.removeprefix(f"{kind}-"), str(entry["split"])
    if not kind or not photos or not entry.get("content") or (
            {"..", "/"} & {*Path(name).parts, *Path(split).parts}):
        return False
    folder = work / kind / name / split
    suffix = ".safetensors" if kind == "cams" else ".png"
    photos = [photo for photo in photos if split in photo.splits]
    scored = (with_known_tags(work, photos) if entry.get("against") == "tags" else
              [photo for photo in photos if photo.mask is not None])
    names = {photo.id: f"{photo.id}{suffix}" for photo in scored}
    hashes = hashes_of(folder, names.values())
    parts = {key: hashes[file] for key, file in names.items() if file in hashes}
    if len(parts) > entry["photos"]:
        return (folder / MANIFEST).is_file() and bool(entry.get("config")) and (
            manifest_of(folder).header.config_hash != entry["config"])
    return bool(parts) and identity_of_many(parts) != entry["content"]
