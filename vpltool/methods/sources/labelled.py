"""Import labelled photos: YOLO, COCO, CVAT, LabelMe, Label Studio, mmsegmentation and others.

The format is detected, as for --corrections; tags are the classes of a photo's regions.
Photos in a folder train, val or test belong to that split, all others to train. The masks of val
and test become true masks, for eval, show and report only. The masks of train are not used for
training unless they are also given as --corrections.

Example: vpltool prepare labelled exports/yolo

Next: vpltool text-prototypes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from vpltool import console, formats, settings
from vpltool.datasets.layouts import check_class_count, photos_below
from vpltool.datasets.words import VOC
from vpltool.errors import VplError, counted, first_few
from vpltool.formats import IGNORE, Header, OutputFolder, Photo, Workspace
from vpltool.formats.workspace import relative_to
from vpltool.lazy import np
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.methods.labels import FirstRequest, LabellingRequest, find_reader
from vpltool.settings import setting

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val",
           "validation": "val", "test": "test"}
"""Folder to split, as tools name them."""

_LABELS = {"masks", "labels", "ann_dir", "annotations"}
"""Folders whose pictures are labels, not photos."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a labelled set."""

    path: Path = setting(help="Folder or file that a labelling tool wrote.", metavar="PATH",
                         positional=True)
    images: Path | None = setting(None, "Folder of the photos; default: PATH, or its parent.",
                                  metavar="DIR")


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the labels for the tags; those of scored splits are read again for their masks."""
    tool = find_reader(settings.path)
    if tool is None:
        raise VplError(f"{settings.path} is in no known format",
                       "docs/labelling.md says what each format looks like")
    name, reader = tool
    root = settings.images or (settings.path if settings.path.is_dir() else settings.path.parent)
    photos = _find_photos(root)
    request = (LabellingRequest(root, shared.classes, photos) if shared.classes
               else FirstRequest(root, (), photos))
    shown: dict[str, list[int]] = {}
    for entry in reader.read(settings.path, request):
        shown[entry.photo.id] = [label for label in np.unique(entry.labels).tolist()
                                 if label not in (0, IGNORE)]
    classes = tuple(request.met) if isinstance(request, FirstRequest) else shared.classes
    check_class_count(classes, str(settings.path), listed=bool(shared.classes))
    if not any(shown.values()):
        raise VplError(f"{settings.path} ({name}) holds no region of any photo",
                       "submit the annotations in Label Studio, and export them as JSON"
                       if name == "label-studio" else "export it from the tool again")
    unsaid = [key for key in photos if key not in shown]
    tagged = [replace(photo, tags=tuple(classes[label - 1] for label in shown[key]))
              for key, photo in photos.items() if key in shown]
    console.note(f"{settings.path} is {name}: {counted(len(tagged), 'photo', 'photos')}")
    remarks = ([counted(len(unsaid), f"photo of {root} is not labelled and is skipped: ",
                        f"photos of {root} are not labelled and are skipped: ")
                + first_few(unsaid)] if unsaid else [])
    return Source(root.resolve().name, root, tagged, classes, VOC.background,
                  from_tags=not shared.classes, remarks=remarks,
                  paint=lambda workspace, listed: _paint(workspace, listed, settings.path, root,
                                                         reader))


def _find_photos(root: Path) -> dict[str, Photo]:
    """Return id to photo of those below a folder, in the split of its name."""
    found: dict[str, Photo] = {}
    for path in photos_below(root):
        inside = path.relative_to(root)
        if _LABELS & {*inside.parts[:-1]}:
            continue
        folders = [part for part in inside.parts[:-1] if part in _SPLITS]
        split = _SPLITS[folders[0]] if folders else "train"
        if inside.stem in found:
            raise VplError(f"{root}: {found[inside.stem].image} and {inside.as_posix()} would both "
                           f"be the photo {inside.stem}", "rename one of them, and its labels")
        found[inside.stem] = Photo(inside.stem, inside.as_posix(), (), (split,))
    if not found:
        raise VplError(f"{root} holds no photo", "`images='DIR'` names their folder")
    return found


def _paint(workspace: Workspace, photos: Sequence[Photo], path: Path, root: Path,
           reader: ModuleType) -> tuple[list[Photo], list[OutputFolder]]:
    """Write the true masks of scored splits into ground-truth/SPLIT."""
    scored = [split for split in ("val", "test") if any(split in photo.splits for photo in photos)]
    if not scored:
        return list(photos), []
    annotations = formats.identity_of_many({file.name: formats.identity_of_file(file)
                                            for file in reader.files(path)})
    outputs, masks = {}, dict[str, str]()
    for split in scored:
        header = Header(kind="masks", command="prepare", inputs={
            "annotations": annotations, "classes": workspace.classes_identity},
            options={"method": "labelled", "split": split})
        ids = [photo.id for photo in photos if split in photo.splits]
        outputs[split] = formats.open_output(workspace.path / "ground-truth" / split, header, ids,
                                             overwrite=True)
        outputs[split].begin()
    known = {photo.id: photo for photo in photos}
    for entry in reader.read(path, LabellingRequest(root, workspace.classes, known)):
        for split in outputs.keys() & {*entry.photo.splits}:
            output = outputs[split]
            formats.write_labels(output.path_of(entry.photo.id), entry.labels, output.header)
            masks[entry.photo.id] = relative_to(output.path_of(entry.photo.id), root)
    return ([replace(photo, mask=masks.get(photo.id)) for photo in photos],
            list(outputs.values()))
