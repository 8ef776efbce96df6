"""Masks that a segmenter learns from: computed ones, one's own, and those corrected by hand.

Corrected masks are stronger supervision than tags, which results record (`Header.supervision`).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpltool import console, formats
from vpltool.core.photos import photo_size
from vpltool.engine import features, photo_work
from vpltool.engine.photos import check_current, file_identities
from vpltool.errors import VplError, counted, first_few, part_of
from vpltool.formats import IGNORE, Header, Photo, Workspace, corrections, manifest
from vpltool.formats.header import join_supervision
from vpltool.formats.labels import known_numbers, objects_hint, size_of_labels
from vpltool.formats.started import read_started
from vpltool.formats.workspace import relative_to
from vpltool.lazy import np, npt
from vpltool.names import short_path
from vpltool.parallel import threads

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
        # Masks that vpltool computed may exceed the tags.
        return is_untagged(labels, workspace.indices_of(photo)) and (
            photo.id in masks.corrected or formats.describe(path).header is None)

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
            f"it shows `{gone[0]}`: `prepare` takes `rename='{gone[0]}=NEW'` if the class has "
            "another name now; otherwise move the file away"
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


