"""What the decoder learns from: stored layers, or crops that the frozen CLIP encodes on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpltool.commands import _artifacts
from vpltool.commands.extract import parse_layers, parse_numbers
from vpltool.errors import VplError
from vpltool.formats import InputFolder, Photo, Workspace, describe, open_input
from vpltool.formats.batches import read_ahead

if TYPE_CHECKING:
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
                  photos: list[Photo], device: str) -> Frozen:
    """Choose where the layers come from; drops photos without features from `photos`.

    Raises:
        VplError: the features do not hold what is asked for.
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

    from vpltool.core.clip import load_clip
    from vpltool.core.device import find_device

    clip = load_clip(workspace.model, workspace.pretrained, find_device(device),
                     base=workspace.path, normalise=workspace.normalise)
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


def crop_batches(lessons: Lessons, settings: TrainingSettings, start: int) -> Iterator[CropBatch]:
    """Make a batch of crops for each step from `start` on, read ahead in a thread."""
    make = _feature_batches if lessons.frozen.features is not None else _photo_batches
    return read_ahead(make(lessons, settings, start))


def _feature_batches(lessons: Lessons, settings: TrainingSettings,
                     start: int) -> Iterator[CropBatch]:
    import torch

    from vpltool.core.decoder import layers_of
    from vpltool.core.training import (
        CropBatch,
        chosen_photos,
        generator_of,
        labels_at,
        random_window,
    )

    features = lessons.frozen.features
    assert features is not None
    for iteration in range(start, settings.iterations):
        rng = generator_of(settings, iteration)
        crops, tags = [], []
        for number in chosen_photos(len(lessons.photos), settings, iteration):
            photo = lessons.photos[number]
            tensors = features.read_tensors(photo.id, "grid", "layers", "layer_index", "patches")
            grid = tuple(tensors["grid"].tolist())
            stored = layers_of(tensors["layers"], tensors["layer_index"].tolist(),
                               lessons.frozen.layers)
            # One image of all channels, so that layers and patches are cut alike.
            channels = torch.cat([*stored, tensors["patches"]], dim=-1).unflatten(0, grid)
            labels = labels_at(lessons.masks.read_labels(photo.id), grid)
            image, label, valid = random_window(channels[None], labels, settings.crop, 1, rng)
            *parts, patches = image.flatten(0, 2).split(
                [stored.shape[-1]] * len(stored) + [tensors["patches"].shape[-1]], dim=-1)
            crops.append((torch.stack(parts), patches, label, valid))
            tags.append(torch.tensor(lessons.workspace.indices_of(photo), dtype=torch.long))
        layers, patches, labels, valid = map(torch.stack, zip(*crops, strict=True))
        yield CropBatch(layers, patches, labels, valid, tags)


def _photo_batches(lessons: Lessons, settings: TrainingSettings, start: int) -> Iterator[CropBatch]:
    import torch

    from vpltool.core.photos import fit_size, to_pixels
    from vpltool.core.training import (
        CropBatch,
        chosen_photos,
        generator_of,
        labels_at,
        random_window,
    )

    clip = lessons.frozen.clip
    vision, patch = clip.vision, clip.vision.patch
    device = vision.conv.weight.device
    for iteration in range(start, settings.iterations):
        rng = generator_of(settings, iteration)
        crops, tags = [], []
        for number in chosen_photos(len(lessons.photos), settings, iteration):
            photo = lessons.photos[number]
            pixels = _artifacts.read_known_photo(lessons.workspace, photo)
            size = fit_size((pixels.shape[0], pixels.shape[1]), patch,
                            scale=float(rng.uniform(0.5, 2.0)))
            grid = (size[0] // patch, size[1] // patch)
            labels = labels_at(lessons.masks.read_labels(photo.id), grid)
            image = to_pixels(pixels, size, clip.mean, clip.std)
            crops.append(random_window(image, labels, settings.crop, patch, rng))
            tags.append(torch.tensor(lessons.workspace.indices_of(photo), dtype=torch.long))
        images, labels, valid = (torch.stack(parts) for parts in zip(*crops, strict=True))
        encoded = vision(images.to(device), attention=False, layers=lessons.frozen.layers,
                         patches="block" if lessons.residual else "none")
        yield CropBatch(encoded.layers, encoded.patches, labels, valid, tags)
