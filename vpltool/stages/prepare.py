"""`prepare`: from photos and tags to a workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vpltool import console, options
from vpltool.core.photos import page_count, read_photo
from vpltool.datasets import layouts, tags
from vpltool.datasets.captions import with_captions
from vpltool.datasets.splits import halve, hold_out_files
from vpltool.datasets.words import ClassFile, read_classes, read_lines
from vpltool.engine import kept_corrections, labelling
from vpltool.engine.models import ChosenModels, ModelSettings, choose_models, only_moved
from vpltool.engine.photos import warn_of_pages
from vpltool.errors import VplError, counted, first_few, part_of
from vpltool.formats import JsonObject, Photo, Workspace, kinds, open_workspace, rasters
from vpltool.formats.changes import Phrases, count_photos, last_call
from vpltool.formats.workspace import describe_change, read_images, relative_to, write_workspace
from vpltool.methods import find_method
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.names import short_path
from vpltool.parallel import device, threads
from vpltool.settings import RUNNING, Settings, Stage, changed, described, make, setting, values_of


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(ModelSettings):
    """Settings for all data sets."""

    method: str = setting(help="Layout of the data set.", metavar="NAME")
    classes: Path | None = setting(
        None, "Class names in index order, one per line; or lines VALUE NAME, where VALUE is the "
              "pixel value of the class in the true masks.", metavar="FILE")
    background: Path | None = setting(
        None, "Background words for GradCAM, one per line, which replace the default: the 25 words "
              "of CLIP-ES.", metavar="FILE")
    corrections: Path | None = setting(
        None, "Masks that you have corrected, for train-decoder; a folder of ID.png or ID.tif, or "
              "an export of Label Studio, CVAT, LabelMe, COCO, YOLO and others. Masks imported "
              "earlier are kept; unchanged masks are skipped.", metavar="PATH")
    rename: tuple[str, ...] = setting(
        (), "Class that has another name now; corrected masks follow. The new name may be that of "
            "another class, which merges them. Repeatable.", metavar="OLD=NEW")
    normalise: str = setting(
        "model", "Normalisation of photos; model: as in its training; imagenet: as in WeCLIP.",
        choices=("model", "imagenet"))
    captions: tuple[Path, ...] = setting(
        (), "Captions of the photos; a CSV with the columns id,caption, where a photo may have "
            "several rows, or JSON in the layout of COCO's captions. Repeatable.",
        metavar="FILE")
    halve: str = setting(
        "", "Add the splits SPLIT-a and SPLIT-b, each with every second photo, to choose settings "
            "on one and score on the other.", metavar="SPLIT")
    hold_out: int = setting(
        0, "Move every Nth photo of train to val, if val is empty: of the tagged photos, and of "
           "those with an empty field. Nothing is trained on these photos, so eval can score the "
           "segmenter on them. The last photo of a class stays in train. 0: none.", low=0,
        metavar="N")
    overwrite: bool = options.overwrite()


STAGE = Stage(order=10, panel="1. Begin", reads=(),
              writes=("workspace", "images", "changes", "masks", "corrections"),
              settings=PrepareSettings, methods="sources", subcommands=True, begins=True)

_REMEMBERED = ("halve", "hold_out")
"""Shared settings that later calls may omit."""

_MADE = ("prototypes", "features", "cams", "masks", "decoder", "predictions")
"""Folders of later stages' results."""

_NUMBERED = ("cams", "masks", "corrections", "decoder", "predictions")
"""Folders of results that contain numbers of classes."""


@dataclass(frozen=True)
class _Earlier:
    """The existing workspace, its photos, and the settings of its call."""

    workspace: Workspace | None = None
    photos: Sequence[Photo] = ()
    call: Mapping[str, Any] = field(default_factory=dict)


