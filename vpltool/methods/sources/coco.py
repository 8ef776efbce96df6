"""Import photos, splits and tags from a COCO 2014 folder.

Tags are the categories of a photo's instances, or those of labels.csv in the folder.

True masks go to ground-truth/ in the workspace; the same command continues an interrupted run.

Example: vpltool prepare coco COCO2014

Next: vpltool text-prototypes
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vpltool import console, formats, options, settings
from vpltool.core.outlines import check_pycocotools, label_map
from vpltool.datasets.layouts import check_labels, found_in
from vpltool.datasets.tags import read_tags, tags_of
from vpltool.datasets.words import COCO
from vpltool.errors import OtherSettings, VplError, counted, near_name, other_case, part_of
from vpltool.formats import Header, OutputFolder, Photo, Workspace, streams
from vpltool.formats.fields import NUMBER, TEXT, check_fields
from vpltool.formats.workspace import relative_to
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.parallel import device, processes
from vpltool.settings import NoEffect, setting, warn_without_effect

SPLITS = ("train", "val")
_PHOTO_FOLDERS = ("", "images", "JPEGImages", "coco2014")
_DOWNLOADS = ("extract train2014.zip, val2014.zip and annotations_trainval2014.zip side by side, "
              "then: `prepare('coco', root='FOLDER')`")

_NO_MASKS = NoEffect({"truth": (False,)}, "no true masks are made")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a COCO 2014 folder."""

    root: Path = setting(help="The folder that holds train2014, val2014 and annotations.",
                         metavar="ROOT", positional=True)
    truth: bool = setting(True, "Make true masks from the instances, for eval, show and report "
                                "only. Needs pycocotools.")
    overlap: str = setting(
        "smallest", "In true masks, where instances overlap: the smallest wins, or pixels of two "
                    "classes are not scored.", choices=("smallest", "ignore"), source="coco2voc",
        no_effect=[_NO_MASKS])
    crowd: str = setting(
        "class", "In true masks, pixels of a crowd: its class, or not scored.",
        choices=("class", "ignore"), source="coco2voc", no_effect=[_NO_MASKS])
    empty: bool = setting(False, "Keep photos without any instance.")
    workers: int = options.workers()


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the annotations; the true masks are painted later."""
    if settings.truth:
        try:
            check_pycocotools()
        except VplError as error:
            raise VplError(f"{error.message}; it makes the true masks",
                           f"{error.hint}, or `truth=False` to do without them") from error
    warn_without_effect(settings)
    annotations = settings.root / "annotations"
    if annotations.is_dir():
        console.note(f"reading {annotations}")
    classes = shared.classes or COCO.classes
    photos, remarks, outlines = read_coco(settings.root, classes, empty=settings.empty)
    if settings.truth and not outlines:
        raise VplError(f"{annotations} has no instances to make true masks from", "`truth=False`")

    def paint(workspace: Workspace, photos: Sequence[Photo]
              ) -> tuple[list[Photo], list[OutputFolder]]:
        masks, made = dict[str, str](), []
        for split, found in outlines.items():
            ids = [photo.id for photo in photos if split in photo.splits]
            made.append(_make_masks(workspace, ids, split, found, settings, shared.overwrite))
            masks |= {key: relative_to(made[-1].path_of(key), workspace.path / workspace.root)
                      for key in ids if key not in made[-1].failed}
        return [replace(photo, mask=masks.get(photo.id, photo.mask)) for photo in photos], made

    return Source(settings.root.resolve().name if shared.classes else "coco", settings.root,
                  photos, classes, COCO.background, remarks=remarks,
                  paint=paint if settings.truth else None)


@dataclass(frozen=True)
class _Task:
    output: OutputFolder
    path: Path
    labels: dict[int, int]
    settings: Settings


_Job = tuple[str, tuple[int, int], tuple[int, ...]]


def _make_masks(workspace: Workspace, ids: Sequence[str], split: str, outlines: Outlines,
                settings: Settings, overwrite: bool) -> OutputFolder:
    """Make the true masks of a split's photos in `ground-truth/SPLIT`; what is there is kept."""
    header = Header(
        kind="masks", command="prepare",
        options={"method": "coco", "split": split, "overlap": settings.overlap,
                 "crowd": settings.crowd},
        inputs={"annotations": formats.identity_of_file(outlines.path),
                "classes": workspace.classes_identity})
    folder = workspace.path / "ground-truth" / split
    try:
        output = formats.open_output(folder, header, ids, overwrite=overwrite)
    except OtherSettings as error:
        if not error.stale:
            raise VplError(error.message, "`overwrite=True` replaces it; another workspace folder "
                                          "keeps both") from error
        # Masks of other annotations are recomputed: nothing but scores depends on them.
        output = formats.open_output(folder, header, ids, update=True)
    output.begin()
    task = _Task(output, outlines.path, outlines.labels, settings)
    jobs = [(key, outlines.sizes[key], tuple(outlines.spans.get(key, ()))) for key in output.todo]
    # The main process only waits for the workers.
    count = settings.workers if settings.workers >= 0 else device.worker_count(settings.workers) + 1
    with console.progress(f"ground-truth {split}", len(jobs)) as advance:
        for key, reason in processes.run_jobs(partial(_make_one, task), jobs, count):
            if reason:
                output.fail(key, reason)
            advance()
    return output


