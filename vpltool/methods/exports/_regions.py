"""What exports share: the classes in a photo, and COCO's numbers of photos."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vpltool.errors import VplError
from vpltool.formats import IGNORE, Photo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def classes_in(labels: npt.NDArray[np.uint8]) -> list[int]:
    """Class indices in labels (H, W), ascending; without the background and what is not said."""
    import numpy as np

    return [int(label) for label in np.unique(labels) if label not in (0, IGNORE)]


def number_of(photo: Photo) -> int:
    """COCO's number of a photo: the digits at the end of its id.

    Raises:
        VplError: it has none.
    """
    digits = re.search(r"\d+$", photo.id)
    if digits is None:
        raise VplError(f"photo {photo.id} has no number, as COCO's have at the end of their names",
                       "`prepare('coco', root='FOLDER')` takes COCO's photos; `export('masks')` "
                       "takes any")
    return int(digits[0])