def run(path: Path, settings: PrepareSettings) -> list[Path]:
    """Make a workspace from photos and tags.

    Run it again to add photos, tags, classes or masks; omitted settings keep their values. If
    photos have moved, name their new folder. Other photos or another encoder are refused unless you
    overwrite the workspace. Even then, it keeps its CLIP or encoder unless you name another.

    Next: vpltool text-prototypes

    Returns:
        `workspace.json`, and the folders of true masks that were made.

    Raises:
        VplError: the data set is not as expected, or a workspace of other photos or of another
            encoder is there.
        PhotosFailed: true masks of some photos could not be made.
    """
    if settings.hold_out == 1:
        raise VplError("`hold_out=1` would hold out every photo", "`hold_out=10` holds out one "
                       "in ten, `hold_out=0` none")
    renames = kept_corrections.parse_renames(settings.rename)
    earlier = _read_earlier(path, overwrite=settings.overwrite)
    kept = _Earlier() if settings.overwrite else _renamed(earlier, renames)
    old = earlier.workspace
    if kept.workspace:
        settings = _completed(path, settings, kept.call)
    models = choose_models(path, settings, old)
    named = _named_classes(settings, kept)
    assert settings.of_method is not None
    source: Source = find_method("sources", settings.method).load().read(
        path, settings.of_method, SourceRequest(
            named.names, settings.overwrite, bool(settings.captions)))
    classes = kinds.numbered(_ordered(source, kept.workspace))
    normalise = (old.normalise if old and not settings.is_given("normalise")
                 else settings.normalise)
    workspace = Workspace(
        path, source.name, relative_to(source.root, path), classes,
        _background(settings, source, classes, kept.workspace), models.model, models.pretrained,
        mask_values=named.values, normalise=normalise, encoder=models.encoder)
    kept, renamed = _following(kept, source)
    if old and kept.workspace:
        kept_corrections.check_renames(renames, old, source.classes)
        _check_same(kept.workspace, kept.photos, workspace, source.photos, settings)
        _warn_of_losses(path, settings, kept, source.photos)
    photos, doubts = _photos_of(source, settings, kept)
    for remark in (*source.remarks, *doubts):
        console.warn(remark)
    _warn_of_damaged(source.root, photos)
    corrected = labelling.read_corrections(workspace, photos, settings.corrections, source.root)
    photos, outputs = source.paint(workspace, photos) if source.paint else (photos, [])
    if old:
        kept_corrections.adopt_edits(
            old, earlier.photos, renamed, renumbered=old.classes != classes[:len(old.classes)])
    words = write_workspace(workspace, photos, _call(path, settings, kept))
    kept_corrections.follow(workspace, photos, renames)
    if not old or ChosenModels.of(old) != models:
        for licence in models.licences():
            console.note(licence)
    _tell_renamed(renamed)
    _describe(workspace, photos, words,
              _formatted(settings) if source.from_tags and kept.workspace else "")
    paths = [path / "workspace.json", *(output.path for output in outputs),
             *labelling.take_corrections(workspace, corrected)]
    for output in outputs:
        output.finish()
    for output in outputs:
        output.check_failed(paths)
    return paths


def changes_since(workspace: Workspace) -> list[str]:
    """Describe what repeating the call would change, for photos in a folder with a CSV.

    Raises a VplError if the folder or the CSV cannot be used.
    """
    kept = _Earlier(workspace, workspace.photos(), last_call(workspace.path))
    if kept.call.get("method") != "folder":
        # Other methods read all labels, or write files.
        return []
    chosen = find_method("sources", "folder")
    own = _remembered(workspace.path, chosen.settings, kept.call)
    settings = _completed(workspace.path, make(
        PrepareSettings, {"method": "folder"}, (), make(chosen.settings, own, ())), kept.call)
    source: Source = chosen.load().read(workspace.path, settings.of_method, SourceRequest(
        _named_classes(settings, kept).names, captioned=bool(settings.captions)))
    photos, _ = _photos_of(source, settings, _following(kept, source)[0])
    new = replace(workspace, classes=kinds.numbered(_ordered(source, workspace)))
    edited = source.edited()
    return [*(phrase for phrases in describe_change(workspace, kept.photos, new, photos).values()
              for phrase in phrases),
            *([counted(len(edited), "file that was cut up was edited",
                       "files that were cut up were edited") + f": {first_few(edited)}"]
              if edited else [])]


def _photos_of(source: Source, settings: PrepareSettings, kept: _Earlier
               ) -> tuple[list[Photo], list[str]]:
    """Return the photos with captions and splits, and remarks about captions."""
    photos, doubts = (with_captions(source.photos, settings.captions) if settings.captions
                      else (list(source.photos), []))
    # Fields that other programs added are kept, and earlier captions if there are no new ones.
    known = {photo.id: photo for photo in kept.photos}
    captioned = any(photo.captions for photo in photos)
    photos = [replace(photo, more=known[photo.id].more,
                      captions=photo.captions if captioned else known[photo.id].captions)
              if photo.id in known else photo for photo in photos]
    photos, further = hold_out_files(photos, settings.hold_out, kept.photos, source.file_of,
                                     unlisted=source.unlisted)
    return halve(photos, settings.halve, kept.photos), [*doubts, *further]


