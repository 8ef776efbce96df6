"""Crops of photos with their pseudo labels, for a network that is trained with its encoder."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from vpltool.core import joint, training
from vpltool.core.photos import fit_size, photo_size
from vpltool.engine.photos import naming_photo, read_known_photo
from vpltool.formats import InputFolder, Photo, Workspace
from vpltool.formats.kinds import IGNORE
from vpltool.lazy import F, Tensor, np, torch
from vpltool.parallel import threads
from vpltool.stages._masks import Masks
from vpltool.stages._training_data import cut_pixels, normalised_crops

SCALES = (0.5, 2.0)
"""Factors on a photo's size, log-uniform: WeCLIP's."""

_COLOURS = 0.3
"""Brightness, contrast and saturation change by up to this share."""


@dataclass(frozen=True)
class Taught:
    """A photo that is learned from.

    Args:
        photo: of the workspace, or a named one.
        soft: holds a teacher's probabilities of it; None: there is no teacher.
        masked: whether it has a mask.
        tagged: whether its tags are known, and veto what it may show.
    """

    photo: Photo
    soft: InputFolder | None = None
    masked: bool = True
    tagged: bool = True


@dataclass(frozen=True)
class PixelData:
    """What a network is trained on together with its encoder.

    Args:
        workspace: where photos are found, and their tags.
        photos: those that are learned from.
        masks: of those that have one.
        encoder: normalises photos, and says how large a patch is.
        max_side: longer photos are scaled down to this before they are scaled and cut; 0: never.
        scales: smallest and largest factor on a photo's size; chance chooses among them.
        rank: number of this process.
        ranks: number of processes that share the crops of a step.
    """

    workspace: Workspace
    photos: Sequence[Taught]
    masks: Masks | None
    encoder: Any
    max_side: int
    scales: tuple[float, float] = SCALES
    rank: int = 0
    ranks: int = 1


def pixel_batches(data: PixelData, settings: training.StepSettings, start: int, *, workers: int
                  ) -> Generator[joint.PixelBatch, None, None]:
    """Make a batch of crops for each step from `start` on; it depends only on the step's number.

    Args:
        data: photos and what is known of them.
        settings: of the training.
        start: first step.
        workers: threads that make the next ones meanwhile; 0: none.
    """
    yield from threads.in_threads(lambda step: _batch(data, settings, step),
                                  range(start, settings.iterations), workers)


def _batch(data: PixelData, settings: training.StepSettings, step: int) -> joint.PixelBatch:
    share = settings.batch_size // data.ranks
    own = range(data.rank * share, (data.rank + 1) * share)
    chosen = training.chosen_photos(len(data.photos), settings, step)
    # Each crop has random numbers of its own, so that processes need not make each other's.
    crops = [_crop(data, data.photos[chosen[number]], settings.crop,
                   np.random.default_rng((settings.seed, 3, step, number))) for number in own]
    images, labels, valid, shown, possible, soft = zip(*crops, strict=True)
    mean, std = torch.tensor([data.encoder.mean, data.encoder.std]).view(2, 1, 3, 1, 1)
    inside = torch.stack(valid)
    return joint.PixelBatch(
        normalised_crops(torch.stack(images), inside, mean, std), torch.stack(labels),
        inside.view(-1, settings.crop, settings.crop), torch.stack(shown), torch.stack(possible),
        None if soft[0] is None else torch.stack(soft))


def _crop(data: PixelData, taught: Taught, side: int, rng: np.random.Generator
          ) -> tuple[Any, ...]:
    """Pixels, labels, valid patches, classes that are shown and possible, soft labels of a crop."""
    photo, patch = taught.photo, data.encoder.vision.patch
    path = data.workspace.image_path(photo)
    with naming_photo(photo, path):
        size = photo_size(path)
    scale = float(np.exp(rng.uniform(*np.log(data.scales))))
    height, width = fit_size(size, patch, scale=scale, max_side=data.max_side)
    window = training.choose_window((height // patch, width // patch), side, rng)
    image = _recoloured(cut_pixels(read_known_photo(data.workspace, photo), window, patch), rng)
    count = 1 + len(data.workspace.classes)
    tags = data.workspace.indices_of(photo) if taught.tagged else range(1, count)
    possible = torch.zeros(count, dtype=torch.bool)
    possible[[0, *tags]] = True
    labels = torch.full((4 * side, 4 * side), IGNORE, dtype=torch.uint8)
    if taught.masked and data.masks is not None:
        labels = window.cut_labels(
            training.labels_at(data.masks.read_labels(photo.id), window.grid))
    shown = labels.flatten().bincount(minlength=IGNORE + 1)[:count] > 0
    soft = None if taught.soft is None else _soft_labels(taught.soft, photo.id, possible, window)
    return image, labels, window.valid(), shown & possible, possible, soft


def _soft_labels(folder: InputFolder, key: str, possible: Tensor, window: training.Window
                 ) -> Tensor:
    """Class probabilities of a crop (classes, 4·side, 4·side); 0 where there is padding.

    Classes that the tags do not allow have none, and the others share what is left.
    """
    tensors = folder.read_tensors(key)
    found = tensors["probabilities"].float()
    whole = found.new_zeros(len(possible), *found.shape[1:])
    whole[tensors["classes"]] = found
    whole *= possible[:, None, None]
    size = (4 * window.grid[0], 4 * window.grid[1])
    cut = window.cut(F.interpolate(whole[None], size, mode="bilinear", align_corners=False)[0], 4)
    total = cut.sum(dim=0)
    # Where all of it went to classes that are not tagged, nothing is known.
    return (cut / total.clamp_min(1e-6)) * (total > 0.1)


def _recoloured(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast and saturation of pixels (3, H, W), 0 to 255, at random."""
    bright, contrast, colour = rng.uniform(1 - _COLOURS, 1 + _COLOURS, 3).tolist()
    pixels = image.float() * bright
    grey = pixels.mean(dim=0, keepdim=True)
    pixels = grey + (pixels - grey) * colour
    middle = pixels.mean()
    return (middle + (pixels - middle) * contrast).clamp_(0, 255)
