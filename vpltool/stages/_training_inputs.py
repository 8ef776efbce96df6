"""Training data of a decoder: settings, masks, prototypes, frozen layers, and crops of them."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console, options
from vpltool.core import grids, segmenter, tower, training
from vpltool.core.photos import fit_size, to_pixels
from vpltool.engine import headers, models, photos, segmenters
from vpltool.engine.features import open_features, parse_layers, parse_numbers
from vpltool.engine.masks import Masks, find_masks, identities_of, supervision_by, with_masks
from vpltool.engine.prototypes import Prototypes, choice_of, read_prototypes
from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, JsonObject, Photo, Workspace, kinds
from vpltool.formats.header import join_supervision
from vpltool.formats.manifest import MANIFEST
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.methods import KINDS, SegmenterMethod
from vpltool.methods.inputs import LabelledPhoto, SegmenterParts
from vpltool.parallel import threads
from vpltool.parallel.device import find_device, find_precision
from vpltool.settings import setting

DEFAULT_LR = {"sgd": 0.01, "adamw": 0.002}

_WHOLE = 1024
"""Longest side of photos that are scaled whole and then cut. Larger ones are cut first, which takes
only a crop's memory, and rounds one value in 10,000 differently."""


@dataclass(frozen=True, kw_only=True)
class TrainDecoderSettings(options.WholeSplit):
    """Settings of `train-decoder`."""

    masks: str = setting("", "Pseudo masks to train on; a name, or a folder of your own. "
                             "Default: the first found of vision-refined, vision, text-refined, "
                             "text.", metavar="NAME-OR-PATH", record="never")
    prototypes: str = setting(
        "vision", "Pixel classifier: vision, text or a file; the default without words is tags.",
        metavar="NAME-OR-PATH", source="VPL, eq. 12")
    method: str = setting(KINDS["segmenters"].default, "Kind of segmenter to train.",
                          metavar="NAME")
    source: str = setting(
        "auto", "Train on photos, features or auto; photos: random scale, mirror, crop, encoded at "
                "each step; features: mirror and crop of stored layers, much faster; auto: "
                "features if they contain layers.", choices=("auto", "features", "photos"))
    iters: int = setting(30000, "Training steps; 0, for a residual decoder: the dense CAM over all "
                                "classes, no tags needed.", low=0,
                         source="VPL, implementation details")
    batch_size: int = setting(6, "Crops per step.", low=1, source="VPL, implementation details")
    crop: int = setting(20, "Side of a crop, in patches.", low=2,
                        source="WeCLIP, official code: 320 pixels")
    lambda_ce: float = setting(1.0, "Weight of the cross-entropy.", low=0, source="VPL, eq. 14")
    lambda_rsc: float = setting(1.0, "Weight of the regional semantic contrast; 0: off.", low=0,
                                source="VPL, eq. 14")
    lambda_aff: float = setting(
        0.0, "Weight of WeCLIP's affinity loss; 0.1 there: patches of one label become similar in "
             "the decoder's fused features. 0: off.", low=0, record="changed")
    optimizer: str = setting("sgd", "sgd or adamw.", choices=tuple(DEFAULT_LR),
                             source="VPL, implementation details")
    lr: float = setting(0.0, "Learning rate; 0: 0.01 for sgd, 0.002 for adamw.", low=0,
                        source="WeCLIP, official code, for adamw; VPL gives none")
    power: float = setting(0.9, "The learning rate decays as (1 - t)^POWER; WeCLIP: 1.", low=0)
    balanced: bool = setting(
        False, "Weight background and foreground equally in the cross-entropy (WeCLIP), or each "
               "pixel (the paper).", off="--plain", source="VPL, eq. 14")
    max_side: int = setting(1024, "Scale longer photos down to this before cropping; 0: never. As "
                                  "in predict.", low=0, metavar="PIXELS", record="changed")
    corrected_times: int = setting(1, "How many times each photo with a corrected mask is used per "
                                      "epoch.", low=1, metavar="N", record="changed")
    start: str = setting("", "Start from the weights of this decoder, trained on other masks.",
                         metavar="NAME-OR-PATH", record="never")
    name: str = setting("", "Name of the decoder; default: the name of the masks.", record="never",
                        inside=True)
    checkpoint_every: int = options.checkpoint_every(200)
    seed: int = options.seed()
    precision: str = options.precision()
    workers: int = options.workers()


