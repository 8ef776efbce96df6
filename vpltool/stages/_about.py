"""What the card of an exported segmenter says: training, scores, and how the file was measured."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.core import segment
from vpltool.core.metrics import Confusion, confusion, scores
from vpltool.engine import segmenters
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace, open_input
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import place, results_of
from vpltool.formats.storage import read_json
from vpltool.lazy import Tensor, np, torch
from vpltool.methods.exports._segmenter import photo_pixels
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.methods.interfaces import Exporter
from vpltool.stages._card import sections

_MOST = 64
"""Photos that an export is given, to calibrate on, and others to be measured on."""

_MOST_LOST = 0.005
"""mIoU that 8 bits may cost without a warning."""


def some_photos(workspace: Workspace, header: Header) -> tuple[list[Path], list[Path]]:
    """Some photos that a segmenter was trained on, and some that it was not; those that are there.

    Each list is in the same random order on every call, so the first few are of all of them.
    """
    try:
        photos = workspace.photos()
    except VplError:
        return [], []
    split = header.options.get("split", "train")
    lists = []
    for trained in (True, False):
        paths = [workspace.image_path(photo) for photo in photos
                 if (split in photo.splits) is trained]
        order = np.random.default_rng(0).permutation(len(paths))[:_MOST].tolist()
        lists.append([paths[number] for number in order if paths[number].is_file()])
    return lists[0], lists[1]


def about_segmenter(workspace: Workspace, segmenter: segmenters.SegmenterFile) -> dict[str, Any]:
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


def _score(workspace: Workspace, segmenter: segmenters.SegmenterFile, path: Path
           ) -> dict[str, Any] | None:
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
    """Compare a file that was written with `predict`, and time both.

    The photos are those that the segmenter was not trained on, where there are some. No true mask
    is read: the truth is what `predict` says.

    Args:
        segmenter: as it is in the workspace.
        method: that wrote the file.
        path: the file.
        of_method: settings of the method.

    Returns:
        `photos`, whether they were `held` out, the share of `same` pixels, `miou` of the labels
        against those of predict, and `seconds` a photo of the file and of `predict`; of a file in
        8 bits also `whole`, the mIoU of the same file in float32. Empty, if nothing here runs it.
    """
    eight = getattr(of_method, "int8", False)
    most = of_method.measure if of_method.measure is not None else 50 if eight else 10
    paths = (segmenter.held or segmenter.photos[::-1])[:most]
    runs = method.runs(path, of_method) if paths else None
    if runs is None:
        return {}
    ways = [runs]
    if eight:
        whole = replace(of_method, int8=False, calibrate=0)
        with tempfile.TemporaryDirectory() as folder:
            method.export(segmenter, Path(folder) / path.name, whole)
            ways += filter(None, [method.runs(Path(folder) / path.name, whole)])
    (same, miou, own), *others, (_, _, torchs) = _against_predict(segmenter, ways, paths, side_of(
        segmenter.header, of_method.max_side), f"measure {path.name}")
    console.note(f"{path.name} on {len(paths)} photos: {100 * same:.2f} % of the pixels as predict "
                 f"says, mIoU against it {100 * miou:.2f}; {own:.3f} s a photo, predict "
                 f"{torchs:.3f} s")
    found = {"photos": len(paths), "held": bool(segmenter.held), "same": same, "miou": miou,
             "seconds": [own, torchs], "threads": torch.get_num_threads()}
    static = getattr(of_method, "calibrate", 0) != 0 and len(segmenter.photos) > 0
    for _, whole_miou, _ in others:
        found["whole"] = whole_miou
        said = (f"8 bits cost {100 * (whole_miou - miou):.2f} points of mIoU at most: against "
                f"predict's labels float32 has {100 * whole_miou:.2f}")
        if whole_miou - miou > _MOST_LOST:
            console.warn(f"{said}; " + ("`calibrate=0` may cost less" if static else
                                        "`int8=False` costs nothing"))
        else:
            console.note(said)
    return found


def _against_predict(segmenter: TrainedSegmenter, ways: list[Callable[[Tensor], Tensor]],
                     paths: Sequence[Path], side: int, title: str
                     ) -> list[tuple[float, float, float]]:
    """Share of pixels that are as `predict` says, mIoU and seconds a photo of each way to logits.

    The last is that of `predict` itself.
    """
    every = [*ways, lambda one: segment.photo_logits(
        segmenter.encoder.vision, segmenter.network, one)]
    count = 1 + len(segmenter.classes)
    counts, times, seen = [Confusion(count, {}) for _ in every], np.zeros(len(every)), 0
    with console.progress(title, len(paths)) as advance, torch.no_grad():
        for size, pixels in photo_pixels(segmenter.encoder, paths, side):
            labels, seen = [], seen + 1
            for number, run in enumerate(every):
                begun = time.perf_counter()
                logits = run(pixels)
                times[number] += time.perf_counter() - begun
                labels.append(segment.labels_of(logits[0].softmax(dim=0), size))
            counts = [before + confusion(labels[-1], own, count)
                      for before, own in zip(counts, labels, strict=True)]
            advance()
    found = [scores(each) for each in counts]
    return [(each.accuracy, each.miou, taken)
            for each, taken in zip(found, (times / max(seen, 1)).tolist(), strict=True)]


def write_card(segmenter: TrainedSegmenter, path: Path, found: Mapping[str, Any]) -> Path:
    """Write the card beside a file: what it is, and how it was measured."""
    header = segmenter.header
    lines = [f"# {path.name}", "", *sections(segmenter.about)]
    if found:
        own, torchs = found["seconds"]
        lines += [MEASURED, "", f"On {found['photos']} photos of the workspace, "
                  f"{'held out' if found['held'] else 'which it was trained on'}, by one process "
                  f"with {found['threads']} threads of torch:", "",
                  f"- {100 * found['same']:.2f} % of the pixels have the label that `predict` "
                  f"gives; mIoU against its labels {100 * found['miou']:.2f}"
                  + (f", without 8 bits {100 * found['whole']:.2f}." if "whole" in found else "."),
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
