"""Training a segmenter: its settings, the network that is built, and fitting without steps."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console, options
from vpltool.core import segmenter, training
from vpltool.core.grids import layers_of
from vpltool.core.photos import fit_size, to_pixels
from vpltool.engine import headers, photos, segmenters
from vpltool.errors import VplError
from vpltool.formats import Header, JsonObject, Photo, Workspace
from vpltool.formats.header import join_supervision
from vpltool.lazy import torch
from vpltool.methods import KINDS
from vpltool.methods.inputs import LabelledPhoto, SegmenterParts
from vpltool.parallel import threads
from vpltool.parallel.device import worker_count
from vpltool.parallel.ranks import Ranks
from vpltool.settings import setting
from vpltool.stages import _masks
from vpltool.stages._training_data import Frozen, TrainingData

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
                "features if they contain layers.",
        choices=("auto", "features", "photos"))
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
    max_side: int = setting(
        1024, "Scale longer photos down to this before cropping; 0: never. As in predict.", low=0,
        metavar="PIXELS", record="changed")
    corrected_times: int = setting(
        1, "How many times each photo with a corrected mask is used per epoch.", low=1,
        metavar="N", record="changed")
    start: str = setting("", "Start from the weights of this decoder, trained on other masks.",
                         metavar="NAME-OR-PATH", record="never")
    name: str = setting("", "Name of the decoder; default: the name of the masks.", record="never",
                        inside=True)
    checkpoint_every: int = options.checkpoint_every(200)
    seed: int = options.seed()
    precision: str = options.precision()
    workers: int = options.workers()


STEPLESS = dict.fromkeys(
    ("iters", "batch_size", "crop", "lambda_ce", "lambda_rsc", "lambda_aff", "optimizer", "lr",
     "power", "balanced", "start", "checkpoint_every", "seed"),
    "it is computed in one pass, without steps")
"""Settings of the training that a method with `fit` does not read, and why."""


def training_of(settings: TrainDecoderSettings, precision: torch.dtype
                ) -> training.TrainingSettings:
    """How steps are taken, by the settings of `train-decoder`; in this number format."""
    return training.TrainingSettings(
        iterations=settings.iters, batch_size=settings.batch_size, crop=settings.crop,
        lr=settings.lr or DEFAULT_LR[settings.optimizer], power=settings.power,
        warmup=training.WARMUP, seed=settings.seed, precision=precision,
        optimizer=settings.optimizer, balanced=settings.balanced, lambda_ce=settings.lambda_ce,
        lambda_rsc=settings.lambda_rsc, lambda_aff=settings.lambda_aff)


def build_segmenter(settings: TrainDecoderSettings, method: Any, parts: SegmenterParts,
                    frozen: Frozen) -> segmenter.SegmenterNetwork:
    """Build the network that is trained, always the same one for a seed.

    Args:
        settings: of `train-decoder`.
        method: of segmenters.
        parts: what the network is built of.
        frozen: where its inputs come from.

    Raises:
        VplError: the method refuses its settings, or the features are not what it reads.
    """
    if not hasattr(method, "rebuild"):
        raise VplError(f"{method.__file__}: a method of segmenters needs `rebuild`",
                       "rebuild(config) gives an empty network, for `predict`")
    torch.manual_seed(settings.seed)
    network: segmenter.SegmenterNetwork = method.build(parts, settings.of_method)
    if not hasattr(method, "fit"):
        _check_training(settings, network)
    held = frozen.features.header.options.get("patches", "block") if frozen.features else "block"
    if network.reads_patches and held != "block":
        raise VplError(f"the segmenter reads the last block's patch embeddings; {frozen.name} "
                       f"holds others ({held})",
                       "`source='photos'`" + (", or `residual=False`" if hasattr(
                           settings.of_method, "residual") else ""))
    return network


def _check_training(settings: TrainDecoderSettings, network: segmenter.SegmenterNetwork) -> None:
    """Check that the settings of the steps suit the network.

    Raises:
        VplError: one does not.
    """
    if not settings.iters and not network.serves_untrained:
        raise VplError("`iters=0` would keep an untrained network, whose predictions are random",
                       "`iters=300`" + (", or `residual=True`, which begins as the dense CAM"
                                        if hasattr(settings.of_method, "residual") else ""))
    if settings.lambda_aff and not network.fuses:
        raise VplError(f"`lambda_aff={settings.lambda_aff!r}`: `{settings.method}` has no fused "
                       "features to compare", "`lambda_aff=0`")
    if settings.lambda_rsc and not network.in_joint_space:
        raise VplError(f"`lambda_rsc={settings.lambda_rsc!r}`: `{settings.method}` has no "
                       "embeddings to compare with the prototypes", "`lambda_rsc=0`")


def take_weights(network: segmenter.SegmenterNetwork, start: segmenters.SegmenterFile, name: str,
                 model: Mapping[str, str]) -> None:
    """Begin with the weights of another decoder; prototypes stay the network's own.

    Args:
        network: changed in place.
        start: the other decoder.
        name: the method that built the network.
        model: identity of its CLIP.

    Raises:
        VplError: the other decoder is of another method, shape or CLIP.
    """
    path, other = start.path, start.network()
    headers.check_same_model(model, start.header.model, f"the prototypes and {path}")
    if start.method != name:
        raise VplError(f"{path} is of the method {start.method}", f"`method={start.method!r}`")
    own, found = ({key: tensor for key, tensor in part.state_dict().items()
                   if key not in ("prototypes", "class_index")} for part in (network, other))
    differ = [key for key in own.keys() | found.keys()
              if key not in own or key not in found or own[key].shape != found[key].shape]
    if differ or network.layers != other.layers or network.reads != other.reads:
        options = ", ".join(f"`{key}={value!r}`" for key, value in start.header.options.items()
                            if key in ("layers", "width", "residual"))
        raise VplError(f"{path} has another shape than this decoder", options)
    network.load_state_dict(found, strict=False)


def find_start(workspace: Workspace, settings: TrainDecoderSettings, target: Path
               ) -> segmenters.SegmenterFile | None:
    """Return the decoder that a training begins with; None: none is named.

    Raises:
        VplError: it is not there, or is the one that would be written.
    """
    if not settings.start:
        return None
    start = segmenters.find_segmenter(workspace.path, settings.start)
    if start.path.resolve() == target.resolve():
        raise VplError(f"`start={settings.start!r}` is the decoder that would be written",
                       "`name='NAME'` gives the new one another name")
    return start


def header_of(
    workspace: Workspace, settings: TrainDecoderSettings, masks: _masks.Masks, prototypes: Path,
    frozen: Frozen, ids: Sequence[str], first: Path | None, *, options: Mapping[str, object],
    skip: Collection[str],
) -> Header:
    """Make the header of a decoder, without facts.

    Args:
        workspace: what is trained on lies there.
        settings: of `train-decoder`.
        masks: that are learned from.
        prototypes: file of the pixel classifier.
        frozen: what the network reads.
        ids: of the photos.
        first: the decoder that it begins with.
        options: see `make_header`.
        skip: see there.
    """
    inputs: JsonObject = {
        **_masks.identities_of(masks, ids), "prototypes": prototypes,
        "classes": workspace.classes_identity, "tags": workspace.tags_identity(settings.split)}
    header = headers.make_header(
        workspace, "decoder", "train-decoder", settings,
        inputs=inputs | ({"features": frozen.features} if frozen.features else {})
        | ({"start": first} if first else {}),
        model=frozen.model, options=options, skip=skip)
    # The masks' identity is that of their bytes, not that of how they were made.
    sources = {**header.sources, "masks": headers.relative_path(masks.path, workspace.path)}
    call = {name: value for name, value in header.call.items() if name != "masks"}
    return photos.with_photo_files(workspace, replace(
        header, sources=sources, call=call, supervision=join_supervision(
            [header.supervision, _masks.supervision_by(masks, ids)])))


def fit_segmenter(method: Any, network: segmenter.SegmenterNetwork, data: TrainingData,
                  settings: TrainDecoderSettings, ranks: Ranks) -> None:
    """Compute the parameters of a network from all photos; each process reads its share of them.

    Args:
        method: of segmenters, with a `fit`.
        network: it gets the parameters.
        data: photos, masks and layers.
        settings: of `train-decoder`.
        ranks: the processes that work together.

    Raises:
        VplError: a photo cannot be read any more, or the masks label nothing.
    """
    network.to(ranks.device)
    own = replace(data, photos=[photo for photo in data.photos
                                   if ranks.shard.holds(photo.id)])
    with console.progress("train-decoder", len(own.photos)) as advance:
        def counted() -> Generator[LabelledPhoto, None, None]:
            for photo in _whole_photos(own, ranks.device, worker_count(settings.workers)):
                yield photo
                advance()

        method.fit(network, counted(), settings.of_method, ranks.total)


def _whole_photos(data: TrainingData, device: torch.device, workers: int
                  ) -> Generator[LabelledPhoto, None, None]:
    """Give each photo as a whole, in order, on the device."""
    def read(photo: Photo) -> LabelledPhoto:
        return (_read_pixels if data.frozen.features is None else _read_features)(data, photo)

    for photo in threads.in_threads(read, data.photos, workers):
        if data.frozen.features is None:
            photo = _encoded(data, photo)
        yield replace(photo, labels=photo.labels.to(device),
                      layers=None if photo.layers is None else photo.layers.float().to(device),
                      patches=None if photo.patches is None else photo.patches.float().to(device))


def _read_features(data: TrainingData, photo: Photo) -> LabelledPhoto:
    assert data.frozen.features is not None
    wanted = data.frozen.layers
    tensors = data.frozen.features.read_tensors(
        photo.id, "grid", *(("layers", "layer_index") if wanted else ()),
        *(("patches",) if data.reads_patches else ()))
    height, width = tensors["grid"].tolist()
    layers = None
    if wanted:
        layers = layers_of(tensors["layers"], tensors["layer_index"].tolist(), wanted)
    return LabelledPhoto(layers, tensors.get("patches"), (height, width),
                         training.labels_at(data.masks.read_labels(photo.id), (height, width)))


def _read_pixels(data: TrainingData, photo: Photo) -> LabelledPhoto:
    """Read and scale a photo; in place of layers it has pixels (1, 3, H, W), which are encoded."""
    encoder = data.frozen.encoder
    pixels = photos.read_known_photo(data.workspace, photo)
    patch = encoder.vision.patch
    height, width = fit_size((pixels.shape[0], pixels.shape[1]), patch, max_side=data.max_side)
    grid = (height // patch, width // patch)
    normalised = to_pixels(pixels, (height, width), encoder.mean, encoder.std)
    return LabelledPhoto(normalised[None], None, grid,
                         training.labels_at(data.masks.read_labels(photo.id), grid))


def _encoded(data: TrainingData, photo: LabelledPhoto) -> LabelledPhoto:
    """Replace the pixels that `_read_pixels` left by what the network reads."""
    vision = data.frozen.encoder.vision
    weight = vision.weight
    assert photo.layers is not None
    with torch.no_grad():
        encoded = vision(photo.layers.to(weight.device, weight.dtype), attention=False,
                         layers=data.frozen.layers,
                         patches="block" if data.reads_patches else "none")
    return replace(photo, layers=encoded.layers[0] if data.frozen.layers else None,
                   patches=encoded.patches[0] if data.reads_patches else None)
