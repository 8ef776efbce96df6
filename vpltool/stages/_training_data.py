"""Training data of a decoder: crops of stored layers, or of photos that an encoder encodes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vpltool.core import grids, tower, training
from vpltool.core.photos import fit_size, to_pixels
from vpltool.engine.masks import Masks
from vpltool.engine.photos import known_photo_size, read_known_photo
from vpltool.formats import InputFolder, Photo, Workspace
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.methods.inputs import LabelledPhoto
from vpltool.parallel import threads

_WHOLE = 1024
"""Longest side of photos that are scaled whole and then cut. Larger ones are cut first, which takes
only a crop's memory, and rounds one value in 10,000 differently."""


@dataclass(frozen=True)
class Frozen:
    """The source of frozen layers: stored features, or an encoder of photos.

    Args:
        name: of the features or the model, for messages.
        layers: indices of the blocks that are read.
        input_width: width of their outputs; 0 if none are read.
    """

    name: str
    layers: tuple[int, ...]
    input_width: int
    model: Mapping[str, str]
    features: InputFolder | None = None
    encoder: Any = None

    @property
    def source(self) -> str:
        """`features` or `photos`."""
        return "photos" if self.features is None else "features"


@dataclass(frozen=True)
class TrainingData:
    """Photos with masks and frozen layers to train on.

    Photos longer than `max_side` are scaled down to it before they are cut; 0: never. Each of
    several processes (`ranks`) reads or encodes only its own crops of a step.
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
        """Return this process's share of the crops of a step."""
        share = crops // self.ranks
        return range(self.rank * share, (self.rank + 1) * share)

    def labels(self, photo: Photo, grid: tuple[int, int]) -> Tensor:
        """Read the labels of a photo on a grid (h, w), 4×4 per patch: (4h, 4w) uint8."""
        return training.labels_at(self.masks.read_labels(photo.id), grid)

    def encode(self, pixels: Tensor) -> tower.DenseFeatures:
        """Encode normalised photos (B, 3, H, W) with the frozen encoder."""
        vision = self.frozen.encoder.vision
        seen: tower.DenseFeatures = vision(
            pixels.to(vision.weight.device, vision.weight.dtype), attention=False,
            layers=self.frozen.layers, patches="block" if self.reads_patches else "none")
        return seen


def whole_photos(data: TrainingData, device: torch.device, workers: int
                 ) -> Generator[LabelledPhoto, None, None]:
    """Yield whole photos in order, on the device; threads read ahead."""
    stored = data.frozen.features is not None

    def read(photo: Photo) -> LabelledPhoto:
        grid, layers, patches = (_read_features if stored else _read_pixels)(data, photo)
        return LabelledPhoto(layers, patches, grid, data.labels(photo, grid))

    for photo in threads.in_threads(read, data.photos, workers):
        found = [photo.layers, photo.patches]
        if not stored:
            assert photo.layers is not None
            seen = data.encode(photo.layers)
            found = [None if part is None else part[0] for part in (seen.layers, seen.patches)]
        layers, patches = (None if part is None else part.float().to(device) for part in found)
        yield LabelledPhoto(layers, patches, photo.grid, photo.labels.to(device))


def _read_features(data: TrainingData, photo: Photo, *, grid_alone: bool = False
                   ) -> tuple[tuple[int, int], Tensor | None, Tensor | None]:
    """Read a photo's grid (h, w), layers (L, h·w, width) and patch embeddings (h·w, dim)."""
    features, wanted = data.frozen.features, data.frozen.layers
    assert features is not None
    tensors = features.read_tensors(photo.id, "grid", *(() if grid_alone else (
        *(("layers", "layer_index") if wanted else ()),
        *(("patches",) if data.reads_patches else ()))))
    height, width = tensors["grid"].tolist()
    layers = (grids.layers_of(tensors["layers"], tensors["layer_index"].tolist(), wanted)
              if "layers" in tensors else None)
    return (height, width), layers, tensors.get("patches")


