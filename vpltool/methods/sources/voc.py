"""Import photos, splits and tags from a VOC2012 folder.

Splits are the lists in ImageSets/Segmentation, including train_aug or trainaug. Tags come from
labels.csv beside JPEGImages if there is one, else from the XML, never from masks.

Example: vpltool prepare voc VOCdevkit/VOC2012

Next: vpltool text-prototypes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import settings
from vpltool.datasets.layouts import PHOTO_SUFFIXES, check_labels, found_in
from vpltool.datasets.tags import tags_of
from vpltool.datasets.words import VOC, read_lines
from vpltool.errors import VplError, counted, other_case, part_of
from vpltool.formats import Photo, streams
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.settings import setting


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a VOC2012 folder."""

    root: Path = setting(help="The folder that holds JPEGImages.", metavar="ROOT", positional=True)
    lists: tuple[Path, ...] = setting(
        (), "Another list of photos, such as voc12/train_aug.txt; its name becomes a split. "
            "Repeatable.", flag="--list", metavar="FILE")


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the lists and the tags."""
    classes = shared.classes or VOC.classes
    photos, remarks = read_voc(settings.root, classes, settings.lists)
    if not any(photo.mask for photo in photos):
        remarks.append("no photo has a true mask (SegmentationClass): eval will have nothing to "
                       "score with")
    name = settings.root.resolve().name if shared.classes else "voc"
    return Source(name, settings.root, photos, classes, VOC.background, remarks=remarks)


LISTS = ("ImageSets/Segmentation", "ImageSets/SegmentationAug")
"""Folders of lists in a VOC folder: the devkit's own, and DeepLab's augmented ones."""


def read_voc(root: Path, classes: Sequence[str], lists: Sequence[Path] = ()
             ) -> tuple[list[Photo], list[str]]:
    """List a VOC2012 folder's photos, in the order of their ids.

    Each file of `LISTS` and `lists` is a split of its name, such as `trainval` or `train_aug`. Tags
    come from `labels.csv` next to `JPEGImages` if there is one, else from the XML of `Annotations`
    (all objects, including difficult ones, as in CLIP-ES). Photos that are only in `test` need no
    tags. True masks are those of `SegmentationClass`, else of `SegmentationClassAug`. Second come
    remarks for the user. Raises a VplError if the layout is not as expected, or a tag is no class.
    """
    _check_voc_root(root)
    listed = _voc_lists(root, lists)
    remarks = []
    files = {path.stem: path for path in (root / "JPEGImages").iterdir()
             if path.suffix.lower() in PHOTO_SUFFIXES}
    if "test" in listed and files.keys().isdisjoint(listed["test"]):
        remarks.append(f"no photo of test.txt is in {root / 'JPEGImages'}: the split `test` is "
                       "skipped (VOC2012test.tar holds its photos)")
        del listed["test"]
    for split, ids in sorted(listed.items()):
        absent = [key for key in ids if key not in files]
        if absent:
            raise VplError(part_of(len(absent), len(ids), f"photos of {split}.txt", "is", "are")
                           + f" not in {root / 'JPEGImages'}, such as {absent[0]}",
                           other_case(absent[0], files) or
                           "extract VOCtrainval_11-May-2012.tar again, or shorten the list")
    splits: dict[str, list[str]] = {}
    for split in sorted(listed):
        for key in listed[split]:
            splits.setdefault(key, []).append(split)
    # The devkit has no objects for the photos of `test`.
    tagged = [key for key in sorted(splits) if splits[key] != ["test"]]
    labels = dict.fromkeys(splits, ()) | _voc_labels(root, tagged)
    masks = {path.stem: path for folder in ("SegmentationClassAug", "SegmentationClass")
             for path in (root / folder).glob("*.png")}
    photos = [
        Photo(key, files[key].relative_to(root).as_posix(), labels[key], tuple(splits[key]),
              masks[key].relative_to(root).as_posix() if key in masks else None)
        for key in sorted(splits)]
    check_labels(photos, classes)
    return photos, remarks + _voc_remarks(listed)


def _check_voc_root(root: Path) -> None:
    for part in ("JPEGImages", LISTS[0]):
        if not (root / part).is_dir():
            inner = [folder for folder in (root / "VOCdevkit/VOC2012", root / "VOC2012")
                     if (folder / part).is_dir()]
            raise VplError(f"{root} is not a VOC folder: {part} does not exist; found: "
                           f"{found_in(root)}",
                           f"`prepare('voc', root={str(inner[0])!r})`" if inner else
                           "give the folder that holds JPEGImages, such as VOCdevkit/VOC2012")


def _voc_lists(root: Path, lists: Sequence[Path]) -> dict[str, list[str]]:
    """Return split names to ids; `lists` take precedence over the folder's of the same name."""
    found = [path for folder in LISTS for path in sorted((root / folder).glob("*.txt"))]
    listed: dict[str, list[str]] = {}
    for file in (*lists, *found):
        lines = read_lines(file, "a list has one id per line; extract it again, or delete it")
        # Augmented lists hold file names (`/JPEGImages/x.jpg /SegmentationClassAug/x.png`).
        listed.setdefault(file.stem, list(dict.fromkeys(
            Path(line.split()[0]).stem for line in lines)))
    if not listed:
        raise VplError(f"{root / LISTS[0]} lists no photo",
                       "it should hold train.txt and val.txt, with one id per line")
    return listed


def _voc_remarks(listed: Mapping[str, Sequence[str]]) -> list[str]:
    remarks = [f"{LISTS[0]} has no {split}.txt, so there is no split `{split}`; found: "
               f"{', '.join(sorted(listed))}" for split in ("train", "val") if split not in listed]
    held_out = set(listed.get("val", ()))
    for split, ids in sorted(listed.items()):
        # The lists of SBD itself (8,498 photos) contain photos of VOC's val.
        shared = len(held_out.intersection(ids))
        if shared and split.startswith(("train", "aug")) and "val" not in split:
            remarks.append(counted(shared, f"photo of {split}.txt is",
                                   f"photos of {split}.txt are")
                           + " in val.txt too: scores on `val` "
                           f"after training on `{split}` would be too good")
    return remarks


def _voc_labels(root: Path, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    if (root / "labels.csv").exists():
        return tags_of(root / "labels.csv", ids)
    folder = root / "Annotations"
    absent = [key for key in ids if not (folder / f"{key}.xml").exists()]
    if absent:
        raise VplError(
            f"no tags for {len(absent)} of {len(ids)} photos: {folder / absent[0]}.xml is not "
            "there", "VOCtrainval_11-May-2012.tar holds the XML of all its photos; or give tags in "
            f"{root / 'labels.csv'} with the columns id,labels (they never come from masks)")
    labels = {}
    for key in ids:
        path = folder / f"{key}.xml"
        try:
            labels[key] = tuple(sorted(_object_names(path)))
        except (OSError, ValueError) as error:
            raise VplError(f"no tags for {key}: {path} cannot be read ({error})",
                           f"extract it again, or give tags in {root / 'labels.csv'} with the "
                           "columns id,labels") from error
    return labels


def _object_names(path: Path) -> set[str]:
    """Return the names of the objects in an XML of annotations."""
    names, inside = list[str](), list[str]()

    def start(name: str, _attributes: dict[str, str], _line: int) -> None:
        inside.append(name)
        if name == "object":
            names.append("")

    def end(_name: str) -> None:
        inside.pop()

    def text(part: str) -> None:
        if inside[-2:] == ["object", "name"]:
            names[-1] += part

    streams.parse_xml(path.read_bytes(), start, end, text)
    return {name.strip() for name in names}