def _renamed(earlier: _Earlier, renames: Mapping[str, str]) -> _Earlier:
    """Return the earlier workspace with the new names of its classes."""
    workspace = earlier.workspace
    return replace(
        earlier, workspace=workspace and kept_corrections.with_renamed_classes(workspace, renames),
        photos=[replace(photo, tags=tuple(renames.get(tag, tag) for tag in photo.tags))
                for photo in earlier.photos])


def _following(kept: _Earlier, source: Source) -> tuple[_Earlier, dict[str, str]]:
    """Return the earlier workspace with its photos' present ids, and those of renamed photos."""
    if kept.workspace is None:
        return kept, {}
    renamed = kept_corrections.renamed_photos(kept.workspace, kept.photos, source.root,
                                              source.photos)
    return replace(kept, photos=[replace(photo, id=renamed.get(photo.id, photo.id))
                                 for photo in kept.photos]), renamed


def _tell_renamed(renamed: Mapping[str, str]) -> None:
    if renamed:
        console.note(counted(len(renamed), "photo was renamed or moved, and keeps its split",
                             "photos were renamed or moved, and keep their splits") + ": "
                     + first_few([f"{old} is {new} now" for old, new in sorted(renamed.items())]))


def _read_earlier(path: Path, *, overwrite: bool) -> _Earlier:
    """Read the existing workspace, if any; a damaged one may be overwritten."""
    if not kinds.is_workspace(path):
        return _Earlier()
    try:
        workspace = open_workspace(path)
        photos = [] if overwrite else read_images(path / "images.jsonl")
    except VplError as error:
        if overwrite:
            return _Earlier()
        raise VplError(error.message, "correct it by hand; `overwrite=True` starts over") from error
    return _Earlier(workspace, photos, last_call(path))


def _completed(path: Path, settings: PrepareSettings, call: Mapping[str, Any]) -> PrepareSettings:
    """Replace settings that are not given by those of the earlier call."""
    method = settings.of_method
    if method is not None and call.get("method") == settings.method:
        before = {name: value for name, value in _remembered(path, type(method), call).items()
                  if not method.is_given(name)}
        method = make(type(method), values_of(method) | before, method.given)
    shared = {name: call[name] for name in _REMEMBERED
              if name in call and not settings.is_given(name)}
    if not settings.is_given("captions"):
        files = call.get("captions")
        shared["captions"] = tuple(_from_workspace(
            path, Path, files if isinstance(files, list) else []))
    return replace(settings, of_method=method, **shared)


def _call(path: Path, settings: PrepareSettings, kept: _Earlier) -> JsonObject:
    """Return the settings that later calls may omit, with paths relative to the workspace."""
    call: JsonObject = {"method": settings.method}
    call |= {name: getattr(settings, name) for name in _REMEMBERED if getattr(settings, name)}
    if settings.captions:
        call["captions"] = _to_workspace(path, settings.captions)
    # workspace.json contains the classes; this records that they do not come from the tags.
    if settings.classes:
        call["classes"] = relative_to(settings.classes, path)
    elif "classes" in kept.call:
        call["classes"] = kept.call["classes"]
    assert settings.of_method is not None
    for entry in described(type(settings.of_method)):
        value = getattr(settings.of_method, entry.name)
        if value != entry.default and entry.panel != RUNNING and not entry.by_hand:
            call[entry.name] = _to_workspace(path, value)
    return call


def _remembered(path: Path, method: type[Settings], call: Mapping[str, Any]) -> JsonObject:
    """Return the settings of a method in an earlier call."""
    return {entry.name: _from_workspace(path, entry.type, call[entry.name])
            for entry in described(method) if entry.name in call and not entry.by_hand}


def _to_workspace(path: Path, value: object) -> object:
    if isinstance(value, tuple):
        return [_to_workspace(path, item) for item in value]
    return relative_to(value, path) if isinstance(value, Path) else value


def _from_workspace(path: Path, kind: type, value: Any) -> Any:
    if isinstance(value, list):
        return [_from_workspace(path, kind, item) for item in value]
    return path / value if kind is Path and isinstance(value, str) else value


def _named_classes(settings: PrepareSettings, kept: _Earlier) -> ClassFile:
    """Return the classes of a class file, given now or earlier; without one, no names."""
    if settings.classes is not None:
        return read_classes(settings.classes)
    if kept.workspace is None:
        return ClassFile((), {})
    return ClassFile(kept.workspace.classes if "classes" in kept.call else (),
                     dict(kept.workspace.mask_values))


