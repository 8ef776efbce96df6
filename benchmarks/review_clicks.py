"""What clicks bring: true masks in the place of the person who corrects regions of masks.

For each order of photos, the photos are taken one after the other. In each, the regions whose
majority class is not that of the mask are clicked, those with most wrong pixels first, at most
`--each` of them; the photo then counts as corrected. After each budget of clicks the masks are
scored, and the segmenter of `train-decoder --method discriminant` that they give. It is made of
sums over photos, so a corrected photo replaces its own terms, and all segmenters are scored in one
pass over the photos. True masks are read by this script alone; the workspace is not changed.

    python -m benchmarks.review_clicks WORK --half a --test b     # to choose an order
    python -m benchmarks.review_clicks WORK --half b --test val   # to confirm it

`WORK` has features with layers of `train` and `val`, and masks with 255 and without (`-full`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vpltool.core.agreement import class_shares
from vpltool.core.discriminant import Moments, discriminant, label_shares
from vpltool.core.metrics import Confusion, confusion, scores
from vpltool.core.photos import read_photo
from vpltool.core.segment import labels_of, probabilities_of
from vpltool.core.segmenter import LinearSegmenter
from vpltool.core.training import labels_at
from vpltool.formats import (
    IGNORE,
    InputFolder,
    Photo,
    Workspace,
    find_folder,
    open_input,
    open_workspace,
    read_labels,
)
from vpltool.methods.segmenters.discriminant import Settings
from vpltool.parallel.threads import in_threads
from vpltool.review.orders import SHARE
from vpltool.review.pictures import photo_regions

Labels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float64]

BUDGETS = (20, 50, 100, 200)
_THREADS = 2


@dataclass
class Seen:
    """What a computer knows of a photo before a person looks at it; all (H, W), but `tags`."""

    tags: set[int]
    full: Labels
    open: Labels
    predicted: Labels
    entropy: Field
    halves: tuple[Labels, Labels]


class Photos:
    """Photos with features: their patches, and what a linear map makes of them."""

    def __init__(self, workspace: Workspace, split: str) -> None:
        """Open the features of a split."""
        self.workspace = workspace
        self.features: InputFolder = open_input(workspace.path / "features" / split, ("features",))
        layers = self.features.header.options["layers"]
        first = next(photo for photo in workspace.photos(split) if self.features.holds(photo.id))
        width = self.features.read_tensors(first.id, "layers")["layers"].shape[-1]
        classes = 1 + len(workspace.classes)
        self.network = LinearSegmenter(tuple(layers), width, torch.zeros(classes, 1),
                                       torch.arange(classes), Settings().walk).eval()

    def tokens(self, photo: Photo) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Layers (1, L, n, width), what the classifier reads (n, D), and the grid."""
        found = self.features.read_tensors(photo.id, "layers", "grid")
        grid = (int(found["grid"][0]), int(found["grid"][1]))
        layers = found["layers"][None].float()
        return layers, self.network.embeddings(layers, None, grid)[0], grid

    def add(self, moments: Moments, photo: Photo, labels: Labels, sign: float = 1.0) -> None:
        """Add a photo's patches with their labels, or take them away."""
        _, tokens, grid = self.tokens(photo)
        moments.add(tokens, sign * label_shares(labels_at(labels, grid), len(moments.counts)))

    def probabilities(self, photo: Photo, maps: Sequence[tuple[Tensor, Tensor]]
                      ) -> Iterator[Tensor]:
        """Yield the probabilities (classes, 4h, 4w) under each linear map."""
        layers, _, grid = self.tokens(photo)
        for weight, bias in maps:
            with torch.no_grad():
                self.network.classifier.weight.copy_(weight)
                self.network.classifier.bias.copy_(bias)
            yield probabilities_of(self.network, layers, None, grid)[0]

    def truth(self, photo: Photo) -> Labels:
        """A photo's true mask (H, W)."""
        assert photo.mask is not None
        return read_labels(self.workspace.path / self.workspace.root / photo.mask)


def fitted(moments: Moments) -> tuple[Tensor, Tensor]:
    """Weight and bias of the segmenter, with the defaults of `train-decoder`."""
    return discriminant(moments, Settings().shrinkage, Settings().prior)


# ---- orders: a function from a photo to how much a look at it is worth

def _weights(seen: Mapping[str, Seen]) -> Field:
    """1 / share of each class in the masks (256,); 0 where there is none."""
    counts = sum(np.bincount(one.full.ravel(), minlength=256) for one in seen.values())
    return np.where(counts > 0, np.sum(counts) / np.maximum(counts, 1), 0.0)


def _unlike(one: Labels, other: Labels, weights: Field | None = None) -> float:
    """Share of the pixels that differ, each as often as the mean weight of its two classes."""
    differ = one != other
    if weights is None:
        return float(differ.mean())
    return float((weights[one[differ]] + weights[other[differ]]).sum() / 2 / one.size)


