"""Corrections that people make to masks: read from labelling tools or PNGs, checked, imported.

True masks of the workspace never count as corrections.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from vpltool import console, formats
from vpltool.core.classes import renumbered
from vpltool.core.outlines import remove_small_regions
from vpltool.core.photos import read_photo
from vpltool.datasets.layouts import photos_below
from vpltool.engine import kept_corrections, photo_work
from vpltool.engine.masks import is_untagged, read_mask, warn_of_untagged
from vpltool.errors import VplError, counted, first_few, near_name, part_of
from vpltool.formats import IGNORE, Photo, Workspace, corrections, kinds
from vpltool.formats.archives import MARK
from vpltool.formats.input_folders import trained_splits
from vpltool.formats.labels import BY_NUMBER, TIFF_SUFFIXES, read_legend, size_of_labels
from vpltool.lazy import Image, np, npt
from vpltool.methods import Exporter
from vpltool.methods.labels import Labelled, LabellingRequest, find_reader
from vpltool.names import short_path
from vpltool.settings import Settings, described

LabelsById: TypeAlias = dict[str, photo_work.Compressed]
"""Photo id to a function that returns its labels (H, W)."""

Reader: TypeAlias = Callable[[Path, LabellingRequest], Iterator[Labelled]]
"""The `read` of a labelling format."""

def _find_corrections(workspace: Workspace, photos: Sequence[Photo], folder: Path,
                      skipped: Counter[str]) -> dict[str, Path]:
    """Find the changed masks ID.png in a folder, path by id; count the others."""
    if not folder.is_dir():
        raise VplError(f"{folder} is not a folder", "give the folder that holds the masks ID.png")
    if workspace.has_true_masks_in(folder, photos):
        raise VplError(f"{folder} holds the true masks of this workspace, which are for `eval`",
                       "corrections are masks that you have corrected, in a folder of their own")
    known = {photo.id for photo in photos}
    there = {path.relative_to(folder).with_suffix("").as_posix(): path
             for path in sorted(folder.rglob("*.png")) if path.is_file()}
    images = {photo.id: workspace.image_path(photo) for photo in photos}
    there = {key: path for suffix in reversed(TIFF_SUFFIXES) for key, image in images.items()
             if (path := folder / f"{key}{suffix}").is_file() and _may_be_mask(path, image)} | there
    found = {key: path for key, path in there.items() if key in known}
    if not found:
        there = found = _by_file_name(there, known)
    if not found:
        raise VplError(
            f"{folder} holds no mask of a photo of the workspace" + (
                f", only such as {next(iter(there.values()))}" if there else ""),
            f"a mask has its photo's name: {min(known)}.png")
    if len(found) < len(there):
        odd = min(there.keys() - found.keys())
        console.warn(part_of(len(there) - len(found), len(there), f"PNGs in {folder}",
                             "does not have a photo's name and is skipped",
                             "do not have a photo's name and are skipped")
                     + f", such as {odd}.png")
    _tell_unread(folder, {key: image for key, image in images.items() if key not in found})
    edited = {key: path for key, path in found.items() if corrections.is_edited(
        path, corrections.computed_masks(workspace.path, key))}
    skipped["unedited"] += len(found) - len(edited)
    return edited


def _by_file_name(there: Mapping[str, Path], known: Collection[str]) -> dict[str, Path]:
    """Return masks by photo id, of photos that are in other folders: file names are unique."""
    names = Counter(key.rpartition("/")[2] for key in known)
    ids = {name: key for key in known if names[name := key.rpartition("/")[2]] == 1}
    masks = Counter(key.rpartition("/")[2] for key in there)
    return {ids[name]: path for key, path in there.items()
            if masks[name := key.rpartition("/")[2]] == 1 and name in ids}


def _tell_unread(folder: Path, paths: Mapping[str, Path]) -> None:
    """Warn of pictures that may be meant as masks; `paths` are the photos' own, without a mask."""
    others = [path for path in photos_below(folder)
              if (photo := paths.get(path.relative_to(folder).with_suffix("").as_posix()))
              and _may_be_mask(path, photo)]
    if others:
        console.warn(f"{first_few([path.name for path in others])} in {folder} "
                     f"{'is' if len(others) == 1 else 'are'} not read: masks are PNGs or TIFFs, "
                     "and a JPEG mixes the values of neighbouring pixels")