def _ordered(source: Source, old: Workspace | None) -> tuple[str, ...]:
    """Return class names in index order: known ones keep their index, new ones of tags follow.

    Known classes without photos are dropped if no result depends on the changed numbers.
    """
    if old is None or not source.from_tags:
        return source.classes
    path, used, known = old.path, set(source.classes), list(old.classes)
    if not any((path / name).is_dir() for name in _NUMBERED):
        known = [name for name in known if name in used]
    while known and known[-1] not in used and not kinds.folder_of(path, "corrections").is_dir():
        known.pop()
    classes = (*known, *(name for name in source.classes if name not in known))
    if len(classes) > kinds.MOST_CLASSES:
        raise VplError(f"{path / 'workspace.json'} would have {len(classes)} classes; "
                       f"{kinds.MOST_CLASSES} at most are possible",
                       "`overwrite=True` drops those that no photo has")
    return classes


def _background(settings: PrepareSettings, source: Source, classes: Sequence[str],
                old: Workspace | None) -> tuple[str, ...]:
    if settings.background is not None:
        lines = read_lines(settings.background,
                           "`background='FILE'` takes a text file with one word a line")
        return tuple(dict.fromkeys(lines))
    words, new = source.background, set(classes)
    if old is not None:
        words, new = old.background, new - set(old.classes)
    # A class must not also be a background word.
    return tuple(word for word in words if word not in new)


def _check_same(old: Workspace, before: Sequence[Photo], workspace: Workspace,
                photos: Sequence[Photo], settings: PrepareSettings) -> None:
    """Check that the workspace has the same photos and, if it has results, the same encoder."""
    changes = []
    worked = any((workspace.path / name).is_dir() for name in _MADE)
    if old.root != workspace.root:
        change = f"the photos' folder was {old.root}, now {workspace.root}"
        if not _has_moved(old, before, workspace, photos):
            changes.append(f"{change}, where most of its photos are not the same")
        else:
            console.note(change)
    if worked:
        others = ChosenModels.of(workspace).changes_since(ChosenModels.of(old))
        # Files are read only if their paths differ.
        if others and not only_moved(old, workspace):
            changes += others
        if old.normalise != workspace.normalise:
            changes.append(f"normalise was {old.normalise}, now {workspace.normalise}")
    if not changes and {photo.id for photo in before}.isdisjoint(photo.id for photo in photos):
        changes.append(f"none of its {len(before)} photos is left")
    if changes:
        raise VplError(f"{workspace.path / 'workspace.json'} was made with other settings: "
                       f"{'; '.join(changes)}",
                       f"{_formatted(settings)} replaces it; another workspace folder keeps both")


def _warn_of_losses(path: Path, settings: PrepareSettings, kept: _Earlier,
                    photos: Sequence[Photo]) -> None:
    """Warn if most photos are gone, or tags that were changed in `review`."""
    before = {photo.id: photo for photo in kept.photos}
    gone = before.keys() - {photo.id for photo in photos}
    if 2 * len(gone) > len(before):
        console.warn(part_of(len(gone), len(before), "photos", "is", "are") + f" gone, such as "
                     f"{min(gone)}; if they should not be, put them back, and prepare again")
    labels, reviewed = getattr(settings.of_method, "labels", None), path / kinds.REVIEWED_TAGS
    if (labels and relative_to(labels, path) != kinds.REVIEWED_TAGS
            and (other := _tagged_otherwise(reviewed, photos))):
        console.warn(counted(len(other), "photo has", "photos have")
                     + f" other tags than after `review`: {first_few(other)}; "
                     f"`labels={short_path(reviewed)!r}` keeps those")


def _tagged_otherwise(path: Path, photos: Sequence[Photo]) -> list[str]:
    """Return the ids of photos that have other tags in a CSV of file names, if it can be read."""
    try:
        rows = {row.id: row for row in tags.read_tags(path, classes_known=True)[0]}
    except VplError:
        return []
    return [photo.id for photo in photos
            if photo.image in rows and {*photo.tags} != {*rows[photo.image].labels}]


def _has_moved(old: Workspace, before: Sequence[Photo], workspace: Workspace,
               photos: Sequence[Photo]) -> bool:
    """Return whether half of the old photos are in the new folder, by the hashes of their files.

    Results record the hashes of photos that are gone. Without any result all photos count as moved.
    """
    known = kept_corrections.hashes_in_results(workspace.path)
    known = {photo.id: known.get(photo.id, "") for photo in before} | old.hashes_of(before)
    found = workspace.hashes_of(photo for photo in photos if photo.id in known)
    return not any(known.values()) or 2 * sum(
        found[key] == known[key] for key in found) >= len(known)


def _formatted(settings: PrepareSettings) -> str:
    """Return the call that replaces a workspace, with the given CLIP even if it is the default."""
    clip = settings.given & {"model", "pretrained", "normalise"}
    values = changed(settings) | {name: getattr(settings, name) for name in sorted(clip)}
    words = [f"{name}={value!r}" for name, value in values.items() if name != "method"]
    return f"`prepare({', '.join([repr(settings.method), *words, 'overwrite=True'])})`"


