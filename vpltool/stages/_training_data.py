"""What a segmenter is trained on: stored layers, or photos that the frozen CLIP encodes."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.core import tower, training
from vpltool.core.grids import layers_of
from vpltool.core.photos import fit_size, photo_size, to_pixels
from vpltool.engine import models
from vpltool.engine.features import open_features, parse_layers, parse_numbers
from vpltool.engine.photos import check_current, naming_photo, read_known_photo
from vpltool.errors import VplError
from vpltool.formats import InputFolder, Photo, Workspace
from vpltool.formats.kinds import place
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.methods.inputs import LabelledPhoto
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
    """Choose where the layers come from, and which of the photos have them.

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

    def labels(self, photo: Photo, grid: tuple[int, int]) -> Tensor:
        """Labels of a photo on its grid (h, w), 4×4 a patch: (4h, 4w) uint8."""
        return training.labels_at(self.masks.read_labels(photo.id), grid)

    def encode(self, pixels: Tensor) -> tower.DenseFeatures:
        """What the network reads of normalised photos (B, 3, H, W), by the frozen encoder."""
        vision = self.frozen.encoder.vision
        seen: tower.DenseFeatures = vision(
            pixels.to(vision.weight.device, vision.weight.dtype), attention=False,
            layers=self.frozen.layers, patches="block" if self.reads_patches else "none")
        return seen


def whole_photos(data: TrainingData, device: torch.device, workers: int
                 ) -> Generator[LabelledPhoto, None, None]:
    """Give each photo as a whole, in order, on the device; threads read ahead."""
    stored = data.frozen.features is not None
    for photo in threads.in_threads(
            lambda photo: (_read_features if stored else _read_pixels)(data, photo), data.photos,
            workers):
        if not stored:
            assert photo.layers is not None
            seen = data.encode(photo.layers)
            photo = replace(photo, layers=None if seen.layers is None else seen.layers[0],
                            patches=None if seen.patches is None else seen.patches[0])
        yield replace(photo, labels=photo.labels.to(device),
                      layers=None if photo.layers is None else photo.layers.float().to(device),
                      patches=None if photo.patches is None else photo.patches.float().to(device))


def _read_features(data: TrainingData, photo: Photo, *, labels_alone: bool = False
                   ) -> LabelledPhoto:
    """Read what is stored for a photo; only what the network reads."""
    features, wanted = data.frozen.features, data.frozen.layers
    assert features is not None
    tensors = features.read_tensors(photo.id, "grid", *(() if labels_alone else (
        *(("layers", "layer_index") if wanted else ()),
        *(("patches",) if data.reads_patches else ()))))
    height, width = tensors["grid"].tolist()
    layers = (layers_of(tensors["layers"], tensors["layer_index"].tolist(), wanted)
              if "layers" in tensors else None)
    return LabelledPhoto(layers, tensors.get("patches"), (height, width),
                         data.labels(photo, (height, width)))