def _may_be_mask(path: Path, photo: Path) -> bool:
    """Return whether a picture has few colours; a copy of its photo is not decoded."""
    if photo.is_file() and path.stat().st_size == photo.stat().st_size:
        return False
    try:
        small = Image.fromarray(read_photo(path)).resize((64, 64), Image.Resampling.NEAREST)
    except OSError:
        return False
    return small.getcolors(256) is not None


def _names_of_values(folder: Path) -> tuple[str, ...]:
    """Return the classes of an exported folder of masks, or of `masks` in one; empty if unsaid."""
    inside = folder.name == corrections.FOLDER_OF_REVIEW and (folder.parent / MARK).exists()
    legend = read_legend(folder.parent if inside else folder)
    # Other lists of classes have no background.
    return tuple(legend[1:]) if legend[:1] == ["background"] else ()


def _read_correction(workspace: Workspace, path: Path, photo: Path, exported: tuple[str, ...]
                     ) -> npt.NDArray[np.uint8]:
    """Read a corrected mask; copies of imported masks and exports name the classes of values."""
    header = corrections.header_of(path)
    names = (tuple(header.facts.get("classes", ()))
             if header and header.kind == corrections.FOLDER else exported)
    if names in ((), workspace.classes[:len(names)]):
        return read_mask(path, photo, len(workspace.classes))
    try:
        return renumbered(read_mask(path, photo, len(names)), names, workspace.classes)
    except KeyError as error:
        name = error.args[0]
        raise VplError(f"{path} shows `{name}`, which is not a class of the workspace",
                       near_name(name, workspace.classes)) from None


def take_corrections(workspace: Workspace, found: LabelsById, *, has_journal: bool = False
                     ) -> list[Path]:
    """Write corrected masks into the workspace beside earlier ones; return their folder, if any.

    Those that they replace are kept, unless a journal can restore them.
    """
    if not found:
        return []
    folder = workspace.path / corrections.FOLDER
    hashes = workspace.hashes_of(photo for photo in workspace.photos() if photo.id in found)
    earlier = corrections.corrections_there(workspace.path, found)
    shown, replaced = {}, []
    for key, unpack in found.items():
        labels, header = unpack(), kept_corrections.header_of(workspace, hashes.get(key, ""))
        if has_journal:
            formats.write_labels(folder / f"{key}.png", labels, header)
        elif kept_corrections.put(workspace.path, key, labels, header):
            replaced.append(key)
        shown[key] = corrections.identity_shown(labels, workspace.classes)
    corrections.remember_exchanged(workspace.path, imported=shown)
    if replaced:
        console.note(f"the earlier corrections of {first_few(replaced)} are in "
                     f"{short_path(workspace.path / corrections.FOLDER_OF_REPLACED)} now")
    total = len(list(folder.rglob("*.png")))
    trained = any(kinds.results_of(workspace.path, "decoder"))
    console.note(counted(len(found), "corrected mask is", "corrected masks are")
                 + (f" imported, {len(earlier)} in place of earlier ones" if earlier
                    else " imported") + f", {total} in total; "
                 f"{'`update()`' if trained else '`train_decoder()`'} trains on "
                 + _trained_on(workspace, total))
    return [folder]


def _trained_on(workspace: Workspace, total: int) -> str:
    """Return which of the workspace's corrected masks are trained on, and what of the others."""
    there, splits = workspace.photos(), trained_splits(workspace.path)
    held = [photo for photo in there if splits.isdisjoint(photo.splits)]
    held_masks = corrections.corrections_there(workspace.path, [photo.id for photo in held])
    if not held_masks:
        return "it" if total == 1 else "them"
    return (f"{total - len(held_masks) or 'none'} of them: "
            + counted(len(held_masks), "is of a photo", "are of photos")
            + f" not in {first_few([f'`{name}`' for name in sorted(splits)])}; `masks='DIR'`, a "
            "folder with copies of such masks alone, scores with them")


