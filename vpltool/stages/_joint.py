"""Joint training of a network and its encoder on crops of photos: students and finetuning."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.clip import stored_towers
from vpltool.core import joint, segmenter, training
from vpltool.engine import checkpoints, segmenters
from vpltool.engine.masks import Masks
from vpltool.engine.photos import read_known_photo
from vpltool.errors import counted
from vpltool.formats import Header, InputFolder, JsonObject, Photo, Workspace, kinds, storage
from vpltool.lazy import F, Tensor, np, torch
from vpltool.parallel import device, threads
from vpltool.parallel.ranks import joined
from vpltool.stages._training_inputs import choose_crop, cut_pixels, normalised_crops

FEW = 50
"""Number of photos below which a joint training warns."""

SCALES = (0.5, 2.0)
"""Factors on a photo's size, log-uniform: WeCLIP's."""

_COLOURS = 0.3
"""Brightness, contrast and saturation change by up to this share."""


@dataclass(frozen=True)
class TrainingPhoto:
    """A photo to learn from, of the workspace or another folder.

    Args:
        soft: folder with a teacher's probabilities.
        masked: whether it has a mask.
        tagged: whether its tags are known, so that other classes are impossible.
    """

    photo: Photo
    soft: InputFolder | None = None
    masked: bool = True
    tagged: bool = True


@dataclass(frozen=True)
class PixelData:
    """The photos for a joint training of a network and its encoder.

    Photos longer than `max_side` are scaled down to it (0: never), then by a factor between the
    `scales`. Several processes (`ranks`) share the crops of a step.
    """

    workspace: Workspace
    photos: Sequence[TrainingPhoto]
    masks: Masks | None
    encoder: Any
    max_side: int
    scales: tuple[float, float] = SCALES
    rank: int = 0
    ranks: int = 1


def train_both(
    data: PixelData, network: segmenter.SegmenterNetwork, chosen: joint.JointSettings,
    settings: Any, header: Header, target: Path, start: checkpoints.Start, names: Sequence[str],
) -> None:
    """Train a network with the encoder of `data`, both in place, and write their averages.

    The settings are those of `train-decoder` or `train-student`; `names` are those of the losses.
    """
    encoder = data.encoder
    # The learning rate rises in a tenth of the steps, and in `WARMUP` at most.
    steps = training.StepSettings(
        iterations=settings.iters, batch_size=settings.batch_size, crop=settings.crop,
        lr=settings.lr, power=settings.power, seed=settings.seed,
        warmup=max(1, min(training.WARMUP, settings.iters // 10)),
        precision=device.find_precision("bf16", device.find_device(settings.device), console.warn)
        if settings.precision == "bf16" else torch.float32)

    def finish() -> tuple[Header, Mapping[str, Tensor]]:
        pair.finish()
        facts = {"config": network.config, "reads": list(network.reads),
                 "tower": stored_towers.tower_config(encoder.vision), "mean": list(encoder.mean),
                 "std": list(encoder.std)}
        tower = {f"{segmenters.TOWER}{name}": storage.without_loss(tensor)
                 for name, tensor in encoder.vision.state_dict().items()}
        return replace(header, facts=header.facts | facts), network.state_dict() | tower

    with (joined(settings.device) as ranks,
          contextlib.closing(pixel_batches(
              replace(data, rank=ranks.rank, ranks=ranks.count), steps, start.step,
              workers=device.worker_count(settings.workers))) as batches,
          checkpoints.too_many_crops(steps)):
        torch.manual_seed(steps.seed)
        pair = joint.Pair(encoder.vision.float().to(ranks.device), network.to(ranks.device), chosen)
        optimizer = joint.joint_optimizer(pair, steps)
        curve = checkpoints.take_steps(
            checkpoints.Steps(header, target, steps.iterations, pair, optimizer, names,
                              settings.checkpoint_every),
            joint.train_jointly(pair, optimizer, steps, batches, start=start.step, group=ranks),
            start, ranks, finish)
        if ranks.rank == 0:
            checkpoints.note_losses(names, curve)


def warn_of_little(photos: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Warn of few photos and of untagged classes; `photos` are the class indices of each."""
    if len(photos) < FEW:
        console.warn(f"only {counted(len(photos), 'photo', 'photos')} for a network that is "
                     "trained with its encoder: compare its scores (`eval`) with its teacher's")
    tagged = {index for tags in photos for index in tags}
    missing = [name for index, name in enumerate(classes, 1) if index not in tagged]
    if missing and len(missing) < len(classes):
        console.warn(f"no photo is tagged {', '.join(missing)}: it will not be recognised")


