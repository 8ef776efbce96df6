"""`vpltool eval`: how good are CAMs, masks or predictions. Reads the true masks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import (
    InputFolder,
    Photo,
    Workspace,
    find_folder,
    identity_of_file,
    identity_of_many,
    open_workspace,
    read_json,
    write_json,
)
from vpltool.formats.header import current_preset, spell_preset
from vpltool.options import Json, Limit, Out, Quiet, Split
from vpltool.parallel.threads import in_threads
from vpltool.stage import Stage
from vpltool.stages._truth import read_truth

if TYPE_CHECKING:
    import numpy as np

    from vpltool.core.metrics import Counts

STAGE = Stage(order=90, panel="4. Scores and pictures", reads=("cams", "masks", "predictions"),
              writes=("scores",))

_ALPHAS = (1.0, 2.0, 4.0, 8.0)


def eval(  # noqa: A001 - the command's name
    ctx: typer.Context,
    what: Annotated[str, typer.Option(
        metavar="PATH-OR-NAME", help="cams/NAME, masks/NAME, predictions/NAME or a folder; "
                                     "default: the furthest result of the split.")] = "",
    split: Split = "val",
    threshold: Annotated[float, typer.Option(
        min=0, max=1, help="Background threshold of CAMs; 0: the best of the sweep, and said so.",
    )] = 0,
    threshold_from: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Take the threshold from these scores: choose it on one split, score "
                             "another.")] = None,
    alpha: Annotated[float, typer.Option(
        min=0, help="Background score (1 - max)^ALPHA of CAMs, as CLIP-ES; instead of "
                    "--threshold.")] = 0,
    sweep: Annotated[bool, typer.Option(
        "--sweep", help="Show the scores of CAMs at every threshold.")] = False,
    json: Json = False,
    limit: Limit = 0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Score CAMs, masks or predictions against the true masks.

    The only command, with show, that opens true masks. Scores are always written anew.

    Example: vpltool eval --split val --what predictions/vision-refined

    Next: vpltool scores
    """
    console.set_quiet(quiet)
    workspace = open_workspace(ctx.obj)
    if threshold_from is not None:
        threshold = read_json(threshold_from, "vpltool eval --split SPLIT").get("threshold", 0)
        if not threshold:
            raise VplError(f"{threshold_from} has no threshold", "take scores of CAMs")
    photos = workspace.photos(split, limit)
    source = find_folder(
        ctx.obj, ("predictions", "masks", "cams"), what, split, ("predictions", "masks", "cams"),
        "vpltool cam, vpltool crf or vpltool predict make something to score",
        preferred=[f"{name}{suffix}" for name in (
            "vision-refined", "vision", "text-refined", "text")
            for suffix in ("-crf", "-full", "")])
    workspace.check_classes(source.header, source.path)
    asked = len(photos)
    photos = [photo for photo in photos if photo.mask is not None]
    if not photos:
        raise VplError(f"no photo of `{split}` has a true mask",
                       "choose another --split, or prepare with --masks")
    if len(photos) < asked:
        console.warn(f"{asked - len(photos)} of {asked} photos have no true mask and are left out")
    have = set(source.available(photo.id for photo in photos))
    tally = _tally(workspace, source, [photo for photo in photos if photo.id in have])
    report = _report(workspace, source, tally, split, threshold, alpha)
    report["photos_left_out"] = asked - len(have)
    path = out or ctx.obj / "scores" / f"{_name(source)}-{split}.json"
    write_json(path, report)
    if json:
        import json as spelling

        print(spelling.dumps(report))
    else:
        _print_table(workspace, report, sweep=sweep)
        print(path)


@dataclass
class _Tally:
    counts: Any = 0
    parts: dict[str, str] = field(default_factory=dict)


def _tally(workspace: Workspace, source: InputFolder, photos: list[Photo]) -> _Tally:
    tally = _Tally()
    threads = min(8, os.cpu_count() or 1)
    with console.progress("eval", len(photos)) as advance:
        for photo, counts in zip(photos, in_threads(
                lambda photo: _count(workspace, source, photo), photos, threads), strict=True):
            tally.counts += counts
            tally.parts[photo.id] = identity_of_file(source.path_of(photo.id))
            advance()
    return tally