def _iou_between(one: Labels, other: Labels) -> float:
    """Mean IoU of two label images over the classes of either."""
    classes = np.union1d(one, other)
    return float(np.mean([((one == each) & (other == each)).sum()
                          / ((one == each) | (other == each)).sum() for each in classes]))


def _tags_against(labels: Labels, tags: set[int]) -> float:
    """The product's `worst-tags`: wrong classes, then the pixels of those that nobody tagged."""
    shares = class_shares(labels, IGNORE)
    said = {int(index) for index in np.flatnonzero(shares[1:] >= SHARE) + 1}
    return len(said ^ tags) + float(sum(shares[index] for index in said - tags))


def _regional(one: Seen, regions: npt.NDArray[np.uint16], weights: Field, most: int) -> float:
    """Region-wise uncertainty × class balance (Cai et al., CVPR 2021): the best `most` regions."""
    number = regions.ravel()
    sizes = np.bincount(number)
    sums = np.bincount(number, one.entropy.ravel())
    shares = np.divide(1, weights, out=np.zeros_like(weights), where=weights > 0)
    balance = np.bincount(number, np.exp(-shares[one.predicted]).ravel())
    return float(np.sort(sums * balance / np.maximum(sizes, 1) ** 2)[-most:].sum())


def orders(seen: Mapping[str, Seen], regions: Callable[[str], npt.NDArray[np.uint16]], most: int
           ) -> dict[str, list[str]]:
    """Photos in each order, the first to be looked at first."""
    weights = _weights(seen)
    measures: dict[str, Callable[[str, Seen], float]] = {
        "uncertain": lambda _, one: float((one.open == IGNORE).mean()),
        "worst-tags": lambda _, one: _tags_against(one.full, one.tags),
        "worst-tags, uncertain": lambda _, one: (
            _tags_against(one.full, one.tags) + float((one.open == IGNORE).mean())),
        "worst-tags, prediction": lambda _, one: (
            _tags_against(one.full, one.tags) + _unlike(one.full, one.predicted)),
        "entropy": lambda _, one: float(one.entropy.mean()),
        "entropy x balance": lambda _, one: float((one.entropy * weights[one.full]).mean()),
        "regions x balance": lambda key, one: _regional(one, regions(key), weights, most),
        "prediction": lambda _, one: _unlike(one.full, one.predicted),
        "prediction x balance": lambda _, one: _unlike(one.full, one.predicted, weights),
        "prediction, IoU": lambda _, one: 1 - _iou_between(one.full, one.predicted),
        "two segmenters": lambda _, one: _unlike(*one.halves),
        "two segmenters x balance": lambda _, one: _unlike(*one.halves, weights),
        "tags against prediction": lambda _, one: _tags_against(one.predicted, one.tags)}
    found = {f"random {seed}": random.Random(seed).sample(list(seen), len(seen))
             for seed in range(5)} | {"file": list(seen)}
    for name, measure in measures.items():
        values = {key: measure(key, one) for key, one in seen.items()}
        found[name] = sorted(seen, key=lambda key: -values[key])
    return found


# ---- clicks

def wrong_regions(labels: Labels, truth: Labels, regions: npt.NDArray[np.uint16]
                  ) -> list[tuple[int, int]]:
    """Regions that a click would improve, the largest gain first: number and majority class."""
    count, classes = int(regions.max()) + 1, IGNORE
    known = truth != IGNORE
    table = np.zeros((count, classes), np.int64)
    np.add.at(table, (regions[known], truth[known]), 1)
    right = np.bincount(regions[known & (labels == truth)], minlength=count)
    majority = table.argmax(axis=1)
    gain = table.max(axis=1) - right
    return [(int(number), int(majority[number])) for number in np.argsort(-gain, kind="stable")
            if gain[number] > 0]


def click(labels: Labels, truth: Labels, regions: npt.NDArray[np.uint16], most: int
          ) -> tuple[Labels, int]:
    """Labels after at most `most` clicks, and how many there were."""
    chosen = wrong_regions(labels, truth, regions)[:most]
    labels = labels.copy()
    for number, label in chosen:
        labels[regions == number] = label
    return labels, len(chosen)


