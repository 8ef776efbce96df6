"""The stages: each run the plain way and by vpltool's commands, on the same input, in turn.

A stage is a function of a `Bench` that gives lines of the table. It makes its own input, so that
each can be run alone.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import plain
import torch
import torch.nn.functional as F
from measure import (
    Pair,
    Peaks,
    Row,
    Side,
    Spent,
    Work,
    compared,
    once,
    peaks,
    products_rate,
    side_by_side,
)
from PIL import Image
from torch import Tensor
from world import NAMES, World, bytes_of, make_world

from vpltool.core import crf as crf_core
from vpltool.core import prototypes as core
from vpltool.core.classes import allowed_rows
from vpltool.core.crf import KERNELS
from vpltool.core.photos import fit_size
from vpltool.formats import (
    Header,
    identity_of_file,
    identity_of_many,
    open_input,
    open_output,
    open_workspace,
    read_labels,
    read_tensors,
)
from vpltool.methods.inputs import SegmenterParts
from vpltool.methods.segmenters import weclip
from vpltool.parallel import device as machine
from vpltool.stages._training_inputs import TrainDecoderSettings, training_of

SCALES = "1,0.75"
"""WeCLIP's, each seen mirrored, too."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Ours runs over more photos: its start-up counts, the plain way's not.

    Args:
        rounds: how often both ways take turns.
        data: whose photo sizes.
        model: of the encoder.
        photos: photos for `extract`, `cam` and `refine`, plain and ours.
        learn_photos: photos whose patches phase 1 learns from.
        steps: gradient steps of phase 1.
        product_pixels: pixels for the comparison of a step with its products.
        crf_photos: photos for the CRF, plain and ours.
        decoder_photos: photos that the decoder learns from.
        decoder_steps: steps of its training, plain and ours.
        predict_photos: photos to predict, plain and ours.
        eval_photos: masks to score.
        batch_size: photos at a time.
    """

    rounds: int = 3
    data: str = "voc"
    model: str = "ViT-B-16-quickgelu"
    photos: tuple[int, int] = (16, 48)
    learn_photos: int = 24
    steps: int = 3000
    product_pixels: int = 32768
    crf_photos: tuple[int, int] = (40, 120)
    decoder_photos: int = 16
    decoder_steps: tuple[int, int] = (3, 12)
    predict_photos: tuple[int, int] = (8, 16)
    eval_photos: int = 1449
    batch_size: int = 4


FULL = Sizes()
QUICK = Sizes(rounds=1, photos=(6, 6), learn_photos=8, product_pixels=8192, crf_photos=(12, 12),
              decoder_photos=6, decoder_steps=(1, 4), predict_photos=(2, 2), eval_photos=300)
TOY = Sizes(rounds=1, data="toy", model="toy", photos=(4, 4), learn_photos=12, steps=50,
            product_pixels=512, crf_photos=(3, 3), decoder_photos=3, decoder_steps=(1, 2),
            predict_photos=(2, 2), eval_photos=6, batch_size=2)


@dataclass
class Bench:
    """What the stages share: sizes, device, number format, folder for their worlds."""

    sizes: Sizes
    device: torch.device
    precision: str
    folder: Path
    encoders: list[plain.Encoder] = field(default_factory=list)

    @cached_property
    def peaks(self) -> Peaks:
        """The machine's, measured in this run."""
        toy = self.sizes.data == "toy"
        return peaks(self.device, side=128 if toy else 2048 if self.device.type == "cpu" else 8192,
                     seconds=0.01 if toy else 1)

    @cached_property
    def world(self) -> World:
        """Photos, and a CLIP with random weights."""
        sizes = self.sizes
        count = max(*sizes.photos, *sizes.crf_photos, *sizes.predict_photos, sizes.decoder_photos)
        return make_world(self.folder / "main", count, self.device, data=sizes.data,
                          model=sizes.model, scenes=200)

    def share(self, work: Work, seconds: float) -> float:
        """What part of the time the machine at its peak would need."""
        return self.peaks.least(work) / seconds

    def products_seconds(self, work: Work, shape: Shape) -> float:
        """Seconds of a bare loop of the encoder's own products, as many as the work has."""
        device, dtype = self.device, machine.dtype_of(work.precision)
        rate = products_rate(device, dtype, 1 + round(shape.patches), shape.width, shape.heads,
                             seconds=0.01 if self.sizes.data == "toy" else 2)
        return work.flops / rate

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Hold the encoder the plain way while it is needed; loading it is no part of any time."""
        self.encoders[:] = [plain.load(self.world.base / "clip", self.device)]
        try:
            yield
        finally:
            self.encoders.clear()

    @property
    def encoder(self) -> plain.Encoder:
        """The plain way's, within `loaded`."""
        return self.encoders[0]


