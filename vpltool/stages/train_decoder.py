"""`vpltool train-decoder`: a segmenter on a frozen CLIP, from pseudo masks and prototypes."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpltool import console
from vpltool.errors import VplError, check_choice
from vpltool.formats import (
    Header,
    find_folder,
    identity_of_file,
    open_workspace,
    read_tensors,
    write_tensors,
)
from vpltool.formats.header import difference
from vpltool.options import (
    Device,
    Limit,
    NoEffect,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Seed,
    Split,
    Workers,
    warn_about_no_effect,
)
from vpltool.stage import Stage
from vpltool.stages import _artifacts
from vpltool.stages._lessons import Lessons, crop_batches, frozen_layers

if TYPE_CHECKING:
    import torch

    from vpltool.core.decoder import Decoder
    from vpltool.core.training import StepRecord, TrainingSettings

STAGE = Stage(order=70, panel="3. Masks and segmenter", reads=("features", "masks", "prototypes"),
              writes=("decoder",))

NO_EFFECT = (NoEffect("precision", {"source": ("features",)}, "no encoder is run; add --source photos"),)

_HEAD_WIDTH = 32
"""Channels of an attention head: WeCLIP's 256 in 8 heads. Narrow decoders have fewer heads."""

_DEFAULT_LR = {"sgd": 0.01, "adamw": 0.002}

_STEPS_UNREAD = 10
"""Steps whose losses wait on a GPU at most: to read them, the host waits for the last of them."""


