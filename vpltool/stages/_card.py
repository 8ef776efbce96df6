"""The model card of an exported segmenter: facts, measurements, and text."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.core import metrics, segment
from vpltool.engine import photo_work, reports, segmenters
from vpltool.errors import VplError, counted
from vpltool.formats import Header, Workspace, atomic, kinds, open_input, read_json
from vpltool.lazy import Tensor, np, torch
from vpltool.methods import Exporter
from vpltool.methods.exports._segmenter import photo_pixels
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.pictures.page import percent
from vpltool.tables import markdown_table

_MOST_LOST = 0.005
"""Loss of mIoU by 8 bits above which a warning is given."""

_MEASURED = "## Measured when it was exported"

_TIMED, _RUNS = 3, 3
"""Photos that are timed, and runs of each."""

_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0",
             "bsd-3-clause", "gpl-3.0", "agpl-3.0")
"""Licences known to the hub; any other is `other` there, with its name."""


def some_photos(workspace: Workspace, header: Header, most: int) -> tuple[list[Path], list[Path]]:
    """Return photos that a segmenter was trained on, and photos that it was not, if they exist.

    Each list has up to `most`, in the same random order on every call.
    """
    try:
        photos = workspace.photos()
    except VplError:
        return [], []
    split = header.options.get("split", "train")

    def some(*, trained: bool) -> list[Path]:
        paths = [workspace.image_path(photo) for photo in photos
                 if (split in photo.splits) is trained]
        order = np.random.default_rng(0).permutation(len(paths))[:most].tolist()
        return [paths[number] for number in order if paths[number].is_file()]

    return some(trained=True), some(trained=False)


def about_segmenter(workspace: Workspace, segmenter: segmenters.SegmenterFile) -> dict[str, Any]:
    """Return facts about a segmenter's training and scores, without names of photos.

    Returns:
        `photos` that it was trained on, `tagged` with each class, `supervision`, the `scores` of
        its predictions, their `agreement` with tags, its `calibration`, and how its photos
        were cut, see `SegmenterFile.cut`.
    """
    header = segmenter.header
    about: dict[str, Any] = {"supervision": header.supervision or "tags",
                             **segmenter.cut}
    try:
        photos = workspace.photos(str(header.options.get("split", "train")),
                                  int(header.options.get("limit", 0)))
    except VplError:
        return about
    tagged = Counter(name for photo in photos for name in set(photo.tags))
    scores = [found for path in kinds.results_of(workspace.path, "scores")
              if (found := _score(workspace, segmenter, path))]
    found = {"scores": [score for score in scores if "iou" in score],
             "agreement": [score for score in scores if "f1" in score],
             "calibration": segmenter.calibration(workspace.path)}
    return about | {"photos": len(photos),
                    "tagged": {name: tagged[name] for name in workspace.classes}} | {
        name: value for name, value in found.items() if value}


def _score(workspace: Workspace, segmenter: segmenters.SegmenterFile, path: Path
           ) -> dict[str, Any] | None:
    """Return the scores in a file, of predictions of this segmenter; None if of others.

    They compare the predictions with true masks (`miou`, `iou`, `confusion`) or with tags (`f1`).
    """
    try:
        found = read_json(path, "`eval()`")
        name = segmenter.path.stem
        if found.get("what") != f"predictions-{name}":
            return None
        split = str(found["split"])
        folder = open_input(kinds.result_path(workspace.path, "predictions", name, split),
                            ("predictions",))
        if folder.identity != found["config"] or not segmenter.has_made(folder.header):
            return None
        used = bool(folder.header.options.get("tags"))
        score = {"split": split, "photos": found["photos"]}
        if found["kind"] == "scores":
            return score | {"miou": found["miou"], "tags": used, "iou": found["iou"],
                            "confusion": found.get("confusion", [])}
        # Agreement with tags that were used, or learned, says little.
        return None if used or split == segmenter.header.options.get("split") else score | {
            "mean": found["mean"]["f1"],
            "f1": {name: row["f1"] for name, row in found["classes"].items()}}
    except (VplError, KeyError, OSError):
        return None


def measured(segmenter: TrainedSegmenter, method: Exporter, path: Path, of_method: Any
             ) -> dict[str, Any]:
    """Compare an exported file with `predict`, and time both; no true mask is read.

    Photos are held-out ones if there are any.

    Returns:
        number of `photos`, whether they were `held` out, the share of `same` pixels, `miou`
        against the labels of `predict`, and `seconds` per photo of the file and of `predict`; for
        8 bits also `whole`, the mIoU of the same file in float32. Empty if the file cannot be run.
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
    console.note(f"{path.name} on {counted(len(paths), 'photo', 'photos')}: {100 * same:.2f} % of "
                 f"the pixels agree with predict (mIoU {100 * miou:.2f}); a photo takes {own:.3f} "
                 f"s, with predict {torchs:.3f} s")
    found = {"photos": len(paths), "held": bool(segmenter.held), "same": same, "miou": miou,
             "seconds": [own, torchs], "threads": torch.get_num_threads()}
    for _, whole_miou, _ in others:
        found["whole"] = whole_miou
        cost = (f"8 bits cost up to {100 * (whole_miou - miou):.2f} points of mIoU (compared with "
                f"predict's labels, where float32 scores {100 * whole_miou:.2f}")
        cost += ")" if len(paths) >= reports.ENOUGH else (
            f"; measured on only {counted(len(paths), 'photo', 'photos')})")
        if whole_miou - miou <= _MOST_LOST:
            console.note(cost)
        elif of_method.calibrate == 0 or not segmenter.photos:
            console.warn(f"{cost}; `int8=False` keeps full precision")
        else:
            console.warn(f"{cost}; `calibrate=0` may cost less")
    return found


