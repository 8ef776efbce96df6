"""Masks corrected by hand: read from labelling tools or PNGs, checked, and imported.

They are stronger supervision than tags, which results record (`Header.supervision`). True masks of
the workspace never count as corrections.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from vpltool import console, formats
from vpltool.core.classes import label_type
from vpltool.core.photos import photo_size
from vpltool.datasets.tags import some
from vpltool.engine.photo_work import Packed, packed
from vpltool.errors import VplError, counted, near_name, part_of
from vpltool.formats import IGNORE, Header, Photo, Workspace
from vpltool.formats.corrections import FOLDER, import_call, is_edited
from vpltool.formats.kinds import results_of
from vpltool.formats.labels import size_of_labels
from vpltool.lazy import np, npt
from vpltool.methods.labels import Labelled, LabellingRequest, find_reader

Found: TypeAlias = dict[str, Packed]
"""Photo id to a function that returns its labels (H, W)."""


def find_corrections(workspace: Workspace, photos: Sequence[Photo], folder: Path | None
                     ) -> dict[str, Path]:
    """Find corrected masks of photos, without those that are unchanged.

    Args:
        folder: folder with ID.png; None: no corrections.

    Returns:
        path by id.

    Raises:
        VplError: the folder holds no mask of these photos, no changed mask, or the true masks.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise VplError(f"{folder} is not a folder", "give the folder that holds the masks ID.png")
    if workspace.has_true_masks_in(folder, photos):
        raise VplError(f"{folder} holds the true masks of this workspace, which are for `eval`",
                       "corrections are masks that you have corrected, in a folder of their own")
    known = {photo.id for photo in photos}
    there = {path.relative_to(folder).with_suffix("").as_posix(): path
             for path in sorted(folder.rglob("*.png")) if path.is_file()}
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
    edited = {key: path for key, path in found.items() if is_edited(path)}
    if len(edited) < len(found):
        console.note(part_of(len(found) - len(edited), len(found), f"masks in {folder}",
                             "is unchanged, and is skipped", "are unchanged, and are skipped"))
    if not edited:
        raise VplError(f"{folder}: no mask was changed since vpltool wrote it",
                       "correct some in a paint program, and save them under the same name")
    return edited


def read_correction(workspace: Workspace, path: Path, photo: Path) -> npt.NDArray[np.uint8]:
    """Read and check a corrected mask; copies of imported masks name the classes of their values.

    Raises:
        VplError: see `read_mask`; or the workspace lacks a class of an imported mask.
    """
    header = formats.describe(path).header
    names = tuple(header.facts.get("classes", ())) if header and header.kind == FOLDER else ()
    if names in ((), workspace.classes[:len(names)]):
        return read_mask(path, photo, len(workspace.classes))
    labels = read_mask(path, photo, len(names))
    table = np.arange(1 + max(IGNORE, len(names), len(workspace.classes)))
    for label in np.unique(labels[(labels > 0) & (labels != IGNORE)]).tolist():
        if names[label - 1] not in workspace.classes:
            raise VplError(f"{path} shows `{names[label - 1]}`, which is not a class of the "
                           "workspace", near_name(names[label - 1], workspace.classes))
        table[label] = workspace.index_of(names[label - 1])
    moved: npt.NDArray[np.uint8] = table.astype(label_type(len(table) - 1))[labels]
    return moved


def take_corrections(workspace: Workspace, found: Found) -> list[Path]:
    """Write corrected masks into the workspace, adding to earlier ones.

    Args:
        found: photo id to a function that returns its labels (H, W).

    Returns:
        their folder, if there are any.
    """
    if not found:
        return []
    folder = workspace.path / FOLDER
    header = Header(kind="corrections", command="prepare", supervision="a corrected mask",
                    facts={"classes": list(workspace.classes)})
    for key, labels in found.items():
        formats.write_labels(folder / f"{key}.png", labels(), header)
    total = len(list(folder.rglob("*.png")))
    trained = any(results_of(workspace.path, "decoder"))
    console.note(counted(len(found), "corrected mask is", "corrected masks are")
                 + f" imported, {total} in total; "
                 f"{'`update()`' if trained else '`train_decoder()`'} trains on "
                 + ("it" if total == 1 else "them"))
    return [folder]


def identity_of_corrections(corrected: Mapping[str, Path]) -> str:
    """Return a hash of the files of corrected masks; empty if there are none."""
    hashes = {key: formats.identity_of_file(path) for key, path in corrected.items()}
    return formats.identity_of_many(hashes) if hashes else ""


