"""What the card of an exported segmenter says: training, scores, and how the file was measured."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.core import segment
from vpltool.core.metrics import Confusion, confusion, scores
from vpltool.engine.segmenters import SegmenterFile
from vpltool.errors import VplError
from vpltool.formats import Workspace, open_input
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import place, results_of
from vpltool.formats.storage import read_json
from vpltool.lazy import np, torch
from vpltool.methods.exports._segmenter import photo_pixels
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.methods.interfaces import Exporter
from vpltool.stages._card import sections

_MOST = 64
"""Photos that an export is given, to calibrate on and to be measured on."""


def some_photos(workspace: Workspace) -> list[Path]:
    """Some photos of a workspace that can be found, spread over it."""
    try:
        photos = workspace.photos()
    except VplError:
        return []
    places = np.linspace(0, len(photos) - 1, min(_MOST, len(photos))).round().astype(int)
    paths = [workspace.image_path(photos[number]) for number in places.tolist()]
    return [path for path in paths if path.is_file()]


def about_segmenter(workspace: Workspace, segmenter: SegmenterFile) -> dict[str, Any]:
    """What is known of a segmenter in its workspace; counts, and no name of a photo.

    Returns:
        `photos` that it was trained on, `tagged` with each class, `supervision`, the `scores` of
        its predictions, and its `calibration`.
    """
    header = segmenter.header
    about: dict[str, Any] = {"supervision": header.supervision or "tags"}
    try:
        photos = workspace.photos(str(header.options.get("split", "train")),
                                  int(header.options.get("limit", 0)))
    except VplError:
        return about
    tagged = Counter(name for photo in photos for name in set(photo.tags))
    about |= {"photos": len(photos),
              "tagged": {name: tagged[name] for name in workspace.classes}}
    scores = [found for path in results_of(workspace.path, "scores")
              if (found := _score(workspace, segmenter, path))]
    calibration = segmenter.calibration(workspace.path)
    return about | ({"scores": scores} if scores else {}) | (
        {"calibration": calibration} if calibration else {})


def _score(workspace: Workspace, segmenter: SegmenterFile, path: Path) -> dict[str, Any] | None:
    """What a file of scores says of the present predictions of a segmenter; None: nothing."""
    try:
        found = read_json(path, "`eval()`")
        name = segmenter.path.stem
        if found.get("kind") != "scores" or found.get("what") != f"predictions-{name}":
            return None
        split = str(found["split"])
        folder = open_input(place(workspace.path, "predictions", name, split),
                            ("predictions",))
        if folder.identity != found["config"] or not segmenter.has_made(folder.header):
            return None
        return {"split": split, "photos": found["photos"], "miou": found["miou"],
                "tags": bool(folder.header.options.get("tags")), "iou": found["iou"],
                "confusion": found.get("confusion", [])}
    except (VplError, KeyError, OSError):
        return None


def measured(segmenter: TrainedSegmenter, method: Exporter, path: Path, of_method: Any
             ) -> dict[str, Any]:
    """Compare a file that was written with `predict`, on a few photos, and time both.

    Args:
        segmenter: as it is in the workspace.
        method: that wrote the file.
        path: the file.
        of_method: settings of the method.

    Returns:
        `photos`, the share of `same` pixels, `miou` of the labels against those of predict, and
        `seconds` a photo of the file and of `predict`; empty, if nothing here runs the file.
    """
    paths = segmenter.photos[: of_method.measure]
    runs = method.runs(path, of_method) if paths else None
    if runs is None:
        return {}
    side = side_of(segmenter.header, of_method.max_side)
    count = 1 + len(segmenter.classes)
    counts, times = Confusion(count, {}), np.zeros(2)
    with console.progress(f"measure {path.name}", len(paths)) as advance, torch.no_grad():
        for photo in paths:
            size, pixels = photo_pixels(segmenter.encoder, photo, side)
            labels = []
            for number, run in enumerate((runs, lambda one: segment.photo_logits(
                    segmenter.encoder.vision, segmenter.network, one))):
                begun = time.perf_counter()
                logits = run(pixels)
                times[number] += time.perf_counter() - begun
                labels.append(segment.labels_of(logits[0].softmax(dim=0), size))
            counts += confusion(labels[1], labels[0], count)
            advance()
    found = scores(counts)
    same, miou = found.accuracy, found.miou
    own, torchs = (times / len(paths)).tolist()
    console.note(f"{path.name} on {len(paths)} photos: {100 * same:.2f} % of the pixels as predict "
                 f"says, mIoU against it {100 * miou:.2f}; {own:.3f} s a photo, predict "
                 f"{torchs:.3f} s")
    return {"photos": len(paths), "same": same, "miou": miou, "seconds": [own, torchs],
            "threads": torch.get_num_threads()}


def write_card(segmenter: TrainedSegmenter, path: Path, found: Mapping[str, Any]) -> Path:
    """Write the card beside a file: what it is, and how it was measured."""
    header = segmenter.header
    lines = [f"# {path.name}", "", *sections(segmenter.classes, segmenter.about)]
    if found:
        own, torchs = found["seconds"]
        lines += [MEASURED, "", f"On {found['photos']} photos of the workspace, by one process "
                  f"with {found['threads']} threads of torch:", "",
                  f"- {100 * found['same']:.2f} % of the pixels have the label that `predict` "
                  f"gives; mIoU against its labels {100 * found['miou']:.2f}.",
                  f"- {own:.3f} s a photo; `predict`'s network takes {torchs:.3f} s.",
                  f"- {_megabytes(path):.1f} MB.", ""]
    lines += [f"Encoder: {header.model.get('name', '?')} ({header.model.get('pretrained', '?')}).",
              ""]
    card = path.with_name(f"{path.name}.md")
    with atomic_path(card) as temporary:
        temporary.write_text("\n".join(lines), "utf-8")
    console.note(f"card: {card}")
    return card


MEASURED = "## Measured when it was exported"


def measured_section(path: Path) -> list[str]:
    """The lines of a file's card that say how it was measured; empty, if there are none."""
    card = path.with_name(f"{path.name}.md")
    if not card.is_file():
        return []
    _, heading, rest = card.read_text("utf-8").partition(MEASURED)
    return [heading, *rest.rpartition("Encoder:")[0].rstrip().splitlines(), ""] if heading else []


def _megabytes(path: Path) -> float:
    beside = path.with_suffix(".bin")
    files: Sequence[Path] = (path, *([beside] if path.suffix == ".xml" else []))
    return sum(file.stat().st_size for file in files) / 1e6
