"""`eval`: how good CAMs, masks or predictions are, by the true masks or by the tags."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpltool import console, formats, options
from vpltool.core import metrics
from vpltool.engine import features, photo_work, reports
from vpltool.engine.photos import known_photo_size
from vpltool.errors import VplError, part_of
from vpltool.formats import (
    InputFolder,
    JsonObject,
    Photo,
    Workspace,
    atomic,
    kinds,
    manifest,
    shards,
)
from vpltool.formats.header import current_preset, format_preset
from vpltool.lazy import F, np, npt
from vpltool.names import csv_id
from vpltool.parallel.ranks import joined
from vpltool.parallel.threads import in_threads
from vpltool.pictures.page import percent
from vpltool.settings import RUNNING, Settings, Stage, setting, warn_without_effect
from vpltool.stages._against_tags import WORST, report_of_tags, show_of_tags
from vpltool.stages._truth import check_shown, read_truth, untagged_class, warn_of_untagged_classes


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Settings of `eval`."""

    what: str = setting("", "What to score: cams/NAME, masks/NAME, predictions/NAME or a folder; "
                            "default: the last result of the split in the pipeline.",
                        metavar="PATH-OR-NAME")
    split: str = options.split("val")
    against: str = setting("masks", "Compare with masks, the true ones, or with tags; for tags no "
                                    "mask is opened.", choices=("masks", "tags"))
    share: float = setting(0.01, "Against tags: minimum share of a photo; a class that covers it "
                                 "counts as predicted, and its probability is the mean over that "
                                 "share of its most likely pixels.", low=0, high=1)
    threshold: float = setting(0.0, "Background threshold of CAMs; 0: the best of the sweep, and "
                                    "the report says so.", low=0, high=1)
    threshold_from: Path | None = setting(
        None, "Scores to take the threshold from; choose it on one split, score another.",
        metavar="FILE")
    alpha: float = setting(0.0, "Background score (1 - max)^ALPHA of CAMs, instead of a "
                                "threshold.", low=0, source="CLIP-ES, official code")
    boundary: float = setting(
        0.0, "Also score boundaries: F1 within this share of the photo's diagonal, such as 0.02; "
             "0: no. Not for CAMs.", low=0, high=1)
    sweep: bool = setting(False, "Show the scores of CAMs at every threshold.", off="-")
    per_photo: Path | None = setting(
        None, "Also write the scores of each photo to this CSV: mIoU over the classes that it "
              "shows, accuracy, and the IoU of each class. For CAMs, with a given threshold.",
        metavar="FILE", record="never", by_hand=True, brief=False)
    if_any: bool = setting(False, "Warn, rather than fail, if no photo of the split has a true "
                                  "mask.", off="-", panel=RUNNING, brief=False)
    limit: int = options.limit()
    out: Path | None = options.out()


STAGE = Stage(order=90, panel="4. Scores and pictures", reads=("cams", "masks", "predictions"),
              writes=("scores", "agreement"), settings=EvalSettings, together=True)

_ALPHAS = (1.0, 2.0, 4.0, 8.0)

_MATRIX = 512
"""Most classes of which scores have a confusion matrix: a quarter of a million numbers."""


