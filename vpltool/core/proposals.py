"""Proposals: masks of possible objects, as run lengths; and their votes for labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vpltool.lazy import Image, Tensor, np, npt, torch

Mask: TypeAlias = "npt.NDArray[np.bool_]"
Runs: TypeAlias = "npt.NDArray[np.int64]"
Field: TypeAlias = "npt.NDArray[np.float32]"

LARGEST = 10_000
"""Most proposals of a photo; SAM with its finest grid gives some hundreds."""


@dataclass(frozen=True)
class Proposal:
    """A mask of a possible object."""

    inside: Mask  # (H, W)
    score: float = 1.0  # in [0, 1], how sure the tool is of the outline
    word: str = ""  # class word of the tool; empty: none


@dataclass(frozen=True)
class Proposals:
    """The proposals of a photo; they may overlap, and need not cover it."""

    size: tuple[int, int]  # (height, width) of every mask
    runs: Runs  # run lengths (R,), mask by mask: row by row, outside first
    counts: Runs  # number of run lengths of each mask (P,)
    scores: Field  # of each mask (P,), in [0, 1]
    words: Sequence[str]  # class word of each mask; empty: none

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, size: tuple[int, int], found: Iterable[Proposal]) -> Proposals:
        """Pack masks of a size; empty ones are left out.

        Raises a ValueError if a mask is of another size, its score is not in [0, 1], or there are
        too many.
        """
        runs, scores, words = list[Runs](), list[float](), list[str]()
        for proposal in found:
            if proposal.inside.shape != tuple(size):
                raise ValueError(f"a mask of {proposal.inside.shape}, the photo has {size}")
            if not 0 <= proposal.score <= 1:
                raise ValueError(f"a score of {proposal.score}, which is not in [0, 1]")
            if not proposal.inside.any():
                continue
            runs.append(run_lengths(proposal.inside))
            scores.append(proposal.score)
            # A file holds one word per line.
            words.append(" ".join(proposal.word.split()))
            if len(runs) > LARGEST:
                raise ValueError(f"more than {LARGEST} proposals of a photo")
        return cls((int(size[0]), int(size[1])),
                   np.concatenate(runs) if runs else np.zeros(0, np.int64),
                   np.array([len(part) for part in runs], np.int64),
                   np.array(scores, np.float32), words)

    def masks(self) -> Iterator[Mask]:
        """Yield each mask (H, W)."""
        for lengths in np.split(self.runs, np.cumsum(self.counts)[:-1]) if len(self) else ():
            inside = np.arange(len(lengths)) % 2 == 1
            yield np.repeat(inside, lengths).reshape(self.size)

    def resized(self, size: tuple[int, int]) -> Proposals:
        """Scale the masks to a size by nearest neighbour; those that vanish are left out."""
        if tuple(size) == self.size:
            return self
        images = (Image.fromarray(inside).resize((size[1], size[0]), Image.Resampling.NEAREST)
                  for inside in self.masks())
        return Proposals.of(size, (
            Proposal(np.asarray(image).astype(bool), float(score), word)
            for image, score, word in zip(images, self.scores, self.words, strict=True)))

    def intervals(self) -> tuple[Runs, Runs, Runs]:
        """Return first and last-plus-one pixel of each run inside a mask, and the mask's number."""
        first = np.cumsum(self.counts) - self.counts
        place = np.arange(len(self.runs)) - np.repeat(first, self.counts)
        ends = np.cumsum(self.runs)
        # Each mask has as many pixels as the photo.
        owner = np.repeat(np.arange(len(self)), self.counts)
        ends -= owner * (self.size[0] * self.size[1])
        inside = (place % 2 == 1) & (self.runs > 0)
        return (ends - self.runs)[inside], ends[inside], owner[inside]


def run_lengths(inside: Mask) -> Runs:
    """Return the run lengths of a mask (H, W), row by row, outside first (R,)."""
    flat = inside.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(ends, prepend=0, append=flat.size)
    return np.concatenate([[0], lengths]) if flat[0] else lengths


def areas(proposals: Proposals) -> Runs:
    """Return the pixels of each proposal (P,)."""
    first, last, owner = proposals.intervals()
    return np.bincount(owner, last - first, len(proposals)).astype(np.int64)


def means_inside(proposals: Proposals, scores: Field) -> npt.NDArray[np.float64]:
    """Return the mean of each label's scores (L, H, W) inside each proposal (P, L)."""
    first, last, owner = proposals.intervals()
    flat = scores.reshape(len(scores), -1)
    means = np.empty((len(proposals), len(scores)))
    size = np.maximum(areas(proposals), 1)
    for label, values in enumerate(flat):
        # With cumulative sums, a mask costs its runs and not its pixels.
        total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        means[:, label] = np.bincount(owner, total[last] - total[first], len(proposals)) / size
    return means


