"""Reading true masks: for `eval`, and to draw them in `show` and `report`; a test checks this."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from vpltool import console
from vpltool.core.classes import label_type
from vpltool.core.photos import photo_size
from vpltool.errors import VplError
from vpltool.formats import Photo, Workspace, kinds, read_labels
from vpltool.formats.labels import BY_NUMBER, known_numbers, objects_hint, size_of_labels
from vpltool.lazy import np, npt
from vpltool.names import short_path
from vpltool.parallel import threads

_FEW = 0.1
"""Share of true masks with untagged classes above which the classes' numbers are in doubt."""

_OTHER_NUMBERS = ("where the masks number the classes otherwise, `classes='FILE'` of prepare names "
                  "the classes in the masks' order")


def read_truth(
    workspace: Workspace, photo: Photo, size: tuple[int, ...], sized: object = "its photo"
) -> npt.NDArray[np.uint8]:
    """Read a photo's true mask as labels (height, width): classes, 0 and `workspace.ignore`.

    Args:
        size: the expected (height, width), which is that of `sized`.

    Raises:
        VplError: the mask is missing, damaged or of another size, or a value is not a class.
    """
    path = workspace.path / workspace.root / str(photo.mask)
    found = size_of_labels(path)
    if found != size:
        raise VplError(f"{short_path(path)} is {found[0]}×{found[1]} (height×width), "
                       f"{sized} {size[0]}×{size[1]}",
                       "a true mask must have the size of its photo; photos without one "
                       "are not scored")
    values = read_labels(path)
    classes = len(workspace.classes)
    # Unless the class file names them, 0 is the background, and 255 is not scored.
    known = {0: 0, workspace.ignore: workspace.ignore, **(
        {kinds.MOST_CLASSES + 1: workspace.ignore} if classes >= kinds.IGNORE else {}), **(
        workspace.mask_values or {label: label for label in range(1, classes + 1)})}
    table = np.full(1 + max(*known, int(values.max(initial=0))), -1, np.int32)
    table[list(known)] = list(known.values())
    labels = table[values]
    if (labels < 0).any():
        value = int(values[labels < 0][0])
        raise VplError(
            f"{short_path(path)}: the value {value} is not a class; the workspace has "
            + (f"the values {', '.join(map(str, sorted(known)))[:60]}" if workspace.mask_values
               else f"{known_numbers(classes)}, 0 for the background and {workspace.ignore}, not "
                    "scored"),
            objects_hint(values, classes) or (
            f"name it in the class file (`{value} NAME`, or `{value} ignore`) and prepare again"
            if workspace.mask_values else
            f"{_OTHER_NUMBERS}; a line `{value} ignore` beside lines `VALUE NAME` leaves it out"))
    return labels.astype(label_type(classes))


def untagged_class(workspace: Workspace, photo: Photo, labels: npt.NDArray[np.uint8]) -> str:
    """Return the name of a class in a true mask that is not among the photo's tags, if any."""
    if not photo.tags:
        return ""
    there = set(np.bincount(labels.ravel()).nonzero()[0].tolist())
    untagged = there - {0, workspace.ignore, *workspace.indices_of(photo)}
    return workspace.class_name(min(untagged)) if untagged else ""


def warn_of_untagged_classes(untagged: Mapping[str, str], masks: int) -> None:
    """Warn if many true masks show untagged classes, since their values may mean other classes.

    Args:
        untagged: `untagged_class` by id, where there is one.
        masks: number of true masks that were read.
    """
    if len(untagged) > _FEW * masks:
        key, name = next(iter(untagged.items()))
        console.warn(f"{len(untagged)} of {masks} true masks hold classes that their photos are "
                     f"not tagged with, such as `{name}` in {key}; {_OTHER_NUMBERS}")


def check_shown(workspace: Workspace, shown: Mapping[int, str]) -> None:
    """Check that the true masks of tagged photos show more than 0 and 255, which is not scored.

    Args:
        shown: label to the id of a tagged photo whose true mask has it.

    Raises:
        VplError: they do not, so 255 probably stands for a class.
    """
    ignore = workspace.ignore
    if ignore in shown and shown.keys() <= {0, ignore}:
        raise VplError(
            f"no true mask shows a class, although photos are tagged: all is 0 or {ignore}, as in "
            f"that of {shown[ignore]}; {BY_NUMBER}",
            f"`classes='FILE'` of prepare names the values of the masks: a line "
            f"`{ignore} {workspace.classes[0]}` if {ignore} stands for this class")


def check_truth(workspace: Workspace, photos: Iterable[Photo]) -> None:
    """Check photos' true masks as `read_truth` does; missing photos are skipped."""
    def check(photo: Photo) -> None:
        try:
            size = photo_size(workspace.image_path(photo))
        except OSError:
            return
        read_truth(workspace, photo, size)

    for _ in threads.in_threads(check, photos, min(8, os.cpu_count() or 1)):
        pass