def facts_of(method: str, workspace: Workspace, max_side: int) -> JsonObject:
    """Return the facts for a segmenter's header that any method needs."""
    return {"segmenter": method, "classes": list(workspace.classes),
            "normalise": workspace.normalise, "max_side": max_side}


def pixel_batches(data: PixelData, settings: training.StepSettings, start: int, *, workers: int
                  ) -> Generator[joint.PixelBatch, None, None]:
    """Make a batch of crops for each step from `start` on, which depends only on its number."""
    yield from threads.in_threads(lambda step: _batch(data, settings, step),
                                  range(start, settings.iterations), workers)


def _batch(data: PixelData, settings: training.StepSettings, step: int) -> joint.PixelBatch:
    share = settings.batch_size // data.ranks
    own = range(data.rank * share, (data.rank + 1) * share)
    chosen = training.chosen_photos(len(data.photos), settings, step)
    # Each crop has its own generator, so processes need not draw each other's numbers.
    crops = [_crop(data, data.photos[chosen[number]], settings.crop,
                   np.random.default_rng((settings.seed, 3, step, number))) for number in own]
    images, labels, valid, shown, possible, soft = zip(*crops, strict=True)
    mean, std = torch.tensor([data.encoder.mean, data.encoder.std]).view(2, 1, 3, 1, 1)
    inside = torch.stack(valid)
    return joint.PixelBatch(
        normalised_crops(torch.stack(images), inside, mean, std), torch.stack(labels),
        inside.view(-1, settings.crop, settings.crop), torch.stack(shown), torch.stack(possible),
        None if soft[0] is None else torch.stack(soft))


def _crop(data: PixelData, taught: TrainingPhoto, side: int, rng: np.random.Generator
          ) -> tuple[Any, ...]:
    """Cut pixels, labels, valid patches, shown and possible classes, and soft labels."""
    photo, patch = taught.photo, data.encoder.vision.patch
    window = choose_crop(data.workspace, photo, patch, side, rng,
                         scale=float(np.exp(rng.uniform(*np.log(data.scales)))),
                         max_side=data.max_side)
    image = _recoloured(cut_pixels(read_known_photo(data.workspace, photo), window, patch), rng)
    count = 1 + len(data.workspace.classes)
    tags = data.workspace.indices_of(photo) if taught.tagged else range(1, count)
    possible = torch.zeros(count, dtype=torch.bool)
    possible[[0, *tags]] = True
    labels = torch.full((4 * side, 4 * side), kinds.IGNORE, dtype=torch.uint8)
    if taught.masked and data.masks is not None:
        labels = window.cut_labels(
            training.labels_at(data.masks.read_labels(photo.id), window.grid))
    shown = labels.flatten().bincount(minlength=kinds.IGNORE + 1)[:count] > 0
    soft = None if taught.soft is None else _soft_labels(taught.soft, photo.id, possible, window)
    return image, labels, window.valid(), shown & possible, possible, soft


def _soft_labels(folder: InputFolder, key: str, possible: Tensor, window: training.Window
                 ) -> Tensor:
    """Cut class probabilities (classes, 4·side, 4·side), renormalised over possible classes.

    They are 0 in the padding.
    """
    tensors = folder.read_tensors(key)
    found = tensors["probabilities"].float()
    whole = found.new_zeros(len(possible), *found.shape[1:])
    whole[tensors["classes"]] = found
    whole *= possible[:, None, None]
    size = (4 * window.grid[0], 4 * window.grid[1])
    cut = window.cut(F.interpolate(whole[None], size, mode="bilinear", align_corners=False)[0], 4)
    total = cut.sum(dim=0)
    # Nothing is known where impossible classes had almost all of it.
    return (cut / total.clamp_min(1e-6)) * (total > 0.1)


def _recoloured(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast and saturation of pixels (3, H, W), 0 to 255, at random."""
    bright, contrast, colour = rng.uniform(1 - _COLOURS, 1 + _COLOURS, 3).tolist()
    pixels = image.float() * bright
    grey = pixels.mean(dim=0, keepdim=True)
    pixels = grey + (pixels - grey) * colour
    middle = pixels.mean()
    return (middle + (pixels - middle) * contrast).clamp_(0, 255)
