"""How the cost of each stage grows: `make growth`.

    python benchmarks/growth.py [--quick] [--only photos,classes]

Each line of the table is one stage, and one size that grows while the others stay. Its exponent is
that of a power of the size, fitted in log-log over all sizes; the start of a command makes it
smaller, so the exponent of the last step alone stands beside it. Times are of one core, without
waiting for others (process time). Photos are tiny and networks small, so that what is measured is
what grows, not the encoder: only a block of ViT-B/16 is measured at its own size.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import fastest
from PIL import Image
from torch import Tensor
from world import World, draw_photo, save_model

from vpltool.core import prototypes as phase_one
from vpltool.core.blocks import Block, BlockShape
from vpltool.core.training import mask_loss, regional_contrast
from vpltool.core.vit import Head
from vpltool.formats import Header, write_labels
from vpltool.methods.cams import dense, gradcam
from vpltool.methods.inputs import CamBatch, PhotoMaps, ScoredPhoto, SegmenterParts
from vpltool.methods.label_refiners import densecrf
from vpltool.methods.refiners import attention as along_attention
from vpltool.methods.segmenters import weclip

NAMES = tuple(f"class {number}" for number in range(1, 255))
"""Of a workspace: label images of 8 bits end at 254 classes."""

CHAIN: tuple[tuple[object, ...], ...] = (
    ("extract", "--keep", "tokens,patches,attention", "--workers", 0),
    ("cam",), ("refine", "--cams", "text"),
    ("crf", "--what", "text-refined", "--workers", 0),
    ("learn-prototypes", "--iters", 20, "--tolerance", 0, "--max-pixels", 20_000),
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--name", "d", "--crop", 2,
     "--iters", 5, "--source", "photos", "--workers", 0),
    ("predict", "--decoder", "d", "--split", "train", "--source", "photos", "--workers", 0),
    ("eval", "--what", "predictions/d", "--split", "train"))
"""All stages, in their order; what learns does as much for any number of photos."""


@dataclass(frozen=True)
class Curve:
    """What a stage costs at each size.

    Args:
        stage: what was measured.
        grows: which size grows.
        sizes: its values, ascending.
        seconds: of one core, at each.
        memory: peak of this process in MiB, at each; empty: not counted.
    """

    stage: str
    grows: str
    sizes: Sequence[float]
    seconds: Sequence[float]
    memory: Sequence[float] = ()

    @property
    def exponent(self) -> float:
        """Slope of the straight line through all sizes, in log-log."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    @property
    def last(self) -> float:
        """Slope between the two largest sizes."""
        return (math.log(self.seconds[-1] / self.seconds[-2])
                / math.log(self.sizes[-1] / self.sizes[-2]))