def training_of(settings: TrainDecoderSettings, precision: torch.dtype
                ) -> training.TrainingSettings:
    """Return the settings of `core.training`."""
    return training.TrainingSettings(
        iterations=settings.iters, batch_size=settings.batch_size, crop=settings.crop,
        lr=settings.lr or DEFAULT_LR[settings.optimizer], power=settings.power,
        warmup=training.WARMUP, seed=settings.seed, precision=precision,
        optimizer=settings.optimizer, balanced=settings.balanced, lambda_ce=settings.lambda_ce,
        lambda_rsc=settings.lambda_rsc, lambda_aff=settings.lambda_aff)


@dataclass(frozen=True)
class FrozenLayers:
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


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs of a training and the path of its result.

    `photos` are those with masks and layers, in order.
    """

    workspace: Workspace
    settings: TrainDecoderSettings
    method: SegmenterMethod
    photos: list[Photo]
    masks: Masks
    prototypes: Prototypes
    frozen: FrozenLayers
    target: Path

    @property
    def ids(self) -> list[str]:
        """Photo ids."""
        return [photo.id for photo in self.photos]

    @property
    def epoch(self) -> list[Photo]:
        """The photos of an epoch, with corrected ones repeated as configured."""
        times, corrected = self.settings.corrected_times, self.masks.corrected
        return [photo for photo in self.photos
                for _ in range(times if photo.id in corrected else 1)]

    def build(self) -> segmenter.SegmenterNetwork:
        """Build the initial network, which depends only on the seed."""
        torch.manual_seed(self.settings.seed)
        return self.method.build(
            SegmenterParts(self.frozen.layers, self.frozen.input_width, self.prototypes.rows,
                           self.prototypes.class_index), self.settings.of_method)

    def start(self) -> segmenters.SegmenterFile | None:
        """Open the decoder to start from, which must be of the same CLIP; None: none is named."""
        if not self.settings.start:
            return None
        start = segmenters.find_segmenter(self.workspace.path, self.settings.start)
        if start.path.resolve() == self.target.resolve():
            raise VplError(f"`start={self.settings.start!r}` is the decoder that would be written",
                           "`name='NAME'` gives the new one another name")
        headers.check_same_model(self.frozen.model, start.header.model,
                                 f"{self.frozen.name} and {start.path}")
        return start

    def header(self, start: segmenters.SegmenterFile | None, options: Mapping[str, object],
               unread: Collection[str], facts: JsonObject) -> Header:
        """Make the header of the result; `unread` are the settings without effect."""
        workspace, masks, ids = self.workspace, self.masks, self.ids
        inputs: JsonObject = {
            **identities_of(masks, ids), "prototypes": self.prototypes.path,
            "classes": workspace.classes_identity,
            "tags": workspace.tags_identity(self.settings.split)}
        if self.frozen.features:
            inputs["features"] = self.frozen.features
        if start:
            inputs["start"] = start.path
        header = headers.make_header(
            workspace, "decoder", "train-decoder", self.settings, inputs=inputs,
            model=self.frozen.model, skip=unread,
            options={"prototypes": self.prototypes.path.stem, **options})
        return photos.with_photo_files(workspace, replace(
            with_masks(header, masks, workspace), facts=facts, supervision=join_supervision(
                [header.supervision, supervision_by(masks, ids)])))


def find_training_inputs(workspace: Workspace, settings: TrainDecoderSettings,
                         method: SegmenterMethod) -> TrainingInputs:
    """Find the inputs that the settings of `train-decoder` name."""
    listed = {photo.id: photo for photo in workspace.photos(settings.split, settings.limit)}
    masks = find_masks(workspace, settings.masks, settings.split, list(listed.values()))
    prototypes = read_prototypes(workspace, choice_of(workspace, settings))
    frozen, ids = _frozen_layers(workspace, settings, method, masks.ids)
    return TrainingInputs(
        workspace, settings, method, [listed[key] for key in ids], masks, prototypes, frozen,
        settings.out or kinds.result_path(workspace.path, "decoder", settings.name or masks.name))


def _frozen_layers(workspace: Workspace, settings: TrainDecoderSettings, method: SegmenterMethod,
                   ids: Sequence[str]) -> tuple[FrozenLayers, Sequence[str]]:
    """Choose the source of the layers that a method reads, and the photos that have them."""
    split, reads = settings.split, method.READS
    layers = getattr(settings.of_method, "layers", "")
    folder = settings.features or kinds.result_path(workspace.path, "features", split)
    if settings.source != "photos" and (folder / MANIFEST).exists():
        found = open_features(workspace, settings.features, split)
        if set(reads) <= set(found.header.options["keep"]):
            photos.check_current(workspace, ids, found)
            return _stored_layers(found, ids, split, layers if "layers" in reads else None)
    if settings.source == "features":
        raise VplError(f"{folder} holds no {' and '.join(sorted(reads))}",
                       f"{_extract(split)}, or `source='photos'`")

    device = find_device(settings.device)
    precision = find_precision("fp32" if method.TRAINS_ENCODER else settings.precision, device,
                               console.warn)
    encoder = models.load_main(workspace, device)
    encoder.vision.to(precision)
    wanted = tuple(parse_layers(layers, encoder.vision.depth)) if "layers" in reads else ()
    return FrozenLayers(workspace.main_encoder, wanted, encoder.vision.width if wanted else 0,
                        encoder.identity, encoder=encoder), ids


def _stored_layers(features: InputFolder, ids: Sequence[str], split: str, layers: str | None
                   ) -> tuple[FrozenLayers, Sequence[str]]:
    """Use stored features; `layers` None: no layers are read."""
    ids = features.available(ids)
    name, model = str(features.path), features.header.model
    if layers is None:
        return FrozenLayers(name, (), 0, model, features), ids
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
    return FrozenLayers(name, wanted, shape[2], model, features), ids


def _wanted_layers(features: InputFolder, layers: str, split: str) -> tuple[int, ...]:
    """Resolve a list of blocks, or `spread`, for stored features."""
    if layers != "spread":
        return tuple(parse_numbers(layers))
    stored = features.header.options["layers"]
    # The number of blocks is not stored. By default, `extract` keeps all but the last.
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
    """Photos with masks and frozen layers to train on.

    Photos longer than `max_side` are scaled down to it before they are cut; 0: never. Each of
    several processes (`ranks`) reads or encodes only its own crops of a step.
    """

    workspace: Workspace
    masks: Masks
    photos: Sequence[Photo]
    frozen: FrozenLayers
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
        return vision(
            pixels.to(vision.weight.device, vision.weight.dtype), attention=False,
            layers=self.frozen.layers, patches="block" if self.reads_patches else "none")


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
            batch = data.encode(photo.layers)
            found = [None if part is None else part[0] for part in (batch.layers, batch.patches)]
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
    pixels = photos.read_known_photo(data.workspace, photo)
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
    chosen = [data.photos[number]
              for number in training.chosen_photos(len(data.photos), settings, iteration)]
    own = data.own(len(chosen))
    crops, layers, patches = [], [], []
    for number, photo in enumerate(chosen):
        if data.frozen.features is None:
            patch = data.frozen.encoder.vision.patch
            window = choose_crop(data.workspace, photo, patch, settings.crop, rng,
                                 scale=float(rng.uniform(0.5, 2.0)), max_side=data.max_side)
            if number in own:
                pixels = photos.read_known_photo(data.workspace, photo)
                layers.append(cut_pixels(pixels, window, patch))
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
                for photo in chosen])


def choose_crop(workspace: Workspace, photo: Photo, patch: int, side: int,
                rng: np.random.Generator, *, scale: float, max_side: int) -> training.Window:
    """Choose a square of `side` patches in the grid of a photo scaled by a factor."""
    height, width = fit_size(photos.known_photo_size(workspace, photo), patch, scale=scale,
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
