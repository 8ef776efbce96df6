"""`train-decoder`: a segmenter over a frozen or finetuned encoder, from pseudo masks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.clip import encoders
from vpltool.core import joint, segmenter, training
from vpltool.engine import checkpoints, headers, models, photo_work, segmenters
from vpltool.engine.masks import check_masks
from vpltool.errors import VplError, part_of
from vpltool.formats import Header, Workspace, expect_header, shards
from vpltool.lazy import torch
from vpltool.methods import SegmenterMethod, load_method
from vpltool.parallel.device import find_device, find_precision, worker_count
from vpltool.parallel.ranks import Ranks, joined
from vpltool.settings import Stage, warn_without_effect
from vpltool.stages import _joint, _training_inputs
from vpltool.stages._training_inputs import TrainDecoderSettings, TrainingData, TrainingInputs

STAGE = Stage(order=70, panel="3. Masks and segmenter", reads=("features", "masks", "prototypes"),
              writes=("decoder",), settings=TrainDecoderSettings, methods="segmenters",
              together=True)

_LOSSES = ("mask loss", "contrast", "affinity")

_STEPLESS = dict.fromkeys(
    ("iters", "batch_size", "crop", "lambda_ce", "lambda_rsc", "lambda_aff", "optimizer", "lr",
     "power", "balanced", "start", "checkpoint_every", "seed"),
    "it is computed in one pass, without steps")
"""Settings without effect on a method with `fit`, and why."""

_ENCODER_ONLY = "no encoder is run; `source='photos'` runs it"


def run(workspace: Workspace, settings: TrainDecoderSettings) -> Path:
    """Train a segmenter on pseudo masks; the encoder stays frozen.

    The class scores of a pixel are the cosines of its embedding to the prototypes. Under torchrun
    processes share the crops of each step, and each GPU encodes its own.

    Example: vpltool train-decoder --iters 30000 --lambda-rsc 1

    Next: vpltool predict --split val

    Raises:
        VplError: an input is missing, a mask does not fit, or a setting is refused.
    """
    method = load_method(SegmenterMethod, settings.method)
    if method.TRAINS_ENCODER:
        return _finetune(workspace, settings, method)
    stepless = method.stepless
    if not stepless:
        shards.check_even(settings.batch_size)
    inputs = _training_inputs.find_training_inputs(workspace, settings, method)
    frozen, target = inputs.frozen, inputs.target
    unread = _unread(inputs)
    warn_without_effect(settings, without=unread)
    steps = _training_inputs.training_of(settings, _precision_of_steps(inputs))
    network = inputs.build()
    _check_network(inputs, network)
    start = None if stepless else inputs.start()
    if start:
        _take_weights(inputs, network, start)
    header = inputs.header(start, {
        "source": "features" if frozen.features else "photos",
        **({} if stepless else {"lr": steps.lr, "warmup": steps.warmup}),
        **({"layers": list(frozen.layers)} if frozen.layers else {})}, unread, {
        **_joint.facts_of(settings.method, workspace,
                          frozen.features.header.options.get("max_side", 1024)
                          if frozen.features else settings.max_side),
        "config": network.config, "reads": list(network.reads)})
    if not _is_done(inputs, header):
        data = TrainingData(workspace, inputs.masks, inputs.epoch, frozen, network.reads_patches,
                            settings.max_side, *shards.rank_of_process())
        if stepless:
            check_masks(inputs.masks, workspace, inputs.photos)
            with joined(settings.device, double=True) as ranks:
                _fit(method, network, data, settings, ranks)
                if ranks.rank == 0:
                    checkpoints.write_trained(target, header, network.state_dict(), [])
        else:
            _train(inputs, network, data, steps, header)
    return target


def _train(inputs: TrainingInputs, network: segmenter.SegmenterNetwork, data: TrainingData,
           steps: training.TrainingSettings, header: Header) -> None:
    settings, target = inputs.settings, inputs.target
    start = checkpoints.read_checkpoint(target, header, settings)
    check_masks(inputs.masks, inputs.workspace, inputs.photos)
    with (joined(settings.device) as ranks,
          contextlib.closing(_training_inputs.crop_batches(
              data, steps, start.step, device=ranks.device,
              workers=worker_count(settings.workers))) as batches,
          checkpoints.too_many_crops(steps)):
        optimizer = training.make_optimizer(network.to(ranks.device), steps)
        curve = checkpoints.take_steps(
            checkpoints.Steps(header, target, steps.iterations, network, optimizer, _LOSSES,
                              settings.checkpoint_every),
            training.train(network, optimizer, steps, batches, start=start.step, group=ranks),
            start, ranks, lambda: (header, network.state_dict()))
        if ranks.rank == 0:
            checkpoints.note_losses(_LOSSES, curve)


def _unread(inputs: TrainingInputs) -> dict[str, str]:
    """Return the settings without effect, and why."""
    stepless, precision = inputs.method.stepless, inputs.settings.precision
    unread = dict(_STEPLESS) if stepless else {}
    if inputs.frozen.features:
        unread["max_side"] = _ENCODER_ONLY
        if stepless:
            unread["precision"] = _ENCODER_ONLY
        elif precision == "fp16":
            # It would need loss scaling.
            unread["precision"] = "steps are not computed in fp16; `precision='bf16'`"
    return unread


def _precision_of_steps(inputs: TrainingInputs) -> torch.dtype:
    """Return the number format of the decoder's training steps."""
    if inputs.method.stepless or inputs.settings.precision != "bf16":
        return torch.float32
    # Loading an encoder has already warned of a slow format.
    warn = console.warn if inputs.frozen.features else None
    return find_precision("bf16", find_device(inputs.settings.device), warn)


