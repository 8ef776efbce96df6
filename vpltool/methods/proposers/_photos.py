"""Shared parts of methods that make proposals from a photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from vpltool.core import crf, photos, proposals
from vpltool.errors import VplError
from vpltool.lazy import np, npt
from vpltool.methods.inputs import ProposalRequest
from vpltool.settings import setting

max_side_setting = partial(
    setting, 1024, "Scale longer photos down to this; proposals are stored at that size. 0: never.",
    low=0, metavar="PIXELS")


def of_photos(request: ProposalRequest, max_side: int,
              make: Callable[[npt.NDArray[np.uint8]], Iterable[proposals.Proposal]]
              ) -> Iterator[tuple[str, proposals.Proposals | str]]:
    """Yield each photo's id with its proposals, or the reason why it has none.

    Longer photos are scaled down to `max_side`, 0: never. `make` takes RGB (H, W, 3), and makes
    masks of that size.
    """
    for key, path in request.jobs:
        try:
            photo = photos.read_photo(path)
            size = crf.bounded_size((photo.shape[0], photo.shape[1]), max_side)
            yield key, proposals.Proposals.of(size, make(crf.shrink(photo, size)))
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            yield key, photos.describe_failure(path, error)


def of_segments(request: ProposalRequest, max_side: int, numbers: Sequence[int],
                segment: Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.int64]]
                ) -> Iterator[tuple[str, proposals.Proposals | str]]:
    """Yield each photo's id with the segments of its partitions (H, W) by several numbers."""
    def make(photo: npt.NDArray[np.uint8]) -> Iterator[proposals.Proposal]:
        for number in numbers:
            labels = segment(photo, number)
            yield from (proposals.Proposal(labels == label) for label in np.unique(labels).tolist())

    return of_photos(request, max_side, make)


def numbers_of(name: str, text: str) -> list[int]:
    """Parse whole numbers from 1 on, separated by commas; raise a VplError if there are others."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1 or max(numbers) > 1_000_000:
        raise VplError(f"`{name}={text!r}` is not a list of whole numbers from 1 on",
                       f"`{name}='100,300'`")
    return numbers
