"""What a segmenter is trained on: stored layers, or crops that the frozen CLIP encodes."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.core import training
from vpltool.core.grids import layers_of
from vpltool.core.photos import fit_size, photo_size
from vpltool.engine import models
from vpltool.engine.features import open_features, parse_layers, parse_numbers
from vpltool.engine.photos import check_current, naming_photo, read_known_photo
from vpltool.errors import VplError
from vpltool.formats import InputFolder, Photo, Workspace
from vpltool.formats.kinds import place
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.parallel import threads
from vpltool.parallel.device import find_device, find_precision
from vpltool.stages._masks import Masks

_WHOLE = 1024
"""Longest side of photos that are scaled as a whole and then cut. Larger ones are cut first: that
costs a crop's memory, and rounds one value in 10,000 otherwise."""


@dataclass(frozen=True)
class Frozen:
    """Where the frozen layers come from: stored features, or a tower that encodes crops.

    Args:
        source: `features` or `photos`.
        name: of the features or the model, for messages.
        layers: indices of the blocks that are read.
        input_width: width of their outputs; 0 if none are read.
        model: identity of the CLIP.
        features: the stored features.
        encoder: what encodes crops.
    """

    source: str
    name: str
    layers: tuple[int, ...]
    input_width: int
    model: Mapping[str, str]
    features: InputFolder | None = None
    encoder: Any = None


def frozen_layers(
    workspace: Workspace, ids: Sequence[str], *, source: str, features: Path | None, split: str,
    reads: Collection[str], layers: str, device: str, precision: str,
) -> tuple[Frozen, Sequence[str]]:
    """Choose where the layers come from.

    Args:
        workspace: where features and photos are found.
        ids: photos to learn from.
        source: `features`, `photos`, or `auto`: features where they hold what is read.
        features: their folder, if it is not that of the split.
        split: of the photos.
        reads: what the method reads of the frozen CLIP: `layers`, `patches`.
        layers: list of blocks; `spread`: four, evenly; empty: those stored, or all but the last.
        device: of the model.
        precision: of the model.

    Returns:
        the source, and the photos that it has.

    Raises:
        VplError: the features do not hold what is asked for, or the model cannot be had.
    """
    folder = features or place(workspace.path, "features", split)
    if source != "photos" and (folder / "artifact.json").exists():
        found = open_features(workspace, features, split)
        if set(reads) <= set(found.header.options["keep"]):
            check_current(workspace, ids, found)
            return _stored_layers(found, ids, split, layers if "layers" in reads else None)
    if source == "features":
        raise VplError(f"{folder} holds no {' and '.join(sorted(reads))}",
                       f"{_extract(split)}, or `source='photos'`")

    on = find_device(device)
    dtype = find_precision(precision, on, console.warn)
    encoder = models.load_main(workspace, on)
    encoder.vision.to(dtype)
    wanted = tuple(parse_layers(layers, encoder.vision.depth)) if "layers" in reads else ()
    return Frozen("photos", workspace.main_encoder, wanted, encoder.vision.width if wanted else 0,
                  encoder.identity, encoder=encoder), ids


def _stored_layers(features: InputFolder, ids: Sequence[str], split: str, layers: str | None
                   ) -> tuple[Frozen, Sequence[str]]:
    """Take layers from features; `layers` None: none are read."""
    ids = features.available(ids)
    name, model = str(features.path), features.header.model
    if layers is None:
        return Frozen("features", name, (), 0, model, features), ids
    stored = tuple(features.header.options["layers"])
    wanted = _wanted_layers(features, layers, split) if layers else stored
    if not set(wanted) <= set(stored):
        raise VplError(f"{features.path} holds the layers {_formatted(stored)}, not "
                       f"{_formatted(wanted)}",
                       f"{_extract(split, layers)}, or `source='photos'`")
    _, shape = features.describe(ids[0]).shapes.get("layers", ("", ()))
    if len(shape) != 3:
        raise VplError(f"{features.path_of(ids[0])} is damaged: its layers are not "
                       "(layers, patches, width)", _extract(split, layers))
    width = shape[2]
    return Frozen("features", name, wanted, width, model, features), ids