def _check_network(inputs: TrainingInputs, network: segmenter.SegmenterNetwork) -> None:
    """Check that settings, features and prototypes fit the network."""
    settings, frozen, prototypes = inputs.settings, inputs.frozen, inputs.prototypes
    residual = hasattr(settings.of_method, "residual")
    if not inputs.method.stepless:
        _check_steps(settings, network, residual=residual)
    held = frozen.features.header.options.get("patches", "block") if frozen.features else "block"
    if network.reads_patches and held != "block":
        raise VplError(f"the segmenter reads the last block's patch embeddings; {frozen.name} "
                       f"holds others ({held})",
                       "`source='photos'`" + (", or `residual=False`" if residual else ""))
    if not network.in_joint_space:
        return
    headers.check_same_model(frozen.model, prototypes.header.model,
                             f"{frozen.name} and {prototypes.path}")
    if 0 not in prototypes.class_index.tolist():
        raise VplError(f"`method={settings.method!r}` compares pixels with prototypes, and "
                       f"{prototypes.path} has none of the background",
                       "`method='discriminant'` needs none; `seed_prototypes(background="
                       "'clusters')` makes some, for `prototypes='seeds'`")


def _check_steps(settings: TrainDecoderSettings, network: segmenter.SegmenterNetwork, *,
                 residual: bool) -> None:
    if not settings.iters and not network.serves_untrained:
        raise VplError("`iters=0` would keep an untrained network, whose predictions are random",
                       "`iters=300`" + (", or `residual=True`, which begins as the dense CAM"
                                        if residual else ""))
    if settings.lambda_aff and not network.fuses:
        raise VplError(f"`lambda_aff={settings.lambda_aff!r}`: `{settings.method}` has no fused "
                       "features to compare", "`lambda_aff=0`")
    if settings.lambda_rsc and not network.in_joint_space:
        raise VplError(f"`lambda_rsc={settings.lambda_rsc!r}`: `{settings.method}` has no "
                       "embeddings to compare with the prototypes", "`lambda_rsc=0`")


def _take_weights(inputs: TrainingInputs, network: segmenter.SegmenterNetwork,
                  start: segmenters.SegmenterFile) -> None:
    """Load the weights of another decoder, except for the prototypes."""
    path, other = start.path, start.network()
    if start.method != inputs.settings.method:
        raise VplError(f"{path} is of the method {start.method}", f"`method={start.method!r}`")
    own, found = ({key: tensor for key, tensor in part.state_dict().items()
                   if key not in ("prototypes", "class_index")} for part in (network, other))
    if _shapes(own) != _shapes(found) or (network.layers, network.reads) != (
            other.layers, other.reads):
        raise VplError(f"{path} has another shape than this decoder", ", ".join(
            f"`{key}={value!r}`" for key, value in start.header.options.items()
            if key in ("layers", "width", "residual")))
    network.load_state_dict(found, strict=False)


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _is_done(inputs: TrainingInputs, header: Header) -> bool:
    """Return whether the decoder already exists; see `check_file`."""
    target, ids = inputs.target, inputs.ids
    try:
        return headers.check_file(target, header, inputs.settings)
    except VplError as error:
        if target.exists() and header.inputs.get("masks") != expect_header(
                target, "decoder").inputs.get("masks"):
            written = target.stat().st_mtime
            newer = sum(inputs.masks.path_of(key).stat().st_mtime > written for key in ids)
            error.message += f" ({part_of(newer, len(ids), 'masks', 'is', 'are')} newer than it)"
        raise