def votes(proposals: Proposals, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sum of the weights (P, L) of the proposals at each pixel, by label (L, H, W)."""
    first, last, owner = proposals.intervals()
    pixels = proposals.size[0] * proposals.size[1]
    made = np.empty((weights.shape[1], *proposals.size))
    for label, weight in enumerate(weights.T):
        change = np.bincount(first, weight[owner], pixels + 1)
        change -= np.bincount(last, weight[owner], pixels + 1)
        made[label] = np.cumsum(change)[:-1].reshape(proposals.size)
    # Sums that rise and fall do not come back to 0 exactly.
    return np.where(made < 1e-9, 0.0, made)


def with_votes(proposals: Proposals, scores: Field, shares: npt.NDArray[np.float64],
               sure: npt.NDArray[np.float64], min_area: int) -> Field:
    """Multiply the scores of labels by the votes of the proposals that a pixel lies in.

    A proposal votes for object or background, whichever has the larger share of it, and divides
    `object` among the classes by its shares. It votes with its score times its agreement: the share
    of its choice inside minus that outside (Youden's J). So a mask that cuts an object in two, or
    separates nothing, hardly counts, whatever its size. The remainder to 1 is divided evenly.

    Args:
        proposals: of the size of the scores.
        scores: of the labels (L, H, W), summing to 1, as the result does; the background's first.
        shares: of the labels in each proposal (P, L), summing to 1.
        sure: least agreement of each proposal (P,), such as for a word of its own.
        min_area: size in pixels below which proposals do not vote.
    """
    area = areas(proposals)[:, None]
    inside = means_inside(proposals, scores)
    total = scores.reshape(len(scores), -1).sum(axis=1, dtype=np.float64)
    outside = (total - inside * area) / np.maximum(scores[0].size - area, 1)
    objects = shares[:, 0] < 0.5
    difference = (inside - outside)[:, 0]
    agreement = np.clip(np.where(objects, -difference, difference), 0, 1)
    counted = (area[:, 0] >= min_area).astype(np.float64)
    weights = proposals.scores * (sure + (1 - sure) * agreement) * counted
    classes = np.where(np.arange(len(scores)) > 0, shares, 0)
    classes /= np.maximum(classes.sum(axis=1, keepdims=True), 1e-12)
    choice = np.where(objects[:, None], classes, np.arange(len(scores)) == 0)
    for_each = votes(proposals, weights[:, None] * choice)
    total_weight = for_each.sum(axis=0)
    number = votes(proposals, counted[:, None])[0]
    weight = total_weight / np.maximum(number, 1)
    vote = for_each / np.maximum(total_weight, 1e-12)
    product = scores * ((1 - weight) / len(scores) + weight * vote)
    return (product / product.sum(axis=0).clip(min=1e-12)).astype(np.float32)


def plain_word(word: str) -> str:
    """Return a word in lower case with spaces: tools write classes in several ways."""
    return word.lower().replace("_", " ").replace("-", " ").strip()


_NO_WORD = -1


def to_tensors(proposals: Proposals) -> dict[str, Tensor]:
    """Return the tensors of a file of proposals."""
    words = sorted({*proposals.words} - {""})
    place = {word: number for number, word in enumerate(words)} | {"": _NO_WORD}
    letters = "\n".join(words).encode()
    return {"size": torch.tensor(proposals.size),
            "runs": torch.from_numpy(proposals.runs.astype(np.int64)),
            "counts": torch.from_numpy(proposals.counts.astype(np.int64)),
            "scores": torch.from_numpy(proposals.scores),
            "word": torch.tensor([place[word] for word in proposals.words], dtype=torch.long),
            "words": torch.frombuffer(bytearray(letters), dtype=torch.uint8) if letters
            else torch.zeros(0, dtype=torch.uint8)}


def from_tensors(tensors: Mapping[str, Tensor]) -> Proposals:
    """Read the tensors of a file of proposals; raise a ValueError if their values are damaged."""
    size = (int(tensors["size"][0]), int(tensors["size"][1]))
    runs, counts = tensors["runs"].numpy(), tensors["counts"].numpy()
    words = bytes(tensors["words"].numpy()).decode().split("\n")
    word, scores = tensors["word"].numpy(), tensors["scores"].numpy()
    pixels = size[0] * size[1]
    if min(size) < 1 or (counts < 1).any() or counts.sum() != len(runs):
        raise ValueError("the numbers of run lengths do not add up")
    if ((runs < 0) | (runs > pixels)).any():
        raise ValueError("a run is longer than the photo")
    owner = np.repeat(np.arange(len(counts)), counts)
    if (np.bincount(owner, runs, len(counts)) != pixels).any():
        raise ValueError(f"run lengths do not add up to {size[0]}×{size[1]}")
    if ((word < _NO_WORD) | (word >= len(words))).any() or not (
            (scores >= 0) & (scores <= 1)).all():
        raise ValueError("a word or a score is none")
    return Proposals(size, runs, counts, scores,
                     ["" if number == _NO_WORD else words[number] for number in word.tolist()])
