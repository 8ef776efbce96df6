"""Fitting a segmenter in one pass over its photos, where its method needs no steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vpltool import console
from vpltool.lazy import torch
from vpltool.methods.inputs import LabelledPhoto
from vpltool.parallel.threads import in_threads
from vpltool.stages import _inputs
from vpltool.stages._training_data import TrainingData

if TYPE_CHECKING:
    from vpltool.core.segmenter import SegmenterNetwork
    from vpltool.formats import Photo
    from vpltool.parallel.ranks import Ranks
    from vpltool.stages.train_decoder import TrainDecoderSettings

STEPLESS = dict.fromkeys(
    ("iters", "batch_size", "crop", "lambda_ce", "lambda_rsc", "lambda_aff", "optimizer", "lr",
     "power", "balanced", "start", "checkpoint_every", "seed"),
    "it is computed in one pass, without steps")
"""Settings of the training that a method with `fit` does not read, and why."""


def fit_segmenter(method: Any, network: SegmenterNetwork, data: TrainingData,
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
    from vpltool.parallel.device import worker_count

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

    for photo in in_threads(read, data.photos, workers):
        if data.frozen.features is None:
            photo = _encoded(data, photo)
        yield replace(photo, labels=photo.labels.to(device),
                      layers=None if photo.layers is None else photo.layers.float().to(device),
                      patches=None if photo.patches is None else photo.patches.float().to(device))


def _read_features(data: TrainingData, photo: Photo) -> LabelledPhoto:
    from vpltool.core.decoder import layers_of
    from vpltool.core.training import labels_at

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
                         labels_at(data.masks.read_labels(photo.id), (height, width)))


def _read_pixels(data: TrainingData, photo: Photo) -> LabelledPhoto:
    """Read and scale a photo; in place of layers it has pixels (1, 3, H, W), which are encoded."""
    from vpltool.core.photos import fit_size, to_pixels
    from vpltool.core.training import labels_at

    encoder = data.frozen.encoder
    pixels = _inputs.read_known_photo(data.workspace, photo)
    patch = encoder.vision.patch
    height, width = fit_size((pixels.shape[0], pixels.shape[1]), patch, max_side=data.max_side)
    grid = (height // patch, width // patch)
    normalised = to_pixels(pixels, (height, width), encoder.mean, encoder.std)
    return LabelledPhoto(normalised[None], None, grid,
                         labels_at(data.masks.read_labels(photo.id), grid))


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