def check_corrections(workspace: Workspace, corrected: Mapping[str, Path]) -> None:
    """Check that the values of corrected masks still refer to the workspace's classes.

    Raises:
        VplError: a mask was imported with other classes.
    """
    for path in corrected.values():
        header = formats.describe(path).header
        names = tuple(header.facts.get("classes", ())) if header else ()
        if names != workspace.classes[:len(names)]:
            raise VplError(
                f"{path} was imported when the classes were {', '.join(names)}; now they are "
                f"{', '.join(workspace.classes)}",
                f"correct it again, or move it away; {import_call(workspace, 'DIR')} imports masks "
                "of the current classes")


def read_mask(path: Path, photo: Path, classes: int, *, other_palettes: bool = False
              ) -> npt.NDArray[np.uint8]:
    """Read a mask; check its classes, and its size if the photo exists.

    The size is compared before any pixel is decoded.

    Args:
        other_palettes: see `read_drawn_labels`.

    Raises:
        VplError: a value is not a class, or the size differs from the photo's.
    """
    try:
        size = photo_size(photo)
    except OSError:
        # With stored features the photo may be absent; stages that need it report that themselves.
        size = None
    found = size_of_labels(path)
    if size and found != size:
        raise VplError(f"{path} is {found[0]}×{found[1]} (height×width), its photo "
                       f"{size[0]}×{size[1]}", "a mask has a pixel for each of its photo's")
    labels = formats.read_drawn_labels(path, other_palettes=other_palettes)
    shown = np.flatnonzero(np.bincount(labels.ravel()))
    odd = shown[(shown > classes) & (shown != IGNORE)]
    if len(odd):
        raise VplError(f"{path}: the value {odd[0]} is not a class; the workspace has 1 to "
                       f"{classes}, 0 for the background and {IGNORE}, ignored in training",
                       "a mask's value is the index of its class in workspace.json")
    return labels


def warn_of_untagged(untagged: Sequence[str]) -> None:
    """Warn of masks from people that show a class missing from the photo's tags."""
    if untagged:
        console.warn(counted(len(untagged), "mask shows", "masks show")
                     + f" a class that is not among the photo's tags: {some(untagged)}; add the "
                     "tag to get its CAM; if an editor smoothed the edges, save the mask without "
                     "that")


def is_untagged(labels: npt.NDArray[np.uint8], tags: Collection[int]) -> bool:
    """Return whether labels show a class that is not among the indices of a photo's tags."""
    return not {*np.unique(labels).tolist()} <= {0, IGNORE, *tags}


def read_corrections(workspace: Workspace, photos: Sequence[Photo], path: Path | None, root: Path
                     ) -> Found:
    """Read and check corrections made by a person; nothing is written.

    Args:
        path: file or folder of a labelling tool, or a folder with ID.png; None: no corrections.

    Returns:
        photo id to a function that returns its labels (H, W).

    Raises:
        VplError: the path is missing or of an unknown format, or its content does not fit the
            photos and classes.
    """
    if path is None:
        return {}
    tool = find_reader(path)
    if tool is None:
        known = {photo.id: photo for photo in photos}
        entries = (Labelled(known[key],
                            read_correction(workspace, file, root / known[key].image), str(file))
                   for key, file in find_corrections(workspace, photos, path).items())
        return _checked(entries, workspace.classes, every=True)
    name, reader = tool
    request = LabellingRequest(root, workspace.classes, by_name(photos))
    found = _checked(reader.read(path, request), workspace.classes)
    if not found:
        raise VplError(f"{path} holds no region of any photo",
                       "submit the annotations in Label Studio, and export them as JSON"
                       if name == "label-studio" else "export it from the tool again")
    return found


def _checked(entries: Iterable[Labelled], classes: Sequence[str], *, every: bool = False) -> Found:
    """Collect labels, and warn of those that do not fit their photo's tags.

    Args:
        every: whether to accept labels without a region for a photo with tags. Tools also list
            photos that nobody has looked at; if a class is really absent, its tag should be
            removed first.
    """
    found: Found = {}
    blank, untagged = list[str](), list[str]()
    for entry in entries:
        photo = entry.photo
        tags = [classes.index(label) + 1 for label in photo.tags if label in classes]
        blank_labels = (entry.labels == 0) | (entry.labels == IGNORE)
        if photo.tags and not every and blank_labels.all():
            blank.append(photo.id)
            continue
        if is_untagged(entry.labels, tags):
            untagged.append(photo.id)
        found[photo.id] = packed(entry.labels)
    if blank:
        console.warn(counted(len(blank), "photo has tags, but no region, and is",
                             "photos have tags, but no region, and are")
                     + f" skipped: {some(blank)}")
    warn_of_untagged(untagged)
    return found


def by_name(photos: Iterable[Photo]) -> dict[str, Photo]:
    """Return photos by every name that a tool may give them."""
    return {name: photo for photo in photos for key in (photo.id, photo.image)
            for name in (key.replace("/", "__"), key)}
