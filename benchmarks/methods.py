"""What each method costs a photo: a line for each, against the reference of its kind.

A method is an entry of `ENTRIES`. Files are neither read nor written: methods are given random
tensors of ViT-B/16's sizes, of a photo of 512×384 pixels with two tags and a grid of 24×32 patches.
Time depends little on the values: photo and maps are drawn, since superpixels, CRF and boxes look
at them.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import Row, Side, failed
from stages import Bench
from torch import Tensor
from world import draw_photo, save_model

from vpltool import console
from vpltool.clip.load import load_clip
from vpltool.core import alignment
from vpltool.core.phase_one import Pixels
from vpltool.core.proposals import Proposal, Proposals
from vpltool.core.segmenter import Decoder
from vpltool.core.tagging import Vocabulary, tag_scores
from vpltool.core.tower import Calibration
from vpltool.core.vit import VisionTower
from vpltool.methods import KINDS, find_method, find_methods
from vpltool.methods.inputs import CamBatch, EmbeddingBatch, PhotoMaps, ScoredPhoto, SegmenterParts
from vpltool.methods.segmenters import weclip
from vpltool.parallel.device import dtype_of, keep_freed_memory
from vpltool.stages.align import AlignSettings
from vpltool.stages.extract import ExtractSettings
from vpltool.stages.tag import TagSettings, tagging_of

TAGS = (3, 7)
CLASSES, WORDS = 20, 25
"""Rows of the text prototypes: VOC's classes, and words of the background."""