@dataclass(frozen=True)
class Shape:
    """What work depends on: mean patches of a photo; the encoder's width, depth, dim and heads."""

    patches: float
    width: int
    depth: int
    dim: int
    heads: int

    @property
    def block(self) -> float:
        """FLOPs of a block's forward pass over a photo."""
        tokens = 1 + self.patches
        return 24 * tokens * self.width**2 + 4 * tokens**2 * self.width


def shape_of(world: World, photos: int, scale: float = 1.0) -> Shape:
    """Shape of the first photos of a world, resized by a scale."""
    visual = plain.load(world.base / "clip", torch.device("cpu")).visual
    patch = int(visual.patch_size[0])
    grids = [fit_size(size, patch, scale=scale) for size in world.sizes()[:photos]]
    return Shape(float(np.mean([h * w / patch**2 for h, w in grids])),
                 visual.conv1.out_channels, len(visual.transformer.resblocks), visual.proj.shape[1],
                 visual.transformer.resblocks[0].attn.num_heads)


def features(bench: Bench) -> Iterator[Row]:
    """`extract`, `cam` and `refine`; and the last two again."""
    world, sizes, (few, many) = bench.world, bench.sizes, bench.sizes.photos
    chosen = world.first(few)
    rows, index = world.prototypes()
    plainly: dict[str, Tensor] = {}
    again = Side()

    def old() -> int:
        plainly.update(plain.cams_of_photos(bench.encoder, chosen, world.tags, rows, index,
                                            bench.folder / "plain-cams"))
        return len(chosen)

    def new() -> int:
        same = ("--overwrite", "--limit", many, "--batch-size", sizes.batch_size)
        fast = ("--precision", bench.precision)
        world.run("extract", "--keep", "tokens,attention", *fast, *same)
        seconds = world.run("cam", *fast, *same) + world.run("refine", "--cams", "text", *same)
        again.seconds.append(seconds / many)
        return many

    pair = side_by_side(old, new, sizes.rounds, bench.loaded)
    again.memory = pair.ours.memory
    refined = open_input(world.work / "cams/text-refined/train", ("cams",))
    apart = torch.cat([(refined.read_tensors(key)["cam"].float() - maps).abs().flatten()
                       for key, maps in plainly.items()])
    shape = shape_of(world, many)
    tags = float(np.mean([len(world.tags[key]) for key in world.first(many)]))
    disk = bytes_of(world.work / "features/train") / many
    maps = bytes_of(refined.path) / many
    # The last block: forward once, then per class the MLP, one projection and the attention back.
    tokens = 1 + shape.patches
    cam = Work(shape.block + tags * (18 * tokens * shape.width**2 + 2 * tokens**2 * shape.width),
               disk + 2 * maps, bench.precision)
    whole = Work((shape.depth - 1) * shape.block + cam.flops, 2 * disk + 3 * maps, bench.precision)
    bare = bench.products_seconds(whole, shape)
    yield compared(
        "extract + cam + refine (photo)", pair, {"cpu": 3, "cuda": 25}, disk=disk + maps,
        share=bench.share(whole, pair.ours.best), bare=bare / pair.ours.best,
        same=1 - float(apart.mean()),
        check=f"CAM values differ from plain float32 by {float(apart.mean()):.4f} in the mean, "
              f"{float(apart.max()):.3f} at most",
        reason=_bound(pair, bare))
    own, pair_again = Pair(pair.ours, again), Pair(pair.plain, again)
    yield compared(
        "cam + refine again, other prototypes (photo)", pair_again,
        {"cpu": 8, "cuda": 50}, disk=maps, share=bench.share(cam, again.best),
        bare=bare / whole.flops * cam.flops / again.best,
        reason=_bound(pair_again, bare / whole.flops * cam.flops),
        check=f"{pair_again.ratio:.1f} times as fast as the plain way, whose second time is its "
              f"first over again, and the aim is taken against that; {own.ratio:.1f} times as fast "
              f"as our own first time")


