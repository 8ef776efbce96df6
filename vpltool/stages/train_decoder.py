"""`train-decoder`: a segmenter on a frozen CLIP, from pseudo masks and prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vpltool import console
from vpltool.core import segmenter
from vpltool.core.training import TrainingSettings
from vpltool.engine import checkpoints, headers
from vpltool.engine.prototypes import Prototypes, class_rows, read_prototypes
from vpltool.errors import VplError, part_of
from vpltool.formats import Header, Workspace, expect_header
from vpltool.formats.changes import changed_inputs
from vpltool.formats.kinds import place
from vpltool.formats.shards import check_even, rank_of_process
from vpltool.lazy import torch
from vpltool.methods import load_method
from vpltool.methods.inputs import SegmenterParts
from vpltool.methods.interfaces import SegmenterMethod
from vpltool.parallel import device, signals
from vpltool.parallel.ranks import joined
from vpltool.settings import warn_without_effect
from vpltool.stage import Stage
from vpltool.stages import _fitting, _masks
from vpltool.stages._finetune import finetune
from vpltool.stages._steps import Training, take_steps, write_trained
from vpltool.stages._training_data import Frozen, TrainingData, frozen_layers

STAGE = Stage(order=70, panel="3. Masks and segmenter", reads=("features", "masks", "prototypes"),
              writes=("decoder",), settings=_fitting.TrainDecoderSettings, methods="segmenters",
              together=True)

_ENCODER_ONLY = "no encoder is run; `source='photos'` runs it"


def run(workspace: Workspace, settings: _fitting.TrainDecoderSettings) -> Path:
    """Train a segmenter on pseudo masks; the encoder stays frozen.

    The class scores of a pixel are the cosines of its embedding to the prototypes. Under torchrun
    processes share the crops of each step, and each GPU encodes its own.

    Example: vpltool train-decoder --iters 30000 --lambda-rsc 1

    Next: vpltool predict --split val

    Args:
        workspace: where inputs are found and the decoder goes.
        settings: what to learn from, which method, how long.

    Returns:
        the file of the decoder.

    Raises:
        VplError: an input is missing, a mask does not fit, or a setting is refused.
    """
    method = load_method(SegmenterMethod, settings.method)
    if method.TRAINS_ENCODER:
        return finetune(workspace, settings, method)
    stepless = method.stepless
    if not stepless:
        check_even(settings.batch_size)
    photos = {photo.id: photo for photo in workspace.photos(settings.split, settings.limit)}
    masks = _masks.find_masks(workspace, settings.masks, settings.split, list(photos.values()))
    prototypes = read_prototypes(workspace, class_rows(workspace, settings))
    frozen, ids = frozen_layers(
        workspace, masks.ids, source=settings.source, features=settings.features,
        split=settings.split, reads=method.READS, layers=getattr(settings.of_method, "layers", ""),
        device=settings.device, precision=settings.precision)
    unread = _unread(settings, frozen, stepless)
    warn_without_effect(settings, without=unread)
    training = _fitting.training_of(settings, _precision_of_steps(settings, frozen, stepless))
    network = _fitting.build_segmenter(settings, method, SegmenterParts(
        frozen.layers, frozen.input_width, prototypes.rows, prototypes.class_index), frozen)
    if network.in_joint_space:
        _check_rows(frozen, prototypes, settings.method)
    name = settings.name or masks.name
    target = settings.out or place(workspace.path, "decoder", name)
    first = None if stepless else _start_from(workspace, settings, network, frozen.model,
                                              target)
    header = _make_header(workspace, settings, masks, prototypes, frozen, ids, training, first,
                          unread)
    if not _is_done(target, header, settings, masks, ids):
        facts = {"segmenter": settings.method, "config": network.config,
                 "reads": list(network.reads), "classes": list(workspace.classes),
                 "normalise": workspace.normalise,
                 "max_side": (frozen.features.header.options.get("max_side", 1024)
                              if frozen.features else settings.max_side)}
        seen = _masks.repeated(masks, ids, settings.corrected_times)
        data = TrainingData(workspace, masks, [photos[key] for key in seen], frozen,
                          network.reads_patches, settings.max_side, *rank_of_process())
        task = Training(data, training, replace(header, facts=facts), target)
        start = None if stepless else checkpoints.read_checkpoint(
            task.checkpoint, task.header, overwrite=settings.overwrite, update=settings.update)
        _masks.check_masks(masks, workspace, [photos[key] for key in ids])
        if start is None:
            _fit(task, method, network, settings)
        else:
            _train(task, network, start, settings)
    return target


def _unread(settings: _fitting.TrainDecoderSettings, frozen: Frozen, stepless: bool
            ) -> dict[str, str]:
    """Settings that are not read, and why."""
    unread = dict(_fitting.STEPLESS) if stepless else {}
    if frozen.features:
        unread["max_side"] = _ENCODER_ONLY
        if stepless:
            unread["precision"] = _ENCODER_ONLY
        elif settings.precision == "fp16":
            # They would need their losses scaled.
            unread["precision"] = "steps are not computed in fp16; `precision='bf16'`"
    return unread


def _precision_of_steps(settings: _fitting.TrainDecoderSettings, frozen: Frozen, stepless: bool
                        ) -> torch.dtype:
    """The number format that the decoder's steps are computed in."""
    if stepless or settings.precision != "bf16":
        return torch.float32
    # Where there is an encoder, it has warned of a format that is slow.
    warn = console.warn if frozen.features else None
    return device.find_precision("bf16", device.find_device(settings.device), warn)