def _make_one(task: _Task, job: _Job) -> tuple[str, str]:
    """Make a photo's mask; return its id, and the reason if it failed."""
    key, size, spans = job
    try:
        labels = label_map(streams.read_spans(task.path, spans), task.labels, size,
                           overlap=task.settings.overlap, crowd=task.settings.crowd)
    # pycocotools raises bare exceptions for invalid outlines.
    except Exception as error:
        return key, f"{task.path.name}: {str(error) or type(error).__name__}"
    formats.write_labels(task.output.path_of(key), labels, task.output.header)
    return key, ""


@dataclass(frozen=True)
class Outlines:
    """Positions of the outlines of a split's instances in its annotation file."""

    path: Path
    sizes: dict[str, tuple[int, int]]  # photo id to (height, width)
    spans: dict[str, array[int]]  # photo id to offset, length in bytes of each of its instances
    labels: dict[int, int]  # category id to class index


def read_coco(root: Path, classes: Sequence[str], *, empty: bool = False
              ) -> tuple[list[Photo], list[str], dict[str, Outlines]]:
    """List the photos of a COCO 2014 folder: split `train`, then `val`, in the order of their ids.

    Tags are the categories of a photo's instances, including crowds; or those of `labels.csv` in
    the folder, if there is one. A split with neither photos nor annotations is left out; so are
    photos without any instance, as in published lists, unless `empty` keeps them. Second come
    remarks for the user, then the outlines of each split that has annotations. Raises a VplError if
    the layout is not as expected, the annotations are of other photos, or a category is no class.
    """
    photos, remarks, outlines = list[Photo](), list[str](), dict[str, Outlines]()
    own_tags = root / "labels.csv"
    for split in SPLITS:
        folder = next((root / base / f"{split}2014" for base in _PHOTO_FOLDERS
                       if (root / base / f"{split}2014").is_dir()), None)
        path = root / "annotations" / f"instances_{split}2014.json"
        if folder is None and not path.exists():
            remarks.append(f"{root} has neither {split}2014 nor {path.name}: there is no split "
                           f"`{split}`")
            continue
        if folder is None or not (path.exists() or own_tags.exists()):
            absent = path if folder else root / f"{split}2014"
            raise VplError(f"{absent} does not exist; {root} holds: {found_in(root)}"
                           + _other_year(root), _DOWNLOADS)
        names = {entry.stem: entry.name for entry in folder.iterdir()
                 if entry.suffix.lower() in (".jpg", ".jpeg", ".png")}
        tags: dict[str, tuple[str, ...]] = {}
        if path.exists():
            tags, outlines[split] = _read_instances(path, names, folder, classes)
            bare = [key for key in tags if not tags[key]]
            if bare and not empty:
                remarks.append(counted(len(bare), f"photo of {split} has no instance and is",
                                       f"photos of {split} have no instance and are")
                               + " skipped, as in published lists (`empty=True` keeps them)")
                tags = {key: labels for key, labels in tags.items() if labels}
        if own_tags.exists():
            tags = {key: labels for key, labels in tags_of(own_tags, tags).items()
                    if key in (tags or names)}
        photos += [Photo(key, (folder / names[key]).relative_to(root).as_posix(), tags[key],
                         (split,)) for key in sorted(tags)]
    if own_tags.exists():
        rows, _ = read_tags(own_tags, classes_known=True)
        unmatched = {row.id for row in rows} - {photo.id for photo in photos}
        if unmatched:
            remarks.append(counted(len(unmatched), f"row of {own_tags} matches",
                                   f"rows of {own_tags} match")
                           + f" no photo in use, such as {min(unmatched)}")
    if not photos:
        raise VplError(f"{root} is not a folder of COCO 2014; found: {found_in(root)}"
                       + _other_year(root), _DOWNLOADS)
    check_labels(photos, classes)
    return photos, remarks, outlines


