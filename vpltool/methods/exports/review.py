"""Write the photos that the segmenter is least sure of, with its masks, for a person to correct.

The folder holds photos/ID, masks/ID.png (palette PNGs: the value is the line of the class in
classes.txt, counted from 0), palette.gpl, review.csv and a README. Import corrected masks with
prepare --corrections DIR/masks. Photos that were corrected already are left out. An earlier folder
is replaced, unless its masks have been changed. Uncertainty: Settles, Active Learning Literature
Survey, 2009.

Example: vpltool export review --what predictions/segmenter --split train --count 20

Next: vpltool prepare folder PHOTOS --corrections exports/segmenter-train-review/masks
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options, settings
from vpltool.core.agreement import mean_entropy, mean_margin
from vpltool.errors import VplError, counted
from vpltool.formats import Header, Photo, Workspace, archives, corrections
from vpltool.formats.input_folders import open_input, open_probabilities
from vpltool.formats.kinds import result_path
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

_LIST = "review.csv"


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
    workspace, masks = predictions.workspace, path / MASKS
    imported = _imported(workspace, masks)
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
    console.note(f"correct masks in {masks}; then {corrections.import_call(workspace, masks)}, and "
                 "`update()`")
    return [path]


def _imported(workspace: Workspace, masks: Path) -> list[str]:
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
                       f"{corrections.import_call(workspace, masks)} imports corrected masks; or "
                       "choose another folder: `out='DIR'`")
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
    yield "README.md", _readme(workspace, settings, len(chosen), path).encode()
    yield _LIST, _listed(chosen, known, copies).encode()
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


def _readme(workspace: Workspace, settings: Settings, count: int, path: Path) -> str:
    how = {"entropy": "those that the segmenter is least sure of (mean entropy)",
           "margin": "those that the segmenter is least sure of (mean margin)",
           "random": "chosen at random"}[settings.by]
    typed = corrections.import_lines(workspace, path / MASKS)
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
3. You need not correct all of them. Unchanged masks are left out.
4. Import them, and train again{where}:

{lines}

   The segmenter is then trained on your masks instead of its own.
"""
