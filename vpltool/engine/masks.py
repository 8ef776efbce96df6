"""Masks that a segmenter learns from: computed ones, one's own, and those corrected by hand.

Corrected masks are read from labelling tools or PNGs, checked, and imported. They are stronger
supervision than tags, which results record (`Header.supervision`). True masks of the workspace
never count as corrections.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from vpltool import console, formats
from vpltool.core.classes import label_type
from vpltool.core.outlines import remove_small_regions
from vpltool.core.photos import photo_size, read_photo
from vpltool.datasets.layouts import photos_below
from vpltool.engine import features, photo_work
from vpltool.engine.photos import check_current, file_identities
from vpltool.errors import VplError, counted, first_few, near_name, part_of
from vpltool.formats import IGNORE, Header, Photo, Workspace, corrections, kinds, manifest
from vpltool.formats.archives import MARK
from vpltool.formats.header import join_supervision
from vpltool.formats.labels import (
    BY_NUMBER,
    TIFF_SUFFIXES,
    known_numbers,
    objects_hint,
    read_legend,
    size_of_labels,
)
from vpltool.formats.started import read_started
from vpltool.formats.workspace import relative_to
from vpltool.lazy import Image, np, npt
from vpltool.methods import Exporter
from vpltool.methods.labels import Labelled, LabellingRequest, find_reader
from vpltool.names import short_path
from vpltool.parallel import threads
from vpltool.settings import Settings, described

LabelsById: TypeAlias = dict[str, photo_work.Compressed]
"""Photo id to a function that returns its labels (H, W)."""

Reader: TypeAlias = Callable[[Path, LabellingRequest], Iterator[Labelled]]
"""The `read` of a labelling format."""

_THREADS = 8
"""Threads that read masks: decoding a PNG lets others run."""


@dataclass(frozen=True)
class Masks:
    """A folder of masks: palette or greyscale PNGs, named as the photos' ids.

    Args:
        name: name of the folder, and default name of a decoder trained on it.
        ids: photos that have a mask.
        corrected: path by id, of masks that a person has corrected; they replace the folder's.
        header: of the folder, if vpltool made it.
    """

    path: Path
    name: str
    ids: Sequence[str]
    corrected: Mapping[str, Path] = field(default_factory=dict)
    header: Header | None = None

    def path_of(self, photo_id: str) -> Path:
        """Return the path of a photo's mask."""
        return self.corrected.get(photo_id) or self.path / f"{photo_id}.png"

    def read_labels(self, photo_id: str) -> npt.NDArray[np.uint8]:
        """Read a photo's labels (height, width)."""
        return formats.read_drawn_labels(self.path_of(photo_id),
                                         other_palettes=self.has_other_palettes(photo_id))

    def has_other_palettes(self, photo_id: str) -> bool:
        """Return whether a mask may have any palette, since vpltool never wrote it."""
        return self.header is None and photo_id not in self.corrected


def find_masks(workspace: Workspace, choice: str, split: str, photos: Sequence[Photo]) -> Masks:
    """Find masks of `crf` by NAME or path, or one's own by path; default: of the most refined CAMs.

    Photos without a mask are left out with a warning.

    Raises a VplError if there are none, they are of other classes, or they are the true masks.
    """
    ids = [photo.id for photo in photos]
    corrected = corrections.corrections_of(workspace, photos)
    if old := corrections.corrections_there(workspace.path, ids).keys() - corrected.keys():
        console.warn(counted(len(old), "corrected mask is of a photo that was",
                             "corrected masks are of photos that were")
                     + f" replaced since, and {'is' if len(old) == 1 else 'are'} not used: "
                     f"{first_few(sorted(old))}; correct the new photos, or delete the masks in "
                     f"{workspace.path / corrections.FOLDER}")
    check_corrections(workspace, corrected)
    # The maps of a corrected photo may have failed.
    masks = _pseudo_masks(workspace, choice, split, [key for key in ids if key not in corrected])
    learned = {*masks.ids, *corrected}
    return replace(masks, corrected=corrected, ids=[key for key in ids if key in learned])