def run(workspace: Workspace, settings: EvalSettings) -> reports.Report:
    """Score CAMs, masks or predictions against the true masks, or predictions against tags.

    Only this command, show and report open true masks. Against tags, it opens none: it reports how
    often the predicted classes match the tags, how well calibrated the segmenter is, and which
    photos disagree most. Scores are always rewritten. Under torchrun, each process counts the
    pixels of its shard of the photos.

    Example: vpltool eval --split val --what predictions/vision-refined

    Example: vpltool eval --split val --what predictions/segmenter --against tags

    Next: vpltool scores

    Returns:
        scores, the confusion matrix of not too many classes, what was scored; of CAMs the sweep;
        nothing if there is no true mask and `if_any`.

    Raises:
        VplError: an input or a true mask is missing or damaged, or CAMs are to be cut in two ways.
    """
    split = settings.split
    given = _given_threshold(settings)
    photos = workspace.photos(split, settings.limit)
    source = formats.find_folder(
        workspace.path, ("predictions", "masks", "cams"), settings.what, split,
        "`cam()`, `crf()` or `predict()` makes something to score",
        preferred=[f"{name}{suffix}" for name in features.BEST_FIRST
                   for suffix in ("-crf", "-full", "")])
    workspace.check_classes(source.header, source.path)
    unused = {} if source.kind == "cams" else dict.fromkeys(
        (*_CUTS, "sweep"), f"only CAMs are thresholded, and these are {source.kind}")
    if source.kind == "cams" or settings.against == "tags":
        unused["boundary"] = "masks and predictions beside true masks have it"
    if settings.against == "tags":
        unused["per_photo"] = "photos are scored beside true masks"
    else:
        unused["share"] = "it is for `against='tags'`"
    warn_without_effect(settings, without=unused)
    if settings.against == "tags":
        held = {*source.available(photo.id for photo in photos)}
        report = report_of_tags(workspace, source, [photo for photo in photos if photo.id in held],
                                split, settings.share)
        return _written(workspace, settings, report, f"{_name(source)}-{split}-tags")
    cut = _cut_per_photo(workspace, source, settings, given)
    total = len(photos)
    photos = [photo for photo in photos if photo.mask is not None]
    if not photos:
        message = f"no photo of `{split}` has a true mask"
        if settings.if_any:
            console.warn(f"{message}, so {source.kind}/{source.name} is not scored")
            return reports.Report({})
        raise VplError(message, _without_masks(workspace, source, split))
    if len(photos) < total:
        console.warn(part_of(total - len(photos), total, "photos",
                             "has no true mask and is skipped",
                             "have no true mask and are skipped"))
    tally = _count_pixels(workspace, source, photos, settings.boundary, cut)
    report = _report(workspace, source, tally, split, given)
    if settings.boundary and source.kind != "cams":
        report["boundary"] = {"tolerance": settings.boundary,
                              "f": round(metrics.boundary_f(tally.boundaries), 6)}
    report["photos_left_out"] = total - len(tally.parts)
    if settings.per_photo and shards.rank_of_process()[0] == 0:
        _write_per_photo(workspace, settings.per_photo, tally.each)
    return _written(workspace, settings, report, f"{_name(source)}-{split}",
                    *filter(None, [settings.per_photo]))


def _cut_per_photo(workspace: Workspace, source: InputFolder, settings: EvalSettings, given: float
                   ) -> float | None:
    """Return the threshold at which each photo's CAMs are counted; None: they are not.

    Counts at every threshold, 8 KiB a pair of classes, are only kept as a sum over all photos, so
    the threshold must be `given`.
    """
    if not settings.per_photo or source.kind != "cams":
        return None
    if not given:
        call = f"what='{settings.what or f'{source.kind}/{source.name}'}', split='{settings.split}'"
        scores = kinds.result_path(workspace.path, "scores", f"{_name(source)}-{settings.split}")
        raise VplError(f"`per_photo='{settings.per_photo}'` needs a threshold: the best one is "
                       "known after the last photo, and counts of each one are not kept till then",
                       f"`eval({call})`, then `eval({call}, threshold_from='{scores}', "
                       f"per_photo='{settings.per_photo}')`; the threshold may also be that of "
                       "another split")
    return round(given, 4)


