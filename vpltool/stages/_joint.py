"""Training a network with its encoder, and writing both: for students, and for finetuning."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.clip import stored_towers
from vpltool.core import joint, segmenter, training
from vpltool.engine import checkpoints, segmenters
from vpltool.formats import Header
from vpltool.formats.storage import without_loss
from vpltool.lazy import torch
from vpltool.parallel import signals
from vpltool.parallel.device import find_device, find_precision, worker_count
from vpltool.parallel.ranks import joined
from vpltool.stages._pixel_data import PixelData, pixel_batches
from vpltool.stages._steps import Steps, follow_steps, too_many_crops, write_trained

FEW = 50
"""Photos below which a network with its encoder is said to have little to learn from."""


@dataclass(frozen=True)
class JointTraining:
    """A network that is trained together with its encoder.

    Args:
        header: of the file that is to come; its facts say how the network is rebuilt.
        target: that file.
        network: on the CPU, as it begins.
        data: what is learned from; with the encoder, which is changed.
        steps: how they are taken.
        settings: what is trained and how.
        names: of the losses.
        device: where.
        every: steps between two checkpoints.
        workers: threads that cut crops; -1: depends on the number of cores.
    """

    header: Header
    target: Path
    network: segmenter.SegmenterNetwork
    data: PixelData
    steps: training.StepSettings
    settings: joint.JointSettings
    names: Sequence[str]
    device: str
    every: int
    workers: int


def train_both(task: JointTraining, start: checkpoints.Start) -> None:
    """Take the steps that are left, and write the averaged network with its encoder.

    Raises:
        VplError: a loss is not finite, or a photo cannot be read any more.
    """
    with (joined(task.device) as ranks,
          signals.defer_interrupts(every=ranks.count > 1) as interrupted):
        tower = task.data.encoder.vision.float().to(ranks.device)
        torch.manual_seed(task.steps.seed)
        pair = joint.Pair(tower, task.network.to(ranks.device), task.settings)
        optimizer = joint.joint_optimizer(pair, task.steps)
        checkpoints.load_state(pair, optimizer, start.tensors)
        data = replace(task.data, rank=ranks.rank, ranks=ranks.count)
        with (contextlib.closing(pixel_batches(data, task.steps, start.step,
                                               workers=worker_count(task.workers))) as batches,
              too_many_crops(task.steps)):
            curve = follow_steps(
                Steps(task.header, task.target, task.steps.iterations, pair, optimizer,
                      task.names, task.every),
                joint.train_jointly(pair, optimizer, task.steps, batches, start=start.step,
                                    group=ranks), start, ranks, interrupted)
        pair.finish()
        if ranks.rank == 0:
            _write(task, curve)


def _write(task: JointTraining, curve: list[list[float]]) -> None:
    encoder, network = task.data.encoder, task.network
    facts = {"config": network.config, "reads": list(network.reads),
             "tower": stored_towers.tower_config(encoder.vision), "mean": list(encoder.mean),
             "std": list(encoder.std), "curve": curve}
    write_trained(task.target, replace(task.header, facts=task.header.facts | facts), {
        **network.state_dict(),
        **{f"{segmenters.TOWER}{name}": without_loss(tensor)
           for name, tensor in encoder.vision.state_dict().items()}}, curve, task.names)


def steps_of(settings: Any) -> training.StepSettings:
    """How steps are taken, by the settings of `train-decoder` or `train-student`.

    The learning rate rises in a tenth of the steps, and in `WARMUP` at most.
    """
    return training.StepSettings(
        iterations=settings.iters, batch_size=settings.batch_size, crop=settings.crop,
        lr=settings.lr, power=settings.power, seed=settings.seed,
        warmup=max(1, min(training.WARMUP, settings.iters // 10)),
        precision=find_precision("bf16", find_device(settings.device), console.warn)
        if settings.precision == "bf16" else torch.float32)


def warn_of_little(photos: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Warn where there are few photos, or classes without any.

    Args:
        photos: class indices of each photo's tags; the first class is 1.
        classes: names of the classes.
    """
    if len(photos) < FEW:
        console.warn(f"{len(photos)} photos are few for a network that is trained with its "
                     "encoder: compare it by `eval` with what taught it")
    tagged = {index for tags in photos for index in tags}
    missing = [name for index, name in enumerate(classes, 1) if index not in tagged]
    if missing and len(missing) < len(classes):
        console.warn(f"no photo is tagged {', '.join(missing)}: it will not be recognised")


def facts_of(method: str, classes: Sequence[str], normalise: str, max_side: int
             ) -> Mapping[str, object]:
    """What a header says of a segmenter before it is trained; the rest is added when it is written.
    """
    return {"segmenter": method, "classes": list(classes), "normalise": normalise,
            "max_side": max_side}