def _wanted_layers(features: InputFolder, layers: str, split: str) -> tuple[int, ...]:
    """Resolve a list of blocks, or `spread`, for features that `extract` has stored.

    Features do not say how many blocks their model has, but the call that made them may: with its
    default it stored all but the last, and with `spread` what is wanted here.

    Raises:
        VplError: it is no list, or the number of blocks is not known.
    """
    if layers != "spread":
        return tuple(parse_numbers(layers))
    stored = features.header.options["layers"]
    made_with = features.header.call.get("layers", "")
    if made_with == "spread":
        return tuple(stored)
    if not made_with:
        return tuple(parse_layers("spread", len(stored) + 1))
    raise VplError(
        f"`layers='spread'`: {features.path} holds the layers {_formatted(stored)} and does not "
        "say how many blocks the model has", f"`layers={_formatted(stored)!r}` takes these; or "
        f"{_extract(split, layers)}, or `source='photos'`")


def _formatted(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))


def _extract(split: str, layers: str = "") -> str:
    chosen = f", layers={layers!r}" if layers else ""
    return (f"`extract(split={split!r}, keep='tokens,patches,attention,layers'{chosen}, "
            "overwrite=True)`")


@dataclass(frozen=True)
class TrainingData:
    """What a segmenter is trained on.

    Args:
        workspace: where photos are found, and their tags.
        masks: their labels.
        photos: those that have masks and layers.
        frozen: where what is read of the frozen CLIP comes from.
        reads_patches: whether patch embeddings are read.
        max_side: longer photos are scaled down to this before they are cut; 0: never.
        rank: number of this process.
        ranks: number of processes that share the crops of a step; each encodes, or reads the layers
            of, only its own.
    """

    workspace: Workspace
    masks: Masks
    photos: Sequence[Photo]
    frozen: Frozen
    reads_patches: bool
    max_side: int = 0
    rank: int = 0
    ranks: int = 1

    def own(self, crops: int) -> range:
        """Which of the crops of a step are this process's."""
        share = crops // self.ranks
        return range(self.rank * share, (self.rank + 1) * share)


def crop_batches(data: TrainingData, settings: training.StepSettings, start: int, *,
                 device: torch.device, workers: int) -> Generator[training.CropBatch, None, None]:
    """Make a batch of crops for each step from `start` on.

    What the CPU has to do for a step depends only on its number, so threads do it ahead, as many
    steps at a time as there are threads. A photo's encoding stays here, in order.

    Args:
        data: photos, masks and layers.
        settings: of the training.
        start: first step.
        device: where the batches will go; for a GPU they come in pinned memory.
        workers: number of threads; 0: none.
    """
    cut = _cut_photos if data.frozen.features is None else _cut_features

    def make(iteration: int) -> training.CropBatch:
        batch = cut(data, settings, iteration)
        return batch.pin_memory() if device.type == "cuda" else batch

    batches = threads.in_threads(make, range(start, settings.iterations), workers)
    yield from batches if data.frozen.features is not None else _encoded(data, batches)


def _photos_of(data: TrainingData, settings: training.StepSettings, iteration: int
               ) -> list[Photo]:
    return [data.photos[number]
            for number in training.chosen_photos(len(data.photos), settings, iteration)]


def _tags_of(data: TrainingData, photos: list[Photo]) -> list[Tensor]:
    return [torch.tensor(data.workspace.indices_of(photo), dtype=torch.long)
            for photo in photos]


def _cut_features(data: TrainingData, settings: training.StepSettings, iteration: int
                  ) -> training.CropBatch:
    """Read and cut what is stored for the photos of a step; only what the network reads."""
    features, wanted = data.frozen.features, data.frozen.layers
    assert features is not None
    rng = training.generator_of(settings, iteration)
    photos = _photos_of(data, settings, iteration)
    names = ("grid", *(("layers", "layer_index") if wanted else ()),
             *(("patches",) if data.reads_patches else ()))
    crops, layers, patches = [], [], []
    own = data.own(len(photos))
    for number, photo in enumerate(photos):
        tensors = features.read_tensors(photo.id, *(names if number in own else ("grid",)))
        height, width = tensors["grid"].tolist()
        window = training.choose_window((height, width), settings.crop, rng)
        labels = training.labels_at(data.masks.read_labels(photo.id), window.grid)
        crops.append((window.cut_labels(labels), window.valid()))
        if number not in own:
            continue
        if wanted:
            stored = layers_of(tensors["layers"], tensors["layer_index"].tolist(), wanted)
            layers.append(window.cut(stored.unflatten(1, window.grid), 1).flatten(1, 2))
        if data.reads_patches:
            field = tensors["patches"].unflatten(0, window.grid)
            patches.append(window.cut(field[None], 1)[0].flatten(0, 1))
    labels, valid = map(torch.stack, zip(*crops, strict=True))
    return training.CropBatch(torch.stack(layers) if layers else None,
                              torch.stack(patches) if patches else None, labels, valid,
                              _tags_of(data, photos))


