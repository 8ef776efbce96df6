"""Take YOLO's polygons: labels/**/NAME.txt, with data.yaml.

Polygons are filled as Ultralytics does, the largest first, so that smaller ones are on top. Needs
OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool.errors import VplError
from vpltool.labelling.reading import labels_of_names, parse_yaml, read_text
from vpltool.labelling.request import Labelled, LabellingRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NEEDS = ("cv2", "yaml")


def files(path: Path) -> list[Path]:
    """The files of polygons; none if it is another layout."""
    if not (path / "data.yaml").exists() or parse_yaml(path / "data.yaml").get("masks_dir"):
        return []
    return sorted((path / "labels").rglob("*.txt"))


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read the polygons."""
    import numpy as np

    from vpltool.core.outlines import fill

    description = path / "data.yaml"
    labels = labels_of_names(parse_yaml(description).get("names"), request, description)
    for file in files(path):
        photo = request.photo(file.stem, str(file))
        size = request.size(photo, str(file))
        regions = []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip():
                label, shares = _polygon(line, labels, f"{file}:{number}")
                regions.append((label, fill([shares * (size[1], size[0])], size)))
        canvas = np.zeros(size, np.uint8)
        for label, inside in sorted(regions, key=lambda region: -int(region[1].sum())):
            canvas[inside] = label
        yield Labelled(photo, canvas, str(file))


def _polygon(line: str, labels: Mapping[int, int], where: str
             ) -> tuple[int, npt.NDArray[np.float64]]:
    """The label of a line, and its points (N, 2) as shares of width and height.

    Raises:
        VplError: it is no polygon, or its class is not in data.yaml.
    """
    import numpy as np

    words = line.split()
    try:
        number, shares = int(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise VplError(f"{where}: not a polygon ({error})",
                       "a line is CLASS X Y X Y X Y …, in shares of width and height") from error
    if len(shares) < 6 or len(shares) % 2:
        raise VplError(f"{where}: {len(shares)} numbers after the class are not a polygon"
                       + (", but a box" if len(shares) == 4 else ""),
                       "export polygons (segmentation), not boxes")
    if not np.isfinite(shares).all() or shares.min() < -0.01 or shares.max() > 1.01:
        raise VplError(f"{where}: numbers are not in 0 to 1",
                       "points are shares of the width and height, not pixels")
    if number not in labels:
        raise VplError(f"{where}: the class {number} is not in data.yaml",
                       f"its `names` are {', '.join(map(str, sorted(labels)))}")
    return labels[number], shares.clip(0, 1 - 1e-9).reshape(-1, 2)
