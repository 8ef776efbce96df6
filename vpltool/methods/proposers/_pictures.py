"""Proposals in folders of PNGs: label images, instances, one mask a file, and soft maps."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool.core.proposals import Proposal, Proposals
from vpltool.errors import VplError
from vpltool.formats import IGNORE, Photo, read_drawn_labels
from vpltool.formats.labels import read_legend, read_numbers, read_soft, size_of_labels
from vpltool.lazy import np, npt, scipy
from vpltool.methods.labels import BACKGROUND_WORDS, LabellingRequest, read_text

Fits = Callable[[tuple[int, int], str], None]
"""Checks a size, before the pixels are decoded; see `files`."""

Made = Callable[[Fits], Proposals]


@dataclass(frozen=True)
class Pictures:
    """Where a folder has the PNGs of each photo, and what they mean.

    Args:
        folder: the folder.
        form: `labels`, `instances`, `masks` or `soft`.
        levels: of soft maps, see `levels_of`.
        classes: class names, for label images without classes.txt.
    """

    folder: Path
    form: str
    levels: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """All PNGs, sorted; of a folder per photo also SAM's metadata.csv."""
        depth = "*/*" if self.form == "masks" else "**/*"
        return sorted(path for path in self.folder.glob(depth)
                      if path.suffix.lower() == ".png" or path.name == _METADATA)

    def each(self, request: LabellingRequest) -> Iterator[tuple[Photo, Made]]:
        """Yield each photo, and what reads its proposals.

        Raises:
            VplError: a name is none of a photo.
        """
        if self.form == "masks":
            for folder in sorted({path.parent for path in self.files()}):
                yield request.photo(folder.name, str(folder)), _Of(self, folder)
            return
        for path in self.files():
            name = path.relative_to(self.folder).as_posix()
            yield request.photo(name, str(path)), _Of(self, path)

    def words(self) -> Mapping[int, str]:
        """What the values of label images are called: lines of classes.txt, or the classes."""
        names = read_legend(self.folder) or (BACKGROUND_WORDS[0], *self.classes)
        return {value: name for value, name in enumerate(names) if name}


_METADATA = "metadata.csv"


@dataclass(frozen=True)
class _Of:
    """Reads the proposals of a photo, from its file or folder."""

    pictures: Pictures
    path: Path

    def __call__(self, fits: Fits) -> Proposals:
        return _READERS[self.pictures.form](self.pictures, self.path, fits)


def _sized(path: Path, fits: Fits) -> tuple[int, int]:
    size = size_of_labels(path)
    fits(size, str(path))
    return size


def _of_labels(pictures: Pictures, path: Path, fits: Fits) -> Proposals:
    """Each class of a label image is a proposal with its word; 0 and 255 say nothing."""
    size, words = _sized(path, fits), pictures.words()
    values = read_drawn_labels(path, other_palettes=True)
    found = [value for value in np.unique(values).tolist() if value not in (0, IGNORE)]
    if odd := [value for value in found if value not in words]:
        raise VplError(f"{path} has the value {odd[0]}, which is not a class",
                       "a line of classes.txt beside the PNGs names each value, from 0 on")
    return Proposals.of(size, (Proposal(part, 1.0, words[value]) for value in found
                               for part in _parts(values == value)))


def _of_instances(pictures: Pictures, path: Path, fits: Fits) -> Proposals:
    """Each number of an instance image is a proposal; 0 says nothing."""
    size = _sized(path, fits)
    numbers = read_numbers(path)
    return Proposals.of(size, (Proposal(numbers == number)
                               for number in np.unique(numbers[numbers > 0]).tolist()))


def _of_masks(pictures: Pictures, folder: Path, fits: Fits) -> Proposals:
    """Each PNG of a photo's folder is a mask; its score is in SAM's metadata.csv, if that is there.
    """
    paths = [path for path in sorted(folder.glob("*")) if path.suffix.lower() == ".png"]
    if not paths:
        raise VplError(f"{folder} holds no PNG", "a folder per photo holds a PNG per mask")
    scores = _scores(folder / _METADATA)
    sizes = [_sized(path, fits) for path in paths]
    return Proposals.of(sizes[0], (
        Proposal(read_soft(path) > 127, scores.get(path.stem, 1.0)) for path in paths))


def _scores(path: Path) -> dict[str, float]:
    """Name of a mask to the IoU that SAM predicts, as its amg.py writes them; empty: no file."""
    if not path.exists():
        return {}
    try:
        return {row["id"]: float(np.clip(float(row["predicted_iou"]), 0, 1))
                for row in csv.DictReader(read_text(path).splitlines())}
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise VplError(f"{path} lacks id and predicted_iou ({error})",
                       "without the file, all masks count alike") from error


def _of_soft(pictures: Pictures, path: Path, fits: Fits) -> Proposals:
    """A soft map gives what is above each level and what is not; see `of_soft_map`."""
    size = _sized(path, fits)
    return Proposals.of(size, of_soft_map(read_soft(path), pictures.levels))


def of_soft_map(values: npt.NDArray[np.uint8], levels: tuple[float, ...]) -> Iterator[Proposal]:
    """Yield, for each level, what a soft map has above it, and the rest.

    How far the map is from the middle, on average over a mask, is its score.

    Args:
        values: (H, W), 255 for what the map is sure of.
        levels: in (0, 1).
    """
    soft = values.astype(np.float32) / 255
    for level in levels:
        above = soft >= level
        for inside, sure in ((above, soft), (~above, 1 - soft)):
            if inside.any():
                yield Proposal(inside, float(sure[inside].mean()))


def _parts(inside: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the connected parts of a mask, 8-connected."""
    numbers, count = scipy.ndimage.label(inside, np.ones((3, 3)))
    for number in range(1, count + 1):
        yield numbers == number


_READERS: Mapping[str, Callable[[Pictures, Path, Fits], Proposals]] = {
    "labels": _of_labels, "instances": _of_instances, "masks": _of_masks, "soft": _of_soft}

FORMS = tuple(_READERS)