def format_report(curves: Sequence[Curve]) -> str:
    """Spell the table."""
    lines = ["| stage | what grows | seconds of a core | exponent | of the last step | MiB |",
             "| --- | --- | --- | ---: | ---: | ---: |"]
    for curve in curves:
        sizes = ", ".join(f"{size:,.0f}" for size in curve.sizes)
        times = ", ".join(f"{seconds:.3g}" for seconds in curve.seconds)
        memory = ", ".join(f"{peak:.0f}" for peak in curve.memory)
        lines.append(f"| {curve.stage} | {curve.grows}: {sizes} | {times} | {curve.exponent:.2f} | "
                     f"{curve.last:.2f} | {memory} |")
    return "\n".join(lines)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a core that some work takes, and the peak of memory in MiB meanwhile."""
    # Linux counts the peak anew after this.
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    begun = time.process_time()
    work()
    seconds = time.process_time() - begun
    status = Path("/proc/self/status").read_text()
    return seconds, int(status.split("VmHWM:")[1].split()[0]) / 1024


def curve_of(stage: str, grows: str, sizes: Sequence[int],
             made: Callable[[int], Callable[[], object]]) -> Curve:
    """Measure a function at each size; `made` prepares it, outside of the time."""
    return Curve(stage, grows, sizes, [
        fastest(made(size), 0.3, clock=time.process_time) for size in sizes])


def draw(folder: Path, count: int, side: int, tags: int, classes: int) -> World:
    """Make a workspace of so many square photos of noise, with a small random CLIP."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    (folder / "masks").mkdir()
    photo, mask = folder / "photo.jpg", folder / "mask.png"
    noise = rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(photo)
    labels = np.kron(rng.integers(0, tags + 1, (4, 4)), np.ones((side // 4, side // 4)))
    write_labels(mask, labels.astype(np.uint8), Header(kind="masks", command="demo"))
    lines = ["id,labels"]
    for number in range(count):
        key = f"{number:06}"
        (folder / f"photos/{key}.jpg").write_bytes(photo.read_bytes())
        (folder / f"masks/{key}.png").write_bytes(mask.read_bytes())
        shown = [NAMES[(number + step) % min(classes, tags)] for step in range(tags)]
        lines.append(f"{key},{';'.join(shown)}")
    (folder / "tags.csv").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("\n".join(NAMES[:classes]))
    save_model(folder / "clip", "toy")
    return World(folder, folder / "work", {}, {}, {}, torch.device("cpu"), "toy")


def prepare(world: World) -> tuple[object, ...]:
    """The command that makes a workspace of what was drawn."""
    base = world.base
    return ("prepare", "folder", base / "photos", "--labels", base / "tags.csv", "--masks",
            base / "masks", "--classes", base / "classes.txt", "--pretrained", base / "clip")


def of_photos(folder: Path, sizes: Sequence[int]) -> Iterator[Curve]:
    """Every stage, over more and more photos."""
    found: dict[str, list[tuple[float, float]]] = {}
    # Once for what is imported and kept: no part of what grows.
    for size in (sizes[0], *sizes):
        world = draw(folder / f"{size}-{len(found.get('prepare', ()))}", size, 32, 2, 20)
        for command in (prepare(world), ("text-prototypes",), *CHAIN):
            cost = timed(partial(world.run, *command))
            found.setdefault(str(command[0]), []).append(cost)
    for name, costs in found.items():
        if name != "text-prototypes":
            yield Curve(name, "photos", sizes, [seconds for seconds, _ in costs[1:]],
                        [memory for _, memory in costs[1:]])


def of_patches(folder: Path, sides: Sequence[int]) -> Iterator[Curve]:
    """What a photo costs as it gets larger: stages over a few photos; a block of ViT-B/16; CRF."""
    found: dict[str, list[float]] = {}
    for side in sides:
        world = draw(folder / f"side-{side}", 6, side, 2, 20)
        world.run(*prepare(world))
        world.run("text-prototypes")
        for name, *more in (("extract", "--keep", "tokens,patches,attention", "--workers", 0),
                            ("cam",), ("refine", "--cams", "text")):
            command = (name, *more, *(("--max-side", 0) if name == "extract" else ()))
            found.setdefault(name, []).append(timed(partial(world.run, *command))[0])
    patches = [(side // 8) ** 2 for side in sides]
    for name, seconds in found.items():
        yield Curve(f"{name}, small network, 6 photos", "patches", patches, seconds)
    yield curve_of("a block of ViT-B/16, with its attention", "patches", patches, _block)
    yield curve_of("the same, without what is linear", "patches", patches, _attention)
    yield curve_of("refine of two CAMs", "patches", patches, lambda count: _refine(count, 2))
    yield curve_of("crf, two tags", "pixels", [side * side for side in sides],
                   lambda pixels: _crf(math.isqrt(pixels), 2))


def of_tags(_folder: Path, counts: Sequence[int]) -> Iterator[Curve]:
    """What each tag of a photo costs: GradCAM in a block of ViT-B/16, `refine` and `crf`."""
    yield curve_of("cam, ViT-B/16, 196 patches", "tags", counts,
                   lambda tags: _gradcam(196, tags, 45))
    yield curve_of("refine, 784 patches", "tags", counts, lambda tags: _refine(784, tags))
    yield curve_of("crf, 192×192 pixels", "tags", counts, lambda tags: _crf(192, tags))


def of_classes(folder: Path, counts: Sequence[int]) -> Iterator[Curve]:
    """What a larger vocabulary costs, at two tags a photo."""
    found: dict[str, list[float]] = {}
    few = [min(count, len(NAMES)) for count in counts][: len(counts) - 1]
    for count in few:
        world = draw(folder / f"classes-{count}", 12, 32, 2, count)
        world.run(*prepare(world))
        for command in (("text-prototypes",), *CHAIN):
            cost = timed(partial(world.run, *command))[0]
            found.setdefault(str(command[0]), []).append(cost)
    for name in ("text-prototypes", "eval"):
        yield Curve(f"{name}, small network", "classes", few, found[name])
    yield curve_of("cam, ViT-B/16, 196 patches, 2 tags", "classes", counts,
                   lambda classes: _gradcam(196, 2, classes + 25))
    yield curve_of("learn-prototypes, a step of 8,192 pixels", "classes", counts, _step)
    yield curve_of("train-decoder, logits and losses of 6 crops", "classes", counts, _losses)


def of_rows(_folder: Path, counts: Sequence[int]) -> Iterator[Curve]:
    """What more prototypes a class cost, with VOC's 20 classes."""
    yield curve_of("learn-prototypes, a step of 8,192 pixels", "prototypes a class", counts,
                   lambda each: _step(20 * each))
    yield curve_of("cam --method dense, 768 patches", "prototypes a class", counts,
                   lambda each: _dense(20 * each))


def _units(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def _vit_block() -> Block:
    return Block(BlockShape(768, 3072, 12, 1e-5, "quick_gelu")).requires_grad_(False)


def _block(patches: int) -> Callable[[], object]:
    block, tokens = _vit_block(), torch.randn(1, 1 + patches, 768)
    return lambda: block.forward_with_attention(tokens)


def _attention(patches: int) -> Callable[[], object]:
    block = _vit_block()
    query, key, value = block.heads(torch.randn(1, 1 + patches, 768))
    return lambda: block.attend(query, key, value)


def _refine(patches: int, tags: int) -> Callable[[], object]:
    attention = torch.rand(patches, patches).softmax(dim=-1)
    side = math.isqrt(patches)
    cams = torch.rand(tags, side, patches // side)
    photo = PhotoMaps("photo", cams, torch.arange(tags) + 1, {"attention": attention})
    return lambda: along_attention.refine(photo, along_attention.Settings())


def _gradcam(patches: int, tags: int, rows: int) -> Callable[[], object]:
    shape = BlockShape(768, 3072, 12, 1e-5, "quick_gelu")
    head = Head(shape, pool_width=768, dim=512, ln_after_pool=False, value_path=False,
                post_eps=1e-5).requires_grad_(False)
    torch.nn.init.normal_(head.proj, std=768 ** -0.5)
    side = math.isqrt(patches)
    index = torch.arange(rows) * (torch.arange(rows) <= max(rows - 25, tags))
    tokens, prototypes = torch.randn(1, 1 + side * side, 768), _units(rows, 512)
    batch = CamBatch(["photo"], (side, side), {"tokens": tokens}, [torch.arange(1, tags + 1)],
                     prototypes, index, head=head)
    return lambda: gradcam.make_cams(batch, gradcam.Settings())


def _dense(rows: int) -> Callable[[], object]:
    patches, prototypes, index = _units(1, 768, 512), _units(rows, 512), torch.arange(rows) % 20 + 1
    batch = CamBatch(["photo"], (24, 32), {"patches": patches}, [torch.tensor([1, 2])], prototypes,
                     index)
    return lambda: dense.make_cams(batch, dense.Settings())


def _step(rows: int) -> Callable[[], object]:
    pixels, prototypes = _units(8192, 512), _units(rows, 512)
    targets = phase_one.text_targets(pixels, prototypes, tau=0.01)
    objective = phase_one.Objective(pixels, targets, tau=0.03)
    return lambda: objective.gradient(prototypes.double())


def _losses(classes: int) -> Callable[[], object]:
    network = weclip.build(SegmenterParts((0,), 64, _units(classes + 1, 64),
                                          torch.arange(classes + 1)), weclip.Settings(width=64))
    embeddings = _units(6, 400, 64).requires_grad_(True)
    labels = torch.randint(0, 21, (6, 80, 80))
    shown = [torch.tensor([number, number + 1]) for number in range(1, 7)]

    def run() -> None:
        loss = mask_loss(network.logits(embeddings, (20, 20)), labels, balanced=False)
        contrast = regional_contrast(embeddings, network.prototypes, network.class_index, shown,
                                     *network.scalars)
        (loss + contrast).backward()

    return run


def _crf(side: int, tags: int) -> Callable[[], object]:
    photo = draw_photo(0, (side, side), np.random.default_rng(0))[1]
    maps = F.interpolate(torch.rand(1, tags + 1, 6, 6), (side, side), mode="bilinear")[0]
    scores = (4 * maps).softmax(dim=0).numpy()
    scored = [ScoredPhoto(photo, scores)]
    return lambda: densecrf.refine_labels(scored, densecrf.Settings(), torch.device("cpu"))


Measure = Callable[[Path, Sequence[int]], Iterator[Curve]]

MEASURES: dict[str, tuple[Measure, Sequence[int], Sequence[int]]] = {
    "photos": (of_photos, (100, 1000, 10_000), (5, 10)),
    "patches": (of_patches, (96, 192, 384, 512), (32, 64)),
    "tags": (of_tags, (1, 2, 4, 8, 16), (1, 2)),
    "classes": (of_classes, (20, 80, 300, 1000), (20, 40, 80)),
    "rows": (of_rows, (1, 2, 5, 10, 50), (1, 2))}
"""What grows: how it is measured, at which sizes, and at which ones quickly."""


def main(argv: list[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean little")
    parser.add_argument("--only", default=",".join(MEASURES), help="comma-separated measures")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    curves: list[Curve] = []
    for name in options.only.split(","):
        measure, sizes, few = MEASURES[name]
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            curves += measure(Path(folder), few if options.quick else sizes)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    print(format_report(curves))
    return 0


if __name__ == "__main__":
    sys.exit(main())
