"""Reading true masks. `eval` and `show` alone may import this; a test checks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpltool.errors import VplError
from vpltool.formats import Photo, Workspace, read_labels

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def read_truth(
    workspace: Workspace, photo: Photo, size: tuple[int, ...], sized: object = "its photo"
) -> npt.NDArray[np.uint8]:
    """Read a photo's true mask, as labels of the workspace.

    Args:
        workspace: its classes, and what the mask's values stand for.
        photo: its mask is read.
        size: (height, width) that the mask must have.
        sized: what has this size, for the message.

    Returns:
        labels (height, width): 0 to the number of classes, and `workspace.ignore`.

    Raises:
        VplError: missing, damaged, of another size, or with a value that is neither a class nor
            ignored.
    """
    import numpy as np

    path = workspace.path / workspace.root / str(photo.mask)
    values = read_labels(path)
    classes = len(workspace.classes)
    # What no line of the class file names: 0 is background, 255 is not scored.
    known = {0: 0, workspace.ignore: workspace.ignore, **(
        workspace.mask_values or {label: label for label in range(1, classes + 1)})}
    table = np.full(256, -1, np.int16)
    table[list(known)] = list(known.values())
    labels = table[values]
    if (labels < 0).any():
        value = int(values[labels < 0][0])
        raise VplError(
            f"{path}: the value {value} is no class; the workspace has "
            + (f"the values {', '.join(map(str, sorted(known)))[:60]}" if workspace.mask_values
               else f"1 to {classes}, 0 for the background and {workspace.ignore}, not scored"),
            f"name it in the class file (`{value} NAME`, or `{value} ignore`) and prepare again")
    if values.shape != size:
        raise VplError(f"{path} is {values.shape[0]}×{values.shape[1]} (height×width), {sized} "
                       f"{size[0]}×{size[1]}", "a true mask has a pixel for each of its photo's")
    return labels.astype(np.uint8)