def _pseudo_masks(workspace: Workspace, choice: str, split: str, ids: Sequence[str]) -> Masks:
    try:
        found = formats.find_folder(workspace.path, ("masks",), choice, split,
                                    f"`crf(split={split!r})`", features.BEST_FIRST)
    except VplError:
        for folder in (Path(choice), workspace.path / choice) if choice else ():
            if folder.is_dir() and not (folder / manifest.MANIFEST).exists():
                return _own_masks(workspace, folder, ids)
        raise
    workspace.check_classes(found.header, found.path)
    there = found.available(ids) if ids else []
    check_current(workspace, there, found)
    return Masks(found.path, found.name, there, header=found.header)


def _own_masks(workspace: Workspace, folder: Path, ids: Sequence[str]) -> Masks:
    if workspace.has_true_masks_in(folder):
        raise VplError(f"{folder} holds the true masks of this workspace, which are for `eval`",
                       "train on the masks of `crf()`, or on others")
    masks = Masks(folder, folder.resolve().name, ids)
    have = [key for key in ids if masks.path_of(key).is_file()]
    if ids and not have:
        raise VplError(f"{folder} holds no mask of the selected photos",
                       f"a mask has its photo's name: {masks.path_of(ids[0])}")
    if len(have) < len(ids):
        console.warn(part_of(len(ids) - len(have), len(ids), "photos",
                             f"has no mask in {folder}; it is skipped",
                             f"have no mask in {folder}; they are skipped"))
    return Masks(folder, masks.name, have)


def content_identity(folder: Path, ids: Iterable[str]) -> str:
    """Return a hash of the bytes of a folder's masks, since masks can be corrected by hand."""
    return formats.identity_of_many(file_identities(
        {key: path for key in ids if (path := folder / f"{key}.png").exists()}))


def identities_of(masks: Masks, ids: Collection[str]) -> dict[str, str]:
    """Return hashes of photos' masks by role in a header; `corrections` if some are corrected."""
    corrected = {key: path for key, path in masks.corrected.items() if key in ids}
    return {"masks": content_identity(masks.path, ids)} | (
        {"corrections": identity_of_corrections(corrected)} if corrected else {})


def with_masks(header: Header, masks: Masks, workspace: Workspace) -> Header:
    """Record masks as a source; they are identified by their bytes, not by their configuration."""
    sources = {**header.sources, "masks": relative_to(masks.path, workspace.path)}
    call = {name: value for name, value in header.call.items() if name != "masks"}
    return replace(header, sources=sources, call=call)


def supervision_by(masks: Masks, ids: Sequence[str]) -> str:
    """Describe the supervision in masks beyond tags; see `Header`."""
    # A mask that another program wrote into a folder of vpltool has no header.
    corrected = [key for key in ids if key in masks.corrected or (
        masks.header is not None and formats.describe(masks.path_of(key)).header is None)]
    own = 0 if masks.header else len(ids) - len(corrected)
    return join_supervision([
        masks.header.supervision if masks.header else "",
        f"tags and {own} mask{'s' * (own > 1)} of one's own" if own else "",
        f"tags and {len(corrected)} corrected mask{'s' * (len(corrected) > 1)}" if corrected
        else ""])