def read_corrections(workspace: Workspace, photos: Sequence[Photo], path: Path | None, root: Path
                     ) -> LabelsById:
    """Read and check corrections made by a person; nothing is written.

    Args:
        path: file or folder of a labelling tool, or a folder with ID.png; None: no corrections.

    Raises:
        VplError: the path is missing or of an unknown format, or its content does not fit the
            photos and classes.
    """
    if path is None:
        return {}
    tool, skipped = find_reader(path), Counter[str]()
    own = path.resolve() == (workspace.path / corrections.FOLDER).resolve()
    if tool is None:
        if own:
            # Masks of photos that were replaced may have another size; `train-decoder` names them.
            used = corrections.corrections_of(workspace, photos)
            photos = [photo for photo in photos if photo.id in used]
        known, names = {photo.id: photo for photo in photos}, _names_of_values(path)
        entries: Iterator[Labelled] = (Labelled(known[key], _read_correction(
            workspace, file, root / known[key].image, names), str(file)) for key, file
            in _find_corrections(workspace, photos, path, skipped).items())
        if not own:
            entries = _not_exchanged(workspace, photos, entries, skipped)
        found = _checked(entries, workspace.classes, every=True)
        _tell_skipped(skipped, found, path)
        return found
    name, reader = tool
    gone: list[str] = []
    request = LabellingRequest(root, workspace.classes, by_name(photos), gone)
    # Only Label Studio tells what a person has looked at.
    looked_at = name == "label-studio"
    labelled = _not_exchanged(workspace, photos, reader.read(path, request), skipped,
                              looked_at=looked_at)
    if not looked_at:
        labelled = _edited(workspace, labelled, reader.Settings, skipped)
    found = _checked(labelled, workspace.classes)
    _tell_skipped(skipped, found, path)
    if gone and not found:
        replace(request, gone=None).known_photo(gone[0], str(path))
    if gone:
        console.warn(counted(len(gone), "photo", "photos") + f" of {path} "
                     f"{'is' if len(gone) == 1 else 'are'} not in the workspace, and skipped: "
                     f"{first_few(gone)}")
    if not found and not skipped:
        raise VplError(f"{path} holds no region of any photo",
                       "submit the annotations in Label Studio, and export them as JSON"
                       if name == "label-studio" else "export it from the tool again")
    return found


def _edited(workspace: Workspace, entries: Iterable[Labelled], of_format: type[Settings],
            skipped: Counter[str]) -> Iterator[Labelled]:
    """Yield labels that are not those of a computed mask as a format exports it by default."""
    defaults = {entry.name: entry.default for entry in described(of_format)}
    least, merge = int(str(defaults.get("min_area", 0))), defaults.get("small") == "merge"
    if importlib.util.find_spec("cv2") is None:
        least = 0
    for entry in entries:
        labels = without_ignored(entry.labels)
        for file in corrections.computed_masks(workspace.path, entry.photo.id):
            if size_of_labels(file) == labels.shape:
                computed = formats.read_labels(file)
                exports = [computed, *([remove_small_regions(computed, least, merge=merge)]
                                       if least else [])]
                if any((without_ignored(exported) == labels).all() for exported in exports):
                    skipped["unedited"] += 1
                    break
        else:
            yield entry


def _not_exchanged(workspace: Workspace, photos: Sequence[Photo], entries: Iterable[Labelled],
                   skipped: Counter[str], *, looked_at: bool = False) -> Iterator[Labelled]:
    """Yield labels that were neither exported like this nor imported; count the others.

    What was imported is imported again if its correction has been deleted; otherwise, that may be
    newer. Labels that a person has `looked_at` may be as they were exported.
    """
    known = corrections.exchanged(workspace.path)
    there = corrections.corrections_of(workspace, photos)
    for entry in entries:
        shown = corrections.identity_shown(entry.labels, workspace.classes)
        if not looked_at and shown in known["exported"].get(entry.photo.id, ()):
            skipped["as exported" if entry.photo.id in there else "unedited"] += 1
        elif entry.photo.id in there and shown in known["imported"].get(entry.photo.id, ()):
            skipped["imported"] += 1
        else:
            yield entry