def _cut_photos(data: TrainingData, settings: training.StepSettings, iteration: int
                ) -> training.CropBatch:
    """Read, scale and cut the photos of a step.

    In place of layers the batch holds pixels (B, 3, crop·patch, crop·patch) uint8: `_encoded` makes
    layers of them. Bytes are a quarter of what a GPU would else be sent, and normalising the crop
    gives what cutting the normalised photo would.
    """
    patch = data.frozen.encoder.vision.patch
    rng = training.generator_of(settings, iteration)
    photos = _photos_of(data, settings, iteration)
    crops, images = [], []
    own = data.own(len(photos))
    for number, photo in enumerate(photos):
        path = data.workspace.image_path(photo)
        with naming_photo(photo, path):
            size = photo_size(path)
        height, width = fit_size(size, patch,
                                 scale=float(rng.uniform(0.5, 2.0)), max_side=data.max_side)
        window = training.choose_window((height // patch, width // patch), settings.crop, rng)
        labels = training.labels_at(data.masks.read_labels(photo.id), window.grid)
        crops.append((window.cut_labels(labels), window.valid()))
        if number in own:
            pixels = read_known_photo(data.workspace, photo)
            images.append(cut_pixels(pixels, window, patch))
    labels, valid = map(torch.stack, zip(*crops, strict=True))
    return training.CropBatch(torch.stack(images), None, labels, valid, _tags_of(data, photos))


def cut_pixels(photo: npt.NDArray[np.uint8], window: training.Window, patch: int) -> Tensor:
    """Scale a photo (H, W, 3) to the window's grid and cut that (3, side·patch, side·patch)."""
    if max(photo.shape) > _WHOLE:
        return training.cut_photo(photo, window, patch)
    height, width = (patches * patch for patches in window.grid)
    # As `to_pixels` resizes.
    resized = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC)
    return window.cut(torch.from_numpy(np.array(resized)).permute(2, 0, 1), patch).contiguous()


def _encoded(data: TrainingData, batches: Iterator[training.CropBatch]
             ) -> Iterator[training.CropBatch]:
    """Replace the pixels that `_cut_photos` left by the frozen layers."""
    encoder = data.frozen.encoder
    vision, weight = encoder.vision, encoder.vision.weight
    mean, std = torch.tensor([encoder.mean, encoder.std], device=weight.device).view(2, 1, 3, 1, 1)
    for batch in batches:
        assert batch.layers is not None
        images = batch.layers.to(weight.device, non_blocking=True)
        own = data.own(len(batch.valid))
        pixels = normalised_crops(images, batch.valid[own.start : own.stop], mean, std)
        encoded = vision(pixels.to(weight.dtype), attention=False, layers=data.frozen.layers,
                         patches="block" if data.reads_patches else "none")
        yield replace(batch, layers=encoded.layers, patches=encoded.patches)


def normalised_crops(images: Tensor, valid: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise crops of photos; padding becomes 0 for the network, not black.

    Args:
        images: (B, 3, side·patch, side·patch), 0 to 255.
        valid: False where a patch is padding (B, side²), on any device.
        mean: of RGB in [0, 1] (1, 3, 1, 1); the same for std.
        std: see mean.
    """
    pixels = (images.float().div_(255) - mean) / std
    side = round(valid.shape[1] ** 0.5)
    inside = valid.to(images.device, non_blocking=True).view(-1, 1, side, 1, side, 1)
    tiles = pixels.unflatten(3, (side, -1)).unflatten(2, (side, -1))
    tiles.masked_fill_(~inside, 0)
    return pixels
