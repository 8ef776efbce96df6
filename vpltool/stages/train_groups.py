"""`train-groups`: a segmenter from photos and captions, open to any word (GroupViT, PGSeg)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.core import group_training, groups
from vpltool.datasets.webdataset import find_tars
from vpltool.engine import checkpoints, headers, models
from vpltool.engine.groups import MEAN, STD, caption_tokenizer, clip_encoder, take_weights
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace, kinds, shards
from vpltool.lazy import Tensor, torch
from vpltool.parallel import memory, ranks
from vpltool.parallel.device import find_precision, worker_count
from vpltool.settings import NoEffect, Stage, setting, warn_without_effect
from vpltool.stages._pairs import Cursor, Plan, TarPairs, WorkspacePairs

_LOSSES = ("pairs", "first", "second", "text")

_NO_NPR = NoEffect({"npr": ("none",)}, "there are no prototypes")
_NO_PHOTOS = NoEffect({"npr": ("none", "text")}, "photos have no prototypes")
_NO_TEXT = NoEffect({"npr": ("none", "photos")}, "captions have no prototypes")
_NO_TOWER = NoEffect({"text": ("clip",)}, "the text tower is the CLIP's, and frozen")
_NO_DIM = NoEffect({"text": ("clip",)}, "the joint space is the CLIP's")


@dataclass(frozen=True, kw_only=True)
class TrainGroupsSettings(options.Replaces):
    """Settings of `train-groups`."""

    npr: str = setting("both", "Prototypes that keep groups apart; of photos, of text, both, or "
                               "none, which is GroupViT.",
                       choices=("both", "photos", "text", "none"), source="PGSeg")
    text: str = setting("clip", "Text tower; clip: the workspace's CLIP, frozen; own: trained "
                                "jointly, as in the paper.", choices=("clip", "own"),
                        source="vpltool: far fewer pairs are enough")
    begin: Path | None = setting(
        None, "Initial weights; a .safetensors of this command, or GroupViT's with the names of "
              "the package transformers. Missing weights are random.",
        metavar="FILE", flag="--start", record="never")
    side: int = setting(224, "Side of the photos in pixels, a multiple of the patch.", low=2,
                        source="GroupViT")
    patch: int = setting(16, "Side of a patch, in pixels.", low=1, source="GroupViT")
    width: int = setting(384, "Width of a token, a multiple of the heads.", low=2,
                         source="GroupViT")
    heads: int = setting(6, "Heads of the attention.", low=1, source="GroupViT")
    depths: str = setting("6,3,3", "Blocks before the first grouping, before the second, and after "
                                   "it.", metavar="A,B,C", source="GroupViT")
    groups: str = setting("64,8", "Groups of the first stage and of the second.", metavar="A,B",
                          source="GroupViT")
    dim: int = setting(256, "Dimensions of the joint space.", low=2, source="GroupViT",
                       no_effect=[_NO_DIM])
    hidden: int = setting(4096, "Width of the projectors' hidden layer.", low=2, brief=False,
                          source="GroupViT")
    npr_hidden: int = setting(4096, "Width of the hidden layer after the prototypes.", low=2,
                              brief=False, source="PGSeg, official code", no_effect=[_NO_PHOTOS])
    drop_path: float = setting(0.1, "Drop-path rate of the last block; lower for earlier blocks.",
                               low=0, high=0.9, brief=False, source="PGSeg, official code")
    text_width: int = setting(256, "Width of a token of text.", low=2, brief=False,
                              source="GroupViT", no_effect=[_NO_TOWER])
    text_depth: int = setting(12, "Blocks of the text tower.", low=1, brief=False,
                              source="GroupViT", no_effect=[_NO_TOWER])
    text_heads: int = setting(4, "Heads of the text tower.", low=1, brief=False,
                              source="GroupViT", no_effect=[_NO_TOWER])
    context: int = setting(77, "Maximum number of tokens per caption.", low=3, brief=False,
                           source="GroupViT", no_effect=[_NO_TOWER])
    em_rounds: int = setting(10, "EM iterations, T.", low=1, source="PGSeg", no_effect=[_NO_NPR])
    momentum: float = setting(0.9, "Momentum of the prototypes' moving average.",
                              low=0, high=1, source="PGSeg", no_effect=[_NO_NPR])
    tau: float = setting(1.0, "Temperature of EM over the tokens of a photo.", low=1e-4,
                         source="PGSeg", no_effect=[_NO_PHOTOS])
    text_tau: float = setting(0.07, "Temperature of EM over captions.", low=1e-4,
                              source="vpltool: that of the pairs at the start; PGSeg's prototypes "
                                     "of text are numbers", no_effect=[_NO_TEXT])
    reject: float = setting(0.1, "Minimum similarity of a group and its prototype, as a share of "
                                 "the range in the photo; other pairs do not count.", low=0, high=1,
                            source="PGSeg", no_effect=[_NO_NPR])
    reconstruct: bool = setting(True, "Add the reconstruction from the prototypes to the tokens.",
                                source="PGSeg", no_effect=[_NO_PHOTOS])
    lambda_first: float = setting(0.1, "Weight of the first stage's prototypes.", low=0,
                                  source="PGSeg", no_effect=[_NO_PHOTOS])
    lambda_second: float = setting(0.1, "Weight of the second stage's prototypes.", low=0,
                                   source="PGSeg", no_effect=[_NO_PHOTOS])
    lambda_text: float = setting(0.01, "Weight of the text's prototypes.", low=0, source="PGSeg",
                                 no_effect=[_NO_TEXT])
    iters: int = setting(30000, "Training steps.", low=1,
                         source="vpltool; PGSeg: 30 passes over 27 million")
    batch_size: int = setting(256, "Pairs per step, over all processes.", low=2,
                              source="GroupViT, a GPU's; PGSeg: 1024 on each of four")
    lr: float = setting(1e-4, "Peak learning rate of AdamW.", low=0,
                        source="PGSeg, from GroupViT's weights; GroupViT, from none: 1.6e-3")
    lr_start: float = setting(1e-6, "Learning rate of the first step.", low=0, brief=False,
                              source="PGSeg")
    lr_end: float = setting(1e-5, "Final learning rate, after half-cosine decay.", low=0,
                            brief=False, source="PGSeg")
    warmup: float = setting(1 / 3, "Share of the steps used for warm-up.", low=0, high=1,
                            source="PGSeg: 10 of 30 passes")
    weight_decay: float = setting(0.05, "Weight decay.", low=0, source="PGSeg")
    clip: float = setting(5.0, "Maximum norm of the gradient; 0: no clipping.", low=0, brief=False,
                          source="PGSeg")
    crop: float = setting(0.5, "Minimum share of a photo's area in a crop; 1: all of it.",
                          low=0.01, high=1, source="vpltool")
    mirror: bool = setting(True, "Mirror photos at random.", source="GroupViT")
    pairs: tuple[str, ...] = setting(
        (), "WebDataset tars with photos and captions, instead of the workspace's photos; paths, "
            "folders, or addresses such as s3://…; {000..009} stands for ten. Repeatable.",
        metavar="TARS", record="never")
    allow_pipe: bool = options.allow_pipe()
    window: int = setting(512, "Pairs from tars that are shuffled together, in memory.",
                          low=1, brief=False, record="changed", source="vpltool")
    split: str = options.split("train")
    name: str = setting("groups", "Name of the result.", record="never", inside=True)
    checkpoint_every: int = options.checkpoint_every(200)
    seed: int = options.seed()
    device: str = options.device()
    precision: str = options.precision()
    workers: int = options.workers()
    limit: int = options.limit(record="changed")


STAGE = Stage(order=72, panel="3. Masks and segmenter", reads=("workspace", "images"),
              writes=("groups",), settings=TrainGroupsSettings, together=True)


def run(workspace: Workspace, settings: TrainGroupsSettings) -> Path:
    """Train an encoder that divides photos into groups, from captions alone.

    Any words can name the groups. Neither tags nor masks are needed. Under torchrun, several
    processes share each step.

    Example: vpltool train-groups --npr both --iters 30000

    Example: vpltool train-groups --pairs 'tars/{000..331}.tar' --text own --batch-size 1024

    Next: vpltool show

    Raises:
        VplError: there are no captions, a size does not fit, or a setting is refused.
    """
    if settings.text == "clip":
        models.check_words(workspace, "`text='own'`")
    of_tars = "the pairs are those of tars"
    warn_without_effect(settings, without={"split": of_tars, "limit": of_tars} if settings.pairs
                        else {"window": "only pairs of tars are shuffled so"})
    allowed = settings.allow_pipe and "pairs" in settings.given
    source = (TarPairs(find_tars(settings.pairs, allow_pipe=allowed), settings.window)
              if settings.pairs else WorkspacePairs(workspace, settings.split, settings.limit))
    shape = shape_of(settings)
    shards.check_even(settings.batch_size)
    if settings.precision == "fp16":
        raise VplError("`precision='fp16'`: gradients underflow", "`precision='bf16'`")
    if settings.begin and not settings.begin.is_file():
        raise VplError(f"{settings.begin}: there is no such file",
                       "a .safetensors of `train_groups()`, or GroupViT's")
    target = settings.out or kinds.result_path(workspace.path, "groups", settings.name)
    with ranks.joined(settings.device) as process:
        encode, model = _text_tower(workspace, settings, process.device)
        if model:
            shape = replace(shape, dim=encode(["a photo"]).shape[1])
        header = headers.make_header(
            workspace, "groups", "train-groups", settings,
            inputs={**source.identities, **({"begin": settings.begin} if settings.begin else {})},
            # Each process has its own BatchNorm statistics.
            model=model, options={"processes": process.count} if process.count > 1 else {},
            skip=("split",) if settings.pairs else ())
        header = replace(header, facts={"config": shape.to_config(), "mean": list(MEAN),
                                        "std": list(STD)})
        if not headers.check_file(target, header, settings):
            start = checkpoints.read_checkpoint(target, header, settings)
            # Initial weights depend only on the seed.
            torch.manual_seed(settings.seed)
            network = groups.GroupNetwork(shape)
            if settings.begin:
                take_weights(network, settings.begin)
            _train(settings, network.to(process.device), source, encode, header, target, start,
                   process)
    return target


def _text_tower(workspace: Workspace, settings: TrainGroupsSettings, device: torch.device
                ) -> tuple[Callable[[Sequence[str]], Tensor], Mapping[str, str]]:
    """Return a CLIP's text encoder, to vectors (B, dim), and the CLIP's identity.

    Without a CLIP, return a tokenizer, to token ids (B, length), and an empty identity.
    """
    if settings.text == "clip":
        return clip_encoder(workspace, device)
    tokenize = caption_tokenizer(settings.context)
    return lambda texts: tokenize(texts).to(device), {}


def _numbers(settings: TrainGroupsSettings, name: str, count: int) -> tuple[int, ...]:
    """Parse a list of `count` positive integers."""
    text = getattr(settings, name)
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or min(numbers) < 1:
        raise VplError(f"`{name}={text!r}`: expected {count} whole numbers from 1 on",
                       f"`{name}={TrainGroupsSettings.__dataclass_fields__[name].default!r}`")
    return numbers


def shape_of(settings: TrainGroupsSettings) -> groups.GroupShape:
    """Return the shape of the network, except for the dimensions of a CLIP's joint space.

    Raises a VplError if sizes do not fit each other.
    """
    for name, value, of, divisor in (
            ("side", settings.side, "patch", settings.patch),
            ("width", settings.width, "heads", settings.heads),
            ("text_width", settings.text_width, "text_heads", settings.text_heads)):
        if value % divisor:
            raise VplError(f"`{name}={value}` is not a multiple of `{of}={divisor}`",
                           f"`{name}={-(-value // divisor) * divisor}`")
    first, second, last = _numbers(settings, "depths", 3)
    many, few = _numbers(settings, "groups", 2)
    return groups.GroupShape(
        side=settings.side, patch=settings.patch, width=settings.width, heads=settings.heads,
        depths=(first, second, last), groups=(many, few), dim=settings.dim,
        hidden=settings.hidden, drop_path=settings.drop_path,
        caption=groups.CaptionShape(settings.text_width, settings.text_depth, settings.text_heads,
                                    settings.context) if settings.text == "own" else None,
        npr=groups.NprShape(settings.em_rounds, settings.momentum, settings.tau, settings.text_tau,
                            settings.reconstruct, settings.npr_hidden),
        of_photos=settings.npr in ("both", "photos"), of_text=settings.npr in ("both", "text"))


def _train(
    settings: TrainGroupsSettings, network: groups.GroupNetwork,
    source: WorkspacePairs | TarPairs, encode: Callable[[Sequence[str]], Tensor], header: Header,
    target: Path, start: checkpoints.Start, process: ranks.Ranks,
) -> None:
    training = group_training.GroupTraining(
        iterations=settings.iters, warmup=round(settings.warmup * settings.iters),
        lr_start=settings.lr_start, lr=settings.lr, lr_end=settings.lr_end,
        weight_decay=settings.weight_decay, clip=settings.clip,
        weights=(settings.lambda_first, settings.lambda_second, settings.lambda_text),
        reject=settings.reject,
        precision=find_precision(settings.precision, process.device, console.warn),
        seed=settings.seed)
    plan = Plan(settings.side, settings.crop, settings.mirror,
                settings.batch_size // process.count, settings.iters, settings.seed, process.rank,
                process.count, worker_count(settings.workers), process.device.type == "cuda")
    optimizer = group_training.make_optimizer(network, training)
    if "cursors" in start.facts:
        source.cursor = Cursor(**start.facts["cursors"][process.rank])

    def batches() -> Generator[group_training.PairBatch, None, None]:
        mean, std = torch.tensor([MEAN, STD], device=process.device).view(2, 3, 1, 1)
        try:
            for pairs in source.steps(plan, start.step):
                pixels = pairs.pixels.to(process.device, non_blocking=True)
                yield (pixels.float().div_(255) - mean) / std, encode(pairs.captions)
        finally:
            source.warn_of_skipped()

    def cursors() -> Mapping[str, object]:
        return {"cursors": process.collect(asdict(source.cursor))} if source.cursor else {}

    objective = process.share(group_training.Objective(network, training, process))
    with (contextlib.closing(batches()) as read, memory.explain_out_of_memory(
            f"{settings.batch_size} pairs of {settings.side}×{settings.side} pixels",
            f"`batch_size={max(settings.batch_size // 2, 2)}, overwrite=True`")):
        curve = checkpoints.take_steps(
            checkpoints.Steps(header, target, settings.iters, network, optimizer, _LOSSES,
                              settings.checkpoint_every, cursors),
            group_training.train(objective, network, optimizer, training, read, start=start.step,
                                 rank=process.rank),
            start, process, lambda: (header, network.state_dict()))
    if process.rank == 0:
        losses = [f"{name} {first:.3f} → {last:.3f}" for name, first, last in zip(
            _LOSSES, curve[0][1:], curve[-1][1:], strict=True) if first]
        console.note(f"losses: {', '.join(losses)}")
