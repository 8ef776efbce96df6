"""Training a decoder: its settings, masks, prototypes and layers, and the header of the result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.core import segmenter, training
from vpltool.engine import headers, models, photos, segmenters
from vpltool.engine.features import open_features, parse_layers, parse_numbers
from vpltool.engine.masks import Masks, find_masks, identities_of, supervision_by
from vpltool.engine.prototypes import Prototypes, class_rows, read_prototypes
from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, JsonObject, Photo, Workspace, kinds
from vpltool.formats.header import join_supervision
from vpltool.lazy import torch
from vpltool.methods import KINDS
from vpltool.methods.inputs import SegmenterParts
from vpltool.methods.interfaces import SegmenterMethod
from vpltool.parallel.device import find_device, find_precision
from vpltool.settings import setting
from vpltool.stages._training_data import Frozen

DEFAULT_LR = {"sgd": 0.01, "adamw": 0.002}


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
class Lesson:
    """The inputs of a training and the path of its result.

    `photos` are those with masks and layers, in order.
    """

    workspace: Workspace
    settings: TrainDecoderSettings
    method: SegmenterMethod
    photos: list[Photo]
    masks: Masks
    prototypes: Prototypes
    frozen: Frozen
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
        # Masks are identified by their bytes, not by their configuration.
        sources = {**header.sources, "masks": headers.relative_path(masks.path, workspace.path)}
        call = {name: value for name, value in header.call.items() if name != "masks"}
        return photos.with_photo_files(workspace, replace(
            header, sources=sources, call=call, facts=facts, supervision=join_supervision(
                [header.supervision, supervision_by(masks, ids)])))


def find_lesson(workspace: Workspace, settings: TrainDecoderSettings, method: SegmenterMethod
                ) -> Lesson:
    """Find the inputs that the settings of `train-decoder` name."""
    listed = {photo.id: photo for photo in workspace.photos(settings.split, settings.limit)}
    masks = find_masks(workspace, settings.masks, settings.split, list(listed.values()))
    prototypes = read_prototypes(workspace, class_rows(workspace, settings))
    frozen, ids = _frozen_layers(workspace, settings, method, masks.ids)
    return Lesson(workspace, settings, method, [listed[key] for key in ids], masks, prototypes,
                  frozen, settings.out or kinds.place(workspace.path, "decoder",
                                                      settings.name or masks.name))


def _frozen_layers(workspace: Workspace, settings: TrainDecoderSettings, method: SegmenterMethod,
                   ids: Sequence[str]) -> tuple[Frozen, Sequence[str]]:
    """Choose the source of the layers that a method reads, and the photos that have them."""
    split, reads = settings.split, method.READS
    layers = getattr(settings.of_method, "layers", "")
    folder = settings.features or kinds.place(workspace.path, "features", split)
    if settings.source != "photos" and (folder / "artifact.json").exists():
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
    return Frozen(workspace.main_encoder, wanted, encoder.vision.width if wanted else 0,
                  encoder.identity, encoder=encoder), ids


def _stored_layers(features: InputFolder, ids: Sequence[str], split: str, layers: str | None
                   ) -> tuple[Frozen, Sequence[str]]:
    """Use stored features; `layers` None: no layers are read."""
    ids = features.available(ids)
    name, model = str(features.path), features.header.model
    if layers is None:
        return Frozen(name, (), 0, model, features), ids
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
    return Frozen(name, wanted, shape[2], model, features), ids


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