def _read_pixels(data: TrainingData, photo: Photo) -> LabelledPhoto:
    """Read and scale a photo; in place of layers it has pixels (1, 3, H, W), which are encoded."""
    encoder = data.frozen.encoder
    pixels = read_known_photo(data.workspace, photo)
    patch = encoder.vision.patch
    height, width = fit_size((pixels.shape[0], pixels.shape[1]), patch, max_side=data.max_side)
    grid = (height // patch, width // patch)
    normalised = to_pixels(pixels, (height, width), encoder.mean, encoder.std)
    return LabelledPhoto(normalised[None], None, grid, data.labels(photo, grid))


def crop_batches(data: TrainingData, settings: training.StepSettings, start: int, *,
                 device: torch.device, workers: int) -> Generator[training.CropBatch, None, None]:
    """Make a batch of crops for each step from `start` on.

    What the CPU has to do for a step depends only on its number, so threads do it ahead, as many
    steps at a time as there are threads. A photo's encoding stays here, in order. For a GPU the
    batches come in pinned memory.
    """
    stored = data.frozen.features is not None

    def make(iteration: int) -> training.CropBatch:
        batch = (_cut_features if stored else _cut_photos)(data, settings, iteration)
        return batch.pin_memory() if device.type == "cuda" else batch

    batches = threads.in_threads(make, range(start, settings.iterations), workers)
    yield from batches if stored else _encoded(data, batches)


def _photos_of(data: TrainingData, settings: training.StepSettings, iteration: int
               ) -> list[Photo]:
    return [data.photos[number]
            for number in training.chosen_photos(len(data.photos), settings, iteration)]


def _batch(data: TrainingData, photos: list[Photo], windows: list[training.Window],
           labels: list[Tensor], layers: list[Tensor], patches: list[Tensor]
           ) -> training.CropBatch:
    """Cut the labels (4h, 4w), and put everything together."""
    return training.CropBatch(
        torch.stack(layers) if layers else None, torch.stack(patches) if patches else None,
        torch.stack([window.cut_labels(part) for window, part in zip(windows, labels,
                                                                     strict=True)]),
        torch.stack([window.valid() for window in windows]),
        [torch.tensor(data.workspace.indices_of(photo), dtype=torch.long) for photo in photos])


def _cut_features(data: TrainingData, settings: training.StepSettings, iteration: int
                  ) -> training.CropBatch:
    """Read and cut what is stored for the photos of a step."""
    rng = training.generator_of(settings, iteration)
    photos = _photos_of(data, settings, iteration)
    own = data.own(len(photos))
    windows, labels, layers, patches = [], [], [], []
    for number, photo in enumerate(photos):
        whole = _read_features(data, photo, labels_alone=number not in own)
        window = training.choose_window(whole.grid, settings.crop, rng)
        windows.append(window)
        labels.append(whole.labels)
        if whole.layers is not None:
            layers.append(window.cut(whole.layers.unflatten(1, whole.grid), 1).flatten(1, 2))
        if whole.patches is not None:
            patches.append(window.cut(whole.patches.unflatten(0, whole.grid)[None], 1)[0]
                           .flatten(0, 1))
    return _batch(data, photos, windows, labels, layers, patches)


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
    windows = [choose_crop(data.workspace, photo, patch, settings.crop, rng,
                           scale=float(rng.uniform(0.5, 2.0)), max_side=data.max_side)
               for photo in photos]
    labels = [data.labels(photo, window.grid)
              for photo, window in zip(photos, windows, strict=True)]
    images = [cut_pixels(read_known_photo(data.workspace, photos[number]), windows[number], patch)
              for number in data.own(len(photos))]
    return _batch(data, photos, windows, labels, images, [])


def choose_crop(workspace: Workspace, photo: Photo, patch: int, side: int,
                rng: np.random.Generator, *, scale: float, max_side: int) -> training.Window:
    """Choose a square of `side` patches in the grid of a photo that is scaled by a factor."""
    path = workspace.image_path(photo)
    with naming_photo(photo, path):
        size = photo_size(path)
    height, width = fit_size(size, patch, scale=scale, max_side=max_side)
    return training.choose_window((height // patch, width // patch), side, rng)


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
    device = encoder.vision.weight.device
    mean, std = torch.tensor([encoder.mean, encoder.std], device=device).view(2, 1, 3, 1, 1)
    for batch in batches:
        assert batch.layers is not None
        own = data.own(len(batch.valid))
        pixels = normalised_crops(batch.layers.to(device, non_blocking=True),
                                  batch.valid[own.start : own.stop], mean, std)
        encoded = data.encode(pixels)
        yield replace(batch, layers=encoded.layers, patches=encoded.patches)


def normalised_crops(images: Tensor, valid: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise crops of photos; padding becomes 0 for the network, not black.

    Args:
        images: (B, 3, side·patch, side·patch), 0 to 255.
        valid: False where a patch is padding (B, side²), on any device.
        mean: of RGB in [0, 1] (1, 3, 1, 1).
        std: of RGB in [0, 1] (1, 3, 1, 1).
    """
    pixels = (images.float().div_(255) - mean) / std
    side = round(valid.shape[1] ** 0.5)
    inside = valid.to(images.device, non_blocking=True).view(-1, 1, side, 1, side, 1)
    tiles = pixels.unflatten(3, (side, -1)).unflatten(2, (side, -1))
    tiles.masked_fill_(~inside, 0)
    return pixels
