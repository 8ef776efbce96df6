"""Write the photos that the segmenter is least sure of, with its masks, for a person to correct.

The folder holds photos/ID, masks/ID.png (palette PNGs: the value is the line of the class in
classes.txt, counted from 0), palette.gpl, review.csv and a README. Import corrected masks with
prepare --corrections DIR/masks. Of photos that are not trained on, the README says how to score
with them; of new photos, how to add them to the workspace, with a tags.csv to fill in. Photos that
were corrected already are left out. An earlier folder is replaced, unless its masks have been
changed. Uncertainty: Settles, Active Learning Literature Survey, 2009.

Example: vpltool export review --what predictions/segmenter --split train --count 20

Next: vpltool prepare folder PHOTOS --corrections exports/segmenter-train-review/masks
"""

from __future__ import annotations

import csv
import io
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options, settings
from vpltool.core.agreement import mean_entropy, mean_margin
from vpltool.errors import VplError, counted, first_few
from vpltool.formats import Header, Photo, Workspace, archives, corrections
from vpltool.formats.changes import last_call
from vpltool.formats.input_folders import open_input, open_probabilities, trained_splits
from vpltool.formats.kinds import result_name, result_path
from vpltool.formats.labels import (
    identity_of_labels,
    legend,
    png_bytes,
    read_drawn_labels,
    read_legend,
)
from vpltool.lazy import np
from vpltool.methods.exports._folders import copied_bytes, copied_suffix, keep_exif_setting
from vpltool.methods.inputs import Predictions
from vpltool.names import csv_id
from vpltool.settings import setting

SUFFIX = "-review"
EXPORTS = "predictions"
MASKS = corrections.FOLDER_OF_REVIEW

_LIST, _README, _TAGS = "review.csv", "README.md", "tags.csv"

_TRAIN, _SCORE, _ADD = "train on them", "score with them", "add the photos to the workspace"
"""What corrected masks are for: of photos that are trained on, of others, and of new ones."""

_STEPS = {
    _TRAIN: ("You need not correct all of them. Unchanged masks are left out.",
             "Import them, and train again",
             "The segmenter is then trained on your masks instead of its own."),
    _SCORE: ("Copy the masks that you have checked into a folder of their own, `true-masks`. All\n"
             "   that are in it count as true, so copy none that you have not looked at.",
             "Score with them",
             "Nothing has been trained on these photos."),
    _ADD: ("In tags.csv, write the classes that each photo shows, separated by `;`. Delete the\n"
           "   rows of photos that you do not want to add: an empty field says that a photo shows\n"
           "   no class. You need not correct all masks. Unchanged ones are left out.",
           "Add photos, tags and masks, and train again",
           "The segmenter is then trained on these photos, too.")}