def check_masks(masks: Masks, workspace: Workspace, photos: Sequence[Photo]) -> None:
    """Check that masks show only classes of the workspace, and have the size of their photos.

    Raises a VplError if a value is not a class, or a mask has another size than its photo; the
    message names the first such file.
    """
    shown = [False] * (IGNORE + 1 + len(workspace.classes))
    empty: list[str] = []

    def check(photo: Photo) -> bool:
        path = masks.path_of(photo.id)
        labels = read_mask(path, workspace.image_path(photo), len(workspace.classes),
                           other_palettes=masks.has_other_palettes(photo.id))
        there = np.unique(labels).tolist()
        for label in there:
            shown[label] = True
        if (workspace.indices_of(photo) and photo.id not in masks.corrected
                and {*there} <= {0, IGNORE}):
            empty.append(photo.id)
        # `prepare` has warned of imported masks; masks that vpltool computed may exceed the tags.
        return (photo.id not in masks.corrected
                and is_untagged(labels, workspace.indices_of(photo))
                and formats.describe(path).header is None)

    odd = list(photo_work.tracked(f"check {masks.name}", threads.in_threads(
        check, photos, _THREADS), len(photos)))
    warn_of_untagged([photo.id for photo, is_odd in zip(photos, odd, strict=True) if is_odd])
    tagged = {index for photo in photos for index in workspace.indices_of(photo)}
    missing = [workspace.class_name(index) for index in sorted(tagged) if not shown[index]]
    if missing:
        (console.warn if len(missing) == len(tagged) else console.note)(
            f"{masks.path}: no mask shows {', '.join(missing)}, although photos are tagged so: a "
            "segmenter cannot learn it")
    if empty:
        many = 2 * len(empty) >= sum(bool(photo.tags) for photo in photos)
        share = part_of(len(empty), len(masks.ids), "masks", "shows", "show")
        console.note(f"{masks.path}: {share} no class, although the photos have tags: "
                     f"{first_few(sorted(empty))}; a segmenter learns that they are background; "
                     + ((many and _larger(masks, workspace)) or "`review()` shows them first"))
    if supervision := supervision_by(masks, [photo.id for photo in photos]):
        console.note(f"{masks.path}: supervised by {supervision}")


def _larger(masks: Masks, workspace: Workspace) -> str:
    """Return the command that makes more of the masks' CAMs foreground; empty if they have none."""
    header = masks.header
    if header is None or header.sources.get("what", "").partition("/")[0] != "cams":
        return ""
    started, alpha = read_started(workspace.path), float(header.options.get("alpha", 1))
    more = max(4.0, 2 * alpha)
    again = (f"`vpltool -C {shlex.quote(short_path(workspace.path))} run own-photos alpha={more:g}`"
             if started and started.words[1:2] == ("own-photos",) else manifest.call_of(
                 replace(header, call=header.call | {"alpha": more, "overwrite": True})))
    return f"a larger alpha than {alpha:g} makes masks larger: {again}"


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
    labels = read_mask(path, photo, len(names))
    table = np.arange(1 + max(IGNORE, len(names), len(workspace.classes)))
    for label in np.unique(labels[(labels > 0) & (labels != IGNORE)]).tolist():
        if names[label - 1] not in workspace.classes:
            raise VplError(f"{path} shows `{names[label - 1]}`, which is not a class of the "
                           "workspace", near_name(names[label - 1], workspace.classes))
        table[label] = workspace.index_of(names[label - 1])
    return table.astype(label_type(len(table) - 1))[labels]


def take_corrections(workspace: Workspace, found: LabelsById) -> list[Path]:
    """Write corrected masks into the workspace beside earlier ones; return their folder, if any."""
    if not found:
        return []
    folder = workspace.path / corrections.FOLDER
    header = Header(kind="corrections", command="prepare", supervision="a corrected mask",
                    facts={"classes": list(workspace.classes)})
    hashes = workspace.hashes_of(photo for photo in workspace.photos() if photo.id in found)
    earlier = corrections.corrections_there(workspace.path, found)
    shown = {}
    for key, unpack in found.items():
        photo = {corrections.PHOTO: hashes[key]} if key in hashes else {}
        labels = unpack()
        formats.write_labels(folder / f"{key}.png", labels,
                             replace(header, facts={**header.facts, **photo}))
        shown[key] = corrections.identity_shown(labels, workspace.classes)
    corrections.remember_exchanged(workspace.path, imported=shown)
    total = len(list(folder.rglob("*.png")))
    trained = any(kinds.results_of(workspace.path, "decoder"))
    console.note(counted(len(found), "corrected mask is", "corrected masks are")
                 + (f" imported, {len(earlier)} in place of earlier ones" if earlier
                    else " imported") + f", {total} in total; "
                 f"{'`update()`' if trained else '`train_decoder()`'} trains on "
                 + ("it" if total == 1 else "them"))
    return [folder]