def _bound(pair: Pair, bare: float) -> str:
    """What ratio a bare loop of the same products would have."""
    return (f"a bare loop of the same products, which cannot be saved, takes {bare:.2f} s of our "
            f"{pair.ours.best:.2f}: with nothing else it would be {pair.plain.best / bare:.1f}x")


def learn(bench: Bench) -> Iterator[Row]:
    """Phase 1: to the objective of the plain steps; and a step against its own products.

    Convergence depends on the features: these come from the demo's small trained CLIP.
    """
    sizes = bench.sizes
    world = make_world(bench.folder / "learn", sizes.learn_photos, bench.device, data=sizes.data,
                       model="demo", scenes=200)
    world.run("extract", "--keep", "patches", "--batch-size", sizes.batch_size)
    text, index = world.prototypes()
    stored = open_input(world.work / "features/train", ("features",))
    reached: list[float] = []
    rows: list[Tensor] = []

    def pool() -> tuple[Tensor, Tensor, Tensor]:
        parts = [stored.read_tensors(key, "patches")["patches"] for key in world.photos]
        pixels = F.normalize(torch.cat(parts).float(), dim=-1).to(bench.device)
        owner = torch.arange(len(parts)).repeat_interleave(torch.tensor([*map(len, parts)]))
        shown = [torch.tensor(world.tags[key], device=bench.device) for key in world.photos]
        return pixels, allowed_rows(index, shown)[owner.to(bench.device)], owner

    def old() -> int:
        pixels, allowed, _ = pool()
        found = plain.gradient_steps(pixels, text, allowed, sizes.steps)
        targets = core.text_targets(pixels, text, tau=0.01, allowed=allowed)
        rows[:] = [found]
        reached[:] = [core.Objective(pixels, targets, tau=0.03).value_and_gradient(found)[0]]
        return 1

    def new(iterations: int = 300) -> list[float]:
        world.run("learn-prototypes", "--solver", "lbfgs", "--iters", iterations, "--overwrite")
        header = read_tensors(world.work / "prototypes/vision.safetensors", "prototypes")[0]
        return [entry[1] for entry in header.facts["course"]]

    def descent() -> int:
        world.run("learn-prototypes", "--solver", "rkc", "--iters", sizes.steps, "--overwrite",
                  "--out", descended)
        return 1

    descended = bench.folder / "descended.safetensors"
    pair, steps = Pair(Side(), Side()), Side()
    once(pair.plain, old)
    # How many iterations are enough is found out beforehand, and is no part of the time.
    enough = next((number for number, value in enumerate(new()) if value <= reached[0]), 300)
    for _ in range(sizes.rounds - 1):
        once(pair.ours, lambda: bool(new(enough)))
        once(steps, descent)
        once(pair.plain, old)
    once(pair.ours, lambda: bool(new(enough)))
    once(steps, descent)
    course = new(enough)
    start = world.run("learn-prototypes", "--solver", "lbfgs", "--iters", 1, "--overwrite")
    ours = min(course)
    short = "" if ours <= reached[0] else ", NOT REACHED"
    pixels, allowed, _ = pool()
    exact = plain.gradient_steps(pixels.double(), text.double(), allowed, sizes.steps)
    passes = len(course)
    work = Work(4 * pixels.numel() * len(text) * passes, pixels.numel() * 4.0 * passes)
    once_through = Work(work.flops / passes, work.bytes / passes)
    yield compared(
        f"learn-prototypes, to the objective of {sizes.steps} steps (run)", pair,
        {"cpu": 20, "cuda": 20}, share=bench.share(work, pair.ours.best),
        check=f"objective {ours:.6f} after {passes} passes of L-BFGS, {reached[0]:.6f} after "
              f"{sizes.steps} steps{short}; {len(pixels)} patches, dimension {pixels.shape[1]}",
        reason=f"{start / pair.ours.best:.0%} of the time is the start of the command and reading "
               "features, as a run of one iteration shows")
    yield _descent_row(bench, Pair(pair.plain, steps), descended, (rows[0], exact), once_through)
    yield _step_against_products(bench)


