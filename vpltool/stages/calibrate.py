"""`calibrate`: calibration of a segmenter's probabilities by the tags of held-out photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.core.agreement import fit_temperature, kept_at, spread
from vpltool.engine import photo_work, reports, segmenters
from vpltool.errors import VplError, counted
from vpltool.formats import InputFolder, Photo, Workspace, identity_of_file, kinds, storage
from vpltool.formats.workspace import with_known_tags
from vpltool.lazy import Tensor, np, torch
from vpltool.settings import Settings, Stage, setting


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(Settings):
    """Settings of `calibrate`."""

    decoder: str = setting("", "Segmenter; default: the only one, or the first of vision-refined, "
                               "vision, text-refined and text.", metavar="NAME-OR-PATH")
    split: str = options.split("val")
    limit: int = options.limit()
    pixels: int = setting(500, "Pixels sampled per photo.", low=1)


STAGE = Stage(order=84, panel="3. Masks and segmenter", reads=("decoder", "probabilities"),
              writes=("calibration",), settings=CalibrateSettings)


def run(workspace: Workspace, settings: CalibrateSettings) -> Path:
    """Find the temperature that makes a segmenter's probabilities fit the tags of held-out photos.

    `predict --abstain 0.7` uses it: pixels that are less sure get 255. The
    file also says how many pixels keep a label at each level, and how often
    the tags allow that label. Tags say nothing about outlines. Bundles
    exported afterwards include the temperature.

    Example: vpltool calibrate --decoder segmenter --split val

    Next: vpltool predict --decoder segmenter --abstain 0.7

    Raises:
        VplError: there are no probabilities, or they are of an earlier segmenter; or no photo is
            tagged.
    """
    segmenter = segmenters.find_segmenter(workspace.path, settings.decoder)
    workspace.check_classes(segmenter.header, segmenter.path)
    if segmenter.header.options.get("split") == settings.split:
        console.warn(f"the segmenter was trained on the photos of `{settings.split}`: it is less "
                     "sure of new ones than of these")
    folder = segmenter.open_probabilities(workspace, settings.split)
    photos = with_known_tags(workspace.path, workspace.photos(settings.split, settings.limit))
    there = set(folder.available([photo.id for photo in photos])) if photos else set()
    photos = [photo for photo in photos if photo.id in there]
    if not photos:
        raise VplError(f"no photo of `{settings.split}` has a tag to compare with",
                       "name a split of tagged photos: `split='NAME'`")
    if len(photos) < reports.ENOUGH:
        console.warn(f"only {counted(len(photos), 'photo', 'photos')}: a temperature from so few "
                     "is hardly better than none")
    probabilities, allowed = _sample(workspace, folder, photos, settings.pixels)
    temperature = fit_temperature(probabilities, allowed)
    path = kinds.result_path(workspace.path, "calibration", segmenter.path.stem)
    storage.write_json(path, {
        "kind": "calibration", "decoder": identity_of_file(segmenter.path), "split": settings.split,
        "photos": len(photos), "pixels": len(probabilities), "temperature": temperature,
        "kept": [{name: round(value, 4) if value == value else None
                  for name, value in kept.items()}
                 for kept in kept_at(probabilities, allowed, temperature)]})
    return path


def show(path: Path, values: Mapping[str, object]) -> str:
    """Format the temperature, the share of pixels kept at each level, and the path."""
    found = storage.read_json(path, "`calibrate()`")
    lines = [f"temperature {found['temperature']:g}, from the tags of {found['photos']} photos of "
             f"`{found['split']}`", "abstain  pixels kept  share with a tagged class"]
    lines += [f"{row['level']:7.2f}  {100 * row['share']:10.1f} %  "
              + ("-" if row["right"] is None else f"{100 * row['right']:.1f} %")
              for row in found["kept"]]
    return "\n".join([*lines, str(path)])


def _sample(workspace: Workspace, folder: InputFolder, photos: Sequence[Photo], pixels: int
            ) -> tuple[Tensor, Tensor]:
    """Sample evenly spaced pixels of each photo: probabilities, and allowed classes (N, 1 + C)."""
    count = 1 + len(workspace.classes)
    probabilities, allowed = [], []
    for photo in photo_work.tracked("calibrate", photos, len(photos)):
        tensors = folder.read_tensors(photo.id)
        flat = spread(tensors["probabilities"], tensors["classes"], count).flatten(1).T
        places = np.linspace(0, len(flat) - 1, min(pixels, len(flat))).round().astype(int)
        probabilities.append(flat[torch.from_numpy(places)])
        own = torch.zeros(count, dtype=torch.bool)
        own[[0, *workspace.indices_of(photo)]] = True
        allowed.append(own.expand(len(places), -1))
    return torch.cat(probabilities), torch.cat(allowed)
