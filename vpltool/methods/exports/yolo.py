"""Write a data set for YOLO segmentation: photos, polygons in text files, and data.yaml.

A line is a class, from 0 without the background, and a polygon: `2 0.31 0.42 …`, as shares of the
width and height. Each connected region is a line. A line cannot hold a hole: the polygon runs to
the hole, around it and back the same way. With --tolerance 0, what Ultralytics fills is the same
mask. Needs OpenCV.

Example: vpltool export yolo --split train

Source: Ultralytics, "Instance Segmentation Datasets Overview"
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.core.outlines import fill, outlines_of, three_points
from vpltool.errors import VplError
from vpltool.lazy import np, npt
from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders

SUFFIX = "-yolo"
FULL = True

TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of photos that Ultralytics and we both take."""
NEEDS = ("cv2", "yaml")

DESCRIPTION = "data.yaml"


@dataclass(frozen=True, kw_only=True)
class Settings(_folders.PolygonSettings):
    """Settings of YOLO's polygons."""


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    yield describe(files.classes, files.splits)
    for photo, labels in files.labels(keeps_ignored=False):
        yield (f"labels/{settings.split}/{files.names[photo.id]}.txt",
               "".join(_lines(labels, settings.tolerance)).encode())
    yield from files.photos(f"images/{settings.split}")


export = _folders.exporter("yolo", TAKEN, _members, "cv2", "yaml", splits="labels")


def _lines(labels: npt.NDArray[np.uint8], tolerance: float) -> Iterator[str]:
    height, width = labels.shape
    for label in _folders.classes_in(labels):
        for polygon in outlines_of(labels == label, corners=False, tolerance=tolerance):
            shares = " ".join(f"{(x + 0.5) / width:.6f} {(y + 0.5) / height:.6f}"
                              for x, y in three_points(polygon))
            yield f"{label - 1} {shares}\n"


def describe(names: Sequence[str], splits: Collection[str], **more: str) -> tuple[str, bytes]:
    """Return Ultralytics' description of a data set in the file's folder."""
    import yaml

    # Ultralytics wants both.
    train = "train" if "train" in splits else min(splits)
    val = "val" if "val" in splits else train
    further = {name: f"images/{name}" for name in sorted(splits) if name not in (train, val)}
    text = yaml.safe_dump({"train": f"images/{train}", "val": f"images/{val}", **further, **more,
                           "names": dict(enumerate(names))}, sort_keys=False, allow_unicode=True)
    if val == train:
        text += ("# Ultralytics wants `val`, and there is only one split here: scores are those of "
                 "the training photos.\n# Export another split to the same folder: --split val "
                 "--out DIR\n")
    return DESCRIPTION, text.encode()


def described(path: Path) -> Mapping[str, object]:
    """Return the content of a folder's description; empty if there is none."""
    return reading.parse_yaml(path / DESCRIPTION) if (path / DESCRIPTION).exists() else {}


def files(path: Path) -> list[Path]:
    """Return the files of polygons; none if it is another layout."""
    found = described(path)
    return sorted((path / "labels").rglob("*.txt")) if found and not found.get("masks_dir") else []


def outlined(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Outlined]:
    """Yield the polygons of each photo: labels/**/NAME.txt, with data.yaml. Needs OpenCV.

    They are filled as by Ultralytics, the largest first, so that smaller ones are on top.
    """
    labels = reading.labels_of_names(described(path).get("names"), request, path / DESCRIPTION)
    for file in files(path):
        photo = request.known_photo(file.stem, str(file))
        if photo is None:
            continue
        size = request.size(photo, str(file))
        yield reading.Outlined(photo, size, [
            _region(line, labels, size, f"{file}:{number}")
            for number, line in enumerate(reading.read_text(file).splitlines(), 1) if line.strip()],
            str(file), smallest_on_top=True)


read = reading.painting(outlined)


def _region(line: str, labels: Mapping[int, int], size: tuple[int, int], where: str
            ) -> reading.Region:
    words = line.split()
    try:
        number, shares = int(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise VplError(f"{where}: not a polygon ({error})",
                       "a line is CLASS X Y X Y X Y …, in shares of width and height") from error
    # Ultralytics writes a score behind the points of predictions (`save_conf`): one number more.
    score, shares = (shares[-1], shares[:-1]) if len(shares) % 2 else (1.0, shares)
    if len(shares) < 6:
        raise VplError(f"{where}: {len(shares)} numbers after the class are not a polygon"
                       + (", but a box" if len(shares) == 4 else ""),
                       "export polygons (segmentation), not boxes")
    if not (np.isfinite(shares).all() and shares.min() >= -0.01 and shares.max() <= 1.01
            and 0 <= score <= 1):
        raise VplError(f"{where}: numbers are not in 0 to 1",
                       "points are shares of the width and height, not pixels")
    if number not in labels:
        raise VplError(f"{where}: the class {number} is not in {DESCRIPTION}",
                       f"its `names` are {', '.join(map(str, sorted(labels)))}")
    points = shares.clip(0, 1 - 1e-9).reshape(-1, 2) * (size[1], size[0])
    return reading.Region(labels[number], lambda: fill([points], size), float(score))
