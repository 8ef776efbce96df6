"""What each method costs a photo: a line for each, against the reference of its kind.

A method is an entry of `ENTRIES`; what it is given is in `inputs.py`. Files are neither read nor
written.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from inputs import CLASSES, TAGS, Inputs
from measure import Row, Side, failed
from stages import Bench

from vpltool import console
from vpltool.core import alignment
from vpltool.core.proposals import Proposal, Proposals
from vpltool.core.tagging import Vocabulary, tag_scores
from vpltool.core.tower import Calibration
from vpltool.methods import KINDS, find_method, find_methods
from vpltool.methods.inputs import CamBatch, EmbeddingBatch, PhotoMaps
from vpltool.parallel.device import keep_freed_memory
from vpltool.stages.align import AlignSettings
from vpltool.stages.extract import ExtractSettings
from vpltool.stages.tag import TagSettings, tagging_of

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
