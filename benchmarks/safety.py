"""What trust costs: hashed photos, checked numbers and synced files, as shares of each stage.

    make bench OPTIONS='--only trust'

Drawn photos of VOC's sizes and a ViT-B/16, on the disk of TMPDIR. Each stage runs once, in one
process and whole, and its parts are timed within that run: so what else the machine does slows part
and whole alike. Checks: seconds of a core, of the thread that checks, beside those of the process.
Synced files and hashes: seconds by the clock in which a thread waits for them, beside those of the
stage; where another thread writes, the stage goes on meanwhile, so this share is the most that it
costs. Each stage hashes its photos as if they were new to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from measure import Row, Spent
from stages import Bench
from world import World, make_world

from vpltool import file_hashes
from vpltool.formats import atomic, kinds, outputs

STAGES: tuple[tuple[object, ...], ...] = (
    ("extract", "--split", "train", "--workers", 0, "--keep", "tokens,patches,attention,layers",
     "--layers", "spread"),
    ("cam",),
    ("cam", "--method", "dense"),
    ("refine",),
    ("crf", "--workers", 0),
    ("seed-prototypes",),
    ("learn-prototypes", "--iters", 100),
    ("train-decoder", "--masks", "text-refined", "--iters", 4, "--batch-size", 4, "--workers", 0,
     "--name", "d"),
    ("predict", "--decoder", "d", "--split", "train", "--workers", 0, "--probabilities"),
)


@dataclass(frozen=True)
class Trust(Row):
    """A line of the table, of its own columns."""

    line: str = ""


def trust(bench: Bench) -> Iterator[Row]:
    """Each stage's cost of trust, in one thread."""
    toy, threads = bench.sizes.data == "toy", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        world = make_world(bench.folder / "trust", 4 if toy else 8, bench.device,
                           data=bench.sizes.data, model=bench.sizes.model)
        for words in STAGES:
            yield measure(world, words)
    finally:
        torch.set_num_threads(threads)


def measure(world: World, words: tuple[object, ...]) -> Trust:
    """Run a stage; a row of the table."""
    spent = Spent()
    cache = {file_hashes.FOLDER: str(world.base / "cache" / str(time.time_ns()))}
    with (mock.patch.dict(os.environ, cache),
          mock.patch.object(file_hashes, "_hash", spent.timed(
              "hash", file_hashes._hash, time.perf_counter)),
          mock.patch.object(kinds, "_fault", spent.timed(
              "check", kinds._fault, time.thread_time)),
          mock.patch.object(outputs, "check_labels", spent.timed(
              "check", kinds.check_labels, time.thread_time)),
          mock.patch.object(atomic, "sync", spent.timed("sync", atomic.sync, time.perf_counter))):
        core, began = time.process_time(), time.perf_counter()
        world.run(*words)
        core, clock = time.process_time() - core, time.perf_counter() - began
    check, hashed, sync = (spent.seconds[name] for name in ("check", "hash", "sync"))
    name = " ".join(map(str, words[:3] if "--method" in words else words[:1]))
    share = (hashed + sync) / clock + check / core
    return Trust(
        f"trust: {name}", share, (share, share), {}, (0, 0), (0, 0), line=(
            f"| {name} | {core:.2f} | {1000 * check:.1f} | {spent.calls['check']} | "
            f"{100 * check / core:.2f} % | {clock:.2f} | {1000 * hashed:.0f} | "
            f"{100 * hashed / clock:.2f} % | {1000 * sync:.0f} | {100 * sync / clock:.2f} % |"))


HEAD = ("| stage | seconds of a core | of these, checks, ms | tensors | share | seconds by the "
        "clock | of these, hashes of photos, ms | share | of these, the disk, ms | share |\n"
        "| --- |" + " ---: |" * 9)


def trust_table(rows: Sequence[Trust]) -> str:
    """Markdown: what hashes, checks and the disk cost each stage."""
    return "\n".join([HEAD, *(row.line for row in rows)])