def _descent_row(bench: Bench, pair: Pair, made: Path, plainly: tuple[Tensor, Tensor], work: Work
                 ) -> Row:
    """The paper's descent at its own settings, against all of its steps.

    Args:
        bench: what all stages share.
        pair: the times.
        made: the file of our rows.
        plainly: the plain way's rows in float32, and in double precision.
        work: of one gradient.
    """
    _, tensors = read_tensors(made, "prototypes")
    ours = tensors["prototypes"].double()
    rounded, exact = (float((ours * rows.cpu().double()).sum(dim=-1).min()) for rows in plainly)
    return compared(
        f"learn-prototypes, the paper's descent of {bench.sizes.steps} steps (run)", pair,
        {"cpu": 5}, check=f"cosine to the plain rows at least {rounded:.6f}; to those that the "
                         f"plain way finds in double precision, {exact:.6f}",
        reason=f"a gradient's products take {1000 * bench.peaks.least(work):.1f} ms at the "
               f"machine's peak, and a long step stands for as many as its path is smooth")


def _step_against_products(bench: Bench) -> Row:
    """Projected gradient descent on VOC's shape: its time over that of its two products alone."""
    torch.manual_seed(0)
    count, dim, rows, steps = bench.sizes.product_pixels, 512, 45, 10
    kept = torch.float16 if bench.device.type == "cuda" else torch.float32
    pixels = F.normalize(torch.randn(count, dim, device=bench.device), dim=-1).to(kept)
    start = F.normalize(torch.randn(rows, dim, device=bench.device), dim=-1)
    targets = core.text_targets(pixels, start, tau=0.01)

    # What a GPU keeps in half precision is made float32 at each step; that is no product.
    parts = [part.float() for part in pixels.split(core.part_size(pixels))]

    def products() -> int:
        for _ in range(steps):
            for values, share in zip(parts, targets.split(core.part_size(pixels)), strict=True):
                values @ start.T
                share.T @ values
        return steps

    def descent() -> int:
        core.solve_pgd(core.Objective(pixels, targets, tau=0.03), start, iters=steps, lr=10.0)
        return steps

    products(), descent()
    pair = side_by_side(products, descent, 3 * bench.sizes.rounds)
    ratios = [1 / ratio for ratio in pair.ratios]
    work = Work(4.0 * pixels.numel() * rows, pixels.numel() * pixels.element_size())
    return Row("learn-prototypes, step of the faithful PGD over its products (step)",
               1 / pair.ratio, (min(ratios), max(ratios)),
               {"cpu": 1.3, "cuda": 1.3}, (pair.plain.rate, pair.ours.rate),
               (pair.plain.memory, pair.ours.memory), share=bench.share(work, pair.ours.best),
               unit="x of its products",
               reason="softmax, and the norms of the rows"
                      + (", and float32 from half precision" if kept != torch.float32 else ""),
               check=f"{count} pixels of dimension {dim}, {rows} rows")


