"""Scores without true masks: agreement of predictions with the tags of their photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from vpltool import console, formats
from vpltool.core import agreement
from vpltool.engine.photo_work import tracked
from vpltool.engine.reports import ENOUGH
from vpltool.errors import VplError, counted
from vpltool.formats import InputFolder, JsonObject, Photo, Workspace, manifest
from vpltool.formats.header import Header, current_preset
from vpltool.formats.input_folders import probabilities_beside
from vpltool.formats.workspace import with_known_tags
from vpltool.lazy import np, npt
from vpltool.parallel import threads
from vpltool.pictures.page import percent

Values: TypeAlias = "npt.NDArray[np.float64]"

WORST = 100
"""Photos that a report lists at most, the worst first."""

_THREADS = 4


def report_of_tags(workspace: Workspace, source: InputFolder, photos: Sequence[Photo], split: str,
                   share: float) -> JsonObject:
    """Compare the predicted classes with the tags of photos, without opening true masks.

    A class counts as predicted if it covers at least `share` of a photo's pixels. Photos without a
    tag show no class, unless none has one.

    Raises a VplError if these are CAMs, no photo has a tag, or a prediction is damaged.
    """
    _check_source(workspace.path, source, split)
    photos = with_known_tags(workspace.path, photos)
    if not photos:
        raise VplError(f"no photo of `{split}` has a tag to compare with",
                       "name a split of tagged photos: `split='NAME'`")
    beside = probabilities_beside(workspace.path, source)
    shares, sure, contents = _read_all(workspace, source, beside, photos, share)
    tagged = np.zeros((len(photos), len(workspace.classes)), bool)
    for row, photo in zip(tagged, photos, strict=True):
        row[[index - 1 for index in workspace.indices_of(photo)]] = True
    predicted = shares >= share
    found = agreement.agreement(predicted, tagged)
    untagged = int((~tagged.any(axis=1)).sum())
    bins = agreement.reliability(sure, tagged) if beside else []
    return {
        "kind": "agreement", "against": "tags", "what": f"{source.kind}-{source.name}",
        "scored": source.kind, "split": split, "photos": len(photos), "share": share,
        **({"untagged": untagged} if untagged else {}),
        "made_by": source.header.command, "supervision": source.header.supervision or "tags",
        "made_under": source.header.preset, "scored_under": current_preset(),
        "config": source.identity, "content": formats.identity_of_many(
            {photo.id: content for photo, content in zip(photos, contents, strict=True)}),
        "mean": {name: _rounded(value) for name, value in found.means().items()},
        "photos_agreeing": _rounded((predicted == tagged).all(axis=1).mean()),
        "foreground": _rounded(shares.sum(axis=1).mean()),
        "classes": {name: {
            "tagged": int(tagged[:, index].sum()), "predicted": int(predicted[:, index].sum()),
            **{key: _rounded(getattr(found, key)[index]) for key in ("precision", "recall", "f1")}}
            for index, name in enumerate(workspace.classes)},
        "calibration": None if beside is None else {
            "error": round(agreement.calibration_error(bins), 6),
            "bins": [{key: _rounded(value) if isinstance(value, float) else value
                      for key, value in asdict(entry).items()} for entry in bins]},
        "worst": _worst(workspace, photos, shares, predicted, tagged)}


def _check_source(work: Path, source: InputFolder, split: str) -> None:
    """Warn if the agreement is larger than on new photos; refuse CAMs."""
    if source.kind == "cams":
        raise VplError(f"{source.path} holds CAMs, which are made from the tags",
                       "compare predictions instead: `what='predictions/NAME'`")
    if source.kind == "masks" or source.header.options.get("tags"):
        console.warn(f"{source.path} was made with the tags, so agreement with them means little; "
                     "score predictions without tags")
    decoder = _decoder_behind(work, source.header)
    if decoder is not None and decoder.options.get("split") == split:
        console.warn(f"the segmenter was trained on the photos of `{split}`: it agrees with their "
                     "tags better than with those of new photos")


def _decoder_behind(work: Path, header: Header) -> Header | None:
    """Return the header of the decoder behind predictions, also before a CRF; None if gone."""
    decoder, what = (work / header.sources.get(role, ".missing") for role in ("decoder", "what"))
    if decoder.is_file():
        return formats.describe(decoder).header
    if not (what / manifest.MANIFEST).exists():
        return None
    kinds = ("predictions", "probabilities", "cams")
    return _decoder_behind(work, formats.open_input(what, kinds).header)


def _read_all(workspace: Workspace, source: InputFolder, beside: InputFolder | None,
              photos: Sequence[Photo], share: float) -> tuple[Values, Values, Sequence[str]]:
    """Read shares and probabilities of classes per photo (N, classes), and hashes of files."""
    count = len(workspace.classes)

    def read(photo: Photo) -> tuple[Values, Values, str]:
        labels = source.read_labels(photo.id)
        highest = labels[labels != workspace.ignore].max(initial=0)
        if highest > count:
            raise VplError(f"{source.path_of(photo.id)}: the label {highest} is above {count}, the "
                           "last class", f"{manifest.call_of(source.header)} recomputes it")
        # A class whose probability was not stored has 0.
        sure = np.zeros(count + 1)
        if beside:
            tensors = beside.read_tensors(photo.id)
            sure[tensors["classes"].numpy()] = agreement.photo_probabilities(
                tensors["probabilities"].float().flatten(1).numpy().astype(np.float64), share)
        return (agreement.class_shares(labels, count + 1)[1:], sure[1:],
                formats.identity_of_file(source.path_of(photo.id)))

    shares, sure, contents = zip(*tracked("eval", threads.in_threads(read, photos, _THREADS),
                                          len(photos)), strict=True)
    return np.stack(shares), np.stack(sure), contents


def _worst(workspace: Workspace, photos: Sequence[Photo], shares: Values,
           predicted: npt.NDArray[np.bool_], tagged: npt.NDArray[np.bool_]) -> list[JsonObject]:
    """List photos whose classes are not the tagged ones: least overlap first, then largest share
    of untagged classes."""
    agreeing = agreement.overlap(predicted, tagged)
    wrong = (shares * (predicted & ~tagged)).sum(axis=1)
    order = sorted((index for index in range(len(photos)) if agreeing[index] < 1),
                   key=lambda index: (agreeing[index], -wrong[index], photos[index].id))
    return [{"id": photos[index].id, "score": round(float(agreeing[index]), 6),
             "why": f"predicted {_names(workspace, predicted[index])}, "
                    f"tagged {_names(workspace, tagged[index])}"} for index in order[:WORST]]


def _names(workspace: Workspace, row: npt.NDArray[np.bool_]) -> str:
    return ", ".join(workspace.classes[index] for index in row.nonzero()[0]) or "nothing"


def _rounded(value: float) -> float | None:
    return None if value != value else round(float(value), 6)


def show_of_tags(report: Mapping[str, Any]) -> list[str]:
    """Format a report: scores of each class, calibration, and the worst photos."""
    width = max(len(name) for name in (*report["classes"], "mean"))
    lines = [f"{'':{width}}  tagged  predicted  precision  recall    F1"]
    for name, row in report["classes"].items():
        lines.append(f"{name:{width}}  {row['tagged']:6}  {row['predicted']:9}  "
                     f"{percent(row['precision']):>9}  {percent(row['recall']):>6}  "
                     f"{percent(row['f1']):>4}")
    mean = report["mean"]
    lines.append(f"{'mean':{width}}  {'':6}  {'':9}  {percent(mean['precision']):>9}  "
                 f"{percent(mean['recall']):>6}  {percent(mean['f1']):>4}")
    if any(row["precision"] is None for row in report["classes"].values()):
        lines.append("-: no photo is tagged with the class, or none predicted to show it (precision"
                     "): the mean does not count it")
    few = report["photos"] < ENOUGH
    if few:
        lines.append(f"only {counted(report['photos'], 'photo', 'photos')}: a single photo can "
                     "change these scores by many points")
    if report["calibration"] and few:
        lines.append(f"the calibration table needs at least {ENOUGH} photos")
    elif report["calibration"]:
        lines.append("probability      pairs   mean  tagged")
        lines += [f"{row['low']:.1f} to {row['high']:.1f}     {row['pairs']:7}  "
                  f"{percent(row['said']):>5}  {percent(row['tagged']):>6}"
                  for row in report["calibration"]["bins"]]
        lines.append(f"calibration error {100 * report['calibration']['error']:.1f}")
    else:
        lines.append("no probabilities beside the predictions: no calibration")
    lines += [f"{entry['id']}: {entry['why']}" for entry in report["worst"][:10]]
    if count := report.get("untagged"):
        lines.append(counted(count, "photo has no tag, and should show",
                             "photos have no tag, and should show") + " no class")
    lines.append(f"{report['what']} on `{report['split']}`: of {report['photos']} photos "
                 f"{100 * report['photos_agreeing']:.0f} % show just the classes tagged; a class "
                 f"counts from {100 * report['share']:g} % of a photo's pixels on")
    lines.append(f"{100 * report['foreground']:.0f} % of the pixels are given a class: tags say "
                 "which classes a photo shows, not where; also look at pictures")
    return lines
