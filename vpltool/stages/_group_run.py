"""A training of groups: its pairs, its steps, its checkpoints and its result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.core import group_training, groups
from vpltool.engine import checkpoints
from vpltool.engine.groups import MEAN, STD, caption_tokenizer, clip_encoder
from vpltool.formats import Header, JsonObject, Workspace, write_tensors
from vpltool.lazy import Tensor, torch
from vpltool.parallel import memory, signals
from vpltool.parallel.device import find_precision, worker_count
from vpltool.parallel.ranks import Ranks
from vpltool.settings import NoEffect, setting
from vpltool.stages import _pairs
from vpltool.stages._steps import Steps, follow_steps
from vpltool.stages._tar_pairs import TarPairs, TarPlan, read_tar_steps

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
                               low=0, high=0.9, brief=False,
                               source="PGSeg, official code")
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


@dataclass(frozen=True)
class Words:
    """What turns captions into what the network takes.

    Args:
        encode: captions to token numbers (B, length), or to a frozen tower's vectors (B, dim).
        model: identity of the CLIP whose tower it is; empty: the network's own.
        dim: dimensions of that CLIP's joint space; 0: the network's own.
    """

    encode: Callable[[Sequence[str]], Tensor]
    model: dict[str, str]
    dim: int


def words_of(workspace: Workspace, settings: TrainGroupsSettings, process: Ranks) -> Words:
    """The text tower that the settings name.

    Raises:
        VplError: the CLIP cannot be had.
    """
    if settings.text == "own":
        tokenize = caption_tokenizer(settings.context)
        return Words(lambda texts: tokenize(texts).to(process.device), {}, 0)
    encode, model = clip_encoder(workspace, process.device)
    return Words(encode, model, encode(["a photo"]).shape[1])


@dataclass(frozen=True)
class GroupRun:
    """A training: of what, by whom, and the file that is to come, with its header."""

    settings: TrainGroupsSettings
    source: _pairs.WorkspacePairs | TarPairs
    words: Words
    process: Ranks
    header: Header
    target: Path

    @property
    def training(self) -> group_training.GroupTraining:
        chosen = self.settings
        return group_training.GroupTraining(
            iterations=chosen.iters, warmup=round(chosen.warmup * chosen.iters),
            lr_start=chosen.lr_start, lr=chosen.lr, lr_end=chosen.lr_end,
            weight_decay=chosen.weight_decay, clip=chosen.clip,
            weights=(chosen.lambda_first, chosen.lambda_second, chosen.lambda_text),
            reject=chosen.reject,
            precision=find_precision(chosen.precision, self.process.device, console.warn),
            seed=chosen.seed)

    def facts_so_far(self) -> JsonObject:
        """What a checkpoint says of the pairs; all processes call it at the same step."""
        if not isinstance(self.source, TarPairs):
            return {}
        return {"cursors": self.process.collect(self.source.as_fact())}

    def batches(self, start: int) -> Generator[group_training.PairBatch, None, None]:
        """The pairs of each step from `start` on, on the device."""
        chosen, device = self.settings, self.process.device
        mean, std = torch.tensor([MEAN, STD], device=device).view(2, 3, 1, 1)
        steps, warn_of_skipped = self._steps(start, worker_count(chosen.workers),
                                             device.type == "cuda")
        try:
            for pairs in steps:
                yield group_training.PairBatch(pairs.normalised(mean, std),
                                               self.words.encode(pairs.captions))
        finally:
            warn_of_skipped()

    def _steps(self, start: int, workers: int, pinned: bool
               ) -> tuple[Iterator[_pairs.ReadPairs], Callable[[], None]]:
        """The pairs of each step from `start` on; and what warns in the end of what was skipped."""
        chosen, source = self.settings, self.source
        cut, ranks = _pairs.Cut(chosen.side, chosen.crop, chosen.mirror), self.process.count
        if isinstance(source, TarPairs):
            return read_tar_steps(
                TarPlan(source, cut, chosen.batch_size // ranks, chosen.iters, chosen.seed,
                        self.process.rank, ranks), start, workers=workers, pinned=pinned
            ), source.warn_of_skipped
        plan = _pairs.Plan(source, cut, chosen.batch_size, chosen.iters, chosen.seed,
                           self.process.rank, ranks)
        return (_pairs.read_steps(plan, start, workers=workers, pinned=pinned),
                lambda: _pairs.warn_of_broken(plan))


def run_training(run: GroupRun, network: groups.GroupNetwork, start: checkpoints.Start) -> None:
    settings, process, training = run.settings, run.process, run.training
    network = network.to(process.device)
    optimizer = group_training.make_optimizer(network, training)
    checkpoints.load_state(network, optimizer, start.tensors)
    if isinstance(run.source, TarPairs):
        run.source.begin_at(start.facts, process.rank)
    objective = process.share(group_training.Objective(
        network, training, group_training.Exchange(process.rank, process.gather, process.mean)))
    # The outermost: an interrupt in the last step comes when the groups are written.
    with signals.defer_interrupts() as interrupted:
        with (contextlib.closing(run.batches(start.step)) as batches,
              memory.explain_out_of_memory(
                  f"{settings.batch_size} pairs of {settings.side}×{settings.side} pixels",
                  f"`batch_size={max(settings.batch_size // 2, 2)}, overwrite=True`")):
            curve = follow_steps(
                Steps(run.header, run.target, settings.iters, network, optimizer, _LOSSES,
                      settings.checkpoint_every, run.facts_so_far),
                group_training.train(objective, network, optimizer, training, batches,
                                     start=start.step, rank=process.rank),
                start, process, interrupted)
        if process.rank == 0:
            _write(run, network, curve)
            checkpoints.checkpoint_of(run.target).unlink(missing_ok=True)


def _write(run: GroupRun, network: groups.GroupNetwork, curve: list[list[float]]) -> None:
    header = replace(run.header, facts={**run.header.facts, "curve": curve})
    write_tensors(run.target, header, network.state_dict())
    losses = [f"{name} {first:.3f} → {last:.3f}" for name, first, last in zip(
        _LOSSES, curve[0][1:], curve[-1][1:], strict=True) if first]
    console.note(f"losses: {', '.join(losses)}")