def identity_of_corrections(corrected: Mapping[str, Path]) -> str:
    """Return a hash of the files of corrected masks; empty if there are none."""
    return formats.identity_of_many(file_identities(corrected)) if corrected else ""


def check_corrections(workspace: Workspace, corrected: Mapping[str, Path]) -> None:
    """Raise a VplError if a corrected mask was imported with other classes than the workspace's."""
    for path in corrected.values():
        header = formats.describe(path).header
        names = tuple(header.facts.get("classes", ())) if header else ()
        if names == workspace.classes[:len(names)]:
            continue
        shown = np.unique(formats.read_labels(path))
        gone = [names[label - 1] for label in shown[(shown > 0) & (shown <= len(names))].tolist()
                if names[label - 1] not in workspace.classes]
        raise VplError(
            f"{path} was imported when the classes were {', '.join(names)}; now they are "
            f"{', '.join(workspace.classes)}",
            f"it shows `{gone[0]}`: give the class this name again, or move the file away"
            if gone else corrections.import_call(workspace, workspace.path / corrections.FOLDER)
            + " gives the masks there the new numbers")


def read_mask(path: Path, photo: Path, classes: int, *, other_palettes: bool = False
              ) -> npt.NDArray[np.uint8]:
    """Read a mask; check its classes, and before decoding its size, if the photo exists.

    Raises a VplError if a value is not a class, or the size differs from the photo's.
    """
    try:
        size = photo_size(photo)
    except OSError:
        # With stored features the photo may be absent; stages that need it report that themselves.
        size = None
    found = size_of_labels(path)
    if size and found != size:
        raise VplError(f"{path} is {found[0]}×{found[1]} (height×width), its photo "
                       f"{size[0]}×{size[1]}", "a mask must have the size of its photo")
    labels = formats.read_drawn_labels(path, other_palettes=other_palettes)
    shown = np.flatnonzero(np.bincount(labels.ravel()))
    odd = shown[(shown > classes) & (shown != IGNORE)]
    if len(odd):
        raise VplError(f"{path}: the value {odd[0]} is not a class; the workspace has "
                       f"{known_numbers(classes)}, 0 for the background and {IGNORE}, ignored in "
                       "training", objects_hint(labels, classes) or
                       "a mask's value is the index of its class in workspace.json")
    return labels


def warn_of_untagged(untagged: Sequence[str]) -> None:
    """Warn of masks from people that show a class missing from the photo's tags."""
    if untagged:
        console.warn(counted(len(untagged), "mask shows", "masks show")
                     + f" a class that is not among the photo's tags: {first_few(untagged)}; add "
                     "the tag to get its CAM; if an editor smoothed the edges, save the mask "
                     "without that")


def is_untagged(labels: npt.NDArray[np.uint8], tags: Collection[int]) -> bool:
    """Return whether labels show a class that is not among the indices of a photo's tags."""
    return not {*np.unique(labels).tolist()} <= {0, IGNORE, *tags}


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
    if tool is None:
        known, names = {photo.id: photo for photo in photos}, _names_of_values(path)
        entries: Iterator[Labelled] = (Labelled(known[key], _read_correction(
            workspace, file, root / known[key].image, names), str(file)) for key, file
            in _find_corrections(workspace, photos, path, skipped).items())
        if path.resolve() != (workspace.path / corrections.FOLDER).resolve():
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