def _check_rows(frozen: Frozen, prototypes: Prototypes, method: str) -> None:
    """Check that prototypes can classify the pixels of a method that compares them.

    Raises:
        VplError: they are of another model, or of classes alone.
    """
    headers.check_same_model(frozen.model, prototypes.header.model,
                             f"{frozen.name} and {prototypes.path}")
    if 0 not in prototypes.class_index.tolist():
        raise VplError(f"`method={method!r}` compares pixels with prototypes, and "
                       f"{prototypes.path} has none of the background",
                       "`method='discriminant'` needs none; `seed_prototypes(background="
                       "'clusters')` makes some, for `prototypes='seeds'`")


def _start_from(workspace: Workspace, settings: _fitting.TrainDecoderSettings,
                network: segmenter.SegmenterNetwork, model: Mapping[str, str], target: Path
                ) -> Path | None:
    """Give the network the weights of the decoder that it begins with; its path, if there is one.

    Raises:
        VplError: it is not there, does not fit, or is the one that would be written.
    """
    start = _fitting.find_start(workspace, settings, target)
    if start is None:
        return None
    _fitting.take_weights(network, start, settings.method, model)
    return start.path


def _make_header(
    workspace: Workspace, settings: _fitting.TrainDecoderSettings, masks: _masks.Masks,
    prototypes: Prototypes, frozen: Frozen, ids: Sequence[str], training: TrainingSettings,
    first: Path | None, unread: Mapping[str, str],
) -> Header:
    return _fitting.header_of(
        workspace, settings, masks, prototypes.path, frozen, ids, first, skip=unread,
        options={"prototypes": prototypes.path.stem, "source": frozen.source,
                 **({} if "lr" in unread else {"lr": training.lr, "warmup": training.warmup}),
                 **({"layers": list(frozen.layers)} if frozen.layers else {})})


def _is_done(target: Path, header: Header, settings: _fitting.TrainDecoderSettings,
             masks: _masks.Masks,
             ids: Sequence[str]) -> bool:
    """Tell whether the decoder is there already.

    Raises:
        VplError: another one is there; if masks have changed since, it says how many.
    """
    try:
        return headers.check_file(target, header, settings)
    except VplError as error:
        if target.exists() and "masks" in changed_inputs(header, expect_header(target, "decoder")):
            newer = _masks.newer_than(masks, target, ids)
            error.message += f" ({part_of(newer, len(ids), 'masks', 'is', 'are')} newer than it)"
        raise


def _fit(run: Training, method: SegmenterMethod, network: segmenter.SegmenterNetwork,
         settings: _fitting.TrainDecoderSettings) -> None:
    with joined(settings.device, double=True) as ranks:
        _fitting.fit_segmenter(method, network, run.data, settings, ranks)
        if ranks.rank == 0:
            _write_decoder(run, network, [])


def _train(run: Training, network: segmenter.SegmenterNetwork, start: checkpoints.Start,
           settings: _fitting.TrainDecoderSettings) -> None:
    with (joined(settings.device) as ranks,
          # Outside the steps: an interrupt in the last one comes when the decoder is written.
          # torchrun sends a second signal after that of the terminal.
          signals.defer_interrupts(every=ranks.count > 1) as interrupted):
        curve = take_steps(run, network, start, settings, ranks, interrupted)
        if ranks.rank == 0:
            _write_decoder(run, network, curve)


def _write_decoder(run: Training, network: segmenter.SegmenterNetwork, curve: list[list[float]]
                   ) -> None:
    header = replace(run.header, facts={**run.header.facts, "curve": curve})
    write_trained(run.target, header, network.state_dict(), curve,
                  ("mask loss", "contrast", "affinity"))