def _count(workspace: Workspace, source: InputFolder, photo: Photo) -> Counts:
    """Confusion matrix of a photo's labels, or histogram of its CAMs."""
    from vpltool.core import metrics

    classes = len(workspace.classes) + 1
    if source.kind == "cams":
        truth = read_truth(workspace, photo, _size_of(workspace, photo))
        best, best_class = _strongest(source, photo.id, truth.shape)
        return metrics.seed_histogram(truth, best, best_class, classes, workspace.ignore)
    path = source.path_of(photo.id)
    label = source.read_labels(photo.id)
    truth = read_truth(workspace, photo, label.shape, path)
    if (label[label != workspace.ignore] >= classes).any():
        raise VplError(f"{path}: a label above {classes - 1}, the workspace's last class",
                       f"vpltool {source.header.command} --overwrite")
    return metrics.confusion(truth, label, classes, workspace.ignore)


def _size_of(workspace: Workspace, photo: Photo) -> tuple[int, int]:
    from vpltool.core.photos import describe_failure, photo_size

    path = workspace.image_path(photo)
    try:
        return photo_size(path)
    except OSError as error:
        raise VplError(f"{photo.id}: {describe_failure(path, error)}",
                       "mend it and run the same command again") from error


def _strongest(
    source: InputFolder, photo_id: str, shape: tuple[int, ...]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    import torch
    import torch.nn.functional as F

    tensors = source.read_tensors(photo_id)
    if not len(tensors["classes"]):
        import numpy as np

        return np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    cam = F.interpolate(tensors["cam"].float()[None], size=tuple(shape), mode="bilinear",
                        align_corners=False)[0]
    best, index = cam.max(dim=0)
    return best.numpy(), tensors["classes"][index].to(torch.uint8).numpy()


def _report(workspace: Workspace, source: InputFolder, tally: _Tally, split: str,
            threshold: float, alpha: float) -> dict[str, Any]:
    from vpltool.core import metrics

    report: dict[str, Any] = {
        "kind": "scores", "what": _name(source), "scored": source.kind, "split": split,
        "photos": len(tally.parts), "made_by": source.header.command,
        "made_under": source.header.preset, "scored_under": current_preset(),
        "config": source.identity, "content": identity_of_many(tally.parts)}
    counts = tally.counts
    if source.kind == "cams":
        steps = [step / 100 for step in range(1, 100)]
        curve = [metrics.scores(metrics.confusion_at(counts, step)).miou for step in steps]
        report["sweep"] = {f"{step:.2f}": round(value, 6)
                           for step, value in zip(steps, curve, strict=True)}
        report["alphas"] = {f"{value:g}": round(metrics.scores(metrics.confusion_at(
            counts, metrics.threshold_of_alpha(value))).miou, 6) for value in _ALPHAS}
        chosen = threshold or (metrics.threshold_of_alpha(alpha) if alpha else 0)
        report["threshold_chosen_by"] = "given" if chosen else "best of the sweep"
        report["threshold"] = chosen = round(chosen or steps[curve.index(max(curve))], 4)
        counts = metrics.confusion_at(counts, chosen)
    result = metrics.scores(counts)
    report["miou"] = round(result.miou, 6)
    report["accuracy"] = round(result.accuracy, 6)
    report["classes_in_mean"] = result.present
    report["iou"] = {workspace.class_name(index): None if value != value else round(value, 6)
                     for index, value in enumerate(result.iou.tolist())}
    report["confusion"] = counts.tolist()
    return report


def _print_table(workspace: Workspace, report: dict[str, Any], *, sweep: bool) -> None:
    width = max(len(name) for name in report["iou"])
    for name, value in report["iou"].items():
        print(f"{name:{width}}  {'-' if value is None else format(100 * value, '.1f'):>5}")
    print(f"{'mIoU':{width}}  {100 * report['miou']:5.1f}")
    print(f"{'accuracy':{width}}  {100 * report['accuracy']:5.1f}")
    if sweep and "sweep" in report:
        print("threshold  mIoU")
        for step, value in report["sweep"].items():
            if step[-1] in "05":
                print(f"{step:>9}  {100 * value:4.1f}")
        print("alpha      mIoU")
        for step, value in report["alphas"].items():
            print(f"{step:>9}  {100 * value:4.1f}")
    at = (f", threshold {report['threshold']:g} ({report['threshold_chosen_by']})"
          if "threshold" in report else "")
    print(f"{report['what']} on `{report['split']}`: {report['photos']} photos, mean over "
          f"{report['classes_in_mean']} classes{at}")
    print(f"protocol: made by {report['made_by']} under {spell_preset(report['made_under'])}; "
          f"scored under {spell_preset(report['scored_under'])}")


def _name(source: InputFolder) -> str:
    """Name of what is scored: `cams-vision` for cams/vision/train."""
    return f"{source.kind}-{source.name}"