def _fit(method: SegmenterMethod, network: segmenter.SegmenterNetwork, data: TrainingData,
         settings: TrainDecoderSettings, ranks: Ranks) -> None:
    """Compute the parameters of a network; each process reads its share of the whole photos."""
    own = replace(data, photos=[photo for photo in data.photos if ranks.shard.holds(photo.id)])
    read = _training_inputs.whole_photos(own, ranks.device, worker_count(settings.workers))
    method.fit(network.to(ranks.device),
               photo_work.tracked("train-decoder", read, len(own.photos)),
               settings.of_method, ranks.total)


_ITERS, _LR, _LOW_RANK = 1000, 3e-5, 10
"""Defaults: a computed head needs few and small steps. Updates of low rank need ten times the rate
(Schulman et al., LoRA Without Regret, 2025)."""

_UNTUNED = dict.fromkeys(
    ("optimizer", "lambda_ce", "lambda_rsc", "lambda_aff", "balanced"),
    "the encoder is trained by AdamW, with the cross-entropy and the tags")


def _finetune(workspace: Workspace, settings: TrainDecoderSettings, method: SegmenterMethod
              ) -> Path:
    """Train the encoder's last blocks, and a head initialised as the discriminant."""
    chosen: Any = settings.of_method
    settings = replace(settings, lr=settings.lr or _LR * (_LOW_RANK if chosen.rank else 1),
                       iters=settings.iters if "iters" in settings.given else _ITERS)
    warn_without_effect(settings, without=_UNTUNED)
    shards.check_even(settings.batch_size)
    inputs = _training_inputs.find_training_inputs(workspace, settings, method)
    frozen, masks, target = inputs.frozen, inputs.masks, inputs.target
    encoder = frozen.encoder or models.load_main(workspace, find_device(settings.device))
    headers.check_same_model(encoder.identity, frozen.model, f"the encoder and {frozen.name}")
    if chosen.blocks or chosen.rank:
        _check_blocks(encoder, chosen.blocks, chosen.rank)
    network, first = inputs.build(), inputs.start()
    if first:
        _take_head(network, first)
    # The default size of photos is that of the features.
    side = settings.max_side
    if frozen.features and "max_side" not in settings.given:
        side = int(frozen.features.header.options.get("max_side", side))
    header = inputs.header(first, {"source": "photos", "lr": settings.lr, "max_side": side,
                                   "layers": list(frozen.layers)},
                           _UNTUNED, _joint.facts_of(settings.method, workspace, side))
    if headers.check_file(target, header, settings):
        return target
    start = checkpoints.read_checkpoint(target, header, settings)
    check_masks(masks, workspace, inputs.photos)
    _joint.warn_of_little([workspace.indices_of(photo) for photo in inputs.photos],
                          workspace.classes)
    if first is None and not start.step:
        # Each of several processes computes the whole discriminant.
        _fit(load_method(SegmenterMethod, "discriminant"), network,
             TrainingData(workspace, masks, inputs.photos, frozen, network.reads_patches, side),
             settings, Ranks(0, 1, find_device(settings.device)))
    data = _joint.PixelData(workspace, [_joint.TrainingPhoto(photo, tagged=bool(photo.tags))
                                        for photo in inputs.epoch], masks, encoder, side)
    _joint.train_both(data, network, joint.JointSettings(
        blocks=chosen.blocks, rank=chosen.rank, average=chosen.average, doubt=chosen.doubt,
        lambda_tags=chosen.lambda_tags), settings, header, target, start, ("masks", "tags"))
    return target


def _check_blocks(encoder: encoders.Encoder, blocks: int, rank: int) -> None:
    """Check that the encoder has the blocks to train."""
    depth = encoders.with_head(encoder, f"`blocks={blocks}`").depth
    if blocks > depth:
        raise VplError(f"`blocks={blocks}`: the encoder has {depth}",
                       f"`blocks={depth}`, or `blocks=0` for all of it")
    if rank and not blocks:
        raise VplError(f"`rank={rank}` is for blocks, and `blocks=0` trains the whole encoder",
                       f"`blocks={depth}`")


def _take_head(network: segmenter.SegmenterNetwork, start: segmenters.SegmenterFile) -> None:
    """Load the classifier of another decoder."""
    other = start.network()
    own, found = ({name: tensor for name, tensor in part.state_dict().items()
                   if name.startswith("classifier.")} for part in (network, other))
    if _shapes(own) != _shapes(found) or network.layers != other.layers or start.own_encoder:
        raise VplError(f"{start.path} does not hold a map of the layers {list(network.layers)}",
                       "`start` names a decoder of `method='discriminant'` of the same layers; "
                       "without it, the discriminant is computed first")
    network.load_state_dict(found, strict=False)
