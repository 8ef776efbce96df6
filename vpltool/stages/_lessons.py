"""What the decoder learns from: stored layers, or crops that the frozen CLIP encodes on the way."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vpltool.errors import VplError
from vpltool.formats import InputFolder, Photo, Workspace, describe, open_input
from vpltool.parallel.threads import in_threads
from vpltool.stages import _artifacts
from vpltool.stages.extract import parse_layers, parse_numbers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vpltool.core.training import CropBatch, TrainingSettings


@dataclass(frozen=True)
class Frozen:
    """Where the frozen layers come from: stored features, or a tower that encodes crops."""

    source: str
    name: str
    layers: tuple[int, ...]
    input_width: int
    model: dict[str, str]
    inputs: dict[str, str]
    features: InputFolder | None = None
    clip: Any = None


def frozen_layers(workspace: Workspace, source: str, layers: str, split: str,
                  photos: list[Photo], device: str, precision: str) -> Frozen:
    """Choose where the layers come from; drops photos without features from `photos`.

    Raises:
        VplError: the features do not hold what is asked for, or there is no such precision.
    """
    folder = workspace.path / "features" / split
    if source != "photos" and (folder / "artifact.json").exists():
        features = open_input(folder, ("features",))
        if {"layers", "patches"} <= set(features.header.options["keep"]):
            ids = set(features.available(photo.id for photo in photos))
            photos[:] = [photo for photo in photos if photo.id in ids]
            shapes = describe(features.path_of(photos[0].id)).shapes
            stored = tuple(features.header.options["layers"])
            wanted = tuple(parse_numbers(layers)) if layers else stored
            if not set(wanted) <= set(stored):
                raise VplError(f"{folder} holds the layers {list(stored)}, not {layers}",
                               f"vpltool extract --split {split} --keep tokens,patches,attention,"
                               f"layers --layers {layers} --overwrite, or --source photos")
            return Frozen("features", str(folder), wanted, shapes["layers"][1][2],
                           features.header.model, {"features": features.identity}, features)
    if source == "features":
        raise VplError(f"{folder} holds no layers and patches",
                       f"vpltool extract --split {split} --keep tokens,patches,attention,layers "
                       "--overwrite, or --source photos")

    from vpltool.clip.load import load_clip
    from vpltool.parallel.device import find_device, find_precision

    place = find_device(device)
    dtype = find_precision(precision, place)
    clip = load_clip(workspace.model, workspace.pretrained, place,
                     base=workspace.path, normalise=workspace.normalise)
    clip.vision.to(dtype)
    wanted = tuple(parse_layers(layers, clip.vision.depth))
    return Frozen("photos", workspace.model, wanted, clip.vision.width, clip.identity, {},
                   clip=clip)


@dataclass(frozen=True)
class Lessons:
    """The photos to learn from, their masks, and what of the frozen CLIP the decoder reads."""

    workspace: Workspace
    masks: InputFolder
    photos: list[Photo]
    frozen: Frozen
    residual: bool


def crop_batches(lessons: Lessons, settings: TrainingSettings, start: int, *,
                 device: torch.device, workers: int) -> Generator[CropBatch, None, None]:
    """Make a batch of crops for each step from `start` on.

    What the CPU has to do for a step hangs on its number alone, so threads do it ahead, as many
    steps at a time as there are threads. A photo's encoding stays here, in order.

    Args:
        lessons: what is learned.
        settings: of the training.
        start: first step.
        device: where the batches will go; for a GPU they come in pinned memory.
        workers: number of threads; 0: none.
    """
    cut = _cut_photos if lessons.frozen.features is None else _cut_features

    def make(iteration: int) -> CropBatch:
        batch = cut(lessons, settings, iteration)
        return batch.pin_memory() if device.type == "cuda" else batch

    batches = in_threads(make, range(start, settings.iterations), workers)
    yield from batches if lessons.frozen.features is not None else _encoded(lessons, batches)


def _photos_of(lessons: Lessons, settings: TrainingSettings, iteration: int) -> list[Photo]:
    from vpltool.core.training import chosen_photos

    return [lessons.photos[number]
            for number in chosen_photos(len(lessons.photos), settings, iteration)]


def _tags_of(lessons: Lessons, photos: list[Photo]) -> list[Tensor]:
    import torch

    return [torch.tensor(lessons.workspace.indices_of(photo), dtype=torch.long)
            for photo in photos]


def _cut_features(lessons: Lessons, settings: TrainingSettings, iteration: int) -> CropBatch:
    """Read and cut the stored layers of a step; patch embeddings only if the decoder adds to them.
    """
    import torch

    from vpltool.core.decoder import layers_of
    from vpltool.core.training import CropBatch, choose_window, generator_of, labels_at

    features = lessons.frozen.features
    assert features is not None
    rng = generator_of(settings, iteration)
    photos = _photos_of(lessons, settings, iteration)
    names = ("grid", "layers", "layer_index", *(("patches",) if lessons.residual else ()))
    crops, patches = [], []
    for photo in photos:
        tensors = features.read_tensors(photo.id, *names)
        height, width = tensors["grid"].tolist()
        window = choose_window((height, width), settings.crop, rng)
        stored = layers_of(tensors["layers"], tensors["layer_index"].tolist(),
                           lessons.frozen.layers)
        labels = labels_at(lessons.masks.read_labels(photo.id), window.grid)
        crops.append((window.cut(stored.unflatten(1, window.grid), 1).flatten(1, 2),
                      window.cut_labels(labels), window.valid()))
        if lessons.residual:
            field = tensors["patches"].unflatten(0, window.grid)
            patches.append(window.cut(field[None], 1)[0].flatten(0, 1))
    layers, labels, valid = map(torch.stack, zip(*crops, strict=True))
    return CropBatch(layers, torch.stack(patches) if patches else None, labels, valid,
                     _tags_of(lessons, photos))


def _cut_photos(lessons: Lessons, settings: TrainingSettings, iteration: int) -> CropBatch:
    """Read, scale and cut the photos of a step.

    In place of layers the batch holds pixels (B, 3, crop·patch, crop·patch) uint8: `_encoded` makes
    layers of them. Bytes are a quarter of what a GPU would else be sent, and normalising the crop
    gives what cutting the normalised photo would.
    """
    import numpy as np
    import torch
    from PIL import Image

    from vpltool.core.photos import fit_size
    from vpltool.core.training import CropBatch, choose_window, generator_of, labels_at

    patch = lessons.frozen.clip.vision.patch
    rng = generator_of(settings, iteration)
    photos = _photos_of(lessons, settings, iteration)
    crops = []
    for photo in photos:
        pixels = _artifacts.read_known_photo(lessons.workspace, photo)
        height, width = fit_size((pixels.shape[0], pixels.shape[1]), patch,
                                 scale=float(rng.uniform(0.5, 2.0)))
        window = choose_window((height // patch, width // patch), settings.crop, rng)
        labels = labels_at(lessons.masks.read_labels(photo.id), window.grid)
        # As `to_pixels` resizes.
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        crops.append((window.cut(image, patch).contiguous(), window.cut_labels(labels),
                      window.valid()))
    images, labels, valid = map(torch.stack, zip(*crops, strict=True))
    return CropBatch(images, None, labels, valid, _tags_of(lessons, photos))


def _encoded(lessons: Lessons, batches: Iterator[CropBatch]) -> Iterator[CropBatch]:
    """Put the frozen layers in the place of the pixels that `_cut_photos` left there."""
    import torch

    clip = lessons.frozen.clip
    vision, weight = clip.vision, clip.vision.conv.weight
    mean, std = torch.tensor([clip.mean, clip.std], device=weight.device).view(2, 1, 3, 1, 1)
    for batch in batches:
        images = batch.layers.to(weight.device, non_blocking=True)
        pixels = (images.float().div_(255) - mean) / std
        # Padding is 0 for the network, not black.
        side = pixels.shape[2] // vision.patch
        inside = batch.valid.to(weight.device, non_blocking=True).view(-1, 1, side, 1, side, 1)
        tiles = pixels.unflatten(3, (side, -1)).unflatten(2, (side, -1))
        tiles.masked_fill_(~inside, 0)
        encoded = vision(pixels.to(weight.dtype), attention=False, layers=lessons.frozen.layers,
                         patches="block" if lessons.residual else "none")
        yield replace(batch, layers=encoded.layers, patches=encoded.patches)
