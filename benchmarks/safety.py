"""What checked numbers and synced files cost, as shares of the stages that they are part of.

    OMP_NUM_THREADS=1 python benchmarks/safety.py --photos 12

Drawn photos of VOC's sizes and a ViT-B/16, as in `bench.py`. Each stage runs once, in one process
and whole, and both parts of it are timed within that run: so what else the machine does slows part
and whole alike. Checks: seconds of a core, of the thread that checks, beside those of the process.
Synced files: seconds by the clock in which a thread waits for the disk, beside those of the stage;
where another thread writes, the stage goes on meanwhile, so this share is the most that it costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from world import World, make_world

from vpltool.formats import atomic, outputs, values

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


class Spent:
    """Adds up seconds that are spent in functions, and how often they are called."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def timed(self, name: str, function: Callable[..., Any], clock: Callable[[], float]
              ) -> Callable[..., Any]:
        """A function whose seconds count for a name."""
        def run(*arguments: Any, **options: Any) -> Any:
            began = clock()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += clock() - began
                self.calls[name] += 1

        return run


def measure(world: World, words: tuple[object, ...]) -> str:
    """Run a stage; a row of the table."""
    spent = Spent()
    with (mock.patch.object(values, "_fault", spent.timed(
              "check", values._fault, time.thread_time)),
          mock.patch.object(outputs, "check_labels", spent.timed(
              "check", values.check_labels, time.thread_time)),
          mock.patch.object(atomic, "sync", spent.timed("sync", atomic.sync, time.perf_counter))):
        core, began = time.process_time(), time.perf_counter()
        world.run(*words)
        core, clock = time.process_time() - core, time.perf_counter() - began
    check, sync = spent.seconds["check"], spent.seconds["sync"]
    name = " ".join(map(str, words[:3] if "--method" in words else words[:1]))
    return (f"| {name} | {core:.2f} | {1000 * check:.1f} | {spent.calls['check']} | "
            f"{100 * check / core:.2f} % | {clock:.2f} | {1000 * sync:.0f} | "
            f"{100 * sync / clock:.2f} % |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--base", type=Path, help="folder on the disk that is to be measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| stage | seconds of a core | of these, checks, ms | tensors | share | seconds by the "
          "clock | of these, the disk, ms | share |")
    print("| --- |" + " ---: |" * 7)
    with tempfile.TemporaryDirectory(dir=options.base) as folder:
        world = make_world(Path(folder) / "world", options.photos, torch.device("cpu"))
        for words in STAGES:
            print(measure(world, words), flush=True)


if __name__ == "__main__":
    main()
