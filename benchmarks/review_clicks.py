"""What clicks bring: true masks in the place of the person who corrects regions of masks.

For each order of photos, the photos are taken one after the other. In each, the regions whose
majority class is not that of the mask are clicked, those with most wrong pixels first, at most
`--each` of them; the photo then counts as corrected. After each budget of clicks the masks are
scored, a segmenter is trained on them with `train-decoder --method discriminant`, and its
predictions of `val` are scored. True masks are read by this script alone, and corrections are
written in a copy of the workspace.

    python -m benchmarks.review_clicks WORK --masks seeds-refined --prototypes seeds
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vpltool import console
from vpltool.core.photos import read_photo
from vpltool.formats import IGNORE, Photo, Workspace, open_workspace, read_labels
from vpltool.formats.corrections import FOLDER
from vpltool.review import work as reviewed
from vpltool.review.regions import photo_regions
from vpltool.run import find_stage, run_stage

Labels = npt.NDArray[np.uint8]

BUDGETS = (0, 20, 50, 100, 200)


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


def click(workspace: Workspace, photo: Photo, labels: Labels, most: int, scale: int
          ) -> tuple[Labels, int]:
    """A photo's labels after at most `most` clicks, and how many there were."""
    assert photo.mask is not None
    truth = read_labels(workspace.path / workspace.root / photo.mask)
    regions = photo_regions(read_photo(workspace.image_path(photo)))[scale]
    if regions.shape != truth.shape:
        rows = np.arange(truth.shape[0]) * regions.shape[0] // truth.shape[0]
        regions = regions[rows][:, np.arange(truth.shape[1]) * regions.shape[1] // truth.shape[1]]
    chosen = wrong_regions(labels, truth, regions)[:most]
    labels = labels.copy()
    for number, label in chosen:
        labels[regions == number] = label
    return labels, len(chosen)


def mean_iou(pairs: Sequence[tuple[Labels, Labels]], classes: int) -> float:
    """Mean IoU over the classes with the background, of (labels, truth)."""
    counts = np.zeros((classes, classes), np.int64)
    for labels, truth in pairs:
        known = (truth != IGNORE) & (labels != IGNORE)
        counts += np.bincount(truth[known].astype(int) * classes + labels[known],
                              minlength=classes**2).reshape(classes, classes)
    hits = counts.diagonal()
    return float(100 * (hits / np.maximum(counts.sum(0) + counts.sum(1) - hits, 1)).mean())


def measure(work: Path, order: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Click through a workspace in an order: a row for each budget."""
    workspace = open_workspace(work)
    shown = reviewed.find_shown(workspace, f"masks/{options.masks}-full", "train")
    photos = {photo.id: photo for photo in workspace.photos("train") if photo.mask}
    # Photos of one order differ in their numbers only: the clicks are the same as in the page.
    queue = reviewed.rank(workspace, shown, list(photos.values()), order, "train")
    computed = {key: labels for key in photos if (labels := shown.read(key)) is not None}
    truths = {key: read_labels(work / workspace.root / str(photo.mask))
              for key, photo in photos.items()}
    masks, rows, spent = dict(computed), [], 0
    for budget in BUDGETS:
        while spent < budget and queue:
            key = queue.pop(0)
            if key not in masks:
                continue
            masks[key], clicks = click(workspace, photos[key], masks[key],
                                       min(options.each, budget - spent), options.scale)
            spent += clicks
            reviewed.write_correction(workspace, key, masks[key])
        corrected = len(list((work / FOLDER).glob("*.png")))
        row = {"order": order, "clicks": spent, "photos": corrected, "masks": mean_iou(
            [(masks[key], truths[key]) for key in masks], 1 + len(workspace.classes)),
            "segmenter": segmenter_score(work, options)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def segmenter_score(work: Path, options: argparse.Namespace) -> float:
    """Train on the masks as they are now, and score the segmenter on `val`, in percent."""
    with console.heard_by(console.Silence()):
        run_stage(find_stage("train-decoder"), work, {
            "masks": options.masks, "prototypes": options.prototypes, "name": "clicked",
            "method": "discriminant", "overwrite": True})
        run_stage(find_stage("predict"), work, {
            "split": "val", "decoder": "clicked", "overwrite": True, "probabilities": False})
        report = run_stage(find_stage("eval"), work, {
            "what": "predictions/clicked", "split": "val"})
    return float(100 * report["miou"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every order in a copy of a workspace, and write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--masks", default="seeds-refined")
    parser.add_argument("--prototypes", default="seeds")
    parser.add_argument("--orders", nargs="+", default=["random", "uncertain", "worst-tags",
                                                        "file"])
    parser.add_argument("--each", type=int, default=10, help="clicks a photo at most")
    parser.add_argument("--scale", type=int, default=0, help="0: large regions, 1: small ones")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for order in options.orders:
        # Beside the workspace: photos are found relative to it.
        with tempfile.TemporaryDirectory(dir=options.work.parent) as folder:
            copy = Path(folder).with_name(Path(folder).name + "-copy")
            shutil.copytree(options.work, copy)
            shutil.rmtree(copy / FOLDER, ignore_errors=True)
            try:
                rows += measure(copy, order, options)
            finally:
                shutil.rmtree(copy)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