@dataclass
class _Tally:
    """Counts over photos.

    Args:
        counts: `Confusion`, or `SeedHistogram` of CAMs; 0 before the first photo.
        parts: id to identity of the file, of each scored photo.
        untagged: id to a class that the true mask shows and the tags lack.
        shown: label to a tagged photo whose true mask has it.
        each: id to the photo's own `Confusion`; of CAMs only if they are cut.
        boundaries: see `boundary_counts`; 0 if they are not scored.
    """

    counts: Any = 0
    parts: dict[str, str] = field(default_factory=dict)
    untagged: dict[str, str] = field(default_factory=dict)
    shown: dict[int, str] = field(default_factory=dict)
    each: dict[str, metrics.Confusion] = field(default_factory=dict)
    boundaries: Any = 0

    def add(self, other: _Tally) -> None:
        """Add the counts of other photos."""
        if other.parts:
            self.counts += other.counts
            self.boundaries += other.boundaries
            self.parts |= other.parts
            self.untagged |= other.untagged
            self.shown = other.shown | self.shown
            self.each |= other.each


def _count_pixels(workspace: Workspace, source: InputFolder, photos: list[Photo],
                  tolerance: float, cut: float | None) -> _Tally:
    """Count the pixels of those photos that the source has, by label and true label.

    Boundaries are scored with a tolerance, a share of the diagonal; 0: they are not. CAMs are also
    counted photo by photo, cut at a threshold; None: they are not. Under torchrun each process
    counts its shard of the photos. The sums are whole numbers, so they do not depend on the number
    of processes.
    """
    if shards.rank_of_process()[1] == 1:
        tally = _count_own(workspace, source, photos, tolerance, cut)
    else:
        with joined("cpu") as ranks:
            mine = [photo for photo in photos if ranks.shard.holds(photo.id)]
            tally = _Tally()
            for part in ranks.collect(_count_own(workspace, source, mine, tolerance, cut)):
                tally.add(part)
        tally.each = {photo.id: tally.each[photo.id] for photo in photos if photo.id in tally.each}
    # One or two may hold nothing but void.
    if len(tally.parts) > 2:
        check_shown(workspace, tally.shown)
    warn_of_untagged_classes(tally.untagged, len(tally.parts))
    return tally


def _count_own(workspace: Workspace, source: InputFolder, photos: list[Photo], tolerance: float,
               cut: float | None) -> _Tally:
    have = set(source.available(photo.id for photo in photos))
    photos = [photo for photo in photos if photo.id in have]
    tally = _Tally()
    for counted in photo_work.tracked("eval", in_threads(
            lambda photo: _count(workspace, source, photo, tolerance, cut), photos,
            min(8, os.cpu_count() or 1)), len(photos)):
        tally.add(counted)
    return tally


def _count(workspace: Workspace, source: InputFolder, photo: Photo, tolerance: float,
           cut: float | None) -> _Tally:
    classes, ignore = len(workspace.classes) + 1, workspace.ignore
    path = source.path_of(photo.id)
    if source.kind == "cams":
        truth = read_truth(workspace, photo, known_photo_size(workspace, photo))
        best, best_class = _strongest(source, photo.id, truth.shape, classes)
        tally = _Tally(metrics.seed_histogram(truth, best, best_class, classes, ignore))
        if cut is not None:
            tally.each[photo.id] = metrics.confusion_at(tally.counts, cut)
    else:
        label = source.read_labels(photo.id)
        truth = read_truth(workspace, photo, label.shape, path)
        if (label[label != ignore] >= classes).any():
            raise VplError(f"{path}: a label above {classes - 1}, the workspace's last class",
                           "correct it, or delete it: "
                           f"{manifest.call_of(source.header)} recomputes it")
        counts = metrics.confusion(truth, label, classes, ignore)
        tally = _Tally(counts, each={photo.id: counts})
        if tolerance:
            tally.boundaries = metrics.boundary_counts(truth, label, classes, tolerance, ignore)
    if stray := untagged_class(workspace, photo, truth):
        tally.untagged[photo.id] = stray
    if photo.tags:
        tally.shown = dict.fromkeys(np.unique(truth).tolist(), photo.id)
    tally.parts[photo.id] = formats.identity_of_file(path)
    return tally