def train_decoder(
    ctx: typer.Context,
    masks: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="Pseudo masks to learn from; default: the furthest.")] = "",
    prototypes: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="The pixel classifier: vision, text or a file.")] = "vision",
    source: Annotated[str, typer.Option(
        help="photos: random scale, mirror, crop, encoded at each step; features: mirror and crop "
             "of stored layers, much faster; auto: features where they hold layers.")] = "auto",
    iters: Annotated[int, typer.Option(
        min=0, help="Steps; 0 with --residual: the dense CAM over all classes, no tags needed.",
    )] = 30000,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops a step.")] = 6,
    crop: Annotated[int, typer.Option(min=2, help="Side of a crop, in patches.")] = 20,
    lambda_ce: Annotated[float, typer.Option(min=0, help="Weight of the cross-entropy.")] = 1.0,
    lambda_rsc: Annotated[float, typer.Option(
        min=0, help="Weight of the regional semantic contrast; 0: without.")] = 1.0,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option(
        min=0, help="Learning rate; 0: 0.01 for sgd, 0.002 for adamw.")] = 0,
    power: Annotated[float, typer.Option(
        min=0, help="The rate falls as (1 - t)^POWER; WeCLIP: 1.")] = 0.9,
    balanced: Annotated[bool, typer.Option(
        "--balanced/--plain", help="Background and foreground weigh the same in the cross-entropy "
                                   "(WeCLIP), or each pixel does (the paper).")] = False,
    tau: Annotated[float, typer.Option(
        min=1e-3, help="Temperature of the pixel classifier.")] = 0.07,
    width: Annotated[int, typer.Option(min=8, help="Width of the decoder.")] = 256,
    residual: Annotated[bool, typer.Option(
        "--residual/--no-residual", help="Add the decoder's output to CLIP's own patch embeddings: "
                                         "better with few photos or steps.")] = False,
    layers: Annotated[str, typer.Option(
        metavar="LIST", help="CLIP blocks to read, 0 is the first; default: those stored, or all "
                             "but the last.")] = "",
    split: Split = "train",
    name: Annotated[str, typer.Option(help="Name of the decoder; default: the masks'.")] = "",
    checkpoint_every: Annotated[int, typer.Option(
        min=1, help="Steps between checkpoints; a stopped run goes on from the last.")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = -1,
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train WeCLIP's multi-layer decoder on pseudo masks; CLIP stays frozen.

    The class scores of a pixel are the cosines of its embedding to the prototypes.

    Example: vpltool train-decoder --iters 30000 --lambda-rsc 1

    Next: vpltool predict --split val
    """
    console.set_quiet(quiet)
    check_choice("optimizer", optimizer, ("sgd", "adamw"))
    check_choice("source", source, ("auto", "features", "photos"))
    if width > _HEAD_WIDTH and width % _HEAD_WIDTH:
        raise VplError(f"--width {width}: not a multiple of {_HEAD_WIDTH}, the width of an "
                       "attention head", "--width 256")
    workspace = open_workspace(ctx.obj)
    labels = find_folder(ctx.obj, ("masks",), masks, split, ("masks",),
                         f"vpltool crf --split {split}", preferred=("vision-refined", "vision"))
    path, vectors_header, vectors = _artifacts.read_prototypes(workspace, prototypes)
    workspace.check_classes(labels.header, labels.path)
    photos = workspace.photos(split, limit)
    ids = set(labels.available(photo.id for photo in photos))
    photos = [photo for photo in photos if photo.id in ids]
    frozen = frozen_layers(workspace, source, layers, split, photos, str(device), precision)
    warn_about_no_effect(ctx, NO_EFFECT, {"source": frozen.source})
    if residual and frozen.features and frozen.features.header.options.get("patches"):
        raise VplError("--residual adds to the last block's patch embeddings; the features hold "
                       "those of its value path", "--source photos, or --no-residual")
    if frozen.model:
        _artifacts.check_same_model(frozen.model, vectors_header.model,
                                    f"{frozen.name} and {path}")

    from vpltool.core.training import TrainingSettings

    settings = TrainingSettings(
        iterations=iters, batch_size=batch_size, crop=crop, optimizer=optimizer,
        lr=lr or _DEFAULT_LR[optimizer], power=power, balanced=balanced, lambda_ce=lambda_ce,
        lambda_rsc=lambda_rsc, seed=seed)
    header = Header(
        kind="decoder", command="train-decoder", model=vectors_header.model,
        options={"split": split, "source": frozen.source, "tau": tau, "width": width,
                 "residual": residual, "layers": list(frozen.layers), **asdict(settings)},
        inputs={"masks": labels.identity, "prototypes": identity_of_file(path),
                "classes": workspace.classes_identity,
                "tags": workspace.tags_identity(split)} | frozen.inputs)
    if frozen.source == "photos" and precision != "fp32":
        header.options["precision"] = precision
    if limit:
        header.options["limit"] = limit
    target = out or ctx.obj / "decoder" / f"{name or labels.path.parent.name}.safetensors"
    if not _artifacts.is_done(target, header, overwrite=overwrite):
        lessons = Lessons(workspace, labels, photos, frozen, residual)
        run = _Run(lessons, settings, header, target)
        _train(run, vectors, checkpoint_every, str(device), workers, overwrite=overwrite)
    print(target)


@dataclass(frozen=True)
class _Run:
    lessons: Lessons
    settings: TrainingSettings
    header: Header
    target: Path

    @property
    def checkpoint(self) -> Path:
        return self.target.with_name(f"{self.target.stem}.checkpoint.safetensors")


def _train(run: _Run, vectors: dict[str, torch.Tensor], checkpoint_every: int,
           device: str, workers: int, *, overwrite: bool) -> None:
    import torch

    from vpltool.core.decoder import Decoder, DecoderShape
    from vpltool.core.training import make_optimizer, train
    from vpltool.parallel.device import find_device, worker_count
    from vpltool.parallel.memory import explain_out_of_memory

    torch.manual_seed(run.settings.seed)
    options = run.header.options
    frozen = run.lessons.frozen
    shape = DecoderShape(frozen.layers, frozen.input_width, vectors["prototypes"].shape[1],
                         options["width"], heads=max(options["width"] // _HEAD_WIDTH, 1),
                         residual=options["residual"])
    decoder = Decoder(shape, vectors["prototypes"], vectors["class_index"], options["tau"])
    place = find_device(device)
    decoder = decoder.to(place)
    optimizer = make_optimizer(decoder, run.settings)
    if overwrite:
        run.checkpoint.unlink(missing_ok=True)
    start, curve, recent = _resume(run, decoder, optimizer)
    steps = run.settings.iterations
    used = run.settings
    unread: list[StepRecord] = []
    with (contextlib.closing(crop_batches(run.lessons, run.settings, start, device=place,
                                          workers=worker_count(workers))) as batches,
          console.progress(f"train-decoder {run.target.stem}", steps - start) as advance,
          explain_out_of_memory(f"{used.batch_size} crops of {used.crop}×{used.crop} patches",
                          f"--batch-size {max(used.batch_size // 2, 1)} --overwrite, or "
                          f"--crop {max(used.crop // 2, 2)} --overwrite")):
        for record in train(decoder, optimizer, run.settings, batches, start=start):
            unread.append(record)
            done = record.iteration + 1
            logged = done % max(steps // 50, 1) == 0 or done == steps
            kept = done % checkpoint_every == 0 and done < steps
            text = ""
            if logged or kept or len(unread) == _STEPS_UNREAD:
                recent += _read_losses(unread)
                unread.clear()
                text = "mask {:.3f} contrast {:.3f}".format(*recent[-1])
            if logged:
                means = [round(sum(part) / len(part), 5) for part in zip(*recent, strict=True)]
                curve.append([done, *means])
                recent.clear()
            if kept:
                _write_checkpoint(run, decoder, optimizer, done, curve, recent)
            advance(text=text)
    facts = {"config": decoder.config, "curve": curve}
    write_tensors(run.target, replace(run.header, facts=facts), decoder.state_dict())
    run.checkpoint.unlink(missing_ok=True)
    if curve:
        console.note(f"mask loss {curve[0][1]:.3f} → {curve[-1][1]:.3f}, "
                     f"contrast {curve[0][2]:.3f} → {curve[-1][2]:.3f}")


def _read_losses(records: list[StepRecord]) -> list[list[float]]:
    """Mask loss and contrast of each step, read at once.

    Raises:
        VplError: one is not finite.
    """
    import torch

    losses: list[list[float]] = torch.stack([
        torch.stack([record.mask, record.contrast]) for record in records]).tolist()
    for record, pair in zip(records, losses, strict=True):
        if not math.isfinite(sum(pair)):
            raise VplError(f"the loss is not finite at step {record.iteration}",
                           "lower --lr, and add --overwrite")
    return losses


def _write_checkpoint(run: _Run, decoder: Decoder, optimizer: torch.optim.Optimizer, done: int,
                      curve: list[list[float]], recent: list[list[float]]) -> None:
    tensors = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    import torch

    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    facts = {"checkpoint": done, "curve": curve, "recent": recent}
    write_tensors(run.checkpoint, replace(run.header, facts=facts), tensors)


def _resume(run: _Run, decoder: Decoder, optimizer: torch.optim.Optimizer
            ) -> tuple[int, list[list[float]], list[list[float]]]:
    """Load the checkpoint, if there is one: first step, loss curve, losses not yet in it.

    Raises:
        VplError: it is of another configuration.
    """
    if not run.checkpoint.exists():
        return 0, [], []
    header, tensors = read_tensors(run.checkpoint, "decoder")
    if header.config_hash != run.header.config_hash:
        raise VplError(f"{run.checkpoint} was made with other settings: "
                       f"{difference(run.header, header)}",
                       "add --overwrite to begin anew, or --name NAME to keep it")
    state: dict[int, dict[str, torch.Tensor]] = {}
    weights = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "decoder":
            weights[rest] = tensor
        else:
            index, _, field = rest.partition(".")
            state.setdefault(int(index), {})[field] = tensor
    decoder.load_state_dict(weights)
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
    start = int(header.facts["checkpoint"])
    console.note(f"going on from step {start} of {run.settings.iterations}")
    return start, header.facts["curve"], header.facts["recent"]