def _read_pixels(data: TrainingData, photo: Photo) -> tuple[tuple[int, int], Tensor, None]:
    """Read a photo's grid, and in place of layers its pixels (1, 3, H, W), yet to be encoded."""
    encoder = data.frozen.encoder
    pixels = read_known_photo(data.workspace, photo)
    patch = encoder.vision.patch
    size = fit_size((pixels.shape[0], pixels.shape[1]), patch, max_side=data.max_side)
    normalised = to_pixels(pixels, size, encoder.mean, encoder.std)
    return (size[0] // patch, size[1] // patch), normalised[None], None


def crop_batches(data: TrainingData, settings: training.StepSettings, start: int, *,
                 device: torch.device, workers: int) -> Generator[training.CropBatch, None, None]:
    """Make a batch of crops for each step from `start` on; for a GPU in pinned memory.

    Reading and cutting depend only on the step's number, so threads do them ahead; photos are
    encoded here, in order.
    """
    def make(iteration: int) -> training.CropBatch:
        batch = _cut(data, settings, iteration)
        return batch.pin_memory() if device.type == "cuda" else batch

    batches = threads.in_threads(make, range(start, settings.iterations), workers)
    yield from batches if data.frozen.features else _encoded(data, batches)


def _cut(data: TrainingData, settings: training.StepSettings, iteration: int) -> training.CropBatch:
    """Read and cut the photos of a step; pixels in place of layers are left for `_encoded`.

    They are (B, 3, crop·patch, crop·patch) uint8, a quarter of the size of float32.
    """
    rng = training.generator_of(settings, iteration)
    photos = [data.photos[number]
              for number in training.chosen_photos(len(data.photos), settings, iteration)]
    own = data.own(len(photos))
    crops, layers, patches = [], [], []
    for number, photo in enumerate(photos):
        if data.frozen.features is None:
            patch = data.frozen.encoder.vision.patch
            window = choose_crop(data.workspace, photo, patch, settings.crop, rng,
                                 scale=float(rng.uniform(0.5, 2.0)), max_side=data.max_side)
            if number in own:
                layers.append(cut_pixels(read_known_photo(data.workspace, photo), window, patch))
        else:
            grid, some, embedded = _read_features(data, photo, grid_alone=number not in own)
            window = training.choose_window(grid, settings.crop, rng)
            if some is not None:
                layers.append(window.cut(some.unflatten(1, grid), 1).flatten(1, 2))
            if embedded is not None:
                patches.append(window.cut(embedded.unflatten(0, grid)[None], 1)[0].flatten(0, 1))
        crops.append((window.cut_labels(data.labels(photo, window.grid)), window.valid()))
    labels, valid = map(torch.stack, zip(*crops, strict=True))
    return training.CropBatch(
        torch.stack(layers) if layers else None, torch.stack(patches) if patches else None, labels,
        valid, [torch.tensor(data.workspace.indices_of(photo), dtype=torch.long)
                for photo in photos])


def choose_crop(workspace: Workspace, photo: Photo, patch: int, side: int,
                rng: np.random.Generator, *, scale: float, max_side: int) -> training.Window:
    """Choose a square of `side` patches in the grid of a photo scaled by a factor."""
    height, width = fit_size(known_photo_size(workspace, photo), patch, scale=scale,
                             max_side=max_side)
    return training.choose_window((height // patch, width // patch), side, rng)


def cut_pixels(photo: npt.NDArray[np.uint8], window: training.Window, patch: int) -> Tensor:
    """Scale a photo (H, W, 3) to the window's grid, and cut (3, side·patch, side·patch)."""
    if max(photo.shape) > _WHOLE:
        return training.cut_photo(photo, window, patch)
    height, width = (patches * patch for patches in window.grid)
    # As `to_pixels` resizes.
    resized = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC)
    return window.cut(torch.from_numpy(np.array(resized)).permute(2, 0, 1), patch).contiguous()


def _encoded(data: TrainingData, batches: Iterator[training.CropBatch]
             ) -> Iterator[training.CropBatch]:
    """Replace the pixels from `_cut` by frozen layers."""
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
    """Normalise crops (B, 3, side·patch, side·patch) of 0 to 255, and set padding to 0.

    `valid` (B, side²) is False in the padding; `mean` and `std` (1, 3, 1, 1) are of RGB in [0, 1].
    """
    pixels = (images.float().div_(255) - mean) / std
    side = round(valid.shape[1] ** 0.5)
    inside = valid.to(images.device, non_blocking=True).view(-1, 1, side, 1, side, 1)
    tiles = pixels.unflatten(3, (side, -1)).unflatten(2, (side, -1))
    tiles.masked_fill_(~inside, 0)
    return pixels
