"""`train-decoder` with a method that trains the last blocks of the encoder, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpltool.clip import encoders
from vpltool.core import joint, segmenter
from vpltool.engine import checkpoints, headers, models
from vpltool.engine.prototypes import class_rows, read_prototypes
from vpltool.errors import VplError
from vpltool.formats import Header, Photo, Workspace
from vpltool.formats.kinds import place
from vpltool.formats.shards import check_even
from vpltool.methods import load_method
from vpltool.methods.inputs import SegmenterParts
from vpltool.methods.interfaces import SegmenterMethod
from vpltool.parallel import device, ranks
from vpltool.settings import warn_without_effect
from vpltool.stages import _masks
from vpltool.stages._fitting import TrainDecoderSettings, find_start, fit_segmenter, header_of
from vpltool.stages._joint import JointTraining, facts_of, steps_of, train_both, warn_of_little
from vpltool.stages._pixel_data import PixelData, Taught
from vpltool.stages._training_data import Frozen, TrainingData, frozen_layers

_ITERS, _LR, _LOW_RANK = 1000, 3e-5, 10
"""Where they are not given: a head that is computed needs few steps, and small ones. Updates of low
rank need ten times the rate (Schulman et al., LoRA Without Regret, 2025)."""

_UNREAD = dict.fromkeys(
    ("optimizer", "lambda_ce", "lambda_rsc", "lambda_aff", "balanced"),
    "the encoder is trained by AdamW, with the cross-entropy and the tags")


def finetune(workspace: Workspace, settings: TrainDecoderSettings, method: SegmenterMethod) -> Path:
    """Train the last blocks of the encoder and a head that begins as the discriminant.

    Args:
        workspace: where inputs are found and the decoder goes.
        settings: of `train-decoder`.
        method: a segmenter with `TRAINS_ENCODER`.

    Returns:
        the file of the decoder, which holds its encoder.

    Raises:
        VplError: an input is missing, a mask does not fit, or a setting is refused.
    """
    rate = _LR * (_LOW_RANK if _chosen(settings).rank else 1)
    settings = replace(settings, lr=settings.lr or rate,
                       iters=settings.iters if "iters" in settings.given else _ITERS)
    warn_without_effect(settings, without=_UNREAD)
    check_even(settings.batch_size)
    photos = {photo.id: photo for photo in workspace.photos(settings.split, settings.limit)}
    masks = _masks.find_masks(workspace, settings.masks, settings.split, list(photos.values()))
    prototypes = read_prototypes(workspace, class_rows(workspace, settings))
    frozen, ids = frozen_layers(
        workspace, masks.ids, source=settings.source, features=settings.features,
        split=settings.split, reads=method.READS, layers=getattr(settings.of_method, "layers", ""),
        device=settings.device, precision="fp32")
    encoder = frozen.encoder or models.load_main(workspace, device.find_device(settings.device))
    headers.check_same_model(encoder.identity, frozen.model, f"the encoder and {frozen.name}")
    _check_blocks(encoder, settings)
    network = method.build(SegmenterParts(frozen.layers, frozen.input_width, prototypes.rows,
                                          prototypes.class_index), settings.of_method)
    target = settings.out or place(workspace.path, "decoder", settings.name or masks.name)
    first = _take_head(workspace, settings, network, frozen.model, target)
    side = _side_of(settings, frozen)
    header = _make_header(workspace, settings, masks, prototypes.path, frozen, ids, first, side)
    if headers.check_file(target, header, settings):
        return target
    start = checkpoints.read_checkpoint(checkpoints.checkpoint_of(target), header,
                                        overwrite=settings.overwrite, update=settings.update)
    _masks.check_masks(masks, workspace, [photos[key] for key in ids])
    warn_of_little([workspace.indices_of(photos[key]) for key in ids], workspace.classes)
    seen = [photos[key] for key in _masks.repeated(masks, ids, settings.corrected_times)]
    if first is None and not start.step:
        _fit_head(workspace, settings, network, masks, [photos[key] for key in ids], frozen, side)
    train_both(_task(settings, header, target, network,
                     PixelData(workspace, [Taught(photo, tagged=bool(photo.tags))
                                           for photo in seen], masks, encoder, side)), start)
    return target


def _chosen(settings: TrainDecoderSettings) -> Any:
    """Settings of the method, which has those of `finetune`."""
    return settings.of_method


def _check_blocks(encoder: Any, settings: TrainDecoderSettings) -> None:
    """Check that the blocks that are to be trained are there, and can be told apart.

    Raises:
        VplError: they are not.
    """
    chosen = _chosen(settings)
    if chosen.blocks or chosen.rank:
        vision = encoders.with_head(encoder, f"`blocks={chosen.blocks}`")
        if chosen.blocks > vision.depth:
            raise VplError(f"`blocks={chosen.blocks}`: the encoder has {vision.depth}",
                           f"`blocks={vision.depth}`, or `blocks=0` for all of it")
        if chosen.rank and not chosen.blocks:
            raise VplError(f"`rank={chosen.rank}` is for blocks, and `blocks=0` trains the whole "
                           "encoder", f"`blocks={vision.depth}`")


def _side_of(settings: TrainDecoderSettings, frozen: Frozen) -> int:
    """The side that longer photos are scaled down to: that of the features, unless one is given."""
    if frozen.features is None or "max_side" in settings.given:
        return settings.max_side
    return int(frozen.features.header.options.get("max_side", settings.max_side))


def _take_head(workspace: Workspace, settings: TrainDecoderSettings,
               network: segmenter.SegmenterNetwork, model: Mapping[str, str], target: Path
               ) -> Path | None:
    """Begin with the map of the decoder that `start` names; its path, if one is named.

    Raises:
        VplError: it is no affine map of the same layers of the same encoder.
    """
    start = find_start(workspace, settings, target)
    if start is None:
        return None
    path, other = start.path, start.network()
    headers.check_same_model(model, start.header.model, f"the features and {path}")
    shapes = [{name: tuple(tensor.shape) for name, tensor in part.state_dict().items()
               if name.startswith("classifier.")} for part in (network, other)]
    if shapes[0] != shapes[1] or network.layers != other.layers or start.own_encoder:
        raise VplError(f"{path} does not hold a map of the layers {list(network.layers)}",
                       "`start` names a decoder of `method='discriminant'` of the same layers; "
                       "without it, the discriminant is computed first")
    network.load_state_dict({name: tensor for name, tensor in other.state_dict().items()
                             if name.startswith("classifier.")}, strict=False)
    return path


def _fit_head(workspace: Workspace, settings: TrainDecoderSettings,
              network: segmenter.SegmenterNetwork, masks: _masks.Masks, photos: list[Photo],
              frozen: Frozen, side: int) -> None:
    """Compute the discriminant; each of several processes reads all photos, and has all of it."""
    data = TrainingData(workspace, masks, photos, frozen, network.reads_patches, side)
    fit_segmenter(load_method(SegmenterMethod, "discriminant"), network, data, settings,
                  ranks.Ranks(0, 1, device.find_device(settings.device)))


def _make_header(workspace: Workspace, settings: TrainDecoderSettings, masks: _masks.Masks,
                 prototypes: Path, frozen: Frozen, ids: Sequence[str], first: Path | None, side: int
                 ) -> Header:
    header = header_of(
        workspace, settings, masks, prototypes, frozen, ids, first, skip=_UNREAD,
        options={"prototypes": prototypes.stem, "source": "photos", "lr": settings.lr,
                 "max_side": side, "layers": list(frozen.layers)})
    return replace(header, facts=dict(facts_of(settings.method, workspace.classes,
                                               workspace.normalise, side)))


def _task(settings: TrainDecoderSettings, header: Header, target: Path,
          network: segmenter.SegmenterNetwork, data: PixelData) -> JointTraining:
    chosen = _chosen(settings)
    taught = joint.JointSettings(blocks=chosen.blocks, rank=chosen.rank, average=chosen.average,
                                 doubt=chosen.doubt, lambda_tags=chosen.lambda_tags)
    return JointTraining(header, target, network, data, steps_of(settings), taught,
                         ("masks", "tags"), settings.device, settings.checkpoint_every,
                         settings.workers)
