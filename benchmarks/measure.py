"""Side by side: two ways of doing the same, in turn, as ratios; memory; the machine's peaks."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpltool.core.blocks import linear

MIB = 2**20

Job = Callable[[], int]
"""Does some work and says how many photos, steps or passes it was."""


@dataclass
class Side:
    """One way of doing it: seconds per piece of work in each round, and peak memory in MiB."""

    seconds: list[float] = field(default_factory=list)
    memory: float = 0

    @property
    def best(self) -> float:
        """The least disturbed round."""
        return min(self.seconds)

    @property
    def rate(self) -> float:
        """Pieces a second, median of the rounds."""
        return 1 / statistics.median(self.seconds)


@dataclass
class Pair:
    """Both ways, round by round."""

    plain: Side
    ours: Side

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours was in each round."""
        return [old / new for old, new in zip(self.plain.seconds, self.ours.seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.ratios)


def side_by_side(
    plain: Job, ours: Job, rounds: int,
    ready: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Pair:
    """Run both in turn, so that what disturbs the machine disturbs both.

    Args:
        plain: the plain way.
        ours: our way.
        rounds: how often.
        ready: makes what the plain way needs at its start, and drops it after. It is no part of
            its time, and ours does not have it in memory.
    """
    pair = Pair(Side(), Side())
    for _ in range(rounds):
        with ready():
            once(pair.plain, plain)
        once(pair.ours, ours)
    return pair


def once(side: Side, job: Job) -> None:
    """Run a job and note it down."""
    with peak_memory() as peak:
        started = time.perf_counter()
        count = job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        side.seconds.append((time.perf_counter() - started) / count)
    side.memory = max(side.memory, peak[0])


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose one entry is, afterwards, the peak of memory in MiB.

    Of a GPU's if it is used; else of this process and its children, what they share counted once.
    """
    peak = [0.0]
    stop = threading.Event()

    def watch() -> None:
        while True:
            begun = time.perf_counter()
            peak[0] = max(peak[0], sum(map(_resident, [os.getpid(), *_children(os.getpid())])))
            # Counting a gigabyte's pages takes 20 ms of a core: at most a fiftieth of the time.
            if stop.wait(max(0.1, 50 * (time.perf_counter() - begun))):
                return

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()
        if on_gpu and (used := torch.cuda.max_memory_allocated() / MIB) > 1:
            peak[0] = used


def _children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_children(child)]
    return found


def _resident(process: int) -> float:
    """Memory in MiB, a shared page counted by its share; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0


class Spent:
    """Adds up seconds that are spent in functions, in any thread, and how often they are called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
                taken = clock() - began
                with self._lock:
                    self.seconds[name] += taken
                    self.calls[name] += 1

        return run


@dataclass(frozen=True)
class Work:
    """What a stage must spend on one piece of work, however it is written."""

    flops: float = 0
    bytes: float = 0
    precision: str = "fp32"


@dataclass(frozen=True)
class Peaks:
    """What the machine can do at most, by bare loops: FLOP/s of products, byte/s of copies."""

    flops: dict[str, float]
    bandwidth: float

    def least(self, work: Work) -> float:
        """Seconds that the work takes at best: its products or its bytes, whichever is longer."""
        return max(work.flops / self.flops[work.precision], work.bytes / self.bandwidth)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        stage: what was measured, and a piece of its work.
        value: times plain, median; or what `unit` says.
        spread: smallest and largest value of the rounds.
        aim: what is aimed at, by kind of device; None: nothing is.
        rates: pieces a second, plain and ours.
        memory: peak in MiB, plain and ours.
        disk: bytes that ours leaves on disk for one piece; 0: none.
        share: part of our time that the machine would need at its peak; 0: not counted.
        bare: part of our time that a bare loop of the same products takes; 0: not measured.
        reason: why it may fall short; shown where it does.
        check: how near ours is to plain, in words.
        same: share of the labels that are the plain way's, or 1 less the mean difference of values.
        unit: `x`, the more the better; or another one, the less the better.
        error: why there are no numbers, where the stage ended in an error.
    """

    stage: str
    value: float
    spread: tuple[float, float]
    aim: dict[str, float]
    rates: tuple[float, float]
    memory: tuple[float, float]
    disk: float = 0
    share: float = 0
    bare: float = 0
    reason: str = ""
    check: str = ""
    same: float | None = None
    unit: str = "x"
    error: str = ""

    def met(self, kind: str) -> bool:
        """Whether the aim of a kind of device, `cpu` or `cuda`, is reached; true without one."""
        if kind not in self.aim:
            return True
        return self.value >= self.aim[kind] if self.unit == "x" else self.value <= self.aim[kind]


def failed(stage: str, error: Exception) -> Row:
    """Make the line of a stage that ended in an error."""
    said = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
    return Row(stage, float("nan"), (float("nan"),) * 2, {}, (0, 0), (0, 0),
               error=said if len(said) <= 300 else said[:300] + "…")


def compared(stage: str, pair: Pair, aim: dict[str, float], **more: Any) -> Row:
    """Make the line of a pair."""
    return Row(stage, pair.ratio, (min(pair.ratios), max(pair.ratios)), aim,
               (pair.plain.rate, pair.ours.rate), (pair.plain.memory, pair.ours.memory), **more)


def table(rows: Sequence[Row], kind: str) -> str:
    """Markdown: the table, and below it the checks and what falls short."""
    lines = ["| stage | measured | aim | plain, a second | ours, a second | on disk, a piece "
             "| peak MiB, plain / ours | of the machine's peak | of its bare products |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        if row.error:
            lines.append(f"| {row.stage} | **failed:** {row.error} |" + " |" * 7)
            continue
        sign = "≥" if row.unit == "x" else "≤"
        aim = f"{sign} {row.aim[kind]:g}{row.unit[:1]}" if kind in row.aim else ""
        mark = "" if row.met(kind) else " **short**"
        low, high = row.spread
        lines.append(
            f"| {row.stage} | {row.value:.3g}{row.unit} ({low:.3g} to {high:.3g}) | {aim}{mark} | "
            + " ".join(f"{rate:.3g} |" if rate else " |" for rate in row.rates)
            + f" {format_bytes(row.disk)} | "
            + (f"{row.memory[0]:.0f} / {row.memory[1]:.0f} | " if any(row.memory) else " | ")
            + " ".join(f"{part:.0%} |" if part else " |" for part in (row.share, row.bare)))
    short = [f"- **{row.stage}** falls short: {row.reason or 'not known why'}."
             for row in rows if not row.met(kind)]
    checks = [f"- {row.stage}: {row.check}." for row in rows if row.check]
    return "\n".join([*lines, "", *short, *([""] if short else []), *checks])


def format_bytes(count: float) -> str:
    """`1.2 MB`; nothing for 0."""
    if not count:
        return ""
    power = min(int(np.log10(max(count, 1)) // 3), 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def peaks(device: torch.device, *, side: int = 2048, seconds: float = 1.0) -> Peaks:
    """Measure the machine: products of square matrices, and copies that no cache can hold."""
    flops = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.rand(side, side, device=device).to(dtype)
        flops[name] = 2 * side**3 / fastest(partial(torch.matmul, matrix, matrix), seconds)
    block = torch.zeros(side * side * 8, device=device)
    other = torch.empty_like(block)
    copied = 2 * block.nbytes
    return Peaks(flops, copied / fastest(lambda: other.copy_(block), seconds))


def products_rate(device: torch.device, dtype: torch.dtype, tokens: int, width: int, heads: int,
                  *, seconds: float = 1.0) -> float:
    """Measure a bare loop of a block's own products, as FLOP/s: those of its maps and attention.

    They are smaller than `peaks` has them, and of other shapes: libraries reach less. The maps are
    computed as the encoder does it.
    """
    def some(*size: int) -> torch.Tensor:
        return torch.rand(*size, device=device).to(dtype)

    count, inside = tokens, width // heads
    narrow, wide = some(count, width), some(count, 4 * width)
    maps = [(narrow, some(3 * width, width)), (narrow, some(width, width)),
            (narrow, some(4 * width, width)), (wide, some(width, 4 * width))]
    # A GPU takes all heads at once; on a CPU one head's matrix stays in the cache.
    size, times = ((heads,), 1) if device.type == "cuda" else ((), heads)
    query, weights = some(*size, count, inside), some(*size, count, count)
    attention = [(query, query.mT), (weights, query)] * times

    @torch.no_grad()
    def job() -> None:
        for x, weight in maps:
            linear(x, weight)
        for left, right in attention:
            left @ right

    flops = 24 * count * width**2 + 4 * count**2 * width
    return flops / fastest(job, seconds)


def fastest(job: Callable[[], object], seconds: float, *,
            clock: Callable[[], float] = time.perf_counter) -> float:
    """Run a job for some seconds, three times at least; the shortest time it took."""
    times: list[float] = []
    started = clock()
    while len(times) < 3 or clock() - started < seconds:
        begun = clock()
        job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - begun)
    return min(times)