def _against_predict(segmenter: TrainedSegmenter, ways: list[Callable[[Tensor], Tensor]],
                     paths: Sequence[Path], side: int, title: str
                     ) -> list[tuple[float, float, float]]:
    """Compare each way to compute logits with `predict`, which is the last entry.

    Returns the share of equal pixels, mIoU, and seconds per photo, of each. The first few photos
    are timed: several runs each, in turns, of which the fastest counts, as others may be busy.
    """
    every = [*ways, lambda one: segment.photo_logits(
        segmenter.encoder.vision, segmenter.network, one)]
    count = 1 + len(segmenter.classes)
    counts, times, photos = [metrics.Confusion(count, {}) for _ in every], np.zeros(len(every)), 0
    seconds = np.zeros((_RUNS, len(every)))
    with torch.no_grad():
        for size, pixels in photo_work.tracked(
                title, photo_pixels(segmenter.encoder, paths, side), len(paths)):
            timed = photos < _TIMED
            for row in seconds[: _RUNS if timed else 1]:
                labels = []
                for number, run in enumerate(every):
                    begun = time.perf_counter()
                    logits = run(pixels)
                    row[number] = time.perf_counter() - begun
                    labels.append(segment.labels_of(logits[0].softmax(dim=0), size))
            photos += 1
            if timed:
                times += seconds.min(axis=0)
            counts = [before + metrics.confusion(labels[-1], own, count)
                      for before, own in zip(counts, labels, strict=True)]
    found = [metrics.scores(each) for each in counts]
    return [(each.accuracy, each.miou, taken)
            for each, taken in zip(found, (times / max(min(photos, _TIMED), 1)).tolist(),
                                   strict=True)]


def write_card(segmenter: TrainedSegmenter, path: Path, found: Mapping[str, Any]) -> Path:
    """Write the card beside a file, with the results of `measured`."""
    model = segmenter.header.model
    lines = [f"# {path.name}", "", *_sections(segmenter.about)]
    if found:
        own, torchs = found["seconds"]
        beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
        size = sum(file.stat().st_size for file in (path, *beside)) / 1e6
        lines += [_MEASURED, "", f"On {found['photos']} photos of the workspace, "
                  f"{'held out' if found['held'] else 'which it was trained on'}, on a CPU, by one "
                  f"process with {counted(found['threads'], 'thread', 'threads')} of torch:", "",
                  f"- {100 * found['same']:.2f} % of the pixels have the label that `predict` "
                  f"gives; mIoU against its labels {100 * found['miou']:.2f}"
                  + (f", without 8 bits {100 * found['whole']:.2f}." if "whole" in found else "."),
                  f"- {own:.3f} s a photo, the fastest of {_RUNS} runs; `predict`'s network takes "
                  f"{torchs:.3f} s.",
                  f"- {size:.1f} MB.", ""]
    lines += [f"Encoder: {model.get('name', '?')} ({model.get('pretrained', '?')}).", ""]
    card = path.with_name(f"{path.name}.md")
    with atomic.atomic_path(card) as temporary:
        temporary.write_text("\n".join(lines), "utf-8")
    console.note(f"card: {card}")
    return card


def measured_section(path: Path) -> list[str]:
    """Return the lines about measurements in a file's card; empty if there are none."""
    card = path.with_name(f"{path.name}.md")
    if not card.is_file():
        return []
    _, heading, text = card.read_text("utf-8").partition(_MEASURED)
    return [heading, *text.rpartition("Encoder:")[0].rstrip().splitlines(), ""] if heading else []