_PARTS = {
    "categories": {"id": NUMBER, "name": TEXT},
    "images": {"id": NUMBER, "file_name": TEXT, "height": NUMBER, "width": NUMBER},
    "annotations": {"image_id": NUMBER, "category_id": NUMBER}}


@dataclass
class _Instances:
    """Contents of an annotation file, by its category and image ids."""

    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    seen: dict[int, set[int]] = field(default_factory=dict)
    spans: dict[int, array[int]] = field(default_factory=dict)


def _read_instances(path: Path, names: dict[str, str], folder: Path, classes: Sequence[str]
                    ) -> tuple[dict[str, tuple[str, ...]], Outlines]:
    found = _Instances()
    for part, first, length, entry in streams.stream_objects(path):
        try:
            _keep(found, part, entry, (first, length))
        except ValueError as error:
            raise VplError(f"{path}: an entry of {part} is damaged: {error}",
                           f"use COCO's own {path.name}") from error
    for name in found.categories.values():
        if name not in classes:
            raise VplError(f"{path} has the category `{name}`, which is not a class",
                           near_name(name, classes))
    odd = set[int]().union(*found.seen.values()) - found.categories.keys()
    if odd:
        raise VplError(f"{path} has instances of the category {min(odd)}, which is none of its "
                       "categories", f"use COCO's own {path.name}")
    stray = found.seen.keys() - found.images.keys()
    if stray or not found.images:
        raise VplError(f"{path} has instances of {counted(len(stray), 'photo', 'photos')} that it "
                       "does not list"
                       if stray else f"{path} lists no photo", f"use COCO's own {path.name}")
    ids = {number: Path(name).stem for number, (name, _, _) in found.images.items()}
    _check_names(path, ids.values(), names, folder)
    # Tags in the order of the classes, whatever the order of the instances.
    tags = {ids[number]: tuple(name for key, name in found.categories.items()
                               if key in found.seen.get(number, ()))
            for number in found.images}
    return tags, Outlines(
        path, {ids[number]: (height, width)
               for number, (_, height, width) in found.images.items()},
        {ids[number]: spans for number, spans in found.spans.items()},
        {key: classes.index(name) + 1 for key, name in found.categories.items()})


def _keep(found: _Instances, part: str, entry: Any, span: tuple[int, int]) -> None:
    check_fields(entry, _PARTS.get(part, {}))
    if part == "categories":
        found.categories[entry["id"]] = entry["name"]
    elif part == "images":
        found.images[entry["id"]] = (entry["file_name"], entry["height"], entry["width"])
    elif part == "annotations":
        number = entry["image_id"]
        found.seen.setdefault(number, set()).add(entry["category_id"])
        found.spans.setdefault(number, array("Q")).extend(span)


def _check_names(path: Path, wanted: Collection[str], names: dict[str, str], folder: Path) -> None:
    """Check that the photos of the annotations are in the folder."""
    absent = [key for key in wanted if key not in names]
    if not absent:
        return
    here = min(names, default="")
    bare = re.fullmatch(r"\d{12}", absent[0])
    if here and len(absent) == len(wanted) and bool(bare) != bool(re.fullmatch(r"\d{12}", here)):
        year = "2017" if bare else "2014"
        raise VplError(f"{path} names its photos as COCO {year} does ({absent[0]}), but {folder} "
                       f"holds {names[here]}", "use photos and annotations of COCO 2014")
    raise VplError(part_of(len(absent), len(wanted), f"photos in {path}", "is", "are")
                   + f" not in {folder}, such as {absent[0]}; it holds "
                   + counted(len(names), "photo", "photos") + (f", such as {names[here]}"
                                                                   if here else ""),
                   other_case(absent[0], names) or f"extract {folder.name}.zip again")


def _other_year(root: Path) -> str:
    return ("; that is COCO 2017, but COCO 2014 is expected"
            if any(root.glob("*2017")) or any(root.glob("annotations/*2017.json")) else "")