class Inputs:
    """What methods are given; each part is made once, where it is asked for first."""

    def __init__(self, bench: Bench) -> None:
        toy = bench.sizes.data == "toy"
        self.bench, self.device = bench, bench.device
        self.grid = (4, 6) if toy else (24, 32)
        self.batch_size = bench.sizes.batch_size
        self.photos, self.steps = (4, 2) if toy else (64, 100)
        self.bank = 200 if toy else 50_000
        self.dtype = dtype_of(bench.precision)

    @cached_property
    def vision(self) -> VisionTower:
        """A tower with random weights."""
        folder, name = self.bench.folder / "methods-clip", self.bench.sizes.model
        save_model(folder, name)
        return load_clip(name, str(folder), self.device).vision.to(self.dtype)

    @cached_property
    def photo(self) -> np.ndarray[Any, Any]:
        """A drawn photo with grain (H, W, 3), for superpixels and CRF."""
        height, width = (side * self.vision.patch for side in self.grid)
        return draw_photo(0, (height, width), np.random.default_rng(0))[1]

    @cached_property
    def pixels(self) -> Tensor:
        """A batch of photos, normalised (B, 3, H, W)."""
        shown = torch.from_numpy(self.photo).permute(2, 0, 1) / 127.5 - 1
        return torch.stack([shown] * self.batch_size).to(self.device, self.dtype)

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """Features of a photo as files hold them, in half precision."""
        count, vision = self.grid[0] * self.grid[1], self.vision
        made = {
            "tokens": torch.randn(vision.head.prefix + count, vision.width),
            "patches": _units(count, self.dim),
            "layers": torch.randn(vision.depth - 1, count, vision.width),
            "attention": _attention(count), "attentions": _attention(8, count),
            "second_patches": _units(count, 384), "second_attention": _attention(count)}
        return {name: tensor.half().to(self.device) for name, tensor in made.items()}

    @property
    def dim(self) -> int:
        """Of the joint space."""
        return int(self.vision.head.config["dim"])

    def batch(self, reads: Sequence[str]) -> dict[str, Tensor]:
        """A batch of what a method reads, in the number format that its stage moves it to."""
        dtype = self.dtype if "head" in reads else torch.float32
        return {name: torch.stack([tensor] * self.batch_size).to(dtype)
                for name, tensor in self.stored.items() if name in reads}

    @cached_property
    def cams(self) -> Tensor:
        """Smooth maps of two tags (2, h, w), half precision."""
        rough = torch.rand(1, len(TAGS), 5, 6, generator=torch.Generator().manual_seed(0))
        maps = F.interpolate(rough, self.grid, mode="bicubic")[0].clamp(0, 1)
        return (maps / maps.amax((1, 2), keepdim=True)).half().to(self.device)

    @cached_property
    def scored(self) -> ScoredPhoto:
        """The photo with the scores of background and tags (3, H, W)."""
        maps = F.interpolate(self.cams[None].float().cpu(), self.photo.shape[:2], mode="bilinear")
        scores = torch.cat([1 - maps.amax(1, keepdim=True), maps], dim=1)
        return ScoredPhoto(self.photo, scores[0].numpy())

    def rows(self, name: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Prototypes, their classes, and what else is known of each row.

        `text`; `several` and `context`, as cpal and lpcam have them; and banks: `regions` of all
        photos of VOC, `patches` of some. All have the `scale` and `bias` of a discriminant's.
        """
        classes, words = torch.arange(1, CLASSES + 1), torch.zeros(WORDS, dtype=torch.long)
        around = torch.zeros(0, dtype=torch.long)
        if name in ("regions", "patches"):
            count = min(self.bank, 26_500) if name == "regions" else self.bank
            index = torch.randint(1, CLASSES + 1, (count,)) * (torch.rand(count) > 0.5)
        else:
            each = {"text": 1, "several": 8, "context": 12}[name]
            around = classes.repeat_interleave(12) if name == "context" else around
            index = torch.cat([classes.repeat_interleave(each), words, torch.zeros_like(around)])
        context_of = torch.zeros_like(index)
        context_of[len(index) - len(around):] = around
        beside = {"context_of": context_of, "photo_of": torch.arange(len(index)) * 2 // 5,
                  "scale": torch.full((len(index),), 20.0), "bias": torch.zeros(len(index))}
        return (_units(len(index), self.dim).to(self.device), index.to(self.device),
                {key: tensor.to(self.device) for key, tensor in beside.items()})

    @cached_property
    def pool(self) -> Pixels:
        """Pixels of many photos: seeds of two tags each, background, and no seeds."""
        each = self.grid[0] * self.grid[1]
        tags = [torch.randperm(CLASSES)[:2] + 1 for _ in range(self.photos)]
        choices = torch.stack([torch.tensor([-1, 0, *own.tolist()]) for own in tags])
        photo_of = torch.arange(self.photos).repeat_interleave(each)
        labels = choices[photo_of, torch.randint(4, photo_of.shape)]
        return Pixels(_units(len(labels), self.dim).to(self.device), photo_of.to(self.device),
                      labels.to(self.device), [own.to(self.device) for own in tags])

    @cached_property
    def decoder(self) -> Decoder:
        """WeCLIP's, untrained."""
        parts = SegmenterParts(tuple(range(self.vision.depth - 1)), self.vision.width,
                               *self.rows("text")[:2])
        return weclip.build(parts, weclip.Settings()).eval().to(self.device)


def _units(count: int, dim: int) -> Tensor:
    return F.normalize(torch.randn(count, dim), dim=-1)


def _attention(*shape: int) -> Tensor:
    return (2 * torch.randn(*shape, shape[-1])).softmax(dim=-1)


TWICE = 2.0
"""What a method may cost, times its reference, without a reason."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Entry:
    """How a method is measured.

    Args:
        why: what it does that the reference does not; told where it costs more than twice as much.
        rows: the prototypes it is given, a name of `Inputs.rows`.
        values: settings other than the defaults.
    """

    why: str = ""
    rows: str = "text"
    values: Mapping[str, Any] = field(default_factory=dict)


_BLOCK = "runs CLIP's last block, 13 GFLOP"
_SLIC = "SLIC cuts the photo into superpixels"
_PAIRS = "compares all patches with each other; CLIP-ES's attention is stored"

ENTRIES: Mapping[str, Mapping[str, Entry]] = {
    "embeddings": {
        "naclip": Entry("runs the attention of the last block, twelve heads"),
        "proxyclip": Entry(f"two projections of the last block; {_PAIRS}"),
        "sclip": Entry(f"{_BLOCK}, with two attentions of twelve heads each"),
        "value": Entry("two projections of the last block")},
    "cams": {
        "dense": Entry(), "discriminant": Entry(),
        "gradcam": Entry(f"{_BLOCK}, and most of its way back for each tag"),
        "knn": Entry("compares each patch with about 27,000 rows of a bank of 50,000", "patches"),
        "lpcam": Entry(rows="context"),
        "salient": Entry(_PAIRS),
        "surgery": Entry(f"{_BLOCK}, for the photo's own vector")},
    "refiners": {
        "attention": Entry(), "cpal": Entry(rows="several"),
        "divergence": Entry("16 million logarithms: 27 rows for each pair of patches"),
        "excel": Entry("averages six blocks' attention; CLIP-ES's mean is stored"),
        "patches": Entry(_PAIRS), "retrieval": Entry(rows="regions"),
        "rfm": Entry("runs the decoder over eleven layers, and compares eight blocks' attention"),
        "ssr": Entry(f"{_SLIC}, and there is a second attention"), "superpixels": Entry(_SLIC),
        "transport": Entry()},
    "label_refiners": {
        "densecrf": Entry(),
        "par": Entry(),
        "proposals": Entry("counts the votes of 64 proposals, besides the CRF")},
    "estimators": {
        "bank": Entry(), "means": Entry(),
        "discriminant": Entry("two moments of all pixels, and a system of equations, in each of "
                              "seven fits"),
        "vda": Entry("a mean for each class of each photo"),
        "context": Entry("a mean for each class of each photo, and K-means of these"),
        "em": Entry("ten rounds of EM for each batch of four photos, in four passes"),
        "kmeans": Entry("K-means of each class"),
        "lpcam": Entry("K-means of each class, and of all else in the photos that show it")},
}
"""Kind and name of each method. One of another package is measured by its kind's defaults."""


class Cost(Row):
    """The line of a method; its value is the time over that of the reference."""


def call_of(kind: str, name: str, entry: Entry, made: Inputs) -> tuple[Call, int]:
    """Prepare a call of a method: it, and how many photos, or runs, it is."""
    module = find_method(kind, name).load()
    settings, device = module.Settings(**entry.values), made.device
    batch, ids = made.batch_size, [f"p{number}" for number in range(made.batch_size)]
    if kind == "label_refiners":
        scored = (replace(made.scored, proposals=_tiles(made.scored.scores.shape[1:]))
                  if "proposals" in module.READS else made.scored)
        return partial(module.refine_labels, [scored], settings, device), 1
    if kind == "embeddings":
        return partial(module.make_patches, EmbeddingBatch(
            ids, made.grid, made.batch(module.READS), made.vision.head), settings), batch
    rows, index, beside = made.rows(entry.rows)
    if kind == "estimators":
        return partial(module.estimate, made.pool, rows, index, settings, 0), 1
    tags = torch.tensor(TAGS)
    if kind == "cams":
        return partial(module.make_cams, CamBatch(
            ids, made.grid, made.batch(module.READS), [tags] * batch, rows, index, beside,
            head=made.vision.head, photos=[made.photo] * batch), settings), batch
    read = {name: tensor for name, tensor in made.stored.items() if name in module.READS}
    return partial(module.refine, PhotoMaps(
        ids[0], made.cams, tags, read, made.photo, prototypes=rows, class_index=index,
        of_rows=beside, decoder=made.decoder if "decoder" in module.READS else None), settings), 1


def _tiles(size: tuple[int, int]) -> Proposals:
    """Sixty-four proposals, eight by eight, that cover a photo."""
    rows, columns = np.arange(size[0]) * 8 // size[0], np.arange(size[1]) * 8 // size[1]
    number = 8 * rows[:, None] + columns
    return Proposals.of(size, (Proposal(number == tile) for tile in range(64)))


def _aligning(made: Inputs) -> Call:
    """`align` with its defaults, but for fewer steps, on the estimators' pixels."""
    pool, chosen = made.pool, AlignSettings()
    key = pool.photo_of.cpu() * (CLASSES + 1) + pool.labels.cpu()
    pixel = (pool.labels.cpu() >= 0).nonzero()[:, 0]
    pixel = pixel[key[pixel].argsort()]
    regions, counts = key[pixel].unique_consecutive(return_counts=True)
    shown = alignment.Regions(pool.embeddings, pixel, torch.ones(len(pixel)), counts,
                              regions % (CLASSES + 1))
    text, index, _ = made.rows("text")
    settings = alignment.AlignmentSettings(
        iterations=made.steps, clusters=chosen.labels == "clusters",
        **{name: getattr(chosen, name) for name in (
            "batch_size", "patches", "refresh", "lr", "weight_decay", "seed")})

    def run() -> None:
        aligner = alignment.Aligner(
            width=chosen.width, depth=chosen.depth, last_relu=chosen.last_relu,
            shared_start=chosen.init == "shared", tau=chosen.tau, learn_tau=chosen.learn_tau,
            text=text, class_index=index, regions=shown).to(made.device)
        optimizer = alignment.make_optimizer(aligner, settings)
        for _ in alignment.train(aligner, optimizer, shown, settings):
            pass

    return run


@dataclass(frozen=True)
class Line:
    """A line to be measured: what makes its call, and what it is set against."""

    title: str
    against: str
    why: str
    prepare: Callable[[Inputs], tuple[Call, int]]


_PER_PHOTO = "CLIP-ES's refinement"
_AGAINST = {"label_refiners": "pydensecrf, one thread", "estimators": "means"}
_REFERENCES = {_PER_PHOTO: ("refiners", "attention", Entry()),
               _AGAINST["label_refiners"]: (
                   "label_refiners", "densecrf", Entry(values={"backend": "pydensecrf"})),
               _AGAINST["estimators"]: ("estimators", "means", Entry())}


def lines() -> Iterator[Line]:
    """All lines: what runs the encoder, then every method of the kinds, then `align`."""
    def encode(patches: str, made: Inputs) -> tuple[Call, int]:
        given = ExtractSettings()
        beside = Calibration(given.calibrated_blocks, given.calibrated_heads)
        return (partial(made.vision, made.pixels, patches=patches, calibration=beside),
                made.batch_size)

    def tag(made: Inputs) -> tuple[Call, int]:
        words = Vocabulary.of(*made.rows("text")[:2])
        return (partial(tag_scores, made.vision, made.pixels, words,
                        tagging_of(TagSettings())), made.batch_size)

    whole = "runs the whole encoder"
    yield Line("extract", _PER_PHOTO, whole, partial(encode, "block"))
    yield Line("extract --patches calibrated", _PER_PHOTO,
               f"{whole}, and a second path beside its last blocks", partial(encode, "calibrated"))
    yield Line("tag", _PER_PHOTO, f"{whole}, and once more for each likely class", tag)
    for kind, entries in ENTRIES.items():
        for name in find_methods(kind):
            entry = entries.get(name, Entry())
            told = "".join(f" --{key} {value}" for key, value in entry.values.items())
            yield Line(f"{KINDS[kind].stage} --method {name}{told}",
                       _AGAINST.get(kind, _PER_PHOTO), entry.why,
                       partial(call_of, kind, name, entry))
    yield Line("align --iters 100", _AGAINST["estimators"], "trains two networks",
               lambda made: (_aligning(made), 1))


def methods(bench: Bench) -> Iterator[Row]:
    """Measure every method: its line, or that of its error."""
    keep_freed_memory()
    torch.manual_seed(0)
    made, threads = Inputs(bench), torch.get_num_threads()
    references = {against: call_of(kind, name, entry, made)[0]
                  for against, (kind, name, entry) in _REFERENCES.items()}
    for line in lines():
        # `crf` has a photo in each process, on one core.
        alone = line.against == _AGAINST["label_refiners"]
        torch.set_num_threads(1 if alone else threads)
        try:
            with console.heard_by(console.Terminal(quiet=True)):
                row: Row = _measured(line, made, references[line.against])
        except Exception as error:
            traceback.print_exc()
            row = failed(line.title, error)
        finally:
            torch.set_num_threads(threads)
        yield row


def _measured(line: Line, made: Inputs, reference: Call) -> Cost:
    call, count = line.prepare(made)
    plain, ours = Side(), Side()
    least = 0.0 if made.bench.sizes.data == "toy" else 0.2
    reference(), call()
    for _ in range(made.bench.sizes.rounds):
        plain.seconds.append(_seconds(reference, least))
        ours.seconds.append(_seconds(call, least) / count)
    ratios = [new / old for old, new in zip(plain.seconds, ours.seconds, strict=True)]
    return Cost(line.title, statistics.median(ratios), (min(ratios), max(ratios)),
                {"cpu": TWICE, "cuda": TWICE}, (plain.rate, ours.rate), (0, 0),
                reason=line.why, unit=f"x of {line.against}")


def _seconds(call: Call, least: float) -> float:
    """Mean seconds of a call, of as many as last `least`."""
    begun, count, passed = time.perf_counter(), 0, 0.0
    while not count or passed < least:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        count, passed = count + 1, time.perf_counter() - begun
    return passed / count


def costs(rows: Sequence[Row], kind: str) -> str:
    """Markdown: milliseconds of each method and its reference, and why, if more than twice."""
    lines = ["| method | ms | times | against | its ms | why, where more than twice |",
             "| --- | ---: | ---: | --- | ---: | --- |"]
    for row in rows:
        why = "" if row.met(kind) else row.reason or "**not known**"
        ours, plain = (_formatted(1000 / rate) for rate in reversed(row.rates))
        times, low, high = map(_formatted, (row.value, *row.spread))
        lines.append(f"| {row.stage} | {ours} | {times} ({low} to {high}) | "
                     f"{row.unit.removeprefix('x of ')} | {plain} | {why} |")
    return "\n".join([*lines, "", "Milliseconds are those of a photo; of a run over "
                      "64 photos for `seed-prototypes` and `align`."])


def _formatted(value: float) -> str:
    """Three digits: `4,640`, `13`, `0.108`."""
    return f"{float(f'{value:.3g}'):,.12g}"