def _sections(about: Mapping[str, Any]) -> list[str]:
    """Format training, scores, calibration and limits as Markdown, from `about_segmenter`."""
    lines = []
    if "photos" in about:
        lines += ["## Trained on", "", f"{about['photos']} photos; supervision: "
                  f"{about['supervision']}. Tagged: " + ", ".join(
                      f"{name} {count}" for name, count in about["tagged"].items()) + ".", ""]
    if scenes := [f"{name} {about[name]}" for name in ("bands", "percentiles") if name in about]:
        lines += [f"It was trained on tiles of GeoTIFFs, seen with {' and '.join(scenes)}.", ""]
    if "tile" in about:
        lines += [f"Tiles of {about['tile']} pixels were scaled down; `predict` does the same.", ""]
    for score in about.get("scores", ()):
        names = list(score["iou"])
        lines += [f"## Scores on {score['photos']} photos of `{score['split']}`, "
                  + ("among the tagged classes" if score["tags"] else "without tags"), "",
                  f"mIoU {100 * score['miou']:.1f}: " + ", ".join(
                      f"{name} {percent(value)}" for name, value in score["iou"].items()) + "."]
        # Scores of very many classes have no matrix.
        if matrix := score["confusion"]:
            shares = ([name, *(f"{100 * value / max(sum(row), 1):.1f}" for value in row)]
                      for name, row in zip(names, matrix, strict=True))
            lines += ["", "Share of the pixels of a class (rows) that get a label (columns), in %:",
                      "", markdown_table(["", *names], shares, right=range(1, 1 + len(names)))]
        lines.append("")
    for score in about.get("agreement", ()):
        lines += [f"## Agreement with the tags of {score['photos']} photos of `{score['split']}`",
                  "", f"F1 {percent(score['mean'])}: " + ", ".join(
                      f"{name} {percent(value)}" for name, value in score["f1"].items())
                  + ". Tags tell which classes a photo shows, not where.", ""]
    if found := about.get("calibration"):
        lines += ["## How sure it is", "",
                  f"Temperature {found['temperature']:g}, from the tags of {found['photos']} "
                  f"photos of `{found['split']}`. `predict --abstain LEVEL` labels fewer pixels:",
                  "", markdown_table(("level", "pixels labelled", "share with a tagged class"), (
                      (f"{row['level']:g}", f"{100 * row['share']:.1f} %",
                       "-" if row["right"] is None else f"{100 * row['right']:.1f} %")
                      for row in found["kept"]), right=range(3)),
                  "", "Tags say whether a class is in the photo, not where: outlines are not "
                  "judged here.", ""]
    return [*lines, _LIMITS]


_LIMITS = """\
## Limits

- It was taught by tags, not by outlines that a person has drawn: outlines may be wrong where \
classes occur together, and thin parts are lost.
- It knows these classes only; anything else is background, or mistaken for one of them.
- Scores are of photos like those that it was trained on.
"""

_TEXT = """\
# {name}

Labels each pixel of a photo: {classes}, or background. It was trained by vpltool, from photos with
image-level tags.

    vpltool pull {repository} --out segmenter.safetensors
    vpltool predict PHOTOS --segmenter segmenter.safetensors --overlay

```python
from vpltool import Segmenter

result = Segmenter.load("segmenter.safetensors")("photo.jpg")
print(result.labels.shape)
```

## What it is

| | |
| --- | --- |
| classes | {numbered} |
| segmenter | {segmenter} |
| frozen encoder | {encoder} |
| photos | {size} |
| trained by | vpltool {version}: {options} |

Label 0 is the background.

{more}## Licences

- The segmenter: {licence}.
- The encoder's weights: {encoder_licence}.

The training photos may have their own licences.
"""


def model_card(header: Header, repository: str, measured: Sequence[str] = ()) -> str:
    """Format the card of a bundle for the hub: metadata, then text in Markdown.

    Args:
        header: of the bundle.
        repository: `ORGANISATION/NAME`.
        measured: lines about measurements.
    """
    from huggingface_hub import ModelCardData

    facts, model = header.facts, header.model
    classes, licence = facts["classes"], facts["licence"]["segmenter"]
    known = licence.lower() if licence.lower() in _LICENCES else ""
    data = ModelCardData(
        library_name="vpltool", pipeline_tag="image-segmentation", license=known or "other",
        license_name=None if known else licence,
        tags=["semantic-segmentation", "weakly-supervised",
              *([] if "encoder" in model else ["clip"])])
    encoder = f"{model['name']} ({model['pretrained']}), " + (
        "in the file" if facts["tower"] else "to be downloaded")
    trained = facts["trained"]
    options = ", ".join(f"{name} {value}" for name, value in trained["options"].items())
    return f"---\n{data.to_yaml()}\n---\n\n" + _TEXT.format(
        name=repository.split("/")[1], repository=repository, classes=", ".join(classes),
        numbered=", ".join(f"{index} {name}" for index, name in enumerate(classes, 1)),
        segmenter=facts["segmenter"], encoder=encoder, version=trained["version"],
        size=(f"longer sides are scaled down to {facts['max_side']} pixels" if facts["max_side"]
              else "are not scaled down"),
        options=f"{trained['command']}, {options}",
        more="\n".join([*_sections(facts.get("about", {})), *measured, ""]),
        licence=licence, encoder_licence=facts["licence"]["clip"])