def _strongest(source: InputFolder, photo_id: str, shape: tuple[int, ...], labels: int
               ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Value and class of the strongest map at each pixel, both (H, W)."""
    tensors = source.read_tensors(photo_id)
    kinds.check_values(source.kind, tensors, str(source.path_of(photo_id)),
                       manifest.call_of(source.header), labels)
    if not len(tensors["classes"]):
        return np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    cam = F.interpolate(tensors["cam"].float()[None], size=tuple(shape), mode="bilinear",
                        align_corners=False)[0]
    return metrics.strongest(cam.numpy(), tensors["classes"].tolist())


def _without_masks(workspace: Workspace, source: InputFolder, split: str) -> str:
    """Say what can be scored where no photo of a split has a true mask."""
    others = sorted({name for photo in workspace.photos() if photo.mask for name in photo.splits})
    if others:
        return f"`split='{others[0]}'` has true masks"
    own = "`masks='DIR'` of prepare names a folder of true masks"
    if source.kind == "cams":
        return own
    return (f"`eval(what='{source.kind}/{source.name}', split='{split}', against='tags')` "
            f"compares with the tags; {own}")


def _write_per_photo(workspace: Workspace, path: Path, each: Mapping[str, metrics.Confusion]
                     ) -> None:
    """Write a row of scores for each photo; empty where neither truth nor labels have the class."""
    names = map(workspace.class_name, range(len(workspace.classes) + 1))
    with (atomic.atomic_path(path) as temporary,
          temporary.open("w", encoding="utf-8", newline="") as file):
        table = csv.writer(file)
        table.writerow(["id", "miou", "accuracy", *(f"iou {name}" for name in names)])
        for key, counts in each.items():
            scored = metrics.scores(counts)
            iou = np.where(counts.totals()[1] > 0, np.nan_to_num(scored.iou), scored.iou)
            table.writerow([csv_id(key), *("" if value != value else round(value, 6) for value in (
                scored.miou, scored.accuracy, *iou.tolist()))])


def _written(workspace: Workspace, settings: EvalSettings, report: JsonObject, name: str,
             *beside: Path) -> reports.Report:
    path = settings.out or kinds.result_path(workspace.path, "scores", name)
    if shards.rank_of_process()[0] == 0:
        formats.write_json(path, report)
    return reports.Report(report, path, *beside)


_CUTS = ("threshold", "threshold_from", "alpha")


def _given_threshold(settings: EvalSettings) -> float:
    """The threshold that the settings ask for; 0: the best of the sweep."""
    ways = {name: getattr(settings, name) for name in _CUTS if getattr(settings, name)}
    # What is given wins over what a preset sets.
    ways = {name: ways[name] for name in ways if name in settings.given} or ways
    if len(ways) > 1:
        given = [f"`{name}={str(value) if isinstance(value, Path) else value!r}`"
                 for name, value in ways.items()]
        raise VplError(f"{' and '.join(given)} are different ways to cut CAMs",
                       f"give one of them: {' or '.join(given)}")
    if "alpha" in ways:
        return metrics.threshold_of_alpha(settings.alpha)
    if "threshold_from" not in ways:
        return settings.threshold if "threshold" in ways else 0
    path = ways["threshold_from"]
    found = formats.read_json(path, "`eval(split='SPLIT')` writes scores").get("threshold", 0)
    if not found:
        raise VplError(f"{path} has no threshold", "use the scores of CAMs")
    return float(found)


def _report(workspace: Workspace, source: InputFolder, tally: _Tally, split: str, given: float
            ) -> JsonObject:
    report: JsonObject = {
        "kind": "scores", "what": _name(source), "scored": source.kind, "split": split,
        "photos": len(tally.parts), "made_by": source.header.command,
        "supervision": source.header.supervision or "tags",
        "made_under": source.header.preset, "scored_under": current_preset(),
        "config": source.identity, "content": formats.identity_of_many(tally.parts)}
    counts = tally.counts
    if source.kind == "cams":
        steps = [step / 100 for step in range(1, 100)]
        curve = [metrics.scores(metrics.confusion_at(counts, step)).miou for step in steps]
        report["sweep"] = {f"{step:.2f}": round(value, 6)
                           for step, value in zip(steps, curve, strict=True)}
        report["alphas"] = {f"{value:g}": round(metrics.scores(metrics.confusion_at(
            counts, metrics.threshold_of_alpha(value))).miou, 6) for value in _ALPHAS}
        report["threshold_chosen_by"] = "given" if given else "best of the sweep"
        report["threshold"] = chosen = round(given or steps[curve.index(max(curve))], 4)
        counts = metrics.confusion_at(counts, chosen)
    result = metrics.scores(counts)
    report["miou"] = round(result.miou, 6)
    report["accuracy"] = round(result.accuracy, 6)
    report["classes_in_mean"] = result.present
    report["iou"] = {workspace.class_name(index): None if value != value else round(value, 6)
                     for index, value in enumerate(result.iou.tolist())}
    if source.kind != "cams":
        report["worst"] = _worst(workspace, tally.each)
    if counts.classes <= _MATRIX:
        report["confusion"] = counts.matrix().tolist()
    return report


def _worst(workspace: Workspace, each: Mapping[str, metrics.Confusion]) -> list[JsonObject]:
    """The photos of the lowest mIoU, over the classes that each shows; the lowest first."""
    scored = {key: metrics.scores(counts).miou for key, counts in each.items() if counts.pairs}
    found = []
    for key in sorted(scored, key=lambda key: (scored[key], key))[:WORST]:
        miou, iou = scored[key], metrics.scores(each[key]).iou
        truth, predicted, _ = each[key].totals()
        classes = ((truth > 0) | (predicted > 0)).nonzero()[0].tolist()
        why = ", ".join(f"{workspace.class_name(index)} "
                        f"{f'{100 * iou[index]:.0f}' if truth[index] else '-'}"
                        for index in classes)
        found.append({"id": key, "score": round(miou, 6), "why": f"mIoU {100 * miou:.1f}: {why}"})
    return found


def show(report: reports.Report, values: Mapping[str, object]) -> str:
    """Format the scores as a table, and where they were written."""
    if not report:
        return ""
    if report["kind"] == "agreement":
        return "\n".join([*show_of_tags(report), *map(str, report.paths)])
    width = max(len(name) for name in report["iou"])
    lines = [f"{name:{width}}  {percent(value):>5}" for name, value in report["iou"].items()]
    lines += [f"{'mIoU':{width}}  {100 * report['miou']:5.1f}",
              f"{'accuracy':{width}}  {100 * report['accuracy']:5.1f}"]
    if None in report["iou"].values():
        lines.append("-: no true mask shows the class, so the mean does not count it")
    if "boundary" in report:
        lines.append(f"boundary F  {100 * report['boundary']['f']:.1f}, within "
                     f"{100 * report['boundary']['tolerance']:g} % of the diagonal")
    if values.get("sweep") and "sweep" in report:
        lines += ["threshold  mIoU", *(f"{step:>9}  {100 * value:4.1f}"
                                       for step, value in report["sweep"].items()
                                       if step[-1] in "05"),
                  "alpha      mIoU", *(f"{step:>9}  {100 * value:4.1f}"
                                       for step, value in report["alphas"].items())]
    at = (f", threshold {report['threshold']:g} ({report['threshold_chosen_by']})"
          if "threshold" in report else "")
    lines.append(f"{report['what']} on `{report['split']}`: {report['photos']} photos, mean over "
                 f"{report['classes_in_mean']} classes{at}")
    if report["supervision"] != "tags":
        lines.append(f"supervised by {report['supervision']}")
    if report["made_under"] or report["scored_under"]:
        lines.append(f"protocol: made by {report['made_by']} under "
                     f"{format_preset(report['made_under'])}; "
                     f"scored under {format_preset(report['scored_under'])}")
    return "\n".join([*lines, *map(str, report.paths)])


def _name(source: InputFolder) -> str:
    """Name of what is scored: `cams-vision` for cams/vision/train."""
    return f"{source.kind}-{source.name}"
