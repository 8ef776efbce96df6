"""Photos with the scores of their labels, as a method of `label_refiners` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool.core.crf_size import bounded_size, shrink_labels, shrink_photo
from vpltool.core.photos import describe_failure, read_photo
from vpltool.core.proposals import Proposals, from_tensors
from vpltool.errors import VplError
from vpltool.formats import InputFolder
from vpltool.formats.manifest import again
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.methods.inputs import ScoredPhoto

Job = tuple[str, Path]
"""A photo's id and path."""


@dataclass(frozen=True)
class Scores:
    """Where scores come from, and at which size.

    Args:
        source: CAMs, probabilities or predictions.
        alpha: exponent of the background score of CAMs.
        max_side: larger photos are scaled down to this; 0: never.
        classes: class names in index order.
        proposals: of the photos, if the method reads them.
    """

    source: InputFolder
    alpha: float
    max_side: int
    classes: tuple[str, ...] = ()
    proposals: InputFolder | None = None


@dataclass(frozen=True)
class Read:
    """A photo with the scores of its labels; or why not.

    Args:
        key: its id.
        path: where it lies.
        scored: pixels and scores, at the size at which it is worked on.
        classes: class index of each label (L,).
        size: the photo's own (height, width).
        failure: why it cannot be used; empty if it can.
    """

    key: str
    path: Path
    scored: ScoredPhoto
    classes: npt.NDArray[np.int64]
    size: tuple[int, int] = (0, 0)
    failure: str = ""

    @property
    def each(self) -> str:
        """The size at which it is worked on, for people."""
        return f"{self.scored.photo.shape[1]}×{self.scored.photo.shape[0]} pixels"


@dataclass(frozen=True)
class ReadBatch:
    """Photos of one size and number of labels; see `run_within_memory`."""

    photos: list[Read]

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def each(self) -> str:
        """Size of each photo, for people."""
        return self.photos[0].each

    def split(self, size: int) -> list[ReadBatch]:
        """Take it apart into batches of `size` photos at most."""
        return [ReadBatch(self.photos[start : start + size])
                for start in range(0, len(self), size)]


def read_scored(scores: Scores, job: Job) -> Read:
    """Read a photo and the scores of its labels."""
    key, path = job
    try:
        photo = read_photo(path)
        own = (photo.shape[0], photo.shape[1])
        size = bounded_size(own, scores.max_side)
        values, classes = _scores_of(scores, key, size)
        photo = shrink_photo(photo, size)
        found = _proposals_of(scores.proposals, key, size)
    except (OSError, ValueError, RuntimeError, MemoryError, VplError) as error:
        nothing = ScoredPhoto(np.empty((0, 0, 3), np.uint8), np.empty(0, np.float32))
        return Read(key, path, nothing, np.empty(0, np.int64),
                    failure=describe_failure(path, error))
    # A class that is not there is told of by who labels.
    names = tuple(scores.classes[label - 1] if 0 < label <= len(scores.classes) else ""
                  for label in classes.tolist())
    return Read(key, path, ScoredPhoto(photo, values.numpy(), names, found), classes.numpy(), own)


def _proposals_of(folder: InputFolder | None, key: str, size: tuple[int, int]
                  ) -> Proposals | None:
    """The proposals of a photo, at a size; None if none are read.

    Raises:
        VplError: the file is missing or damaged.
    """
    if folder is None:
        return None
    try:
        return from_tensors(folder.read_tensors(key)).resized(size)
    except (ValueError, UnicodeDecodeError) as error:
        raise VplError(f"{folder.path_of(key)} is damaged ({error})",
                       f"delete it and run: {again(folder.header)}") from error


def _scores_of(scores: Scores, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scores of the present labels at a size (L, H, W), and their classes (L,)."""
    import torch.nn.functional as F

    from vpltool.core import crf

    source = scores.source
    if source.kind == "predictions":
        return crf.scores_of_labels(shrink_labels(source.read_labels(key), size))
    tensors = source.read_tensors(key)
    of_cams = source.kind == "cams"
    values, classes = tensors["cam" if of_cams else "probabilities"].float(), tensors["classes"]
    if len(values):
        values = F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]
    else:
        values = values.new_zeros((0, *size))
    if of_cams:
        values = crf.with_background(values, scores.alpha)
        classes = torch.cat([classes.new_zeros(1), classes])
    return values, classes