"""By use, the third step of the README, the fourth, and its effect."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of photos to review."""

    split: str = options.split("train")
    count: int = setting(20, "Number of photos.", low=1, metavar="N")
    by: str = setting("entropy", "How photos are chosen: largest mean entropy, or smallest mean "
                                 "margin, of their pixels' probabilities; or at random.",
                      choices=("entropy", "margin", "random"))
    seed: int = options.seed()
    keep_exif: bool = keep_exif_setting()


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder.

    Raises a VplError if there are no probabilities beside the predictions, all photos were
    corrected already, or the folder holds corrected masks.
    """
    workspace, masks, use = predictions.workspace, path / MASKS, _use_of(predictions, settings)
    imported = _imported(workspace, masks, use)
    done = corrections.corrections_of(workspace, predictions.photos)
    photos = [photo for photo in predictions.photos if photo.id not in done]
    if not photos:
        raise VplError(f"all photos of `{settings.split}` have already been corrected, "
                       f"{len(done)} in total",
                       "choose another split: `split='NAME'`")
    unsure = _uncertainties(predictions, photos, settings)
    chosen = dict(sorted(unsure.items(), key=lambda entry: (-entry[1], entry[0]))[:settings.count])
    if len(chosen) < settings.count:
        console.warn(f"there {'is' if len(chosen) == 1 else 'are'} only "
                     f"{counted(len(chosen), 'photo', 'photos')} to review")
    archives.write_tree(path, _members(predictions, photos, chosen, settings, path), "review",
                        imported=imported)
    console.note(f"correct masks in {masks}; then " + (
        f"{corrections.import_call(workspace, masks)}, and `update()`" if use == _TRAIN else
        f"{path / _README} says how to {use}"
        + (f": {_lines(predictions, settings, path, use)[0]}" if use == _SCORE else "")))
    _warn_of_known(workspace, chosen, use)
    return [path]


def _use_of(predictions: Predictions, settings: Settings) -> str:
    """Return what the masks are for, once they are corrected."""
    workspace = predictions.workspace
    if not any(settings.split in photo.splits for photo in workspace.photos()):
        return _ADD
    trained = trained_splits(workspace.path)
    if all(trained.isdisjoint(photo.splits) for photo in predictions.photos):
        return _SCORE
    return _TRAIN


def _warn_of_known(workspace: Workspace, chosen: Collection[str], use: str) -> None:
    """Warn of new photos with the names of others, which they would replace."""
    both = [photo.id for photo in workspace.photos() if photo.id in chosen]
    if both and use == _ADD:
        console.warn(counted(len(both), "photo has the name of a photo",
                             "photos have the names of photos")
                     + f" of the workspace: {first_few(both)}; rename those that are others, and "
                     "their masks, before you add them")


def _imported(workspace: Workspace, masks: Path, use: str) -> list[str]:
    """Return the masks of the earlier folder, of which none has corrections to import.

    Raises a VplError if some have.
    """
    there = {mask.relative_to(masks).with_suffix("").as_posix(): mask
             for mask in sorted(masks.rglob("*.png"))}
    names, known = read_legend(masks.parent)[1:], corrections.exchanged(workspace.path)
    left = [mask for key, mask in there.items()
            if corrections.is_edited(mask, corrections.computed_masks(workspace.path, key))
            and not any(corrections.identity_shown(read_drawn_labels(mask), names)
                        in before.get(key, ()) for before in known.values())]
    if left:
        raise VplError(f"{counted(len(left), 'mask', 'masks')} in {masks.parent} had been "
                       f"corrected and not imported, such as {left[0].name}",
                       (f"{corrections.import_call(workspace, masks)} imports corrected masks"
                        if use == _TRAIN else f"{masks.parent / _README} says how to {use}")
                       + "; or choose another folder: `out='DIR'`")
    return [f"{MASKS}/{key}.png" for key in there]


def _uncertainties(predictions: Predictions, photos: Sequence[Photo], settings: Settings
                   ) -> dict[str, float]:
    """Return the segmenter's uncertainty of each photo by id, or random numbers."""
    if settings.by == "random":
        numbers = np.random.default_rng(settings.seed).random(len(photos))
        return {photo.id: float(number) for photo, number in zip(photos, numbers, strict=True)}
    measure = mean_entropy if settings.by == "entropy" else mean_margin
    work = predictions.workspace.path
    path = result_path(work, "predictions", predictions.name, settings.split)
    folder = open_probabilities(work, open_input(path, ("predictions",)), "`by='random'`")
    with console.progress("uncertainty", len(photos)) as advance:
        found = {}
        for photo in photos:
            tensors = folder.read_tensors(photo.id, "probabilities")
            found[photo.id] = measure(tensors["probabilities"])
            advance()
    return found


