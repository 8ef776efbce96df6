"""Photos with scores of their labels, the inputs of `label_refiners`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vpltool.core import crf, grids, segment
from vpltool.core.photos import describe_failure, read_photo
from vpltool.core.proposals import Proposals, from_tensors
from vpltool.errors import VplError
from vpltool.formats import InputFolder, kinds, manifest
from vpltool.lazy import F, Tensor, np, npt, torch
from vpltool.methods.inputs import ScoredPhoto

Job = tuple[str, Path]
"""A photo's id and path."""

Field: TypeAlias = "npt.NDArray[np.float32]"


@dataclass(frozen=True)
class Scores:
    """The source of the scores, and the size to compute at.

    Args:
        alpha: exponent of the background score of CAMs.
        max_side: larger photos are scaled down to this side; 0: never.
        proposals: proposals of the photos, if the method reads them.
        tile: photos with a longer side are processed in tiles of this side instead of being scaled
            down; 0: no tiles.
    """

    source: InputFolder
    alpha: float
    max_side: int
    classes: tuple[str, ...] = ()
    proposals: InputFolder | None = None
    tile: int = 0

    def divides(self, size: tuple[int, int]) -> bool:
        """Return whether a photo of (height, width) is processed in tiles."""
        return 0 < self.tile < max(size)

    def size_at_once(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of one unit of work: a tile, or the photo scaled down."""
        if self.divides(size):
            return min(size[0], self.tile), min(size[1], self.tile)
        return crf.bounded_size(size, self.max_side)


@dataclass(frozen=True)
class Stored:
    """A photo's stored scores: CAMs or probabilities (K, h, w), or labels (H, W).

    Args:
        kind: `cams`, `probabilities` or `predictions`.
        values: the tensor as stored.
        classes: class of each map (K,), or of each label in the photo.
        alpha: see `Scores`.
    """

    kind: str
    values: Tensor
    classes: Tensor
    alpha: float

    @classmethod
    def of(cls, scores: Scores, key: str) -> Stored:
        """Read the stored scores of a photo."""
        source = scores.source
        if source.kind == "predictions":
            labels = source.read_labels(key)
            shown = np.unique(np.where(labels == kinds.IGNORE, 0, labels)).astype(np.int64)
            return cls(source.kind, torch.from_numpy(labels), torch.from_numpy(shown), 0)
        tensors = source.read_tensors(key)
        values = tensors["cam" if source.kind == "cams" else "probabilities"].float()
        return cls(source.kind, values, tensors["classes"], scores.alpha)

    def labels(self) -> Tensor:
        """Return the class of each label (L,); to those of CAMs the background is added."""
        if self.kind != "cams":
            return self.classes
        return torch.cat([self.classes.new_zeros(1), self.classes])

    def whole(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return label scores at a size (L, H, W), and their classes (L,)."""
        if self.kind == "predictions":
            return crf.scores_of_labels(crf.shrink(self.values.numpy(), size))
        if len(self.values):
            values = F.interpolate(self.values[None], size=size, mode="bilinear",
                                   align_corners=False)[0]
        else:
            values = self.values.new_zeros((0, *size))
        return self._with_background(values), self.labels()

    def part(self, size: tuple[int, int], corner: tuple[int, int], sides: tuple[int, int]
             ) -> tuple[Tensor, Tensor]:
        """Return label scores of a part of the photo (L, *sides), and their classes (L,).

        The part begins at the row and column `corner`, in a photo of (height, width) `size`.
        """
        if self.kind == "predictions":
            (top, left), (height, width) = corner, sides
            return crf.scores_of_labels(
                self.values[top : top + height, left : left + width].numpy(),
                among=len(self.classes))
        return self._with_background(segment.part_of(self.values, size, corner,
                                                     sides)), self.labels()

    def _with_background(self, values: Tensor) -> Tensor:
        return crf.with_background(values, self.alpha) if self.kind == "cams" else values


@dataclass(frozen=True)
class ReadPhoto:
    """A photo with its label scores, or the reason why reading failed.

    Args:
        scored: pixels and scores at the working size; without scores if the photo is processed
            in tiles.
        classes: class index of each label (L,).
        size: the photo's own (height, width).
        failure: reason why it cannot be used; empty if it can.
        stored: source of the tiles' scores, if it is processed in tiles.
    """

    key: str
    path: Path
    scored: ScoredPhoto
    classes: npt.NDArray[np.int64]
    size: tuple[int, int] = (0, 0)
    failure: str = ""
    stored: Stored | None = None

    @property
    def each(self) -> str:
        """The working size for messages."""
        return f"{self.scored.photo.shape[1]}×{self.scored.photo.shape[0]} pixels"


@dataclass(frozen=True)
class ReadBatch:
    """Photos of the same size and number of labels; see `run_within_memory`."""

    photos: list[ReadPhoto]

    @property
    def ids(self) -> list[str]:
        """Ids of the photos."""
        return [photo.key for photo in self.photos]

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def each(self) -> str:
        """Size of each photo for messages."""
        return self.photos[0].each

    def split(self, size: int) -> list[ReadBatch]:
        """Split into batches of at most `size` photos."""
        return [ReadBatch(self.photos[start : start + size]) for start in range(0, len(self), size)]


def read_scored(scores: Scores, job: Job) -> ReadPhoto:
    """Read a photo and the scores of its labels."""
    key, path = job
    try:
        photo = read_photo(path)
        own = (photo.shape[0], photo.shape[1])
        stored = Stored.of(scores, key)
        if scores.divides(own):
            classes = stored.labels()
            scored = ScoredPhoto(photo, np.empty(0, np.float32), _names(scores, classes))
            return ReadPhoto(key, path, scored, classes.numpy(), own, stored=stored)
        size = scores.size_at_once(own)
        values, classes = stored.whole(size)
        photo = crf.shrink(photo, size)
        found = _proposals_of(scores.proposals, key, size)
    except (OSError, ValueError, RuntimeError, MemoryError, VplError) as error:
        nothing = ScoredPhoto(np.empty((0, 0, 3), np.uint8), np.empty(0, np.float32))
        return ReadPhoto(key, path, nothing, np.empty(0, np.int64),
                         failure=describe_failure(path, error))
    return ReadPhoto(key, path, ScoredPhoto(photo, values.numpy(), _names(scores, classes), found),
                     classes.numpy(), own)


def _names(scores: Scores, classes: Tensor) -> tuple[str, ...]:
    # The code that writes labels reports unknown classes.
    return tuple(scores.classes[label - 1] if 0 < label <= len(scores.classes) else ""
                 for label in classes.tolist())


def _proposals_of(folder: InputFolder | None, key: str, size: tuple[int, int]) -> Proposals | None:
    """Return a photo's proposals at a size; None if none are read."""
    if folder is None:
        return None
    try:
        return from_tensors(folder.read_tensors(key)).resized(size)
    except (ValueError, UnicodeDecodeError) as error:
        raise VplError(f"{folder.path_of(key)} is damaged ({error})",
                       f"delete it and run: {manifest.call_of(folder.header)}") from error


_OVERLAP = 0.25
"""Overlap of neighbouring tiles, as a share of a tile: with 1,024 pixels, almost four standard
deviations of CLIP-ES's appearance kernel."""


def refined_in_tiles(read: ReadPhoto, tile: int, refine: Callable[[ScoredPhoto], Field]
                     ) -> Iterator[Field]:
    """Refine tiles of a side in pixels like photos, and blend marginals where tiles overlap.

    Yields:
        marginals (L, rows, W) of the image rows completed by each row of tiles.
    """
    stored, photo, size = read.stored, read.scored, read.size
    assert stored is not None
    sides = min(size[0], tile), min(size[1], tile)
    place_of = {label: place for place, label in enumerate(read.classes.tolist())}

    def see(corners: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        for top, left in corners:
            values, classes = stored.part(size, (top, left), sides)
            places = [place_of[label] for label in classes.tolist()]
            pixels = np.ascontiguousarray(photo.photo[top : top + sides[0], left : left + sides[1]])
            # A label absent from a tile has probability zero in it.
            field = torch.zeros(len(place_of), *sides)
            field[places] = torch.from_numpy(refine(ScoredPhoto(
                pixels, values.numpy(), tuple(photo.names[place] for place in places))))
            yield field

    return (field.numpy() for _, field in grids.blend(size, tile, _OVERLAP, see, fineness=1))