_SKIPPED = {
    "unedited": ("is unchanged, and is skipped", "are unchanged, and are skipped", ""),
    "imported": ("was imported before, and is skipped", "were imported before, and are skipped",
                 f"; delete {corrections.FOLDER}/ID.png to import one again"),
    "as exported": ("is as it was exported, and its correction stays",
                    "are as they were exported, and their corrections stay",
                    f"; delete {corrections.FOLDER}/ID.png to drop one")}
"""Why masks are no new corrections: of one, of several, and what to do."""


def _tell_skipped(skipped: Counter[str], found: LabelsById, path: Path) -> None:
    total = skipped.total() + len(found)
    for why, (one, many, cure) in _SKIPPED.items():
        if count := skipped[why]:
            console.note(part_of(count, total, f"masks in {path}", one, many) + cure)
    if skipped and not found and not skipped["imported"]:
        raise VplError(f"{path}: no mask was changed since vpltool wrote it",
                       "correct some first")


def remember_exported(workspace: Workspace, photos: Sequence[Photo], corrected: Collection[str],
                      method: Exporter, path: Path) -> None:
    """Record what an export shows, so that masks in it that nobody edits are no corrections.

    `corrected` are the ids of photos whose corrected masks were exported.
    """
    # What comes back may differ from what was to be written, such as by `tolerance`.
    read: Reader | None = getattr(method, "read", None)
    if read is None:
        entries = ((photo.id, formats.read_labels(file)) for photo in photos
                   if (file := path / method.MASKS / f"{photo.id}.png").is_file())
    elif all(map(importlib.util.find_spec, method.NEEDS)):
        request = LabellingRequest(workspace.path / workspace.root, workspace.classes,
                                   by_name(photos), [])
        entries = ((entry.photo.id, entry.labels) for entry in read(path, request))
    else:
        return
    exported, imported = dict[str, str](), dict[str, str]()
    for key, labels in entries:
        group = imported if key in corrected else exported
        group[key] = corrections.identity_shown(labels, workspace.classes)
    corrections.remember_exchanged(workspace.path, exported=exported, imported=imported)


def without_ignored(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return labels with background in place of 255, as formats have it that cannot express it."""
    return np.where(labels == IGNORE, 0, labels)


def _checked(entries: Iterable[Labelled], classes: Sequence[str], *, every: bool = False
             ) -> LabelsById:
    """Collect labels, and warn of those that do not fit their photo's tags.

    Args:
        every: whether to accept labels without a region for a photo with tags. Tools also list
            photos that nobody has looked at; if a class is really absent, its tag should be
            removed first.
    """
    found: LabelsById = {}
    blank, untagged = list[str](), list[str]()
    for entry in entries:
        photo = entry.photo
        tags = [classes.index(label) + 1 for label in photo.tags if label in classes]
        blank_labels = (entry.labels == 0) | (entry.labels == IGNORE)
        if photo.tags and blank_labels.all():
            blank.append(photo.id)
            if not every:
                continue
        if is_untagged(entry.labels, tags):
            untagged.append(photo.id)
        found[photo.id] = photo_work.compressed(entry.labels)
    if blank and every:
        console.warn(counted(len(blank), "mask shows", "masks show")
                     + f" no class, although the photo has tags: {first_few(blank)}; {BY_NUMBER}")
    elif blank:
        console.warn(counted(len(blank), "photo has tags, but no region, and is",
                             "photos have tags, but no region, and are")
                     + f" skipped: {first_few(blank)}")
    warn_of_untagged(untagged)
    return found


def by_name(photos: Iterable[Photo]) -> dict[str, Photo]:
    """Return photos by every name that a tool may give them."""
    return {name: photo for photo in photos for key in (photo.id, photo.image)
            for name in (key.replace("/", "__"), key)}