@dataclass
class Bench:
    """The photos that are corrected, with their masks."""

    photos: Photos
    chosen: Mapping[str, Photo]
    full: InputFolder
    open: InputFolder
    each: int

    def __post_init__(self) -> None:
        """Train on the masks as they are, and see what that says of each photo."""
        classes, size = self.photos.network.classifier.weight.shape
        halves = [Moments.zeros(classes, size, torch.device("cpu")) for _ in range(2)]
        for place, (key, photo) in enumerate(self.chosen.items()):
            self.photos.add(halves[place % 2], photo, self.open.read_labels(key))
        self.start = _sum(*halves)
        maps = [fitted(moments) for moments in (self.start, *halves)]
        self.seen = {key: self._see(photo, maps) for key, photo in self.chosen.items()}
        self.regions = dict(zip(self.chosen, in_threads(
            self._regions_of, self.chosen.values(), _THREADS), strict=True))

    def _regions_of(self, photo: Photo) -> npt.NDArray[np.uint16]:
        found = photo_regions(read_photo(self.photos.workspace.image_path(photo)))[0]
        size = self.seen[photo.id].full.shape
        assert found.shape == size, "photos of at most 800 pixels a side"
        return found

    def _see(self, photo: Photo, maps: Sequence[tuple[Tensor, Tensor]]) -> Seen:
        full = self.full.read_labels(photo.id)
        fields = list(self.photos.probabilities(photo, maps))
        whole, one, other = (labels_of(field, full.shape) for field in fields)
        sure = torch.nn.functional.interpolate(fields[0][None], size=full.shape)[0]
        entropy = -(sure * sure.clamp_min(1e-12).log()).sum(dim=0)
        return Seen(set(self.photos.workspace.indices_of(photo)), full,
                    self.open.read_labels(photo.id), whole, entropy.double().numpy(), (one, other))

    def rows(self, wanted: Sequence[str]
             ) -> Iterator[tuple[dict[str, object], tuple[Tensor, Tensor]]]:
        """Yield a row for each order (empty: all) and budget, and the segmenter of then."""
        truths = {key: self.photos.truth(photo) for key, photo in self.chosen.items()}
        yield self._row("none", 0, {}, truths), fitted(self.start)
        found = orders(self.seen, self.regions.__getitem__, self.each)
        for order, queue in found.items():
            if wanted and order not in wanted:
                continue
            moments = _sum(self.start)
            corrected: dict[str, Labels] = {}
            spent, ids = 0, iter(queue)
            for budget in BUDGETS:
                while spent < budget and (key := next(ids, None)) is not None:
                    one = self.seen[key]
                    corrected[key], clicks = click(one.full, truths[key], self.regions[key],
                                                   min(self.each, budget - spent))
                    spent += clicks
                    self.photos.add(moments, self.chosen[key], one.open, -1.0)
                    self.photos.add(moments, self.chosen[key], corrected[key])
                yield self._row(order, spent, corrected, truths), fitted(moments)

    def _row(self, order: str, clicks: int, corrected: Mapping[str, Labels],
             truths: Mapping[str, Labels]) -> dict[str, object]:
        return {"order": order, "clicks": clicks, "photos": len(corrected), "masks": mean_iou(
            confusion(truths[key], corrected.get(key, one.full),
                      1 + len(self.photos.workspace.classes))
            for key, one in self.seen.items())}


def _sum(*parts: Moments) -> Moments:
    return Moments(*(torch.stack(sums).sum(dim=0) for sums in zip(
        *((one.counts, one.sums, one.products) for one in parts), strict=True)))


def mean_iou(counts: Iterable[Confusion]) -> float:
    """Mean IoU over photos, in percent."""
    first, *others = counts
    return 100 * scores(sum(others, first)).miou


def score(photos: Photos, tested: Sequence[Photo], maps: Sequence[tuple[Tensor, Tensor]]
          ) -> list[float]:
    """Mean IoU of each segmenter on photos, in percent."""
    classes = 1 + len(photos.workspace.classes)
    counts: list[list[Confusion]] = [[] for _ in maps]
    for photo in tested:
        truth = photos.truth(photo)
        for number, field in enumerate(photos.probabilities(photo, maps)):
            counts[number].append(confusion(truth, labels_of(field, truth.shape), classes))
    return [mean_iou(one) for one in counts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every order, and write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--masks", default="seeds-refined")
    parser.add_argument("--half", choices=("a", "b", "all"), default="all",
                        help="photos of train that are corrected: every second one")
    parser.add_argument("--photos", type=int, default=400, help="of them, at most")
    parser.add_argument("--test", choices=("a", "b", "val"), default="val",
                        help="where segmenters are scored: a half of train, or val")
    parser.add_argument("--tested", type=int, default=None, help="of them, at most")
    parser.add_argument("--each", type=int, default=10, help="clicks a photo at most")
    parser.add_argument("--orders", nargs="*", default=[], help="default: all")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    workspace = open_workspace(options.work)
    train = workspace.photos("train")
    parts = {"a": train[::2], "b": train[1::2], "all": train, "val": workspace.photos("val")}
    full, unsure = (find_folder(options.work, ("masks",), f"masks/{options.masks}{end}", "train",
                                "`crf()`") for end in ("-full", ""))
    photos = Photos(workspace, "train")
    chosen = {photo.id: photo for photo in parts[options.half][:options.photos]}
    bench = Bench(photos, chosen, full, unsure, options.each)
    rows, maps = [], []
    for row, found in bench.rows(options.orders):
        print(json.dumps(row), flush=True)
        rows.append(row)
        maps.append(found)
    tested = photos if options.test != "val" else Photos(workspace, "val")
    scores = score(tested, parts[options.test][:options.tested], maps)
    for row, value in zip(rows, scores, strict=True):
        row["segmenter"] = value
    content = json.dumps(rows, indent=1)
    if options.out:
        options.out.write_text(content)
    print(content)


if __name__ == "__main__":
    main(sys.argv[1:])