def _warn_of_damaged(root: Path, photos: Sequence[Photo]) -> None:
    """Warn of photos that cannot be read, and of further pages; only doubtful ones are decoded."""
    names = {root / photo.image: photo.image for photo in photos}
    doubtful = layouts.doubtful_photos(list(names))
    found = threads.in_threads(_pages, doubtful, device.default_workers())
    pages = {names[path]: pages for path, pages in zip(doubtful, found, strict=True)}
    if damaged := [f"{name} ({error})" for name, error in pages.items() if isinstance(error, str)]:
        console.warn(f"{len(damaged)} of {len(photos)} photos cannot be read: {first_few(damaged)}")
    counts = {name: count for name, count in pages.items() if isinstance(count, int)}
    warn_of_pages(counts, len(photos))
    if max(counts.values(), default=1) > 1:
        console.advise("`tags_of_folder=True` makes each page a photo")


def _pages(path: Path) -> int | str:
    """Return the number of pages of a photo, or why it cannot be read."""
    try:
        if path.suffix.lower() in rasters.SUFFIXES:
            return page_count(path)
        read_photo(path)
    except OSError as error:
        return str(error)
    return 1


def _describe(workspace: Workspace, photos: Sequence[Photo], words: Phrases, afresh: str) -> None:
    """Report the workspace's contents, what has changed (`words`), and warnings.

    `afresh` is the call that renumbers the classes, if they keep earlier numbers.
    """
    splits = Counter(split for photo in photos for split in photo.splits)
    background = counted(len(workspace.background), "background word", "background words")
    console.note(
        f"{count_photos(len(photos))}, {counted(len(workspace.classes), 'class', 'classes')}"
        f"{f', {background}' if workspace.has_words else ''}; "
        + ", ".join(f"{split}: {count}" for split, count in sorted(splits.items())))
    if captions := [len(photo.captions) for photo in photos if photo.captions]:
        console.note(f"{count_photos(len(captions))} with captions, {sum(captions)} in all")
    if workspace.classes:
        console.note(tags.class_counts(photos, workspace.classes))
    if words:
        console.note("; ".join(phrase for phrases in words.values() for phrase in phrases))
    if afresh and "classes" in words:
        console.note("new classes come after the known ones, which keep their numbers")
    if words.keys() - {"masks"} and any((workspace.path / name).is_dir() for name in _MADE):
        console.advise("`update()` recomputes the stale results")
    _warn_of_masks(photos, splits)
    _warn_of_tags(workspace, photos, afresh)


def _warn_of_masks(photos: Sequence[Photo], splits: Counter[str]) -> None:
    masked = Counter(split for photo in photos if photo.mask for split in photo.splits)
    for split, count in sorted(splits.items()):
        if 0 < masked[split] < count or (masked and not masked[split] and split != "test"):
            console.warn(part_of(count - masked[split], count, f"photos of `{split}`",
                                 "has no true mask; eval leaves it out",
                                 "have no true mask; eval leaves them out"))


def _warn_of_tags(workspace: Workspace, photos: Sequence[Photo], afresh: str) -> None:
    if not workspace.classes:
        console.advise("no classes: `train_groups()` needs none; `classes='FILE'` names some")
        return
    if not any(photo.tags for photo in photos):
        console.advise("no photo has a tag; " + (
            "after `text_prototypes()`, `tag()` finds some" if workspace.has_words else
            "give them by `labels='FILE.csv'`, or `words='MODEL:PRETRAINED'` to find some"),
                       console.warn)
        return
    unused = sorted(set(workspace.classes).difference(*(photo.tags for photo in photos)))
    if unused:
        one = len(unused) == 1
        kept = "it stays a class" if one else "they stay classes"
        console.warn((f"no photo has the tag `{unused[0]}`" if one else
                      f"no photo has the tag of {len(unused)} classes: {first_few(unused)}")
                     + (f"; {kept}, so that the others keep their numbers; {afresh} removes "
                        f"{'it' if one else 'them'}; `rename='{unused[0]}=NEW'` if it has another "
                        "name now" if afresh else ""))
    untagged = [photo.id for photo in photos if not photo.tags and photo.splits != ("test",)]
    if untagged:
        console.warn(counted(len(untagged), "photo has no tag and counts",
                             "photos have no tag and count")
                     + f" as background only: {first_few(untagged)}")
    for remark in tags.company_remarks(photos):
        console.warn(remark)