def _draw_cams(world: World, count: int) -> None:
    """Write CAMs as a good model would give them: the true masks at patch resolution, blurred."""
    workspace = open_workspace(world.work)
    keys = list(world.photos)[:count]
    header = Header(kind="cams", command="cam", inputs={"classes": workspace.classes_identity},
                    options={"split": "train", "prototypes": "drawn"})
    output = open_output(world.work / "cams/drawn/train", header, keys)
    output.begin()
    for key in output.todo:
        truth = torch.from_numpy(read_labels(world.masks[key]))
        owners = torch.tensor(world.tags[key])
        shown = (truth == owners[:, None, None]).float()[None]
        height, width = (-(-side // 16) for side in truth.shape)
        maps = F.avg_pool2d(F.adaptive_avg_pool2d(shown, (height, width)), 3, 1, 1)[0]
        output.write_tensors(key, {"cam": (0.9 * maps).half(), "classes": owners})
    output.finish()


def crf(bench: Bench) -> Iterator[Row]:
    """Pseudo masks against AFA's and WeCLIP's way and CLIP-ES's, both of which stay on the CPU."""
    world, (few, many) = bench.world, bench.sizes.crf_photos
    _draw_cams(world, many)
    stored = open_input(world.work / "cams/drawn/train", ("cams",))
    backend = "pydensecrf" if _installed("pydensecrf") else "torch"
    count = machine.worker_count(-1) + 1
    # Enough that all processes have work nearly to the end.
    spread = min(many, max(few, 8 * count))
    folder = world.work / "masks/drawn-full/train"
    results: set[str] = set()
    pools: list[Any] = []
    spent = Spent()

    def jobs(photos: int, labels: int, folder: str) -> list[plain.CrfJob]:
        out = bench.folder / folder
        out.mkdir(exist_ok=True)
        chosen = world.first(photos)
        cams = {key: stored.read_tensors(key) for key in chosen}
        return [plain.CrfJob(path, cams[key]["cam"].numpy(), cams[key]["classes"].tolist(),
                             KERNELS["clip-es"], backend, labels, out)
                for key, path in chosen.items()]

    def old() -> int:
        plain.crf_of_photos(jobs(few, plain.LABELS, "plain-masks"))
        return few

    def shared() -> int:
        plain.crf_of_photos(jobs(spread, 0, "plain-masks-present"), pools[0])
        return spread

    def new(photos: int = many) -> int:
        world.run("crf", "--what", "drawn", "--kernels", "clip-es", "--overwrite", "--limit",
                  photos)
        return photos

    # Compiling the loops is done once per machine.
    new(1)
    slow, alike, ours, single = Side(), Side(), Side(), Side()
    for _ in range(min(bench.sizes.rounds, 2)):
        once(slow, old)
        with plain.one_thread_workers(count) as pool:
            pools[:] = [pool]
            once(alike, shared)
        once(single, lambda: new(1))
        with mock.patch.object(crf_core, "mean_fields", spent.timed(
                "crf", crf_core.mean_fields, time.thread_time)):
            once(ours, new)
        results.add(identity_of_many({
            path.name: identity_of_file(path) for path in folder.glob("*.png")}))
    wanted, given = Pair(slow, ours), Pair(alike, ours)
    running = Side([(many * whole - start) / (many - 1)
                    for whole, start in zip(ours.seconds, single.seconds, strict=True)])
    running.memory = ours.memory
    loops = spent.seconds["crf"] / (many * len(ours.seconds))
    same = [_agreement(world.first(photos), folder, bench.folder / name)
            for photos, name in ((few, "plain-masks"), (spread, "plain-masks-present"))]
    yield compared(
        f"crf, CLIP-ES's preset, against {plain.LABELS} classes in one thread (photo)", wanted,
        {"cpu": 3, "cuda": 20},
        disk=(bytes_of(folder) + bytes_of(world.work / "masks/drawn/train")) / many,
        reason=_crf_reason(bench, wanted, jobs(few, 0, "plain-masks-present"), loops, count),
        same=same[0], check=f"{same[0]:.2%} of the labels are those of {backend} over "
                            f"{plain.LABELS} classes in one thread, as AFA and WeCLIP have it; "
                            f"{len(wanted.ratios)} runs gave {len(results)} "
                            "result to the byte; ours writes two folders of masks")
    for name, pair in ((" on all cores", given),
                       (", without the start of the command", Pair(alike, running))):
        yield compared(
            f"crf, CLIP-ES's preset, against the classes present{name} (photo)", pair,
            {"cpu": 2}, reason=_crf_reason(bench, pair, [], loops, count), same=same[1],
            check=f"{same[1]:.2%} of the labels are those of {backend} over the classes "
                  f"present, as CLIP-ES has it, in {count} processes, whose start is left out")


def _crf_reason(bench: Bench, pair: Pair, jobs: Sequence[plain.CrfJob], loops: float, cores: int
                ) -> str:
    """What our time is: on a CPU mean field and the rest, on a GPU also reading the photos."""
    if bench.device.type == "cpu":
        return (f"mean field takes {loops:.2g} s of a core a photo, so {loops / cores:.2g} s of "
                f"our {pair.ours.best:.2g} on {cores}; with nothing else it would be "
                f"{pair.plain.best * cores / max(loops, 1e-9):.2g}x")
    begun = time.perf_counter()
    for job in jobs:
        plain.crf_input(job)
    seconds = (time.perf_counter() - begun) / max(len(jobs), 1)
    return (f"decoding a photo and scaling its CAMs up takes {seconds / pair.ours.best:.0%} of "
            f"our time a photo, in one thread; without it at most "
            f"{pair.plain.best / max(pair.ours.best - seconds, 1e-6):.3g}x")


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _agreement(keys: dict[str, Path], first: Path, second: Path) -> float:
    """Share of the pixels that have the same label in both folders."""
    same = [read_labels(first / f"{key}.png") == np.array(Image.open(second / f"{key}.png"))
            for key in keys]
    return float(np.concatenate([part.ravel() for part in same]).mean())


def decoder(bench: Bench) -> Iterator[Row]:
    """The decoder's training, from stored layers."""
    world, (few, many) = bench.world, bench.sizes.decoder_steps
    _train_ready(bench)
    rows, index = world.prototypes()
    crop, photos = _crop(bench), bench.sizes.decoder_photos
    chosen = world.first(photos)

    def old() -> int:
        encoder = bench.encoder
        depth = len(encoder.visual.transformer.resblocks)
        settings = training_of(TrainDecoderSettings(iters=few, crop=crop), torch.float32)
        parts = SegmenterParts(tuple(range(depth - 1)), encoder.visual.conv1.out_channels, rows,
                               index)
        plain.train_decoder(
            plain.Lesson(encoder, chosen, world.tags, rows, index),
            weclip.build(parts, weclip.Settings()).to(bench.device), settings, parts.layers)
        return few

    def new() -> int:
        world.run(*_train_command(bench))
        return many

    pair = side_by_side(old, new, bench.sizes.rounds, bench.loaded)
    shape = shape_of(world, 1)
    tokens, width, layers = 6.0 * crop**2, 256, shape.depth - 1
    # Forward, and twice as much back; the frozen layers need no gradient. Per token, the second map
    # of each layer folded into the fusing one; three blocks, each with its attention in a crop.
    products = layers * (2 * shape.width * width + 3 * width**2) + 3 * (
        3 * (12 * width**2 + 2 * crop**2 * width) + width * shape.dim)
    work = Work(2 * tokens * products, tokens * layers * shape.width * 2, bench.precision)
    yield compared(
        "train-decoder (step of 6 crops)", pair, {"cpu": 5},
        share=bench.share(work, pair.ours.best),
        reason=f"the products and bytes that cannot be saved allow "
               f"{pair.plain.best / bench.peaks.least(work):.1f}x at this machine's peak",
        disk=bytes_of(world.work / "features/train") / photos,
        check="WeCLIP's PAR is left out of the plain way; on disk: the photo's stored layers")
    if bench.device.type == "cuda":
        yield Row("train-decoder against WeCLIP's own 0.54 s a step (step of 6 crops)",
                  0.54 * pair.ours.rate, (0.54 / max(pair.ours.seconds), 0.54 / pair.ours.best),
                  {"cuda": 10}, (1 / 0.54, pair.ours.rate), (0, pair.ours.memory),
                  share=bench.share(work, pair.ours.best),
                  reason=f"the products and bytes that cannot be saved allow "
                         f"{0.54 / bench.peaks.least(work):.0f}x at this machine's peak; a step "
                         f"takes {1000 * pair.ours.best:.0f} ms with the start of the command",
                  check="published, on an RTX 3090, batches of 4")


def _crop(bench: Bench) -> int:
    """Side of a crop in patches: WeCLIP's, or what a toy photo has."""
    return 4 if bench.sizes.data == "toy" else 20


def _train_command(bench: Bench) -> tuple[object, ...]:
    return ("train-decoder", "--masks", "drawn", "--prototypes", "text", "--name", "bench",
            "--crop", _crop(bench), "--limit", bench.sizes.decoder_photos, "--iters",
            bench.sizes.decoder_steps[1], "--precision", bench.precision, "--overwrite")


def _train_ready(bench: Bench) -> None:
    """Masks, unless they are there; and features with layers."""
    world, photos = bench.world, bench.sizes.decoder_photos
    if len(list((world.work / "masks/drawn/train").glob("*.png"))) < photos:
        _draw_cams(world, photos)
        world.run("crf", "--what", "drawn", "--limit", photos)
    world.run("extract", "--keep", "tokens,patches,layers", "--overwrite", "--limit", photos,
              "--batch-size", bench.sizes.batch_size, "--precision", bench.precision)


def predict(bench: Bench) -> Iterator[Row]:
    """Predictions at two scales, each mirrored, too."""
    world, sizes, (few, many) = bench.world, bench.sizes, bench.sizes.predict_photos
    if not (world.work / "decoder/bench.safetensors").exists():
        _train_ready(bench)
        world.run(*_train_command(bench))
    chosen = world.first(few)
    scales = [float(scale) for scale in SCALES.split(",")]
    folders = world.work / "predictions/bench/train", bench.folder / "plain-predictions"

    header, tensors = read_tensors(world.work / "decoder/bench.safetensors", "decoder")
    segmenter = weclip.rebuild(header.facts["config"])
    segmenter.load_state_dict(tensors)
    segmenter.eval().to(bench.device)

    def old() -> int:
        plain.predict(bench.encoder, segmenter, chosen.values(), scales, folders[1])
        return len(chosen)

    def new() -> int:
        world.run("predict", "--decoder", "bench", "--split", "train", "--source", "photos",
                  "--scales", SCALES, "--flip", "--labels-only", "--overwrite", "--precision",
                  bench.precision, "--limit", many, "--batch-size", sizes.batch_size)
        return many

    pair = side_by_side(old, new, sizes.rounds, bench.loaded)
    views = [shape_of(world, many, scale) for scale in scales]
    same = _agreement(chosen, *folders)
    work = [Work(2 * (shape.block * (shape.depth - 1) + _decoder_flops(shape)),
                 precision=bench.precision) for shape in views]
    bare = sum(map(bench.products_seconds, work, views))
    yield compared(
        f"predict, scales {SCALES}, mirrored (photo)", pair, {"cpu": 2, "cuda": 10},
        disk=bytes_of(folders[0]) / many, bare=bare / pair.ours.best,
        share=sum(map(bench.peaks.least, work)) / pair.ours.best,
        reason=_bound(pair, bare),
        same=same, check=f"{same:.2%} of the labels are those of the plain way; features of random "
                         "weights leave little to tell apart, see tests/test_benchmarks.py for a "
                         "trained CLIP")


def _decoder_flops(shape: Shape) -> float:
    """FLOPs of WeCLIP's decoder on a photo: maps of each layer, the fusing one, three blocks."""
    tokens, width, layers = shape.patches, 256, shape.depth - 1
    return 2 * tokens * (layers * (shape.width * width + 2 * width**2)
                         + 3 * (12 * width**2 + 2 * tokens * width) + width * shape.dim)


def evaluate(bench: Bench) -> Iterator[Row]:
    """Scores of as many masks as VOC's val has."""
    sizes = bench.sizes
    world = make_world(bench.folder / "eval", sizes.eval_photos, bench.device, data=sizes.data,
                       model="toy", scenes=24)
    workspace = open_workspace(world.work)
    header = Header(kind="predictions", command="predict", options={"split": "train"},
                    inputs={"classes": workspace.classes_identity})
    output = open_output(world.work / "predictions/drawn/train", header, list(world.masks))
    output.begin()
    for key, path in world.masks.items():
        output.write_labels(key, np.roll(read_labels(path), 7, axis=(0, 1)))
    output.finish()
    scores: list[float] = []

    def old() -> int:
        scores[:] = [plain.mean_iou([output.path_of(key) for key in world.masks],
                                    list(world.masks.values()), len(NAMES) + 1)]
        return len(world.masks)

    def new() -> int:
        world.run("eval", "--what", "predictions/drawn", "--split", "train")
        return len(world.masks)

    pair = side_by_side(old, new, sizes.rounds)
    begun, some = time.perf_counter(), list(world.masks)[:50]
    for key in some:
        read_labels(output.path_of(key)), read_labels(world.masks[key])
    decoding = (time.perf_counter() - begun) / len(some)
    report: dict[str, Any] = json.loads(
        (world.work / "scores/predictions-drawn-train.json").read_text())
    many = 1449
    seconds = [many * each for each in pair.ours.seconds]
    yield Row(f"eval, {many} photos (photo)", many / pair.ours.rate, (min(seconds), max(seconds)),
              {"cpu": 10, "cuda": 10}, (pair.plain.rate, pair.ours.rate),
              (pair.plain.memory, pair.ours.memory), unit="s",
              disk=bytes_of(output.path) / len(world.masks),
              reason=f"decoding two PNGs takes a core {1000 * decoding:.1f} ms a photo, "
                     f"{many * decoding:.1f} s for all",
              check=f"mIoU {report['miou']:.6f}, the plain way {scores[0]:.6f}; "
                    f"{pair.ratio:.2f} times plain"
                    + ("" if len(world.masks) == many else f"; from {len(world.masks)} photos"),
              same=1 - abs(report["miou"] - scores[0]))


STAGES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "features": features, "learn": learn, "crf": crf, "decoder": decoder, "predict": predict,
    "eval": evaluate,
}
"""Each stage of the table, in the pipeline's order."""