def _members(predictions: Predictions, photos: Sequence[Photo], chosen: Mapping[str, float],
             settings: Settings, path: Path) -> Iterator[tuple[str, bytes]]:
    workspace = predictions.workspace
    names = ("background", *workspace.classes)
    known = {photo.id: photo for photo in photos}
    copies = {}
    for key in chosen:
        suffix, own = copied_suffix(known[key], settings.keep_exif), Path(known[key].image).suffix
        copies[key] = f"photos/{key}{own if own.lower() == suffix else suffix}"
    yield from legend(predictions.name, names)
    use = _use_of(predictions, settings)
    yield _README, _readme(predictions, settings, len(chosen), path, use).encode()
    yield _LIST, _listed(chosen, known, copies).encode()
    if use == _ADD:
        yield _TAGS, "".join(["id,labels\n", *(f"{csv_id(key)},\n" for key in chosen)]).encode()
    for key, name in copies.items():
        try:
            yield name, copied_bytes(workspace.image_path(known[key]), Path(name).suffix,
                                     settings.keep_exif)
        except OSError as error:
            predictions.failed[key] = f"{known[key].image}: {error}"
    for photo, labels in predictions.each():
        if photo.id in chosen:
            header = Header(kind="predictions", command="export review",
                            facts={corrections.PIXELS: identity_of_labels(labels)})
            yield f"{MASKS}/{photo.id}.png", png_bytes(labels, header)


def _listed(chosen: Mapping[str, float], known: Mapping[str, Photo], copies: Mapping[str, str]
            ) -> str:
    """Return the photos as CSV, the most uncertain first."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("id", "photo", "tags", "uncertainty"))
    rows.writerows((csv_id(key), copies[key], ";".join(known[key].tags), f"{value:.4f}")
                   for key, value in chosen.items())
    return table.getvalue()


def _readme(predictions: Predictions, settings: Settings, count: int, path: Path, use: str) -> str:
    how = {"entropy": "those that the segmenter is least sure of (mean entropy)",
           "margin": "those that the segmenter is least sure of (mean margin)",
           "random": "chosen at random"}[settings.by]
    third, fourth, end = _STEPS[use]
    typed = _lines(predictions, settings, path, use)
    lines = "\n".join(f"       {line}" for line in typed)
    where = (", in the folder where they were exported" if not any("WORKSPACE" in line for line in
                                                                   typed) else "")
    return f"""# Masks to correct

{count} photos of `{settings.split}`, {how}. review.csv lists them, the least sure first.

1. Open a photo of `photos/` and its mask in `masks/`, which has the same name. A pixel's value is
   the line of its class in classes.txt, counted from 0: 0 is the background. 255 is unlabelled, and
   is not used for training. palette.gpl has the colours, for GIMP and Krita.
2. Correct the mask and save it under its name, as a PNG with a palette or with grey values: of the
   photo's size, without smoothing, since values between two classes are other classes.
3. {third}
4. {fourth}{where}:

{lines}

   {end}
"""


def _lines(predictions: Predictions, settings: Settings, path: Path, use: str) -> list[str]:
    """Return the shell commands that use corrected masks; see `corrections.import_lines`."""
    workspace = predictions.workspace
    typed = corrections.import_lines(workspace, path / MASKS)
    if use == _TRAIN:
        return typed
    program, (_, folder, photos) = shlex.split(typed[1])[:3], shlex.split(typed[0])[3:6]
    if use == _SCORE:
        return [shlex.join([*program, "prepare", folder, photos, "--masks", "true-masks"]),
                shlex.join([*program, "eval", "--split", settings.split, "--what",
                            result_name("predictions", predictions.name)])]
    here = _shown(path, "EXPORT")
    table = last_call(workspace.path).get("labels")
    given = workspace.path / str(table) if table else None
    rows = shlex.quote(f"{here}/{_TAGS}")
    csv_file = shlex.quote(_shown(given, "TAGS.csv") if given else "TAGS.csv")
    return [shlex.join(["cp", "-rn", f"{here}/photos/.", photos]),
            f"tail -n +2 {rows} >> {csv_file}" if given and _takes_rows(given) else
            f"# add the rows of {rows} to {csv_file}, in its columns", *typed]


def _shown(path: Path, otherwise: str) -> str:
    """Return a path below the current folder, else a placeholder: others see it."""
    short = os.path.relpath(path.resolve())
    return otherwise if short.startswith("..") else short


def _takes_rows(path: Path) -> bool:
    """Return whether rows of id and labels can be added to the end of a CSV."""
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    return text.startswith("id,labels") and text.endswith("\n")
